//! The journal as a file: a header and the records chained to it.
//!
//! All that touches the file is here and goes through [`Folder`] and [`Medium`], so that the crash tests can stop
//! the world between any two of its steps. There is one owner and no lock; [`super::Journal`] is what others see.

use std::io::{self, Read};

use super::header::Header;
use super::medium::{Folder, Medium, Names};
use super::record::{HEAD_BYTES, Head, Link, PAYLOAD_BYTES_MAX, Writer};
use super::runs::{self, Runs};
use crate::block::BlockRange;
use crate::error::{Error, Result, errno};

/// A journal shorter than this is never rewritten, in bytes: reading it takes less than a millisecond.
const COMPACT_MIN_BYTES: u64 = 256 << 10;
/// The journal is rewritten when it has grown to so many times the length of its last snapshot, so that all rewriting
/// together costs no more than a third of what is appended.
const COMPACT_GROWTH: u64 = 4;
/// A snapshot is written in pieces of about so many bytes: few system calls, little memory.
const SNAPSHOT_PIECE_BYTES: usize = 1 << 20;

/// An open journal file.
pub(super) struct Chain<F: Folder> {
    folder: F,
    names: Names,
    file: F::File,
    header: Header,
    /// Behind the last good record: where the next one goes, in bytes.
    end: u64,
    link: Link,
    /// Length at which to rewrite, in bytes.
    compact_at: u64,
    /// Why nothing can be recorded any more.
    failed: Option<String>,
}

impl<F: Folder> Chain<F> {
    /// Makes the journal of a new cache. It has its name, durably, when this returns.
    pub fn create(folder: &F, names: &Names, header: Header) -> Result<Self> {
        let (file, end, link) = write_fresh(folder, names, &header, std::iter::empty())?;
        folder.rename(&names.fresh, &names.journal)?;
        folder.sync()?;
        let compact_at = compact_at(end);
        Ok(Self { folder: folder.clone(), names: names.clone(), file, header, end, link, compact_at, failed: None })
    }

    /// Reads the journal, if there is one, as far as it is valid; changes nothing. Answers the blocks it claims.
    pub fn open(folder: &F, names: &Names) -> Result<Option<(Self, Vec<BlockRange>)>> {
        let Some(file) = folder.open(&names.journal)? else { return Ok(None) };
        let scan = Scan::read(&file, &folder.show(&names.journal))?;
        let chain = Self {
            folder: folder.clone(),
            names: names.clone(),
            file,
            compact_at: compact_at(snapshot_bytes(&scan.runs)),
            header: scan.header,
            end: scan.end,
            link: scan.link,
            failed: None,
        };
        Ok(Some((chain, scan.runs)))
    }

    /// What the journal is bound to.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Makes a journal that was just opened fit for appending.
    ///
    /// What follows the valid part is cut off. What is valid is synced: the session before may have been killed
    /// between a write and its sync, and what only the page cache holds must not be called durable.
    pub fn adopt(&mut self) -> Result<()> {
        let length = self.file.length().map_err(|e| self.error("cannot read the length of", e))?;
        if length > self.end {
            let path = self.folder.show(&self.names.journal);
            let (tail, end) = (length - self.end, self.end);
            log::warn!(
                "{path}: {tail} bytes behind byte {end} are not valid (a record cut short by a crash, or damage) and were dropped"
            );
            self.cut();
        }
        self.file.sync().map_err(|e| self.error("cannot make durable", e))?;
        self.folder.sync()
    }

    /// Appends runs and makes them durable. Their data must be durable already.
    ///
    /// When the bytes cannot be *written* (a full disk), the file is cut back and the call may be repeated later.
    /// When they cannot be *synced*, nobody knows what the disk holds, and every later call fails.
    pub fn append(&mut self, runs: &[BlockRange]) -> Result<()> {
        self.check_sound()?;
        let mut writer = Writer::new(self.link);
        runs.iter().for_each(|run| writer.push(*run));
        let (bytes, link) = writer.finish();
        if bytes.is_empty() {
            return Ok(());
        }
        if let Err(e) = self.file.write_at(self.end, &bytes) {
            self.cut();
            return Err(self.error("cannot append to", e));
        }
        if let Err(e) = self.file.sync() {
            let error = self.error("cannot make durable", e);
            self.fail(&error);
            // The next session would read these records from the page cache as if they were on the disk.
            self.cut();
            return Err(error);
        }
        self.end += bytes.len() as u64;
        self.link = link;
        Ok(())
    }

    /// True when rewriting is worth the while.
    pub fn wants_compaction(&self) -> bool {
        self.end >= self.compact_at && self.failed.is_none()
    }

    /// Writes a snapshot of `runs` to a new file and puts it in the journal's place. `runs` must hold all that the
    /// journal claims. When this fails before the exchange the old journal stays in use.
    pub fn compact(&mut self, runs: impl Iterator<Item = BlockRange>) -> Result<()> {
        self.check_sound()?;
        let exchanged = write_fresh(&self.folder, &self.names, &self.header, runs).and_then(|fresh| {
            self.folder.rename(&self.names.fresh, &self.names.journal)?;
            Ok(fresh)
        });
        let (file, end, link) = match exchanged {
            Ok(fresh) => fresh,
            Err(error) => {
                // Not again at once: on a full disk each attempt would be in vain.
                self.compact_at = self.compact_at.saturating_mul(2);
                if let Err(error) = self.folder.remove(&self.names.fresh) {
                    log::debug!("{error}; the next compaction will try again");
                }
                return Err(error);
            }
        };
        (self.file, self.end, self.link) = (file, end, link);
        self.compact_at = compact_at(end);
        // After a crash now the old journal may be back under the name; records must not go to a file that may be lost.
        self.folder.sync().inspect_err(|error| self.fail(error))
    }

    /// Removes the journal of an image that is complete and durable, after reading once more that it says so.
    pub fn remove(self) -> Result<()> {
        self.check_sound()?;
        let path = self.folder.show(&self.names.journal);
        let scan = Scan::read(&self.file, &path)?;
        let (resident, blocks) = (runs::blocks(&scan.runs), scan.header.pinned.geometry.blocks());
        if resident != blocks {
            let text =
                format!("cannot finish {path}: {resident} of {blocks} blocks are recorded; fetch the rest first");
            return Err(Error::new(errno::EINVAL, text));
        }
        self.folder.remove(&self.names.journal)?;
        self.folder.sync()
    }

    fn check_sound(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(first) => Err(Error::new(
                errno::EIO,
                format!(
                    "nothing can be recorded in this session any more because an earlier sync failed ({first}): check the disk, then open the cache anew"
                ),
            )),
        }
    }

    fn fail(&mut self, error: &Error) {
        self.failed = Some(error.to_string());
    }

    /// Cuts off what lies behind the last good record. It does no harm when that fails: the next record is written
    /// over it, and what then still follows does not continue the chain.
    fn cut(&self) {
        if let Err(e) = self.file.set_length(self.end) {
            log::warn!("{}", self.error("cannot cut back", e));
        }
    }

    fn error(&self, what: &str, e: io::Error) -> Error {
        Error::io(format_args!("{what} {}", self.folder.show(&self.names.journal)), e)
    }
}

/// Writes a whole journal under the name of the successor and makes its content durable.
fn write_fresh<F: Folder>(
    folder: &F,
    names: &Names,
    header: &Header,
    runs: impl Iterator<Item = BlockRange>,
) -> Result<(F::File, u64, Link)> {
    // What a crash during the last compaction left behind. Nobody else can be at it: the cache is locked.
    folder.remove(&names.fresh)?;
    let file = folder.create(&names.fresh)?;
    let error = |what: &str, e| Error::io(format_args!("{what} {}", folder.show(&names.fresh)), e);
    let mut end = 0;
    let mut put = |bytes: Vec<u8>| -> Result<()> {
        file.write_at(end, &bytes).map_err(|e| error("cannot write", e))?;
        end += bytes.len() as u64;
        Ok(())
    };
    let (head, link) = header.encode();
    put(head)?;
    let mut writer = Writer::new(link);
    for run in runs {
        writer.push(run);
        if writer.sealed_bytes() >= SNAPSHOT_PIECE_BYTES {
            put(writer.take())?;
        }
    }
    let (rest, link) = writer.finish();
    put(rest)?;
    file.sync().map_err(|e| error("cannot make durable", e))?;
    Ok((file, end, link))
}

fn compact_at(snapshot_bytes: u64) -> u64 {
    snapshot_bytes.saturating_mul(COMPACT_GROWTH).max(COMPACT_MIN_BYTES)
}

/// About the length of a snapshot of `runs`: two varints of two bytes each.
fn snapshot_bytes(runs: &[BlockRange]) -> u64 {
    4 * runs.len() as u64
}

/// The valid part of a journal.
pub(super) struct Scan {
    /// Its header.
    pub header: Header,
    /// The blocks it claims, merged.
    pub runs: Vec<BlockRange>,
    /// Where the valid part ends, in bytes.
    pub end: u64,
    /// Where its chain ends.
    pub link: Link,
}

impl Scan {
    /// Reads a journal up to the first record that does not continue the chain. Memory: the runs, and one record.
    ///
    /// Bytes that cannot be read are an error, not an end: what they hold may be valid.
    pub fn read(file: &impl Medium, path: &str) -> Result<Self> {
        let (header, start, link) = Header::read(file, path)?;
        let blocks = header.pinned.geometry.blocks();
        let mut bytes = io::BufReader::with_capacity(PAYLOAD_BYTES_MAX, At { file, offset: start });
        let (mut runs, mut end, mut link) = (Runs::default(), start, link);
        let mut payload = Vec::new();
        loop {
            let mut head = [0; HEAD_BYTES];
            if !read_whole(&mut bytes, &mut head, path)? {
                break;
            }
            let Some(head) = Head::parse(head) else { break };
            payload.resize(head.payload_bytes(), 0);
            if !read_whole(&mut bytes, &mut payload, path)? {
                break;
            }
            let Some((more, next)) = head.accept(link, &payload, blocks) else { break };
            runs.extend(&more);
            link = next;
            end += (HEAD_BYTES + payload.len()) as u64;
        }
        Ok(Self { header, runs: runs.into_merged(), end, link })
    }
}

/// Fills `bytes`; false when the file ends before.
fn read_whole(file: &mut impl Read, bytes: &mut [u8], path: &str) -> Result<bool> {
    match file.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(Error::io(format_args!("cannot read {path}"), e)),
    }
}

/// Reads a medium from front to back.
struct At<'a, M> {
    file: &'a M,
    offset: u64,
}

impl<M: Medium> Read for At<'_, M> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(self.offset, bytes)?;
        self.offset += got as u64;
        Ok(got)
    }
}
