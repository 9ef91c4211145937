//! The pointer that a cache keeps, beside its journal.
//!
//! A publisher may replace the pointer while caches of the older version are in use. Their files still lie there for a
//! while under names of their own, and the text that is kept here leads to them.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::pointer::{POINTER_BYTES_MAX, Pointer};
use crate::tree::Root;

/// What stands behind the name of the local file. Not the ending of a publisher's pointer: an image may be fetched into the
/// very directory where it is published.
pub const KEPT_ENDING: &str = ".origin";

/// A file that holds the text of a pointer.
#[derive(Debug)]
pub(super) struct Kept {
    pub path: PathBuf,
    /// Somebody else's: it is read and never changed.
    pub read_only: bool,
}

impl Kept {
    /// The pointer to the version with this root, if it is kept. Anything else is as good as nothing.
    pub fn read(&self, root: Root) -> Option<Pointer> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(&self.path).ok()?;
        file.take(POINTER_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).ok()?;
        Pointer::parse(&bytes).ok().filter(|pointer| pointer.root == root)
    }

    /// Keeps a pointer. Failing costs no more than what keeping it would have gained, and is told of.
    pub fn write(&self, pointer: &Pointer) {
        if self.read_only || self.read(pointer.root).as_ref() == Some(pointer) {
            return;
        }
        let path = &self.path;
        if !self.is_ours() {
            return log::warn!("{} is a file of somebody else: the pointer is not kept there", path.display());
        }
        if let Err(error) = replace(path, pointer.to_string().as_bytes()) {
            log::warn!("cannot keep {}: {error}; a version that is replaced at the origin may be lost", path.display());
        }
    }

    /// Removes it.
    pub fn remove(&self) {
        if !self.read_only && self.is_ours() {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// True unless there is something else than a pointer.
    fn is_ours(&self) -> bool {
        let mut bytes = Vec::new();
        match std::fs::File::open(&self.path) {
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
            Ok(file) => {
                let read = file.take(POINTER_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
                read.is_ok() && Pointer::parse(&bytes).is_ok()
            }
        }
    }
}

/// Replaces a file at once, so that nobody sees half of it. Not durable before the system wills: a crash costs what a
/// lost help costs.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = std::fs::File::create(&new)?;
    file.write_all(bytes)?;
    drop(file);
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(root: &str) -> Pointer {
        let text = format!("vmstream 1\nsize 5\nblock 4096\nimage a\ntree b 112\nroot {}\n", root.repeat(64));
        Pointer::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn only_the_version_that_is_wanted_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept { path: folder.path().join("disk.vmp"), read_only: false };
        let (one, two) = (pointer("1"), pointer("2"));
        assert_eq!(kept.read(one.root), None);
        kept.write(&one);
        assert_eq!((kept.read(one.root), kept.read(two.root)), (Some(one.clone()), None));
        kept.write(&two);
        assert_eq!(kept.read(two.root), Some(two.clone()));
        let reader = Kept { path: kept.path.clone(), read_only: true };
        reader.write(&one);
        reader.remove();
        assert_eq!(reader.read(two.root), Some(two.clone()));
        kept.remove();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        std::fs::write(&kept.path, "of somebody else").unwrap();
        assert_eq!(kept.read(two.root), None);
        kept.write(&two);
        kept.remove();
        assert_eq!(std::fs::read(&kept.path).unwrap(), b"of somebody else");
    }
}
