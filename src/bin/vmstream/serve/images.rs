//! What is published in the served directory: its pointers, read as they lie there.
//!
//! A pointer is read anew whenever somebody asks. It is a few hundred bytes that the kernel has in its cache, and a
//! publisher may replace it at any moment; so nothing here can be out of date. The publisher's own files lie in
//! `.vmstream/NAME`, which is never served because its name begins with a dot.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use vmstream::block::Geometry;
use vmstream::source::published::{POINTER_BYTES_MAX, Pointer};

use crate::publish::site::is_image_name;

/// Longest list of kept versions that is read, in bytes: hundreds of them.
const VERSIONS_BYTES_MAX: u64 = 64 << 10;
/// Most images of a directory that are shown: bounds the page.
const IMAGES_MAX: usize = 256;
/// Ending of a pointer's name.
const ENDING: &str = ".vmp";
/// What sessions of a published image have before its root hash.
const ROOT: &str = "root:";

/// A published image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its name, which is safe in paths.
    pub name: String,
    /// Size of the image and of its blocks.
    pub geometry: Geometry,
    /// Root hash, 64 hexadecimal digits.
    pub root: String,
    /// Name of the raw image.
    pub image: String,
    /// Name of the hash tree.
    pub tree: String,
    /// Size of the tree, in bytes.
    pub tree_bytes: u64,
    /// Name and size in bytes of the packs, if there are some.
    pub packs: Option<(String, u64)>,
}

/// The images of one directory.
#[derive(Clone, Debug)]
pub struct Images {
    site: PathBuf,
}

impl Published {
    /// Reads the text of a pointer; `None` when it is none that is understood here.
    fn parse(name: &str, text: &str) -> Option<Self> {
        let pointer = Pointer::parse(text.as_bytes()).ok()?;
        Some(Self {
            name: name.to_owned(),
            geometry: pointer.geometry,
            root: pointer.root.to_string(),
            image: pointer.image,
            tree: pointer.tree.name,
            tree_bytes: pointer.tree.bytes,
            packs: pointer.packs.map(|packs| (packs.name, packs.bytes)),
        })
    }

    /// What sessions of this image have as their validator.
    pub fn validator(&self) -> String {
        format!("{ROOT}{}", self.root)
    }
}

fn is_root(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl Images {
    /// The images in the directory `site`.
    pub fn new(site: &Path) -> Self {
        Self { site: site.to_owned() }
    }

    /// The directory that is served.
    pub fn site(&self) -> &Path {
        &self.site
    }

    /// Where the publisher of an image keeps what is not served. `name` must be one of [`is_image_name`].
    pub fn private(&self, name: &str) -> PathBuf {
        self.site.join(".vmstream").join(name)
    }

    /// The image of this name. Blocks for as long as a small file takes to be read.
    pub fn find(&self, name: &str) -> Option<Published> {
        if !is_image_name(name) {
            return None;
        }
        Published::parse(name, &read_text(&self.site.join(format!("{name}{ENDING}")), POINTER_BYTES_MAX as u64)?)
    }

    /// All images, by name. Blocks.
    pub fn list(&self) -> Vec<Published> {
        let Ok(entries) = self.site.read_dir() else { return Vec::new() };
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            Some(entry.ok()?.file_name().to_str()?.strip_suffix(ENDING)?.to_owned())
        };
        let mut names: Vec<_> = entries.filter_map(name).filter(|name| is_image_name(name)).take(IMAGES_MAX).collect();
        names.sort();
        names.iter().filter_map(|name| self.find(name)).collect()
    }

    /// The root hashes of the versions of an image that are still kept beside the published one.
    pub fn kept(&self, name: &str) -> Vec<String> {
        let text = read_text(&self.private(name).join("versions"), VERSIONS_BYTES_MAX).unwrap_or_default();
        text.split_ascii_whitespace().filter(|word| is_root(word)).map(str::to_owned).collect()
    }

    /// True when a session with this validator is one of the image or of a version that is still kept.
    pub fn is_of(&self, image: &Published, validator: &str) -> bool {
        let root = validator.strip_prefix(ROOT);
        root.is_some_and(|root| root == image.root || self.kept(&image.name).iter().any(|kept| kept == root))
    }
}

/// The text of a small regular file; `None` when it is no such thing.
fn read_text(path: &Path, bytes_max: u64) -> Option<String> {
    // A pipe that somebody put there would hold us up.
    if !path.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    let read = File::open(path).ok()?.take(bytes_max + 1).read_to_string(&mut text).ok()?;
    (read as u64 <= bytes_max).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(root: &str) -> String {
        format!("vmstream 1\nsize 10000\nblock 4096\nlater thing\nimage d-1.raw\ntree d-1.vmt 312\nroot {root}\n")
    }

    #[test]
    fn pointers_are_read_and_others_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::new(dir.path());
        let (root, old) = ("ab".repeat(32), "cd".repeat(32));
        std::fs::write(dir.path().join("disk.vmp"), pointer(&root) + "packs d-2.vmk 99\n").unwrap();
        std::fs::write(dir.path().join("later.vmp"), pointer(&root).replace("vmstream 1", "vmstream 2")).unwrap();
        std::fs::write(dir.path().join("long.vmp"), pointer(&root) + &"x y\n".repeat(2000)).unwrap();
        std::fs::write(dir.path().join("cut.vmp"), &pointer(&root)[..100]).unwrap();
        std::fs::create_dir(dir.path().join("dir.vmp")).unwrap();
        let listed = images.list();
        assert_eq!(listed.len(), 1);
        let disk = images.find("disk").unwrap();
        assert_eq!(disk, listed[0]);
        assert_eq!(disk.geometry, Geometry::new(10_000, 4096).unwrap());
        assert_eq!((disk.tree_bytes, disk.packs.clone()), (312, Some(("d-2.vmk".to_owned(), 99))));
        assert!(images.is_of(&disk, &disk.validator()) && !images.is_of(&disk, &root));
        assert!(!images.is_of(&disk, &format!("root:{old}")));
        std::fs::create_dir_all(images.private("disk")).unwrap();
        std::fs::write(images.private("disk").join("versions"), format!("2026 {old} disk-cd.raw\n")).unwrap();
        assert!(images.is_of(&disk, &format!("root:{old}")));
    }

    #[test]
    fn names_are_one_plain_segment() {
        assert!(is_image_name("disk-1.2_xy+z"));
        for bad in ["", ".", "..", ".git", "a/b", "a b", "a%2F", "ä", "<b>", "a~b", &"x".repeat(101)] {
            assert!(!is_image_name(bad), "{bad}");
        }
        assert_eq!(Images::new(Path::new("/nonexistent")).list(), []);
    }
}
