//! The live side of `vmstream replay`: an origin, a cache that nobody keeps, and signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use vmstream::block::Geometry;
use vmstream::config::{Config, Prefetch};
use vmstream::error::{Error, Result, errno};
use vmstream::predictor::Foresight;
use vmstream::replay::{Figures, LinkModel, Step, live};
use vmstream::source::pattern::PatternSource;

use super::origin::{Origin, WINDOW_BYTES};
use crate::progress::Meter;
use crate::serve::link::Shape;
use crate::signals;

/// Shortest time between two drawings of the progress line.
const DRAW_EVERY: Duration = Duration::from_millis(500);

/// Longest that a replay may take, over what virtual time says: on a machine that is ten times too busy its figures are
/// worth nothing.
const SLOWNESS_MAX: u32 = 10;
/// The same for the shortest replays, which are mostly start.
const PATIENCE_MIN: Duration = Duration::from_secs(60);

/// What live replays have in common.
pub struct Live {
    /// The signal that asks for the end, or 0.
    signal: Arc<AtomicI32>,
}

/// One replay.
pub struct Replay<'a> {
    /// Name of the session.
    pub name: &'a str,
    /// The guest.
    pub steps: &'a [Step],
    /// Of the image.
    pub geometry: Geometry,
    /// The link.
    pub link: LinkModel,
    /// What the policy made of the options.
    pub config: &'a Config,
    /// What follows the guest.
    pub foresight: Option<Box<dyn Foresight>>,
    /// How long it took in virtual time.
    pub expected: Duration,
}

/// A guest that lives in real time.
struct Life<'a> {
    name: &'a str,
    steps: &'a [Step],
    /// Of the image.
    options: &'a [String],
    image: live::Subject,
    /// About how long it lives, ...
    expected: Duration,
    /// ... and at most, if there is a limit.
    limit: Option<Duration>,
}

impl Live {
    /// From now on a signal ends what goes on.
    pub fn start() -> Result<Self> {
        let signal = Arc::new(AtomicI32::new(0));
        let seen = signal.clone();
        signals::handle(move |event| {
            if let signals::Event::Stop(signal) = event {
                seen.store(signal, Ordering::Release);
            }
        })?;
        Ok(Self { signal })
    }

    /// The signal that asked for the end, if one came.
    pub fn interrupted(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::Acquire)).filter(|&signal| signal != 0)
    }

    /// Replays in real time. Fewer steps in the answer than were to be done mean that a signal came.
    pub fn run(&self, replay: Replay<'_>, meter: &mut Meter) -> Result<Figures> {
        let Replay { name, steps, geometry, link, config, foresight, expected } = replay;
        let image = PatternSource::open(&format!("pattern:{}", geometry.size()), None)?;
        let shape = Shape {
            rate_bytes_s: Some(link.rate as u64),
            round_trip: link.round_trip,
            window_bytes: WINDOW_BYTES,
            cuts: Vec::new(),
        };
        let origin = Origin::start(image.clone(), shape)?;
        let cache = nobodys_cache()?;
        let prefetch = match config.prefetch {
            Prefetch::None => "none",
            Prefetch::Readahead => "readahead",
        };
        let options = [
            format!("source={}", origin.url()),
            format!("cache={}", cache.path().display()),
            format!("block_size={}", geometry.block_bytes()),
            format!("prefetch={prefetch}"),
            "fill=off".to_owned(),
            "sessions=off".to_owned(),
            // The policy alone decides what follows the guest.
            "model=off".to_owned(),
            // Whatever the environment says of proxies, the origin is here.
            "proxy=none".to_owned(),
        ];
        log::info!("{name}: live, about {:.0} s", expected.as_secs_f64());
        let limit = PATIENCE_MIN + expected * SLOWNESS_MAX;
        let image = live::Subject::MadeUp { contents: image, foresight };
        let life = Life { name, steps, options: &options, image, expected, limit: Some(limit) };
        let figures = self.live(life, meter)?;
        if figures.steps < steps.len() && self.interrupted().is_none() {
            return Err(Error::new(
                errno::ETIMEDOUT,
                format!(
                    "{name}: given up after {limit:.0?} at step {} of {}: {:.0?} were expected; try again when the \
                     machine is less busy",
                    figures.steps,
                    steps.len(),
                    expected
                ),
            ));
        }
        Ok(figures)
    }

    /// Replays on the image that `options` say, which is somebody's, over the link that leads to it; `oracle` is how long it
    /// takes at best. Without limit: nobody knows how slow that link is.
    pub fn run_on(
        &self,
        name: &str,
        steps: &[Step],
        options: &[String],
        oracle: Duration,
        meter: &mut Meter,
    ) -> Result<Figures> {
        let cache = nobodys_cache()?;
        let mut options = options.to_vec();
        options.push(format!("cache={}", cache.path().display()));
        let image = live::Subject::Real;
        self.live(Life { name, steps, options: &options, image, expected: oracle, limit: None }, meter)
    }

    /// Lets the guest live until its last step, a signal or the limit.
    fn live(&self, life: Life<'_>, meter: &mut Meter) -> Result<Figures> {
        let Life { name, steps, options, image, expected, limit } = life;
        let began = Instant::now();
        let mut drawn = None;
        let mut go_on = |done: usize| {
            if drawn.is_none_or(|at: Instant| at.elapsed() >= DRAW_EVERY) {
                drawn = Some(Instant::now());
                let (now, all) = (began.elapsed().as_secs(), expected.as_secs());
                meter.show(&format!("{name}: step {done} of {}, {now} s of about {all}", steps.len()));
            }
            self.interrupted().is_none() && limit.is_none_or(|limit| began.elapsed() < limit)
        };
        let setup = live::Setup { steps, options, image, go_on: &mut go_on };
        live::run(setup).map_err(|e| Error::new(e.errno(), format!("{name}: {e}")))
    }
}

/// A directory for a cache that goes with the replay.
fn nobodys_cache() -> Result<tempfile::TempDir> {
    let made = tempfile::Builder::new().prefix("vmstream-replay-").tempdir();
    made.map_err(|e| Error::io(format_args!("cannot make a directory in {}", std::env::temp_dir().display()), e))
}
