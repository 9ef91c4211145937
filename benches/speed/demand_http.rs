//! A demand miss over HTTP on the loopback, against a bare keep-alive GET of the same range by the same HTTP client.
//!
//! Both take turns on the same server, which holds the image in memory. The bare client does the least that can be
//! done: send, receive, look at nothing. The miss does the same and checks the answer, stores the block in a cache on
//! disk and hands it over to the guest's thread.

use std::time::Instant;

use vmstream::{Image, Op};

use crate::dice::Dice;
use crate::origin::{self, BareClient, Origin};
use crate::samples::Samples;
use crate::table::{Table, at_most, number};

const IMAGE_BYTES: u64 = 256 << 20;
const MISSES: usize = 2000;
const WARMING: usize = 200;

pub fn run() {
    let heads = ["", "GET us", "min", "p99", "miss us", "min", "p99", "ratio", "promise", "p99", "promise"];
    let mut table = Table::new("demand_http: a miss over loopback HTTP against a bare GET (medians)", &heads);
    let directory = origin::memory();
    origin::image(directory.path(), IMAGE_BYTES);
    for (name, origin) in
        [("nginx", Origin::nginx(directory.path())), ("vmstream serve", Some(Origin::serve(directory.path(), &[])))]
    {
        let Some(origin) = origin else {
            println!("  nginx is not installed: left out");
            continue;
        };
        for bytes in [4 << 10, 64 << 10] {
            let (get, miss) = measure(&origin, bytes);
            let ratio = miss.median() / get.median();
            let tail = miss.quantile(0.99) / get.quantile(0.99);
            table.row(&[
                &format!("{name}, {} KiB", bytes >> 10),
                &number(get.median(), 1),
                &number(get.quantile(0.0), 1),
                &number(get.quantile(0.99), 0),
                &number(miss.median(), 1),
                &number(miss.quantile(0.0), 1),
                &number(miss.quantile(0.99), 0),
                &number(ratio, 2),
                &at_most(ratio, 1.15),
                &number(tail, 2),
                &at_most(tail, 1.5),
            ]);
        }
    }
}

fn measure(origin: &Origin, bytes: u64) -> (Samples, Samples) {
    let disk = origin::disk();
    let url = format!("{}image", origin.url);
    let options = [
        format!("source={url}"),
        format!("cache={}", disk.path().display()),
        "fill=off".into(),
        "prefetch=none".into(),
    ];
    let image = Image::open(options).expect("the image opens");
    let mut bare = BareClient::new(url);
    let (mut get, mut miss) = (Samples::default(), Samples::default());
    let places = Dice(bytes).shuffled(IMAGE_BYTES / bytes);
    for (turn, place) in places.iter().take(WARMING + MISSES).enumerate() {
        let offset = place * bytes;
        let mut times = [0.0; 2];
        // Who goes first changes, because the second finds the server's caches warm.
        for who in [turn % 2, 1 - turn % 2] {
            let begun = Instant::now();
            match who {
                0 => bare.get(offset, bytes),
                _ => image.block_wait(Op::Read, offset, bytes).expect("the block comes"),
            }
            times[who] = begun.elapsed().as_secs_f64() * 1e6;
        }
        if turn >= WARMING {
            get.add(times[0]);
            miss.add(times[1]);
        }
    }
    (get, miss)
}
