//! The log facade on standard error, one line for each message, all beginning with `vmstream:`.
//!
//! A message and the progress line share the terminal, so a message first wipes the progress line; the next tick
//! draws it again below.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::progress;

struct Stderr {
    level: LevelFilter,
}

/// The level for so many `-v` and `-q`: warnings unless told otherwise.
pub fn level(verbose: u8, quiet: u8) -> LevelFilter {
    match (verbose, quiet) {
        (_, 2..) => LevelFilter::Off,
        (_, 1) => LevelFilter::Error,
        (0, 0) => LevelFilter::Warn,
        (1, 0) => LevelFilter::Info,
        (2, 0) => LevelFilter::Debug,
        (3.., 0) => LevelFilter::Trace,
    }
}

/// Sends everything up to `level` to standard error, for the whole process. Call it once.
pub fn install(level: LevelFilter) {
    // Fails only when a logger is there already, which then does the work.
    if log::set_boxed_logger(Box::new(Stderr { level })).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        allows(self.level, metadata.target(), metadata.level())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut stderr = std::io::stderr().lock();
        // Nobody is left to hear that standard error cannot be written.
        let _ = progress::wipe(&mut stderr);
        let _ = writeln!(stderr, "vmstream: {}{}", prefix(record.level()), record.args());
    }

    fn flush(&self) {}
}

/// Other crates speak one level later than ours: `-v` is for what a user can act on.
fn allows(filter: LevelFilter, target: &str, level: Level) -> bool {
    let ours = target == "vmstream" || target.starts_with("vmstream::");
    if ours || level == Level::Error { level <= filter } else { level < filter }
}

/// Errors and information need no word in front; the rest is marked so that it can be told apart.
fn prefix(level: Level) -> &'static str {
    match level {
        Level::Error | Level::Info => "",
        Level::Warn => "warning: ",
        Level::Debug => "debug: ",
        Level::Trace => "trace: ",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_wins_and_verbose_adds_up() {
        assert_eq!(level(0, 0), LevelFilter::Warn);
        assert_eq!(level(1, 0), LevelFilter::Info);
        assert_eq!(level(9, 0), LevelFilter::Trace);
        assert_eq!(level(0, 1), LevelFilter::Error);
        assert_eq!(level(3, 2), LevelFilter::Off);
    }

    #[test]
    fn other_crates_speak_one_level_later() {
        assert!(allows(LevelFilter::Info, "vmstream::serve", Level::Info));
        assert!(!allows(LevelFilter::Info, "ureq", Level::Info));
        assert!(allows(LevelFilter::Info, "ureq", Level::Warn));
        assert!(allows(LevelFilter::Error, "ureq", Level::Error));
        assert!(!allows(LevelFilter::Off, "vmstream", Level::Error));
        assert!(!allows(LevelFilter::Info, "vmstreamer", Level::Info));
    }
}
