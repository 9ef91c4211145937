//! What a running image tells: the progress line and the status file.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use vmstream::Image;
use vmstream::error::{Error, Result};
use vmstream::stats::{Forecast, Stats};

use crate::files;
use crate::progress::{Meter, Snapshot};

/// The status file. Its keys are part of the tool's interface: they are added to, never renamed.
#[derive(Serialize)]
struct Status {
    source: String,
    size: u64,
    resident_bytes: u64,
    complete: bool,
    bytes_fetched: u64,
    bytes_zero: u64,
    bytes_dropped: u64,
    requests: u64,
    demand_fetches: u64,
    prefetch_fetches: u64,
    fetch_errors: u64,
    first_hits: u64,
    misses: u64,
    demand_stalls: u64,
    joined: u64,
    stall_s: f64,
    waiting: u64,
    flushes: u64,
    checkpoints: u64,
    rate_bytes_s: u64,
    round_trip_ms: f64,
    complete_in_s: Option<f64>,
    stall_risk: f64,
    expected_stall_s: f64,
    calm_in_s: Option<f64>,
    foreseen: bool,
    failed: bool,
    failures_on_end: u32,
    model: String,
    model_sessions: u64,
    last_error: Option<String>,
}

/// How often progress and status are renewed.
pub const REPORT_EVERY: Duration = Duration::from_millis(500);

/// How far the status file looks ahead: far enough to act on, near enough to be known.
pub const FORECAST: Duration = Duration::from_secs(30);

/// Where a command reports to.
#[derive(Args)]
pub struct ReportArgs {
    /// Keep the state in this file, as one JSON object that is replaced about twice a second
    #[arg(long, value_name = "FILE")]
    pub json_status: Option<PathBuf>,

    /// Show progress even when standard error is no terminal
    #[arg(long)]
    pub progress: bool,
}

/// Reports to a terminal and a file.
pub struct Reporter {
    file: Option<PathBuf>,
    meter: Meter,
    arrived: (Instant, u64),
    waiting_since: Option<Instant>,
    /// The status file could not be written, and that was said.
    refused: bool,
}

impl Reporter {
    /// A reporter as the command line wants it. Fails when the status file cannot be written, so that a slip shows
    /// before anything else is done.
    pub fn new(args: &ReportArgs) -> Result<Self> {
        let file = args.json_status.clone();
        if let Some(file) = &file {
            files::replace(file, "{}\n")?;
        }
        Ok(Self {
            file,
            meter: Meter::new(args.progress),
            arrived: (Instant::now(), 0),
            waiting_since: None,
            refused: false,
        })
    }

    /// Shows a line of another kind in the place of progress.
    pub fn announce(&mut self, line: &str) {
        self.meter.show(line);
    }

    /// Reports the present state.
    pub fn report(&mut self, image: &Image) {
        let stats = image.stats();
        let now = Instant::now();
        let (before, bytes) = std::mem::replace(&mut self.arrived, (now, stats.bytes_fetched));
        let seconds = now.duration_since(before).as_secs_f64().max(1e-3);
        if stats.waiting == 0 {
            self.waiting_since = None;
        } else {
            self.waiting_since.get_or_insert(now);
        }
        self.meter.draw(&Snapshot {
            rate_bytes_s: ((stats.bytes_fetched - bytes) as f64 / seconds) as u64,
            round_trip: Some(stats.round_trip).filter(|d| !d.is_zero()),
            resident_bytes: stats.resident_bytes,
            image_bytes: stats.size,
            stall: self.waiting_since.map(|since| now.duration_since(since)),
        });
        self.write(image, &stats, &image.forecast(FORECAST));
    }

    /// Renews the status file alone, with this forecast for [`FORECAST`], where another line stands in the place of progress.
    pub fn renew(&mut self, image: &Image, forecast: &Forecast) {
        self.write(image, &image.stats(), forecast);
    }

    /// A status file that cannot be written any more (a full disk, a directory that went away) is said once and tried
    /// again: a guest must not lose its disk over it.
    fn write(&mut self, image: &Image, stats: &Stats, forecast: &Forecast) {
        let Some(file) = &self.file else { return };
        match text(image, stats, forecast).and_then(|text| files::replace(file, &text)) {
            Ok(()) => self.refused = false,
            Err(error) if !self.refused => {
                self.refused = true;
                log::warn!("{error}; trying again");
            }
            Err(_) => {}
        }
    }
}

fn text(image: &Image, stats: &Stats, forecast: &Forecast) -> Result<String> {
    let model = image.model();
    let status = Status {
        source: image.source_name(),
        size: stats.size,
        resident_bytes: stats.resident_bytes,
        complete: stats.resident_bytes == stats.size,
        bytes_fetched: stats.bytes_fetched,
        bytes_zero: stats.bytes_zero,
        bytes_dropped: stats.bytes_dropped,
        requests: stats.requests,
        demand_fetches: stats.demand_fetches,
        prefetch_fetches: stats.prefetch_fetches,
        fetch_errors: stats.fetch_errors,
        first_hits: stats.first_hits,
        misses: stats.misses,
        demand_stalls: stats.stalls,
        joined: stats.joined,
        stall_s: stats.stalled.as_secs_f64(),
        waiting: stats.waiting,
        flushes: stats.flushes,
        checkpoints: stats.checkpoints,
        rate_bytes_s: stats.rate,
        round_trip_ms: stats.round_trip.as_secs_f64() * 1e3,
        complete_in_s: forecast.complete_in.map(|d| d.as_secs_f64()),
        stall_risk: forecast.stall_risk,
        expected_stall_s: forecast.expected_stall.as_secs_f64(),
        calm_in_s: forecast.calm_in.map(|d| d.as_secs_f64()),
        foreseen: forecast.foreseen,
        failed: stats.failed,
        failures_on_end: stats.failures_on_end,
        model: model.text,
        model_sessions: model.sessions,
        last_error: image.last_error(),
    };
    let json = serde_json::to_string_pretty(&status);
    Ok(json.map_err(|e| Error::io("cannot write the status", e.into()))? + "\n")
}
