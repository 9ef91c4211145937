//! What a miss costs when the source costs nothing: the way from the guest's thread to a worker and back.
//!
//! A pattern is made in a microsecond or two, so what is left is the library: the miss ring, waking the worker, one
//! turn of the planner, storing the block, waking the guest. Two ways of asking are measured: block after block, as a
//! guest that waits for nothing else, and with a pause between two, after which everybody sleeps and has to be woken.

use std::time::{Duration, Instant};

use vmstream::{Image, Op};

use crate::dice::Dice;
use crate::origin;
use crate::samples::Samples;
use crate::switches::switches;
use crate::table::{Table, at_most, number};

const IMAGE_BYTES: u64 = 1 << 30;
const MISSES: usize = 4000;
/// Long enough that every thread has gone to sleep.
const PAUSE: Duration = Duration::from_micros(500);

pub fn run() {
    let heads = ["", "median us", "min", "p99", "max", "promise", "switches", "forced", "promise"];
    let mut table = Table::new("miss: 4 KiB of a pattern, one block at a time", &heads);
    let blocks = Dice(1).shuffled(IMAGE_BYTES / 4096);
    let source = format!("source=pattern:{IMAGE_BYTES}");
    let disk = origin::disk();
    let kept = format!("cache={}", disk.path().display());
    for (name, options, pause) in [
        ("nameless, at once", vec!["fill=off", "prefetch=none"], Duration::ZERO),
        ("nameless, after a pause", vec!["fill=off", "prefetch=none"], PAUSE),
        ("cache on disk, at once", vec!["fill=off", "prefetch=none", &kept], Duration::ZERO),
        ("cache on disk, after a pause", vec!["fill=off", "prefetch=none", &kept], PAUSE),
    ] {
        let image = Image::open(options.into_iter().chain([source.as_str()])).expect("the image opens");
        // The second use of the cache on disk finds the blocks of the first there.
        let from = if pause.is_zero() { 0 } else { MISSES + 200 };
        let wait = |block: &u64| {
            let begun = Instant::now();
            image.block_wait(Op::Read, block * 4096, 4096).expect("the block comes");
            begun.elapsed().as_secs_f64() * 1e6
        };
        blocks[from..from + 200].iter().for_each(|block| _ = wait(block));
        let mut times = Samples::default();
        let before = switches();
        let mut pauses = 0;
        for block in &blocks[from + 200..from + 200 + MISSES] {
            times.add(wait(block));
            if !pause.is_zero() {
                std::thread::sleep(pause);
                pauses += 1;
            }
        }
        let after = switches();
        // A pause puts this thread to sleep once more, which is no doing of the library.
        let slept = (after.0 - before.0 - pauses) as f64 / times.len() as f64;
        let forced = (after.1 - before.1) as f64 / times.len() as f64;
        table.row(&[
            &name,
            &number(times.median(), 1),
            &number(times.quantile(0.0), 1),
            &number(times.quantile(0.99), 1),
            &number(times.quantile(1.0), 0),
            &at_most(times.median(), 60.0),
            &number(slept, 2),
            &number(forced, 2),
            // Noise of other processes and the checkpoint once a second are in it; hence a little room.
            &at_most(slept, 2.05),
        ]);
    }
}
