//! What following a guest costs the thread that does it, with as much to follow as a model can remember.
//!
//! 256 sessions of 16,000 first touches are remembered, the most that the limits of training let in, and they do 120 tasks in
//! any order, so that there are tens of thousands of sequences and many ways on from each. A guest that does six of the
//! tasks is followed block by block, and what it may want next is planned afresh every 64 blocks, against a bit for each
//! block that is here. Times are the thread's own on the processor. The baseline is finding the owner of each of these blocks, which is the least that a touch takes.

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use vmstream::block::{Block, BlockRange};
use vmstream::link::Link;
use vmstream::model::{Limits, Model, Trainer};
use vmstream::predictor::{Foresight, Predictor};

use crate::guests::{Guests, Shape};
use crate::processor::spent;
use crate::samples::Samples;
use crate::table::{Table, at_most, number};

const SHAPE: Shape = Shape {
    image_bytes: 16 << 30,
    start_blocks: 3_000,
    tasks: 120,
    task_blocks: 1_200..2_800,
    piece_blocks_max: 3,
    pause_us_max: 1000,
};
const SESSIONS: u64 = 256;
const TASKS_A_SESSION: usize = 5;
const SEED: u64 = 5;
const GUESTS: u64 = 5;
/// Blocks between two plans.
const PLAN_EVERY: usize = 64;

pub fn run() {
    let guests = Guests::new(SHAPE, SEED);
    let mut trainer = Trainer::new(guests.geometry(), Limits::default());
    for seed in 0..SESSIONS {
        trainer.add(&guests.any_session(seed, TASKS_A_SESSION, 0..SHAPE.tasks)).expect("it is of the same image");
    }
    let model = Arc::new(trainer.finish());
    let (sequences, paths) = (model.sequences().len(), model.paths().len());
    let visits = model.paths().iter().map(|path| path.visits.len()).sum::<usize>() / paths;
    let title = format!("follow: {sequences} sequences, {paths} sessions remembered, {visits} visits in each");
    let mut table = Table::new(&title, &["", "median", "p99", "max", "promise"]);
    let mut row = |what: &str, times: &Samples, digits: usize, promise: &str| {
        let cells = [0.5, 0.99, 1.0].map(|share| number(times.quantile(share), digits));
        table.row(&[&what, &cells[0], &cells[1], &cells[2], &promise]);
    };
    let mut figures = Figures::default();
    for seed in 0..GUESTS {
        follow(&guests, &model, 1 << 40 | seed, &mut figures);
    }
    row("find the owner of a block, ns", &figures.owner_ns, 0, "");
    let touch = figures.touch_ns.quantile(0.99);
    row("touch a block, ns on average over 64", &figures.touch_ns, 0, &at_most(touch, 5000.0));
    let plan = figures.plan_us.quantile(0.99);
    row("plan, us", &figures.plan_us, 0, &at_most(plan, 1000.0));
    row("candidates of a plan", &figures.candidates, 0, "");
}

/// Measurements over all guests.
#[derive(Default)]
struct Figures {
    owner_ns: Samples,
    touch_ns: Samples,
    plan_us: Samples,
    candidates: Samples,
}

fn follow(guests: &Guests, model: &Arc<Model>, seed: u64, figures: &mut Figures) {
    let session = guests.any_session(seed, TASKS_A_SESSION + 1, 0..SHAPE.tasks);
    let touches: Vec<Block> = session.first_touches().iter().map(|touch| touch.block).collect();
    let here = RefCell::new(vec![0u64; (guests.geometry().blocks() / 64 + 1) as usize]);
    let absent = |range: BlockRange| {
        let here = here.borrow();
        range.iter().any(|block| here[(block.0 / 64) as usize] >> (block.0 % 64) & 1 == 0)
    };
    let mut predictor = Predictor::new(Arc::clone(model));
    let link = Link::default();
    for some in touches.chunks_exact(PLAN_EVERY) {
        let each = |spent: Duration| spent.as_secs_f64() * 1e9 / PLAN_EVERY as f64;
        let begun = spent();
        for &block in some {
            black_box(model.owner(block));
        }
        figures.owner_ns.add(each(spent() - begun));
        let begun = spent();
        for &block in some {
            predictor.touch(BlockRange::one(block));
        }
        figures.touch_ns.add(each(spent() - begun));
        for block in some {
            here.borrow_mut()[(block.0 / 64) as usize] |= 1 << (block.0 % 64);
        }
        let begun = spent();
        predictor.plan(&link, &absent);
        figures.plan_us.add((spent() - begun).as_secs_f64() * 1e6);
        figures.candidates.add(predictor.candidates().len() as f64);
    }
}
