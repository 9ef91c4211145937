//! Images on web servers: any server that honours `Range`.
//!
//! Each fetch is one `GET` of one range on the warm connection of its lane. Its way:
//!
//! 1. `HttpSource::exchange` sends it to where the image was found last, and follows redirects by
//!    itself. The final address is kept for all lanes, so that a redirect costs one round trip and not one for
//!    each block; when that address expires or cannot be reached, it is found again from the original URL.
//! 2. `response::check` judges status and headers. Only the exact range of the pinned image gets through.
//! 3. `HttpSource::pump` hands the body to the sink as it arrives. A body that ends early is a failure
//!    that may pass; what came before is good.
//!
//! The identity is pinned at first contact: the size, and a strong validator that also goes into `If-Range`, so
//! that a server which still has the image answers 206 and one whose image changed cannot. With an identity
//! known from before, opening needs no contact at all.
//!
//! Time is limited for connecting and for silence, never for a whole transfer: a slow link may take as long as
//! it needs while bytes move.

mod dialer;
mod document;
mod failure;
mod lane;
mod post;
mod proxy;
mod response;
mod settings;
mod target;
mod validator;

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::SystemTime;

use ureq::Body;
use ureq::http::{HeaderMap, HeaderValue, Request, Response, header};

use super::{FetchError, Identity, Sink, Source};
use crate::config::HttpOptions;
use crate::error::{Error, errno};
pub use document::{Document, Found};
use failure::Failure;
use lane::{Lane, Lanes, Wiring};
pub use post::{Delivery, Reply, same_origin};
use proxy::Routes;
use response::{Accepted, Expected, Refused, check};
use settings::{request_headers, tls_config};
use target::{Credentials, Target};
use validator::{Validator, seconds, text};

/// Redirects in a row before they count as a loop.
const REDIRECTS_MAX: usize = 10;

/// One image behind one URL.
pub struct HttpSource {
    origin: Arc<Target>,
    /// Where the image was found last.
    found: RwLock<Arc<Target>>,
    routes: Arc<Routes>,
    /// Shared with the files beside this one.
    wiring: Arc<Wiring>,
    lanes: Arc<Lanes>,
    /// Headers for the origin, with credentials, and for everybody else.
    headers_origin: HeaderMap,
    headers_other: HeaderMap,
    identity: Identity,
    /// What answers are compared with; without a pinned validator the first answer sets it.
    pin: OnceLock<Pin>,
    /// The server has served this image rightly.
    reached: AtomicBool,
}

#[derive(Debug)]
struct Pin {
    validator: Option<Validator>,
    if_range: Option<HeaderValue>,
}

impl Pin {
    fn new(validator: Option<Validator>) -> Self {
        let if_range = validator.as_ref().and_then(Validator::header);
        Self { validator, if_range }
    }
}

/// A range of bytes, both ends included as HTTP counts.
#[derive(Clone, Copy)]
struct Span {
    first: u64,
    last: u64,
}

/// The first byte alone: what opening and warming ask for.
const FIRST_BYTE: Span = Span { first: 0, last: 0 };

impl HttpSource {
    /// Opens the image at `url`.
    ///
    /// With a `pinned` identity there is no contact yet and every answer must fit it; without one a request for
    /// the first byte learns size, validator and date. Looking up a host name starts a short-lived thread, which
    /// inherits the signal mask of the caller.
    ///
    /// # Errors
    /// [`FetchError::Fatal`] for bad options and for servers that cannot be used, [`FetchError::Transient`] for
    /// servers that cannot be reached now.
    pub fn open(url: &str, options: &HttpOptions, pinned: Option<&Identity>) -> Result<Self, FetchError> {
        let mut source = Self::unopened(url, options)?;
        match pinned {
            Some(identity) => {
                source.identity = identity.clone();
                if let Some(validator) = Validator::pinned(identity) {
                    source.pin = OnceLock::from(Pin::new(Some(validator)));
                }
            }
            None => source.identity = source.probe()?,
        }
        Ok(source)
    }

    /// A source that has contacted nobody and knows nothing of what it will find.
    fn unopened(url: &str, options: &HttpOptions) -> Result<Self, FetchError> {
        let (origin, credentials) = parse(url)?;
        let (headers_origin, headers_other) = request_headers(options, credentials)?;
        let origin = Arc::new(origin);
        Ok(Self {
            found: RwLock::new(origin.clone()),
            routes: Arc::new(Routes::new(options.proxy.as_deref())?),
            wiring: Arc::new(Wiring::new(
                tls_config(options.cacert.as_deref())?,
                options.connect_timeout,
                options.stall_timeout,
            )),
            lanes: Arc::new(Lanes::new()),
            headers_origin,
            headers_other,
            identity: Identity { size: 0, validator: None, mtime_s: None },
            pin: OnceLock::new(),
            reached: AtomicBool::new(false),
            origin,
        })
    }

    /// A file of `size` bytes that lies beside this one, `name` being a relative reference. Contacts nobody. It shares
    /// the lanes and their connections, and what is aborted there is aborted here. Its validator does not matter, as whoever
    /// uses it has hashes: two servers behind one name may differ in that. The query, which may be a signature
    /// for the whole folder, goes along.
    fn beside(&self, name: &str, size: u64) -> Result<Self, FetchError> {
        let query = self.origin.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let origin = self.origin.join(&format!("{name}{query}")).map_err(|reason| {
            let text = format!("{}: the file beside it, {name}, has an address that {reason}", self.origin.shown);
            Error::new(errno::EPROTO, text)
        })?;
        // A relative reference stays with the host, which the credentials are for.
        debug_assert!(origin.origin == self.origin.origin);
        let origin = Arc::new(origin);
        Ok(Self {
            found: RwLock::new(origin.clone()),
            routes: self.routes.clone(),
            wiring: self.wiring.clone(),
            lanes: self.lanes.clone(),
            headers_origin: self.headers_origin.clone(),
            headers_other: self.headers_other.clone(),
            identity: Identity { size, validator: None, mtime_s: None },
            pin: OnceLock::from(Pin::new(None)),
            reached: AtomicBool::new(self.reached.load(Ordering::Relaxed)),
            origin,
        })
    }

    /// Learns the identity from a request for the first byte. Not `HEAD`: a server may answer that rightly and
    /// ranges wrongly, and this way the connection and the redirects are warm as well.
    fn probe(&self) -> Result<Identity, FetchError> {
        let mut lane = self.lanes.lock(0);
        let (response, accepted) = self.ask(&mut lane, FIRST_BYTE, None)?;
        let validator = self.pin.get().and_then(|pin| pin.validator.as_ref()).map(|v| v.as_str().to_owned());
        if validator.is_none() {
            log::warn!(
                "{}: the server sends neither a strong ETag nor a usable Last-Modified; only the size tells whether \
                 the image changes",
                self.origin.shown
            );
        }
        let mtime_s = text(response.headers(), &header::LAST_MODIFIED).and_then(seconds);
        // Read so that the connection stays warm; whether that works shows at the first fetch.
        let _ = self.pump(&mut lane, response, accepted, FIRST_BYTE, &mut Nowhere);
        Ok(Identity { size: accepted.total, validator, mtime_s })
    }

    /// Sends one range request and checks the head of the answer. `size` is that of the image, if known.
    fn ask(&self, lane: &mut Lane, span: Span, size: Option<u64>) -> Result<(Response<Body>, Accepted), FetchError> {
        let (response, target) = self.exchange(lane, span)?;
        let headers = response.headers();
        let judge = |validator| {
            let expected =
                Expected { first: span.first, last: span.last, size, validator, mtime_s: self.identity.mtime_s };
            check(response.status(), headers, &expected, SystemTime::now())
        };
        let pinned = self.pin.get();
        let accepted = judge(pinned.and_then(|pin| pin.validator.as_ref()));
        let accepted = accepted.and_then(|accepted| match pinned {
            Some(_) => Ok(accepted),
            None => {
                // Another lane may have been first with another answer: judge again by what holds now.
                let pin = self.pin.get_or_init(|| Pin::new(Validator::of(headers)));
                judge(pin.validator.as_ref())
            }
        });
        let accepted = accepted.map_err(|refused| self.refused(&target, span, refused))?;
        self.reached.store(true, Ordering::Relaxed);
        self.remember(&target);
        Ok((response, accepted))
    }

    fn refused(&self, target: &Target, span: Span, refused: Refused) -> FetchError {
        match refused {
            Refused::Transient { message, retry_after } => {
                FetchError::Transient { message: self.describe(target, span, &message), retry_after }
            }
            Refused::Fatal { errno, message } => {
                FetchError::Fatal(Error::new(errno, self.describe(target, span, &message)))
            }
        }
    }

    /// Sends a request to where the image is and follows redirects. The answer is not judged yet.
    fn exchange(&self, lane: &mut Lane, span: Span) -> Result<(Response<Body>, Arc<Target>), FetchError> {
        let mut target = self.found.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut from_origin = Arc::ptr_eq(&target, &self.origin);
        let mut hops = 0;
        loop {
            let response = match self.send(lane, &target, span) {
                Ok(response) => response,
                Err(failure) => {
                    let shortcut = !from_origin;
                    if shortcut {
                        self.remember(&self.origin);
                    }
                    // After a stall the time is up; the next attempt begins at the origin.
                    if !shortcut || failure.stalled {
                        return Err(self.failed(&target, span, failure));
                    }
                    (target, from_origin, hops) = (self.origin.clone(), true, 0);
                    continue;
                }
            };
            let status = response.status().as_u16();
            if matches!(status, 301 | 302 | 303 | 307 | 308) {
                hops += 1;
                let next = self.redirected(&target, response.headers(), hops);
                target = next.map_err(|reason| {
                    FetchError::Fatal(Error::new(errno::EPROTO, self.describe(&target, span, &reason)))
                })?;
            } else if !from_origin && matches!(status, 400..=499) && !matches!(status, 408 | 416 | 429) {
                // The address that a redirect once gave has expired.
                (target, from_origin, hops) = (self.origin.clone(), true, 0);
            } else {
                return Ok((response, target));
            }
        }
    }

    fn send(&self, lane: &mut Lane, target: &Target, span: Span) -> Result<Response<Body>, Failure> {
        let route = self.routes.to(target);
        let request = || {
            let mut request = Request::new(());
            *request.uri_mut() = target.uri.clone();
            let ours = target.origin == self.origin.origin;
            let headers = request.headers_mut();
            *headers = if ours { &self.headers_origin } else { &self.headers_other }.clone();
            if let Ok(range) = HeaderValue::from_str(&format!("bytes={}-{}", span.first, span.last)) {
                headers.insert(header::RANGE, range);
            }
            if let Some(if_range) = self.pin.get().and_then(|pin| pin.if_range.as_ref()) {
                headers.insert(header::IF_RANGE, if_range.clone());
            }
            if let Some((_, Some(credentials))) = &route.forward {
                headers.insert(header::PROXY_AUTHORIZATION, credentials.clone());
            }
            request
        };
        lane.send(&self.wiring, target.origin.https, &route, request, self.reached.load(Ordering::Relaxed))
    }

    /// Where a redirect leads, or why it is not followed.
    fn redirected(&self, from: &Target, headers: &HeaderMap, hops: usize) -> Result<Arc<Target>, String> {
        if hops > REDIRECTS_MAX {
            return Err(format!("more than {REDIRECTS_MAX} redirects in a row; check the server"));
        }
        // Servers do send raw UTF-8 here.
        let location = headers.get(header::LOCATION).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
        let location = location.ok_or("a redirect without a Location")?.trim();
        let next = from.join(location).map_err(|reason| format!("a redirect to an address that {reason}"))?;
        if from.origin.https && !next.origin.https {
            return Err(format!("a redirect from https to {} is refused: it would drop the encryption", next.shown));
        }
        // A chain that comes back to where it began is followed anew each time: the origin stays the origin.
        Ok(Arc::new(next))
    }

    /// Keeps `target` as the place to ask first.
    fn remember(&self, target: &Arc<Target>) {
        let same = Arc::ptr_eq(&self.found.read().unwrap_or_else(PoisonError::into_inner), target);
        if !same {
            *self.found.write().unwrap_or_else(PoisonError::into_inner) = target.clone();
        }
    }

    /// Hands the body of an accepted answer to `sink`, as it arrives.
    fn pump(
        &self,
        lane: &mut Lane,
        response: Response<Body>,
        accepted: Accepted,
        span: Span,
        sink: &mut dyn Sink,
    ) -> Result<(), FetchError> {
        let mut buffer = lane.take_buffer();
        let result = self.copy(response, accepted, span, &mut buffer, sink);
        lane.buffer = buffer;
        if let Ok(true) = result {
            lane.good();
        }
        result.map(|_| ())
    }

    /// Answers whether the body was read to an end that leaves the connection usable.
    fn copy(
        &self,
        mut response: Response<Body>,
        accepted: Accepted,
        span: Span,
        buffer: &mut [u8],
        sink: &mut dyn Sink,
    ) -> Result<bool, FetchError> {
        let mut body = response.body_mut().as_reader();
        let too_long = || {
            let message = self.describe(&self.origin, span, "the server sent more than it announced");
            FetchError::Fatal(Error::new(errno::EPROTO, message))
        };
        let mut at = span.first;
        while at <= span.last {
            let due = span.last - at + 1;
            // Room for one byte too many, so that an overlong body shows.
            let room = usize::try_from(due).map_or(buffer.len(), |due| buffer.len().min(due.saturating_add(1)));
            let got = match body.read(&mut buffer[..room]) {
                Ok(0) => {
                    let message =
                        format!("the body ended after {} of {} bytes", at - span.first, span.last - span.first + 1);
                    return Err(FetchError::transient(self.describe(&self.origin, span, &message)));
                }
                Ok(got) => got,
                Err(error) => {
                    // Once a body has begun, what breaks it off may always pass.
                    let failure = Failure::of_io(&error, true, self.wiring.stall_timeout);
                    return Err(self.failed(&self.origin, span, failure));
                }
            };
            let good = got.min(usize::try_from(due).unwrap_or(got));
            sink.data(at, &buffer[..good]).map_err(|_| FetchError::Stopped)?;
            at += good as u64;
            if good < got {
                return Err(too_long());
            }
        }
        if !accepted.framed {
            // Only the end of the connection would tell more, and that may be long in coming.
            return Ok(false);
        }
        match body.read(&mut buffer[..1]) {
            Ok(0) => Ok(true),
            Ok(_) => Err(too_long()),
            // All bytes are here; only the connection is lost.
            Err(_) => Ok(false),
        }
    }

    fn describe(&self, target: &Target, span: Span, what: &str) -> String {
        let by_way = if target.origin == self.origin.origin || target.shown == self.origin.shown {
            String::new()
        } else {
            format!(" (redirected to {})", target.shown)
        };
        format!("{}{by_way}, bytes {}-{}: {what}", self.origin.shown, span.first, span.last)
    }

    fn failed(&self, target: &Target, span: Span, failure: Failure) -> FetchError {
        let message = self.describe(target, span, &failure.message);
        match failure.fatal {
            Some(errno) => FetchError::Fatal(Error::new(errno, message)),
            None => FetchError::transient(message),
        }
    }
}

impl Source for HttpSource {
    fn name(&self) -> String {
        self.origin.shown.clone()
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn fetch(&self, lane: usize, offset: u64, length: u64, sink: &mut dyn Sink) -> Result<(), FetchError> {
        let Some(span) = super::within(&self.identity, offset, length, &self.origin.shown)? else { return Ok(()) };
        let span = Span { first: span.start, last: span.end - 1 };
        let mut lane = self.lanes.lock(lane);
        let (response, accepted) = self.ask(&mut lane, span, Some(self.identity.size))?;
        self.pump(&mut lane, response, accepted, span, sink)
    }

    fn warm(&self, lane: usize) {
        // A lane that is busy is warm.
        let Some(mut lane) = self.lanes.try_lock(lane) else { return };
        if lane.is_ready() {
            return;
        }
        if let Ok((response, accepted)) = self.ask(&mut lane, FIRST_BYTE, Some(self.identity.size)) {
            let _ = self.pump(&mut lane, response, accepted, FIRST_BYTE, &mut Nowhere);
        }
    }

    fn renew(&self, lane: usize) {
        self.lanes.lock(lane).renew();
    }

    fn abort(&self) {
        self.wiring.abort();
    }

    fn requests(&self) -> u64 {
        self.wiring.requests.load(Ordering::Relaxed)
    }
}

/// Takes what nobody wants.
struct Nowhere;

impl Sink for Nowhere {
    fn data(&mut self, _: u64, _: &[u8]) -> Result<(), super::Stop> {
        Ok(())
    }

    fn zeroes(&mut self, _: u64, _: u64) -> Result<(), super::Stop> {
        Ok(())
    }
}

/// A URL as messages may show it: without credentials and without its query.
pub(super) fn shown(url: &str) -> Result<String, Error> {
    parse(url).map(|(target, _)| target.shown)
}

fn parse(url: &str) -> Result<(Target, Option<Credentials>), Error> {
    Target::parse(url).map_err(|reason| {
        // What is no URL is not repeated as a whole: it may hold a password all the same.
        let tail = url.rsplit_once('@').map_or(url, |(_, tail)| tail);
        Error::option("source", tail, reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn options(option: &str) -> HttpOptions {
        Config::parse(["source=http://h/x", option]).unwrap().http
    }

    #[test]
    fn a_pinned_source_opens_without_contact() {
        let pinned = Identity { size: 77, validator: Some("\"v\"".into()), mtime_s: None };
        // Nobody listens on port 1, and nobody is asked.
        let source = HttpSource::open("http://user:secret@127.0.0.1:1/x?k=v", &options("fill=on"), Some(&pinned)).ok();
        let source = source.expect("opens");
        assert_eq!((source.identity(), source.requests()), (&pinned, 0));
        assert_eq!(source.name(), "http://127.0.0.1:1/x?...");
    }
}
