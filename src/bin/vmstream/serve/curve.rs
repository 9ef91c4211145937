//! The learning curve: how long guests wait, by the number of sessions that were learnt before them.
//!
//! Each lesson first tries its new sessions with the model that their guests might have had, which has not seen them: in
//! virtual time, over a link of 25 Mbit/s and 50 ms and without packs. So a point is honest, and costs a replay of a few sessions. The same
//! sessions without any model are the measure beside it. The points are a small file, `curve.json`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmstream::config::Config;
use vmstream::error::{Error, Result};
use vmstream::model::Model;
use vmstream::replay::{self, Figures, LinkModel, Policy, Setup};
use vmstream::session::{Session, WallTime};

use crate::files;

/// Most sessions of a lesson that are tried: the newest.
const TRIED_MAX: usize = 8;
/// Most accesses of a session that are replayed: some seconds of one processor.
const STEPS_MAX: usize = 100_000;
/// And most bytes that it may need: who reads more is a program that reads the whole disk, which no model foresees.
const BYTES_MAX: u64 = 4 << 30;
/// Longest pause of a guest.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The link as people call it.
pub const LINK: &str = "a link of 25 Mbit/s and 50 ms";
/// The same: bytes a second, and its round trip.
const RATE: f64 = 25e6 / 8.0;
const ROUND_TRIP: Duration = Duration::from_millis(50);
/// Most points that are kept; the oldest go.
const POINTS_MAX: usize = 256;
/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 10;
const FILE: &str = "curve.json";

/// What a lesson's new sessions showed. Times are seconds that a guest waited, the mean of those tried.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Point {
    /// When, in microseconds since 1970.
    pub at_us: u64,
    /// Sessions that had been learnt before.
    pub sessions: u64,
    /// Sessions that were tried.
    pub tried: usize,
    /// With the model.
    pub waited_s: f64,
    /// Waits of more than a tenth of a second, with the model.
    pub stalls: f64,
    /// Without a model.
    pub plain_s: f64,
    /// What the guests themselves reported, on their own links.
    pub reported_s: f64,
}

/// The points, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Curve(pub Vec<Point>);

impl Curve {
    /// The curve that is kept in an image's private directory; empty when there is none that can be read.
    pub fn load(private: &Path) -> Self {
        let path = private.join(FILE);
        let fits = path.metadata().is_ok_and(|file| file.is_file() && file.len() <= FILE_BYTES_MAX);
        let text = fits.then(|| std::fs::read(&path).ok()).flatten().unwrap_or_default();
        let mut curve: Self = serde_json::from_slice(&text).unwrap_or_default();
        curve.0.retain(Point::is_sound);
        curve
    }

    /// Adds a point and keeps the curve.
    pub fn add(mut self, point: Point, private: &Path) -> Result<()> {
        self.0.push(point);
        self.0.drain(..self.0.len().saturating_sub(POINTS_MAX));
        let text = serde_json::to_vec(&self).map_err(|e| Error::io("cannot write the learning curve", e.into()))?;
        files::replace(&private.join(FILE), text)
    }
}

impl Point {
    /// Numbers that can be drawn: somebody may have edited the file.
    fn is_sound(&self) -> bool {
        [self.waited_s, self.stalls, self.plain_s, self.reported_s].iter().all(|s| (0.0..=1e9).contains(s))
    }
}

/// Tries sessions with a model that does not know them and that came of so many; `None` when there are none.
pub fn try_out(model: Option<Model>, fresh: &[&Session], sessions: u64) -> Option<Point> {
    let needed =
        |session: &Session| session.first_needs().map(|(_, range)| session.geometry.length(range)).sum::<u64>();
    let tried: Vec<_> = fresh.iter().rev().filter(|session| needed(session) <= BYTES_MAX).take(TRIED_MAX).collect();
    let model = model.map(Arc::new);
    let mean = |what: &dyn Fn(&Session) -> f64| tried.iter().map(|s| what(s)).sum::<f64>() / tried.len() as f64;
    let with: Vec<Figures> = tried.iter().map(|session| waits(session, model.as_ref())).collect();
    let of_with = |what: &dyn Fn(&Figures) -> f64| with.iter().map(what).sum::<f64>() / with.len() as f64;
    (!tried.is_empty()).then(|| Point {
        at_us: WallTime::now().0,
        sessions,
        tried: tried.len(),
        waited_s: of_with(&|figures| figures.stalled.as_secs_f64()),
        stalls: of_with(&|figures| figures.long_stalls as f64),
        plain_s: mean(&|session| waits(session, None).stalled.as_secs_f64()),
        reported_s: mean(&|session| session.stood_still().as_secs_f64()),
    })
}

/// How a guest waits that does as `session` did, followed by a model or by readahead alone.
fn waits(session: &Session, model: Option<&Arc<Model>>) -> Figures {
    let mut steps = replay::guest(session, 1.0, PAUSE_MAX);
    steps.truncate(STEPS_MAX);
    let geometry = session.geometry;
    let mut config = Config { fill: false, block_bytes: geometry.block_bytes(), ..Config::default() };
    let foresight = Policy::Planner.foresight(&mut config, model, session);
    let link = LinkModel { rate: RATE, round_trip: ROUND_TRIP };
    replay::run(Setup { steps: &steps, geometry, link, config, foresight, packs: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(sessions: u64) -> Point {
        Point { at_us: 1, sessions, tried: 2, waited_s: 1.5, stalls: 3.0, plain_s: 4.0, reported_s: 0.0 }
    }

    #[test]
    fn the_newest_points_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..POINTS_MAX as u64 + 3 {
            Curve::load(dir.path()).add(point(n), dir.path()).unwrap();
        }
        let curve = Curve::load(dir.path());
        assert_eq!((curve.0.len(), curve.0[0].sessions), (POINTS_MAX, 3));
    }

    #[test]
    fn a_file_that_is_no_curve_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let negative = Point { waited_s: -1.0, ..point(1) };
        std::fs::write(dir.path().join(FILE), serde_json::to_vec(&[negative, point(2)]).unwrap()).unwrap();
        assert_eq!(Curve::load(dir.path()).0.len(), 1);
        for bad in ["", "{}", "[1]", "[{\"waited_s\":1}]"] {
            std::fs::write(dir.path().join(FILE), bad).unwrap();
            assert_eq!(Curve::load(dir.path()), Curve::default(), "{bad}");
        }
        assert_eq!(try_out(None, &[], 0), None);
    }
}
