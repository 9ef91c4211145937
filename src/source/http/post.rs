//! Sending something small to a web server, whole and in one request.
//!
//! It goes the way of an image's requests: proxies, credentials, authorities and limits of silence are those of the
//! options. A redirect is not followed: what is sent goes where it was meant to go or nowhere.

use std::io::Read;

use ureq::http::{HeaderValue, Method, Request, header};

use super::{Failure, HttpSource, Target};
use crate::config::HttpOptions;
use crate::error::{Error, errno};
use crate::source::FetchError;

/// Most bytes of an answer that are read: it is one line for a person.
const ANSWER_BYTES_MAX: u64 = 512;

/// A place on a web server that takes things.
pub struct Delivery {
    http: HttpSource,
    token: Option<HeaderValue>,
}

/// What the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status of HTTP.
    pub status: u16,
    /// The beginning of the answer's text, fit to be shown.
    pub text: String,
}

/// True when both URLs have the same scheme, host and port, so that what is secret for one may be told to the other.
pub fn same_origin(one: &str, other: &str) -> bool {
    let origin = |url| Target::parse(url).map(|(target, _)| target.origin).ok();
    origin(one).is_some_and(|origin_of_one| Some(origin_of_one) == origin(other))
}

impl Delivery {
    /// The place at `url`, which `token` lets in. Contacts nobody. Errors: bad options, a token that no header can hold.
    pub fn to(url: &str, options: &HttpOptions, token: Option<&str>) -> Result<Self, FetchError> {
        let bearer = |token: &str| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| Error::new(errno::EINVAL, "the upload token has characters that no header can hold"))?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        };
        Ok(Self { token: token.map(bearer).transpose()?, http: HttpSource::unopened(url, options)? })
    }

    /// The address for messages, without credentials.
    pub fn name(&self) -> String {
        self.http.origin.shown.clone()
    }

    /// Sends `body` by POST and waits for the answer, whatever it is. Blocks. It may arrive twice: a connection that was
    /// dropped while it was idle is replaced unseen.
    ///
    /// # Errors
    /// Transient when nobody answers in time; Fatal when it can never work.
    pub fn send(&self, body: &[u8]) -> Result<Reply, FetchError> {
        let Self { http, token } = self;
        let route = http.routes.to(&http.origin);
        let request = || {
            let mut request = Request::new(body);
            *request.method_mut() = Method::POST;
            *request.uri_mut() = http.origin.uri.clone();
            let headers = request.headers_mut();
            *headers = http.headers_origin.clone();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            if let Some(token) = token {
                headers.insert(header::AUTHORIZATION, token.clone());
            }
            if let Some((_, Some(credentials))) = &route.forward {
                headers.insert(header::PROXY_AUTHORIZATION, credentials.clone());
            }
            request
        };
        let failed = |failure: Failure| {
            let message = format!("{}: {}", self.name(), failure.message);
            match failure.fatal {
                Some(errno) => FetchError::Fatal(Error::new(errno, message)),
                None => FetchError::transient(message),
            }
        };
        let mut lane = http.lanes.lock(0);
        let mut response = lane.send(&http.wiring, http.origin.origin.https, &route, request, false).map_err(failed)?;
        let mut text = Vec::new();
        // The status has said what counts; a text that breaks off is none.
        let _ = response.body_mut().as_reader().take(ANSWER_BYTES_MAX).read_to_end(&mut text);
        let clean = |c: char| if c.is_control() { ' ' } else { c };
        let text = String::from_utf8_lossy(&text).trim().chars().map(clean).collect();
        Ok(Reply { status: response.status().as_u16(), text })
    }

    /// Makes a delivery that is under way return soon, and later ones at once.
    pub fn abort(&self) {
        self.http.wiring.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_with_their_origin() {
        assert!(same_origin("http://h/disk.vmp", "http://u:p@H:80/sessions/disk"));
        for other in ["https://h/x", "http://h:81/x", "http://evil/x", "file:x", "sessions/disk"] {
            assert!(!same_origin("http://h/disk.vmp", other), "{other}");
        }
        assert!(!same_origin("/a", "/a"));
    }

    #[test]
    fn a_token_that_breaks_a_header_is_refused_and_not_repeated() {
        let options = crate::config::Config::default().http;
        let Err(FetchError::Fatal(error)) = Delivery::to("http://h/x", &options, Some("secret\nX: y")) else {
            panic!("it was taken");
        };
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
