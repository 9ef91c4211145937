//! The pacing model of a shaped link: pure arithmetic on points in time, no clock, no sockets.
//!
//! # The model
//!
//! All connections share **one downlink**, a first-in-first-out queue that drains at the given rate, as the queue
//! of a router in front of a slow line does. What a server writes becomes *pieces* that join the end of that queue;
//! a piece has *left* when the line has carried its last byte, and is *delivered* half a round trip later. All
//! bytes count, also those of response headers. The uplink has no rate: a request is seen half a round trip after
//! it arrived. A new connection costs one more round trip before anything else, the handshake. So on an idle link
//! a response of `n` bytes takes `rtt + n / rate` on an open connection and `2 rtt + n / rate` on a new one.
//!
//! **Windows.** How much one connection may have in the queue is bounded by its window, as a socket's is. Whoever
//! asks for little has all of it in the queue at once; a long download keeps a window of bytes there and appends a
//! piece whenever one has left. Thus parallel downloads interleave piece by piece as TCP flows do, and a small
//! response waits for what the others have *committed* (at most a window each), not for all they will ever send.
//! The window counts what has not left the link yet, not what is unacknowledged, so that one connection alone
//! fills the link at any round trip: congestion control and loss are not modelled.
//!
//! **Cuts.** In a cut nothing moves: the line stands still in the middle of a piece, what would be delivered or
//! seen in that time is so at its end.
//!
//! # Why the rate is exact
//!
//! Departures follow from each other, not from when a timer happened to fire: a piece starts when the one before it
//! has left. A connection that had bytes to send but no room counts as waiting at the very moment its window
//! opened, however late it was told so ([`Flow::starve`]); without that every late timer would leave the line idle
//! for a moment, which at 1 Gbit/s, where a window lasts 2 ms, would cost much of the rate.
//!
//! All times here are durations since the start of the link.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

/// Smallest piece, in bytes: at 25 Mbit/s one lasts 1.3 ms, fine enough that parallel responses interleave.
const PIECE_BYTES_MIN: u64 = 4 << 10;
/// Largest piece, in bytes: the time slices of a connection stay well below the default window.
const PIECE_BYTES_MAX: u64 = 64 << 10;
/// How long a piece should at least last, in microseconds: a timer cannot be trusted with much less. It makes
/// pieces of [`PIECE_BYTES_MIN`] up to 50 Mbit/s.
const PIECE_US: u64 = 655;

/// What a link is like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Rate of the downlink in bytes per second; `None` is without limit.
    pub rate_bytes_s: Option<u64>,
    /// Round-trip time.
    pub round_trip: Duration,
    /// Most bytes one connection may have in the queue.
    pub window_bytes: usize,
    /// When nothing moves, in order of time.
    pub cuts: Vec<Range<Duration>>,
}

impl Shape {
    /// True when there is nothing to shape.
    pub fn is_plain(&self) -> bool {
        self.rate_bytes_s.is_none() && self.round_trip.is_zero() && self.cuts.is_empty()
    }

    /// Most bytes that go into the queue as one.
    pub fn piece_bytes(&self) -> usize {
        let lasting = self.rate_bytes_s.map_or(PIECE_BYTES_MAX, |rate| rate.saturating_mul(PIECE_US) / 1_000_000);
        lasting.clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX) as usize
    }

    /// When a connection that was accepted at `accepted` has shaken hands.
    pub fn opened_at(&self, accepted: Duration) -> Duration {
        self.when_up(self.when_up(accepted) + self.round_trip)
    }

    /// When the server sees what arrived at `arrived` on a connection that was `opened`.
    pub fn seen_at(&self, opened: Duration, arrived: Duration) -> Duration {
        self.when_up(self.when_up(arrived.max(opened)) + self.round_trip / 2)
    }

    /// When the client has what left the link at `left`.
    pub fn delivered_at(&self, left: Duration) -> Duration {
        self.when_up(left + self.round_trip / 2)
    }

    /// `at`, or the end of the cut that `at` lies in.
    fn when_up(&self, at: Duration) -> Duration {
        self.cuts.iter().fold(at, |at, cut| if cut.contains(&at) { cut.end } else { at })
    }

    /// How long the line needs for so many bytes.
    fn lasting(&self, bytes: usize) -> Duration {
        self.rate_bytes_s.map_or(Duration::ZERO, |rate| {
            let ns = u128::from(bytes as u64) * 1_000_000_000 / u128::from(rate.max(1));
            Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
        })
    }
}

/// The shared downlink: only when it becomes free has to be known, as the queue is first in, first out.
#[derive(Debug)]
pub struct Link {
    shape: Shape,
    free: Duration,
    committed_bytes: u64,
}

impl Link {
    /// An idle link.
    pub fn new(shape: Shape) -> Self {
        Self { shape, free: Duration::ZERO, committed_bytes: 0 }
    }

    /// Bytes that joined the queue so far.
    pub fn committed_bytes(&self) -> u64 {
        self.committed_bytes
    }

    /// Puts a piece that came at `arrival` at the end of the queue; answers when its last byte will have left.
    fn commit(&mut self, arrival: Duration, bytes: usize) -> Duration {
        let mut at = self.free.max(arrival);
        let mut lasting = self.shape.lasting(bytes);
        for cut in &self.shape.cuts {
            if cut.end <= at {
                continue;
            }
            if at + lasting <= cut.start {
                break;
            }
            lasting = lasting.saturating_sub(cut.start.saturating_sub(at));
            at = cut.end;
        }
        self.free = at + lasting;
        self.committed_bytes += bytes as u64;
        self.free
    }
}

/// One connection's share of the queue.
#[derive(Debug)]
pub struct Flow {
    window_bytes: usize,
    queued_bytes: usize,
    /// When each piece leaves, and its length.
    queued: VecDeque<(Duration, usize)>,
    /// Since when bytes have been waiting for room.
    starved: Option<Duration>,
    /// When room came for them.
    fed: Option<Duration>,
}

impl Flow {
    /// A connection with nothing in the queue.
    pub fn new(shape: &Shape) -> Self {
        Self {
            window_bytes: shape.window_bytes.max(1),
            queued_bytes: 0,
            queued: VecDeque::new(),
            starved: None,
            fed: None,
        }
    }

    /// Bytes that may join the queue now.
    pub fn room(&self) -> usize {
        self.window_bytes.saturating_sub(self.queued_bytes)
    }

    /// Notes that there are more bytes to send and no room for them.
    pub fn starve(&mut self, now: Duration) {
        if self.starved.is_none() {
            self.starved = Some(now);
            self.fed = None;
        }
    }

    /// Puts `bytes` (at most [`Flow::room`]) into the queue, cut into pieces; calls `each` with the moment it
    /// leaves and the length of every piece, in order.
    pub fn commit(&mut self, link: &mut Link, now: Duration, bytes: usize, mut each: impl FnMut(Duration, usize)) {
        let arrival = self.fed.take().unwrap_or(now).min(now);
        self.starved = None;
        let piece = link.shape.piece_bytes();
        let mut rest = bytes;
        while rest > 0 {
            let length = rest.min(piece);
            let left = link.commit(arrival, length);
            self.queued.push_back((left, length));
            self.queued_bytes += length;
            each(left, length);
            rest -= length;
        }
    }

    /// Takes note of what has left by `now`; true when that made room.
    pub fn release(&mut self, now: Duration) -> bool {
        let before = self.queued.len();
        while let Some(&(left, length)) = self.queued.front().filter(|(left, _)| *left <= now) {
            self.queued.pop_front();
            self.queued_bytes -= length;
            if let (Some(since), None) = (self.starved, self.fed) {
                self.fed = Some(left.max(since));
            }
        }
        self.queued.len() < before
    }

    /// When the next piece leaves.
    pub fn next_release(&self) -> Option<Duration> {
        self.queued.front().map(|(left, _)| *left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: u64 = 125_000;
    const WINDOW: usize = 256 << 10;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn shape(rate_bytes_s: u64, rtt: Duration) -> Shape {
        Shape { rate_bytes_s: Some(rate_bytes_s), round_trip: rtt, window_bytes: WINDOW, cuts: Vec::new() }
    }

    /// A response that is sent as a whole: when its first and its last piece leave.
    fn send(flow: &mut Flow, link: &mut Link, now: Duration, bytes: usize) -> Vec<Duration> {
        let mut left = Vec::new();
        flow.commit(link, now, bytes, |at, _| left.push(at));
        left
    }

    /// Runs greedy connections in virtual time, each told of its room only `late(step)` after the fact; answers
    /// for each how much it sent and when its last byte left.
    fn download(shape: &Shape, totals: &[usize], mut late: impl FnMut(u64) -> Duration) -> Vec<(usize, Duration)> {
        let mut link = Link::new(shape.clone());
        let mut flows: Vec<Flow> = totals.iter().map(|_| Flow::new(shape)).collect();
        let mut result = vec![(0, Duration::ZERO); totals.len()];
        let mut wake = vec![Some(Duration::ZERO); totals.len()];
        for step in 0.. {
            let next = wake.iter().enumerate().filter_map(|(i, at)| at.map(|at| (at, i))).min();
            let Some((now, i)) = next else { break };
            flows[i].release(now);
            let n = flows[i].room().min(totals[i] - result[i].0);
            flows[i].commit(&mut link, now, n, |left, length| result[i] = (result[i].0 + length, left));
            wake[i] = (result[i].0 < totals[i]).then(|| {
                flows[i].starve(now);
                flows[i].next_release().unwrap().max(now) + late(step)
            });
        }
        result
    }

    #[test]
    fn the_rate_is_exact_from_1_mbit_to_1_gbit_even_with_late_timers() {
        for mbit in [1, 25, 50, 51, 100, 1000] {
            let rate = mbit * MBIT;
            // Two seconds' worth; timers up to 1.5 ms late, which is most of a window at 1 Gbit/s.
            let total = 2 * rate as usize;
            let result = download(&shape(rate, ms(50)), &[total], |step| Duration::from_micros(step * 7919 % 1500));
            let seconds = result[0].1.as_secs_f64();
            assert!((seconds - 2.0).abs() < 0.002, "{mbit} Mbit/s: 2 s worth took {seconds} s");
        }
    }

    #[test]
    fn parallel_downloads_share_evenly_and_fill_the_link() {
        let total = 4 << 20;
        let result = download(&shape(25 * MBIT, ms(50)), &[total; 8], |_| Duration::from_micros(100));
        let whole = (8 * total) as f64 / (25 * MBIT) as f64;
        let last = result.iter().map(|(_, at)| at.as_secs_f64()).fold(0.0, f64::max);
        let first = result.iter().map(|(_, at)| at.as_secs_f64()).fold(f64::MAX, f64::min);
        assert!((last / whole - 1.0).abs() < 0.001, "{last} s, exact is {whole} s");
        // Whoever is first ends less than all windows before the last.
        assert!(last - first <= (8 * WINDOW) as f64 / (25 * MBIT) as f64 + 0.001, "{first} s to {last} s");
    }

    #[test]
    fn a_small_response_waits_for_what_is_committed_and_no_more() {
        let shape = shape(25 * MBIT, ms(50));
        let mut link = Link::new(shape.clone());
        let (mut bulk, mut small) = (Flow::new(&shape), Flow::new(&shape));
        let n = bulk.room();
        assert_eq!(n, WINDOW);
        send(&mut bulk, &mut link, ms(0), n);
        bulk.starve(ms(0));
        let left = send(&mut small, &mut link, ms(1), 4096);
        assert_eq!(left, [shape.lasting(WINDOW) + shape.lasting(4096)]);
        // What the bulk download appends now comes after it.
        assert!(bulk.release(ms(10)));
        let room = bulk.room();
        assert!(send(&mut bulk, &mut link, ms(10), room).iter().all(|at| *at > left[0]));
    }

    #[test]
    fn a_lone_response_costs_the_round_trip_and_its_bytes() {
        let shape = shape(25 * MBIT, ms(50));
        let mut link = Link::new(shape.clone());
        let opened = shape.opened_at(ms(1000));
        assert_eq!(opened, ms(1050));
        let seen = shape.seen_at(opened, ms(1000));
        assert_eq!(seen, ms(1075));
        let left = send(&mut Flow::new(&shape), &mut link, seen, 3125);
        assert_eq!(shape.delivered_at(left[0]), ms(1101));
        assert_eq!(shape.seen_at(opened, ms(2000)), ms(2025));
        assert_eq!(link.committed_bytes(), 3125);
    }

    #[test]
    fn an_idle_connection_earns_no_credit() {
        let shape = shape(25 * MBIT, ms(0));
        let mut link = Link::new(shape.clone());
        let mut flow = Flow::new(&shape);
        send(&mut flow, &mut link, ms(0), 4096);
        flow.release(ms(500));
        assert_eq!(flow.room(), WINDOW);
        assert_eq!(send(&mut flow, &mut link, ms(500), 4096), [ms(500) + shape.lasting(4096)]);
    }

    #[test]
    fn in_a_cut_nothing_moves_and_the_line_goes_on_where_it_stood() {
        let mut shape = shape(1000, ms(0));
        shape.cuts = vec![Duration::from_secs(1)..Duration::from_secs(3), Duration::from_secs(4)..ms(4500)];
        let mut link = Link::new(shape.clone());
        let mut flow = Flow::new(&shape);
        // 2.5 s of line from 0.5 s on: 0.5 before the first cut, 1 between both, 1 after.
        assert_eq!(send(&mut flow, &mut link, ms(500), 2500), [ms(5500)]);
        assert_eq!(shape.delivered_at(ms(1000)), ms(3000));
        assert_eq!(shape.delivered_at(ms(999)), ms(999));
        assert_eq!(shape.seen_at(ms(0), ms(4499)), ms(4500));
        shape.round_trip = ms(200);
        assert_eq!(shape.opened_at(ms(900)), ms(3000), "the answer to the handshake is caught by the cut");
        assert_eq!(shape.seen_at(ms(0), ms(950)), ms(3000));
    }

    #[test]
    fn without_a_rate_only_the_delay_remains() {
        let shape = Shape { rate_bytes_s: None, ..shape(1, ms(50)) };
        let mut link = Link::new(shape.clone());
        let left = send(&mut Flow::new(&shape), &mut link, ms(7), WINDOW);
        assert!(left.iter().all(|at| *at == ms(7)));
        assert!(!shape.is_plain());
        assert!(Shape { round_trip: ms(0), ..shape }.is_plain());
    }

    #[test]
    fn pieces_are_small_on_slow_links_and_bounded_on_fast_ones() {
        assert_eq!(shape(MBIT, ms(0)).piece_bytes(), 4096);
        assert_eq!(shape(50 * MBIT, ms(0)).piece_bytes(), 4096);
        assert_eq!(shape(100 * MBIT, ms(0)).piece_bytes(), 8187);
        assert_eq!(shape(u64::MAX, ms(0)).piece_bytes(), 64 << 10);
    }
}
