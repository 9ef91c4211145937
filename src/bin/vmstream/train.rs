//! `vmstream train`: sessions become a model.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use vmstream::error::{Error, Result};
use vmstream::model::{Limits, Model, Trainer};

use crate::progress::{self, Meter};
use crate::{Outcome, files, traces};

/// Learn from sessions what guests of an image will want
///
/// A MODEL that exists already learns more; what it knows counts as older than the sessions given. Their order does not
/// matter. All sessions must be of one image.
#[derive(Args)]
pub struct TrainArgs {
    /// The model to make, or to go on with
    #[arg(short, long, value_name = "MODEL", default_value = "model.vmm")]
    pub output: PathBuf,

    /// Forget what the model knew before
    #[arg(long)]
    pub anew: bool,

    /// Most sessions to remember; the old and those much like others make room
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub remember: u32,

    /// Files of recorded sessions
    #[arg(required = true, value_name = "SESSION")]
    pub sessions: Vec<PathBuf>,
}

/// Shortest time between two drawings of the progress line.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Trains, writes the model in one step, and says on standard output what it has become.
pub fn run(args: &TrainArgs) -> Result<Outcome> {
    let limits = Limits { paths_max: args.remember as usize, ..Limits::default() };
    let mut trainer = if args.anew { None } else { resume(&args.output, limits)? };
    let mut meter = Meter::new(false);
    let mut drawn = Instant::now();
    for (number, path) in args.sessions.iter().enumerate() {
        let session = traces::read(path)?;
        let known = trainer.get_or_insert_with(|| Trainer::new(session.geometry, limits));
        known.add(&session).map_err(|e| Error::new(e.errno(), format!("{}: {e}", path.display())))?;
        if drawn.elapsed() >= DRAW_EVERY {
            meter.show(&format!("{} of {} sessions read", number + 1, args.sessions.len()));
            drawn = Instant::now();
        }
    }
    // Clap lets no empty list through.
    let Some(trainer) = trainer else { return Ok(Outcome::Done) };
    let (model, file) = trainer.finish_file();
    files::replace(&args.output, &file)?;
    drop(meter);
    // A reader that went away is no failure.
    let _ = std::io::stdout().write_all(summary(&args.output, &model, file.len() as u64).as_bytes());
    Ok(Outcome::Done)
}

/// The trainer that goes on from the model at `path`; `None` when there is no such file.
fn resume(path: &Path, limits: Limits) -> Result<Option<Trainer>> {
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => Trainer::resume(&name, BufReader::new(file), limits).map(Some),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format_args!("cannot open {name}"), e)),
    }
}

fn summary(path: &Path, model: &Model, file_bytes: u64) -> String {
    let blocks: u64 = model.sequences().iter().map(|s| u64::from(s.blocks)).sum();
    let learnt = model.learnt();
    let aside = match learnt.set_aside {
        0 => String::new(),
        n => format!(", {n} set aside as far larger than the others"),
    };
    format!(
        "{}: {} sessions learnt, {} remembered{aside}; {blocks} blocks in {} sequences; {} ({:.1} bytes a block)\n",
        path.display(),
        learnt.sessions,
        model.paths().len(),
        model.sequences().len(),
        progress::size(file_bytes),
        file_bytes as f64 / blocks.max(1) as f64,
    )
}
