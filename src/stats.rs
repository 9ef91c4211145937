//! What an image tells about itself.

use std::time::Duration;

/// A snapshot of an image's counters. All numbers count from the opening of the image unless they say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Size of the image, in bytes.
    pub size: u64,
    /// Bytes of it that are resident now.
    pub resident_bytes: u64,
    /// Bytes that came from the source.
    pub bytes_fetched: u64,
    /// Bytes known to be zero, not transferred.
    pub bytes_zero: u64,
    /// Fetched bytes dropped because the guest had overwritten them first.
    pub bytes_dropped: u64,
    /// Requests sent to the source.
    pub requests: u64,
    /// Fetches begun for a waiting guest.
    pub demand_fetches: u64,
    /// Fetches begun ahead of the guest.
    pub prefetch_fetches: u64,
    /// Fetches that failed; those that may pass are tried again.
    pub fetch_errors: u64,
    /// Guest requests that found all their blocks resident and touched some for the first time.
    pub first_hits: u64,
    /// Guest requests that the gate could not let through at once, flushes included.
    pub misses: u64,
    /// Guest requests that waited for bytes.
    pub stalls: u64,
    /// Of those, the ones whose bytes were on their way already.
    pub joined: u64,
    /// Time during which at least one guest request waited for bytes.
    pub stalled: Duration,
    /// Guest requests that wait now.
    pub waiting: u64,
    /// Flushes asked for by the guest.
    pub flushes: u64,
    /// Times that new blocks were made durable.
    pub checkpoints: u64,
    /// Measured rate of the link, in bytes a second; 0 when unknown.
    pub rate: u64,
    /// Measured round-trip time; zero when unknown.
    pub round_trip: Duration,
    /// True when the source can never answer again.
    pub failed: bool,
    /// Fetches that failed since one last succeeded; 0 when the link works.
    pub failures_on_end: u32,
}

/// A guest that waits for bytes longer than this on end is said to stall, where the future is spoken of: from about a
/// tenth of a second on a person notices that a machine hesitates. [`Stats::stalls`] counts all waits.
pub const STALL: Duration = Duration::from_millis(100);

/// Risk up to which a guest is called calm when nobody says otherwise: one stall in twenty times that one looks.
pub const CALM_RISK: f64 = 0.05;

/// What is to be expected in a time that somebody asked about, the *horizon*.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// Probability of at least one stall (see [`STALL`]) within the horizon, from 0 to 1.
    pub stall_risk: f64,
    /// Time within the horizon that the guest is expected to wait for bytes, short waits included.
    pub expected_stall: Duration,
    /// How long the guest would have to be held back from now on, until the risk of the horizon that then follows is
    /// low enough; zero when it is so now, `None` when it cannot be told how long, as while fetches fail on end.
    pub calm_in: Option<Duration>,
    /// True when this follows from sessions of the past, false when only from how often the guest stalled so far.
    pub foreseen: bool,
    /// Time until the image is complete if the link keeps its rate and the guest leaves it to the fill; `None` when the
    /// rate is unknown or fetches fail on end.
    pub complete_in: Option<Duration>,
    /// Bytes not resident yet.
    pub missing_bytes: u64,
}

/// The model that an image follows its guest by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelInUse {
    /// Sessions that were learnt into it, repetitions included; 0 while there is none.
    pub sessions: u64,
    /// For a person: where it is from, or why there is none.
    pub text: String,
    /// True once nobody looks for one, or a better one, any more.
    pub settled: bool,
}
