//! An image that lies here, to be read: that of a cache, complete or not, a raw one, or a block device.

use std::fs::{File, Metadata};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom as Whence;
use rustix::io::Errno;
use vmstream::error::{Error, Result, errno};

/// What the image of a cache directory is called there.
const DISK: &str = "disk";

/// An open image.
pub struct LocalImage {
    file: File,
    path: PathBuf,
    size: u64,
    /// Device and inode, which tell it from others whatever they are called.
    id: (u64, u64),
}

impl LocalImage {
    /// Opens the image at `path`, or of the cache directory there. Errors: EINVAL for what is no image; those of opening.
    pub fn open(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { path.join(DISK) } else { path.to_owned() };
        let failed = |e| Error::io(format_args!("cannot open {}", path.display()), e);
        let mut file = File::open(&path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let text = format!("{} is neither a file nor a block device: give a cache or a raw image", path.display());
            return Err(Error::new(errno::EINVAL, text));
        }
        // A device says its size to who looks for its end only.
        let size = if kind.is_file() { metadata.len() } else { file.seek(SeekFrom::End(0)).map_err(failed)? };
        Ok(Self { file, path, size, id: id(&metadata) })
    }

    /// For messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// True when `path` is another name of this very file.
    pub fn is(&self, path: &Path) -> bool {
        path.metadata().is_ok_and(|metadata| id(&metadata) == self.id)
    }

    /// Reads all of `bytes` from `offset`.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let read = self.file.read_exact_at(bytes, offset);
        read.map_err(|e| Error::io(format_args!("cannot read {} at {offset}", self.path.display()), e))
    }

    /// The first byte at `at` or behind it that lies in no hole; `None` when there is none.
    pub fn next_data(&self, at: u64) -> Result<Option<u64>> {
        self.next(at, Whence::Data(at), at)
    }

    /// The first byte at `at` or behind it that lies in a hole, or the end; `None` behind the end.
    pub fn next_hole(&self, at: u64) -> Result<Option<u64>> {
        self.next(at, Whence::Hole(at), self.size)
    }

    /// `without` is the answer of a file that knows no holes.
    fn next(&self, at: u64, whence: Whence, without: u64) -> Result<Option<u64>> {
        if at >= self.size {
            return Ok(None);
        }
        match rustix::fs::seek(&self.file, whence) {
            Ok(found) => Ok(Some(found).filter(|&found| found <= self.size)),
            Err(Errno::NXIO) => Ok(None),
            // A file system, or a device, without holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(without)),
            Err(e) => Err(Error::io(format_args!("cannot read {}", self.path.display()), e.into())),
        }
    }
}

fn id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_data_are_told_apart_and_what_is_no_image_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DISK);
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[1; 4096], 4 << 20).unwrap();
        let image = LocalImage::open(folder.path()).unwrap();
        assert_eq!((image.size(), image.path()), (8 << 20, &*path));
        // A file system may round, but not beyond what is there.
        let (data, hole) = (image.next_data(0).unwrap().unwrap(), image.next_hole(4 << 20).unwrap().unwrap());
        assert!(data <= 4 << 20 && hole >= (4 << 20) + 4096, "{data} {hole}");
        assert_eq!((image.next_data(8 << 20).unwrap(), image.next_hole(9 << 20).unwrap()), (None, None));
        std::os::unix::fs::symlink(&path, folder.path().join("link")).unwrap();
        assert!(image.is(&folder.path().join("link")) && !image.is(folder.path()));
        assert!(LocalImage::open(Path::new("/dev/null")).is_err_and(|e| e.to_string().contains("block device")));
        assert!(LocalImage::open(&folder.path().join("none")).is_err_and(|e| e.errno() == errno::ENOENT));
    }
}
