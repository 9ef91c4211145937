//! Training is linear in the sessions and bounded in memory, and a large model is loaded before anybody notices.
//!
//! The sessions have 50,000 first touches: a start of 10,000 blocks, then five of thirty tasks of 4,000 to 12,000 blocks,
//! in any order, in pieces of one to three blocks - dear to remember. Limits hold the model to what it remembers, so that
//! of 10,000 sessions is no larger than that of 1,000. Two rows more say what the next session costs once a model is
//! full: it is read, and made anew as a whole. The last table learns the most sessions in parts of 500 and merges those, one
//! after the other and in a tree: the same model comes out, byte for byte. Times are the thread's own on the processor.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmstream::model::{Limits, Model, Trainer};

use crate::guests::{Guests, Shape};
use crate::processor::spent;
use crate::samples::Samples;
use crate::sparse::peak_mib;
use crate::table::{Table, at_least, at_most, number};
use crate::{origin, quick};

const SHAPE: Shape = Shape {
    image_bytes: 16 << 30,
    start_blocks: 10_000,
    tasks: 30,
    task_blocks: 4_000..11_500,
    piece_blocks_max: 3,
    pause_us_max: 1000,
};
const TASKS_A_SESSION: usize = 5;
const SEED: u64 = 4;
const LOADS: usize = 9;
/// Sessions of a part, where they are learnt in parts.
const PART: u64 = 500;

pub fn run() {
    let directory = origin::memory();
    let path = directory.path().join("model.vmm");
    let guests = Guests::new(SHAPE, SEED);
    let counts: [u64; 3] = if quick() { [100, 200, 400] } else { [100, 1000, 10_000] };
    let mut columns = Vec::new();
    for count in counts {
        columns.push(train(&guests, count, &path));
    }
    let heads = counts.map(|count| format!("{count} sessions"));
    let mut table =
        Table::new("model: learning sessions of 50,000 blocks", &["", &heads[0], &heads[1], &heads[2], "promise"]);
    let mut row = |what: &str, digits: usize, figure: &dyn Fn(&Trained) -> f64, promise: &str| {
        let cells: Vec<String> = columns.iter().map(|column| number(figure(column), digits)).collect();
        table.row(&[&what, &cells[0], &cells[1], &cells[2], &promise]);
    };
    let growth = columns[2].learn_ms / columns[0].learn_ms;
    row("first touches of a session", 0, &|c| c.touches, "");
    row("learn one, ms", 2, &|c| c.learn_ms, &format!("linear: {}", at_most(growth, 1.5)));
    row("make the model of those remembered, s", 2, &|c| c.make_s, "");
    row("remembered", 0, &|c| c.remembered, "");
    row("sequences", 0, &|c| c.sequences, "");
    row("file, MiB", 2, &|c| c.file_mib, &at_most(columns[2].file_mib, 16.0));
    row("file, bytes a distinct block", 1, &|c| c.block_bytes, "");
    let peak = columns[2].peak_mib;
    row("peak memory so far, MiB", 0, &|c| c.peak_mib, &at_most(peak, 512.0));
    drop(table);
    go_on(&guests, &path, &heads[2]);
    in_parts(&guests, &path, counts);
}

/// What came of training.
struct Trained {
    touches: f64,
    learn_ms: f64,
    make_s: f64,
    remembered: f64,
    sequences: f64,
    file_mib: f64,
    block_bytes: f64,
    peak_mib: f64,
}

/// Learns so many sessions and writes the model.
fn train(guests: &Guests, count: u64, path: &Path) -> Trained {
    let mut trainer = Trainer::new(guests.geometry(), Limits::default());
    let mut adding = Duration::ZERO;
    let mut blocks = 0;
    for seed in 0..count {
        let session = guests.any_session(seed, TASKS_A_SESSION, 0..SHAPE.tasks);
        blocks += session.accesses.iter().map(|access| access.length).sum::<u64>() / crate::guests::BLOCK_BYTES;
        let begun = spent();
        trainer.add(&session).expect("it is of the same image");
        adding += spent() - begun;
    }
    let begun = spent();
    let (model, file) = trainer.finish_file();
    let make_s = (spent() - begun).as_secs_f64();
    std::fs::write(path, &file).expect("there is room in memory");
    let distinct: u64 = model.sequences().iter().map(|sequence| u64::from(sequence.blocks)).sum();
    Trained {
        touches: blocks as f64 / count as f64,
        learn_ms: adding.as_secs_f64() * 1e3 / count as f64,
        make_s,
        remembered: model.paths().len() as f64,
        sequences: model.sequences().len() as f64,
        file_mib: file.len() as f64 / f64::from(1 << 20),
        block_bytes: file.len() as f64 / distinct as f64,
        peak_mib: peak_mib(),
    }
}

/// What a full model costs those who load it and those who go on with it.
fn go_on(guests: &Guests, path: &Path, what: &str) {
    let title = format!("model: that of {what}");
    let mut table = Table::new(&title, &["", "median", "min", "max", "promise"]);
    let mut row = |what: &str, once: &dyn Fn(u64), limit: Option<f64>| {
        let mut times = Samples::default();
        for number in 0..LOADS as u64 {
            let begun = spent();
            once(number);
            times.add((spent() - begun).as_secs_f64() * 1e3);
        }
        let cells = [times.median(), times.quantile(0.0), times.quantile(1.0)].map(|value| number(value, 1));
        let promise = limit.map_or(String::new(), |limit| at_most(times.median(), limit));
        table.row(&[&what, &cells[0], &cells[1], &cells[2], &promise]);
    };
    row("read the file, nothing more, ms", &|_| drop(std::fs::read(path)), None);
    row("load, ms", &|_| drop(Model::load(path).expect("it was written just now")), Some(50.0));
    let news: Vec<_> =
        (0..LOADS as u64).map(|seed| guests.any_session(1 << 40 | seed, TASKS_A_SESSION, 0..SHAPE.tasks)).collect();
    let resume = |number: u64| {
        let file = std::fs::File::open(path).expect("it was written just now");
        let mut trainer = Trainer::resume("model", std::io::BufReader::new(file), Limits::default()).expect("as well");
        trainer.add(&news[number as usize]).expect("it is of the same image");
        drop(trainer.finish_file());
    };
    row("learn one session more, all in all, ms", &resume, Some(2000.0));
}

/// What the same costs in parts, and what comes of it. At `path` lies the model of all sessions at once, and the parts go
/// beside it: their files are none of this process's memory.
fn in_parts(guests: &Guests, path: &Path, counts: [u64; 3]) {
    let part = if quick() { PART / 10 } else { PART };
    let columns = [counts[1], counts[2]].map(|count| Parts::learn(guests, count, part, path));
    let heads = columns.each_ref().map(|column| format!("{} sessions", column.count));
    let mut table =
        Table::new(&format!("model: learning in parts of {part} and merging"), &["", &heads[0], &heads[1], "promise"]);
    let mut row = |what: &str, digits: usize, figure: &dyn Fn(&Parts) -> f64, promise: &str| {
        let cells = columns.each_ref().map(|column| number(figure(column), digits));
        table.row(&[&what, &cells[0], &cells[1], &promise]);
    };
    let linear =
        |figure: &dyn Fn(&Parts) -> f64| format!("linear: {}", at_most(figure(&columns[1]) / figure(&columns[0]), 1.5));
    let learn = |parts: &Parts| parts.learning.as_secs_f64() * 1e3 / parts.count as f64;
    let join = |parts: &Parts| parts.merging.as_secs_f64() * 1e3 / parts.count as f64;
    row("parts", 0, &|c| c.files.len() as f64, "");
    row("learn in parts, ms a session", 2, &learn, &linear(&learn));
    row("merge all parts, ms a session", 2, &join, &linear(&join));
    row("file of a part, MiB", 2, &|c| mib(&c.files[0]), "");
    row("merged file, MiB", 2, &|c| mib(&c.merged), &at_most(mib(&columns[1].merged), 16.0));
    // In pairs, and these in pairs, where above all came one after the other.
    let mut tree = columns[1].files.clone();
    while tree.len() > 1 {
        tree = tree.chunks(2).map(|pair| merge(pair, &pair[0].with_extension("pair"))).collect();
    }
    let read = |path: &Path| std::fs::read(path).expect("it was written just now");
    let same = [&tree[0], &columns[1].merged].into_iter().filter(|file| read(file) == read(path)).count();
    row("of these two, the very model of all at once", 0, &|_| same as f64, &at_least(same as f64, 2.0));
    row("peak memory so far, MiB", 0, &|_| peak_mib(), &at_most(peak_mib(), 512.0));
}

/// So many sessions, learnt in parts that were merged.
struct Parts {
    count: u64,
    files: Vec<PathBuf>,
    merged: PathBuf,
    learning: Duration,
    merging: Duration,
}

impl Parts {
    fn learn(guests: &Guests, count: u64, part: u64, beside: &Path) -> Self {
        let mut learning = Duration::ZERO;
        let mut files = Vec::new();
        for first in (0..count).step_by(part as usize) {
            let mut trainer = Trainer::new(guests.geometry(), Limits::default());
            for seed in first..(first + part).min(count) {
                let session = guests.any_session(seed, TASKS_A_SESSION, 0..SHAPE.tasks);
                let begun = spent();
                trainer.add(&session).expect("it is of the same image");
                learning += spent() - begun;
            }
            let begun = spent();
            let (_, file) = trainer.finish_file();
            learning += spent() - begun;
            let path = beside.with_file_name(format!("{count}-{first}.vmm"));
            std::fs::write(&path, file).expect("there is room in memory");
            files.push(path);
        }
        let begun = spent();
        let merged = merge(&files, &beside.with_file_name(format!("{count}.vmm")));
        Self { count, files, merged, learning, merging: spent() - begun }
    }
}

/// Merges the models in these files into one at `path`.
fn merge(parts: &[PathBuf], path: &Path) -> PathBuf {
    let mut trainer = None;
    for part in parts {
        let file = BufReader::new(File::open(part).expect("it was written just now"));
        match &mut trainer {
            None => trainer = Some(Trainer::from_part("part", file, Limits::default()).expect("it is whole")),
            Some(trainer) => trainer.merge("part", file).expect("it is of the same image"),
        }
    }
    let (_, file) = trainer.expect("there are parts").finish_file();
    std::fs::write(path, file).expect("there is room in memory");
    path.to_owned()
}

fn mib(path: &Path) -> f64 {
    std::fs::metadata(path).map_or(f64::NAN, |metadata| metadata.len() as f64 / f64::from(1 << 20))
}
