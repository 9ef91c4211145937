//! The image to publish, whatever form it has: a raw file, a block device, qcow2, a cache, the parts of a restore point, or
//! any of the others with words about how to boot it.
//!
//! All forms answer the same questions: how large the disk is, where it may hold data, and what is there. They may be
//! asked by several threads at once. An image that is written to while it is read would be published as something that
//! never was, so what its files looked like at the beginning is compared at the end.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom as Whence;
use rustix::io::Errno;
use vmstream::Image;
use vmstream::block::Geometry;
use vmstream::config::Config;
use vmstream::error::{Error, Result, errno};
use vmstream::store;

use super::bootable::Bootable;
use super::parts::Parts;
use super::qcow2;
use super::stop::Stop;
use crate::point::boot::Boot;
use crate::point::regions;

/// What some other formats begin with, and where. They are refused rather than published as the bytes of a container.
const FOREIGN: [(usize, &[u8], &str); 4] =
    [(0, b"KDMV", "VMDK"), (0, b"vhdxfile", "VHDX"), (0, b"conectix", "VHD"), (0x40, b"\x7f\x10\xda\xbe", "VDI")];
/// How often a cache that is being completed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// An image that can be read.
pub struct Input {
    kind: Kind,
    path: PathBuf,
    size: u64,
    mtime_s: i64,
    /// The files it consists of, as they were when it was opened.
    files: Vec<(PathBuf, Stamp)>,
}

enum Kind {
    Raw(File),
    Qcow2(qcow2::Disk),
    Parts(Parts),
    Bootable(Bootable),
    /// The image of a cache, which stays locked.
    Cache(File, #[expect(dead_code, reason = "holds the lock")] Box<Image>),
}

/// What of a file changes when it is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Input {
    /// Opens the image at `path`. Blocks for as long as it takes to complete a cache that is not; `stop` ends that.
    ///
    /// Errors: `EBUSY` for a cache in use, `EINVAL` for what is no image, and those of the file system.
    pub fn open(path: &Path, stop: &Stop) -> Result<Self> {
        let metadata = path.metadata().map_err(|e| Error::io(format_args!("cannot open {}", path.display()), e))?;
        if metadata.is_dir() || (metadata.is_file() && journal(path).exists()) {
            return Self::open_cache(path, metadata.is_dir(), stop);
        }
        Self::open_file(path)
    }

    /// Opens what `vmstream snapshot` left in the directory `path`, as one image.
    ///
    /// Errors: `EINVAL` for what is no restore point, and those of the file system.
    pub fn open_point(path: &Path) -> Result<Self> {
        let (parts, files) = Parts::open(path)?;
        let size = parts.size();
        Self::new(Kind::Parts(parts), path, size, files)
    }

    /// The same disk with a description behind it of how to boot it.
    pub fn bootable(self, boot: &Boot) -> Self {
        let (path, mtime_s, files) = (self.path.clone(), self.mtime_s, self.files.clone());
        let whole = Bootable::new(self, boot);
        Self { size: whole.size(), kind: Kind::Bootable(whole), path, mtime_s, files }
    }

    fn open_file(path: &Path) -> Result<Self> {
        let unreadable = |e| Error::io(format_args!("cannot open {}", path.display()), e);
        let mut file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        let device = metadata.file_type().is_block_device();
        if !metadata.is_file() && !device {
            return Err(no_image(path, "neither a file nor a block device"));
        }
        let size = if device { file.seek(SeekFrom::End(0)).map_err(unreadable)? } else { metadata.len() };
        if size == 0 {
            return Err(no_image(path, "empty"));
        }
        let head = head(&file).map_err(unreadable)?;
        if head.starts_with(qcow2::MAGIC) {
            let (disk, files) = qcow2::Disk::open(path)?;
            let size = disk.size();
            return Self::new(Kind::Qcow2(disk), path, size, files);
        }
        for (at, magic, name) in FOREIGN {
            if head.get(at..).is_some_and(|bytes| bytes.starts_with(magic)) {
                let convert = format!("a {name} file: make a raw image of it first ('qemu-img convert -O raw')");
                return Err(no_image(path, &convert));
            }
        }
        Self::new(Kind::Raw(file), path, size, vec![path.to_owned()])
    }

    /// Opens a raw image as it was published: whatever it holds, it is no other format.
    pub fn open_published(path: &Path, geometry: Geometry) -> Result<Self> {
        let unreadable = |e| Error::io(format_args!("cannot open {}", path.display()), e);
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() || metadata.len() != geometry.size() {
            let text = format!("{} is not the image of {} bytes that was published", path.display(), geometry.size());
            return Err(Error::new(errno::EIO, text));
        }
        Self::new(Kind::Raw(file), path, geometry.size(), vec![path.to_owned()])
    }

    /// True when the image is the file at `path`, by whatever name.
    pub fn is_file(&self, path: &Path) -> bool {
        let inode = path.metadata().ok().map(|metadata| Stamp::of(&metadata).inode);
        matches!(self.kind, Kind::Raw(_)) && self.files.iter().any(|(_, stamp)| Some(stamp.inode) == inode)
    }

    /// A cache is locked by opening it as an image, and what it lacks is fetched.
    fn open_cache(path: &Path, directory: bool, stop: &Stop) -> Result<Self> {
        let image = if directory { path.join("disk") } else { path.to_owned() };
        if !journal(&image).exists() {
            if image.is_file() {
                return Self::open_file(&image); // a finished one
            }
            return Err(no_image(path, "a directory, and no cache of vmstream"));
        }
        let summary = store::inspect(&image)?;
        if let Some(holder) = &summary.locked_by {
            let text = format!("{} is in use by {holder}: end that first", image.display());
            return Err(Error::new(errno::EBUSY, text));
        }
        let place = if directory { "cache" } else { "file" };
        let options = [
            format!("source={}", summary.pinned.source),
            format!("{place}={}", path.display()),
            "sessions=off".to_owned(),
            "model=off".to_owned(),
            "bulk=on".to_owned(),
            "fill=on".to_owned(),
            "prefetch=none".to_owned(),
        ];
        let open = Image::open(&options)?;
        if !open.is_complete() {
            log::warn!("{} is not complete; fetching what it lacks from {}", image.display(), open.source_name());
        }
        if regions::find(&open)?.is_some() {
            let text = format!(
                "{} is a cache of an image with parts, such as a restore point, which would be taken for one disk: publish what \
                 it was made of, or copy the files at its origin",
                path.display()
            );
            return Err(Error::new(errno::ENOTSUP, text));
        }
        complete(&open, &image, Config::default().open_timeout, stop)?;
        let file = File::open(&image).map_err(|e| Error::io(format_args!("cannot open {}", image.display()), e))?;
        Self::new(Kind::Cache(file, Box::new(open)), path, summary.pinned.geometry.size(), vec![image])
    }

    fn new(kind: Kind, path: &Path, size: u64, files: Vec<PathBuf>) -> Result<Self> {
        let mut stamps = Vec::with_capacity(files.len());
        for file in files {
            let metadata =
                file.metadata().map_err(|e| Error::io(format_args!("cannot examine {}", file.display()), e))?;
            stamps.push((file, Stamp::of(&metadata)));
        }
        let mtime_s = stamps.iter().map(|(_, stamp)| stamp.modified.0).max().unwrap_or(0);
        Ok(Self { kind, path: path.to_owned(), size, mtime_s, files: stamps })
    }

    /// Where the table of regions begins, for an image that has one.
    pub fn table(&self) -> Option<u64> {
        match &self.kind {
            Kind::Parts(parts) => Some(parts.table()),
            Kind::Bootable(whole) => Some(whole.table()),
            _ => None,
        }
    }

    /// Size of the disk, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// When it was last changed, in seconds since 1970.
    pub fn mtime_s(&self) -> i64 {
        self.mtime_s
    }

    /// The path it was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file whose bytes are those of the disk, if there is one that can be published as it lies.
    pub fn raw_file(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Raw(file) if file.metadata().is_ok_and(|m| m.is_file()) => Some(&self.path),
            _ => None,
        }
    }

    /// Bytes that will have to be read, about.
    pub fn data_bytes(&self) -> u64 {
        let allocated = self.files.iter().filter_map(|(path, _)| Some(path.metadata().ok()?.blocks() * 512)).sum();
        match &self.kind {
            // Of a device nobody knows before it is read.
            Kind::Raw(_) if self.raw_file().is_none() => self.size,
            Kind::Bootable(whole) => whole.disk().data_bytes(),
            // A compressed one may be several times as large in the end; then the estimate is late.
            _ => self.size.min(allocated),
        }
    }

    /// The first range at or behind `at` and before `end` that may hold anything but zeroes.
    pub fn next_data(&self, at: u64, end: u64) -> Result<Option<Range<u64>>> {
        let end = end.min(self.size);
        match &self.kind {
            Kind::Qcow2(disk) => disk.next_data(at, end),
            Kind::Parts(parts) => parts.next_data(at, end),
            Kind::Bootable(whole) => whole.next_data(at, end),
            Kind::Raw(file) | Kind::Cache(file, _) => {
                next_data(file, at, end).map_err(|e| Error::io(format_args!("cannot read {}", self.path.display()), e))
            }
        }
    }

    /// Reads bytes of the disk.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let file = match &self.kind {
            Kind::Qcow2(disk) => return disk.read(offset, bytes),
            Kind::Parts(parts) => return parts.read(offset, bytes),
            Kind::Bootable(whole) => return whole.read(offset, bytes),
            Kind::Raw(file) | Kind::Cache(file, _) => file,
        };
        let read = file.read_exact_at(bytes, offset);
        read.map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => self.changed(&self.path),
            _ => Error::io(format_args!("cannot read {} at {offset}", self.path.display()), e),
        })
    }

    /// Fails when a file of the image is not what it was when it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        for (path, before) in &self.files {
            let metadata =
                path.metadata().map_err(|e| Error::io(format_args!("cannot examine {}", path.display()), e))?;
            // Of a device the file system says nothing but when its node was touched.
            if !metadata.file_type().is_block_device() && Stamp::of(&metadata) != *before {
                return Err(self.changed(path));
            }
        }
        Ok(())
    }

    fn changed(&self, path: &Path) -> Error {
        let text = format!(
            "{} was changed while it was read, so nothing was published: end whatever writes to it, or publish a copy",
            path.display()
        );
        Error::new(errno::EBUSY, text)
    }
}

/// Waits until a cache has all of its image. `EIO` when it cannot be had: for good, or nothing has come for so long.
fn complete(open: &Image, image: &Path, patience: Duration, stop: &Stop) -> Result<()> {
    let (mut there, mut since) = (open.stats().resident_bytes, Instant::now());
    while !open.is_complete() {
        stop.check()?;
        let stats = open.stats();
        if stats.resident_bytes != there {
            (there, since) = (stats.resident_bytes, Instant::now());
        }
        let silent = since.elapsed() > patience;
        if stats.failed || silent {
            let why = open.last_error().unwrap_or_else(|| "nothing comes".to_owned());
            let tried = if silent { format!(" (for {} s)", patience.as_secs()) } else { String::new() };
            let text = format!(
                "{} cannot be completed{tried}: {why}: see that {} is there, and publish again",
                image.display(),
                open.source_name()
            );
            return Err(Error::new(errno::EIO, text));
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn no_image(path: &Path, why: &str) -> Error {
    Error::new(errno::EINVAL, format!("{} is no image to publish: it is {why}", path.display()))
}

/// Where the journal of a cached image lies.
fn journal(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".vmj");
    name.into()
}

/// The first bytes of a file, as many as the signatures need.
fn head(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    file.take(512).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The next range of a file that is no hole. Moves the file's position, which nobody uses.
pub(super) fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if at >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, Whence::Data(at)) {
        Ok(start) if start >= end => return Ok(None),
        Ok(start) => start.max(at),
        // Nothing but a hole up to the end.
        Err(Errno::NXIO) => return Ok(None),
        // A file system or a device that knows no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(at..end)),
        Err(e) => return Err(e.into()),
    };
    let hole = rustix::fs::seek(file, Whence::Hole(start)).unwrap_or(end);
    Ok(Some(start..if hole > start { hole.min(end) } else { end }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_whose_origin_is_dead_is_not_waited_for_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, cache) = (dir.path().join("disk.img"), dir.path().join("cache"));
        std::fs::write(&disk, vec![1; 1 << 20]).unwrap();
        let [source, place] = [format!("source={}", disk.display()), format!("cache={}", cache.display())];
        let open = Image::open([&source, &place, "bulk=on", "fill=on", "fault=error=100%", "sessions=off"]).unwrap();
        let stop = Stop::default();
        let error = complete(&open, &cache, Duration::from_millis(300), &stop).unwrap_err();
        assert_eq!(error.errno(), errno::EIO);
        assert!(error.to_string().contains("cannot be completed (for 0 s)"), "{error}");
        open.close().unwrap();
    }
}
