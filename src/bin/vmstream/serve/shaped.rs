//! A connection on a shaped link: a stream that holds back what it reads and writes as [`super::link`] says.
//!
//! *Reading.* Bytes are taken off the socket as soon as they are there and stamped with the moment they may be
//! seen; until then the reader waits.
//!
//! *Writing.* `poll_write` puts bytes into the shared queue as the connection's window allows and returns, as a
//! write to a socket does. A task for each connection waits for the moments that the model gave them: at one a
//! piece has left and makes room in the window, at a later one its bytes go to the real socket. That task lives on
//! after the stream was dropped until all is delivered, as a kernel goes on sending after `close`. It stops giving
//! room while the real socket takes nothing, so a client that does not read is felt by the server.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::alarm::{Alarm, Clock};
use super::link::{Flow, Link, Shape};

/// Most bytes of requests that are held back at once for one connection; more wait in the socket.
const INBOX_BYTES_MAX: usize = 64 << 10;
/// How much is taken off the socket at once, in bytes: a request rarely is longer.
const READ_BYTES: usize = 4 << 10;

/// The link that all connections share.
#[derive(Debug)]
pub struct SharedLink {
    shape: Shape,
    start: Instant,
    link: Mutex<Link>,
    clock: Arc<Clock>,
}

impl SharedLink {
    /// A link that is idle now; cuts count from now. Fails when no thread can be started.
    pub fn new(shape: Shape) -> io::Result<Self> {
        let clock = Clock::start()?;
        Ok(Self { link: Mutex::new(Link::new(shape.clone())), shape, start: Instant::now(), clock })
    }

    /// Bytes that joined the queue of the link so far, headers included.
    pub fn committed_bytes(&self) -> u64 {
        lock(&self.link).committed_bytes()
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn instant(&self, at: Duration) -> Instant {
        self.start + at
    }
}

/// One accepted connection on the link.
#[derive(Debug)]
pub struct Shaped {
    link: Arc<SharedLink>,
    /// When the handshake is over.
    opened: Duration,
    socket: OwnedReadHalf,
    /// What was read and when it may be seen; an empty one is the end of the stream.
    inbox: VecDeque<(Duration, Bytes)>,
    inbox_bytes: usize,
    ended: bool,
    alarm: Alarm,
    outbox: Arc<Outbox>,
}

#[derive(Debug)]
struct Outbox {
    state: Mutex<OutState>,
    /// For the task, which waits for it only while nothing is queued.
    news: Notify,
}

#[derive(Debug)]
struct OutState {
    flow: Flow,
    /// What is to be delivered, and when.
    pieces: VecDeque<(Duration, Bytes)>,
    closed: bool,
    /// The task is over: all is delivered, or the client went away.
    over: bool,
    failed: Option<io::ErrorKind>,
    writer: Option<Waker>,
}

impl OutState {
    fn wake_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

impl Shaped {
    /// Puts a connection that was accepted just now on the link. Must be called in the runtime.
    pub fn new(socket: TcpStream, link: Arc<SharedLink>) -> Self {
        let (read, write) = socket.into_split();
        let outbox = Arc::new(Outbox {
            state: Mutex::new(OutState {
                flow: Flow::new(&link.shape),
                pieces: VecDeque::new(),
                closed: false,
                over: false,
                failed: None,
                writer: None,
            }),
            news: Notify::new(),
        });
        let (alarm, opened) = (link.clock.alarm(), link.shape.opened_at(link.now()));
        tokio::spawn(deliver(link.clone(), outbox.clone(), write));
        let inbox = VecDeque::new();
        Self { link, opened, socket: read, inbox, inbox_bytes: 0, ended: false, alarm, outbox }
    }

    /// Takes what is there off the socket, so that it is stamped with the moment of its arrival.
    fn fill_inbox(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while !self.ended && self.inbox_bytes < INBOX_BYTES_MAX {
            let mut space = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut space);
            match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(result) => result?,
            }
            let bytes = Bytes::copy_from_slice(buffer.filled());
            self.ended = bytes.is_empty();
            self.inbox_bytes += bytes.len();
            self.inbox.push_back((self.link.shape.seen_at(self.opened, self.link.now()), bytes));
        }
        Ok(())
    }
}

impl AsyncRead for Shaped {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.fill_inbox(cx)?;
        let Some((seen, bytes)) = this.inbox.front_mut() else {
            // The socket has nothing and wakes this task when it has.
            return Poll::Pending;
        };
        ready!(this.alarm.poll_until(cx, this.link.instant(*seen)));
        let taken = bytes.split_to(bytes.len().min(out.remaining()));
        out.put_slice(&taken);
        this.inbox_bytes -= taken.len();
        if bytes.is_empty() && !taken.is_empty() {
            this.inbox.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Shaped {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let now = this.link.now();
        let mut guard = this.outbox.lock();
        let state = &mut *guard;
        if let Some(kind) = state.failed {
            return Poll::Ready(Err(kind.into()));
        }
        let taken = bytes.len().min(state.flow.room());
        if taken == 0 && !bytes.is_empty() {
            state.flow.starve(now);
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut rest = Bytes::copy_from_slice(&bytes[..taken]);
        state.flow.commit(&mut lock(&this.link.link), now, taken, |left, length| {
            state.pieces.push_back((this.link.shape.delivered_at(left), rest.split_to(length)));
        });
        drop(guard);
        this.outbox.news.notify_one();
        Poll::Ready(Ok(taken))
    }

    /// Like a socket's: what was written is on its way.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Waits until all is delivered, so that a server which ends after its last connection cuts nothing off.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.outbox.lock();
        state.closed = true;
        self.outbox.news.notify_one();
        if state.over {
            return Poll::Ready(Ok(()));
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Shaped {
    fn drop(&mut self) {
        self.outbox.lock().closed = true;
        self.outbox.news.notify_one();
    }
}

/// What the delivering task has to do next.
enum Step {
    Write(Bytes),
    WaitUntil(Duration),
    WaitForNews,
    End,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, OutState> {
        lock(&self.state)
    }

    fn step(&self, now: Duration) -> Step {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.flow.release(now) {
            state.wake_writer();
        }
        match state.pieces.front() {
            None if state.closed => Step::End,
            None => Step::WaitForNews,
            Some((due, _)) if *due > now => {
                // Later pieces are due later still, so nothing can come that ends this wait early.
                Step::WaitUntil(state.flow.next_release().map_or(*due, |left| left.min(*due)))
            }
            Some(_) => state.pieces.pop_front().map_or(Step::WaitForNews, |(_, bytes)| Step::Write(bytes)),
        }
    }

    fn end(&self, failed: Option<io::ErrorKind>) {
        let mut state = self.lock();
        state.over = true;
        state.failed = failed;
        state.pieces.clear();
        state.wake_writer();
    }
}

/// The task of a connection: delivers its pieces at their moments.
async fn deliver(link: Arc<SharedLink>, outbox: Arc<Outbox>, mut socket: OwnedWriteHalf) {
    let mut alarm = link.clock.alarm();
    let result = loop {
        match outbox.step(link.now()) {
            Step::Write(bytes) => {
                if let Err(error) = socket.write_all(&bytes).await {
                    break Err(error);
                }
            }
            Step::WaitUntil(at) => alarm.until(link.instant(at)).await,
            Step::WaitForNews => outbox.news.notified().await,
            Step::End => break socket.shutdown().await,
        }
    };
    outbox.end(result.err().map(|e| e.kind()));
}

/// The state is sound after a panic elsewhere: no step leaves it half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair(shape: Shape) -> (TcpStream, Shaped, Arc<SharedLink>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let link = Arc::new(SharedLink::new(shape).unwrap());
        let server = Shaped::new(listener.accept().await.unwrap().0, link.clone());
        (client, server, link)
    }

    fn shape(rate_bytes_s: Option<u64>) -> Shape {
        Shape { rate_bytes_s, round_trip: Duration::from_millis(4), window_bytes: 5000, cuts: Vec::new() }
    }

    #[tokio::test]
    async fn what_is_written_arrives_whole_and_in_order_after_the_stream_is_gone() {
        let (mut client, mut server, link) = pair(shape(Some(10_000_000))).await;
        let sent: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move { server.write_all(&sent).await.unwrap() });
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        writer.await.unwrap();
        assert!(received == expected);
        assert_eq!(link.committed_bytes(), 100_000);
    }

    #[tokio::test]
    async fn shutdown_waits_for_delivery() {
        let (client, mut server, _) = pair(shape(Some(1_000_000))).await;
        server.write_all(&[7; 4000]).await.unwrap();
        server.shutdown().await.unwrap();
        // All is in the client's socket already: a read that must not wait finds it.
        let mut client = client.into_std().unwrap();
        let mut received = [0; 4000];
        std::io::Read::read_exact(&mut client, &mut received).unwrap();
        assert_eq!(received, [7; 4000]);
    }

    #[tokio::test]
    async fn requests_are_seen_after_the_handshake_and_half_a_round_trip() {
        let (mut client, mut server, link) = pair(shape(None)).await;
        let before = link.now();
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        assert!(server.opened <= before + Duration::from_millis(4));
        assert!(link.now() >= server.opened + Duration::from_millis(2));
    }

    #[tokio::test]
    async fn a_client_that_went_away_is_an_error_of_the_writer() {
        let (client, mut server, _) = pair(shape(Some(10_000_000))).await;
        drop(client);
        let block = [0; 4096];
        loop {
            if server.write_all(&block).await.is_err() {
                break;
            }
        }
    }
}
