//! What a cache keeps of its image beyond the bytes, beside its journal: the pointer, and the head of the hash tree.
//!
//! A publisher may replace the pointer while caches of the older version are in use. Their files still lie there for a
//! while under names of their own, and the text that is kept here leads to them.
//!
//! The head says whether the image is a disk or a restore point, which somebody who has the whole image in a cache wants to
//! know without a server. It needs no trust: the root hash, which the journal has, is the hash of it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::pointer::{POINTER_BYTES_MAX, Pointer};
use crate::tree::{HEAD_BYTES, Head, Root};

/// What stands behind the name of the local file. Not the ending of a publisher's pointer: an image may be fetched into the
/// very directory where it is published.
pub const KEPT_ENDING: &str = ".origin";
/// What the file of the head has in its place.
const HEAD_EXTENSION: &str = "head";

/// A file that holds the text of a pointer, and one beside it for the head.
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

    /// Removes the pointer.
    pub fn remove(&self) {
        if !self.read_only && self.is_ours() {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn head_path(&self) -> PathBuf {
        self.path.with_extension(HEAD_EXTENSION)
    }

    fn head_bytes(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(self.head_path())?.take(HEAD_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The head whose hash is this root, if it is kept.
    pub fn read_head(&self, root: Root) -> Option<Head> {
        Head::decode(&self.head_bytes().ok()?).ok().filter(|head| head.root() == root)
    }

    /// Keeps a head. Failing costs only that the origin is asked for it again.
    pub fn write_head(&self, head: &Head) {
        if self.read_only || self.read_head(head.root()).is_some() {
            return;
        }
        let path = self.head_path();
        if !self.is_head_ours() {
            return log::warn!("{} is a file of somebody else: no head of a tree is kept there", path.display());
        }
        if let Err(error) = replace(&path, &head.encode()) {
            log::warn!("cannot keep {}: {error}; a restore point will need its origin at the start", path.display());
        }
    }

    /// Removes the head.
    pub fn remove_head(&self) {
        if !self.read_only && self.is_head_ours() {
            let _ = std::fs::remove_file(self.head_path());
        }
    }

    /// True unless there is something else than a head.
    fn is_head_ours(&self) -> bool {
        match self.head_bytes() {
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
            Ok(bytes) => bytes.len() == HEAD_BYTES && Head::decode(&bytes).is_ok(),
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
    use crate::block::Geometry;
    use crate::tree::TreeBuilder;

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
    #[test]
    fn a_head_is_believed_for_its_hash_alone() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept { path: folder.path().join("disk.origin"), read_only: false };
        let head = |blocks: u64| {
            let mut builder = TreeBuilder::new(Geometry::new(blocks * 4096, 4096).unwrap());
            builder.zero(blocks);
            Head::decode(&builder.finish().unwrap().0).unwrap()
        };
        let (one, two) = (head(1), head(2));
        assert_eq!(kept.read_head(one.root()), None);
        kept.write_head(&one);
        assert_eq!((kept.read_head(one.root()), kept.read_head(two.root())), (Some(one.clone()), None));
        kept.write_head(&two);
        assert_eq!(kept.read_head(two.root()), Some(two.clone()));
        let reader = Kept { path: kept.path.clone(), read_only: true };
        reader.write_head(&one);
        reader.remove_head();
        assert_eq!(reader.read_head(two.root()), Some(two));
        kept.remove_head();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        std::fs::write(folder.path().join("disk.head"), "of somebody else").unwrap();
        kept.write_head(&one);
        kept.remove_head();
        assert_eq!(std::fs::read(folder.path().join("disk.head")).unwrap(), b"of somebody else");
    }
}
