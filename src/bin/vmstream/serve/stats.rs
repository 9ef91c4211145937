//! Counters of a server, and the report made of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::StatusCode;
use serde::Serialize;
use vmstream::error::{Error, Result};

use super::clients::Recent;

/// Counters of all that was served. All methods may be called from several threads at once.
#[derive(Debug, Default)]
pub struct Stats {
    connections: AtomicU64,
    ended: AtomicU64,
    requests: AtomicU64,
    /// Answers by the first digit of their status, from 1 to 5.
    classes: [AtomicU64; 5],
    bytes: AtomicU64,
    /// The clients of now and of lately.
    pub recent: Recent,
    /// By path; only paths of files that exist, so requests cannot make it grow without end.
    files: Mutex<BTreeMap<String, Arc<FileCount>>>,
}

/// Counters of one file.
#[derive(Debug, Default)]
pub struct FileCount {
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Connections accepted.
    pub connections: u64,
    /// Of those, the ones that are open.
    pub open: u64,
    /// Answers by the first digit of their status, from 1 to 5.
    pub classes: [u64; 5],
    /// Bytes of all response bodies.
    pub bytes: u64,
}

/// What `--stats` writes.
#[derive(Debug, Serialize)]
struct Report<'a> {
    connections: u64,
    requests: u64,
    /// Bytes of all response bodies.
    bytes: u64,
    /// Bytes that went over the shaped link, headers included; null without shaping.
    link_bytes: Option<u64>,
    files: BTreeMap<&'a str, FileReport>,
}

#[derive(Debug, Serialize)]
struct FileReport {
    requests: u64,
    bytes: u64,
}

impl Stats {
    /// Counts an accepted connection.
    pub fn connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the end of one.
    pub fn disconnection(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an answer that is over.
    pub fn answered(&self, status: StatusCode) {
        if let Some(class) = self.classes.get(usize::from(status.as_u16() / 100).wrapping_sub(1)) {
            class.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counters now.
    pub fn now(&self) -> Now {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // The ends first, so that there are never more of them than beginnings.
        let ended = get(&self.ended);
        let connections = get(&self.connections);
        Now {
            connections,
            open: connections.saturating_sub(ended),
            classes: self.classes.each_ref().map(get),
            bytes: get(&self.bytes),
        }
    }

    /// Requests and bytes of a file so far, by the path of its URL.
    pub fn of_file(&self, path: &str) -> (u64, u64) {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        files.get(path).map_or((0, 0), |file| (get(&file.requests), get(&file.bytes)))
    }

    /// Counts a request.
    pub fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request for the contents of a file; its bytes go to the answer.
    pub fn file(&self, path: &str) -> Arc<FileCount> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let count = match files.get(path) {
            Some(count) => count.clone(),
            None => files.entry(path.to_owned()).or_default().clone(),
        };
        drop(files);
        count.requests.fetch_add(1, Ordering::Relaxed);
        count
    }

    /// Counts bytes of a response body, of this file if it is one.
    pub fn sent(&self, file: Option<&FileCount>, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(file) = file {
            file.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// One line for a person.
    pub fn summary(&self) -> String {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (connections, requests) = (get(&self.connections), get(&self.requests));
        format!("{requests} requests on {connections} connections, {} bytes sent", get(&self.bytes))
    }

    /// Replaces `path` by a report of now, so that a reader never sees half of one.
    pub fn write(&self, path: &Path, link_bytes: Option<u64>) -> Result<()> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let report = Report {
            connections: get(&self.connections),
            requests: get(&self.requests),
            bytes: get(&self.bytes),
            link_bytes,
            files: files
                .iter()
                .map(|(path, file)| {
                    (path.as_str(), FileReport { requests: get(&file.requests), bytes: get(&file.bytes) })
                })
                .collect(),
        };
        let mut text = serde_json::to_string_pretty(&report)
            .map_err(|e| Error::io(format_args!("cannot write {}", path.display()), e.into()))?;
        text.push('\n');
        crate::files::replace(path, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_by_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.json");
        let stats = Stats::default();
        stats.connection();
        for bytes in [10, 20] {
            stats.request();
            let file = stats.file("/a");
            stats.sent(Some(&file), bytes);
        }
        stats.sent(None, 5);
        stats.write(&path, Some(99)).unwrap();
        let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(report["connections"], 1);
        assert_eq!(report["bytes"], 35);
        assert_eq!(report["link_bytes"], 99);
        assert_eq!(report["files"]["/a"], serde_json::json!({"requests": 2, "bytes": 30}));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left there");
    }

    #[test]
    fn a_report_that_cannot_be_written_names_the_file() {
        let text = Stats::default().write(Path::new("/nonexistent/x"), None).unwrap_err().to_string();
        assert!(text.contains("/nonexistent/x"), "{text}");
    }
}
