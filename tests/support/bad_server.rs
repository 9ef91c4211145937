//! A web server that does exactly what a test tells it, right or wrong.
//!
//! One thread for each connection reads requests and hands each to the test's handler, which writes the answer
//! byte for byte. Nothing is checked and nothing is repaired on the way out.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, spawn};

use vmstream::source::pattern;

/// Seed and size of the image all tests serve.
pub const SEED: u64 = 42;
/// Not a multiple of anything, so that an end is a real end.
pub const SIZE: u64 = 1_000_001;
/// Its ETag.
pub const TAG: &str = "\"v1\"";

/// Bytes `first..=last` of the image.
pub fn image(first: u64, last: u64) -> Vec<u8> {
    let mut bytes = vec![0; (last - first + 1) as usize];
    pattern::fill(SEED, first, &mut bytes);
    bytes
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Number of the request at this server, from 0.
    pub number: usize,
    /// `GET`, `CONNECT`, ...
    pub method: String,
    /// What stands in the request line.
    pub target: String,
    headers: Vec<(String, String)>,
}

impl Seen {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Both ends of the range that was asked for.
    pub fn range(&self) -> (u64, u64) {
        let range = self.header("range").and_then(|r| r.strip_prefix("bytes=")).expect("a request without Range");
        let (first, last) = range.split_once('-').expect("a range");
        (first.parse().expect("a number"), last.parse().expect("a number"))
    }

    /// The right answer, without its empty line: more headers may follow.
    pub fn good_head(&self) -> String {
        let (first, last) = self.range();
        format!(
            "HTTP/1.1 206 Partial Content\r\nETag: {TAG}\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{last}/{SIZE}\r\n",
            last - first + 1
        )
    }

    /// The right answer.
    pub fn good(&self) -> Vec<u8> {
        let (first, last) = self.range();
        answer(&self.good_head(), &image(first, last))
    }
}

/// A head without its empty line, and a body.
pub fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{head}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// A bodyless answer with this status and these header lines (each with its line end).
pub fn status(line: &str, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n{headers}\r\n").into_bytes()
}

/// A connection, plain or TLS.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// What the server does with the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Keep,
    Close,
}

/// The other end of a connection, for a handler.
pub struct Wire<'a> {
    stream: &'a mut BufReader<Box<dyn Stream>>,
    /// The TCP connection below, also when there is TLS on top.
    pub tcp: &'a TcpStream,
}

impl Wire<'_> {
    /// Writes; a client that is gone is its own affair.
    pub fn send(&mut self, bytes: &[u8]) {
        let stream = self.stream.get_mut();
        let _ = stream.write_all(bytes).and_then(|()| stream.flush());
    }

    /// Says nothing more and waits until the client gives up.
    pub fn until_gone(&mut self) -> Next {
        let _ = std::io::copy(self.stream, &mut std::io::sink());
        Next::Close
    }
}

type Handler = dyn Fn(&Seen, &mut Wire<'_>) -> Next + Send + Sync;

/// How a connection becomes a stream: as it is, or wrapped in TLS; `None` when that fails.
pub type Wrap = dyn Fn(TcpStream) -> Option<Box<dyn Stream>> + Send + Sync;

struct Shared {
    handler: Box<Handler>,
    wrap: Box<Wrap>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
    stopping: AtomicBool,
}

/// A running server; stops when dropped.
pub struct BadServer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl BadServer {
    /// Starts a plain server.
    pub fn start(handler: impl Fn(&Seen, &mut Wire<'_>) -> Next + Send + Sync + 'static) -> Self {
        Self::wrapped(Box::new(|stream| Some(Box::new(stream))), handler)
    }

    /// Starts a server whose connections are wrapped.
    pub fn wrapped(wrap: Box<Wrap>, handler: impl Fn(&Seen, &mut Wire<'_>) -> Next + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            wrap,
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let for_acceptor = shared.clone();
        let acceptor = spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if for_acceptor.stopping.load(Ordering::SeqCst) {
                    break;
                }
                let _ = stream.set_nodelay(true);
                if let Ok(stream) = stream.try_clone() {
                    for_acceptor.open.lock().expect("lock").push(stream);
                }
                for_acceptor.connections.fetch_add(1, Ordering::SeqCst);
                let shared = for_acceptor.clone();
                spawn(move || serve(&shared, stream));
            }
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// The URL of a path here.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("lock").clone()
    }

    /// Number of connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for BadServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for stream in self.shared.open.lock().expect("lock").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn serve(shared: &Shared, stream: TcpStream) {
    let Ok(tcp) = stream.try_clone() else { return };
    let Some(stream) = (shared.wrap)(stream) else { return };
    let mut reader = BufReader::new(stream);
    while let Some(mut seen) = read_request(&mut reader) {
        {
            let mut all = shared.seen.lock().expect("lock");
            seen.number = all.len();
            all.push(seen.clone());
        }
        let next = (shared.handler)(&seen, &mut Wire { stream: &mut reader, tcp: &tcp });
        if next == Next::Close {
            break;
        }
    }
    // Everything written goes out before the end does, and the clone in `open` must not keep it alive.
    let _ = tcp.shutdown(Shutdown::Both);
}

fn read_request(reader: &mut impl BufRead) -> Option<Seen> {
    let mut line = || {
        let mut line = String::new();
        let got = reader.read_line(&mut line).ok()?;
        (got > 0).then(|| line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        match line.split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => return Some(Seen { number: 0, method, target, headers }),
        }
    }
}
