//! What `vmstream replay` says of the replays: a table for a person, JSON for a program.

use std::fmt::Write as _;

use serde::Serialize;
use vmstream::error::{Error, Result};
use vmstream::replay::oracle::Bound;
use vmstream::replay::{Figures, Policy};

/// What `--json` writes for each session.
#[derive(Serialize)]
pub struct Report {
    trace: String,
    policy: &'static str,
    guest_s: f64,
    total_s: f64,
    oracle_total_s: f64,
    stall_s: f64,
    stalls: u64,
    stalls_over_100ms: u64,
    bytes: u64,
    used_bytes: u64,
    wasted_bytes: u64,
    fill_bytes: u64,
    requests: u64,
    /// With `--packs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    wire_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packed_oracle_total_s: Option<f64>,
    /// With `--live`, where the other figures are those of real time.
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_total_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    live_over_virtual: Option<f64>,
}

impl Report {
    /// What came of the replay of `trace`, and what could have come of it at best.
    pub fn new(trace: &str, policy: Policy, figures: &Figures, bound: &Bound) -> Self {
        Self {
            trace: trace.to_owned(),
            policy: policy.name(),
            guest_s: bound.guest.as_secs_f64(),
            total_s: figures.total.as_secs_f64(),
            oracle_total_s: bound.total().as_secs_f64(),
            stall_s: figures.stalled.as_secs_f64(),
            stalls: figures.stalls,
            stalls_over_100ms: figures.long_stalls,
            bytes: figures.bytes,
            used_bytes: figures.used_bytes,
            wasted_bytes: figures.wasted_bytes(),
            fill_bytes: figures.fill_bytes,
            requests: figures.requests,
            wire_bytes: None,
            packed_oracle_total_s: None,
            virtual_total_s: None,
            live_over_virtual: None,
        }
    }

    /// The report of a replay with packs, which could at best come to `bound` if all bytes were packed.
    pub fn packed(self, figures: &Figures, bound: &Bound) -> Self {
        Self { wire_bytes: Some(figures.wire_bytes), packed_oracle_total_s: Some(bound.total().as_secs_f64()), ..self }
    }

    /// The report of a live replay, with what virtual time made of it.
    pub fn compared(self, figures: &Figures) -> Self {
        let total_s = figures.total.as_secs_f64();
        let ratio = if total_s > 0.0 { self.total_s / total_s } else { 1.0 };
        Self { virtual_total_s: Some(total_s), live_over_virtual: Some(ratio), ..self }
    }
}

/// The figures as a JSON array.
pub fn json(reports: &[Report]) -> Result<String> {
    let json = serde_json::to_string_pretty(reports);
    Ok(json.map_err(|e| Error::io("cannot write the figures", e.into()))? + "\n")
}

/// Total time over that of the bound; 1 when there was nothing to do.
fn ratio(r: &Report) -> f64 {
    if r.oracle_total_s > 0.0 { r.total_s / r.oracle_total_s } else { 1.0 }
}

/// Total time over that of the bound with packed bytes.
fn packed_ratio(r: &Report) -> Option<f64> {
    r.packed_oracle_total_s.map(|oracle_s| if oracle_s > 0.0 { r.total_s / oracle_s } else { 1.0 })
}

/// A line for each session, and one for all.
pub fn table(reports: &[Report]) -> String {
    let width = reports.iter().map(|r| r.trace.chars().count()).max().unwrap_or(0).max(5);
    let mut text = format!(
        "{:<width$}  guest s  oracle s   total s  ratio  stall s  stalls  >100ms      MB  used MB  requests",
        "trace"
    );
    let live = reports.iter().any(|r| r.live_over_virtual.is_some());
    let packed = reports.iter().any(|r| r.packed_oracle_total_s.is_some());
    text += if packed { "  wire MB  packed oracle s  ratio" } else { "" };
    text += if live { "  virtual s  live/virtual\n" } else { "\n" };
    let mb = |bytes: u64| bytes as f64 / 1e6;
    for r in reports {
        let _ = write!(
            text,
            "{:<width$}  {:>7.2}  {:>8.2}  {:>8.2}  {:>5.3}  {:>7.2}  {:>6}  {:>6}  {:>6.1}  {:>7.1}  {:>8}",
            r.trace,
            r.guest_s,
            r.oracle_total_s,
            r.total_s,
            ratio(r),
            r.stall_s,
            r.stalls,
            r.stalls_over_100ms,
            mb(r.bytes),
            mb(r.used_bytes),
            r.requests,
        );
        if let (Some(bytes), Some(oracle_s)) = (r.wire_bytes, r.packed_oracle_total_s) {
            let _ = write!(text, "  {:>7.1}  {:>15.2}  {:>5.3}", mb(bytes), oracle_s, packed_ratio(r).unwrap_or(1.0));
        }
        if let (Some(total_s), Some(ratio)) = (r.virtual_total_s, r.live_over_virtual) {
            let _ = write!(text, "  {total_s:>9.2}  {ratio:>12.3}");
        }
        text.push('\n');
    }
    let mean = reports.iter().map(ratio).sum::<f64>() / reports.len().max(1) as f64;
    let worst = reports.iter().map(ratio).fold(0.0, f64::max);
    let sum = |f: fn(&Report) -> u64| reports.iter().map(f).sum::<u64>();
    let spent = mb(sum(|r| r.bytes)) / mb(sum(|r| r.used_bytes)).max(1e-9);
    let _ = writeln!(text, "total / oracle: mean {mean:.3}, worst {worst:.3}; bytes / used: {spent:.2}");
    let packed: Vec<f64> = reports.iter().filter_map(packed_ratio).collect();
    if !packed.is_empty() {
        let mean = packed.iter().sum::<f64>() / packed.len() as f64;
        let worst = packed.iter().fold(0.0, |worst: f64, &ratio| worst.max(ratio));
        let wire = reports.iter().filter_map(|r| r.wire_bytes).sum();
        let spent = mb(wire) / mb(sum(|r| r.used_bytes)).max(1e-9);
        let _ = writeln!(text, "total / packed oracle: mean {mean:.3}, worst {worst:.3}; wire / used: {spent:.2}");
    }
    text
}
