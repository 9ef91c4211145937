//! `/metrics`: what is counted, in the text format of Prometheus.
//!
//! All counters begin at 0 with the server, as Prometheus expects; what it has seen before it keeps itself.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::StatusCode;

use super::stats::Stats;

/// Content type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Counters of sessions and of learning. All methods may be called from several threads at once.
#[derive(Debug, Default)]
pub struct Tally {
    /// By status of the answer.
    sessions: Mutex<BTreeMap<u16, u64>>,
    learnt: AtomicU64,
    failed: AtomicU64,
    last_us: AtomicU64,
}

impl Tally {
    /// A session was answered so.
    pub fn session(&self, status: StatusCode) {
        *self.sessions.lock().unwrap_or_else(PoisonError::into_inner).entry(status.as_u16()).or_default() += 1;
    }

    /// A lesson ended and took so long.
    pub fn trained(&self, well: bool, took: Duration) {
        if well { &self.learnt } else { &self.failed }.fetch_add(1, Ordering::Relaxed);
        self.last_us.store(took.as_micros().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Tally {
    /// Lessons that came to nothing.
    pub fn failures(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// What a status says of a session, as a label.
fn outcome(status: u16) -> &'static str {
    match status {
        201 => "accepted",
        200 => "known",
        401 => "unauthorized",
        404 => "unknown_image",
        408 => "slow",
        413 => "too_large",
        415 => "no_session",
        422 => "other_image",
        429 => "too_often",
        507 => "full",
        _ => "failed",
    }
}

/// A metric with its help, and then its values.
struct Metric<'a>(&'a mut String, &'static str);

impl<'a> Metric<'a> {
    fn new(text: &'a mut String, name: &'static str, kind: &str, help: &str) -> Self {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Self(text, name)
    }

    fn value(self, value: impl Display) {
        let _ = writeln!(self.0, "{} {value}", self.1);
    }

    fn labelled<'l>(self, label: &str, values: impl IntoIterator<Item = (&'l str, u64)>) {
        for (which, value) in values {
            let _ = writeln!(self.0, "{}{{{label}=\"{which}\"}} {value}", self.1);
        }
    }
}

/// All metrics as one text.
pub fn text(stats: &Stats, tally: &Tally) -> String {
    let mut text = String::new();
    let mut metric = |name, kind, help: &str, write: &dyn Fn(Metric)| write(Metric::new(&mut text, name, kind, help));
    let now = stats.now();
    metric("vmstream_requests_total", "counter", "Requests answered, by class of status.", &|m| {
        m.labelled("code", ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(now.classes));
    });
    metric("vmstream_response_bytes_total", "counter", "Bytes of all response bodies.", &|m| m.value(now.bytes));
    metric("vmstream_connections_total", "counter", "Connections accepted.", &|m| m.value(now.connections));
    metric("vmstream_connections_open", "gauge", "Connections open now.", &|m| m.value(now.open));
    metric("vmstream_clients_recent", "gauge", "Clients connected now or in the last 15 minutes.", &|m| {
        m.value(stats.recent.count(Instant::now()));
    });
    let mut sessions: BTreeMap<&str, u64> = ["accepted", "known"].map(|which| (which, 0)).into();
    for (status, count) in &*tally.sessions.lock().unwrap_or_else(PoisonError::into_inner) {
        *sessions.entry(outcome(*status)).or_default() += count;
    }
    metric("vmstream_sessions_total", "counter", "Sessions that clients sent, by what became of them.", &|m| {
        m.labelled("outcome", sessions.clone());
    });
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    metric("vmstream_trainings_total", "counter", "Lessons from collected sessions, by how they ended.", &|m| {
        m.labelled("outcome", [("learnt", get(&tally.learnt)), ("failed", get(&tally.failed))]);
    });
    metric("vmstream_last_training_seconds", "gauge", "How long the last lesson took.", &|m| {
        m.value(get(&tally.last_us) as f64 / 1e6);
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, labels and value of each sample; panics at what the format does not allow.
    fn parse(text: &str) -> BTreeMap<String, f64> {
        let mut samples = BTreeMap::new();
        let mut family = None;
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                family = Some(help.split_once(' ').unwrap().0.to_owned());
                continue;
            }
            let family = family.as_deref().expect("a family begins with its help");
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert!(name == family && ["counter", "gauge"].contains(&kind), "{line}");
                assert!(kind != "counter" || name.ends_with("_total"), "{line}");
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').map_or((series, None), |(n, l)| (n, Some(l)));
            assert!(name == family && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
            if let Some(labels) = labels {
                let (label, value) = labels.strip_suffix("\"}").unwrap().split_once("=\"").unwrap();
                assert!(label.bytes().all(|b| b.is_ascii_lowercase()) && !value.contains(['"', '\\']), "{line}");
            }
            assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
        }
        samples
    }

    #[test]
    fn the_text_is_what_a_scraper_reads() {
        let (stats, tally) = (Stats::default(), Tally::default());
        stats.connection();
        for status in [200, 206, 404, 416, 503] {
            stats.request();
            stats.answered(StatusCode::from_u16(status).unwrap());
        }
        stats.sent(None, 1 << 40);
        for status in [201, 201, 413, 500, 502] {
            tally.session(StatusCode::from_u16(status).unwrap());
        }
        tally.trained(true, Duration::from_millis(1500));
        let samples = parse(&text(&stats, &tally));
        for (series, value) in [
            ("vmstream_requests_total{code=\"2xx\"}", 2.0),
            ("vmstream_requests_total{code=\"4xx\"}", 2.0),
            ("vmstream_requests_total{code=\"5xx\"}", 1.0),
            ("vmstream_response_bytes_total", (1u64 << 40) as f64),
            ("vmstream_connections_total", 1.0),
            ("vmstream_connections_open", 1.0),
            ("vmstream_sessions_total{outcome=\"accepted\"}", 2.0),
            ("vmstream_sessions_total{outcome=\"too_large\"}", 1.0),
            ("vmstream_sessions_total{outcome=\"failed\"}", 2.0),
            ("vmstream_sessions_total{outcome=\"known\"}", 0.0),
            ("vmstream_trainings_total{outcome=\"learnt\"}", 1.0),
            ("vmstream_trainings_total{outcome=\"failed\"}", 0.0),
            ("vmstream_last_training_seconds", 1.5),
        ] {
            assert_eq!(samples.get(series), Some(&value), "{series}");
        }
    }
}
