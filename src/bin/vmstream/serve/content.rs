//! Bodies of responses: nothing, a text, or a stretch of a file.
//!
//! A file is read in large pieces with `pread`, first as `RWF_NOWAIT` right on the task: what the page cache holds
//! is there in microseconds, and a hand-over to another thread would cost a small range more than all the rest.
//! Only what really needs the disk goes to a thread that may block.
//!
//! An image that is replaced in place while it is being sent must not go out as a mixture under the old tag, so the
//! file's stamp is compared after every piece; when it changed the connection ends in the middle of the body, which
//! the client sees as an error.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use rustix::io::ReadWriteFlags;
use tokio::task::JoinHandle;

use super::exchange::Exchange;
use super::tree::Stamp;

/// Most bytes that are read at once: fits a second-level cache between the read and the write to the socket.
const PIECE_BYTES: usize = 256 << 10;
/// Most buffers that are kept for later: enough for the connections that send at the same time on a small machine.
const SPARE_MAX: usize = 16;

/// The body of a response. Holds the note of the exchange, which is complete when the body is dropped.
#[derive(Debug)]
pub struct Content {
    kind: Kind,
    exchange: Exchange,
}

#[derive(Debug)]
enum Kind {
    Text(Bytes),
    File(Stretch),
}

/// A stretch of a file that is still to be sent.
#[derive(Debug)]
struct Stretch {
    file: Arc<File>,
    stamp: Stamp,
    offset: u64,
    rest: u64,
    buffers: Arc<Buffers>,
    reading: Option<JoinHandle<io::Result<Vec<u8>>>>,
}

impl Content {
    /// A text, perhaps an empty one.
    pub fn text(text: impl Into<Bytes>, exchange: Exchange) -> Self {
        Self { kind: Kind::Text(text.into()), exchange }
    }

    /// The bytes `offset..offset + length` of a file that must stay as `stamp` says.
    pub fn file(file: File, stamp: Stamp, offset: u64, length: u64, buffers: Arc<Buffers>, exchange: Exchange) -> Self {
        let stretch = Stretch { file: Arc::new(file), stamp, offset, rest: length, buffers, reading: None };
        Self { kind: Kind::File(stretch), exchange }
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, io::Error>>> {
        let bytes = match &mut self.kind {
            Kind::Text(text) => std::mem::take(text),
            Kind::File(stretch) => {
                ready!(stretch.poll_next(cx)).inspect_err(|e| log::error!("cannot send {}: {e}", self.exchange))?
            }
        };
        if bytes.is_empty() {
            return Poll::Ready(None);
        }
        self.exchange.sent(bytes.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest())
    }
}

impl Content {
    fn rest(&self) -> u64 {
        match &self.kind {
            Kind::Text(text) => text.len() as u64,
            Kind::File(stretch) => stretch.rest,
        }
    }
}

impl Stretch {
    /// The next bytes; none at the end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if self.rest == 0 {
            return Poll::Ready(Ok(Bytes::new()));
        }
        let wanted = usize::try_from(self.rest).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let (buffer, length) = match &mut self.reading {
            Some(reading) => {
                let result = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                (result.map_err(io::Error::other)??, wanted)
            }
            None => {
                let mut buffer = self.buffers.take(wanted);
                match read_cached(&self.file, &mut buffer[..wanted], self.offset) {
                    Some(length) => (buffer, length),
                    None => {
                        self.reading = Some(read_blocking(self.file.clone(), buffer, wanted, self.offset));
                        return self.poll_next(cx);
                    }
                }
            }
        };
        if Stamp::of(&self.file)? != self.stamp {
            return Poll::Ready(Err(io::Error::other("the file changed while it was being sent")));
        }
        self.offset += length as u64;
        self.rest -= length as u64;
        Poll::Ready(Ok(self.buffers.lend(buffer, length)))
    }
}

/// Reads what the page cache holds; `None` when that is nothing, or when the file system cannot say.
fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> Option<usize> {
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
        // 0 would be the end of the file, which the blocking way finds out for sure.
        Ok(0) | Err(_) => None,
        Ok(length) => Some(length),
    }
}

fn read_blocking(file: Arc<File>, mut buffer: Vec<u8>, wanted: usize, offset: u64) -> JoinHandle<io::Result<Vec<u8>>> {
    tokio::task::spawn_blocking(move || file.read_exact_at(&mut buffer[..wanted], offset).map(|()| buffer))
}

/// Buffers for pieces, used again: a fresh one for every piece would have the kernel clear memory all the time.
#[derive(Debug, Default)]
pub struct Buffers {
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// A buffer of at least `length` bytes.
    fn take(&self, length: usize) -> Vec<u8> {
        // Small ones come and go with the allocator, which keeps them warm by itself.
        if length < PIECE_BYTES / 2 {
            return vec![0; length];
        }
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| vec![0; PIECE_BYTES])
    }

    /// The first `length` bytes of `buffer`; when nobody needs them any more the buffer comes back here.
    fn lend(self: &Arc<Self>, buffer: Vec<u8>, length: usize) -> Bytes {
        if buffer.len() < PIECE_BYTES {
            let mut buffer = buffer;
            buffer.truncate(length);
            return buffer.into();
        }
        Bytes::from_owner(Lent { buffer, length, home: self.clone() })
    }
}

struct Lent {
    buffer: Vec<u8>,
    length: usize,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut spare = self.home.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn stretch(file: File, offset: u64, rest: u64) -> Stretch {
        let stamp = Stamp::of(&file).unwrap();
        Stretch { file: Arc::new(file), stamp, offset, rest, buffers: Arc::default(), reading: None }
    }

    fn sample(length: usize) -> (tempfile::NamedTempFile, Vec<u8>) {
        let bytes: Vec<u8> = (0..length).map(|i| (i / 7 % 253) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, &bytes).unwrap();
        (file, bytes)
    }

    #[tokio::test]
    async fn a_stretch_comes_whole_and_its_buffers_come_back() {
        let (file, bytes) = sample(3 * PIECE_BYTES + 1000);
        let mut s = stretch(file.reopen().unwrap(), 500, (3 * PIECE_BYTES) as u64);
        let mut got = Vec::new();
        loop {
            let piece = poll_fn(|cx| s.poll_next(cx)).await.unwrap();
            if piece.is_empty() {
                break;
            }
            got.extend_from_slice(&piece);
        }
        assert!(got == bytes[500..500 + 3 * PIECE_BYTES]);
        let spare = s.buffers.spare.lock().unwrap().len();
        assert!((1..=2).contains(&spare), "{spare} buffers for one piece at a time");
    }

    #[tokio::test]
    async fn the_blocking_way_reads_the_same() {
        let (file, bytes) = sample(5000);
        let buffer = read_blocking(Arc::new(file.reopen().unwrap()), vec![0; 4096], 4000, 1000).await.unwrap().unwrap();
        assert!(buffer[..4000] == bytes[1000..]);
        assert!(read_blocking(Arc::new(file.reopen().unwrap()), vec![0; 4096], 4001, 1000).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_file_that_changes_on_the_way_is_an_error() {
        let (file, _) = sample(2 * PIECE_BYTES);
        let mut s = stretch(file.reopen().unwrap(), 0, 2 * PIECE_BYTES as u64);
        poll_fn(|cx| s.poll_next(cx)).await.unwrap();
        file.as_file().set_len(PIECE_BYTES as u64).unwrap();
        assert!(poll_fn(|cx| s.poll_next(cx)).await.is_err());
    }
}
