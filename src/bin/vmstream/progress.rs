//! The progress line: rate, round trip, how much is resident, and how long the guest has been waiting.
//!
//! On a terminal one line is drawn again and again in place. Elsewhere nothing is drawn, as a log full of progress
//! is of no use; `--progress` asks for it all the same, then as one line after another. The text is made by pure
//! functions and never wider than [`COLUMNS_MAX`], so it never wraps and in-place drawing stays in place.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Widest line, in columns: fits the narrowest terminal in use (80) without wrapping.
pub const COLUMNS_MAX: usize = 79;

/// True while the progress line is the last thing on the terminal.
static DRAWN: AtomicBool = AtomicBool::new(false);

/// What the line shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot {
    /// What arrives, in bytes per second.
    pub rate_bytes_s: u64,
    /// Round trip to the origin, once it has been measured.
    pub round_trip: Option<Duration>,
    /// Bytes of the image that are here.
    pub resident_bytes: u64,
    /// Size of the image, in bytes.
    pub image_bytes: u64,
    /// How long the oldest unanswered request has been waiting, if one is.
    pub stall: Option<Duration>,
}

/// Draws the line on standard error. Dropping it leaves the last line in place and goes to the next.
pub struct Meter {
    mode: Mode,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Off,
    InPlace,
    Lines,
}

impl Meter {
    /// A meter for standard error as it is: silent when it is no terminal, unless `forced`.
    pub fn new(forced: bool) -> Self {
        Self { mode: mode(io::stderr().is_terminal(), forced) }
    }

    /// Draws `snapshot`. Call it a few times a second at most: there is no limit here.
    pub fn draw(&mut self, snapshot: &Snapshot) {
        self.show(&line(snapshot));
    }

    /// The same with a line of another kind, of at most [`COLUMNS_MAX`] columns.
    pub fn show(&mut self, line: &str) {
        let mut stderr = io::stderr().lock();
        // A terminal that went away is no reason to stop working.
        let _ = match self.mode {
            Mode::Off => Ok(()),
            Mode::Lines => writeln!(stderr, "vmstream: {line}"),
            Mode::InPlace => {
                DRAWN.store(true, Ordering::Relaxed);
                write!(stderr, "\r{line}\x1b[K").and_then(|()| stderr.flush())
            }
        };
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.mode == Mode::InPlace && DRAWN.swap(false, Ordering::Relaxed) {
            eprintln!();
        }
    }
}

/// Clears the progress line, if there is one, so that a message can take its place. `out` must be the locked
/// standard error.
pub fn wipe(out: &mut impl Write) -> io::Result<()> {
    if DRAWN.swap(false, Ordering::Relaxed) { write!(out, "\r\x1b[K") } else { Ok(()) }
}

fn mode(terminal: bool, forced: bool) -> Mode {
    match (terminal, forced) {
        (true, _) => Mode::InPlace,
        (false, true) => Mode::Lines,
        (false, false) => Mode::Off,
    }
}

/// The line, at most [`COLUMNS_MAX`] columns of ASCII.
pub fn line(s: &Snapshot) -> String {
    let mut text = format!("{:>11}", rate(s.rate_bytes_s));
    text += &match s.round_trip {
        Some(rtt) => format!("  rtt {:>7}", short(rtt)),
        None => format!("  rtt {:>7}", "-"),
    };
    text += &format!("  resident {:>5} of {}", percent(s.resident_bytes, s.image_bytes), size(s.image_bytes));
    if let Some(stall) = s.stall {
        text += &format!("  stalled {}", short(stall));
    }
    text.truncate(COLUMNS_MAX);
    text
}

/// A rate as links are sold: bits, powers of ten.
pub fn rate(bytes_s: u64) -> String {
    let bits = bytes_s as f64 * 8.0;
    // The thresholds are where rounding would show four digits before the point.
    match bits {
        b if b < 999_950.0 => format!("{:.1} kbit/s", b / 1e3),
        b if b < 999_950_000.0 => format!("{:.1} Mbit/s", b / 1e6),
        b => format!("{:.1} Gbit/s", b / 1e9),
    }
}

/// A size as files are measured: binary units.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Rounded down, so that 100 % means complete and nothing less does.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 || part >= whole {
        return "100 %".to_owned();
    }
    let tenths = u128::from(part) * 1000 / u128::from(whole);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

fn short(d: Duration) -> String {
    match d.as_secs_f64() {
        s if s < 0.000_999_5 => format!("{:.0} us", s * 1e6),
        s if s < 0.999_5 => format!("{:.0} ms", s * 1e3),
        s if s < 99.95 => format!("{s:.1} s"),
        s if s < 5999.5 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_all_of_it() {
        let s = Snapshot {
            rate_bytes_s: 2_925_000,
            round_trip: Some(Duration::from_micros(51_600)),
            resident_bytes: 341 << 20,
            image_bytes: 1 << 30,
            stall: Some(Duration::from_millis(2340)),
        };
        assert_eq!(line(&s), "23.4 Mbit/s  rtt   52 ms  resident 33.3 % of 1.0 GiB  stalled 2.3 s");
        let idle = Snapshot { image_bytes: 4096, ..Snapshot::default() };
        assert_eq!(line(&idle), " 0.0 kbit/s  rtt       -  resident 0.0 % of 4.0 KiB");
    }

    #[test]
    fn the_widest_values_still_fit() {
        for rate_bytes_s in [0, 124_999_999, u64::MAX / 8] {
            for image_bytes in [0, 1, 1023, 1024, (1 << 40) - 1, 64 << 40] {
                for wait in [Duration::ZERO, Duration::from_micros(999_499), Duration::from_secs(359_999)] {
                    let s = Snapshot {
                        rate_bytes_s,
                        round_trip: Some(wait),
                        resident_bytes: image_bytes / 3,
                        image_bytes,
                        stall: Some(wait),
                    };
                    let text = line(&s);
                    assert!(text.is_ascii() && text.len() <= COLUMNS_MAX, "{text}");
                    assert!(text.contains("stalled") && !text.ends_with(' '), "cut short: {text}");
                }
            }
        }
    }

    #[test]
    fn only_a_complete_image_is_at_100_percent() {
        assert_eq!(percent((64 << 40) - 1, 64 << 40), "99.9 %");
        assert_eq!(percent(64 << 40, 64 << 40), "100 %");
        assert_eq!(percent(0, 0), "100 %");
    }

    #[test]
    fn units_change_before_four_digits_show() {
        assert_eq!(rate(124_993), "999.9 kbit/s");
        assert_eq!(rate(125_000), "1.0 Mbit/s");
        assert_eq!(size(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(short(Duration::from_micros(999_600)), "1.0 s");
        assert_eq!(short(Duration::from_secs(120)), "2 min");
    }

    #[test]
    fn without_a_terminal_only_force_draws() {
        assert!(mode(false, false) == Mode::Off);
        assert!(mode(false, true) == Mode::Lines);
        assert!(mode(true, false) == Mode::InPlace);
    }
}
