//! What the guest touched while it is not yet decided what it is followed by.
//!
//! A model may come later than the guest's first steps: from a web server, or because it is still being learnt. It has to
//! hear of those steps then, as a session is recognised by its beginning better than by anything else.

use crate::block::BlockRange;

/// Most ranges that are kept: 1 MiB of memory, and many times what a guest touches in the seconds that a model takes to
/// come. What follows is not kept, and a model that comes still later has to do with the beginning.
const RANGES_MAX: usize = 1 << 16;

/// Touched ranges, in order.
#[derive(Debug, Default)]
pub struct Touches {
    on: bool,
    ranges: Vec<BlockRange>,
}

impl Touches {
    /// Keeps from now on, or lets go of everything.
    pub fn keep(&mut self, on: bool) {
        self.on = on;
        if !on {
            self.ranges = Vec::new();
        }
    }

    /// The guest touched this.
    pub fn add(&mut self, range: BlockRange) {
        if !self.on {
            return;
        }
        let full = self.ranges.len() >= RANGES_MAX;
        match self.ranges.last_mut() {
            // Most reads go on where the last one ended.
            Some(last) if last.end == range.start => last.end = range.end,
            _ if full => {}
            _ => self.ranges.push(range),
        }
    }

    /// All that was kept.
    pub fn kept(&self) -> &[BlockRange] {
        &self.ranges
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::block::Geometry;
    use crate::config::Config;
    use crate::gate::Op;
    use crate::link::Link;
    use crate::planner::{Planner, Request};
    use crate::predictor::{Candidate, Foresight};
    use crate::time::Moment;

    #[test]
    fn nothing_is_kept_unless_somebody_will_ask() {
        let mut touches = Touches::default();
        touches.add(BlockRange::new(0, 1));
        touches.keep(true);
        touches.add(BlockRange::new(4, 8));
        touches.add(BlockRange::new(2, 3));
        assert_eq!(touches.kept(), [BlockRange::new(4, 8), BlockRange::new(2, 3)]);
        touches.keep(false);
        touches.add(BlockRange::new(9, 10));
        assert!(touches.kept().is_empty());
    }

    #[test]
    fn there_is_a_limit_and_the_beginning_stays() {
        let mut touches = Touches::default();
        touches.keep(true);
        for n in 0..RANGES_MAX as u64 + 10 {
            touches.add(BlockRange::new(3 * n, 3 * n + 1));
        }
        assert_eq!((touches.kept().len(), touches.kept()[0]), (RANGES_MAX, BlockRange::new(0, 1)));
    }
    /// What it was told.
    #[derive(Clone, Debug, Default)]
    struct Listener(Arc<Mutex<Vec<BlockRange>>>);

    impl Foresight for Listener {
        fn touch(&mut self, range: BlockRange) -> bool {
            self.0.lock().unwrap().push(range);
            false
        }
        fn plan(&mut self, _: &Link, _: &dyn Fn(BlockRange) -> bool) {}
        fn candidates(&self) -> &[Candidate] {
            &[]
        }
    }

    fn read(start: u64) -> Request {
        let touched = BlockRange::new(start, start + 2);
        Request { op: Op::Read, touched, covered: touched, since: Moment::default() }
    }

    #[test]
    fn a_foresight_that_comes_late_hears_of_what_it_was_not_told() {
        let config = Config::parse(["source=pattern:1M"]).unwrap();
        let mut planner = Planner::new(Geometry::new(1 << 20, 4096).unwrap(), &config, 1);
        planner.expect_foresight(true);
        for start in [10, 30, 50] {
            planner.touched(&read(start), false);
        }
        let listener = Listener::default();
        let told = 2; // outside, before the last one came
        planner.set_foresight(Some(Box::new(listener.clone())), told);
        planner.touched(&read(70), false);
        let heard: Vec<u64> = listener.0.lock().unwrap().iter().map(|range| range.start.0).collect();
        // The last one that it was told of again, as it may have grown.
        assert_eq!(heard, [30, 50, 70]);
    }
}
