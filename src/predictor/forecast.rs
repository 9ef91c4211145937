//! Stalls foreseen: the sessions that the guest may be repeating, played forward against the link.
//!
//! The belief's sessions and cursors are samples of the future. Each is walked from its cursor on, and each sequence in
//! it is *needed* when the session needed it, on this guest's clock. It *arrives* when the link has brought all that is
//! planned before it; or, because a guest that goes this way is recognised as it goes, when the link has brought all that
//! this session needs before it, with the share of the link that wrong guesses leave. What arrives later than it is needed
//! makes the guest wait, at most for as long as a fetch on demand takes. How much later says also how long the
//! guest would have to be held back for it to be in time, so risk and head start come from the same numbers. Where nothing
//! is fetched ahead everything comes late, and no head start helps.
//!
//! *What no session knows.* A sequence that only one session knows was news when that session was new. So, as Good and
//! Turing taught to count the species nobody has seen by those seen once, such sequences stand for what this guest
//! will touch and nobody has touched before, at the stages of a session where that happens. Whether such a sequence is here says
//! nothing of the new one; that any block is here, of which nothing is known, does.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Candidate, Cursor, Likely};
use crate::block::BlockRange;
use crate::model::{Model, Sequence, SequenceId};
use crate::stats::STALL;

/// Share of the link that a session which the guest follows gets, against guesses that fail.
const FOLLOWED_SHARE: f64 = 0.7;
/// How exactly the time of a need is known that comes at once, in seconds, ...
const BLUR_S: f64 = 0.1;
/// ... and by how much less for each second that lies before it: guests hurry and dawdle.
const BLUR_SHARE: f64 = 0.15;
/// News that follow each other within so many seconds are one: a program that nobody has run before.
const BURST_S: f64 = 1.0;
/// Weight of the expectation that this guest touches as much that is new as others did, in such touches.
const NEWS_PRIOR: f64 = 5.0;

/// A future that the guest may have.
#[derive(Clone, Copy, Debug)]
struct Sample {
    path: usize,
    /// Probability; those of all samples add up to one.
    weight: f64,
    cursor: Cursor,
}

/// What the remembered sessions expect of the guest, as a copy that can be thought over at leisure.
#[derive(Clone, Debug)]
pub struct Expectation {
    model: Arc<Model>,
    samples: Vec<Sample>,
    /// What is to be fetched, the most urgent first.
    planned: Vec<Candidate>,
}

/// Under what circumstances the future takes place. Times are in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Of the link, in bytes a second; greater than 0.
    pub rate: f64,
    /// How long a fetch on demand takes, without its bytes.
    pub demand_s: f64,
    /// How far to look.
    pub horizon_s: f64,
    /// Seconds of the remembered sessions that go by in one of this guest's.
    pub tempo: f64,
    /// How long ago the guest was seen at the cursors.
    pub since_s: f64,
    /// The guest has done something. Before that it is about to do the first thing of a session, whatever pause there
    /// was before it.
    pub begun: bool,
    /// Things that no session knows which the guest has touched so far.
    pub news: f64,
    /// Probability that a need which comes late or unforeseen is a stall and not only a wait.
    pub long_share: f64,
    /// Bytes of the whole image that come over the link, or have come, ...
    pub sent: u64,
    /// ... and those of them that are not here.
    pub absent: u64,
    /// Least that is fetched for a miss that nobody foresaw, in bytes: what is read on behind it goes before the next one.
    pub unforeseen: f64,
    /// Stalls in a second of this guest so far, where no session tells more.
    pub stalls_a_second: f64,
    /// What is planned only to fill the image is fetched as well.
    pub filling: bool,
    /// What is planned is fetched ahead at all; otherwise all comes on demand.
    pub ahead: bool,
}

/// Bytes of a sequence: those that are not here, and those that come over the link at some time.
#[derive(Clone, Copy, Debug)]
struct Size {
    absent: u64,
    sent: u64,
    /// In how many fetches what is not here comes on demand: a guest that reads on finds what lies behind, but not what lies elsewhere.
    fetches: u32,
}

impl Size {
    fn of(sequence: &Sequence, absent: &dyn Fn(BlockRange) -> u64, sent: &dyn Fn(BlockRange) -> u64) -> Self {
        let mut size = Self { absent: 0, sent: 0, fetches: 0 };
        for &run in &sequence.runs {
            let absent = absent(run);
            size.absent += absent;
            size.sent += sent(run);
            size.fetches += u32::from(absent > 0);
        }
        size
    }
}

/// Probabilities that what hardly anybody knows is not here.
#[derive(Clone, Copy, Debug)]
struct Rare {
    /// Of a block that no session knows.
    unknown: f64,
    /// Of one that a single session knows.
    single: f64,
    /// How many times as much of it this guest touches as others did.
    factor: f64,
}

/// A need of one sample.
#[derive(Clone, Copy, Debug)]
struct Need {
    /// By how much it comes late for a guest that would not notice a short wait; negative when in time.
    late_s: f64,
    /// How exactly that is known.
    blur_s: f64,
}

/// What becomes of the guest in one sample.
#[derive(Clone, Debug)]
struct Prospect {
    weight: f64,
    needs: Vec<Need>,
    /// Probability that something unheard-of makes it stall.
    surprise: f64,
    stood_s: f64,
}

/// The futures, played.
#[derive(Clone, Debug)]
pub struct Prospects {
    samples: Vec<Prospect>,
    long_share: f64,
}

impl Expectation {
    /// An expectation of likely sessions; `None` when there are none.
    pub(super) fn new<'a>(
        model: &Arc<Model>,
        likely: impl Iterator<Item = Likely<'a>>,
        planned: &[Candidate],
    ) -> Option<Self> {
        let mut samples = Vec::new();
        for Likely { path, weight, cursors, .. } in likely {
            samples.extend(cursors.iter().map(|&cursor| Sample { path, weight: weight * cursor.strength, cursor }));
        }
        let sum: f64 = samples.iter().map(|sample| sample.weight).sum();
        if sum <= 0.0 {
            return None;
        }
        samples.iter_mut().for_each(|sample| sample.weight /= sum);
        Some(Self { model: Arc::clone(model), samples, planned: planned.to_vec() })
    }

    /// Plays the futures. `absent` tells how many bytes of a range are not here, `sent` how many of it come over the link at
    /// some time: what does not makes nobody wait.
    pub fn play(
        &self,
        conditions: &Conditions,
        absent: &dyn Fn(BlockRange) -> u64,
        sent: &dyn Fn(BlockRange) -> u64,
    ) -> Prospects {
        let arrivals = self.arrivals(conditions, absent);
        // The blocks of a sequence are the same in all samples.
        let sizes: Vec<Size> = self.model.sequences().iter().map(|sequence| Size::of(sequence, absent, sent)).collect();
        let rare = self.rare(conditions, &sizes);
        let play = |sample| self.play_one(sample, conditions, &rare, &arrivals, &sizes);
        let samples = self.samples.iter().map(play).collect();
        Prospects { samples, long_share: conditions.long_share }
    }

    /// In how many seconds the link has brought what is planned, by sequence.
    fn arrivals(&self, conditions: &Conditions, absent: &dyn Fn(BlockRange) -> u64) -> HashMap<SequenceId, f64> {
        let mut bytes = 0;
        let mut arrivals = HashMap::new();
        for candidate in self.planned.iter().filter(|candidate| conditions.filling || !candidate.fill) {
            bytes += absent(candidate.range);
            if let Some(id) = self.model.owner(candidate.range.start) {
                arrivals.insert(id, bytes as f64 / conditions.rate);
            }
        }
        arrivals
    }

    /// How many times as much that is new this guest touches as the remembered ones did, when they were new.
    fn news_factor(&self, news: f64) -> f64 {
        let expected: f64 = self
            .samples
            .iter()
            .map(|sample| {
                let visits = &self.model.paths()[sample.path].visits;
                let behind = &visits[..visits.len().min(sample.cursor.position as usize)];
                sample.weight * behind.iter().filter(|visit| self.is_news(visit.sequence)).count() as f64
            })
            .sum();
        (news + NEWS_PRIOR) / (expected + NEWS_PRIOR)
    }

    /// What is known of what hardly anybody knows.
    fn rare(&self, conditions: &Conditions, sizes: &[Size]) -> Rare {
        let share = |absent: u64, sent: u64| absent as f64 / sent.max(1) as f64;
        let (mut unknown_absent, mut unknown_sent) = (conditions.absent, conditions.sent);
        let (mut single_absent, mut single_sent) = (0, 0);
        for (number, size) in (0..).zip(sizes) {
            unknown_absent = unknown_absent.saturating_sub(size.absent);
            unknown_sent = unknown_sent.saturating_sub(size.sent);
            if self.model.places(SequenceId(number)).len() < 2 {
                single_absent += size.absent;
                single_sent += size.sent;
            }
        }
        Rare {
            unknown: share(unknown_absent, unknown_sent),
            single: share(single_absent, single_sent),
            factor: self.news_factor(conditions.news),
        }
    }

    /// Probability that where a session used this sequence, the guest misses something that hardly anybody knows.
    fn chance_of_news(&self, id: SequenceId, rare: &Rare) -> f64 {
        let absent = match self.model.places(id).len() {
            2 if self.model.paths().len() > 2 => rare.single,
            _ if self.is_news(id) => rare.unknown,
            _ => 0.0,
        };
        (rare.factor * absent).min(1.0)
    }

    /// True for what a single session knows of several: one alone does not tell what sessions differ in.
    fn is_news(&self, id: SequenceId) -> bool {
        self.model.paths().len() > 1 && self.model.places(id).len() < 2
    }

    fn play_one(
        &self,
        sample: &Sample,
        conditions: &Conditions,
        rare: &Rare,
        arrivals: &HashMap<SequenceId, f64>,
        sizes: &[Size],
    ) -> Prospect {
        let visits = &self.model.paths()[sample.path].visits;
        let from = visits.len().min(sample.cursor.position as usize);
        let mut needs = Vec::new();
        let (mut own_bytes, mut stood_s, mut last_news, mut calm) = (0, 0.0, f64::NEG_INFINITY, 1.0);
        let mut told_s = 0.0;
        let origin = match visits.get(from) {
            Some(first) if !conditions.begun => first.at,
            _ => sample.cursor.at,
        };
        for visit in &visits[from..] {
            let at_s = f64::from(visit.at - origin) / conditions.tempo - conditions.since_s;
            let at_s = at_s.max(0.0);
            told_s = at_s + stood_s;
            if told_s > conditions.horizon_s {
                break;
            }
            let size = sizes[visit.sequence.0 as usize];
            let chance = self.chance_of_news(visit.sequence, rare);
            if chance > 0.0 && size.sent > 0 {
                if at_s > last_news + BURST_S {
                    calm *= 1.0 - chance * conditions.long_share;
                }
                last_news = at_s;
                let bytes_s = (size.sent as f64).max(conditions.unforeseen) / conditions.rate;
                // Nothing of what this one stands for is here.
                let runs = self.model.sequences()[visit.sequence.0 as usize].runs.len();
                let on_demand_s = runs as f64 * conditions.demand_s + bytes_s;
                stood_s += (chance * on_demand_s).min(conditions.horizon_s - told_s);
            }
            if size.absent == 0 {
                continue;
            }
            own_bytes += size.absent;
            let own_s = own_bytes as f64 / (conditions.rate * FOLLOWED_SHARE);
            let arrives_s = arrivals.get(&visit.sequence).map_or(own_s, |planned_s| planned_s.min(own_s));
            let late_s = if conditions.ahead { arrives_s - at_s } else { f64::INFINITY };
            needs.push(Need { late_s: late_s - STALL.as_secs_f64(), blur_s: BLUR_S + BLUR_SHARE * at_s });
            let bytes_s = size.absent as f64 / conditions.rate;
            let on_demand_s = f64::from(size.fetches) * conditions.demand_s + bytes_s;
            stood_s += (late_s - stood_s).clamp(0.0, on_demand_s.min(conditions.horizon_s - told_s));
        }
        // A session that is over says nothing of what this guest does then.
        let untold_s = (conditions.horizon_s - told_s).max(0.0);
        calm *= (-conditions.stalls_a_second * untold_s).exp();
        Prospect { weight: sample.weight, needs, surprise: 1.0 - calm, stood_s }
    }
}

impl Prospects {
    /// Probability of a stall, from 0 to 1, when the guest is held back for `head_start_s` first.
    pub fn risk(&self, head_start_s: f64) -> f64 {
        let risk = |sample: &Prospect| {
            let (mut worst, mut late) = (0f64, 0.0);
            for need in &sample.needs {
                let probability = 1.0 / (1.0 + ((head_start_s - need.late_s) / need.blur_s).exp());
                worst = worst.max(probability);
                late += probability;
            }
            // Late needs have a common cause, so the worst one tells whether there are any; their number tells how
            // often the guest tries its luck.
            let late = worst * (1.0 - (1.0 - self.long_share).powf(late.max(1.0)));
            sample.weight * (1.0 - (1.0 - late) * (1.0 - sample.surprise))
        };
        self.samples.iter().map(risk).sum::<f64>().clamp(0.0, 1.0)
    }

    /// Expected time that the guest waits, in seconds.
    pub fn stood_s(&self) -> f64 {
        self.samples.iter().map(|sample| sample.weight * sample.stood_s).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Link;
    use crate::model::testing::{session, task};
    use crate::model::{Limits, Trainer};
    use crate::predictor::{Foresight, Predictor};

    fn predictor(sessions: &[&[u64]]) -> Predictor {
        let mut trainer = Trainer::new(session(1, &[1]).geometry, Limits::default());
        for (seed, tasks) in (1..).zip(sessions) {
            trainer.add(&session(seed, tasks)).unwrap();
        }
        Predictor::new(Arc::new(trainer.finish()))
    }

    fn conditions(rate: f64) -> Conditions {
        Conditions {
            rate,
            demand_s: 0.2,
            horizon_s: 2.0,
            tempo: 1.0,
            since_s: 0.0,
            begun: false,
            news: 0.0,
            long_share: 1.0,
            sent: 1 << 30,
            absent: 1 << 30,
            unforeseen: 0.0,
            stalls_a_second: 0.0,
            filling: false,
            ahead: true,
        }
    }

    fn prospects(predictor: &mut Predictor, conditions: &Conditions, here: &dyn Fn(BlockRange) -> bool) -> Prospects {
        predictor.plan(&Link::default(), &|range| !here(range));
        let expectation = predictor.expectation().expect("sessions are remembered");
        expectation
            .play(conditions, &|range| if here(range) { 0 } else { range.len() * 4096 }, &|range| range.len() * 4096)
    }

    #[test]
    fn a_slow_link_stalls_a_fast_one_does_not_and_waiting_helps() {
        let mut predictor = predictor(&[&[1, 2], &[1, 2], &[1, 2], &[1, 2]]);
        let nothing = |_: BlockRange| false;
        let slow = prospects(&mut predictor, &conditions(100e3), &nothing);
        let fast = prospects(&mut predictor, &conditions(1e9), &nothing);
        assert!(slow.risk(0.0) > 0.9 && slow.stood_s() > 0.5, "{} {}", slow.risk(0.0), slow.stood_s());
        assert!(fast.risk(0.0) < slow.risk(0.0) && fast.stood_s() < 0.1, "{} {}", fast.risk(0.0), fast.stood_s());
        let risks: Vec<f64> = (0..60).map(|seconds| slow.risk(f64::from(seconds))).collect();
        assert!(risks.is_sorted_by(|a, b| a >= b), "{risks:?}");
        // The start and the first task take the link four seconds, and the guest one and a half.
        assert!(risks[1] > 0.5 && risks[10] < 0.1, "{risks:?}");
    }

    #[test]
    fn a_head_start_does_not_help_where_all_comes_on_demand() {
        let mut predictor = predictor(&[&[1, 2], &[1, 2], &[1, 2], &[1, 2]]);
        let demand_only = Conditions { ahead: false, ..conditions(1e9) };
        let prospects = prospects(&mut predictor, &demand_only, &|_| false);
        assert!(prospects.risk(0.0) > 0.99 && prospects.risk(3600.0) > 0.99, "{prospects:?}");
        assert!(prospects.stood_s() > 0.2 && prospects.stood_s() <= demand_only.horizon_s, "{prospects:?}");
    }

    #[test]
    fn nothing_is_to_fear_when_what_the_sessions_know_is_here() {
        let mut alone = predictor(&[&[1]]);
        assert_eq!(prospects(&mut alone, &conditions(100e3), &|_| true).risk(0.0), 0.0, "one does not tell of news");
        let mut predictor = predictor(&[&[1], &[2], &[3], &[1]]);
        let complete = Conditions { absent: 0, ..conditions(100e3) };
        assert_eq!(prospects(&mut predictor, &complete, &|_| true).risk(0.0), 0.0);
        // Each of the others did something of its own, and this one's own is not here because theirs is.
        let risk = prospects(&mut predictor, &conditions(100e3), &|_| true).risk(0.0);
        assert!(risk > 0.3, "{risk}");
        // The start alone is here; the tasks differ, and begin within the horizon.
        let start = |range: BlockRange| range.start < task(0, 0);
        let risk = prospects(&mut predictor, &conditions(100e3), &start).risk(0.0);
        assert!(risk > 0.5, "{risk}");
    }

    #[test]
    fn what_one_session_alone_knows_stands_for_news() {
        let mut same = predictor(&[&[1, 2], &[1, 2], &[1, 2]]);
        let mut various = predictor(&[&[1, 2], &[3, 4], &[5, 6]]);
        let late = Conditions { horizon_s: 5.0, ..conditions(1e9) };
        let nothing = |_: BlockRange| false;
        // After an hour's head start only news can make a guest stall.
        let risk = |predictor: &mut Predictor, late| prospects(predictor, late, &nothing).risk(3600.0);
        assert!(risk(&mut various, &late) > 0.9, "{}", risk(&mut various, &late));
        assert!(risk(&mut same, &late) < 0.5 * risk(&mut various, &late));
        let resident = Conditions { absent: (1 << 30) / 100, ..late };
        let risk = prospects(&mut various, &resident, &|_| true).risk(0.0);
        assert!(risk < 0.1, "news are here already when most of the image is: {risk}");
    }

    #[test]
    fn what_two_sessions_know_stands_for_what_one_knows_and_is_not_here() {
        let mut pairs = predictor(&[&[1, 2], &[1, 2], &[3, 4], &[3, 4], &[5, 6]]);
        let late = Conditions { horizon_s: 5.0, absent: 0, ..conditions(1e9) };
        let single = |range: BlockRange| range.start >= task(4, 0) && range.start < task(7, 0);
        let here = prospects(&mut pairs, &late, &|_| true).risk(3600.0);
        let missing = prospects(&mut pairs, &late, &|range| !single(range));
        assert!(here < 0.01 && missing.risk(3600.0) > 0.3, "{here} {}", missing.risk(3600.0));
        assert!(missing.stood_s() > 0.2, "{missing:?}");
    }

    #[test]
    fn beyond_the_end_of_a_session_the_guest_goes_on_as_it_was() {
        let mut predictor = predictor(&[&[1], &[1]]);
        let stalling = Conditions { horizon_s: 1000.0, stalls_a_second: 0.1, ..conditions(100e3) };
        let calm = Conditions { stalls_a_second: 0.0, absent: 0, ..stalling };
        let all = |_: BlockRange| true;
        assert!(prospects(&mut predictor, &stalling, &all).risk(0.0) > 0.99);
        assert_eq!(prospects(&mut predictor, &calm, &all).risk(0.0), 0.0);
    }
}
