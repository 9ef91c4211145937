//! What the kernel is told of the files of a mount: all of them are one user's, as old as the image, and of its block size.
//!
//! Their time is compared by those who have an overlay or a copy of the disk (User-Mode Linux, make, rsync), so it is the image's own,
//! the same in every mount, and only a write of the guest's makes a file younger. That of the local file would not do: until it is put
//! back, it is another whenever bytes arrive.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use vmstream::Image;

/// What all files of a mount have in common.
pub struct Attributes {
    modified: SystemTime,
    owner: (u32, u32),
    block_bytes: u32,
}

impl Attributes {
    /// For files that show `image`.
    pub fn of(image: &Image) -> Self {
        Self {
            modified: time(image.mtime_s()),
            owner: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            block_bytes: image.block_size() as u32,
        }
    }

    /// The directory, with these permissions.
    pub fn directory(&self, permissions: u16) -> FileAttr {
        self.all(INodeNo::ROOT, FileType::Directory, 0, permissions)
    }

    /// A file of `size` bytes.
    pub fn file(&self, ino: INodeNo, size: u64, permissions: u16) -> FileAttr {
        self.all(ino, FileType::RegularFile, size, permissions)
    }

    /// The same of a file that somebody has written to at `written`.
    pub fn written(&self, ino: INodeNo, size: u64, permissions: u16, written: SystemTime) -> FileAttr {
        let (mtime, ctime) = (written, written);
        FileAttr { mtime, ctime, ..self.file(ino, size, permissions) }
    }

    fn all(&self, ino: INodeNo, kind: FileType, size: u64, perm: u16) -> FileAttr {
        FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: self.modified,
            mtime: self.modified,
            ctime: self.modified,
            crtime: self.modified,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: self.block_bytes,
            flags: 0,
        }
    }
}

/// A moment in seconds since 1970. It comes from an origin, and need not be one that this system can tell: then it is 1970.
fn time(seconds: i64) -> SystemTime {
    // The least of all has no opposite, which the kernel's interface would look for.
    let distance = Duration::from_secs(seconds.max(-i64::MAX).unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_the_image_s_whatever_its_file_shows_for_a_moment() {
        let home = tempfile::tempdir().unwrap();
        let site = home.path().join("disk.img");
        std::fs::write(&site, [1; 8192]).unwrap();
        std::fs::File::options().write(true).open(&site).unwrap().set_modified(time(1_234_567_890)).unwrap();
        let cache = home.path().join("c");
        let options =
            [format!("source={}", site.display()), format!("cache={}", cache.display()), "fill=off".to_owned()];
        for options in [&options[..], &[&options[..1], &options[2..]].concat()] {
            let image = Image::open(options).unwrap();
            // As it is between the writing of a block and the putting back of the time.
            let file = std::fs::File::from(image.fd().try_clone_to_owned().unwrap());
            file.set_modified(SystemTime::now()).unwrap();
            let attributes = Attributes::of(&image).file(INodeNo(2), 8192, 0o444);
            assert_eq!((attributes.mtime, attributes.ctime), (time(1_234_567_890), time(1_234_567_890)));
        }
    }

    #[test]
    fn no_time_is_too_strange() {
        assert_eq!(time(-5) + Duration::from_secs(5), UNIX_EPOCH);
        for seconds in [i64::MIN, i64::MAX] {
            let away = time(seconds).duration_since(UNIX_EPOCH).unwrap_or_else(|before| before.duration());
            assert!(i64::try_from(away.as_secs()).is_ok());
        }
    }
}
