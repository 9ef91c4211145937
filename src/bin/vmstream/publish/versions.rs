//! Which versions of an image were published, so that old files go when nobody needs them any more.
//!
//! A reader that began with an older version goes on with its files, so these outlive their pointer. A text file, oldest
//! first: `keep N`, then for each publication a line `ROOT IMAGE TREE PACKS`, with `-` for no packs. A version is what has
//! one root; of each version that is kept, as many packs are kept as there are versions kept.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use vmstream::error::{Error, Result, errno};
use vmstream::source::published::Pointer;

/// Versions whose files are kept unless told otherwise: the one that is published, and the one that readers still use.
pub const KEEP_DEFAULT: usize = 2;

/// The files of one publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    root: String,
    image: String,
    tree: String,
    packs: Option<String>,
}

/// All that are known, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// How many are to be kept, at least one.
    pub keep: usize,
    list: Vec<Version>,
}

impl Version {
    /// What a pointer leads to.
    pub fn of(pointer: &Pointer) -> Self {
        Self {
            root: pointer.root.to_string(),
            image: pointer.image.clone(),
            tree: pointer.tree.name.clone(),
            packs: pointer.packs.as_ref().map(|packs| packs.name.clone()),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ').map(str::to_owned);
        let version = Self {
            root: words.next()?,
            image: words.next()?,
            tree: words.next()?,
            packs: Some(words.next()?).filter(|packs| packs != "-"),
        };
        words.next().is_none().then_some(version)
    }

    fn files(&self) -> impl Iterator<Item = &String> {
        [&self.image, &self.tree].into_iter().chain(&self.packs)
    }
}

impl Versions {
    /// Those in the file at `path`; none when there is no file.
    pub fn load(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self { keep: KEEP_DEFAULT, list: Vec::new() }),
            Err(e) => Err(Error::io(format_args!("cannot read {}", path.display()), e)),
            Ok(text) => Self::parse(&text).ok_or_else(|| {
                let text = format!(
                    "{} is damaged: remove it; the files of older versions then stay until you remove them",
                    path.display()
                );
                Error::new(errno::EINVAL, text)
            }),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let keep: usize = lines.next()?.strip_prefix("keep ")?.parse().ok()?;
        Some(Self { keep: keep.max(1), list: lines.map(Version::parse).collect::<Option<_>>()? })
    }

    fn text(&self) -> String {
        let mut text = format!("keep {}\n", self.keep);
        for Version { root, image, tree, packs } in &self.list {
            let _ = writeln!(text, "{root} {image} {tree} {}", packs.as_deref().unwrap_or("-"));
        }
        text
    }

    /// Writes the file at `path` unless it says so already.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = self.text();
        match std::fs::read(path) {
            Ok(there) if there == text.as_bytes() => Ok(()),
            _ => crate::files::replace(path, text),
        }
    }

    /// Adds the newest.
    pub fn add(&mut self, version: Version) {
        self.list.retain(|known| *known != version);
        self.list.push(version);
    }

    /// Adds what is published, unless it is known.
    pub fn add_unless_known(&mut self, version: Version) {
        if !self.list.contains(&version) {
            self.list.push(version);
        }
    }

    /// Takes out what is newer than the one that the pointer names, which was never seen by a reader; answers its files.
    pub fn forget_unfinished(&mut self, current: Option<&Version>) -> Vec<String> {
        let published = match current {
            Some(current) => match self.list.iter().position(|version| version == current) {
                Some(at) => at + 1,
                // Somebody put another pointer there. What is known then says nothing about it.
                None => self.list.len(),
            },
            // Nobody has seen the first one. But where there were more, the pointer was lost, and readers use them.
            None if self.list.len() <= 1 => 0,
            None => self.list.len(),
        };
        let gone = self.list.split_off(published);
        self.unused(&gone, current)
    }

    /// Takes out what is older than is to be kept; answers its files.
    pub fn forget_old(&mut self) -> Vec<String> {
        let mut roots: Vec<(String, usize)> = Vec::new();
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for version in std::mem::take(&mut self.list).into_iter().rev() {
            let stays = match roots.iter().position(|(root, _)| *root == version.root) {
                Some(at) => {
                    roots[at].1 += 1;
                    roots[at].1 <= self.keep
                }
                None if roots.len() < self.keep => {
                    roots.push((version.root.clone(), 1));
                    true
                }
                None => false,
            };
            if stays { kept.push(version) } else { gone.push(version) }
        }
        kept.reverse();
        self.list = kept;
        self.unused(&gone, None)
    }

    /// The files of `gone` that no other version has.
    fn unused(&self, gone: &[Version], current: Option<&Version>) -> Vec<String> {
        let used: BTreeSet<_> = self.list.iter().chain(current).flat_map(Version::files).collect();
        let gone: BTreeSet<_> = gone.iter().flat_map(Version::files).collect();
        gone.difference(&used).map(|file| (*file).clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(root: &str, packs: &str) -> Version {
        Version::parse(&format!("{root} {root}.raw {root}.vmt {packs}")).unwrap()
    }

    fn versions(keep: usize, list: &[(&str, &str)]) -> Versions {
        Versions { keep, list: list.iter().map(|(root, packs)| version(root, packs)).collect() }
    }

    #[test]
    fn what_is_written_is_read() {
        let written = versions(3, &[("a", "-"), ("a", "1.vmk"), ("b", "2.vmk")]);
        assert_eq!(Versions::parse(&written.text()).as_ref(), Some(&written));
        for damaged in ["", "keep x\n", "keep 2\na b\n", "keep 2\na b c d e\n"] {
            assert_eq!(Versions::parse(damaged), None, "{damaged:?}");
        }
    }

    #[test]
    fn the_oldest_versions_and_packs_go_and_what_others_need_stays() {
        let mut all = versions(2, &[("a", "1"), ("b", "2"), ("b", "3"), ("c", "4"), ("c", "5"), ("c", "6")]);
        assert_eq!(all.forget_old(), ["1", "4", "a.raw", "a.vmt"]);
        assert_eq!(all, versions(2, &[("b", "2"), ("b", "3"), ("c", "5"), ("c", "6")]));
        assert!(all.forget_old().is_empty());
        // A version that comes back is new again.
        all.add(version("b", "2"));
        all.keep = 1;
        assert_eq!(all.forget_old(), ["3", "5", "6", "c.raw", "c.vmt"]);
    }

    #[test]
    fn what_was_begun_and_not_published_is_known() {
        let mut all = versions(2, &[("a", "1"), ("b", "2"), ("b", "3")]);
        assert_eq!(all.forget_unfinished(Some(&version("a", "1"))), ["2", "3", "b.raw", "b.vmt"]);
        assert_eq!(all, versions(2, &[("a", "1")]));
        let mut packs = versions(2, &[("a", "1"), ("a", "2")]);
        assert_eq!(packs.forget_unfinished(Some(&version("a", "1"))), ["2"], "the image is the same");
        let mut never = versions(2, &[("a", "1")]);
        assert_eq!(never.forget_unfinished(None), ["1", "a.raw", "a.vmt"]);
        let mut other = versions(2, &[("a", "1")]);
        assert!(other.forget_unfinished(Some(&version("z", "9"))).is_empty());
    }
}
