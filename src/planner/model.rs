//! The gate under a model checker: its real code, run through many thread schedules by shuttle.
//!
//! A small engine stands in for the real one - the same sleeping, the same turns, the planner's own book of waiting
//! requests - with a fetch that lands at once. A futex wait without limit makes every lost wake-up a deadlock, and
//! shuttle reports deadlocks.

use std::collections::HashMap;

use shuttle::sync::{Arc, Mutex};
use shuttle::thread;

use super::demand::Demand;
use super::{Planner, RequestId};
use crate::block::{Block, BlockRange, Geometry};
use crate::config::Config;
use crate::error::errno;
use crate::gate::{Answer, ENGINE_SEAT, Gate, Op, Reply, State};
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::time::Moment;

const BLOCK: u64 = 4096;
const SCHEDULES: usize = 4000;

struct Core {
    demand: Demand,
    replies: HashMap<RequestId, Reply>,
    asked: u64,
}

struct World {
    gate: Gate,
    core: Mutex<Core>,
    /// What each block holds: 0 nothing, 1 the origin's bytes, from 2 on the guest's.
    bytes: Vec<AtomicU64>,
    completions: Vec<AtomicU64>,
    closing: AtomicBool,
}

impl World {
    fn new(blocks: u64) -> Arc<Self> {
        let config = Config { ring: 2, ..Config::default() };
        let gate = Gate::new(Geometry::new(blocks * BLOCK, BLOCK).unwrap(), &config).unwrap();
        let zeroes = |n: u64| (0..n).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self {
            gate,
            core: Mutex::new(Core { demand: Demand::default(), replies: HashMap::new(), asked: 0 }),
            bytes: zeroes(blocks),
            completions: zeroes(16),
            closing: AtomicBool::new(false),
        })
    }

    fn turn(&self) {
        let mut answers = Vec::new();
        {
            let mut core = self.core.lock().unwrap();
            let core = &mut *core;
            let mut ready = Vec::new();
            if self.gate.take_attention() {
                core.demand.writes_ended(&self.gate, &mut ready);
            }
            while self.gate.next_note().is_some() {}
            while let Some(miss) = self.gate.next_miss() {
                core.asked += 1;
                let id = RequestId(core.asked);
                core.replies.insert(id, miss.reply);
                let request = Planner::request(self.gate.geometry(), miss.op, miss.offset, miss.length, Moment(0));
                if core.demand.add(id, request, &self.gate) {
                    ready.push(id);
                }
            }
            loop {
                let Some(block) = core.demand.wants().next().map(|want| want.2) else { break };
                self.land(BlockRange::one(block));
                core.demand.arrived(BlockRange::one(block), &self.gate, &mut ready);
            }
            answers.extend(ready.into_iter().filter_map(|id| core.replies.remove(&id)));
        }
        for reply in answers {
            self.gate.completed();
            match reply {
                Reply::Place(place) => self.gate.answer(place, 0),
                Reply::Tag(tag) => {
                    self.completions[tag as usize].fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }

    /// A fetch arrives: what is still absent takes the origin's bytes.
    fn land(&self, range: BlockRange) {
        let mut runs = Vec::new();
        self.gate.states.fill_begin(range, |run| runs.push(run));
        for run in runs {
            for block in run.iter() {
                let before = self.bytes[block.0 as usize].swap(1, Ordering::SeqCst);
                assert!(before < 2, "a fetch overwrote what the guest had written");
            }
            self.gate.states.fill_end(run, true);
        }
    }

    fn work(&self, seat: usize) {
        while !self.closing.load(Ordering::SeqCst) {
            self.turn();
            self.gate.signal.sleep(seat, None, || self.gate.has_work() || self.closing.load(Ordering::SeqCst));
        }
    }

    fn write(&self, offset: u64, length: u64, mark: u64) {
        self.gate.wait(Op::Write, offset, length).unwrap();
        let geometry = self.gate.geometry();
        for block in geometry.touched(offset, length).iter() {
            let whole = geometry.covered(offset, length).contains(block);
            assert!(whole || self.bytes[block.0 as usize].load(Ordering::SeqCst) != 0, "an edge was not there");
            self.bytes[block.0 as usize].store(mark, Ordering::SeqCst);
        }
        self.gate.done(Op::Write, offset, length, true).unwrap();
    }

    fn read(&self, offset: u64, length: u64) {
        self.gate.wait(Op::Read, offset, length).unwrap();
        for block in self.gate.geometry().touched(offset, length).iter() {
            assert_eq!(self.gate.states.state(block), State::Resident);
            assert_ne!(self.bytes[block.0 as usize].load(Ordering::SeqCst), 0, "ready before its bytes");
        }
    }
}

/// Runs `guests` beside a worker and an engine thread through many schedules.
fn explore(blocks: u64, guests: &'static [fn(&World)], check: fn(&World)) {
    shuttle::check_random(
        move || {
            let world = World::new(blocks);
            let seats = [0, ENGINE_SEAT].map(|seat| {
                let world = world.clone();
                thread::spawn(move || world.work(seat))
            });
            let guests: Vec<_> = guests
                .iter()
                .map(|guest| {
                    let world = world.clone();
                    thread::spawn(move || guest(&world))
                })
                .collect();
            for guest in guests {
                guest.join().unwrap();
            }
            // What was answered "pending" with a tag is completed by the turns that its push caused.
            while world.gate.outstanding() != 0 {
                thread::yield_now();
            }
            world.closing.store(true, Ordering::SeqCst);
            world.gate.signal.ring_all();
            for seat in seats {
                seat.join().unwrap();
            }
            check(&world);
        },
        SCHEDULES,
    );
}

#[test]
fn no_miss_is_lost_when_the_ring_is_full_and_threads_fall_asleep() {
    const GUESTS: [fn(&World); 3] =
        [|w| w.read(0, BLOCK), |w| w.read(BLOCK, 2 * BLOCK), |w| w.read(2 * BLOCK, 2 * BLOCK)];
    explore(4, &GUESTS, |w| assert_eq!(w.gate.states.resident_count(), 4));
}

#[test]
fn overlapping_writes_and_reads_all_go_on_and_the_guest_wins_over_fetches() {
    const GUESTS: [fn(&World); 3] = [
        |w| w.write(0, 2 * BLOCK + 512, 2),           // covers 0 and 1, half of 2
        |w| w.write(BLOCK + 512, 2 * BLOCK - 512, 3), // half of 1, covers 2
        |w| w.read(0, 3 * BLOCK),
    ];
    explore(3, &GUESTS, |w| {
        for block in 0..3 {
            assert!(w.bytes[block].load(Ordering::SeqCst) >= 2, "a guest's write is gone");
        }
    });
}

#[test]
fn a_failed_write_makes_its_block_absent_and_its_reader_gets_the_origin() {
    const GUESTS: [fn(&World); 2] = [
        |w| {
            w.gate.wait(Op::Write, 0, BLOCK).unwrap();
            w.gate.done(Op::Write, 0, BLOCK, false).unwrap();
        },
        |w| w.read(0, BLOCK),
    ];
    explore(1, &GUESTS, |w| assert!(matches!(w.gate.states.state(Block(0)), State::Resident)));
}

#[test]
fn every_pending_tag_is_completed_exactly_once() {
    const GUESTS: [fn(&World); 2] = [|w| ask(w, 0), |w| ask(w, 4)];
    fn ask(w: &World, first: u64) {
        for tag in first..first + 3 {
            loop {
                match w.gate.needed(Op::Read, (tag % 4) * BLOCK, BLOCK, tag) {
                    Ok(Answer::Ready) => {
                        w.completions[tag as usize].fetch_add(1, Ordering::SeqCst);
                        break;
                    }
                    Ok(Answer::Pending) => break,
                    Err(errno::EAGAIN) => thread::yield_now(),
                    Err(code) => panic!("errno {code}"),
                }
            }
        }
    }
    explore(4, &GUESTS, |w| {
        for tag in [0, 1, 2, 4, 5, 6] {
            assert_eq!(w.completions[tag].load(Ordering::SeqCst), 1, "tag {tag}");
        }
    });
}
