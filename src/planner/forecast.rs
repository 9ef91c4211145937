//! What the guest has to expect: the risk of a stall, and how long to wait until it is gone.
//!
//! An [`Outlook`] is a copy of what the planner knows of the time to come. It is taken in a moment, and thought over
//! afterwards, so that nobody who fetches has to wait for it.
//!
//! *From the guest's own past.* Its stalls are taken for the arrivals of a Poisson process that goes on at the rate of the
//! last minutes. It ends when the image is complete, and that is also when such a guest will be calm.
//!
//! *From other sessions*, where a model follows the guest: the sessions it may be repeating are played forward (see
//! [`Expectation`]), at the tempo of this guest and on this link. What comes of that is too sure of itself: the samples
//! are few, and all of them ignore what they have in common. So the two views are weighed against each other by a logistic
//! function. Its three numbers were learnt from replays of 33 sessions, each foretold by the others, on a fast and on
//! a slow link. Learnt from two thirds of them it is right about the third on the fast link; on the slow one, where a
//! moment without a stall is rare, it says too little of the low risks.
//!
//! *Of a guest that has not begun*, or that is held back, the remembered sessions alone are heard, as they are. It has no past to
//! be weighed: that it does not stall while it stands still says nothing, nor does its clock go on. And what made the
//! samples too sure of themselves, that they share one guess of where the guest is, is not so: all of
//! them stand at their beginning, each as likely as the others, and what only one of them knows stands for what this one will
//! have alone. So the share of them that would stall is the risk. That is what `--wait` goes by. It takes for granted that
//! the guest will be as fast as those learnt from, since nobody has seen it go.
//!
//! *On a link that is dead*, as long as fetches fail on end, nothing of that is promised: what is needed is taken for late,
//! the worse of the two views counts, and nobody can tell when the guest will be calm or the image complete.

use std::sync::Arc;
use std::time::Duration;

use super::habits::Habits;
use super::{Blocks, Planner};
use crate::block::{BlockRange, Geometry};
use crate::config::Prefetch;
use crate::link::{Link, QUEUE_TARGET};
use crate::predictor::{Conditions, Expectation, Prospects};
use crate::stats::{Forecast, STALL};
use crate::time::Moment;
use crate::tree::Tree;

/// What a guest usually asks for at a time, in bytes: with it an unforeseen wait is guessed before any was seen.
const DEMAND_BYTES: f64 = 64e3;
/// A guess of how many waits are stalls counts as much as so many waits that were seen.
const GUESS_WAITS: f64 = 4.0;
/// What a link is taken for that has not been measured yet: its rate, in bytes a second, slow because who knows nothing
/// must not promise, ...
const RATE: f64 = 125e3;
/// ... and the time of a fetch on demand on it, without the bytes, in seconds.
const DEMAND_S: f64 = 0.06;
/// The logistic function: its constant, ...
const WEIGH_NOTHING: f64 = -0.75;
/// ... how much the sessions count, ...
const WEIGH_SESSIONS: f64 = 0.55;
/// ... and the guest's own stalls. Together less than one: both views share their errors.
const WEIGH_HABITS: f64 = 0.33;
/// The guest's own past counts in full when it has been watched for so long, in seconds; before, the sessions stand in.
const WATCH_FULL_S: f64 = 10.0;
/// Nothing is believed to be rarer than this, or to be surer than all but this.
const DOUBT: f64 = 0.003;
/// Steps of the search for the head start: from an hour down to below a tenth of a second.
const HALVINGS: u32 = 16;
/// Longest head start that is looked for, in seconds: nobody holds a machine back longer.
const HEAD_START_MAX_S: f64 = 3600.0;

/// What the planner knows of the time to come.
#[derive(Clone, Debug)]
pub struct Outlook {
    geometry: Geometry,
    /// Bytes a second; 0 when unknown.
    rate: f64,
    /// How long a fetch on demand takes, without its bytes, in seconds.
    demand_s: f64,
    /// The image is completed whatever the guest does.
    filling: bool,
    /// What is foreseen is fetched before the guest asks for it.
    ahead: bool,
    /// Nothing has arrived since a fetch failed.
    failing: bool,
    /// The present wait is counted in when it is a stall already.
    habits: Habits,
    /// The guest has done something.
    begun: bool,
    /// How long the guest has been quiet, in seconds.
    quiet_s: f64,
    /// How long the guest has been waiting for bytes by now.
    waiting: Duration,
    expectation: Option<Expectation>,
    /// Where the holes are, for which nothing comes over the link; `None` where nobody knows.
    tree: Option<Arc<Tree>>,
}

impl Planner {
    /// What is known now of the time to come.
    pub fn outlook(&self, now: Moment) -> Outlook {
        let mut habits = self.habits;
        habits.look(now);
        let waiting = self.stall_began.map_or(Duration::ZERO, |began| now.since(began));
        if waiting > STALL {
            habits.stood(waiting);
        }
        Outlook {
            geometry: self.geometry,
            rate: self.link.rate(),
            demand_s: demand_s(&self.link),
            filling: self.fill_on,
            ahead: self.prefetch == Prefetch::Readahead,
            failing: self.backoff.failing(),
            begun: habits.has_begun(),
            habits,
            quiet_s: if self.demand.len() > 0 { 0.0 } else { habits.quiet_s(now) },
            waiting,
            expectation: self.foresight.as_ref().and_then(|foresight| foresight.expectation()),
            tree: self.tree.clone(),
        }
    }

    /// The same of a guest that is held back and would go on now. What touched the image so far was its monitor, to bring it
    /// to where it stands.
    pub fn outlook_held(&self, now: Moment) -> Outlook {
        Outlook { habits: Habits::default(), quiet_s: 0.0, waiting: Duration::ZERO, ..self.outlook(now) }
    }
}

/// A round trip and the queue that our own prefetch has built before it.
fn demand_s(link: &Link) -> f64 {
    (link.round_trip().unwrap_or_default() + QUEUE_TARGET).as_secs_f64()
}

impl Outlook {
    /// What is to be expected within `horizon`, while `missing_bytes` of the image, holes included, are not here; `calm_risk` is the risk,
    /// from 0 to 1, that [`Forecast::calm_in`] is about.
    pub fn forecast(&self, horizon: Duration, calm_risk: f64, missing_bytes: u64, blocks: &dyn Blocks) -> Forecast {
        let to_come = match &self.tree {
            Some(_) => self.absent(self.geometry.all(), blocks),
            None => missing_bytes,
        };
        let complete_in = match to_come {
            0 => Some(Duration::ZERO),
            _ if self.failing => None,
            bytes => Duration::try_from_secs_f64(bytes as f64 / self.rate).ok(),
        };
        let prospects = self.prospects(horizon, to_come, blocks);
        let own_risk = 1.0 - (-self.habits.stalls_a_second() * horizon.as_secs_f64()).exp();
        let own_stood_s = horizon.as_secs_f64() * self.habits.share_waited();
        let weighed = |prospects: &Prospects, head_start_s| self.weigh(prospects.risk(head_start_s), own_risk);
        let (stall_risk, stood_s) = match &prospects {
            _ if to_come == 0 => (0.0, 0.0),
            // It is happening, and goes on for as long as nothing arrives.
            _ if self.waiting > STALL && self.failing => (1.0, horizon.as_secs_f64()),
            // Or for nobody knows how long: at least what is foreseen, or the share of its time that it has stood.
            _ if self.waiting > STALL => (1.0, prospects.as_ref().map_or(0.0, Prospects::stood_s).max(own_stood_s)),
            Some(prospects) if self.failing => (prospects.risk(0.0).max(own_risk), prospects.stood_s()),
            Some(prospects) => (weighed(prospects, 0.0), prospects.stood_s()),
            None => (own_risk, own_stood_s),
        };
        let head_start = prospects.as_ref().and_then(|prospects| head_start(&|s| weighed(prospects, s), calm_risk));
        let complete = complete_in.filter(|_| self.filling);
        let calm_in = if self.failing && to_come > 0 {
            None
        } else if stall_risk <= calm_risk {
            Some(Duration::ZERO)
        } else {
            [head_start, complete].into_iter().flatten().min()
        };
        let expected_stall = Duration::from_secs_f64(stood_s);
        Forecast { stall_risk, expected_stall, calm_in, foreseen: prospects.is_some(), complete_in, missing_bytes }
    }

    /// The risk in which both views are heard, from 0 to 1.
    fn weigh(&self, foreseen: f64, own: f64) -> f64 {
        if !self.habits.has_begun() {
            return foreseen.clamp(DOUBT, 1.0 - DOUBT);
        }
        let logit = |risk: f64| {
            let risk = risk.clamp(DOUBT, 1.0 - DOUBT);
            (risk / (1.0 - risk)).ln()
        };
        let watched = (self.habits.watched_s() / WATCH_FULL_S).min(1.0);
        let habits = watched * logit(own) + (1.0 - watched) * logit(foreseen);
        let sum = WEIGH_NOTHING + WEIGH_SESSIONS * logit(foreseen) + WEIGH_HABITS * habits;
        1.0 / (1.0 + (-sum).exp())
    }

    /// What the remembered sessions say; `None` without any.
    fn prospects(&self, horizon: Duration, to_come: u64, blocks: &dyn Blocks) -> Option<Prospects> {
        let expectation = self.expectation.as_ref()?;
        let (rate, demand_s) = if self.rate > 0.0 { (self.rate, self.demand_s) } else { (RATE, DEMAND_S) };
        let demand_s = if self.failing { demand_s.max(horizon.as_secs_f64()) } else { demand_s };
        let conditions = Conditions {
            rate,
            demand_s,
            horizon_s: horizon.as_secs_f64(),
            tempo: self.habits.tempo(),
            since_s: self.quiet_s,
            begun: self.begun,
            news: self.habits.news(),
            long_share: if self.failing {
                1.0
            } else {
                self.habits.share_stalled(long_share(rate, demand_s), GUESS_WAITS)
            },
            sent: self.sent(self.geometry.all()),
            absent: to_come,
            unforeseen: DEMAND_BYTES,
            stalls_a_second: self.habits.stalls_a_second(),
            filling: self.filling,
            ahead: self.ahead && !self.failing,
        };
        Some(expectation.play(&conditions, &|range| self.absent(range, blocks), &|range| self.sent(range)))
    }

    /// Bytes of a range that come over the link, or have come.
    fn sent(&self, range: BlockRange) -> u64 {
        match &self.tree {
            Some(tree) => tree.holes().used_in(range).map(|used| self.geometry.length(used)).sum(),
            None => self.geometry.length(range),
        }
    }

    /// Bytes of a range that are still to come over the link.
    fn absent(&self, range: BlockRange, blocks: &dyn Blocks) -> u64 {
        let absent = |range| absent_bytes(self.geometry, range, blocks);
        match &self.tree {
            Some(tree) => tree.holes().used_in(range).map(absent).sum(),
            None => absent(range),
        }
    }
}

/// The share of fetches on demand, from 0 to 1, that take longer than [`STALL`] on a link of this rate. None is faster than a
/// round trip; beyond it the time that its queue and its bytes take is thought to be distributed exponentially. A
/// sharp limit would promise a guest, on a link where the mean is just below it, that it never stalls.
fn long_share(rate: f64, demand_s: f64) -> f64 {
    let queue_s = QUEUE_TARGET.as_secs_f64();
    let beyond_s = STALL.as_secs_f64() - (demand_s - queue_s);
    (-beyond_s.max(0.0) / (queue_s + DEMAND_BYTES / rate)).exp()
}

/// The shortest head start after which the risk is low enough; `None` when no time would do.
fn head_start(risk: &dyn Fn(f64) -> f64, calm_risk: f64) -> Option<Duration> {
    let (mut short, mut enough) = (0.0, HEAD_START_MAX_S);
    if risk(enough) > calm_risk {
        return None;
    }
    for _ in 0..HALVINGS {
        let middle = (short + enough) / 2.0;
        if risk(middle) > calm_risk { short = middle } else { enough = middle }
    }
    Some(Duration::from_secs_f64(enough))
}

/// Bytes of a range that are not here.
fn absent_bytes(geometry: Geometry, range: BlockRange, blocks: &dyn Blocks) -> u64 {
    let (mut rest, mut bytes) = (range, 0);
    while let Some(start) = blocks.first_absent(rest) {
        rest.start = start;
        let end = blocks.first_present(rest).unwrap_or(rest.end);
        bytes += geometry.length(BlockRange { start, end });
        rest.start = end;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::testing::All;
    use super::super::{Event, RequestId};
    use super::*;
    use crate::block::{BlockRange, Geometry};
    use crate::config::Config;
    use crate::gate::Op;
    use crate::tree::{TreeBuilder, hash_block};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn more_fetches_are_long_the_slower_and_the_more_distant_the_link() {
        let share = |bits: f64, round_trip_s: f64| long_share(bits / 8.0, round_trip_s + QUEUE_TARGET.as_secs_f64());
        assert!(share(1e9, 0.001) < 0.001);
        assert!((0.1..0.3).contains(&share(25e6, 0.05)), "{}", share(25e6, 0.05));
        assert!(share(8e6, 0.05) > share(25e6, 0.05) && share(1e6, 0.05) > 0.9);
        assert_eq!(share(1e9, 0.1), 1.0, "there is no fetch without a round trip");
    }

    #[test]
    fn without_a_model_stalls_go_on_as_they_were() {
        let geometry = Geometry::new(1 << 30, 4096).unwrap();
        let mut planner = Planner::new(geometry, &Config { fill: false, ..Config::default() }, 1);
        let mut actions = Vec::new();
        let mut now = Moment(1);
        for id in 0..20 {
            let request = Planner::request(geometry, Op::Read, id << 20, 4096, now);
            planner.on(Event::Needed(RequestId(id), request), now, &All(false), &mut actions);
            now = now + SECOND / 4;
            planner.demand.arrived(geometry.all(), &All(true), &mut planner.ready);
            planner.on(Event::WritesEnded, now, &All(true), &mut actions);
            now = now + SECOND * 3 / 4;
        }
        let outlook = planner.outlook(now);
        let risk = |horizon| outlook.forecast(horizon, 0.05, 1 << 20, &All(false)).stall_risk;
        assert!((risk(SECOND) - (1.0 - (-1f64).exp())).abs() < 0.05, "{}", risk(SECOND));
        assert!(risk(SECOND / 10) < risk(SECOND) && risk(SECOND * 30) > 0.999);
        let forecast = outlook.forecast(SECOND * 8, 0.05, 1 << 20, &All(false));
        assert!((forecast.expected_stall.as_secs_f64() - 2.0).abs() < 0.2, "{forecast:?}");
        assert_eq!((forecast.calm_in, forecast.foreseen), (None, false), "nobody completes the image");
        planner.set_fill(true);
        let forecast = Outlook { rate: 1e6, ..planner.outlook(now) }.forecast(SECOND, 0.05, 3_000_000, &All(false));
        assert_eq!((forecast.calm_in, forecast.complete_in), (Some(SECOND * 3), Some(SECOND * 3)));
        let forecast = planner.outlook(now).forecast(SECOND, 0.05, 0, &All(true));
        assert_eq!((forecast.stall_risk, forecast.calm_in), (0.0, Some(Duration::ZERO)));
    }

    #[test]
    fn a_guest_that_stands_still_stalls_whatever_else_is_known() {
        let geometry = Geometry::new(1 << 30, 4096).unwrap();
        let mut planner = Planner::new(geometry, &Config::default(), 1);
        let request = Planner::request(geometry, Op::Read, 0, 4096, Moment(1));
        planner.on(Event::Needed(RequestId(1), request), Moment(1), &All(false), &mut Vec::new());
        let outlook = Outlook { rate: 1e6, ..planner.outlook(Moment(1) + SECOND * 20) };
        let forecast = outlook.forecast(SECOND * 8, 0.05, 10_000_000, &All(false));
        assert_eq!((forecast.stall_risk, forecast.calm_in), (1.0, Some(SECOND * 10)));
        assert!((forecast.expected_stall.as_secs_f64() - 8.0).abs() < 0.01, "{forecast:?}");
        assert_eq!(outlook.forecast(SECOND, 0.05, 0, &All(true)).stall_risk, 0.0);
    }

    #[test]
    fn holes_are_not_waited_for() {
        let geometry = Geometry::new(1 << 30, 4096).unwrap();
        let mut planner = Planner::new(geometry, &Config::default(), 1);
        let mut builder = TreeBuilder::new(geometry);
        builder.used(&[hash_block(b"any"); 50]);
        builder.zero((1 << 18) - 50);
        let (file, root) = builder.finish().unwrap();
        planner.set_holes(Arc::new(Tree::read(&file, root).unwrap()));
        let outlook = Outlook { rate: 50.0 * 4096.0 / 8.0, ..planner.outlook(Moment(1)) };
        let forecast = outlook.forecast(SECOND, 0.05, 1 << 30, &All(false));
        assert_eq!((forecast.complete_in, forecast.missing_bytes), (Some(SECOND * 8), 1 << 30));
        let block = |start| BlockRange::new(start, start + 10);
        assert_eq!((outlook.sent(block(45)), outlook.sent(block(50))), (5 * 4096, 0));
        assert_eq!((outlook.absent(block(45), &All(false)), outlook.absent(block(45), &All(true))), (5 * 4096, 0));
    }

    #[test]
    fn on_a_dead_link_nothing_is_promised() {
        let geometry = Geometry::new(1 << 30, 4096).unwrap();
        let mut planner = Planner::new(geometry, &Config::default(), 1);
        planner.backoff.failed(geometry.all(), false, None, Moment(1));
        let outlook = Outlook { rate: 1e6, ..planner.outlook(Moment(1)) };
        let forecast = outlook.forecast(SECOND, 0.05, 1 << 20, &All(false));
        assert_eq!((forecast.calm_in, forecast.complete_in), (None, None));
        let complete = outlook.forecast(SECOND, 0.05, 0, &All(true));
        assert_eq!((complete.calm_in, complete.complete_in), (Some(Duration::ZERO), Some(Duration::ZERO)));
    }

    #[test]
    fn both_views_are_heard_and_the_guests_own_more_with_time() {
        let geometry = Geometry::new(1 << 30, 4096).unwrap();
        let mut planner = Planner::new(geometry, &Config::default(), 1);
        let unwatched = planner.outlook(Moment(1));
        let foreseen: Vec<f64> = (0..=10).map(|tenths| unwatched.weigh(f64::from(tenths) / 10.0, 0.0)).collect();
        assert!(foreseen.is_sorted() && foreseen[0] < 0.01 && foreseen[10] > 0.95, "{foreseen:?}");
        assert_eq!(unwatched.weigh(0.5, 0.0), unwatched.weigh(0.5, 1.0), "a guest that did nothing has no past");
        let at_their_word = |outlook: &Outlook| (outlook.weigh(0.3, 0.9) - 0.3).abs() < 1e-9;
        assert!(at_their_word(&unwatched), "the sessions are taken at their word");
        for second in 1..=30 {
            planner.habits.acted(Moment(0) + SECOND * second);
        }
        let watched = planner.outlook(Moment(0) + SECOND * 30);
        assert!(watched.weigh(0.5, 0.01) < unwatched.weigh(0.5, 0.01));
        assert!(watched.weigh(0.5, 0.99) > unwatched.weigh(0.5, 0.99));
        let held = planner.outlook_held(Moment(0) + SECOND * 60);
        assert!(at_their_word(&held) && held.begun && held.quiet_s == 0.0, "its own time stands still: {held:?}");
    }

    #[test]
    fn the_head_start_is_the_shortest_that_is_long_enough() {
        let risk = |head_start_s: f64| if head_start_s < 12.5 { 0.4 } else { 0.02 };
        let found = head_start(&risk, 0.05).unwrap().as_secs_f64();
        assert!((12.5..12.6).contains(&found), "{found}");
        assert_eq!(head_start(&risk, 0.01), None);
    }
}
