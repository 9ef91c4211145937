//! What an image says of itself: counters, the model, and what is to be expected.

use std::time::Duration;

use super::Image;
use crate::planner::{Outlook, Planner};
use crate::stats::{CALM_RISK, Forecast, ModelInUse, Stats};
use crate::time::Moment;

impl Image {
    /// The counters.
    pub fn stats(&self) -> Stats {
        let shared = &self.engine.shared;
        let counters = &shared.counters;
        let now = Moment::now();
        let mut stats = self.engine.look(|planner| {
            let tally = planner.tally(now);
            Stats {
                demand_fetches: tally.demand_fetches,
                prefetch_fetches: tally.prefetch_fetches,
                stalls: tally.stalls,
                joined: tally.joined,
                stalled: tally.stalled,
                waiting: planner.waiting() as u64,
                rate: planner.link().rate() as u64,
                round_trip: planner.link().round_trip().unwrap_or_default(),
                failed: planner.has_failed(),
                failures_on_end: planner.failures_on_end(),
                ..Stats::default()
            }
        });
        stats.size = self.size();
        stats.resident_bytes = (shared.gate.states.resident_count() * self.block_size()).min(self.size());
        stats.bytes_fetched = counters.bytes_fetched.get();
        stats.bytes_zero = counters.bytes_zero.get();
        stats.bytes_dropped = counters.bytes_dropped.get();
        stats.requests = shared.source.requests();
        stats.fetch_errors = counters.fetch_errors.get();
        stats.first_hits = shared.gate.first_hits();
        stats.misses = counters.misses.get();
        stats.flushes = counters.flushes.get();
        stats.checkpoints = counters.checkpoints.get();
        stats
    }

    /// The model that the guest is followed by. It may come, and give way to a better one, while the image is in use.
    pub fn model(&self) -> ModelInUse {
        self.learner.status()
    }

    /// What is to be expected in the next `horizon`, with [`Forecast::calm_in`] for [`CALM_RISK`]. With a model it takes a
    /// few milliseconds, in which it holds up nobody.
    pub fn forecast(&self, horizon: Duration) -> Forecast {
        self.foretell(horizon, CALM_RISK, Planner::outlook)
    }

    /// The same of a guest that is held back and would go on now, with [`Forecast::calm_in`] for a risk from 0 to 1.
    pub fn forecast_held(&self, horizon: Duration, risk: f64) -> Forecast {
        self.foretell(horizon, risk, Planner::outlook_held)
    }

    fn foretell(&self, horizon: Duration, risk: f64, outlook: fn(&Planner, Moment) -> Outlook) -> Forecast {
        let gate = self.gate();
        let missing = self.size().saturating_sub(gate.states.resident_count() * self.block_size());
        self.engine.look(|planner| outlook(planner, Moment::now())).forecast(horizon, risk, missing, gate)
    }

    /// True when anything is fetched that the guest has not asked for: unless both `prefetch` and `fill` are off.
    pub fn fetches_ahead(&self) -> bool {
        self.engine.look(Planner::fetches_ahead)
    }
}
