//! How long a guest waits for one block while the fill has the slow link to itself: the price of streaming ahead.
//!
//! The idle link is measured before and after, with the same image and the same connections.

use std::time::{Duration, Instant};

use vmstream::{Image, Op};

use crate::dice::Dice;
use crate::origin::{self, Origin};
use crate::samples::Samples;
use crate::table::{Table, at_most, number};

const IMAGE_BYTES: u64 = 512 << 20;
/// Blocks on the idle link, before and after.
const IDLE: usize = 60;
const FILLING: usize = 300;
/// For the fill to fill the link, and for the link to become idle again.
const SETTLING: Duration = Duration::from_secs(4);

pub fn run() {
    let heads = ["", "blocks", "median ms", "min", "p95", "max", "ratio", "promise", "p95", "promise"];
    let mut table =
        Table::new("demand_under_fill: a 4 KiB miss at 25 Mbit/s and 50 ms while the fill takes the rest", &heads);
    let directory = origin::memory();
    origin::image(directory.path(), IMAGE_BYTES);
    let origin = Origin::serve(directory.path(), &["--rate", "25mbit", "--rtt", "50ms"]);
    let disk = origin::disk();
    let options = [
        format!("source={}image", origin.url),
        format!("cache={}", disk.path().display()),
        "fill=off".into(),
        "prefetch=none".into(),
    ];
    let image = Image::open(options).expect("the image opens");
    // The upper half: the fill begins at the start and does not come that far.
    let half = IMAGE_BYTES / 4096 / 2;
    let mut blocks = Dice(5).shuffled(half).into_iter().map(|block| (half + block) * 4096);
    let mut dice = Dice(6);
    let mut misses = |count: usize| {
        let mut times = Samples::default();
        for offset in blocks.by_ref().take(count) {
            let begun = Instant::now();
            image.block_wait(Op::Read, offset, 4096).expect("the block comes");
            times.add(begun.elapsed().as_secs_f64() * 1e3);
            // Not in step with the chunks of the fill.
            std::thread::sleep(Duration::from_millis(dice.below(30)));
        }
        times
    };
    misses(5);
    let before = misses(IDLE);
    image.set("fill", "on").expect("the fill starts");
    std::thread::sleep(SETTLING);
    let (bytes, begun) = (image.stats().bytes_fetched, Instant::now());
    let busy = misses(FILLING);
    let used = (image.stats().bytes_fetched - bytes) as f64 / begun.elapsed().as_secs_f64() / 3_125_000.0;
    image.set("fill", "off").expect("the fill stops");
    std::thread::sleep(SETTLING);
    let after = misses(IDLE);
    let mut idle = Samples::default();
    idle.extend(before.into_iter().chain(after));
    for (name, times) in [("idle link", &idle), ("fill under way", &busy)] {
        let (ratio, tail) = (times.median() / idle.median(), times.quantile(0.95) / idle.median());
        let filling = std::ptr::eq(times, &busy);
        let promise = |text: String| if filling { text } else { String::new() };
        table.row(&[
            &name,
            &times.len(),
            &number(times.median(), 1),
            &number(times.quantile(0.0), 1),
            &number(times.quantile(0.95), 1),
            &number(times.quantile(1.0), 1),
            &number(ratio, 2),
            &promise(at_most(ratio, 1.6)),
            &number(tail, 2),
            &promise(at_most(tail, 2.5)),
        ]);
    }
    drop(table);
    println!("  share of the link in use meanwhile: {used:.3}");
}
