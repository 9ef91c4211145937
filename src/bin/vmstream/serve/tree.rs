//! The files that are served: names from outside become open files below one directory, or nothing.
//!
//! A name is taken apart here (percent-encoding, dot names, NUL), and the kernel does the rest: `openat2` with
//! `RESOLVE_BENEATH` follows no path out of the directory, whatever symbolic links, `..` or renames under way it
//! meets. Links that stay below the directory work. Names that begin with a dot do not exist for the outside:
//! editors, version control and shells keep what is private there.
//!
//! Most opens need no disk, so the first try is told to use only what the kernel has cached (`RESOLVE_CACHED`) and
//! runs on the calling task; only a miss is worth the detour over a thread that may block.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use vmstream::error::{Error, Result};

use super::conditions::Validators;

/// Most entries of a directory that are listed: bounds the page.
const LISTED_MAX: usize = 10_000;
/// How often an open is tried again when somebody renames directories on its way.
const RACES_MAX: usize = 16;

/// How files are opened. NONBLOCK: a FIFO that has no writer must not hang; it is no regular file and is closed again
/// at once. NOCTTY: nor must a terminal become ours.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// A directory whose contents are served.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
}

/// The name of a file below the directory, safe to hand to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Components joined by slashes; empty for the directory itself.
    path: Vec<u8>,
    /// True when the name ended in a slash: only a directory is meant.
    pub slash: bool,
}

/// What a name leads to.
#[derive(Debug)]
pub enum Entry {
    /// A regular file.
    File(File, Stamp),
    /// A directory.
    Directory(OwnedFd),
}

/// What of a file's state pins its content. In-place changes within one tick of the file system's clock (some
/// milliseconds) that keep the size cannot be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    inode: u64,
    modified_s: i64,
    modified_ns: i64,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its name, raw.
    pub name: Vec<u8>,
    /// Size in bytes; `None` for a directory.
    pub size: Option<u64>,
}

impl Name {
    /// Reads the path of a request. `Err` when it is malformed, `Ok(None)` when nothing can have such a name.
    pub fn parse(path: &str) -> std::result::Result<Option<Self>, Malformed> {
        let mut joined = Vec::new();
        for component in path.split('/') {
            let component = unescape(component)?;
            if component.is_empty() {
                continue;
            }
            if component.starts_with(b".") || component.contains(&b'/') || component.contains(&0) {
                return Ok(None);
            }
            if !joined.is_empty() {
                joined.push(b'/');
            }
            joined.extend(component);
        }
        Ok(Some(Self { path: joined, slash: path.ends_with('/') }))
    }

    /// True for the directory itself.
    pub fn is_top(&self) -> bool {
        self.path.is_empty()
    }

    /// The name as the path of a URL, beginning with a slash.
    pub fn url(&self) -> String {
        let mut url = String::from("/");
        for (i, component) in self.path.split(|b| *b == b'/').enumerate() {
            if i > 0 {
                url.push('/');
            }
            escape(component, &mut url);
        }
        url
    }

    /// The part behind the last dot of the last component, in lower case.
    pub fn extension(&self) -> String {
        let last = self.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        let at = last.iter().rposition(|b| *b == b'.').map_or(last.len(), |at| at + 1);
        String::from_utf8_lossy(&last[at..]).to_ascii_lowercase()
    }
}

/// A path with a broken percent-encoding.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

fn unescape(text: &str) -> std::result::Result<Vec<u8>, Malformed> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or(Malformed);
        let value = digit()? * 16 + digit()?;
        out.push(value as u8);
    }
    Ok(out)
}

/// Percent-encodes a component of a path into `out`; what comes out is safe in HTML too.
pub fn escape(component: &[u8], out: &mut String) {
    for &byte in component {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

impl Tree {
    /// Opens the directory to serve.
    pub fn open(dir: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir, flags, Mode::empty())
            .map_err(|e| Error::io(format_args!("cannot serve {}", dir.display()), e.into()))?;
        Ok(Self { root })
    }

    /// Opens what `name` leads to, without waiting for a disk: `None` when that cannot be done.
    pub fn find_cached(&self, name: &Name) -> Option<io::Result<Entry>> {
        match below(&self.root, &name.path, READ, ResolveFlags::CACHED) {
            // EINVAL: the kernel (before 5.12) does not know the flag.
            Err(Errno::AGAIN | Errno::INVAL) => None,
            result => Some(result.map_err(Into::into).and_then(entry)),
        }
    }

    /// Opens what `name` leads to; may block.
    pub fn find(&self, name: &Name) -> io::Result<Entry> {
        for _ in 0..RACES_MAX {
            match below(&self.root, &name.path, READ, ResolveFlags::empty()) {
                Err(Errno::AGAIN) => {}
                result => return entry(result?),
            }
        }
        Err(Errno::AGAIN.into())
    }
}

fn below(dir: impl AsFd, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> std::result::Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    openat2(
        dir,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        resolve | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )
}

fn entry(fd: OwnedFd) -> io::Result<Entry> {
    let file = File::from(fd);
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Ok(Entry::Directory(file.into()));
    }
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let stamp = Stamp::of(&file)?;
    Ok(Entry::File(file, stamp))
}

/// What a directory of the tree holds, sorted by name; may block.
pub fn list(directory: OwnedFd) -> io::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    for found in Dir::read_from(&directory)? {
        let name = found?.file_name().to_bytes().to_vec();
        if name.starts_with(b".") {
            continue;
        }
        // Opened like a request would, so that links which lead out are not even listed.
        let Ok(fd) = below(&directory, &name, OFlags::PATH, ResolveFlags::empty()) else { continue };
        let stat = fstat(&fd)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => listed.push(Listed { name, size: None }),
            FileType::RegularFile => {
                listed.push(Listed { name, size: Some(u64::try_from(stat.st_size).unwrap_or(0)) });
            }
            _ => {}
        }
        if listed.len() == LISTED_MAX {
            break;
        }
    }
    listed.sort();
    Ok(listed)
}

impl Stamp {
    /// The state of an open file now.
    pub fn of(file: &File) -> io::Result<Self> {
        let m = file.metadata()?;
        Ok(Self { size: m.size(), inode: m.ino(), modified_s: m.mtime(), modified_ns: m.mtime_nsec() })
    }

    /// What HTTP says of this state, at the time `now`.
    pub fn validators(&self, now: SystemTime) -> Validators {
        let ns = i128::from(self.modified_s) * 1_000_000_000 + i128::from(self.modified_ns);
        let etag = format!("\"{:x}-{:x}-{ns:x}\"", self.inode, self.size);
        let modified = u64::try_from(self.modified_s).ok().map(Duration::from_secs);
        let modified = modified.and_then(|age| SystemTime::UNIX_EPOCH.checked_add(age)).filter(|date| *date <= now);
        Validators { etag, modified }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn name(path: &str) -> Name {
        Name::parse(path).unwrap().unwrap()
    }

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(name("/a%20b//c"), Name { path: b"a b/c".to_vec(), slash: false });
        assert_eq!(name("/"), Name { path: Vec::new(), slash: true });
        assert_eq!(name("/a%20b/%C3%A9").url(), "/a%20b/%C3%A9");
        assert_eq!(name("//evil.example/").url(), "/evil.example");
        for nothing in ["/..", "/a/../b", "/%2e%2e/x", "/.git", "/a/.x", "/a%2Fb", "/a%00b", "/."] {
            assert_eq!(Name::parse(nothing), Ok(None), "{nothing}");
        }
        for malformed in ["/%", "/%4", "/%zz", "/%+1"] {
            assert_eq!(Name::parse(malformed), Err(Malformed), "{malformed}");
        }
        assert_eq!(name("/a.b/Disk.IMG").extension(), "img");
        assert_eq!(name("/a.b/disk").extension(), "");
    }

    #[test]
    fn nothing_leads_out() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(top.path().join("secret"), "s").unwrap();
        std::fs::write(root.join("sub/file"), "f").unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink(top.path().join("secret"), root.join("absolute")).unwrap();
        symlink("sub/file", root.join("in")).unwrap();
        let tree = Tree::open(&root).unwrap();
        assert!(matches!(tree.find(&name("/in")), Ok(Entry::File(_, Stamp { size: 1, .. }))));
        assert!(matches!(tree.find(&name("/sub")), Ok(Entry::Directory(_))));
        for out in ["/out", "/absolute"] {
            assert_eq!(tree.find(&name(out)).unwrap_err().raw_os_error(), Some(Errno::XDEV.raw_os_error()), "{out}");
        }
        let Ok(Entry::Directory(dir)) = tree.find(&name("/")) else { panic!("no root") };
        let listed = list(dir).unwrap();
        assert_eq!(
            listed,
            [Listed { name: b"in".to_vec(), size: Some(1) }, Listed { name: b"sub".to_vec(), size: None }]
        );
    }

    #[test]
    fn a_file_of_the_future_has_no_date() {
        let stamp = Stamp { size: 1, inode: 2, modified_s: 1000, modified_ns: 5 };
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        assert_eq!(stamp.validators(at(1000)).modified, Some(at(1000)));
        assert_eq!(stamp.validators(at(999)).modified, None);
        let later = Stamp { modified_ns: 6, ..stamp };
        assert_ne!(stamp.validators(at(1000)).etag, later.validators(at(1000)).etag);
    }
}
