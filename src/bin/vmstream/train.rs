//! `vmstream train`: sessions become a model.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use vmstream::error::{Error, Result, errno};
use vmstream::model::{FILE_BYTES_MAX, Limits, Model, Trainer};
use vmstream::session::{self, Session};

use crate::bucket::{self, Bucket};
use crate::progress::{self, Meter};
use crate::publish::stop::Stop;
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

    /// Files of recorded sessions, or s3://BUCKET/PREFIX for all that lie there; with --merge also models
    #[arg(required = true, value_name = "SESSION")]
    pub sessions: Vec<PathBuf>,
}

/// What in a bucket is read: the names of sessions, of their texts and of models end so.
const ENDINGS: [&str; 3] = [".vms", ".vmtrace", ".vmm"];
/// Shortest time between two drawings of the progress line.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Trains, writes the model in one step, and says on standard output what it has become.
pub fn run(args: &TrainArgs) -> Result<Outcome> {
    let limits = Limits { paths_max: args.remember as usize, ..Limits::default() };
    let known = if args.anew || args.merge { None } else { resume(&args.output, limits)? };
    let mut class = Class { trainer: known, merges: args.merge, limits };
    let mut meter = Meter::new(false);
    let mut drawn = Instant::now();
    let mut number = 0;
    let mut counted = || {
        number += 1;
        if drawn.elapsed() >= DRAW_EVERY {
            meter.show(&format!("{number} files read"));
            drawn = Instant::now();
        }
    };
    for path in &args.sessions {
        match path.to_str().filter(|text| text.starts_with(bucket::SCHEME)) {
            Some(text) => class.take_bucket(text, &mut counted)?,
            None => {
                class.take_file(path)?;
                counted();
            }
        }
    }
    let Some(trainer) = class.trainer else {
        return Err(Error::new(errno::ENOENT, "there are no sessions in what was given, so there is nothing to learn"));
    };
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

/// Who is taught.
struct Class {
    /// Begins with the first session or model, which says of which image all must be.
    trainer: Option<Trainer>,
    merges: bool,
    limits: Limits,
}

impl Class {
    fn take_file(&mut self, path: &Path) -> Result<()> {
        let name = path.display().to_string();
        if is_model(path) { self.merge(&name, open(path)?) } else { self.learn(&name, &traces::read(path)?) }
    }

    /// Takes all that lies in a part of a bucket, one after the other. What is neither a session nor a model is passed over,
    /// as whoever may put sessions there may put anything there.
    fn take_bucket(&mut self, text: &str, counted: &mut dyn FnMut()) -> Result<()> {
        let address: bucket::Address = text.parse().map_err(|e: String| Error::option("SESSION", text, e))?;
        let bucket = Bucket::open(&address, &Stop::default())?;
        let mut from = None;
        loop {
            let part = bucket.list(from.as_deref())?;
            for (name, _) in &part.names {
                let shown = format!("{}{name}", bucket.address());
                if !ENDINGS.iter().any(|ending| name.ends_with(ending)) {
                    log::debug!("{shown} is passed over: its name has none of the endings {}", ENDINGS.join(", "));
                    continue;
                }
                let bytes = match bucket.get(name, FILE_BYTES_MAX) {
                    Err(error) if error.errno() == errno::EFBIG => {
                        log::warn!("{error}: it is left out");
                        continue;
                    }
                    bytes => bytes?,
                };
                let taken = if bytes.starts_with(&Model::MAGIC) {
                    self.merge(&shown, &bytes[..])
                } else {
                    session::file::read(&shown, &bytes).and_then(|read| self.learn(&shown, &read.session))
                };
                if let Err(error) = taken {
                    log::warn!("{error}: it is left out");
                }
                counted();
            }
            match part.next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }

    fn learn(&mut self, name: &str, session: &Session) -> Result<()> {
        let known = self.trainer.get_or_insert_with(|| Trainer::new(session.geometry, self.limits));
        known.add(session).map_err(|e| Error::new(e.errno(), format!("{name}: {e}")))
    }

    /// Takes a model in as one part of several.
    fn merge(&mut self, name: &str, model: impl Read) -> Result<()> {
        if !self.merges {
            let text = format!("{name} is a model, not a session: merge models with --merge");
            return Err(Error::new(errno::EINVAL, text));
        }
        match &mut self.trainer {
            Some(trainer) => trainer.merge(name, model),
            None => {
                self.trainer = Some(Trainer::from_part(name, model, self.limits)?);
                Ok(())
            }
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
