//! Which frames are on their way from a place: what they bring need not be asked for by itself.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The frames that were asked for and are not open yet, each with how many requests bring it.
#[derive(Default)]
pub(super) struct Arrivals(Mutex<HashMap<u32, u32>>);

/// Those of one request. What is left of them when it is dropped does not come.
pub(super) struct Arrival<'a> {
    arrivals: &'a Arrivals,
    frames: Vec<u32>,
}

impl Arrivals {
    /// These frames are asked for now, perhaps not for the first time.
    pub fn begin(&self, frames: Range<u32>) -> Arrival<'_> {
        let mut coming = self.coming();
        frames.clone().for_each(|frame| *coming.entry(frame).or_default() += 1);
        drop(coming);
        Arrival { arrivals: self, frames: frames.collect() }
    }

    /// True when a frame is on its way.
    pub fn has(&self, frame: u32) -> bool {
        self.coming().contains_key(&frame)
    }

    fn leave(&self, frames: impl Iterator<Item = u32>) {
        let mut coming = self.coming();
        for frame in frames {
            if let Some(times) = coming.get_mut(&frame) {
                *times -= 1;
                if *times == 0 {
                    coming.remove(&frame);
                }
            }
        }
    }

    fn coming(&self) -> MutexGuard<'_, HashMap<u32, u32>> {
        // Each change is complete in itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrival<'_> {
    /// True when a frame is on its way, with this request or another one.
    pub fn has(&self, frame: u32) -> bool {
        self.arrivals.has(frame)
    }

    /// These are open, or do not come with this request after all.
    pub fn leave(&mut self, frames: Range<u32>) {
        self.arrivals.leave(self.frames.extract_if(.., |frame| frames.contains(frame)));
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        self.arrivals.leave(self.frames.drain(..));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_on_its_way_until_the_last_request_for_it_has_left_it() {
        let arrivals = Arrivals::default();
        let mut one = arrivals.begin(3..6);
        let two = arrivals.begin(5..8);
        one.leave(4..6);
        one.leave(4..6);
        assert_eq!((2..9).filter(|&frame| arrivals.has(frame)).collect::<Vec<_>>(), [3, 5, 6, 7]);
        drop(two);
        assert!(one.has(3) && !one.has(5) && !one.has(7));
        drop(one);
        assert!(!arrivals.has(3));
    }
}
