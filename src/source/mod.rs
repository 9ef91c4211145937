//! Sources: where the bytes of an image come from.
//!
//! A [`Source`] answers ranges of one image and knows its [`Identity`]. It never retries and never decides
//! policy: it says whether a failure may pass ([`FetchError::Transient`]) or never can ([`FetchError::Fatal`]),
//! and the planner decides what to do. What a source hands to its [`Sink`] is what the guest will see, so a
//! source checks everything that can be checked *before* the first byte goes there.
//!
//! [`open`] makes the source a configuration asks for:
//!
//! | `source=` | what |
//! |---|---|
//! | `http://...`, `https://...` | a web server that honours `Range` ([`HttpSource`]) |
//! | `file:PATH`, `file:///PATH`, a plain path | a file or block device; holes are not read ([`FileSource`]) |
//! | any of both with a path that ends in `.vmp`, and `#ROOT` behind it | a published image, all of it checked ([`PublishedSource`]) |
//! | `pattern:SIZE[,seed=N][,zero=PERCENT]` | computed contents, for tests ([`PatternSource`]) |
//!
//! With `mirror=` options the places stand in for each other ([`MirrorSource`]).
//!
//! # Faults on purpose
//!
//! `fault=RULE,RULE,...` makes any of them misbehave ([`FaultSource`]), so that an embedder can test too. Who
//! suffers is decided by the seed and the number of the request, counted in the order in which requests arrive. The image,
//! the tree and the packs of a published image suffer each by itself, before anything is checked.
//!
//! | rule | what happens |
//! |---|---|
//! | `seed=N` | another throw of all dice (default 0) |
//! | `error=5%` | so many requests fail before their first byte, in a way that may pass |
//! | `stall=1%:200ms` | so many pause for so long at some byte, then go on |
//! | `delay=500us` | each request begins so much later |
//! | `rtt=50ms` | a round trip that is added to each request |
//! | `rate=25mbit` | all requests share a link of this rate, first come, first served |
//! | `cut=2%` | so many break off at some byte; what came before is good |
//! | `short=3%` | so many end early and claim success: a breach of contract that the engine must notice |
//! | `corrupt=1%` | one bit is flipped in so many (only hashes can tell, those of a published image) |
//! | `fatal-after=1000` | after so many requests everything fails for good |
//! | `dead=10s..40s` | from 10 s to 40 s after opening nothing gets through; may be given several times |

pub mod fault;
pub mod file;
pub mod http;
pub mod mirror;
pub mod pattern;
pub mod published;
#[cfg(test)]
pub(crate) mod testing;

use std::ops::Range;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub use fault::{FaultControl, FaultSource, FaultSpec};
pub use file::FileSource;
pub use http::{Document, Found, HttpSource};
pub use mirror::MirrorSource;
pub use pattern::PatternSource;
pub use published::{FrameSink, Published, PublishedSource};

use crate::config::{Config, HttpOptions};
use crate::error::{Error, errno};

/// Lanes beyond those of the workers, for what a source fetches on its own account: hash pages on two, all else
/// on one. Their numbers follow [`crate::config::CONNECTIONS_MAX`].
pub(crate) const LANES_SPARE: usize = 3;

/// What to do when an image is not the one any more that a cache was made from.
const ADVICE_CHANGED: &str = "; start over with a new cache";

/// What pins an image: the same identity means the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Size of the image, in bytes.
    pub size: u64,
    /// Strong ETag (with its quotes) or Last-Modified date as the origin sent it; for a file its device, inode,
    /// size and modification time; for a pattern its seed; for a published image `root:` and the root hash. `None`
    /// when the origin gives nothing to pin.
    pub validator: Option<String>,
    /// Modification time of the published image, in seconds since 1970, where the origin says it.
    pub mtime_s: Option<i64>,
}

/// Why a range could not be fetched.
#[derive(Debug)]
pub enum FetchError {
    /// May pass: a cut link, a stalled or overloaded server. Worth a retry, after `retry_after` if the server
    /// asked for that.
    Transient {
        /// One line for a person.
        message: String,
        /// The server's own wish (Retry-After).
        retry_after: Option<Duration>,
    },
    /// Can never succeed: not found, forbidden, a changed image, a server that cannot send ranges.
    Fatal(Error),
    /// The sink refused more data.
    Stopped,
}

impl FetchError {
    /// A failure that may pass.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::Transient { message: message.into(), retry_after: None }
    }
}

impl From<Error> for FetchError {
    /// What is an [`Error`] already can never succeed.
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// The sink asks the source to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop;

/// Takes what a source delivers.
///
/// Offsets are absolute in the image, begin at the start of the range that was asked for and go on without a
/// gap; pieces may be of any length.
pub trait Sink {
    /// The next bytes of the range.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Stop>;
    /// The next `length` bytes of the range are zero and were not transferred.
    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), Stop>;
}

/// Where the bytes of one image come from. All methods may be called from several threads at once.
pub trait Source: Send + Sync {
    /// A name for messages, without credentials.
    fn name(&self) -> String;

    /// What this image is, as learnt when the source was opened.
    fn identity(&self) -> &Identity;

    /// Delivers `length` bytes from `offset` into `sink`, in order. Blocks; gives up by itself when the peer
    /// sends nothing for the stall limit. What was delivered before an error is good.
    ///
    /// `lane` is the number of the calling worker: a source may keep one connection for each.
    fn fetch(&self, lane: usize, offset: u64, length: u64, sink: &mut dyn Sink) -> Result<(), FetchError>;

    /// What is known of the image beyond its bytes, when it is a published one.
    fn published(&self) -> Option<Arc<Published>> {
        None
    }

    /// Delivers the blocks of these frames of the image's packs into `sink`, frame by frame, each of them checked. Blocks
    /// as [`Source::fetch`] does. Only published images have packs, and only after [`Published::set_frames`].
    fn fetch_frames(&self, lane: usize, frames: Range<u32>, sink: &mut dyn FrameSink) -> Result<(), FetchError> {
        let _ = (lane, frames, sink);
        Err(Error::new(errno::ENOTSUP, format!("{}: has no packs", self.name())).into())
    }

    /// Makes a connection ready for `lane` ahead of its next fetch, if none is. Failing is no error. Blocks like
    /// a fetch, so the lane's own worker calls it, when it has nothing else to do.
    fn warm(&self, lane: usize) {
        let _ = lane;
    }

    /// Has the next fetch of `lane` use a new connection, as what came over this one was damaged. The lane's own worker
    /// calls it.
    fn renew(&self, lane: usize) {
        let _ = lane;
    }

    /// Makes fetches that are under way return soon, and later ones at once: the image is closing.
    fn abort(&self) {}

    /// Number of requests that went to a server so far, for statistics.
    fn requests(&self) -> u64 {
        0
    }
}

/// Opens the source that `config` asks for. With a `pinned` identity, from an earlier session, web servers are
/// not contacted yet and everything they answer must fit it.
///
/// Blocks: while no server of an unknown image can be reached, it is tried again for `open_timeout`.
///
/// # Errors
/// EINVAL for bad options, EHOSTUNREACH when no server could be reached in time, ESTALE when the image is not
/// the pinned one, else what makes the source unusable (ENOENT, EACCES, EPROTO).
pub fn open(config: &Config, pinned: Option<&Identity>) -> Result<Box<dyn Source>, Error> {
    let faults = config.fault.as_deref().map(FaultSpec::parse).transpose()?;
    let give_up = Instant::now() + config.open_timeout;
    let mut wait = config.retry_min;
    loop {
        let (message, retry_after) = match open_places(config, pinned, faults.as_ref()) {
            Ok(source) => return Ok(source),
            Err(FetchError::Fatal(error)) => return Err(error),
            Err(FetchError::Transient { message, retry_after }) => (message, retry_after),
            // Nothing is fetched here that could be stopped.
            Err(FetchError::Stopped) => return Err(Error::new(errno::ECANCELED, "opening was stopped")),
        };
        let pause = retry_after.unwrap_or_default().max(wait);
        if Instant::now() + pause >= give_up {
            let limit = config.open_timeout;
            return Err(Error::new(errno::EHOSTUNREACH, format!("{message} (tried for {limit:?})")));
        }
        log::warn!("{message}; trying again for up to {:.0?}", give_up.saturating_duration_since(Instant::now()));
        sleep(pause);
        wait = (wait * 2).min(config.retry_max);
    }
}

fn open_places(
    config: &Config,
    pinned: Option<&Identity>,
    faults: Option<&FaultSpec>,
) -> Result<Box<dyn Source>, FetchError> {
    let names = config.sources.iter().map(|url| place_name(url)).collect::<Result<Vec<_>, Error>>()?;
    if let Some(links) = published_links(&config.sources, &names)? {
        let opener = published::Opener::new(links, pinned, &config.http, faults)?;
        if names.len() == 1 {
            return Ok(Box::new(opener.open(0, pinned)?));
        }
        let open =
            |at: usize, pinned: Option<&Identity>| opener.open(at, pinned).map(|s| Box::new(s) as Box<dyn Source>);
        return Ok(Box::new(MirrorSource::open(&names, pinned, &open)?));
    }
    let source = match &config.sources[..] {
        [] => return Err(FetchError::Fatal(Error::new(errno::EINVAL, "no source: give source=URL"))),
        [url] => open_place(url, &config.http, pinned.map(|id| mirror::pin_for(&names[0], 0, id)).as_ref())?,
        urls => {
            let open = |at: usize, pinned: Option<&Identity>| open_place(&urls[at], &config.http, pinned);
            Box::new(MirrorSource::open(&names, pinned, &open)?)
        }
    };
    Ok(match faults {
        Some(spec) => Box::new(FaultSource::new(source, spec.clone())),
        None => source,
    })
}

/// The links when the places are those of a published image; either all are or none.
fn published_links(sources: &[String], names: &[String]) -> Result<Option<Vec<published::Link>>, Error> {
    let mut links = Vec::new();
    for (source, name) in sources.iter().zip(names) {
        if let Some((address, root)) = published::Address::parse(source)? {
            links.push(published::Link { name: name.clone(), address, root });
        }
    }
    match links.len() {
        0 => Ok(None),
        all if all == sources.len() => Ok(Some(links)),
        _ => {
            let text = "source and mirrors: either all or none must be links to a published image (.vmp)";
            Err(Error::new(errno::EINVAL, text))
        }
    }
}

fn open_place(url: &str, options: &HttpOptions, pinned: Option<&Identity>) -> Result<Box<dyn Source>, FetchError> {
    let scheme = scheme(url);
    let rest = url.split_once(':').map_or(url, |(_, rest)| rest);
    Ok(match scheme {
        Some("http" | "https") => Box::new(HttpSource::open(url, options, pinned)?),
        Some("pattern") => Box::new(PatternSource::open(&format!("pattern:{rest}"), pinned)?),
        Some(_) => Box::new(FileSource::open(&format!("file:{rest}"), pinned)?),
        None => Box::new(FileSource::open(url, pinned)?),
    })
}

/// The name of a place before it is opened; refuses schemes nobody knows.
fn place_name(url: &str) -> Result<String, Error> {
    match scheme(url) {
        Some("http" | "https") => http::shown(url),
        Some("file" | "pattern") | None => published::shown(url),
        Some(_) => Err(Error::option(
            "source",
            // Only the scheme is repeated: the rest may hold a password.
            &format!("{}:...", url.split(':').next().unwrap_or_default()),
            "no such scheme; known are http:, https:, file:, pattern: and plain paths (write file:PATH for a path \
             with a colon)",
        )),
    }
}

/// The scheme of `url` in lower case; `None` for a plain path.
fn scheme(url: &str) -> Option<&'static str> {
    const KNOWN: [&str; 4] = ["http", "https", "file", "pattern"];
    let (name, _) = url.split_once(':')?;
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.')) {
        return None;
    }
    Some(KNOWN.into_iter().find(|known| known.eq_ignore_ascii_case(name)).unwrap_or("unknown"))
}

/// The byte range of a request; `None` for an empty one, an error for one that leaves the image.
fn within(identity: &Identity, offset: u64, length: u64, name: &str) -> Result<Option<Range<u64>>, FetchError> {
    match offset.checked_add(length) {
        Some(end) if end <= identity.size => Ok((length > 0).then_some(offset..end)),
        _ => {
            let text = format!("{name}: {length} bytes from {offset} leave the image of {} bytes", identity.size);
            Err(FetchError::Fatal(Error::new(errno::EINVAL, text)))
        }
    }
}

/// True when `found` is the image that `pinned` speaks of; what is not pinned does not count.
fn fits(pinned: &Identity, found: &Identity) -> bool {
    pinned.size == found.size && (pinned.validator.is_none() || pinned.validator == found.validator)
}

/// The bytes that a percent-encoded text stands for; a `%` without two digits stands for itself.
fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).filter(|hex| bytes[at] == b'%' && !hex.starts_with('+'));
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::Collector;

    fn config(options: &[&str]) -> Config {
        Config::parse(options).unwrap()
    }

    #[test]
    fn the_scheme_decides_and_an_unknown_one_is_told_what_is_known() {
        for url in ["pattern:1M", "PATTERN:1M"] {
            assert_eq!(open(&config(&[&format!("source={url}")]), None).ok().map(|s| s.identity().size), Some(1 << 20));
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        for prefix in ["", "file:", "file://"] {
            let option = format!("source={prefix}{}", file.path().display());
            assert_eq!(open(&config(&[&option]), None).ok().map(|s| s.identity().size), Some(4096), "{option}");
        }
        let text = open(&config(&["source=ftp://u:secret@h/x"]), None).err().unwrap().to_string();
        assert!(text.contains("https:") && text.contains("pattern:") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn mirrors_and_faults_wrap_what_is_opened() {
        let source = open(&config(&["source=pattern:1M", "mirror=pattern:1M", "fault=fatal-after=1"]), None);
        let source = source.ok().unwrap();
        assert!(source.name().contains(", "));
        assert!(source.fetch(0, 0, 100, &mut Collector::at(0)).is_ok());
        assert!(matches!(source.fetch(0, 0, 100, &mut Collector::at(0)), Err(FetchError::Fatal(_))));
        let again = open(&config(&["source=pattern:1M", "mirror=pattern:1M"]), Some(source.identity()));
        assert_eq!(again.ok().map(|s| s.identity().clone()).as_ref(), Some(source.identity()));
    }

    #[test]
    fn a_server_that_is_away_is_waited_for_and_then_named() {
        // Port 1 of this machine refuses at once.
        let away =
            config(&["source=http://u:secret@127.0.0.1:1/x", "proxy=none", "open_timeout=50ms", "retry_min=10ms"]);
        let error = open(&away, None).err().unwrap();
        assert_eq!(error.errno(), errno::EHOSTUNREACH);
        let text = error.to_string();
        assert!(text.contains("http://127.0.0.1:1/x") && text.contains("50ms") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn percent_signs_are_decoded_only_before_two_digits() {
        assert_eq!(percent_decoded("a%20b%%2fc%zz%+1%2"), b"a b%/c%zz%+1%2");
        assert_eq!(percent_decoded("ü%C3%BC"), "üü".as_bytes());
    }
}
