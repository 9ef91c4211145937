//! `vmstream inspect`: what a model knows, and how a machine fared that was held back ([`run`](mod@run)).

pub mod run;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use vmstream::error::{Error, Result};
use vmstream::model::{Model, SequenceId};

use crate::{Outcome, files, picture, progress};

/// Show what a model has learnt: its sequences, and how guests went from one to another
#[derive(Args)]
pub struct InspectArgs {
    /// A file that vmstream train made; with --run, a record of a machine
    pub model: PathBuf,

    /// Show how a machine fared that was held back: what was forecast of it from time to time, and how long its clients waited
    #[arg(long, conflicts_with_all = ["json", "top"])]
    pub run: bool,

    /// How many sequences and transitions to list
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,

    /// Print one JSON object instead of lines for a person
    #[arg(long)]
    pub json: bool,

    /// Draw a heat map of the image and the main ways through the model, or the record, into FILE, as SVG
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: String,
    file_bytes: u64,
    size: u64,
    block_size: u64,
    sessions_learnt: u64,
    sessions_set_aside: u32,
    paths: usize,
    visits: usize,
    sequences: usize,
    blocks: u64,
    support: Vec<Support>,
    popular: Vec<Popular>,
    transitions: Vec<Transition>,
}

/// How many sequences are used by so many paths.
#[derive(Serialize)]
struct Support {
    paths_min: usize,
    paths_max: usize,
    sequences: usize,
    blocks: u64,
}

/// A sequence of which many guests make use.
#[derive(Serialize)]
struct Popular {
    sequence: u32,
    share: f32,
    at_s: f32,
    blocks: u32,
    offset: u64,
}

/// How many paths go from one sequence directly to another.
#[derive(Serialize)]
struct Transition {
    from: u32,
    to: u32,
    paths: u32,
}

/// Prints what the model holds to standard output.
pub fn run(args: &InspectArgs) -> Result<Outcome> {
    if args.run {
        return fared(args);
    }
    let model = Model::load(&args.model)?;
    if let Some(path) = &args.svg {
        let file = args.model.file_name().unwrap_or_default().to_string_lossy();
        files::replace(path, picture::model::draw(&model, &file)?)?;
    }
    let report = report(args, &model)?;
    let text = if args.json {
        let json = serde_json::to_string_pretty(&report);
        json.map_err(|e| Error::io("cannot write what the model holds", e.into()))? + "\n"
    } else {
        lines(&report)
    };
    // A reader that went away (`| head -1`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(Outcome::Done)
}

/// Prints how a machine fared.
fn fared(args: &InspectArgs) -> Result<Outcome> {
    let run = run::Run::read(&args.model)?;
    if let Some(path) = &args.svg {
        let file = args.model.file_name().unwrap_or_default().to_string_lossy();
        files::replace(path, picture::run::draw(&run, &file)?)?;
    }
    let _ = std::io::stdout().write_all(run.lines().as_bytes());
    Ok(Outcome::Done)
}

fn report(args: &InspectArgs, model: &Model) -> Result<Report> {
    let name = args.model.display().to_string();
    let file = args.model.metadata().map_err(|e| Error::io(format_args!("cannot look at {name}"), e))?;
    Ok(Report {
        model: name,
        file_bytes: file.len(),
        size: model.geometry().size(),
        block_size: model.geometry().block_bytes(),
        sessions_learnt: model.learnt().sessions,
        sessions_set_aside: model.learnt().set_aside,
        paths: model.paths().len(),
        visits: model.paths().iter().map(|path| path.visits.len()).sum(),
        sequences: model.sequences().len(),
        blocks: model.sequences().iter().map(|s| u64::from(s.blocks)).sum(),
        support: support(model),
        popular: model.popular().iter().take(args.top).map(|&id| popular(model, id)).collect(),
        transitions: transitions(model, args.top),
    })
}

/// The histogram of support: 0, 1, 2, 3 to 4, 5 to 8 paths, and so on.
fn support(model: &Model) -> Vec<Support> {
    let mut rows: Vec<Support> = Vec::new();
    for (number, sequence) in (0..).zip(model.sequences()) {
        let paths = model.places(SequenceId(number)).len();
        let row = if paths == 0 { 0 } else { paths.next_power_of_two().trailing_zeros() as usize + 1 };
        while rows.len() <= row {
            let paths_max = 1 << rows.len() >> 1;
            let paths_min = rows.last().map_or(0, |last| last.paths_max + 1);
            rows.push(Support { paths_min, paths_max, sequences: 0, blocks: 0 });
        }
        rows[row].sequences += 1;
        rows[row].blocks += u64::from(sequence.blocks);
    }
    rows
}

fn popular(model: &Model, id: SequenceId) -> Popular {
    let places = model.places(id);
    let time: f32 = places.iter().map(|p| model.paths()[p.path as usize].visits[p.position as usize].at).sum();
    let sequence = model.sequence(id);
    Popular {
        sequence: id.0,
        share: model.share(id),
        at_s: time / places.len().max(1) as f32,
        blocks: sequence.blocks,
        offset: sequence.runs.first().map_or(0, |&run| model.geometry().offset(run)),
    }
}

/// The most used steps from one sequence to the next, whatever came before: the graph without its memory.
fn transitions(model: &Model, top: usize) -> Vec<Transition> {
    let mut counts: HashMap<(u32, u32), u32> = HashMap::new();
    for path in model.paths() {
        for pair in path.visits.windows(2) {
            *counts.entry((pair[0].sequence.0, pair[1].sequence.0)).or_default() += 1;
        }
    }
    let mut list: Vec<_> = counts.into_iter().map(|((from, to), paths)| Transition { from, to, paths }).collect();
    list.sort_by(|a, b| b.paths.cmp(&a.paths).then((a.from, a.to).cmp(&(b.from, b.to))));
    list.truncate(top);
    list
}

fn lines(r: &Report) -> String {
    let mut text = format!(
        "model      {}\nimage      {} ({} bytes, blocks of {})\nlearnt     {} sessions; {} remembered, {} set aside\n",
        r.model,
        progress::size(r.size),
        r.size,
        progress::size(r.block_size),
        r.sessions_learnt,
        r.paths,
        r.sessions_set_aside,
    );
    let per = |what: u64, of: u64| what as f64 / of.max(1) as f64;
    let _ = writeln!(
        text,
        "holds      {} blocks in {} sequences of {:.1}; {} visits; {} ({:.1} bytes a block)",
        r.blocks,
        r.sequences,
        per(r.blocks, r.sequences as u64),
        r.visits,
        progress::size(r.file_bytes),
        per(r.file_bytes, r.blocks),
    );
    text += "\n    used by  sequences     blocks\n";
    for row in &r.support {
        let range = match (row.paths_min, row.paths_max) {
            (low, high) if low == high => format!("{low}"),
            (low, high) => format!("{low}-{high}"),
        };
        let _ = writeln!(text, "{range:>11}  {:>9}  {:>9}", row.sequences, row.blocks);
    }
    text += "\n   sequence  share       at     blocks  offset\n";
    for s in &r.popular {
        let _ = writeln!(
            text,
            "{:>11} {:>5.0}% {:>7.1}s {:>10}  {}",
            s.sequence,
            s.share * 100.0,
            s.at_s,
            s.blocks,
            s.offset
        );
    }
    text += "\n       from         to      paths\n";
    for t in &r.transitions {
        let _ = writeln!(text, "{:>11} {:>10} {:>10}", t.from, t.to, t.paths);
    }
    text
}
