//! A small file on a web server, fetched as a whole: a model that lies beside an image, the
//! pointer to a published one.
//!
//! It comes over the same code as an image - redirects, proxies, credentials, authorities, checked answers - so what the
//! options of the image say holds for it too.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::response::{Expected, check, total};
use super::{FIRST_BYTE, HttpSource, Span};
use crate::config::HttpOptions;
use crate::error::{Error, errno};
use crate::source::{FetchError, Sink, Source, Stop};

/// A file on a web server, not asked for yet.
pub struct Document(HttpSource);

/// What was found there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// What is known already.
    Unchanged,
    /// This, and what tells it from other versions, if the server says.
    New {
        /// The whole file.
        bytes: Vec<u8>,
        /// Strong ETag or date, as in [`crate::source::Identity`].
        validator: Option<String>,
    },
}

/// Takes bytes in order.
struct Collected(Vec<u8>);

impl Sink for Collected {
    fn data(&mut self, _: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn zeroes(&mut self, _: u64, length: u64) -> Result<(), Stop> {
        self.0.resize(self.0.len() + length as usize, 0);
        Ok(())
    }
}

impl Document {
    /// The file at `url`. Contacts nobody. Errors: bad options.
    pub fn at(url: &str, options: &HttpOptions) -> Result<Self, FetchError> {
        HttpSource::unopened(url, options).map(Self)
    }

    /// The address for messages, without credentials.
    pub fn name(&self) -> String {
        self.0.name()
    }

    /// Fetches the file, unless it still has the validator `known`. Blocks. Errors: those of fetching an image (ENOENT where
    /// nothing is there), and EFBIG, before anything is transferred, when it has more than `bytes_max` bytes.
    pub fn fetch(&self, bytes_max: u64, known: Option<&str>) -> Result<Found, FetchError> {
        let identity = self.0.probe()?;
        if known.is_some() && identity.validator.as_deref() == known {
            return Ok(Found::Unchanged);
        }
        if identity.size > bytes_max {
            let text =
                format!("{} has {} bytes, more than the {bytes_max} that are fetched", self.name(), identity.size);
            return Err(FetchError::Fatal(Error::new(errno::EFBIG, text)));
        }
        let span = Span { first: FIRST_BYTE.first, last: identity.size.saturating_sub(1) };
        let mut lane = self.0.lanes.lock(0);
        let (response, accepted) = self.0.ask(&mut lane, span, Some(identity.size))?;
        let mut bytes = Collected(Vec::with_capacity(identity.size as usize));
        self.0.pump(&mut lane, response, accepted, span, &mut bytes)?;
        Ok(Found::New { bytes: bytes.0, validator: identity.validator })
    }

    /// Fetches the file in one request, without regard to what was there before. Blocks. Errors: those of
    /// [`Document::fetch`].
    ///
    /// The answer may be shorter than what is asked for, as a file's end cuts any range; but it has to say that it is
    /// all there is.
    pub fn fetch_small(&self, bytes_max: u64) -> Result<Vec<u8>, FetchError> {
        let source = &self.0;
        let asked = Span { first: 0, last: bytes_max.max(1) - 1 };
        let mut lane = source.lanes.lock(0);
        let (response, target) = source.exchange(&mut lane, asked)?;
        let total = total(response.headers());
        if let Some(total) = total.filter(|total| *total > bytes_max) {
            let text = format!("{} has {total} bytes, more than the {bytes_max} that are fetched", self.name());
            return Err(FetchError::Fatal(Error::new(errno::EFBIG, text)));
        }
        let span = Span { first: 0, last: total.map_or(asked.last, |total| total.max(1) - 1) };
        let expected = Expected { first: 0, last: span.last, size: None, validator: None, mtime_s: None };
        let accepted = check(response.status(), response.headers(), &expected, SystemTime::now());
        let accepted = accepted.map_err(|refused| source.refused(&target, span, refused))?;
        source.reached.store(true, Ordering::Relaxed);
        source.remember(&target);
        let mut bytes = Collected(Vec::new());
        source.pump(&mut lane, response, accepted, span, &mut bytes)?;
        Ok(bytes.0)
    }

    /// A file of `size` bytes beside this one, `name` being a relative reference. Contacts nobody, and shares this file's
    /// connections. Errors: a name that makes no address.
    pub fn beside(&self, name: &str, size: u64) -> Result<HttpSource, FetchError> {
        self.0.beside(name, size)
    }

    /// Number of requests so far, for this file and those that were opened beside it.
    pub fn requests(&self) -> u64 {
        self.0.requests()
    }

    /// Has the next fetch of `lane`, of this file or one beside it, use a new connection.
    pub(in crate::source) fn renew(&self, lane: usize) {
        self.0.renew(lane);
    }

    /// Makes a fetch that is under way return soon, and later ones at once.
    pub fn abort(&self) {
        self.0.abort();
    }
}
