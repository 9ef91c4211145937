//! The shaped link from outside. Only lower bounds: a busy machine can make things slower, but nothing may be faster
//! than the line allows. The exact behaviour is tested in virtual time beside the model.

use std::time::{Duration, Instant};

use crate::harness::{Client, Server, sample};

fn site() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("disk.img"), sample(1 << 20)).unwrap();
    dir
}

fn part(client: &mut Client, first: usize, length: usize) {
    let answer = client.get("/disk.img", &format!("Range: bytes={first}-{}\r\n", first + length - 1));
    assert!(answer.body == sample(1 << 20)[first..first + length]);
}

#[test]
fn nothing_is_faster_than_the_rate_not_even_together() {
    let dir = site();
    let server = Server::start(dir.path(), &["--rate", "8mbit", "--window", "32K"]);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for i in 0..4 {
            let mut client = server.client();
            scope.spawn(move || part(&mut client, i * 1000, 100_000));
        }
    });
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(400), "4 x 100,000 bytes at 1 MB/s in {took:?}");
}

#[test]
fn a_request_costs_a_round_trip_and_a_new_connection_one_more() {
    let dir = site();
    let rtt = Duration::from_millis(80);
    let server = Server::start(dir.path(), &["--rtt", "80ms"]);
    let begin = Instant::now();
    let mut client = server.client();
    part(&mut client, 0, 4096);
    let first = begin.elapsed();
    // The server may have taken the connection a moment after the client had it, never before.
    assert!(first >= 2 * rtt, "{first:?} on a new connection");
    let begin = Instant::now();
    part(&mut client, 8192, 4096);
    let second = begin.elapsed();
    assert!(second >= rtt, "{second:?} on an open connection");
}

#[test]
fn nothing_moves_while_the_link_is_cut() {
    let dir = site();
    let begin = Instant::now();
    let server = Server::start(dir.path(), &["--down", "0s..800ms"]);
    part(&mut server.client(), 0, 4096);
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(800), "an answer after {took:?}");
}
