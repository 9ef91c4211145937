//! The file system of a restore point: the regions of one image as files, which nobody can write to.
//!
//! A monitor maps `memory.raw` as its guest's memory, private: what the guest writes stays with the monitor, and here only
//! origin's bytes are read. It opens the file for writing even so, hence the mount is not read-only, and what is refused is the
//! write.
//!
//! Memory is touched through the page cache, where a fault is an occasion for the kernel to read ahead: as a rule 128 KiB
//! around, but from 2 MiB on where the program has asked for large pages, as QEMU does of all its memory, and no limit of
//! this file system counts then. On a slow link that would be the whole memory for the first second of a guest. But
//! readahead may fail: the kernel then asks for the one page that is needed. So a request from the page cache for more
//! than a page is answered with an error, at once, and those for one page are just what the guest touches - which is also
//! what ought to be recorded and learnt. What comes by `read(2)` instead says whose it is, and is answered in full.

use std::ffi::OsStr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use vmstream::{Image, Op};

use super::parked::{Parked, Parking};
use crate::point::MEMORY;
use crate::point::regions::Regions;

/// Nothing here ever changes.
const TTL: Duration = Duration::from_secs(3600);
/// Number of the first file; 1 is the directory.
const FIRST_INO: u64 = 2;

/// The file system.
pub struct Windows {
    image: Arc<Image>,
    parking: Arc<Parking>,
    files: Vec<(&'static str, Range<u64>)>,
    modified: SystemTime,
    owner: (u32, u32),
    page_bytes: u64,
}

impl Windows {
    /// The file system over an image whose completions go to `parking`.
    pub fn new(image: Arc<Image>, parking: Arc<Parking>, regions: &Regions) -> Self {
        Self {
            image,
            parking,
            files: regions.iter().map(|(name, range)| (name, range.clone())).collect(),
            modified: SystemTime::now(),
            owner: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            page_bytes: rustix::param::page_size() as u64,
        }
    }

    fn file(&self, ino: INodeNo) -> Option<&(&'static str, Range<u64>)> {
        self.files.get(usize::try_from(ino.0.checked_sub(FIRST_INO)?).ok()?)
    }

    fn attributes(&self, ino: INodeNo) -> Option<FileAttr> {
        let file = self.file(ino);
        if file.is_none() && ino != INodeNo::ROOT {
            return None;
        }
        let size = file.map_or(0, |(_, range)| range.end - range.start);
        Some(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: self.modified,
            mtime: self.modified,
            ctime: self.modified,
            crtime: self.modified,
            kind: if file.is_some() { FileType::RegularFile } else { FileType::Directory },
            perm: match file {
                None => 0o555,
                Some((MEMORY, _)) => 0o600,
                Some(_) => 0o444,
            },
            nlink: 1 + u32::from(file.is_none()),
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: self.image.block_size() as u32,
            flags: 0,
        })
    }
}

impl Filesystem for Windows {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let at = self.files.iter().position(|(file, _)| name == *file).filter(|_| parent == INodeNo::ROOT);
        match at.and_then(|at| self.attributes(INodeNo(FIRST_INO + at as u64))) {
            Some(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Direct, so that read(2) asks for exactly what its caller wants; a private map works as well.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some((_, range)) = self.file(ino) else {
            reply.error(Errno::EISDIR);
            return;
        };
        if owner.is_none() && u64::from(size) > self.page_bytes {
            reply.error(Errno::EAGAIN); // readahead
            return;
        }
        let start = range.start.saturating_add(offset).min(range.end);
        let length = (range.end - start).min(size.into());
        if length == 0 {
            reply.data(&[]); // the end of the file
            return;
        }
        self.parking.submit(&self.image, Op::Read, start, length, Parked::Read { offset: start, length, reply });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino != INodeNo::ROOT {
            reply.error(Errno::ENOTDIR);
            return;
        }
        let here = [".", ".."].map(|name| (INodeNo::ROOT, FileType::Directory, name));
        let files =
            self.files.iter().zip(FIRST_INO..).map(|((name, _), ino)| (INodeNo(ino), FileType::RegularFile, *name));
        let entries = here.into_iter().chain(files);
        for (at, (ino, kind, name)) in (1u64..).zip(entries).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(ino, at, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
