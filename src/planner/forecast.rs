//! What the guest has to expect: the risk of a stall, and how long to wait until it is gone.
//!
//! An [`Outlook`] is a copy of what the planner knows of the time to come. It is taken in a moment, and thought over
//! afterwards, so that nobody who fetches has to wait for it.
//!
//! *From the guest's own past.* Its stalls are taken for the arrivals of a Poisson process that goes on at the rate of the
//! last minutes. It ends when the image is complete, and that is also when such a guest will be calm.

use std::time::Duration;

use super::habits::Habits;
use super::{Blocks, Planner};
use crate::stats::Forecast;
use crate::time::Moment;

/// What the planner knows of the time to come.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// Bytes a second; 0 when unknown.
    rate: f64,
    /// The image is completed whatever the guest does.
    filling: bool,
    habits: Habits,
}

impl Planner {
    /// What is known now of the time to come.
    pub fn outlook(&self, now: Moment) -> Outlook {
        let mut habits = self.habits;
        habits.look(now);
        Outlook { rate: self.link.rate(), filling: self.fill_on, habits }
    }
}

impl Outlook {
    /// What is to be expected within `horizon`, while `missing_bytes` of the image are not here; `calm_risk` is the risk,
    /// from 0 to 1, that [`Forecast::calm_in`] is about.
    pub fn forecast(&self, horizon: Duration, calm_risk: f64, missing_bytes: u64, _blocks: &dyn Blocks) -> Forecast {
        let complete_in = match missing_bytes {
            0 => Some(Duration::ZERO),
            bytes => Duration::try_from_secs_f64(bytes as f64 / self.rate).ok(),
        };
        let (mut stall_risk, mut expected_stall) = (0.0, Duration::ZERO);
        if missing_bytes > 0 {
            stall_risk = 1.0 - (-self.habits.stalls_a_second() * horizon.as_secs_f64()).exp();
            expected_stall = horizon.mul_f64(self.habits.share_waited());
        }
        let calm_in = if stall_risk <= calm_risk { Some(Duration::ZERO) } else { complete_in.filter(|_| self.filling) };
        Forecast { stall_risk, expected_stall, calm_in, foreseen: false, complete_in, missing_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Event, RequestId};
    use super::*;
    use crate::block::{Block, BlockRange, Geometry};
    use crate::config::Config;
    use crate::gate::{Op, State};

    const SECOND: Duration = Duration::from_secs(1);

    /// An image of which all is here or nothing.
    struct All(bool);

    impl Blocks for All {
        fn state(&self, _: Block) -> State {
            if self.0 { State::Resident } else { State::Absent }
        }
        fn first_missing(&self, range: BlockRange) -> Option<Block> {
            (!self.0).then_some(range.start)
        }
        fn first_absent(&self, range: BlockRange) -> Option<Block> {
            self.first_missing(range)
        }
        fn first_present(&self, range: BlockRange) -> Option<Block> {
            self.0.then_some(range.start)
        }
        fn claim(&self, _: BlockRange) -> bool {
            true
        }
        fn watch(&self, _: bool) {}
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
}
