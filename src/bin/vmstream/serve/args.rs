//! The arguments of `vmstream serve`.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use vmstream::config::{parse_duration, parse_rate, parse_size};

use super::link::Shape;
use crate::parse_with;

/// Least window: one piece on a slow link.
const WINDOW_BYTES_MIN: u64 = 4 << 10;
/// Largest window: bounds what one connection can hold in memory.
const WINDOW_BYTES_MAX: u64 = 64 << 20;

/// Serve the files of a directory over HTTP, for images to be streamed from
///
/// Answers GET and HEAD with ranges and conditions. Where images are published, / is a page about them, and /metrics has
/// counters for Prometheus. Files and directories whose names begin with a dot are not
/// served, nor is anything outside DIR that a symbolic link leads to. With --rate, --rtt or --down all connections
/// share one shaped link, so that on one machine things go as they would over a slow line.
///
/// SIGINT, SIGTERM or SIGHUP lets responses under way end, for ten seconds at most; a second signal ends at once. SIGUSR1
/// writes the statistics.
#[derive(Args)]
pub struct ServeArgs {
    /// Directory to serve
    pub dir: PathBuf,

    /// Address and port to listen on; port 0 takes any free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    pub listen: String,

    /// Write the port to this file when ready, instead of printing the URL
    #[arg(long, value_name = "FILE")]
    pub port_file: Option<PathBuf>,

    /// Rate of the link towards the clients, such as 25mbit
    #[arg(long, value_parser = |s: &str| parse_with(s, parse_rate))]
    pub rate: Option<u64>,

    /// Round-trip time of the link, such as 50ms
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = |s: &str| parse_with(s, parse_duration))]
    pub rtt: Duration,

    /// Most bytes of one connection in the queue of the link
    #[arg(long, value_name = "SIZE", default_value = "256K", value_parser = window)]
    pub window: usize,

    /// Cut the link from one time after the start to another, such as 10s..40s; repeatable
    #[arg(long, value_name = "FROM..TO", value_parser = cut)]
    pub down: Vec<Range<Duration>>,

    /// Write statistics to this file at the end and on SIGUSR1, as JSON
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,

    /// Log each answer to this file, with times in microseconds
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,

    /// Believe the proxy in front: X-Forwarded-For has the client's address last, X-Forwarded-Proto says http or https
    #[arg(long)]
    pub trust_proxy: bool,

    #[command(flatten)]
    pub collecting: CollectArgs,
}

/// How sessions are taken.
#[derive(Args)]
#[command(next_help_heading = "Collecting sessions")]
pub struct CollectArgs {
    /// Take sessions of published images, learn from them and publish what was learnt
    #[arg(long)]
    pub collect: bool,

    /// Take sessions only with one of the tokens in this file, one a line
    #[arg(long, value_name = "FILE", requires = "collect")]
    pub token: Option<PathBuf>,

    /// Most sessions that one client address may send in a minute
    #[arg(long, value_name = "N", default_value_t = 60, requires = "collect", value_parser = clap::value_parser!(u32).range(1..=6000))]
    pub session_rate: u32,

    /// Room for the sessions of each image; in a full one the oldest go of the client that has most
    #[arg(long, value_name = "SIZE", default_value = "256M", requires = "collect", value_parser = |s: &str| parse_with(s, parse_size))]
    pub history: u64,

    /// Learn when so many sessions of an image are new
    #[arg(long, value_name = "N", default_value_t = 16, requires = "collect", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub retrain_after: u32,

    /// Learn when a new session has waited for so long, even if there are fewer
    #[arg(long, value_name = "TIME", default_value = "10m", requires = "collect", value_parser = |s: &str| parse_with(s, parse_duration))]
    pub retrain_every: Duration,
}

fn window(text: &str) -> std::result::Result<usize, String> {
    let bytes = parse_with(text, parse_size)?;
    let allowed = WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX;
    let in_range = usize::try_from(bytes).ok().filter(|_| allowed.contains(&bytes));
    in_range.ok_or_else(|| format!("must be from {WINDOW_BYTES_MIN} to {WINDOW_BYTES_MAX} bytes"))
}

fn cut(text: &str) -> std::result::Result<Range<Duration>, String> {
    let (from, to) = text.split_once("..").ok_or("must be two times, such as 10s..40s")?;
    let cut = parse_with(from, parse_duration)?..parse_with(to, parse_duration)?;
    if cut.is_empty() {
        return Err("must end after it begins".to_owned());
    }
    Ok(cut)
}

impl ServeArgs {
    /// The link that the options describe.
    pub fn shape(&self) -> Shape {
        let mut cuts = self.down.clone();
        cuts.sort_by_key(|cut| cut.start);
        Shape { rate_bytes_s: self.rate, round_trip: self.rtt, window_bytes: self.window, cuts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_and_windows_are_checked() {
        assert_eq!(cut("10s..40s"), Ok(Duration::from_secs(10)..Duration::from_secs(40)));
        assert_eq!(cut("0..500ms"), Ok(Duration::ZERO..Duration::from_millis(500)));
        for bad in ["10s", "40s..10s", "1s..1s", "a..b", "..", "1s.."] {
            assert!(cut(bad).is_err(), "{bad}");
        }
        assert_eq!(window("64K"), Ok(65536));
        assert!(window("1K").is_err() && window("1G").is_err() && window("x").is_err());
    }
}
