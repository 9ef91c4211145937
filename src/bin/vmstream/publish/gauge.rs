//! How far publishing has come: bytes, rate, and how long it will still take.
//!
//! A terminal gets one line that is drawn again and again, a log one line every ten seconds, which is enough to see that
//! something moves.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use crate::progress::{self, Meter};

/// Shortest time between two drawings on a terminal, and anywhere else.
const DRAW_EVERY: Duration = Duration::from_millis(200);
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Counts bytes against an estimate of all of them.
pub struct Gauge {
    meter: Option<Meter>,
    every: Duration,
    what: &'static str,
    total: u64,
    done: u64,
    began: Instant,
    drawn: Instant,
}

impl Gauge {
    /// A gauge for about `total` bytes of work, which is called `what`. Silent when only errors are wanted.
    pub fn new(what: &'static str, total: u64) -> Self {
        let terminal = io::stderr().is_terminal();
        let quiet = log::max_level() < log::LevelFilter::Warn;
        let now = Instant::now();
        Self {
            meter: (!quiet).then(|| Meter::new(true)),
            every: if terminal { DRAW_EVERY } else { LOG_EVERY },
            what,
            total,
            done: 0,
            began: now,
            drawn: now,
        }
    }

    /// So many bytes more are done.
    pub fn read(&mut self, bytes: u64) {
        self.done += bytes;
        if self.drawn.elapsed() >= self.every {
            self.drawn = Instant::now();
            let text = line(self.what, self.done, self.total, self.began.elapsed());
            if let Some(meter) = &mut self.meter {
                meter.show(&text);
            }
        }
    }
}

/// The line; `total` is an estimate, so more may be done than it says.
fn line(what: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let rate = if seconds > 0.0 { done as f64 / seconds } else { 0.0 };
    let mut text = format!("{what} {}", progress::size(done));
    if done < total {
        text += &format!(" of {}", progress::size(total));
    }
    text += &format!("  {}/s", progress::size(rate as u64));
    if done < total && rate > 0.0 {
        let left = ((total - done) as f64 / rate).ceil();
        text += &match left {
            s if s < 100.0 => format!("  {s:.0} s left"),
            s if s < 6000.0 => format!("  {:.0} min left", (s / 60.0).ceil()),
            s => format!("  {:.0} h left", (s / 3600.0).ceil()),
        };
    }
    text.truncate(progress::COLUMNS_MAX);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_long_it_will_take() {
        let seconds = Duration::from_secs;
        assert_eq!(line("read", 1 << 30, 3 << 30, seconds(4)), "read 1.0 GiB of 3.0 GiB  256.0 MiB/s  8 s left");
        assert_eq!(line("read", 1 << 30, 61 << 30, seconds(4)), "read 1.0 GiB of 61.0 GiB  256.0 MiB/s  4 min left");
        assert_eq!(line("read", 2 << 30, 1 << 30, seconds(4)), "read 2.0 GiB  512.0 MiB/s", "the estimate was too low");
        assert_eq!(line("read", 0, 1, seconds(0)), "read 0 B of 1 B  0 B/s");
    }

    #[test]
    fn the_widest_line_fits() {
        for (done, total) in [(1, u64::MAX), (u64::MAX / 2, u64::MAX), (u64::MAX, 0)] {
            let text = line("copying", done, total, Duration::from_nanos(1));
            assert!(text.len() < progress::COLUMNS_MAX, "{text}");
        }
    }
}
