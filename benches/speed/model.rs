//! Training is linear in the sessions and bounded in memory, and a large model is loaded before anybody notices.
//!
//! The sessions are made up: a start of 10,000 blocks, then five of thirty tasks of 8,000 blocks each, in any order, with
//! small differences; 50,000 blocks in all. Limits hold the model to what it remembers, so that of 10,000 sessions is no
//! larger than that of 1,000.

use std::time::{Duration, Instant};

use vmstream::block::Geometry;
use vmstream::gate::Op;
use vmstream::model::{Limits, Model, Trainer};
use vmstream::session::{Access, Session};

use crate::dice::Dice;
use crate::origin;
use crate::samples::Samples;
use crate::sparse::peak_mib;
use crate::table::{Table, at_most, number};

const IMAGE_BYTES: u64 = 16 << 30;
const BLOCK_BYTES: u64 = 4096;
const START_BLOCKS: u64 = 10_000;
const TASKS: u64 = 30;
const TASK_BLOCKS: u64 = 8_000;
const TASKS_A_SESSION: usize = 5;
/// Blocks of an access, and the next one is elsewhere: as on an old and full file system, and dear to remember.
const PIECE_BLOCKS: u64 = 2;
const LOADS: usize = 9;

pub fn run() {
    let directory = origin::memory();
    let path = directory.path().join("model.vmm");
    let mut table = Table::new("model: sessions of 50,000 blocks of 4 KiB", &["", "250", "500", "1000", "promise"]);
    let (mut learnt, mut made, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    let mut remembered = Vec::new();
    for sessions in [250, 500, 1000] {
        let mut trainer = Trainer::new(geometry(), Limits::default());
        let mut adding = Duration::ZERO;
        for seed in 0..sessions {
            let session = session(seed);
            let begun = Instant::now();
            trainer.add(&session).expect("it is of the same image");
            adding += begun.elapsed();
        }
        let begun = Instant::now();
        let (model, file) = trainer.finish_file();
        made.push(begun.elapsed().as_secs_f64());
        learnt.push(adding.as_secs_f64() * 1e3 / sessions as f64);
        let blocks: u64 = model.sequences().iter().map(|s| u64::from(s.blocks)).sum();
        bytes.push(file.len() as f64 / blocks as f64);
        remembered.push(model.paths().len() as f64);
        std::fs::write(&path, file).expect("there is room in memory");
    }
    let mut row = |what: &str, values: &[f64], digits: usize, promise: &str| {
        let cells: Vec<String> = values.iter().map(|&value| number(value, digits)).collect();
        table.row(&[&what, &cells[0], &cells[1], &cells[2], &promise]);
    };
    row("learn one, ms", &learnt, 2, &format!("linear: {}", at_most(learnt[2] / learnt[0], 1.5)));
    row("make the model of those remembered, s", &made, 2, "");
    row("remembered", &remembered, 0, "");
    row("file, bytes a distinct block", &bytes, 1, "");
    drop(table);

    let mut table = Table::new("model: of 1,000 such sessions", &["", "median", "min", "max", "promise"]);
    let mut times = Samples::default();
    for _ in 0..LOADS {
        let begun = Instant::now();
        let model = Model::load(&path).expect("it was written just now");
        times.add(begun.elapsed().as_secs_f64() * 1e3);
        drop(model);
    }
    let (median, min, max) = (times.median(), times.quantile(0.0), times.quantile(1.0));
    let cells = [median, min, max].map(|value| number(value, 1));
    table.row(&[&"load, ms", &cells[0], &cells[1], &cells[2], &at_most(median, 50.0)]);
    let peak = peak_mib();
    table.row(&[&"peak memory of training, MiB", &number(peak, 0), &"", &"", &at_most(peak, 512.0)]);
}

fn geometry() -> Geometry {
    Geometry::new(IMAGE_BYTES, BLOCK_BYTES).expect("an ordinary image")
}

fn session(seed: u64) -> Session {
    let mut dice = Dice(seed);
    let mut accesses = Vec::new();
    let mut at = Duration::ZERO;
    let chosen = dice.shuffled(TASKS).into_iter().take(TASKS_A_SESSION).map(|task| (task + 1) * 2 * TASK_BLOCKS);
    let parts = std::iter::once((0, START_BLOCKS)).chain(chosen.map(|first| (first, TASK_BLOCKS)));
    for (first, blocks) in parts {
        // The pieces of a task lie scattered over its area, the same in every session.
        let mut order = Dice(first).shuffled(blocks / PIECE_BLOCKS);
        for at in 1..order.len() {
            if dice.below(20) == 0 {
                order.swap(at - 1, at);
            }
        }
        for piece in order {
            at += Duration::from_micros(100 + dice.below(1000));
            let (offset, length) = ((first + piece * PIECE_BLOCKS) * BLOCK_BYTES, PIECE_BLOCKS * BLOCK_BYTES);
            accesses.push(Access { at, op: Op::Read, offset, length, stalled: Duration::ZERO });
        }
        at += Duration::from_secs(1);
    }
    Session { geometry: geometry(), accesses, marks: Vec::new() }
}
