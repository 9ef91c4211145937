//! Operations that wait for their blocks, and how each of them ends.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use fuser::{Errno, ReplyData, ReplyEmpty, ReplyWrite};
use vmstream::error::Result;
use vmstream::{Completion, Image, Op};

thread_local! {
    /// Bytes on their way from the local file to the kernel; one buffer a thread, as large as its largest read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One operation of the kernel.
pub enum Parked {
    /// A read.
    Read { offset: u64, length: u64, reply: ReplyData },
    /// A write.
    Write { offset: u64, data: Vec<u8>, reply: ReplyWrite },
    /// A range to be zeroed.
    Discard { offset: u64, length: u64, reply: ReplyEmpty },
    /// An fsync.
    Flush { reply: ReplyEmpty },
}

fn errno(code: i32) -> Errno {
    Errno::from_i32(code.abs())
}

impl Parked {
    /// Does it on the local file and answers the kernel. `result` is what the gate said: 0, or a negative errno.
    pub fn finish(self, image: &Image, result: i32) {
        match self {
            Parked::Read { reply, .. } if result < 0 => reply.error(errno(result)),
            Parked::Write { reply, .. } if result < 0 => reply.error(errno(result)),
            Parked::Discard { reply, .. } | Parked::Flush { reply } if result < 0 => reply.error(errno(result)),
            Parked::Flush { reply } => reply.ok(),
            Parked::Read { offset, length, reply } => BUFFER.with_borrow_mut(|buffer| {
                let length = length as usize;
                if buffer.len() < length {
                    buffer.resize(length, 0);
                }
                match image.read_local(offset, &mut buffer[..length]) {
                    Ok(()) => reply.data(&buffer[..length]),
                    Err(error) => reply.error(report(&error)),
                }
            }),
            Parked::Write { offset, data, reply } => {
                let written = image.write_local(offset, &data);
                match done(image, Op::Write, offset, data.len() as u64, written) {
                    Ok(()) => reply.written(data.len() as u32),
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
    waiting: Mutex<HashMap<u64, Place>>,
}

enum Place {
    Parked(Parked),
    /// The completion was faster than the parking.
    Completed(i32),
}

impl Parking {
    /// Parks an operation; hands it back with the result if its completion came already.
    pub fn park(&self, tag: u64, work: Parked) -> Option<(Parked, i32)> {
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
    pub fn take(&self, completion: Completion) -> Option<Parked> {
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
