//! Reading qcow2 images, with the files below them.
//!
//! A qcow2 file may name another image that shows through where it has nothing itself, and that one a third. All of them
//! are read, and all of them are watched: a change in any of them is a change of the image. What their headers speak of is
//! looked at first ([`head`]), so that nothing is read as what it is not.

mod head;
mod tables;

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use imago::file::File;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, Mapping, Storage, StorageOpenOptions, SyncFormatAccess};
use vmstream::error::{Error, Result, errno};

/// First bytes of every qcow and qcow2 file.
pub const MAGIC: &[u8] = b"QFI\xfb";

/// An open qcow2 image; may be read from several threads.
pub struct Disk {
    access: SyncFormatAccess<File>,
    shown: String,
}

/// Opens what an image refers to, and remembers the names: to watch the files, and to say which one is missing.
#[derive(Clone, Default)]
struct Gate {
    files: Rc<RefCell<Vec<PathBuf>>>,
    /// Images opened so far.
    images: Rc<Cell<usize>>,
}

/// Most images that lie on top of each other: more are a loop, or as good as one.
const IMAGES_MAX: usize = 64;

impl ImplicitOpenGate<File> for Gate {
    async fn open_format<F: FormatDriverBuilder<File>>(&mut self, builder: F) -> io::Result<FormatAccess<File>> {
        self.images.set(self.images.get() + 1);
        if self.images.get() > IMAGES_MAX {
            let text = format!("more than {IMAGES_MAX} images lie on top of each other, or one on itself");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.files.borrow_mut().extend(builder.get_image_path());
        // Boxed, as one image may lead to the next without end.
        let driver = Box::pin(builder.open(self.clone())).await?;
        Ok(FormatAccess::new(driver))
    }

    async fn open_storage(&mut self, builder: StorageOpenOptions) -> io::Result<File> {
        self.files.borrow_mut().extend(builder.get_filename().map(Path::to_owned));
        File::open(builder).await
    }
}

impl Disk {
    /// Opens the image at `path` for reading; answers the files that it consists of as well, itself the first.
    pub fn open(path: &Path) -> Result<(Self, Vec<PathBuf>)> {
        let shown = path.display().to_string();
        let gate = Gate::default();
        head::check(path)?;
        let opened = Qcow2::<File>::builder_path(path).open_sync(gate.clone()).and_then(SyncFormatAccess::new);
        let mut files = vec![path.to_owned()];
        // Its own file comes through the gate as well.
        files.extend(gate.files.borrow().iter().filter(|file| *file != path).cloned());
        // Those below it, before an error that says less.
        files.iter().skip(1).filter(|file| file.is_file()).try_for_each(|file| head::check(file))?;
        match opened {
            Ok(access) => Ok((Self { access, shown }, files)),
            Err(error) => Err(refused(&shown, &files, error)),
        }
    }

    /// Size of the disk that it shows, in bytes.
    pub fn size(&self) -> u64 {
        self.access.size()
    }

    /// The first range at or behind `at` and before `end` that may hold anything but zeroes.
    pub fn next_data(&self, mut at: u64, end: u64) -> Result<Option<Range<u64>>> {
        while at < end {
            let (mapping, length) = self.access.get_mapping_sync(at, end - at).map_err(|e| self.unreadable(at, e))?;
            let length = length.min(end - at);
            match mapping {
                Mapping::Zero { .. } if length > 0 => at += length,
                // The end of an image below that is shorter than the one on top.
                Mapping::Eof { .. } => return Ok(None),
                _ if length > 0 => return Ok(Some(at..at + length)),
                _ => return Ok(Some(at..end)),
            }
        }
        Ok(None)
    }

    /// Reads bytes of the disk.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.access.read(bytes, offset).map_err(|e| self.unreadable(offset, e))
    }

    fn unreadable(&self, offset: u64, error: io::Error) -> Error {
        Error::io(format_args!("cannot read {} at {offset}", self.shown), error)
    }
}

/// Why an image could not be opened: what is most often wrong is that a file it needs is not where it says.
fn refused(shown: &str, files: &[PathBuf], error: io::Error) -> Error {
    match files.iter().skip(1).find(|file| !file.exists()) {
        Some(missing) => Error::new(
            errno::ENOENT,
            format!(
                "cannot open {shown}: the image below it, {}, is not there; put it back, or name its place with \
                 'qemu-img rebase -u -b'",
                missing.display()
            ),
        ),
        None => Error::io(format_args!("cannot open {shown} as a qcow2 image"), error),
    }
}
