//! A 16 TiB image costs only what is used of it: its opening is quick and its tables do not fill memory.
//!
//! The cache is in `/dev/shm`, whose files may be that long (those of ext4 end 4 KiB earlier).

use std::time::Instant;

use vmstream::{Image, Op};

use crate::dice::Dice;
use crate::origin;
use crate::samples::Samples;
use crate::table::{Table, at_most, number};

const OPENINGS: usize = 9;
const ACCESSES: u64 = 10_000;

pub fn run() {
    let mut table =
        Table::new("sparse: a pattern of 16 TiB, cache in memory", &["", "median", "min", "max", "promise"]);
    let open = |directory: &tempfile::TempDir| {
        let cache = format!("cache={}", directory.path().display());
        Image::open(["source=pattern:16T", "fill=off", "prefetch=none", &cache]).expect("the image opens")
    };
    let mut times = Samples::default();
    for _ in 0..OPENINGS {
        let directory = origin::memory();
        let begun = Instant::now();
        let image = open(&directory);
        times.add(begun.elapsed().as_secs_f64() * 1e3);
        drop(image);
    }
    let cells = (times.median(), times.quantile(0.0), times.quantile(1.0));
    table.row(&[
        &"open a new cache, ms",
        &number(cells.0, 2),
        &number(cells.1, 2),
        &number(cells.2, 2),
        &at_most(cells.0, 50.0),
    ]);
    let directory = origin::memory();
    let image = open(&directory);
    let before = peak_mib();
    let mut dice = Dice(16);
    for _ in 0..ACCESSES {
        image.block_wait(Op::Read, dice.below(16 << 40) & !4095, 4096).expect("the block comes");
    }
    let after = peak_mib();
    table.row(&[&"peak memory before any access, MiB", &number(before, 1), &"", &"", &""]);
    table.row(&[&"peak memory after 10,000 random, MiB", &number(after, 1), &"", &"", &at_most(after, 64.0)]);
    image.close().expect("the image closes");
    let mut times = Samples::default();
    for _ in 0..OPENINGS {
        let begun = Instant::now();
        let image = open(&directory);
        times.add(begun.elapsed().as_secs_f64() * 1e3);
        drop(image);
    }
    let cells = (times.median(), times.quantile(0.0), times.quantile(1.0));
    table.row(&[
        &"open it again, ms",
        &number(cells.0, 2),
        &number(cells.1, 2),
        &number(cells.2, 2),
        &at_most(cells.0, 50.0),
    ]);
}

/// Most memory this process ever had resident, files mapped included, in MiB.
pub fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map(|rest| rest.trim().trim_end_matches(" kB"));
    kib.and_then(|kib| kib.parse::<f64>().ok()).map_or(f64::NAN, |kib| kib / 1024.0)
}
