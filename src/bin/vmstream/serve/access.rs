//! The access log for programs: one line for each answer, with times fit for arithmetic.
//!
//! The columns are microseconds since the server's start at which the request was seen and at which the last byte of its
//! answer was handed to the connection, the status, the bytes of the body, the method, the path as it came, and the
//! Range header, `-` without one. On a shaped link a request is seen half a round trip after it was sent.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmstream::error::{Error, Result};

/// An open log. All methods may be called from several threads at once.
#[derive(Debug)]
pub struct AccessLog {
    began: Instant,
    file: Mutex<File>,
}

impl AccessLog {
    /// Begins a log, replacing what `path` held.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path)
            .map_err(|e| Error::io(format_args!("cannot write the access log {}", path.display()), e))?;
        Ok(Self { began: Instant::now(), file: Mutex::new(file) })
    }

    /// Adds an answer that ends now to a request that was seen at `seen`; `rest` is status, bytes, method, path, range.
    pub fn add(&self, seen: Instant, rest: &str) {
        let micros = |at: Duration| at.as_micros();
        let line = format!("{} {} {rest}\n", micros(seen - self.began), micros(self.began.elapsed()));
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // One write a line, so that a reader sees whole lines. A full disk must not end the service.
        if let Err(error) = file.write_all(line.as_bytes()) {
            log::warn!("cannot write the access log: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_both_times_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = AccessLog::create(&path).unwrap();
        let seen = Instant::now();
        log.add(seen, "206 4096 GET /disk.img bytes=0-4095");
        let text = std::fs::read_to_string(&path).unwrap();
        let words: Vec<_> = text.trim_end().split(' ').collect();
        assert!(words[0].parse::<u64>().unwrap() <= words[1].parse::<u64>().unwrap(), "{text}");
        assert_eq!(words[2..], ["206", "4096", "GET", "/disk.img", "bytes=0-4095"]);
    }

    #[test]
    fn a_log_that_cannot_be_written_names_the_file() {
        let text = AccessLog::create(Path::new("/nonexistent/log")).unwrap_err().to_string();
        assert!(text.contains("/nonexistent/log"), "{text}");
    }
}
