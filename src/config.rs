//! Options: every limit in one place, with its unit in its name.
//!
//! Options come as `key=value` strings, from the C ABI and from `--option` alike, so that a new option needs no
//! new symbol.

use std::path::PathBuf;
use std::time::Duration;

use crate::block::BLOCK_BYTES_DEFAULT;
use crate::error::{Error, Result};

/// How the blocks nobody asked for yet are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// Demand only.
    None,
    /// Adaptive readahead of sequential runs.
    Readahead,
}

impl Prefetch {
    /// Reads `readahead` or `none`.
    pub fn parse(key: &str, value: &str) -> Result<Self> {
        match value {
            "none" | "off" => Ok(Prefetch::None),
            "readahead" | "on" => Ok(Prefetch::Readahead),
            _ => Err(Error::option(key, value, "must be readahead or none")),
        }
    }
}

/// Where the sessions of an image are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sessions {
    /// In the cache, if there is one.
    Beside,
    /// Nowhere.
    Off,
    /// In this directory.
    In(PathBuf),
}

impl Sessions {
    /// Reads the name of a directory, or `off`.
    pub fn parse(key: &str, value: &str) -> Result<Self> {
        match value {
            "" => Err(Error::option(key, value, "must be a directory or off")),
            "off" => Ok(Self::Off),
            path => Ok(Self::In(PathBuf::from(path))),
        }
    }
}

/// Where the model comes from that an image follows its guest by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelChoice {
    /// From beside the image at its origin, and from the sessions that were recorded here.
    Auto,
    /// From nowhere.
    Off,
    /// From this file.
    File(PathBuf),
    /// From this web server.
    Url(String),
}

impl ModelChoice {
    /// Reads `auto`, `off`, a URL or the name of a file.
    pub fn parse(key: &str, value: &str) -> Result<Self> {
        let web = |scheme: &&str| value.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme));
        match value {
            "" => Err(Error::option(key, value, "must be auto, off, a file or a URL")),
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            url if ["http://", "https://"].iter().any(web) => Ok(Self::Url(url.to_owned())),
            path => Ok(Self::File(PathBuf::from(path))),
        }
    }
}

/// Whether sessions are sent to whoever publishes the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upload {
    /// Nothing is sent.
    Off,
    /// To where the image's pointer says.
    On,
    /// To this URL.
    To(String),
}

impl Upload {
    /// Reads `on`, `off` or a URL.
    pub fn parse(key: &str, value: &str) -> Result<Self> {
        let web = |scheme: &&str| value.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme));
        match value {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            url if ["http://", "https://"].iter().any(web) => Ok(Self::To(url.to_owned())),
            _ => Err(Error::option(key, value, "must be on, off or a URL")),
        }
    }
}

/// Options of HTTP sources.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// `proxy=URL`: proxy for all requests; without it `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` hold.
    pub proxy: Option<String>,
    /// `user=NAME:PASSWORD`: sent as basic authorization, to the origin only.
    pub user: Option<String>,
    /// `header=Name: value`, repeatable: extra request headers, to the origin only.
    pub headers: Vec<(String, String)>,
    /// `cacert=FILE`: PEM file of the authorities to trust instead of the built-in ones.
    pub cacert: Option<PathBuf>,
    /// `connect_timeout=10s`: limit of name look-up, connection and TLS handshake.
    pub connect_timeout: Duration,
    /// `stall_timeout=10s`: no byte for so long ends a request, to be tried again.
    pub stall_timeout: Duration,
}

/// All options of an image.
#[derive(Clone, Debug)]
pub struct Config {
    /// `source=URL` (or `url=`) and any number of `mirror=URL`, in order of preference.
    pub sources: Vec<String>,
    /// Options of HTTP sources.
    pub http: HttpOptions,
    /// `fault=SPEC`: injects faults into the source; see [`crate::source`].
    pub fault: Option<String>,
    /// `cache=DIR`: where the sparse image and its journal live; without it a nameless temporary file is used.
    pub cache: Option<PathBuf>,
    /// `file=PATH`: the sparse image itself, its journal beside it; for [`crate::config::Config::cache`] it is `DIR/disk`.
    pub file: Option<PathBuf>,
    /// `block_size=4096`, in bytes.
    pub block_bytes: u64,
    /// Whether `block_size` was given; a cache keeps the one it was made with.
    pub block_bytes_given: bool,
    /// `read_only=on`: guest writes are refused.
    pub read_only: bool,
    /// `connections=16`: fetch threads, each with a connection of its own.
    pub connections: usize,
    /// `prefetch=readahead|none`.
    pub prefetch: Prefetch,
    /// `fill=on|off`: use what is left of the link to complete the image.
    pub fill: bool,
    /// Whether `fill` was given; without a named cache the fill is off unless asked for.
    pub fill_given: bool,
    /// `bulk=on`: nobody waits for single blocks, so use the largest requests (`vmstream fetch`).
    pub bulk: bool,
    /// `error_after=0`: a demand that fails for so long is answered with -EIO; 0 = wait without end.
    pub error_after: Option<Duration>,
    /// `retry_min=100ms`: first back-off.
    pub retry_min: Duration,
    /// `retry_max=5s`: longest back-off.
    pub retry_max: Duration,
    /// `open_timeout=30s`: how long `open` tries to reach the origin of an image it does not know yet.
    pub open_timeout: Duration,
    /// `checkpoint=1s`: at most so long passes until what arrived is durable, while data flows.
    pub checkpoint: Duration,
    /// `model=auto|off|FILE|URL`: what earlier sessions of this image have taught, to follow the guest by.
    pub model: ModelChoice,
    /// `sessions=DIR|off`: where what the guest asks for is recorded; without it in `sessions` of the cache.
    pub sessions: Sessions,
    /// `sessions_max=64M`: bytes of all sessions in that directory; the oldest go.
    pub sessions_bytes_max: u64,
    /// `upload=off|on|URL`: sends recorded sessions of a published image, block numbers and times, to its publisher.
    pub upload: Upload,
    /// `upload_token=FILE`: a file whose first line lets sessions in there.
    pub upload_token: Option<PathBuf>,
    /// `ring=1024`: misses that may wait for the engine, a power of two.
    pub ring: usize,
    /// `pending_max=16384`: requests that may be unanswered at once.
    pub pending_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            http: HttpOptions {
                proxy: None,
                user: None,
                headers: Vec::new(),
                cacert: None,
                connect_timeout: Duration::from_secs(10),
                stall_timeout: Duration::from_secs(10),
            },
            fault: None,
            cache: None,
            file: None,
            block_bytes: BLOCK_BYTES_DEFAULT,
            block_bytes_given: false,
            read_only: false,
            connections: 16,
            prefetch: Prefetch::Readahead,
            fill: true,
            fill_given: false,
            bulk: false,
            error_after: None,
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
            open_timeout: Duration::from_secs(30),
            checkpoint: Duration::from_secs(1),
            model: ModelChoice::Auto,
            sessions: Sessions::Beside,
            sessions_bytes_max: 64 << 20,
            upload: Upload::Off,
            upload_token: None,
            ring: 1024,
            pending_max: 16 << 10,
        }
    }
}

/// Least room for sessions, in bytes: a quarter of it, which one session gets, still holds the boot of a small guest.
const SESSIONS_BYTES_MIN: u64 = 256 << 10;
/// Most fetch threads an image may have.
pub const CONNECTIONS_MAX: usize = 63;

impl Config {
    /// Reads options in order; a later value of a key replaces an earlier one, but `mirror` and `header` add up.
    pub fn parse<S: AsRef<str>>(options: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut config = Self::default();
        let mut mirrors = Vec::new();
        for option in options {
            let option = option.as_ref();
            let Some((key, value)) = option.split_once('=') else {
                return Err(Error::option(option, "", "options have the form key=value"));
            };
            if key == "mirror" {
                mirrors.push(value.to_owned());
            } else {
                config.apply(key, value)?;
            }
        }
        config.sources.append(&mut mirrors);
        if config.sources.is_empty() {
            return Err(Error::new(
                crate::error::errno::EINVAL,
                "no source: give source=URL (http, https, file or pattern)",
            ));
        }
        if config.cache.is_some() && config.file.is_some() {
            return Err(Error::new(crate::error::errno::EINVAL, "options cache and file exclude each other"));
        }
        Ok(config)
    }

    fn apply(&mut self, key: &str, value: &str) -> Result<()> {
        let bad = |reason: &str| Error::option(key, value, reason);
        match key {
            "source" | "url" => self.sources = vec![value.to_owned()],
            "proxy" => self.http.proxy = Some(value.to_owned()),
            "user" => self.http.user = Some(value.to_owned()),
            "header" => {
                let (name, text) = value.split_once(':').ok_or_else(|| bad("must be Name: value"))?;
                self.http.headers.push((name.trim().to_owned(), text.trim().to_owned()));
            }
            "cacert" => self.http.cacert = Some(PathBuf::from(value)),
            "connect_timeout" => self.http.connect_timeout = duration_positive(key, value)?,
            "stall_timeout" => self.http.stall_timeout = duration_positive(key, value)?,
            "fault" => self.fault = Some(value.to_owned()),
            "model" => self.model = ModelChoice::parse(key, value)?,
            "cache" => self.cache = Some(PathBuf::from(value)),
            "file" => self.file = Some(PathBuf::from(value)),
            "block_size" => {
                self.block_bytes = parse_size(key, value)?;
                self.block_bytes_given = true;
            }
            "read_only" => self.read_only = parse_switch(key, value)?,
            "connections" => self.connections = number(key, value, 1, CONNECTIONS_MAX)?,
            "prefetch" => self.prefetch = Prefetch::parse(key, value)?,
            "fill" => {
                self.fill = parse_switch(key, value)?;
                self.fill_given = true;
            }
            "bulk" => self.bulk = parse_switch(key, value)?,
            "error_after" => self.error_after = Some(parse_duration(key, value)?).filter(|d| !d.is_zero()),
            "retry_min" => self.retry_min = duration_positive(key, value)?,
            "retry_max" => self.retry_max = duration_positive(key, value)?,
            "open_timeout" => self.open_timeout = parse_duration(key, value)?,
            "checkpoint" => self.checkpoint = duration_positive(key, value)?,
            "sessions" => self.sessions = Sessions::parse(key, value)?,
            "sessions_max" => {
                self.sessions_bytes_max = parse_size(key, value)?;
                if self.sessions_bytes_max < SESSIONS_BYTES_MIN {
                    return Err(bad("must be at least 256K; sessions=off records nothing"));
                }
            }
            "upload" => self.upload = Upload::parse(key, value)?,
            "upload_token" => self.upload_token = Some(PathBuf::from(value)),
            "ring" => {
                self.ring = number(key, value, 2, 1 << 20)?;
                if !self.ring.is_power_of_two() {
                    return Err(bad("must be a power of two"));
                }
            }
            "pending_max" => self.pending_max = number(key, value, 1, 1 << 20)?,
            _ => return Err(bad("no such option; vmstream-mount(1) lists them")),
        }
        Ok(())
    }
}

fn number(key: &str, value: &str, min: usize, max: usize) -> Result<usize> {
    match value.parse::<usize>() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(Error::option(key, value, format_args!("must be a whole number from {min} to {max}"))),
    }
}

/// Reads `on`/`off` (also `yes`/`no`, `true`/`false`, `1`/`0`).
pub fn parse_switch(key: &str, value: &str) -> Result<bool> {
    match value {
        "on" | "yes" | "true" | "1" => Ok(true),
        "off" | "no" | "false" | "0" => Ok(false),
        _ => Err(Error::option(key, value, "must be on or off")),
    }
}

/// Reads a size in bytes with an optional binary suffix K, M, G or T.
pub fn parse_size(key: &str, value: &str) -> Result<u64> {
    let (digits, shift) = match value.char_indices().last() {
        Some((at, 'K' | 'k')) => (&value[..at], 10),
        Some((at, 'M' | 'm')) => (&value[..at], 20),
        Some((at, 'G' | 'g')) => (&value[..at], 30),
        Some((at, 'T' | 't')) => (&value[..at], 40),
        _ => (value, 0),
    };
    let size = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    size.ok_or_else(|| Error::option(key, value, "must be a size in bytes, or with K, M, G or T"))
}

/// Reads a duration: a number with `us`, `ms`, `s` or `m`; seconds without a unit.
pub fn parse_duration(key: &str, value: &str) -> Result<Duration> {
    let at = value.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(value.len());
    let (digits, unit) = value.split_at(at);
    let scale = match unit {
        "" | "s" => 1.0,
        "us" => 1e-6,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        _ => f64::NAN,
    };
    let seconds = digits.parse::<f64>().unwrap_or(f64::NAN) * scale;
    if !(0.0..=1e9).contains(&seconds) {
        return Err(Error::option(key, value, "must be a duration such as 500ms, 10s or 2m"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn duration_positive(key: &str, value: &str) -> Result<Duration> {
    let duration = parse_duration(key, value)?;
    if duration.is_zero() {
        return Err(Error::option(key, value, "must be longer than 0"));
    }
    Ok(duration)
}

/// Reads a rate in bits per second: `25mbit`, `1gbit`, `800kbit`, or plain bits; answers bytes per second.
pub fn parse_rate(key: &str, value: &str) -> Result<u64> {
    let lower = value.to_ascii_lowercase();
    let (digits, scale) = [("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1.0), ("", 1.0)]
        .into_iter()
        .find_map(|(unit, scale)| lower.strip_suffix(unit).map(|digits| (digits, scale)))
        .unwrap_or((&lower, 1.0));
    let bytes_s = digits.trim().parse::<f64>().unwrap_or(f64::NAN) * scale / 8.0;
    if !(1.0..=1e12).contains(&bytes_s) {
        return Err(Error::option(key, value, "must be a rate such as 25mbit, 1gbit or 800kbit"));
    }
    Ok(bytes_s as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_the_last_one_holds() {
        let c = Config::parse([
            "url=http://a/x",
            "mirror=http://b/x",
            "source=http://c/x",
            "retry_max=2m",
            "block_size=64K",
        ])
        .unwrap();
        assert_eq!(c.sources, ["http://c/x", "http://b/x"]);
        assert_eq!(c.retry_max, Duration::from_secs(120));
        assert_eq!(c.block_bytes, 65536);
    }

    #[test]
    fn bad_options_are_named() {
        for (option, part) in [
            ("conections=3", "no such option"),
            ("connections=0", "from 1 to 63"),
            ("fill=maybe", "on or off"),
            ("stall_timeout=0", "longer than 0"),
            ("retry_min=3 parsecs", "duration"),
            ("block_size=4Q", "size"),
            ("ring=3", "power of two"),
            ("sessions=", "directory or off"),
            ("sessions_max=255K", "at least 256K"),
            ("plain", "key=value"),
        ] {
            let text = Config::parse(["source=pattern:1M", option]).unwrap_err().to_string();
            assert!(text.contains(part) && text.contains(option.split('=').next().unwrap()), "{option}: {text}");
        }
        assert!(Config::parse::<&str>([]).unwrap_err().to_string().contains("source=URL"));
    }

    #[test]
    fn rates_are_bits_and_answers_are_bytes() {
        assert_eq!(parse_rate("rate", "25mbit").unwrap(), 3_125_000);
        assert_eq!(parse_rate("rate", "8000").unwrap(), 1000);
        assert!(parse_rate("rate", "fast").is_err());
    }
}
