//! A site: the directory that a web server shows, and in it, unseen, what belongs to the publisher.
//!
//! Of an image NAME the site has the pointer, `NAME.vmp`, and files whose names end in a part of their own hash; those are
//! never changed once they are there, so only the pointer has to be replaced, which a rename does in one step. A reader
//! therefore sees the old or the new. In `.vmstream/NAME/`, which is not served, lie the model, the sessions, the lock that
//! keeps a second publisher out, and drafts: files get their public name when they are complete and durable. What a killed
//! publisher leaves there is removed by the next.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use vmstream::error::{Error, Result, errno};
use vmstream::source::published::{POINTER_BYTES_MAX, Pointer, is_name};
use vmstream::tree::Root;

use super::versions::{Version, Versions};

/// Longest name, in bytes: leaves room for hash and ending in the 255 of a file name, and for a person's patience.
const NAME_BYTES_MAX: usize = 100;
/// What an address can begin with under which a site is served.
const SCHEMES: [&str; 2] = ["https://", "http://"];
/// The publisher's own directory. Servers do not show names that begin with a dot; `vmstream serve` never does.
const OWN: &str = ".vmstream";
/// Mode of the publisher's own directories: sessions say what guests do.
const OWN_MODE: u32 = 0o700;
/// Where files are made before they get their public names.
const DRAFTS: &str = "new";

/// A directory of published images.
#[derive(Clone, Debug)]
pub struct Site {
    directory: PathBuf,
}

/// True for what an image may be called: a name for files, for links, for pages and for people.
pub fn is_image_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(fits)
}

/// Checks the name of an image: EINVAL for what is none.
pub fn check_name(name: &str) -> Result<()> {
    if !is_image_name(name) {
        let text = format!(
            "'{}' cannot be the name of a published image: it needs letters, digits and . _ + - , not a dot first, and \
             {NAME_BYTES_MAX} of them at most",
            name.escape_default()
        );
        return Err(Error::new(errno::EINVAL, text));
    }
    Ok(())
}

/// The name that an image gets when none is given: that of its file, without the ending.
pub fn name_of(image: &Path) -> Option<&str> {
    image.file_stem().and_then(|stem| stem.to_str())
}

impl Site {
    /// The site in a directory that exists.
    pub fn open(directory: &Path) -> Result<Self> {
        if !directory.is_dir() {
            let text = format!("{} is no directory: give the one that was published to", directory.display());
            return Err(Error::new(errno::ENOENT, text));
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// The same, making the directory if there is none.
    pub fn make(directory: &Path) -> Result<Self> {
        let made = fs::create_dir_all(directory);
        made.map_err(|e| Error::io(format_args!("cannot make the directory {}", directory.display()), e))?;
        Self::open(directory)
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where something of the publisher's own lies: `model.vmm`, a copy of the published model with its record; `sessions`.
    pub fn own(&self, name: &str) -> PathBuf {
        self.directory.join(OWN).join(name)
    }

    /// The pointer's path.
    pub fn pointer_path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.vmp"))
    }

    /// What is published under a name; `None` when nothing is.
    pub fn pointer(&self, name: &str) -> Result<Option<Pointer>> {
        use io::Read;
        let path = self.pointer_path(name);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(POINTER_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(format_args!("cannot read {}", path.display()), e)),
            Ok(_) => match Pointer::parse(&bytes) {
                Ok(pointer) => Ok(Some(pointer)),
                Err(e) => Err(Error::new(e.errno(), format!("{}: {e}", path.display()))),
            },
        }
    }

    /// Takes the desk of an image: nobody else publishes under this name until it is dropped. Never waits.
    ///
    /// Errors: `EBUSY` when somebody else has it, `EINVAL` for a name that cannot be one.
    pub fn desk(&self, name: &str) -> Result<Desk> {
        check_name(name)?;
        let own = self.own(name);
        let make = |path: &Path| {
            let made = DirBuilder::new().recursive(true).mode(OWN_MODE).create(path);
            made.map_err(|e| Error::io(format_args!("cannot make the directory {}", path.display()), e))
        };
        make(&own)?;
        let path = own.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|e| Error::io(format_args!("cannot open {}", path.display()), e))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let text = format!(
                    "{name} in {} is being published by somebody else: try again when that has ended",
                    self.directory.display()
                );
                return Err(Error::new(errno::EBUSY, text));
            }
            Err(e) => return Err(Error::io(format_args!("cannot lock {}", path.display()), e.into())),
        }
        let desk = Desk { site: self.clone(), name: name.to_owned(), own, _lock: lock };
        let drafts = desk.own.join(DRAFTS);
        match fs::remove_dir_all(&drafts) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(format_args!("cannot remove the drafts in {}", drafts.display()), e));
            }
            _ => make(&drafts)?,
        }
        desk.recover()?;
        Ok(desk)
    }
}

/// The right to publish under one name, held until dropped.
#[derive(Debug)]
pub struct Desk {
    site: Site,
    name: String,
    own: PathBuf,
    /// `flock`; the kernel gives it back with the last descriptor, however the process ends.
    _lock: File,
}

/// A file that has no public name yet. Dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    /// For writing and reading.
    pub file: File,
    path: PathBuf,
}

impl Draft {
    /// Makes durable what was written.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(format_args!("cannot make durable {}", self.path.display()), e))
    }

    /// Sets the time of modification, so that a copy shows that of its original. In seconds since 1970.
    pub fn set_mtime(&self, mtime_s: i64) -> Result<()> {
        let since = Duration::from_secs(mtime_s.unsigned_abs());
        let time = if mtime_s < 0 { SystemTime::UNIX_EPOCH - since } else { SystemTime::UNIX_EPOCH + since };
        let set = self.file.set_modified(time);
        set.map_err(|e| Error::io(format_args!("cannot set the time of {}", self.path.display()), e))
    }

    /// Where it lies, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After it got its name there is nothing left here.
        let _ = fs::remove_file(&self.path);
    }
}

impl Desk {
    /// The site.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is published under it now.
    pub fn pointer(&self) -> Result<Option<Pointer>> {
        self.site.pointer(&self.name)
    }

    /// The public path of a file that the pointer names.
    pub fn path(&self, file: &str) -> PathBuf {
        self.site.directory.join(file)
    }

    /// The public name of a file with this part of a hash, of 12 hexadecimal digits, and this ending.
    pub fn file_name(&self, hash: &str, ending: &str) -> String {
        format!("{}-{}.{ending}", self.name, &hash[..12.min(hash.len())])
    }

    /// A new file without a public name; `what` tells drafts apart.
    pub fn draft(&self, what: &str) -> Result<Draft> {
        let path = self.own.join(DRAFTS).join(what);
        let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = made.map_err(|e| Error::io(format_args!("cannot create {}", path.display()), e))?;
        Ok(Draft { file, path })
    }

    /// A draft that is another name of the file at `path`, whose bytes are not copied.
    ///
    /// Errors: `EXDEV` when it lies on another file system.
    pub fn link(&self, path: &Path, what: &str) -> io::Result<Draft> {
        let draft = self.own.join(DRAFTS).join(what);
        // What a symbolic link leads to, not the link.
        fs::hard_link(fs::canonicalize(path)?, &draft)?;
        Ok(Draft { file: File::open(&draft)?, path: draft })
    }

    /// Publishes: gives the drafts their names, then replaces the pointer, then removes what is older than is to be kept.
    /// All is durable when this returns.
    ///
    /// `keep` is for how many versions of the image files are kept from now on; `None` leaves that as it was.
    pub fn publish(&self, pointer: &Pointer, drafts: Vec<(Draft, String)>, keep: Option<usize>) -> Result<()> {
        for (draft, _) in &drafts {
            draft.sync()?;
        }
        let mut versions = Versions::load(&self.versions_path())?;
        if let Some(keep) = keep {
            versions.keep = keep;
        }
        versions.add(Version::of(pointer));
        // Before the files have names: whatever ends this, the next publisher knows which files are of no use.
        versions.save(&self.versions_path())?;
        for (draft, name) in &drafts {
            rename(&draft.path, &self.path(name))?;
        }
        sync_directory(&self.site.directory)?;
        let shown = self.site.pointer_path(&self.name);
        let draft = self.draft("pointer")?;
        {
            use io::Write;
            let written = (&draft.file).write_all(pointer.to_string().as_bytes());
            written.map_err(|e| Error::io(format_args!("cannot write {}", draft.path.display()), e))?;
        }
        draft.sync()?;
        rename(&draft.path, &shown)?;
        sync_directory(&self.site.directory)?;
        self.drop_old(&mut versions)
    }

    /// Keeps so many versions from now on, and removes the files of older ones.
    pub fn keep(&self, versions: usize) -> Result<()> {
        let mut known = Versions::load(&self.versions_path())?;
        known.keep = versions;
        self.drop_old(&mut known)
    }

    /// Writes a file of the publisher's own in one step.
    pub fn write_own(&self, file: &str, bytes: &[u8]) -> Result<()> {
        crate::files::replace(&self.own.join(file), bytes)
    }

    fn versions_path(&self) -> PathBuf {
        self.own.join("versions")
    }

    /// Takes back what a publisher began that was killed before it had replaced the pointer.
    fn recover(&self) -> Result<()> {
        let mut versions = Versions::load(&self.versions_path())?;
        let current = self.pointer()?.map(|pointer| Version::of(&pointer));
        let gone = versions.forget_unfinished(current.as_ref());
        self.remove(gone)?;
        // Where the publisher's own files were lost, at least what is published now is known.
        if let Some(current) = current {
            versions.add_unless_known(current);
        }
        versions.save(&self.versions_path())
    }

    /// Removes the files of versions that are older than is to be kept.
    fn drop_old(&self, versions: &mut Versions) -> Result<()> {
        let gone = versions.forget_old();
        self.remove(gone)?;
        versions.save(&self.versions_path())
    }

    /// Removes files, but only such as have names of our own making.
    fn remove(&self, files: Vec<String>) -> Result<()> {
        for file in files.iter().filter(|file| self.is_ours(file)) {
            let path = self.path(file);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(format_args!("cannot remove the old {}", path.display()), e));
                }
                _ => log::info!("removed {}, which no version needs any more", path.display()),
            }
        }
        Ok(())
    }

    fn is_ours(&self, file: &str) -> bool {
        let middle = |rest: &str| {
            let (hash, ending) = rest.split_once('.')?;
            let hex = hash.len() == 12 && hash.bytes().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase());
            Some(hex && ["raw", "vmt", "vmk"].contains(&ending))
        };
        file.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('-')).and_then(middle).unwrap_or(false)
    }
}

/// The name that a file has from a site's directory on; `None` when it lies elsewhere or has a name that no link can have.
pub fn name_within(directory: &Path, file: &Path) -> Result<Option<String>> {
    let canonical =
        |path: &Path| path.canonicalize().map_err(|e| Error::io(format_args!("cannot examine {}", path.display()), e));
    let (directory, file) = (canonical(directory)?, canonical(file)?);
    let name = file.strip_prefix(directory).ok().and_then(Path::to_str);
    // What begins with a dot is not served.
    let served = |name: &&str| is_name(name) && !name.split('/').any(|segment| segment.starts_with('.'));
    Ok(name.filter(served).map(str::to_owned))
}

/// The address under which a site is served. A query, which may be a signature, goes behind the pointer's name, as readers
/// send it with every file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Without a slash at the end.
    folder: String,
    /// With its question mark; empty without one.
    query: String,
}

impl std::str::FromStr for Base {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text.contains('#') || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "must be the address of a folder, without blanks and without #: that is where the root hash goes"
                    .to_owned(),
            );
        }
        let host = SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme));
        if host.is_none_or(|host| host.starts_with(['/', '?']) || host.is_empty()) {
            return Err("must begin with https:// or http:// and a host".to_owned());
        }
        let (folder, query) = text.split_at(text.find('?').unwrap_or(text.len()));
        Ok(Self { folder: folder.trim_end_matches('/').to_owned(), query: query.to_owned() })
    }
}

/// The link to pass around: where the pointer lies, and what it must lead to.
pub fn link(base: Option<&Base>, site: &Site, name: &str, root: &Root) -> String {
    match base {
        Some(Base { folder, query }) => format!("{folder}/{name}.vmp{query}#{root}"),
        None => format!("{}#{root}", site.pointer_path(name).display()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    if to.is_dir() {
        let text = format!("{} is a directory where a published file belongs: move it away", to.display());
        return Err(Error::new(errno::EINVAL, text));
    }
    fs::rename(from, to).map_err(|e| Error::io(format_args!("cannot rename {} to {}", from.display(), to.display()), e))
}

fn sync_directory(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|e| Error::io(format_args!("cannot make durable {}", path.display()), e))
}
