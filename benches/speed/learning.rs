//! What learning is worth where sessions are no repetitions of each other, in virtual time: the figures are the same on
//! every machine.
//!
//! * `branching`: 30 tasks are known from 60 sessions that did two to six of them; the guests do two to six in orders of
//!   their own.
//! * `drift`: after 60 such sessions the work changes to eight tasks that nobody has done before. How is a guest served after so many
//!   sessions of the new kind, each learnt by a call of its own?
//! * `retention`: a model that has room for 24 sessions learns 24 of that kind, and then 72 that all do the same one task. What
//!   is left for guests of the first kind?
//! * `poison`: one in ten of the sessions is a program that reads blocks here and there, or the whole disk.
//!
//! A figure is the guests' total time over that of an oracle, which knows the future on the same link.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use vmstream::config::Config;
use vmstream::model::{Limits, Model, Trainer};
use vmstream::replay::oracle::bound;
use vmstream::replay::{LinkModel, Policy, Setup, guest, run};
use vmstream::session::Session;

use crate::dice::Dice;
use crate::guests::{BLOCK_BYTES, Guests, Shape};
use crate::quick;
use crate::samples::Samples;
use crate::table::{Table, at_most, number};

/// Sessions of 40 to 220 MB, as those of a Debian guest with desktop programs, databases and compilers are.
const SHAPE: Shape = Shape {
    image_bytes: 8 << 30,
    start_blocks: 6_000,
    tasks: 38,
    task_blocks: 1_500..8_500,
    piece_blocks_max: 64,
    pause_us_max: 20_000,
};
/// The tasks that are done at first, and those that come with the change.
const OLD: Range<u64> = 0..30;
const NEW: Range<u64> = 30..38;
/// Tasks of a session.
const TASKS: Range<u64> = 2..7;
const LEARNT: u64 = 60;
const SEED: u64 = 6;
/// 25 Mbit/s.
const LINK: LinkModel = LinkModel { rate: 25e6 / 8.0, round_trip: Duration::from_millis(50) };
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Seeds of guests that nobody has learnt begin here.
const UNKNOWN: u64 = 1 << 40;
/// Sessions that a small model remembers, and those that flood it.
const ROOM: u64 = 24;
const FLOOD: u64 = 3 * ROOM;
/// Sessions of the new kind after which the change shall be over.
const RECOVERED: u64 = 5;

/// Guests of this part, and how many of them are replayed.
fn world() -> (Guests, u64) {
    (Guests::new(SHAPE, SEED), if quick() { 2 } else { 12 })
}

/// A session of some tasks of `from`.
fn session(guests: &Guests, seed: u64, from: Range<u64>) -> Session {
    let tasks = TASKS.start + Dice(seed ^ 0xB12C).below(TASKS.end - TASKS.start);
    guests.any_session(seed, tasks as usize, from)
}

fn train(guests: &Guests, sessions: impl IntoIterator<Item = Session>) -> (Arc<Model>, Vec<u8>) {
    learn(Trainer::new(guests.geometry(), Limits::default()), sessions)
}

fn learn(mut trainer: Trainer, sessions: impl IntoIterator<Item = Session>) -> (Arc<Model>, Vec<u8>) {
    for session in sessions {
        trainer.add(&session).expect("it is of the same image");
    }
    let (model, file) = trainer.finish_file();
    (Arc::new(model), file)
}

fn learnt(guests: &Guests) -> impl Iterator<Item = Session> {
    (0..LEARNT).map(|seed| session(guests, seed, OLD))
}

/// What came of some replays: total over that of the oracle, and bytes over those of use.
#[derive(Default)]
struct Outcome {
    ratios: Samples,
    bytes: u64,
    used: u64,
}

impl Outcome {
    fn mean(&self) -> f64 {
        self.ratios.mean()
    }

    fn cells(&self) -> [String; 3] {
        let spent = self.bytes as f64 / self.used as f64;
        [number(self.mean(), 3), number(self.ratios.quantile(1.0), 3), number(spent, 2)]
    }
}

/// Replays so many guests that nobody has learnt.
fn replay(guests: &Guests, from: Range<u64>, count: u64, policy: Policy, model: &Arc<Model>) -> Outcome {
    let mut outcome = Outcome::default();
    for seed in UNKNOWN..UNKNOWN + count {
        let session = session(guests, seed, from.clone());
        let steps = guest(&session, 1.0, PAUSE_MAX);
        let mut config = Config { fill: false, block_bytes: BLOCK_BYTES, ..Config::default() };
        let foresight = policy.foresight(&mut config, Some(model), &session);
        let geometry = session.geometry;
        let figures = run(Setup { steps: &steps, geometry, link: LINK, config, foresight, packs: None });
        assert_eq!(figures.steps, steps.len(), "the guest waits without end");
        let total = bound(&steps, geometry, LINK).total();
        outcome.ratios.add(figures.total.as_secs_f64() / total.as_secs_f64());
        outcome.bytes += figures.bytes;
        outcome.used += figures.used_bytes;
    }
    outcome
}

pub fn branching() {
    let (guests, count) = world();
    let (model, _) = train(&guests, learnt(&guests));
    let mut table = Table::new(
        &format!("branching: {count} guests of 2 to 6 of 30 tasks, {LEARNT} sessions learnt, 25 Mbit/s, 50 ms"),
        &["total / oracle", "mean", "worst", "bytes / used", "promise"],
    );
    for policy in Policy::ALL {
        let outcome = replay(&guests, OLD, count, policy, &model);
        let promise = if policy == Policy::Planner { at_most(outcome.mean(), 1.1) } else { String::new() };
        let cells = outcome.cells();
        table.row(&[&policy.name(), &cells[0], &cells[1], &cells[2], &promise]);
    }
}

pub fn drift() {
    let (guests, count) = world();
    let mut table = Table::new(
        &format!("drift: {count} guests of 2 to 6 of 8 new tasks, after {LEARNT} sessions of 30 others"),
        &["sessions of the new kind learnt", "mean", "worst", "bytes / used", "mean with these alone", "promise"],
    );
    let news = |number: u64| session(&guests, 1 << 20 | number, NEW);
    let alone = |number: u64| {
        let (model, _) = train(&guests, (0..number).map(news));
        replay(&guests, NEW, count, Policy::Planner, &model)
    };
    let settled = alone(LEARNT);
    let (mut model, mut file) = train(&guests, learnt(&guests));
    for known in 0..=2 * RECOVERED {
        if known > 0 {
            let trainer = Trainer::resume("model", &file[..], Limits::default()).expect("it was made just now");
            (model, file) = learn(trainer, [news(known - 1)]);
        }
        let outcome = replay(&guests, NEW, count, Policy::Planner, &model);
        // Nearly as good as if there never had been anything else: by chance a task may have come in none of the five.
        let limit = (settled.mean() * 1.05 * 1e3).round() / 1e3;
        let promise = if known == RECOVERED { at_most(outcome.mean(), limit) } else { String::new() };
        let cells = outcome.cells();
        table.row(&[&known, &cells[0], &cells[1], &cells[2], &number(alone(known).mean(), 3), &promise]);
    }
    let cells = settled.cells();
    table.row(&[&LEARNT, &"", &"", &"", &cells[0], &""]);
    let readahead = replay(&guests, NEW, count, Policy::Readahead, &model).cells();
    table.row(&[&"readahead only", &readahead[0], &readahead[1], &readahead[2], &"", &""]);
}

pub fn retention() {
    let (guests, count) = world();
    let mut table = Table::new(
        &format!("retention: {count} guests of 2 to 6 of 30 tasks, room for {ROOM} sessions"),
        &["learnt", "mean", "worst", "bytes / used", "promise"],
    );
    let limits = Limits { paths_max: ROOM as usize, ..Limits::default() };
    let mixed = || (0..ROOM).map(|seed| session(&guests, seed, OLD));
    let same = |number: u64| guests.session(1 << 20 | number, &[OLD.start]);
    let before = learn(Trainer::new(guests.geometry(), limits), mixed());
    let mut after = before.clone();
    for number in 0..FLOOD {
        let trainer = Trainer::resume("model", &after.1[..], limits).expect("it was made just now");
        after = learn(trainer, [same(number)]);
    }
    let alone = learn(Trainer::new(guests.geometry(), limits), (0..ROOM).map(same));
    let outcomes = [&before.0, &after.0, &alone.0].map(|model| replay(&guests, OLD, count, Policy::Planner, model));
    let limit = (outcomes[0].mean() * 1.1 * 1e3).round() / 1e3;
    let names = [
        format!("{ROOM} of this kind"),
        format!("and then {FLOOD} of one task, one by one"),
        "of that task alone: what a ring would have".to_owned(),
    ];
    for (at, (name, outcome)) in names.iter().zip(&outcomes).enumerate() {
        let promise = if at == 1 { at_most(outcome.mean(), limit) } else { String::new() };
        let cells = outcome.cells();
        table.row(&[name, &cells[0], &cells[1], &cells[2], &promise]);
    }
}

pub fn poison() {
    let (guests, count) = world();
    let mut table = Table::new(
        &format!("poison: {count} guests of 2 to 6 of 30 tasks, {LEARNT} sessions and a ninth more of poison learnt"),
        &["total / oracle", "mean", "worst", "bytes / used", "promise"],
    );
    let number = LEARNT / 9;
    let scan = |seed| guests.scan(seed, 12_000);
    let whole = |seed| guests.whole_disk(seed);
    let kinds: [(&str, Vec<Session>); 4] = [
        ("none", Vec::new()),
        ("blocks here and there", (0..number).map(scan).collect()),
        ("the whole disk", (0..number).map(whole).collect()),
        ("both", (0..number / 2).flat_map(|seed| [scan(seed), whole(seed)]).collect()),
    ];
    let mut clean = None;
    for (name, poison) in kinds {
        let (model, _) = train(&guests, learnt(&guests).chain(poison));
        let outcome = replay(&guests, OLD, count, Policy::Planner, &model);
        let clean = *clean.get_or_insert(outcome.mean());
        let promise = at_most(outcome.mean() / clean, 1.03);
        let cells = outcome.cells();
        table.row(&[&name, &cells[0], &cells[1], &cells[2], &promise]);
    }
}
