//! The origin of a live replay: a made-up image behind HTTP on loopback, on the shaped link of `vmstream serve`.
//!
//! It is the link of the virtual replay: one queue of that rate for all connections, half the round trip each way, a
//! whole one more for each new connection; and what was asked for cannot be taken back, so the windows of connections,
//! by which `vmstream serve` has parallel downloads share the link, are wide open here. A byte goes into a real socket only
//! when the link delivers it, so no buffer of the system holds more than that.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderValue, RANGE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use vmstream::error::{Error, Result};
use vmstream::source::Source;
use vmstream::source::pattern::PatternSource;

use crate::serve::link::Shape;
use crate::serve::range::{Wanted, wanted};
use crate::serve::shaped::{Shaped, SharedLink};

/// Bytes that one connection may have in the queue of the link: more than is ever asked for at once.
pub const WINDOW_BYTES: usize = 1 << 30;
/// Threads of the origin: it shares the machine with the engine that is measured.
const THREADS: usize = 2;
/// Most bytes of a body that are made at once.
const PIECE_BYTES: u64 = 64 << 10;
/// One image is all there is, and it never changes.
const TAG: HeaderValue = HeaderValue::from_static("\"made-up\"");

/// A running origin; it ends when dropped, with whatever it was sending.
pub struct Origin {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Origin {
    /// Serves `image` on a port of its own, on an idle link of that shape.
    pub fn start(image: PatternSource, shape: Shape) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .enable_all()
            .build()
            .map_err(|e| Error::io("cannot start the origin's threads", e))?;
        let link = SharedLink::new(shape).map_err(|e| Error::io("cannot start the link's thread", e))?;
        let listener = runtime
            .block_on(TcpListener::bind(("127.0.0.1", 0)))
            .map_err(|e| Error::io("cannot listen on 127.0.0.1", e))?;
        let address = listener.local_addr().map_err(|e| Error::io("cannot read the address listened on", e))?;
        runtime.spawn(accept(listener, Arc::new(link), Arc::new(image)));
        Ok(Self { address, runtime: Some(runtime) })
    }

    /// Where the image is.
    pub fn url(&self) -> String {
        format!("http://{}/disk.img", self.address)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, link: Arc<SharedLink>, image: Arc<PatternSource>) {
    loop {
        let (socket, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // The only client has a few connections, so none can be too many for long.
                log::warn!("the origin cannot accept a connection: {error}");
                tokio::task::yield_now().await;
                continue;
            }
        };
        if let Err(error) = socket.set_nodelay(true) {
            log::debug!("{error}");
        }
        let (stream, image) = (Shaped::new(socket, link.clone()), image.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&request, &image);
                async move { Ok::<_, Infallible>(answer) }
            });
            if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
                log::debug!("the origin: {error}"); // the client closes its connections when it ends
            }
        });
    }
}

/// The range that a request asks for, or all of the image.
fn answer(request: &Request<Incoming>, image: &Arc<PatternSource>) -> Response<Made> {
    let size = image.identity().size;
    let range = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
    let (status, range) = match range.map_or(Wanted::Whole, |range| wanted(range, size)) {
        Wanted::Whole => (StatusCode::OK, 0..size),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, 0..0),
    };
    let mut response = Response::new(Made { image: image.clone(), at: range.start, end: range.end });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    headers.insert(ETAG, TAG);
    let part = match status {
        StatusCode::PARTIAL_CONTENT => format!("bytes {}-{}/{size}", range.start, range.end - 1),
        _ => format!("bytes */{size}"),
    };
    if status != StatusCode::OK
        && let Ok(part) = HeaderValue::try_from(part)
    {
        headers.insert(CONTENT_RANGE, part);
    }
    response
}

/// A stretch of the image as a body.
struct Made {
    image: Arc<PatternSource>,
    at: u64,
    end: u64,
}

impl Body for Made {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        let length = (self.end - self.at).min(PIECE_BYTES);
        if length == 0 {
            return Poll::Ready(None);
        }
        let mut piece = vec![0; length as usize];
        self.image.fill(self.at, &mut piece);
        self.at += length;
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.at)
    }
}
