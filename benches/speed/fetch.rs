//! A whole image: against `curl` from nginx on the loopback, and against the line on shaped links.
//!
//! `curl` leaves its file in the page cache, where a power cut loses it; a fetched image is on the disk when it is
//! called complete. So `curl` is also shown with the sync that makes the two equal.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::origin::{self, Origin};
use crate::samples::Samples;
use crate::table::{Table, at_least, at_most, number};

const LOOPBACK_BYTES: u64 = 1 << 30;
const ROUNDS: usize = 5;
/// Opening and the first request cost three round trips before the line carries anything; in an image of this size, small
/// for a disk, they may still not show.
const LINE_BYTES: u64 = 256 << 20;
const LINE_BYTES_S: f64 = 12_500_000.0;

pub fn run() {
    loopback();
    lines();
}

/// Fetches all of `url` into `path` and leaves an ordinary file; answers the seconds it took.
fn fetch(url: &str, path: &Path) -> f64 {
    let begun = Instant::now();
    let status = Command::new(env!("CARGO_BIN_EXE_vmstream")).args(["fetch", url, "--output"]).arg(path).status();
    assert!(status.is_ok_and(|status| status.success()), "vmstream fetch works");
    begun.elapsed().as_secs_f64()
}

/// The same with `curl`; answers the seconds until it ended and those until the file was on the disk.
fn curl(url: &str, path: &Path) -> (f64, f64) {
    let begun = Instant::now();
    let status = Command::new("curl").args(["--silent", "--fail", "--output"]).arg(path).arg(url).status();
    assert!(status.is_ok_and(|status| status.success()), "curl works");
    let ended = begun.elapsed().as_secs_f64();
    std::fs::File::open(path).and_then(|file| file.sync_all()).expect("the file syncs");
    (ended, begun.elapsed().as_secs_f64())
}

fn loopback() {
    let directory = origin::memory();
    origin::image(directory.path(), LOOPBACK_BYTES);
    let Some(origin) = Origin::nginx(directory.path()) else {
        println!("  nginx is not installed: left out");
        return;
    };
    let url = format!("{}image", origin.url);
    let disk = origin::disk();
    let (mut plain, mut synced, mut ours) = (Samples::default(), Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        for who in [round % 2, 1 - round % 2] {
            let path = disk.path().join(format!("{round}-{who}"));
            if who == 0 {
                let (ended, durable) = curl(&url, &path);
                plain.add(ended);
                synced.add(durable);
            } else {
                ours.add(fetch(&url, &path));
            }
            std::fs::remove_file(&path).expect("the file can be removed");
            // What one leaves to be written must not slow down the other.
            rustix::fs::sync();
        }
    }
    let heads = ["", "median s", "min", "max", "MiB/s", "ratio", "promise"];
    let mut table = Table::new("fetch: 1 GiB from nginx on the loopback to the disk", &heads);
    for (name, times) in [("curl -o, not durable", &plain), ("curl -o and fsync", &synced), ("fetch, durable", &ours)] {
        let ratio = times.median() / plain.median();
        let promise = if std::ptr::eq(times, &ours) { at_most(ratio, 1.0) } else { String::new() };
        table.row(&[
            &name,
            &number(times.median(), 2),
            &number(times.quantile(0.0), 2),
            &number(times.quantile(1.0), 2),
            &number(1024.0 / times.median(), 0),
            &number(ratio, 2),
            &promise,
        ]);
    }
}

fn lines() {
    let directory = origin::memory();
    origin::image(directory.path(), LINE_BYTES);
    let mut table = Table::new(
        "fetch: 256 MiB at 100 Mbit/s, everything from opening to the last sync",
        &["", "seconds", "at the line's rate", "share of the line", "promise"],
    );
    for rtt in ["5ms", "100ms"] {
        let origin = Origin::serve(directory.path(), &["--rate", "100mbit", "--rtt", rtt]);
        let disk = origin::disk();
        let seconds = fetch(&format!("{}image", origin.url), &disk.path().join("image"));
        let best = LINE_BYTES as f64 / LINE_BYTES_S;
        let name = format!("round trip {rtt}");
        let share = best / seconds;
        table.row(&[&name, &number(seconds, 2), &number(best, 2), &number(share, 3), &at_least(share, 0.97)]);
    }
}
