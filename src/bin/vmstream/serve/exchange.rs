//! One request and its answer: what the access log and the statistics say of it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use hyper::{Method, StatusCode};

use super::access::AccessLog;
use super::stats::{FileCount, Stats};

/// A note that follows a request until its answer is sent or given up, and is then logged.
#[derive(Debug)]
pub struct Exchange {
    peer: SocketAddr,
    method: Method,
    /// As it came, still percent-encoded, so it is safe to print.
    path: String,
    range: Option<String>,
    began: Instant,
    stats: Arc<Stats>,
    access: Option<Arc<AccessLog>>,
    /// Status of the answer. Until there is one it is that of a request which was never answered.
    status: StatusCode,
    answered: bool,
    /// The file that is sent, if one is.
    pub file: Option<Arc<FileCount>>,
    bytes: u64,
}

impl Exchange {
    /// A request that came just now. `range` is its Range header, for the log.
    pub fn new(
        peer: SocketAddr,
        method: Method,
        path: String,
        range: Option<String>,
        stats: Arc<Stats>,
        access: Option<Arc<AccessLog>>,
    ) -> Self {
        stats.request();
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self {
            peer,
            method,
            path,
            range,
            began: Instant::now(),
            stats,
            access,
            status,
            answered: false,
            file: None,
            bytes: 0,
        }
    }

    /// The request is answered so.
    pub fn answer(&mut self, status: StatusCode) {
        (self.status, self.answered) = (status, true);
    }

    /// Counts bytes of the body.
    pub fn sent(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.stats.sent(self.file.as_deref(), bytes);
    }
}

/// What is known of the answer: `127.0.0.1:4000 GET /disk.img bytes=0-4095: 206, 4096 bytes`.
impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.peer, self.method, self.path)?;
        if let Some(range) = &self.range {
            write!(f, " {range}")?;
        }
        write!(f, ": {}, {} bytes", self.status.as_u16(), self.bytes)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // A client that went away while its answer was being made had none.
        if self.answered {
            self.stats.answered(self.status);
        }
        if let Some(access) = &self.access {
            let (status, range) = (self.status.as_u16(), self.range.as_deref().unwrap_or("-"));
            access.add(self.began, &format!("{status} {} {} {} {range}", self.bytes, self.method, self.path));
        }
        log::info!("{self} in {:.1} ms", self.began.elapsed().as_secs_f64() * 1e3);
    }
}
