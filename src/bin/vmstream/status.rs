//! `vmstream status`: what a cache holds, without touching it.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use vmstream::error::{Error, Result};
use vmstream::stats::ModelInUse;
use vmstream::store::{Summary, inspect};
use vmstream::{learner, session};

use crate::{Outcome, progress};

/// Show what a cache holds: which image, how much of it, and who uses it now
///
/// Only reads, so it is safe while the cache is in use.
#[derive(Args)]
pub struct StatusArgs {
    /// The directory given to --cache, or the file given to fetch -o
    pub cache: PathBuf,

    /// Print one JSON object instead of lines for a person
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    image: String,
    source: String,
    size: u64,
    block_size: u64,
    validator: Option<String>,
    mtime_s: Option<i64>,
    resident_bytes: u64,
    complete: bool,
    allocated_bytes: Option<u64>,
    journal_bytes: u64,
    in_use_by: Option<String>,
    model: String,
    model_sessions: u64,
}

/// Prints the state of the cache to standard output.
pub fn run(args: &StatusArgs) -> Result<Outcome> {
    let summary = inspect(&args.cache)?;
    let sessions = summary.image.parent().unwrap_or(&args.cache).join(session::directory::DIRECTORY_NAME);
    let model = learner::kept(&sessions);
    let text = if args.json { json(&summary, model)? } else { lines(&summary, &model) };
    // A reader that went away (`| head -1`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(Outcome::Done)
}

fn json(summary: &Summary, model: ModelInUse) -> Result<String> {
    let report = Report {
        image: summary.image.display().to_string(),
        source: summary.pinned.source.clone(),
        size: summary.pinned.geometry.size(),
        block_size: summary.pinned.geometry.block_bytes(),
        validator: summary.pinned.identity.validator.clone(),
        mtime_s: summary.pinned.identity.mtime_s,
        resident_bytes: summary.resident_bytes,
        complete: summary.complete,
        allocated_bytes: summary.allocated_bytes,
        journal_bytes: summary.journal_bytes,
        in_use_by: summary.locked_by.as_ref().map(ToString::to_string),
        model: model.text,
        model_sessions: model.sessions,
    };
    let json = serde_json::to_string_pretty(&report);
    Ok(json.map_err(|e| Error::io("cannot write the status", e.into()))? + "\n")
}

fn lines(summary: &Summary, model: &ModelInUse) -> String {
    let size = summary.pinned.geometry.size();
    let percent = summary.resident_bytes as f64 * 100.0 / size as f64;
    let resident = if summary.complete {
        "all of it: the origin is no longer needed".to_owned()
    } else {
        format!("{} ({percent:.1} %)", progress::size(summary.resident_bytes))
    };
    let allocated = summary.allocated_bytes.map_or("image file missing".to_owned(), progress::size);
    let user = summary.locked_by.as_ref().map_or("nobody".to_owned(), ToString::to_string);
    format!(
        "image      {}\nsource     {}\nvalidator  {}\nsize       {} ({size} bytes, blocks of {})\nresident   {resident}\non disk    {allocated}, journal {}\nin use by  {user}\nmodel      {}\n",
        summary.image.display(),
        summary.pinned.source,
        summary.pinned.identity.validator.as_deref().unwrap_or("none"),
        progress::size(size),
        summary.pinned.geometry.block_bytes(),
        progress::size(summary.journal_bytes),
        model_line(model),
    )
}

/// The model that the next start has at once.
fn model_line(model: &ModelInUse) -> String {
    match model.sessions {
        0 => model.text.clone(),
        n => format!("of {n} sessions, {}", model.text),
    }
}
