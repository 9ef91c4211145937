//! Guests that are held back: what the forecast says of one that has not begun, beside what becomes of it when it begins.
//!
//! `--wait` lets a guest go when the risk of a stall in the time that follows is low enough. Whether such a risk can be
//! believed only a trial can tell, and each trial needs a world of its own: the guest starts after so much of streaming, and
//! is watched for as long as the forecast looked ahead. The forecasts all come from one more world, in which the guest
//! is held to the end; until a guest begins, the worlds are the same.

use std::time::Duration;

use super::calibration::Questions;
use super::{Observer, Setup, Sight, Step, watch};
use crate::stats::{Forecast, STALL};

/// How long to hold a guest, and how far to look then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Time from one trial to the next; the first one holds nobody. Greater than zero.
    pub every: Duration,
    /// Longest hold.
    pub up_to: Duration,
    /// How far the forecast looks ahead, and how long the guest is watched.
    pub horizon: Duration,
}

/// A guest that was held, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// For how long.
    pub held: Duration,
    /// What was said before it began.
    pub said: Forecast,
    /// It stalled within the horizon, see [`STALL`].
    pub stalled: bool,
    /// How long it waited within the horizon, short waits included.
    pub waited: Duration,
}

impl Plan {
    /// The holds to try, the shortest first.
    fn holds(&self) -> impl Iterator<Item = Duration> {
        let (every, up_to) = (self.every, self.up_to);
        std::iter::successors(Some(Duration::ZERO), move |held| Some(*held + every))
            .take_while(move |held| *held <= up_to)
    }
}

/// Tries each hold of `plan` on the guest that does `steps`. `world` makes the same setup for any steps it is given; a
/// guest without steps has no trials.
pub fn trials(steps: &[Step], plan: Plan, world: &dyn for<'a> Fn(&'a [Step]) -> Setup<'a>) -> Vec<Trial> {
    let Some(first) = steps.first() else { return Vec::new() };
    let begun = begun_within(steps, plan.horizon);
    // Long enough for the last question to be over before the guest comes to its only step.
    let held = [Step { think: plan.up_to + plan.horizon + plan.every, ..*first }];
    let questions = Questions { every: plan.every, horizons: vec![plan.horizon] };
    let (_, answers) = watch(world(&held), Observer { questions: Some(&questions), witness: None });
    let trial = |(held, said)| {
        let waits = waits(&begun, held, world);
        let until = held + plan.horizon;
        let within = || waits.iter().filter(|&&(from, _)| from < until);
        Trial {
            held,
            said,
            stalled: within().any(|&(from, to)| to - from > STALL),
            waited: within().map(|&(from, to)| to.min(until) - from).sum(),
        }
    };
    plan.holds().zip(answers.iter().map(|answer| answer.said)).map(trial).collect()
}

/// The steps that a guest can have begun within `horizon` even if it never waits; the first is done at once.
fn begun_within(steps: &[Step], horizon: Duration) -> Vec<Step> {
    let mut own = Duration::ZERO;
    let mut begun = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let think = if number == 0 { Duration::ZERO } else { step.think };
        own += think;
        if own > horizon {
            break;
        }
        begun.push(Step { think, ..*step });
    }
    begun
}

/// When a guest that is held for so long waits, from when to when, counted from the start of the world.
fn waits(steps: &[Step], held: Duration, world: &dyn for<'a> Fn(&'a [Step]) -> Setup<'a>) -> Vec<(Duration, Duration)> {
    let mut steps = steps.to_vec();
    if let Some(first) = steps.first_mut() {
        first.think = held;
    }
    let (mut waits, mut since) = (Vec::new(), None);
    let mut witness = |at: Duration, sight: Sight| match sight {
        Sight::Step { missed: true, .. } => since = Some(at),
        Sight::Served => waits.extend(since.take().map(|since| (since, at))),
        _ => {}
    };
    watch(world(&steps), Observer { witness: Some(&mut witness), questions: None });
    waits
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::model::{Limits, Trainer, testing as made_up};
    use crate::replay::{LinkModel, Policy, guest};
    use crate::session::{Session, text};

    const SECOND: Duration = Duration::from_secs(1);
    /// One block takes 4.096 ms, and headers 0.3 ms.
    const LINK: LinkModel = LinkModel { rate: 1e6, round_trip: Duration::from_millis(50) };

    /// Trials of a guest that is followed by a model of those sessions, or by nobody.
    fn tried(session: &Session, learnt: &[Session], plan: Plan) -> Vec<Trial> {
        let mut trainer = Trainer::new(session.geometry, Limits::default());
        learnt.iter().for_each(|session| trainer.add(session).unwrap());
        let model = (!learnt.is_empty()).then(|| Arc::new(trainer.finish()));
        let policy = if model.is_some() { Policy::Planner } else { Policy::None };
        trials(&guest(session, 1.0, SECOND * 2), plan, &|steps| {
            let mut config = Config { fill: false, ..Config::default() };
            let foresight = policy.foresight(&mut config, model.as_ref(), session);
            Setup { steps, geometry: session.geometry, link: LINK, config, foresight, packs: None }
        })
    }

    #[test]
    fn a_guest_is_watched_from_its_beginning_to_the_horizon() {
        // The second read begins within the second after the first, as the guest sees it, but not by the clock; the
        // third is never begun.
        let lines = "# vmtrace 1 size=1048576 block=4096\n0 R 0 4096\n950000 R 409600 4096\n1950000 R 819200 4096\n";
        let session = text::parse("test", lines.as_bytes()).unwrap();
        let plan = Plan { every: SECOND * 7, up_to: SECOND * 20, horizon: SECOND };
        let trials = tried(&session, &[], plan);
        assert_eq!(trials.iter().map(|trial| trial.held).collect::<Vec<_>>(), [0, 7, 14].map(|n| SECOND * n));
        for trial in &trials {
            // Two round trips, headers and a block; what the guest waits beyond the horizon does not count.
            assert_eq!(trial.waited, Duration::from_micros(100_000 + 300 + 4096), "{trial:?}");
            assert!(trial.stalled && !trial.said.foreseen, "{trial:?}");
        }
        let longer = Plan { horizon: SECOND * 2, ..plan };
        let waited = tried(&session, &[], longer)[0].waited;
        assert_eq!(waited, Duration::from_micros(100_000 + 300 + 4096 + 50_000 + 300 + 4096), "the second as well");
    }

    #[test]
    fn those_who_are_held_longer_stall_less_and_are_told_so() {
        let learnt: Vec<_> = (2..8).map(|seed| made_up::session(seed, &[1, 2])).collect();
        let plan = Plan { every: SECOND * 5, up_to: SECOND * 20, horizon: SECOND * 5 };
        let trials = tried(&made_up::session(1, &[1, 2]), &learnt, plan);
        assert_eq!(trials.len(), 5);
        let (first, last) = (&trials[0], &trials[4]);
        assert!(first.stalled && first.said.stall_risk > 0.9, "{first:?}");
        assert!(!last.stalled && last.said.stall_risk < 0.05, "{last:?}");
        assert!(
            trials.is_sorted_by(|a, b| a.said.stall_risk >= b.said.stall_risk && a.waited >= b.waited),
            "{trials:?}"
        );
        assert!(trials.iter().all(|trial| trial.said.foreseen), "{trials:?}");
    }

    #[test]
    fn who_does_nothing_has_no_trials() {
        let session = text::parse("test", "# vmtrace 1 size=4096 block=4096\n".as_bytes()).unwrap();
        assert!(tried(&session, &[], Plan { every: SECOND, up_to: SECOND, horizon: SECOND }).is_empty());
    }
}
