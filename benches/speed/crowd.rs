//! Many clients at one `vmstream serve`: does each get its share?
//!
//! All are connected before the first asks. Each then fetches its bytes in ranges, one after the other, as a guest on
//! demand does, and notes when it has them all. The spread of these moments says whether somebody is starved: with fair
//! shares all end at about the same time. nginx on the same files is the baseline. The clients are threads of this one
//! process and need the processor too, so the rate is not the server's alone.

use std::sync::Barrier;
use std::time::Instant;

use crate::origin::{self, BareClient, Origin};
use crate::samples::Samples;
use crate::table::{Table, at_most, number};

const IMAGE_BYTES: u64 = 256 << 20;
const RANGE_BYTES: u64 = 64 << 10;
/// Stack of a client, in bytes.
const STACK_BYTES: usize = 256 << 10;

pub fn run() {
    let heads =
        ["", "clients", "first s", "median s", "p99 s", "last s", "MB/s", "last / first", "last / median", "promise"];
    let mut table = Table::new("crowd: when clients that begin together have their bytes", &heads);
    let directory = origin::memory();
    origin::image(directory.path(), IMAGE_BYTES);
    let ranges = if crate::quick() { 8 } else { 64 };
    for (name, origin) in
        [("nginx", Origin::nginx(directory.path())), ("vmstream serve", Some(Origin::serve(directory.path(), &[])))]
    {
        let Some(origin) = origin else {
            println!("  nginx is not installed: left out");
            continue;
        };
        for clients in [50, 500] {
            let ends = measure(&origin, clients, ranges);
            let (first, last) = (ends.quantile(0.0), ends.quantile(1.0));
            let rate = clients as f64 * ranges as f64 * RANGE_BYTES as f64 / last / 1e6;
            // A client that gets half of what the others get ends when they are long gone. One that is early, as with
            // few ranges the first to start may be, takes nothing away from them.
            let late = last / ends.median();
            let promise = if name == "nginx" { String::new() } else { at_most(late, 2.0) };
            table.row(&[
                &name,
                &clients,
                &number(first, 2),
                &number(ends.median(), 2),
                &number(ends.quantile(0.99), 2),
                &number(last, 2),
                &number(rate, 0),
                &number(last / first, 2),
                &number(late, 2),
                &promise,
            ]);
        }
    }
}

/// When each client had all its ranges, in seconds after the start.
fn measure(origin: &Origin, clients: u64, ranges: u64) -> Samples {
    let start = Barrier::new(clients as usize + 1);
    let url = format!("{}image", origin.url);
    std::thread::scope(|scope| {
        let client = |number: u64| {
            let (start, url) = (&start, url.clone());
            let body = move || {
                let mut client = BareClient::new(url);
                client.get(0, 1);
                start.wait();
                start.wait();
                for n in 0..ranges {
                    let place = (number * 7919 + n * 104_729) * 4096 % (IMAGE_BYTES - RANGE_BYTES);
                    client.get(place, RANGE_BYTES);
                }
                Instant::now()
            };
            let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
            builder.spawn_scoped(scope, body).expect("a thread can be started")
        };
        let running: Vec<_> = (0..clients).map(client).collect();
        start.wait();
        let begin = Instant::now();
        start.wait();
        let mut ends = Samples::default();
        for client in running {
            let end = client.join().expect("a client gets its bytes");
            ends.add(end.duration_since(begin).as_secs_f64());
        }
        ends
    })
}
