//! Images in local files and block devices: `file:PATH`, `file:///PATH` or a plain path.
//!
//! Holes of a sparse file are found with SEEK_DATA and SEEK_HOLE and reported as zeroes, never read. The file
//! is pinned by device, inode, size and modification time, and looked at again after each piece is read and
//! before it is handed on, so that a file that changes in place gives an error and not a mixture.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{FetchError, Identity, Sink, Source};
use crate::error::{Error, errno};

/// Bytes read at once: a system call for each is cheap, and a piece stays in a core's cache.
const PIECE_BYTES: usize = 128 << 10;

/// An image in a local file.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    path: PathBuf,
    identity: Identity,
}

impl FileSource {
    /// Opens the file that `url` names; with a `pinned` identity it must still be that file, unchanged.
    pub fn open(url: &str, pinned: Option<&Identity>) -> Result<Self, Error> {
        let path = path_of(url)?;
        let failed = |error| Error::io(format_args!("cannot open image {}", path.display()), error);
        let file = File::open(&path).map_err(failed)?;
        let identity = identity_of(&file, &path)?;
        if identity.size == 0 {
            return Err(Error::new(errno::EINVAL, format!("image {} is empty", path.display())));
        }
        if pinned.is_some_and(|pinned| !super::fits(pinned, &identity)) {
            return Err(changed(&path));
        }
        Ok(Self { file, path, identity })
    }

    /// The end of the hole at `offset`, at most `end`; `None` when there is data at `offset`.
    fn hole(&self, offset: u64, end: u64) -> Option<u64> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Some(data.min(end)),
            // No data behind here: the rest of the file is a hole.
            Err(Errno::NXIO) => Some(end),
            // A filesystem without holes says that everything is data, or refuses the question.
            _ => None,
        }
    }

    /// The end of the data at `offset`, at most `end`.
    fn data(&self, offset: u64, end: u64) -> u64 {
        match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
            Ok(hole) if hole > offset => hole.min(end),
            _ => end,
        }
    }

    fn check(&self) -> Result<(), FetchError> {
        let identity = identity_of(&self.file, &self.path)?;
        if identity == self.identity { Ok(()) } else { Err(FetchError::Fatal(changed(&self.path))) }
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize, FetchError> {
        loop {
            match self.file.read_at(buffer, offset) {
                // The file is shorter than it was.
                Ok(0) => return Err(FetchError::Fatal(changed(&self.path))),
                Ok(got) => return Ok(got),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    // A bad sector or a network filesystem that is away: both have been seen to recover.
                    let what = format!("cannot read image {} at {offset}: {error}", self.path.display());
                    return Err(FetchError::transient(what));
                }
            }
        }
    }
}

impl Source for FileSource {
    fn name(&self) -> String {
        format!("file:{}", self.path.display())
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn fetch(&self, _lane: usize, offset: u64, length: u64, sink: &mut dyn Sink) -> Result<(), FetchError> {
        let Some(range) = super::within(&self.identity, offset, length, &self.name())? else { return Ok(()) };
        let mut buffer = vec![0; PIECE_BYTES.min(usize::try_from(length).unwrap_or(PIECE_BYTES))];
        let mut at = range.start;
        while at < range.end {
            if let Some(end) = self.hole(at, range.end) {
                self.check()?;
                sink.zeroes(at, end - at).map_err(|_| FetchError::Stopped)?;
                at = end;
                continue;
            }
            let end = self.data(at, range.end);
            while at < end {
                let want = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
                let got = self.read(&mut buffer[..want], at)?;
                self.check()?;
                sink.data(at, &buffer[..got]).map_err(|_| FetchError::Stopped)?;
                at += got as u64;
            }
        }
        Ok(())
    }
}

/// The path in a `file:` URL (percent-decoded only after `file://`, where it is a URL in earnest) or as it is.
pub(super) fn path_of(url: &str) -> Result<PathBuf, Error> {
    let Some(rest) = url.strip_prefix("file:") else { return Ok(PathBuf::from(url)) };
    let Some(after) = rest.strip_prefix("//") else { return Ok(PathBuf::from(rest)) };
    let path = after.strip_prefix("localhost").unwrap_or(after);
    if !path.starts_with('/') {
        return Err(Error::option("source", url, "names a host; write file:///PATH or file:PATH"));
    }
    Ok(PathBuf::from(OsStr::from_bytes(&super::percent_decoded(path))))
}

fn identity_of(file: &File, path: &Path) -> Result<Identity, Error> {
    let failed = |error| Error::io(format_args!("cannot examine image {}", path.display()), error);
    let meta = file.metadata().map_err(failed)?;
    let kind = meta.file_type();
    let size = if kind.is_block_device() {
        rustix::fs::seek(file, SeekFrom::End(0)).map_err(|error| failed(error.into()))?
    } else if kind.is_file() {
        meta.len()
    } else {
        return Err(Error::new(errno::EINVAL, format!("image {} is no file and no block device", path.display())));
    };
    Ok(Identity { size, validator: Some(validator(&meta, size)), mtime_s: Some(meta.mtime()) })
}

fn validator(meta: &Metadata, size: u64) -> String {
    format!("{}/{}/{}/{}.{:09}", meta.dev(), meta.ino(), size, meta.mtime(), meta.mtime_nsec())
}

fn changed(path: &Path) -> Error {
    Error::new(errno::ESTALE, format!("image {} changed{}", path.display(), super::ADVICE_CHANGED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::testing::Collector;
    use std::io::{Seek, Write};

    fn sparse() -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 4096]).unwrap();
        file.seek(std::io::SeekFrom::Start(8 << 20)).unwrap();
        file.write_all(&[2; 5000]).unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        file
    }

    fn open(file: &tempfile::NamedTempFile) -> FileSource {
        FileSource::open(&format!("file:{}", file.path().display()), None).unwrap()
    }

    #[test]
    fn data_is_read_and_holes_are_reported() {
        let file = sparse();
        let source = open(&file);
        assert_eq!(source.identity().size, 64 << 20);
        let mut sink = Collector::at(0);
        source.fetch(0, 0, 64 << 20, &mut sink).unwrap();
        assert_eq!(sink.bytes.len(), 64 << 20);
        assert!(sink.bytes == std::fs::read(file.path()).unwrap());
        // Filesystems round data up to blocks of their own; most of the 64 MiB are a hole on all of them.
        assert!(sink.zeroed > 60 << 20, "{} bytes of holes", sink.zeroed);
    }

    #[test]
    fn ranges_within_and_across_holes_are_exact() {
        let file = sparse();
        let (source, whole) = (open(&file), std::fs::read(file.path()).unwrap());
        for (offset, length) in [(0, 1), (4090, 10), (5000, 100), ((8 << 20) - 3, 5009), ((64 << 20) - 1, 1), (7, 0)] {
            let mut sink = Collector::at(offset);
            source.fetch(3, offset, length, &mut sink).unwrap();
            assert!(sink.bytes == whole[offset as usize..(offset + length) as usize], "{offset}+{length}");
        }
    }

    #[test]
    fn a_changed_file_is_stale_when_read_and_when_opened_again() {
        let file = sparse();
        let source = open(&file);
        let identity = source.identity().clone();
        let url = file.path().to_str().unwrap();
        assert!(FileSource::open(url, Some(&identity)).is_ok());
        file.as_file().set_len(1 << 20).unwrap();
        let mut sink = Collector::at(0);
        match source.fetch(0, 0, 4096, &mut sink) {
            Err(FetchError::Fatal(error)) => assert_eq!(error.errno(), errno::ESTALE),
            other => panic!("{other:?}"),
        }
        assert!(sink.bytes.is_empty());
        assert_eq!(FileSource::open(url, Some(&identity)).unwrap_err().errno(), errno::ESTALE);
    }

    #[test]
    fn all_ways_to_name_a_file_lead_to_it() {
        for url in ["/a/b c", "file:/a/b c", "file:///a/b%20c", "file://localhost/a/b%20c"] {
            assert_eq!(path_of(url).unwrap(), Path::new("/a/b c"), "{url}");
        }
        assert_eq!(path_of("file:rel%20").unwrap(), Path::new("rel%20"));
        assert!(path_of("file://host/x").is_err());
    }

    #[test]
    fn what_is_no_image_is_named() {
        let error = FileSource::open("/no/such/image", None).unwrap_err();
        assert_eq!(error.errno(), errno::ENOENT);
        assert!(error.to_string().contains("/no/such/image"), "{error}");
        assert_eq!(FileSource::open("/", None).unwrap_err().errno(), errno::EINVAL);
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(FileSource::open(empty.path().to_str().unwrap(), None).is_err());
    }
}
