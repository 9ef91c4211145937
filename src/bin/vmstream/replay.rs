//! `vmstream replay`: how long recorded guests would have waited, worked out in virtual time.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use serde::Serialize;
use vmstream::config::{Config, parse_duration, parse_rate};
use vmstream::error::{Error, Result, errno};
use vmstream::model::{Limits, Model, Trainer};
use vmstream::replay::oracle::{self, Bound};
use vmstream::replay::{self, Figures, LinkModel, Policy, Setup};
use vmstream::session::Session;

use crate::progress::Meter;
use crate::{Outcome, files, parse_with, traces};

/// Replay recorded sessions on a modelled link, and say how long the guests would wait
///
/// Virtual time: the figures are the same on every machine. The planner is the one that streams real images.
#[derive(Args)]
pub struct ReplayArgs {
    /// The model that follows the guests; "none" for none
    #[arg(long, value_name = "MODEL", default_value = NO_MODEL, conflicts_with = "leave_one_out")]
    pub model: PathBuf,

    /// Sessions to replay, each on an image of which nothing is here
    #[arg(long, required = true, num_args = 1.., value_name = "SESSION")]
    pub trace: Vec<PathBuf>,

    /// Bandwidth of the link, such as 25mbit
    #[arg(long, value_name = "RATE", default_value = "25mbit", value_parser = |s: &str| parse_with(s, parse_rate))]
    pub rate: u64,

    /// Round trip of the link, such as 50ms
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = |s: &str| parse_with(s, parse_duration))]
    pub rtt: Duration,

    /// The guests' pauses are multiplied by this, then cut at 2 s
    #[arg(long, value_name = "FACTOR", default_value_t = 0.4, value_parser = factor)]
    pub think: f64,

    /// Who decides what comes ahead
    #[arg(long, value_name = "POLICY", default_value = "planner")]
    pub policy: PolicyArg,

    /// Replay each session with a model of all the others
    #[arg(long)]
    pub leave_one_out: bool,

    /// More sessions for those models to learn, which are not replayed
    #[arg(long, requires = "leave_one_out", num_args = 1.., value_name = "SESSION")]
    pub also_learn: Vec<PathBuf>,

    /// Most sessions that those models remember
    #[arg(long, requires = "leave_one_out", value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub remember: u32,

    /// Let what is left of the link fill the image
    #[arg(long)]
    pub fill: bool,

    /// Write the figures to FILE, as a JSON array with one object for each session
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// The name that stands for no model.
const NO_MODEL: &str = "none";
/// Longest pause of a guest: nobody measures a person's lunch.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Shortest time between two drawings of the progress line.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// A policy as clap reads it.
#[derive(Clone, Copy)]
pub struct PolicyArg(Policy);

impl ValueEnum for PolicyArg {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [PolicyArg; Policy::ALL.len()] = {
            let mut all = [PolicyArg(Policy::Planner); Policy::ALL.len()];
            let mut at = 0;
            while at < all.len() {
                all[at] = PolicyArg(Policy::ALL[at]);
                at += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}

fn factor(value: &str) -> std::result::Result<f64, String> {
    let factor = value.parse().unwrap_or(f64::NAN);
    if (0.0..=1000.0).contains(&factor) { Ok(factor) } else { Err("must be a number from 0 to 1000".to_owned()) }
}

/// What `--json` writes for each session.
#[derive(Serialize)]
struct Report {
    trace: String,
    policy: &'static str,
    guest_s: f64,
    total_s: f64,
    oracle_total_s: f64,
    stall_s: f64,
    stalls: u64,
    stalls_over_100ms: u64,
    bytes: u64,
    used_bytes: u64,
    wasted_bytes: u64,
    fill_bytes: u64,
    requests: u64,
}

/// Replays the sessions one after the other and prints a table on standard output.
pub fn run(args: &ReplayArgs) -> Result<Outcome> {
    let model = if args.policy.0.needs_model() { model(args)? } else { None };
    replay_all(args, model)
}

/// The model of the command line.
fn model(args: &ReplayArgs) -> Result<Option<Arc<Model>>> {
    if args.leave_one_out {
        return Ok(None);
    }
    if args.model != Path::new(NO_MODEL) {
        return Model::load(&args.model).map(|model| Some(Arc::new(model)));
    }
    match args.policy.0 {
        Policy::Planner => Ok(None),
        policy => Err(Error::new(
            errno::EINVAL,
            format!("the policy {} plays back a model: give --model or --leave-one-out", policy.name()),
        )),
    }
}

fn replay_all(args: &ReplayArgs, model: Option<Arc<Model>>) -> Result<Outcome> {
    let sessions = args.trace.iter().map(|path| traces::read(path)).collect::<Result<Vec<_>>>()?;
    if let Some(model) = &model
        && let Some(at) = sessions.iter().position(|session| session.geometry != model.geometry())
    {
        return Err(Error::new(
            errno::EINVAL,
            format!("{} is a model of another image than that of {}", args.model.display(), args.trace[at].display()),
        ));
    }
    let also = args.also_learn.iter().map(|path| traces::read(path)).collect::<Result<Vec<_>>>()?;
    let mut meter = Meter::new(false);
    let mut drawn = Instant::now();
    let mut reports = Vec::with_capacity(sessions.len());
    for (number, (path, session)) in args.trace.iter().zip(&sessions).enumerate() {
        let model = match &model {
            None if args.leave_one_out && args.policy.0.needs_model() => Some(others(args, &also, &sessions, number)?),
            model => model.clone(),
        };
        let (figures, bound) = replay_one(args, session, model.as_ref());
        if figures.steps < session.accesses.len() {
            return Err(Error::new(
                errno::EIO,
                format!("{}: the guest waits without end at access {}", path.display(), figures.steps + 1),
            ));
        }
        reports.push(report(path, args.policy.0, &figures, &bound));
        if drawn.elapsed() >= DRAW_EVERY {
            meter.show(&format!("{} of {} sessions replayed", number + 1, sessions.len()));
            drawn = Instant::now();
        }
    }
    drop(meter);
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&reports);
        files::replace(path, json.map_err(|e| Error::io("cannot write the figures", e.into()))? + "\n")?;
    }
    // A reader that went away (`| head -1`) is no failure.
    let _ = std::io::stdout().write_all(table(&reports).as_bytes());
    Ok(Outcome::Done)
}

/// The model of all sessions but one.
fn others(args: &ReplayArgs, also: &[Session], sessions: &[Session], one: usize) -> Result<Arc<Model>> {
    let limits = Limits { paths_max: args.remember as usize, ..Limits::default() };
    let mut trainer = Trainer::new(sessions[one].geometry, limits);
    let others = args.trace.iter().zip(sessions).enumerate().filter(|(number, _)| *number != one);
    for (path, session) in args.also_learn.iter().zip(also).chain(others.map(|(_, other)| other)) {
        trainer.add(session).map_err(|e| Error::new(e.errno(), format!("{}: {e}", path.display())))?;
    }
    Ok(Arc::new(trainer.finish()))
}

fn replay_one(args: &ReplayArgs, session: &Session, model: Option<&Arc<Model>>) -> (Figures, Bound) {
    let steps = replay::guest(session, args.think, PAUSE_MAX);
    let link = LinkModel { rate: args.rate as f64, round_trip: args.rtt };
    let mut config = Config { fill: args.fill, block_bytes: session.geometry.block_bytes(), ..Config::default() };
    let foresight = args.policy.0.foresight(&mut config, model, session);
    let geometry = session.geometry;
    let figures = replay::run(Setup { steps: &steps, geometry, link, config, foresight });
    (figures, oracle::bound(&steps, geometry, link))
}

fn report(path: &Path, policy: Policy, figures: &Figures, bound: &Bound) -> Report {
    Report {
        trace: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        policy: policy.name(),
        guest_s: bound.guest.as_secs_f64(),
        total_s: figures.total.as_secs_f64(),
        oracle_total_s: bound.total().as_secs_f64(),
        stall_s: figures.stalled.as_secs_f64(),
        stalls: figures.stalls,
        stalls_over_100ms: figures.long_stalls,
        bytes: figures.bytes,
        used_bytes: figures.used_bytes,
        wasted_bytes: figures.wasted_bytes(),
        fill_bytes: figures.fill_bytes,
        requests: figures.requests,
    }
}

/// Total time over that of the bound; 1 when there was nothing to do.
fn ratio(r: &Report) -> f64 {
    if r.oracle_total_s > 0.0 { r.total_s / r.oracle_total_s } else { 1.0 }
}

fn table(reports: &[Report]) -> String {
    let width = reports.iter().map(|r| r.trace.chars().count()).max().unwrap_or(0).max(5);
    let mut text = format!(
        "{:<width$}  guest s  oracle s   total s  ratio  stall s  stalls  >100ms      MB  used MB  requests\n",
        "trace"
    );
    let mb = |bytes: u64| bytes as f64 / 1e6;
    for r in reports {
        let _ = writeln!(
            text,
            "{:<width$}  {:>7.2}  {:>8.2}  {:>8.2}  {:>5.3}  {:>7.2}  {:>6}  {:>6}  {:>6.1}  {:>7.1}  {:>8}",
            r.trace,
            r.guest_s,
            r.oracle_total_s,
            r.total_s,
            ratio(r),
            r.stall_s,
            r.stalls,
            r.stalls_over_100ms,
            mb(r.bytes),
            mb(r.used_bytes),
            r.requests,
        );
    }
    let mean = reports.iter().map(ratio).sum::<f64>() / reports.len().max(1) as f64;
    let worst = reports.iter().map(ratio).fold(0.0, f64::max);
    let sum = |f: fn(&Report) -> u64| reports.iter().map(f).sum::<u64>();
    let spent = mb(sum(|r| r.bytes)) / mb(sum(|r| r.used_bytes)).max(1e-9);
    let _ = writeln!(text, "total / oracle: mean {mean:.3}, worst {worst:.3}; bytes / used: {spent:.2}");
    text
}
