//! The file system of a mount: one directory, one file `disk`, and what the kernel may do with it.
//!
//! A request whose blocks are resident is answered where it arrives. Any other is parked under a tag and answered from
//! the completion, on a library thread, so that no number of waiting reads keeps others from being served.
//!
//! While blocks are missing the file is opened for direct I/O: the kernel then asks for exactly what the reader asks
//! for, and its own readahead, which knows nothing of a slow link, fetches nothing on top. Once the image is complete
//! and durable, a newly opened file is passed through: reads and writes go to the local file inside the kernel.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use vmstream::{Image, Op};

use super::attributes::Attributes;
use super::parked::{Parked, Parking};
use super::written::{Stamp, Written};

/// The name of the one file.
pub const NAME: &str = "disk";
const INO: INodeNo = INodeNo(2);
/// Nothing about the file ever changes that the kernel does not know.
const TTL: Duration = Duration::from_secs(3600);
/// Largest request, in bytes: what the kernel allows.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// File systems that may lie between a passed-through file and its disk: one, such as overlayfs.
const STACK_DEPTH: u32 = 2;
const FALLOC_KEEP_SIZE: i32 = 1;
const FALLOC_PUNCH_HOLE: i32 = 2;
const FALLOC_ZERO_RANGE: i32 = 16;

/// The file system.
pub struct Disk {
    image: Arc<Image>,
    parking: Arc<Parking>,
    read_only: bool,
    attributes: Attributes,
    written: Written,
    passing: Passing,
}

/// Who has the file open, and how.
#[derive(Default)]
struct Passing {
    possible: bool,
    direct: AtomicUsize,
    handles: AtomicU64,
    backing: Mutex<Backing>,
}

/// The files that are passed through to the local one.
#[derive(Default)]
struct Backing {
    handles: HashMap<u64, Arc<BackingId>>,
    /// How the local file was when somebody last looked; `None` before there is any of them.
    seen: Option<Stamp>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    /// The file system over an image whose completions go to `parking`.
    pub fn new(image: Arc<Image>, parking: Arc<Parking>, read_only: bool) -> Self {
        let attributes = Attributes::of(&image);
        Self { image, parking, read_only, attributes, written: Written::default(), passing: Passing::default() }
    }

    fn attributes(&self, ino: INodeNo) -> FileAttr {
        if ino == INodeNo::ROOT {
            return self.attributes.directory(0o755);
        }
        self.look_through(&mut lock(&self.passing.backing));
        let (bytes, permissions) = (self.image.size(), if self.read_only { 0o444 } else { 0o644 });
        match self.written.last() {
            None => self.attributes.file(ino, bytes, permissions),
            Some(at) => self.attributes.written(ino, bytes, permissions, at),
        }
    }

    /// Takes note of what the kernel has written to the local file by itself.
    fn look_through(&self, backing: &mut Backing) {
        if let Some(seen) = &mut backing.seen {
            *seen = self.written.look(self.image.fd(), *seen);
        }
    }

    fn submit(&self, op: Op, offset: u64, length: u64, work: Parked) {
        self.parking.submit(&self.image, op, offset, length, work);
    }

    /// Opens the file passed through to the local one, if that is possible now.
    fn pass_through(&self, reply: &ReplyOpen) -> Option<(u64, Arc<BackingId>)> {
        if !self.passing.possible || self.read_only || self.passing.direct.load(Ordering::Acquire) != 0 {
            return None;
        }
        // The kernel's own fsync of the local file must be enough: no block may still be news to the journal.
        if !self.image.is_complete() || self.image.flush().is_err() {
            return None;
        }
        let mut backing = lock(&self.passing.backing);
        let id = match backing.handles.values().next() {
            Some(id) => id.clone(),
            None => {
                let file = self.image.fd().try_clone_to_owned().map(File::from).ok()?;
                // Not allowed for this user, or a kernel that cannot: direct I/O does it.
                Arc::new(reply.open_backing(file).inspect_err(|e| log::debug!("no pass-through: {e}")).ok()?)
            }
        };
        let handle = self.passing.handles.fetch_add(1, Ordering::Relaxed) + 1;
        backing.handles.insert(handle, id.clone());
        backing.seen.get_or_insert_with(|| Stamp::of(self.image.fd()));
        Some((handle, id))
    }
}

impl Filesystem for Disk {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Each of these is an improvement that an older kernel may not have.
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_readahead(REQUEST_BYTES_MAX);
        let _ = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        self.passing.possible = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH).is_ok();
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&TTL, &self.attributes(INO), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // A disk keeps its size and its owner; that somebody touches its times is no harm and no change.
        let resized = size.is_some_and(|size| ino != INO || size != self.image.size());
        if resized || mode.is_some() || uid.is_some() || gid.is_some() {
            reply.error(Errno::EPERM);
        } else {
            reply.attr(&TTL, &self.attributes(ino));
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if ino != INO {
            reply.error(Errno::EISDIR);
            return;
        }
        if let Some((handle, id)) = self.pass_through(&reply) {
            reply.opened_passthrough(FileHandle(handle), FopenFlags::empty(), &id);
            return;
        }
        self.passing.direct.fetch_add(1, Ordering::AcqRel);
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if handle.0 == 0 {
            self.passing.direct.fetch_sub(1, Ordering::AcqRel);
        } else {
            let mut backing = lock(&self.passing.backing);
            backing.handles.remove(&handle.0);
            self.look_through(&mut backing);
            // The kernel wrote to the local file itself, without our rules.
            if let Err(error) = self.image.tidy_local() {
                log::error!("{error}");
            }
            backing.seen = (!backing.handles.is_empty()).then(|| Stamp::of(self.image.fd()));
        }
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = self.image.size().saturating_sub(offset).min(size.into());
        if length == 0 {
            reply.data(&[]); // the end of the file
            return;
        }
        self.submit(Op::Read, offset, length, Parked::Read { offset, length, fault: None, reply });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let length = data.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > self.image.size()) {
            reply.error(Errno::ENOSPC); // as a disk says at its end
            return;
        }
        // O_SYNC has the bit of O_DSYNC; for a file whose only meaning is its bytes they are the same.
        let sync = flags.0 & rustix::fs::OFlags::DSYNC.bits() as i32 != 0;
        self.written.now();
        self.submit(Op::Write, offset, length, Parked::Write { offset, data: data.to_vec(), sync, reply });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok(); // a close is no fsync
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.submit(Op::Flush, 0, 0, Parked::Flush { reply });
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if offset.checked_add(length).is_none_or(|end| end > self.image.size()) {
            reply.error(Errno::ENOSPC);
            return;
        }
        match mode & !FALLOC_KEEP_SIZE {
            FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE => {
                self.written.now();
                self.submit(Op::Discard, offset, length, Parked::Discard { offset, length, reply });
            }
            _ => reply.error(Errno::EOPNOTSUPP),
        }
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        // The kernel then takes the whole file for data: what is absent here must never look like a hole.
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino != INodeNo::ROOT {
            reply.error(Errno::ENOTDIR);
            return;
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (INO, FileType::RegularFile, NAME),
        ];
        for (at, (ino, kind, name)) in (1u64..).zip(entries).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(ino, at, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
