//! What the forecast said in a replay, beside what happened.
//!
//! At regular moments the planner is asked as an image would be, and each answer is kept; when the guest has come to its
//! end its stalls tell which answers were right. An answer about a time that reaches beyond the end is left out: nobody
//! knows whether it would have been.

use std::time::Duration;

use crate::stats::{Forecast, STALL};
use crate::time::Moment;

/// When to ask, and about how long.
#[derive(Clone, Debug)]
pub struct Questions {
    /// Time from one moment of asking to the next; the first is the start. Greater than zero.
    pub every: Duration,
    /// How far each forecast looks ahead.
    pub horizons: Vec<Duration>,
}

/// A forecast, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// Since the start.
    pub at: Duration,
    /// How far it looked ahead.
    pub horizon: Duration,
    /// What it said.
    pub said: Forecast,
    /// The guest stalled within the horizon, see [`STALL`].
    pub stalled: bool,
    /// How long it waited within the horizon, short waits included.
    pub waited: Duration,
}

/// The record of a replay.
#[derive(Debug, Default)]
pub(super) struct Record {
    said: Vec<(Moment, Duration, Forecast)>,
    waits: Vec<(Moment, Moment)>,
}

impl Record {
    /// A forecast was given.
    pub fn said(&mut self, now: Moment, horizon: Duration, forecast: Forecast) {
        self.said.push((now, horizon, forecast));
    }

    /// The guest has waited.
    pub fn waited(&mut self, from: Moment, to: Moment) {
        self.waits.push((from, to));
    }

    /// The answers about times that were over by `end`.
    pub fn judge(self, start: Moment, end: Moment) -> Vec<Answer> {
        let Self { said, waits } = self;
        let over = said.into_iter().filter(|&(at, horizon, _)| at + horizon <= end);
        over.map(|(at, horizon, said)| {
            let until = at + horizon;
            let within = waits.iter().filter(|&&(from, to)| from < until && to > at);
            let stalled = within.clone().any(|&(from, to)| to.since(from) > STALL);
            let waited = within.map(|&(from, to)| to.min(until).since(from.max(at))).sum();
            Answer { at: at.since(start), horizon, said, stalled, waited }
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_the_waits_within_their_time() {
        let ms = Duration::from_millis;
        let at = |n: u64| Moment(0) + ms(n);
        let forecast = Forecast {
            stall_risk: 0.5,
            expected_stall: Duration::ZERO,
            calm_in: None,
            foreseen: true,
            complete_in: None,
            missing_bytes: 1,
        };
        let mut record = Record::default();
        for asked in [1000, 2000, 3000, 4500] {
            record.said(at(asked), ms(1000), forecast);
        }
        record.waited(at(1500), at(1600)); // as long as a stall may be that is none
        record.waited(at(2900), at(3050)); // a stall in two times that were asked about
        let answers = record.judge(at(1000), at(5000));
        let judged: Vec<_> = answers.iter().map(|a| (a.at, a.stalled, a.waited)).collect();
        assert_eq!(
            judged,
            [(ms(0), false, ms(100)), (ms(1000), true, ms(100)), (ms(2000), true, ms(50))],
            "the last one's time was not over"
        );
    }
}
