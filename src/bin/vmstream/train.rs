//! `vmstream train`: sessions become a model.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use vmstream::error::{Error, Result, errno};
use vmstream::model::{FILE_BYTES_MAX, Limits, Model, Trainer};

use crate::progress::{self, Meter};
use crate::{Outcome, files, traces};

/// Learn from sessions what guests of an image will want
///
/// A MODEL that exists already learns more; what it knows counts as older than the sessions given. Their order does not
/// matter. All sessions must be of one image. Many sessions can be learnt in parts, on any number of machines, and the
/// parts' models merged: the result is the one of all sessions at once.
#[derive(Args)]
pub struct TrainArgs {
    /// The model to make, or to go on with
    #[arg(short, long, value_name = "MODEL", default_value = "model.vmm")]
    pub output: PathBuf,

    /// Forget what the model knew before
    #[arg(long)]
    pub anew: bool,

    /// Make the model of other models, and of sessions if there are any among the files; what it was before is replaced
    #[arg(long, conflicts_with = "anew")]
    pub merge: bool,

    /// Most sessions to remember; the old and those much like others make room
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub remember: u32,

    /// Files of recorded sessions; with --merge also models
    #[arg(required = true, value_name = "SESSION")]
    pub sessions: Vec<PathBuf>,
}

/// Shortest time between two drawings of the progress line.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Trains, writes the model in one step, and says on standard output what it has become.
pub fn run(args: &TrainArgs) -> Result<Outcome> {
    let limits = Limits { paths_max: args.remember as usize, ..Limits::default() };
    let mut trainer = if args.anew || args.merge { None } else { resume(&args.output, limits)? };
    let mut meter = Meter::new(false);
    let mut drawn = Instant::now();
    for (number, path) in args.sessions.iter().enumerate() {
        if is_model(path) {
            if !args.merge {
                let text = format!("{} is a model, not a session: merge models with --merge", path.display());
                return Err(Error::new(errno::EINVAL, text));
            }
            merge(&mut trainer, path, limits)?;
        } else {
            let session = traces::read(path)?;
            let known = trainer.get_or_insert_with(|| Trainer::new(session.geometry, limits));
            known.add(&session).map_err(|e| Error::new(e.errno(), format!("{}: {e}", path.display())))?;
        }
        if drawn.elapsed() >= DRAW_EVERY {
            meter.show(&format!("{} of {} files read", number + 1, args.sessions.len()));
            drawn = Instant::now();
        }
    }
    // Clap lets no empty list through.
    let Some(trainer) = trainer else { return Ok(Outcome::Done) };
    let (model, file) = trainer.finish_file();
    files::replace(&args.output, &file)?;
    drop(meter);
    if file.len() as u64 > FILE_BYTES_MAX {
        let most = progress::size(FILE_BYTES_MAX);
        log::warn!("{} is larger than {most}, and no reader takes it: let it --remember less", args.output.display());
    }
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

fn open(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).map_err(|e| Error::io(format_args!("cannot open {}", path.display()), e))?;
    Ok(BufReader::new(file))
}

/// True when the file at `path` begins as a model does. One that cannot be read does not; who reads it next says why.
fn is_model(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(Model::MAGIC.len() as u64).read_to_end(&mut start));
    read.is_ok() && start == Model::MAGIC
}

/// Takes the model at `path` in as one part of several.
fn merge(trainer: &mut Option<Trainer>, path: &Path, limits: Limits) -> Result<()> {
    let name = path.display().to_string();
    match trainer {
        Some(trainer) => trainer.merge(&name, open(path)?),
        None => {
            *trainer = Some(Trainer::from_part(&name, open(path)?, limits)?);
            Ok(())
        }
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
