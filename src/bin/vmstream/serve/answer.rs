//! From a request to its answer.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::SystemTime;

use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HOST, HeaderName,
    HeaderValue, LAST_MODIFIED, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Version};
use rustix::io::Errno;

use super::access::AccessLog;
use super::collect::{self, Collector, Reply};
use super::conditions::{Validators, Verdict, judge};
use super::content::{Buffers, Content};
use super::exchange::Exchange;
use super::metrics::{self, Tally};
use super::portal::{self, Page, Portal, View, html};
use super::range::{Wanted, wanted};
use super::stats::Stats;
use super::tree::{self, Entry, Listed, Malformed, Name, Stamp, Tree};

/// Where the counters are, unless a file is called so.
const METRICS: &str = "/metrics";

/// All that answering needs; shared by all connections.
#[derive(Debug)]
pub struct Site {
    tree: Arc<Tree>,
    stats: Arc<Stats>,
    access: Option<Arc<AccessLog>>,
    buffers: Arc<Buffers>,
    portal: Arc<Portal>,
    collector: Option<Arc<Collector>>,
    tally: Arc<Tally>,
    /// Whether a proxy stands before us that says how it was asked.
    trust_proxy: bool,
}

impl Site {
    /// A site that serves `tree` and the pages of `portal`, counts in `stats` and logs to `access`. Sessions go to
    /// `collector`, and what becomes of them to `tally`. What a proxy says is believed if `trust_proxy`.
    pub fn new(
        tree: Tree,
        stats: Arc<Stats>,
        access: Option<Arc<AccessLog>>,
        portal: Portal,
        collector: Option<Arc<Collector>>,
        tally: Arc<Tally>,
        trust_proxy: bool,
    ) -> Self {
        let (tree, portal) = (Arc::new(tree), Arc::new(portal));
        Self { tree, stats, access, buffers: Arc::default(), portal, collector, tally, trust_proxy }
    }

    /// Answers one request; what goes wrong is an answer too.
    pub async fn answer(&self, peer: SocketAddr, request: Request<Incoming>) -> Response<Content> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let range = request
            .headers()
            .get(RANGE)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).escape_debug().to_string());
        let exchange =
            Exchange::new(peer, method.clone(), path.clone(), range, self.stats.clone(), self.access.clone());
        if let (&Method::POST, Some(collector)) = (&method, &self.collector)
            && let Some(name) = path.strip_prefix(collect::PATH)
        {
            let reply = collector.take(peer, name, request).await;
            self.tally.session(reply.status);
            return judged(&reply, exchange);
        }
        if method != Method::GET && method != Method::HEAD {
            let refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served here", exchange);
            return with(refusal, ALLOW, "GET, HEAD");
        }
        if request.version() == Version::HTTP_11 && !request.headers().contains_key(HOST) {
            return plain(StatusCode::BAD_REQUEST, "HTTP/1.1 needs a Host header", exchange);
        }
        let name = match Name::parse(&path) {
            Ok(Some(name)) => name,
            Ok(None) => return plain(StatusCode::NOT_FOUND, "no such file", exchange),
            Err(Malformed) => return plain(StatusCode::BAD_REQUEST, "broken percent-encoding in the path", exchange),
        };
        if name.is_top() {
            match self.page(request.uri().query(), self.base(request.headers())).await {
                Ok(Some(page)) => return shown(page, method == Method::HEAD, exchange),
                Ok(None) => {}
                Err(error) => return failure(&error, exchange),
            }
        }
        match self.find(&name).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path == METRICS => {
                let text = metrics::text(&self.stats, &self.tally);
                let answer = respond(StatusCode::OK, |exchange| Content::text(text, exchange), exchange);
                with(answer, CONTENT_TYPE, metrics::CONTENT_TYPE)
            }
            Ok(Entry::File(..)) if name.slash => plain(StatusCode::NOT_FOUND, "no such directory", exchange),
            Ok(Entry::File(file, stamp)) => self.file(&request, &name, file, stamp, exchange),
            Ok(Entry::Directory(_)) if !name.slash => {
                // The links in a listing are relative to a path that ends in a slash.
                let answer = plain(StatusCode::MOVED_PERMANENTLY, "a directory", exchange);
                with(answer, LOCATION, &format!("{}/", name.url()))
            }
            Ok(Entry::Directory(directory)) => listing(&name, directory, exchange).await,
            Err(error) => failure(&error, exchange),
        }
    }

    /// The page for people that stands at the top; `None` where a list of files does.
    async fn page(&self, query: Option<&str>, base: String) -> io::Result<Option<Page>> {
        let Some(view) = View::parse(query) else { return Ok(None) };
        let portal = self.portal.clone();
        let drawn = tokio::task::spawn_blocking(move || portal.page(&view, &base)).await.map_err(io::Error::other)?;
        drawn.map_err(io::Error::other)
    }

    /// How the visitor came to us: what links begin with. Only a proxy knows whether it was by TLS.
    fn base(&self, headers: &HeaderMap) -> String {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let proto = headers.get_all("x-forwarded-proto").iter().next_back().map(text).unwrap_or_default();
        let tls =
            self.trust_proxy && proto.rsplit(',').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("https"));
        format!("{}://{}", if tls { "https" } else { "http" }, headers.get(HOST).map(text).unwrap_or_default())
    }

    async fn find(&self, name: &Name) -> io::Result<Entry> {
        if let Some(found) = self.tree.find_cached(name) {
            return found;
        }
        let (tree, name) = (self.tree.clone(), name.clone());
        tokio::task::spawn_blocking(move || tree.find(&name)).await.map_err(io::Error::other)?
    }

    fn file(
        &self,
        request: &Request<Incoming>,
        name: &Name,
        file: std::fs::File,
        stamp: Stamp,
        mut exchange: Exchange,
    ) -> Response<Content> {
        let now = SystemTime::now();
        let validators = stamp.validators(now);
        exchange.file = Some(self.stats.file(&name.url()));
        let range = match judge(request.headers(), &validators, now) {
            Verdict::Proceed { range } => range,
            Verdict::NotModified => {
                let answer = respond(StatusCode::NOT_MODIFIED, |exchange| Content::text("", exchange), exchange);
                return identify(answer, &validators);
            }
            Verdict::PreconditionFailed => {
                let answer = plain(StatusCode::PRECONDITION_FAILED, "the file is of another version", exchange);
                return identify(answer, &validators);
            }
        };
        let send = |range: std::ops::Range<u64>, status, exchange| {
            let length = range.end - range.start;
            let answer = if request.method() == Method::HEAD {
                respond(status, |exchange| Content::text("", exchange), exchange)
            } else {
                let buffers = self.buffers.clone();
                respond(status, |e| Content::file(file, stamp, range.start, length, buffers, e), exchange)
            };
            let answer = with(answer, CONTENT_LENGTH, &length.to_string());
            let answer = with(answer, CONTENT_TYPE, content_type(&name.extension()));
            identify(answer, &validators)
        };
        match requested(request, stamp.size, range) {
            Wanted::Whole => send(0..stamp.size, StatusCode::OK, exchange),
            Wanted::Part(range) => {
                let text = format!("bytes {}-{}/{}", range.start, range.end - 1, stamp.size);
                with(send(range, StatusCode::PARTIAL_CONTENT, exchange), CONTENT_RANGE, &text)
            }
            Wanted::Unsatisfiable => {
                let answer = plain(StatusCode::RANGE_NOT_SATISFIABLE, "the file ends before that range", exchange);
                let answer = with(answer, CONTENT_RANGE, &format!("bytes */{}", stamp.size));
                identify(answer, &validators)
            }
        }
    }
}

/// The answer to a session.
fn judged(reply: &Reply, exchange: Exchange) -> Response<Content> {
    let mut answer = plain(reply.status, &reply.text, exchange);
    if reply.status == StatusCode::UNAUTHORIZED {
        answer = with(answer, WWW_AUTHENTICATE, "Bearer");
    }
    match reply.retry_after {
        Some(wait) => with(answer, RETRY_AFTER, &wait.as_secs_f64().ceil().to_string()),
        None => answer,
    }
}

/// The answer that shows a page.
fn shown(page: Page, head_only: bool, exchange: Exchange) -> Response<Content> {
    let (kind, text) = match page {
        Page::Html(text) => ("text/html; charset=utf-8", Bytes::from(text)),
        Page::Svg(text) => ("image/svg+xml", Bytes::from(text.as_bytes().to_vec())),
    };
    let length = text.len();
    let body = if head_only { Bytes::new() } else { text };
    let answer = respond(StatusCode::OK, |exchange| Content::text(body, exchange), exchange);
    let answer = with(answer, CONTENT_LENGTH, &length.to_string());
    let answer = with(answer, CONTENT_TYPE, kind);
    let answer = with(answer, CONTENT_SECURITY_POLICY, portal::POLICY);
    with(answer, X_CONTENT_TYPE_OPTIONS, "nosniff")
}

/// The range that is asked for. Ranges are defined for GET only, and two Range headers are as good as none.
fn requested(request: &Request<Incoming>, size: u64, holds: bool) -> Wanted {
    let mut values = request.headers().get_all(RANGE).iter();
    match (values.next().and_then(|value| value.to_str().ok()), values.next()) {
        (Some(value), None) if holds && request.method() == Method::GET => wanted(value, size),
        _ => Wanted::Whole,
    }
}

async fn listing(name: &Name, directory: OwnedFd, exchange: Exchange) -> Response<Content> {
    let listed = match tokio::task::spawn_blocking(|| tree::list(directory)).await.map_err(io::Error::other) {
        Ok(Ok(listed)) => listed,
        Ok(Err(error)) | Err(error) => return failure(&error, exchange),
    };
    let page = page(&name.url(), &listed);
    let answer = respond(StatusCode::OK, |exchange| Content::text(page, exchange), exchange);
    with(answer, CONTENT_TYPE, "text/html; charset=utf-8")
}

/// The page of a directory, plain enough for a person and for `grep`.
fn page(url: &str, listed: &[Listed]) -> String {
    let mut page = format!("<!DOCTYPE html>\n<title>{url}</title>\n<h1>{url}</h1>\n<pre>\n");
    for Listed { name, size } in listed {
        let slash = if size.is_none() { "/" } else { "" };
        let mut link = String::new();
        tree::escape(name, &mut link);
        let text = html(&String::from_utf8_lossy(name));
        let size = size.map_or_else(|| "-".to_owned(), |size| size.to_string());
        // "./" keeps a name with a colon from being read as a scheme.
        page += &format!("{size:>15}  <a href=\"./{link}{slash}\">{text}{slash}</a>\n");
    }
    page + "</pre>\n"
}

/// By extension. What is not known is bytes, so that a browser saves it and shows nothing by guess.
fn content_type(extension: &str) -> &'static str {
    match extension {
        "html" | "htm" => "text/html; charset=utf-8",
        "txt" | "log" | "md" => "text/plain; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "gz" => "application/gzip",
        "zst" => "application/zstd",
        "xz" => "application/x-xz",
        _ => "application/octet-stream",
    }
}

/// What an open or a listing that failed is for the client. Why it failed is for the log only.
fn failure(error: &io::Error, exchange: Exchange) -> Response<Content> {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS | Errno::PERM) => plain(StatusCode::FORBIDDEN, "not readable for the server", exchange),
        // XDEV: a link that leads out of the tree; NXIO: a socket.
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG | Errno::NXIO) => {
            plain(StatusCode::NOT_FOUND, "no such file", exchange)
        }
        None if error.kind() == io::ErrorKind::NotFound => plain(StatusCode::NOT_FOUND, "no such file", exchange),
        _ => {
            log::error!("cannot open what {exchange} asked for: {error}");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the server cannot read this; its log says why", exchange)
        }
    }
}

/// An answer whose body is one line of text.
fn plain(status: StatusCode, text: &str, exchange: Exchange) -> Response<Content> {
    let answer = respond(status, |exchange| Content::text(format!("{text}\n"), exchange), exchange);
    with(answer, CONTENT_TYPE, "text/plain; charset=utf-8")
}

fn respond(status: StatusCode, content: impl FnOnce(Exchange) -> Content, mut exchange: Exchange) -> Response<Content> {
    exchange.answer(status);
    let mut response = Response::new(content(exchange));
    *response.status_mut() = status;
    response
}

/// Adds what tells this version of the file from others.
fn identify(answer: Response<Content>, validators: &Validators) -> Response<Content> {
    let answer = with(answer, ETAG, &validators.etag);
    let answer = with(answer, ACCEPT_RANGES, "bytes");
    match validators.modified {
        Some(modified) => with(answer, LAST_MODIFIED, &httpdate::fmt_http_date(modified)),
        None => answer,
    }
}

fn with(mut answer: Response<Content>, name: HeaderName, value: &str) -> Response<Content> {
    // Every value comes from this file or is percent-encoded, so none is refused.
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_safe_against_its_names() {
        let name = b"<b>&\"x: y.img".to_vec();
        let page = page("/a%20b/", &[Listed { name, size: Some(7) }, Listed { name: b"d".to_vec(), size: None }]);
        assert!(page.contains("<a href=\"./%3Cb%3E%26%22x%3A%20y.img\">&lt;b&gt;&amp;&quot;x: y.img</a>"), "{page}");
        assert!(page.contains("-  <a href=\"./d/\">d/</a>"), "{page}");
    }

    #[test]
    fn images_are_bytes() {
        for extension in ["img", "raw", "qcow2", "iso", ""] {
            assert_eq!(content_type(extension), "application/octet-stream");
        }
    }
}
