//! Has the planner follow the guest by a model that comes while the image is in use.

use std::sync::Arc;

use super::{Shared, lock};
use crate::packs::Index;
use crate::predictor::Foresight;
use crate::source::Published;

/// The one way by which a foresight reaches the planner of a running image.
///
/// Until it is dropped the planner keeps what the guest touches, so that each foresight hears of all of it.
pub(crate) struct Follower(Arc<Shared>);

impl Follower {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        shared.change(|planner| planner.expect_foresight(true));
        Self(shared)
    }

    /// Follows the guest with this from now on.
    pub fn follow(&self, mut foresight: Box<dyn Foresight>) {
        // Nearly all of the past is told without the lock that guests wait for; what came meanwhile is little.
        let past = lock(&self.0.core).planner.touches().to_vec();
        let known: Vec<bool> = past.iter().map(|&range| foresight.touch(range)).collect();
        // The last range is told again, as it may have grown.
        let news = known.iter().rev().skip(1).filter(|known| !**known).count();
        self.0.change(|planner| {
            planner.set_foresight(Some(foresight), past.len());
            planner.met_news(news);
        });
    }
}

impl Follower {
    /// What is known of the image beyond its bytes, when it is a published one.
    pub fn published(&self) -> Option<Arc<Published>> {
        self.0.source.published()
    }

    /// From now on these frames are fetched where they are cheaper than ranges. Whoever opens them must know the index
    /// already.
    pub fn fetch_packs(&self, index: Arc<Index>) {
        self.0.change(|planner| planner.set_packs(Some(index)));
    }

    /// Has the planner pass over the holes of the image, once somebody has asked the origin where they are.
    pub fn pass_over_holes(&self) {
        self.0.learn_holes();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.change(|planner| planner.expect_foresight(false));
    }
}
