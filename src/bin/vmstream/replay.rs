//! `vmstream replay`: how long recorded guests would have waited, worked out in virtual time, or tried in real time.
//!
//! This file goes through the sessions and replays each; beside it lie the arguments (`args`), the models that the guests are
//! followed by (`model`), real time (`live`, `origin`), guests that are held back (`hold`), and what is said in the end (`report`, `calibration`).

mod args;
mod calibration;
pub mod hold;
mod live;
mod model;
mod origin;
mod report;

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmstream::config::Config;
use vmstream::error::{Error, Result, errno};
use vmstream::model::Model;
use vmstream::packs::Index;
use vmstream::predictor::Foresight;
use vmstream::replay::calibration::Answer;
use vmstream::replay::oracle::{self, Bound};
use vmstream::replay::{self, Figures, LinkModel, Observer, Setup, Sight, Step};
use vmstream::session::Session;

use crate::picture::session::Scene;
use crate::picture::watch::Watch;
use crate::progress::Meter;
use crate::{Outcome, files, link, picture, traces};
pub use args::ReplayArgs;
use calibration::Calibration;
use hold::{Hold, Holds};
use live::Live;
use model::Models;
use report::Report;

/// Longest pause of a guest: nobody measures a person's lunch.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Shortest time between two drawings of the progress line.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Replays the sessions one after the other and prints a table on standard output.
pub fn run(args: &ReplayArgs) -> Result<Outcome> {
    let sessions = args.trace.iter().map(|path| traces::read(path)).collect::<Result<Vec<_>>>()?;
    let models = Models::new(args, &sessions)?;
    let mut names = HashSet::new();
    if args.svg.is_some()
        && let Some(twice) = args.trace.iter().map(|path| stem(path)).find(|name| !names.insert(name.clone()))
    {
        return Err(Error::new(
            errno::EINVAL,
            format!("two sessions are called {twice}, and so would their pictures be: rename one"),
        ));
    }
    if let Some(hold) = args.hold {
        return held(args, hold, &sessions, &models);
    }
    let live = if args.live || args.on.is_some() { Some(Live::start()?) } else { None };
    let mut meter = Meter::new(false);
    let mut drawn = Instant::now();
    let mut reports = Vec::with_capacity(sessions.len());
    let mut calibration = Calibration::default();
    for (number, (path, session)) in args.trace.iter().zip(&sessions).enumerate() {
        let model = models.of(number)?;
        let replay = Replay::new(args, path, session);
        let bound = replay.bound();
        if let (Some(url), Some(live)) = (&args.on, &live) {
            let lived = replay.lively_on(live, url, &bound, &mut meter)?;
            if live.interrupted().is_some() {
                break;
            }
            reports.push(Report::new(&replay.name, args.policy.0, &lived, &bound));
            continue;
        }
        let (figures, answers) = replay.virtually(model.as_ref(), &bound)?;
        if figures.steps < session.accesses.len() {
            return Err(Error::new(
                errno::EIO,
                format!("{}: the guest waits without end at access {}", path.display(), figures.steps + 1),
            ));
        }
        let mut report = Report::new(&replay.name, args.policy.0, &figures, &bound);
        if let Some(ratio) = args.packs {
            report = report.packed(&figures, &replay.packed_bound(ratio));
        }
        if let Some(live) = &live {
            let lived = replay.lively(live, model.as_ref(), figures.total, &mut meter)?;
            if live.interrupted().is_some() {
                break;
            }
            report = Report::new(&replay.name, args.policy.0, &lived, &bound).compared(&figures);
        }
        reports.push(report);
        calibration.add(&replay.name, &answers);
        if drawn.elapsed() >= DRAW_EVERY {
            meter.show(&format!("{} of {} sessions replayed", number + 1, sessions.len()));
            drawn = Instant::now();
        }
    }
    drop(meter);
    let interrupted = live.as_ref().and_then(Live::interrupted);
    if interrupted.is_some() {
        log::warn!("{} of {} sessions replayed", reports.len(), sessions.len());
    }
    if let Some(path) = &args.json {
        files::replace(path, report::json(&reports)?)?;
    }
    let mut text = report::table(&reports);
    if let Some(path) = &args.calibration {
        files::replace(path, calibration.json()?)?;
    }
    if let Some(path) = &args.calibration_svg {
        let scene = picture::calibration::Scene {
            sessions: reports.len(),
            policy: args.policy.0.name(),
            link: link(args),
            horizons: &calibration.horizons(),
        };
        files::replace(path, picture::calibration::draw(&scene)?)?;
    }
    if args.asks() {
        text += "\n";
        text += &calibration.table();
    }
    // A reader that went away (`| head -1`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(interrupted.map_or(Outcome::Done, Outcome::Interrupted))
}

/// Tries `hold` on each session, and prints what came of all of them.
fn held(args: &ReplayArgs, hold: Hold, sessions: &[Session], models: &Models) -> Result<Outcome> {
    let mut meter = Meter::new(false);
    let mut holds = Holds::new(hold);
    for (number, (path, session)) in args.trace.iter().zip(sessions).enumerate() {
        let model = models.of(number)?;
        let replay = Replay::new(args, path, session);
        let trials = replay::hold::trials(&replay.steps, hold.plan, &|steps| replay.setup(model.as_ref(), steps));
        holds.add(&replay.name, &trials);
        meter.show(&format!("{} of {} sessions tried", number + 1, sessions.len()));
    }
    drop(meter);
    if let Some(path) = &args.hold_json {
        files::replace(path, holds.json()?)?;
    }
    if let Some(path) = &args.hold_svg {
        let scene = picture::hold::Scene {
            policy: args.policy.0.name(),
            link: link(args),
            horizon: hold.plan.horizon,
            risk: hold.risk,
            let_go_s: holds.let_go_s(),
            factors: (holds.risk_factor(), holds.stall_factor()),
            rows: &holds.rows(),
        };
        files::replace(path, picture::hold::draw(&scene)?)?;
    }
    let _ = std::io::stdout().write_all(holds.table().as_bytes());
    Ok(Outcome::Done)
}

/// One session to be replayed.
struct Replay<'a> {
    args: &'a ReplayArgs,
    /// What the session is called.
    name: String,
    session: &'a Session,
    steps: Vec<Step>,
    link: LinkModel,
}

impl<'a> Replay<'a> {
    fn new(args: &'a ReplayArgs, path: &Path, session: &'a Session) -> Self {
        let steps = replay::guest(session, args.think, PAUSE_MAX);
        Self { args, name: stem(path), session, steps, link: link(args) }
    }

    /// What the policy makes of the options, and of the model.
    fn means(&self, model: Option<&Arc<Model>>) -> (Config, Option<Box<dyn Foresight>>) {
        let block_bytes = self.session.geometry.block_bytes();
        let mut config = Config { fill: self.args.fill, block_bytes, ..Config::default() };
        let foresight = self.args.policy.0.foresight(&mut config, model, self.session);
        (config, foresight)
    }

    fn bound(&self) -> Bound {
        oracle::bound(&self.steps, self.session.geometry, self.link)
    }

    /// What could be at best where all bytes shrink to one part in `ratio`.
    fn packed_bound(&self, ratio: f64) -> Bound {
        let link = LinkModel { rate: self.link.rate * ratio, ..self.link };
        oracle::bound(&self.steps, self.session.geometry, link)
    }

    /// The world in which a guest does `steps`.
    fn setup<'s>(&self, model: Option<&Arc<Model>>, steps: &'s [Step]) -> Setup<'s> {
        let (config, foresight) = self.means(model);
        let packs = self.args.packs.zip(model).map(|(ratio, model)| Arc::new(Index::assumed(model, ratio)));
        Setup { steps, geometry: self.session.geometry, link: self.link, config, foresight, packs }
    }

    /// In virtual time; draws it, and asks what is to come, if that is wanted. `bound` is what could come of it at best.
    fn virtually(&self, model: Option<&Arc<Model>>, bound: &Bound) -> Result<(Figures, Vec<Answer>)> {
        let Self { args, name, session, steps, link } = self;
        let (geometry, link) = (session.geometry, *link);
        let setup = self.setup(model, steps);
        let questions = args.asks().then(calibration::questions);
        let questions = questions.as_ref();
        let Some(svg) = &args.svg else { return Ok(replay::watch(setup, Observer { questions, witness: None })) };
        let mut watch = Watch::new(geometry, steps);
        let mut witness = |at, sight: Sight| watch.see(at, sight);
        let (figures, answers) = replay::watch(setup, Observer { questions, witness: Some(&mut witness) });
        let policy = args.policy.0.name();
        let scene = Scene { trace: name, policy, geometry, link, figures: &figures, bound, watch: &watch };
        files::replace(&picture_path(svg, name, args.trace.len()), picture::session::draw(&scene)?)?;
        Ok((figures, answers))
    }

    /// In real time; `expected` is how long it takes in virtual time.
    fn lively(
        &self,
        live: &Live,
        model: Option<&Arc<Model>>,
        expected: Duration,
        meter: &mut Meter,
    ) -> Result<Figures> {
        let (config, foresight) = self.means(model);
        let replay = live::Replay {
            name: &self.name,
            steps: &self.steps,
            geometry: self.session.geometry,
            link: self.link,
            config: &config,
            foresight,
            expected,
        };
        live.run(replay, meter)
    }
}

impl Replay<'_> {
    /// In real time on the image at `url`.
    fn lively_on(&self, live: &Live, url: &str, bound: &Bound, meter: &mut Meter) -> Result<Figures> {
        let mut options = vec![
            format!("source={}", link::source(url)?),
            format!("block_size={}", self.session.geometry.block_bytes()),
            "fill=off".to_owned(),
            "sessions=off".to_owned(),
        ];
        options.extend(self.args.options.iter().cloned());
        live.run_on(&self.name, &self.steps, &options, bound.total(), meter)
    }
}

/// The link that the options say.
fn link(args: &ReplayArgs) -> LinkModel {
    LinkModel { rate: args.rate as f64, round_trip: args.rtt }
}

/// A session's name: that of its file without the ending.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where the picture of one of so many sessions goes: `out.svg`, or `out.B03.svg`.
fn picture_path(svg: &Path, trace: &str, sessions: usize) -> PathBuf {
    if sessions == 1 {
        return svg.to_owned();
    }
    let mut name = svg.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".{trace}"));
    if let Some(ending) = svg.extension() {
        name.push(".");
        name.push(ending);
    }
    svg.with_file_name(name)
}
