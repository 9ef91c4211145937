//! A demand miss over HTTP on the loopback, against a bare keep-alive GET of the same range by the same HTTP client.
//!
//! Three take turns on the same server, which holds the image in memory:
//!
//! * *GET*: the least that can be done. Send, receive, look at nothing, forget it.
//! * *floor*: the least that can be done when the guest's thread must not do it itself and the bytes must be in a file:
//!   hand the range to a thread that waits, GET there, `pwrite`, wake the asker.
//! * *miss*: the library, which also plans, checks the answer, keeps the file's time and marks the block as resident.
//!
//! The promise is against GET. How much of the difference is the library's own shows in the ratio to the floor; the rest
//! is what two thread switches and a write cost on this machine.

use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
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
    let heads = [
        "",
        "GET us",
        "min",
        "p99",
        "floor us",
        "p99",
        "miss us",
        "min",
        "p99",
        "/ floor",
        "/ GET",
        "promise",
        "p99 / GET",
        "promise",
    ];
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
            let [get, floor, miss] = measure(&origin, bytes);
            let ratio = miss.median() / get.median();
            let tail = miss.quantile(0.99) / get.quantile(0.99);
            table.row(&[
                &format!("{name}, {} KiB", bytes >> 10),
                &number(get.median(), 1),
                &number(get.quantile(0.0), 1),
                &number(get.quantile(0.99), 0),
                &number(floor.median(), 1),
                &number(floor.quantile(0.99), 0),
                &number(miss.median(), 1),
                &number(miss.quantile(0.0), 1),
                &number(miss.quantile(0.99), 0),
                &number(miss.median() / floor.median(), 2),
                &number(ratio, 2),
                &at_most(ratio, 1.15),
                &number(tail, 2),
                &at_most(tail, 1.5),
            ]);
        }
    }
}

/// A thread that gets ranges and stores them in a file for somebody else.
struct Floor {
    ranges: SyncSender<(u64, u64)>,
    done: Receiver<()>,
}

impl Floor {
    fn start(mut client: BareClient) -> Self {
        let file = tempfile::tempfile_in("/var/tmp").expect("a file on the disk");
        let (ranges, asked) = sync_channel(1);
        let (tell, done) = sync_channel(1);
        // Ends when the asker is gone.
        std::thread::spawn(move || {
            for (offset, length) in asked {
                let bytes = client.get(offset, length);
                file.write_all_at(bytes, offset).expect("the bytes can be stored");
                if tell.send(()).is_err() {
                    break;
                }
            }
        });
        Self { ranges, done }
    }

    fn get(&self, offset: u64, length: u64) {
        self.ranges.send((offset, length)).expect("the thread is there");
        self.done.recv().expect("the thread is there");
    }
}

/// Times of GET, floor and miss, in microseconds.
fn measure(origin: &Origin, bytes: u64) -> [Samples; 3] {
    let disk = origin::disk();
    let url = format!("{}image", origin.url);
    let options = [
        format!("source={url}"),
        format!("cache={}", disk.path().display()),
        "fill=off".into(),
        "prefetch=none".into(),
    ];
    let image = Image::open(options).expect("the image opens");
    let mut bare = BareClient::new(url.clone());
    let floor = Floor::start(BareClient::new(url));
    let mut samples: [Samples; 3] = Default::default();
    let places = Dice(bytes).shuffled(IMAGE_BYTES / bytes);
    for (turn, place) in places.iter().take(WARMING + MISSES).enumerate() {
        let offset = place * bytes;
        // Who goes first changes, because those after it find the server's caches warm.
        for who in (0..3).map(|step| (turn + step) % 3) {
            let begun = Instant::now();
            match who {
                0 => _ = bare.get(offset, bytes),
                1 => floor.get(offset, bytes),
                _ => image.block_wait(Op::Read, offset, bytes).expect("the block comes"),
            }
            if turn >= WARMING {
                samples[who].add(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    samples
}
