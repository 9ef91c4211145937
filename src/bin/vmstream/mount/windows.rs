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
//! what ought to be recorded and learnt - but for those that [`super::faults`] tells from it. What comes by `read(2)` instead
//! says whose it is, and is answered in full.

use std::ffi::OsStr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use vmstream::{Image, Op};

use super::attributes::Attributes;
use super::faults::Faults;
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
    /// Of the whole image: no page is of two files.
    faults: Arc<Faults>,
    attributes: Attributes,
    page_bytes: u64,
}

impl Windows {
    /// The file system over an image whose completions go to `parking`.
    pub fn new(image: Arc<Image>, parking: Arc<Parking>, regions: &Regions) -> Self {
        Self {
            attributes: Attributes::of(&image),
            image,
            parking,
            files: regions.iter().map(|(name, range)| (name, range.clone())).collect(),
            faults: Arc::default(),
            page_bytes: rustix::param::page_size() as u64,
        }
    }

    fn file(&self, ino: INodeNo) -> Option<&(&'static str, Range<u64>)> {
        self.files.get(usize::try_from(ino.0.checked_sub(FIRST_INO)?).ok()?)
    }

    fn attributes(&self, ino: INodeNo) -> Option<FileAttr> {
        if ino == INodeNo::ROOT {
            return Some(self.attributes.directory(0o555));
        }
        let (name, range) = self.file(ino)?;
        let permissions = if *name == MEMORY { 0o600 } else { 0o444 };
        Some(self.attributes.file(ino, range.end - range.start, permissions))
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
        request: &Request,
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
        let start = range.start.saturating_add(offset).min(range.end);
        let length = (range.end - start).min(size.into());
        let mut fault = None;
        if owner.is_none() {
            let (thread, page) = (request.pid(), start / self.page_bytes);
            if u64::from(size) > self.page_bytes {
                if self.faults.refuses(thread, page, page + length.div_ceil(self.page_bytes)) {
                    reply.error(Errno::EAGAIN); // readahead
                    return;
                }
            // What is here costs nothing to have, needed or not.
            } else if !self.image.resident_raw(start, length).is_ok_and(|(here, _)| here) {
                fault = self.faults.ask(thread, page);
                if fault.is_none() {
                    reply.error(Errno::EAGAIN); // readahead as well
                    return;
                }
            }
        }
        if length == 0 {
            reply.data(&[]); // the end of the file
            return;
        }
        self.parking.submit(&self.image, Op::Read, start, length, Parked::Read { offset: start, length, fault, reply });
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
