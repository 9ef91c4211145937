//! Operations that wait for their blocks, and how each of them ends.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use fuser::{Errno, ReplyData, ReplyEmpty, ReplyWrite};
use vmstream::error::Result;
use vmstream::{Answer, Completion, Image, Op};

use super::faults::Fault;

thread_local! {
    /// Bytes on their way from the local file to the kernel; one buffer a thread, as large as its largest read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One operation of the kernel.
pub enum Parked {
    /// A read; `fault` when a page of a map is read by it.
    Read { offset: u64, length: u64, fault: Option<Fault>, reply: ReplyData },
    /// A write; `sync` for a file that was opened with O_SYNC or O_DSYNC.
    Write { offset: u64, data: Vec<u8>, sync: bool, reply: ReplyWrite },
    /// A write that is done and answered when it is durable.
    Written { length: u32, reply: ReplyWrite },
    /// A range to be zeroed.
    Discard { offset: u64, length: u64, reply: ReplyEmpty },
    /// An fsync.
    Flush { reply: ReplyEmpty },
}

fn errno(code: i32) -> Errno {
    Errno::from_i32(code.abs())
}

impl Parked {
    /// Does it on the local file and answers the kernel. `result` is what the gate said: 0, or a negative errno. What
    /// it hands back must be flushed before it is answered.
    #[must_use]
    fn finish(mut self, image: &Image, result: i32) -> Option<Self> {
        if let Parked::Read { fault, .. } = &mut self {
            drop(fault.take());
        }
        match self {
            Parked::Read { reply, .. } if result < 0 => reply.error(errno(result)),
            Parked::Write { reply, .. } | Parked::Written { reply, .. } if result < 0 => reply.error(errno(result)),
            Parked::Discard { reply, .. } | Parked::Flush { reply } if result < 0 => reply.error(errno(result)),
            Parked::Flush { reply } => reply.ok(),
            Parked::Written { length, reply } => reply.written(length),
            Parked::Read { offset, length, reply, .. } => BUFFER.with_borrow_mut(|buffer| {
                let length = length as usize;
                if buffer.len() < length {
                    buffer.resize(length, 0);
                }
                match image.read_local(offset, &mut buffer[..length]) {
                    Ok(()) => reply.data(&buffer[..length]),
                    Err(error) => reply.error(report(&error)),
                }
            }),
            Parked::Write { offset, data, sync, reply } => {
                let (length, written) = (data.len() as u32, image.write_local(offset, &data));
                match done(image, Op::Write, offset, length.into(), written) {
                    Ok(()) if sync => return Some(Parked::Written { length, reply }),
                    Ok(()) => reply.written(length),
                    Err(error) => reply.error(report(&error)),
                }
            }
            Parked::Discard { offset, length, reply } => {
                let zeroed = image.zero_local(offset, length);
                match done(image, Op::Discard, offset, length, zeroed) {
                    Ok(()) => reply.ok(),
                    Err(error) => reply.error(report(&error)),
                }
            }
        }
        None
    }
}

fn done(image: &Image, op: Op, offset: u64, length: u64, written: Result<()>) -> Result<()> {
    image.block_done(op, offset, length, written.is_ok())?;
    written
}

fn report(error: &vmstream::Error) -> Errno {
    log::error!("{error}");
    errno(error.errno())
}

/// Where operations wait, by tag.
#[derive(Default)]
pub struct Parking {
    tags: AtomicU64,
    waiting: Mutex<HashMap<u64, Place>>,
}

enum Place {
    Parked(Parked),
    /// The completion was faster than the parking.
    Completed(i32),
}

impl Parking {
    /// Asks the gate, and finishes the operation now or parks it.
    pub fn submit(self: &Arc<Self>, image: &Arc<Image>, op: Op, offset: u64, length: u64, work: Parked) {
        let mut next = Some((op, offset, length, work));
        while let Some((op, offset, length, mut work)) = next.take() {
            let tag = self.tags.fetch_add(1, Ordering::Relaxed);
            let result = match image.block_needed_raw(op, offset, length, tag) {
                Ok(Answer::Ready) => 0,
                Ok(Answer::Pending) => match self.park(tag, work) {
                    Some((back, result)) => {
                        work = back;
                        result
                    }
                    None => return,
                },
                // More requests than may be pending: somebody has to wait for his turn, but not a thread of the
                // library, which has others to answer. Without a new thread the kernel gets an I/O error.
                Err(code) if code == vmstream::error::errno::EAGAIN && image.is_own_thread() => {
                    let (parking, image) = (Arc::clone(self), Arc::clone(image));
                    let wait = move || parking.submit(&image, op, offset, length, work);
                    if let Err(error) = thread::Builder::new().spawn(wait) {
                        log::error!("no thread for a write that must be durable: {error}");
                    }
                    return;
                }
                Err(code) if code == vmstream::error::errno::EAGAIN => {
                    image.block_wait_raw(op, offset, length).map_or_else(|code| -code, |()| 0)
                }
                Err(code) => -code,
            };
            next = work.finish(image, result).map(|work| (Op::Flush, 0, 0, work));
        }
    }

    /// Answers a parked operation when its completion comes.
    pub fn complete(self: &Arc<Self>, image: &Arc<Image>, completion: Completion) {
        if let Some(work) = self.take(completion)
            && let Some(work) = work.finish(image, completion.result)
        {
            self.submit(image, Op::Flush, 0, 0, work);
        }
    }

    /// Parks an operation; hands it back with the result if its completion came already.
    fn park(&self, tag: u64, work: Parked) -> Option<(Parked, i32)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.remove(&tag) {
            Some(Place::Completed(result)) => Some((work, result)),
            _ => {
                waiting.insert(tag, Place::Parked(work));
                None
            }
        }
    }

    /// Takes the operation that a completion is for; `None` when it is not parked yet, and then `park` hands it back.
    fn take(&self, completion: Completion) -> Option<Parked> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.remove(&completion.tag) {
            Some(Place::Parked(work)) => Some(work),
            _ => {
                waiting.insert(completion.tag, Place::Completed(completion.result));
                None
            }
        }
    }
}
