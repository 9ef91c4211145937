//! Tells the planner where a published image has holes, whoever was the first to contact its origin.

use std::sync::atomic::Ordering;

use super::Shared;

impl Shared {
    /// Tells the planner of the holes of a published image, once its tree is here: for a cache that opened without contact
    /// that is with the first fetch.
    pub(super) fn learn_holes(&self) {
        if self.holes_known.load(Ordering::Relaxed) {
            return;
        }
        let tree = match self.source.published() {
            Some(published) => match published.tree() {
                Some(tree) => Some(tree.clone()).filter(|tree| tree.geometry() == self.gate.geometry()),
                None => return,
            },
            None => None,
        };
        // The planner first: what a thread plans after this call is planned with the holes, also if another one was told first
        // and does not get the planner yet.
        if let Some(tree) = tree {
            self.change(|planner| planner.set_holes(tree));
        }
        self.holes_known.store(true, Ordering::Relaxed);
    }
}
