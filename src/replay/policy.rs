//! Who decides what comes ahead: ours, and what others do, on the same planner and link.

use std::sync::Arc;

use crate::block::BlockRange;
use crate::config::{Config, Prefetch};
use crate::model::{Model, SequenceId};
use crate::predictor::{Foresight, Predictor, Script};
use crate::session::Session;

/// A way to decide what comes ahead of demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// A model that follows the guest, and readahead where the model knows nothing.
    Planner,
    /// Demand only.
    None,
    /// Readahead only: what is done without a model.
    Readahead,
    /// One remembered session from start to end, the newest and of these the longest, as overlaybd and nydus do.
    Fifo,
    /// The blocks of all sessions, those of most sessions first, and of these those needed soonest, as REAP does.
    Union,
    /// The very session from start to end, as nobody can know it.
    Oracle,
}

impl Policy {
    /// All there are.
    pub const ALL: [Self; 6] = [Self::Planner, Self::None, Self::Readahead, Self::Fifo, Self::Union, Self::Oracle];

    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Planner => "planner",
            Self::None => "none",
            Self::Readahead => "readahead",
            Self::Fifo => "fifo",
            Self::Union => "union",
            Self::Oracle => "oracle",
        }
    }

    /// True when it does nothing without a model.
    pub fn needs_model(self) -> bool {
        matches!(self, Self::Planner | Self::Fifo | Self::Union)
    }

    /// Makes `config` that of the policy, and answers what follows a guest that does as `session` did. Without a model
    /// those that need one are left with readahead.
    pub fn foresight(
        self,
        config: &mut Config,
        model: Option<&Arc<Model>>,
        session: &Session,
    ) -> Option<Box<dyn Foresight>> {
        config.prefetch = if self == Self::None { Prefetch::None } else { Prefetch::Readahead };
        let script = match (self, model) {
            (Self::None | Self::Readahead, _) => return None,
            (Self::Oracle, _) => session.first_touches().iter().map(|touch| BlockRange::one(touch.block)).collect(),
            (_, None) => return None,
            (Self::Planner, Some(model)) => return Some(Box::new(Predictor::new(Arc::clone(model)))),
            (Self::Fifo, Some(model)) => {
                let visits = model.paths().first().map_or(&[][..], |path| &path.visits);
                visits.iter().flat_map(|visit| model.sequence(visit.sequence).runs.clone()).collect()
            }
            (Self::Union, Some(model)) => union(model),
        };
        Some(Box::new(Script::new(script)))
    }
}

/// The runs of all sequences by the number of sessions that use them, then by mean time.
fn union(model: &Model) -> Vec<BlockRange> {
    let rank = |id: SequenceId| {
        let places = model.places(id);
        let time: f32 = places.iter().map(|p| model.paths()[p.path as usize].visits[p.position as usize].at).sum();
        (places.len(), time / places.len().max(1) as f32)
    };
    let mut ranks: Vec<_> =
        (0..model.sequences().len() as u32).map(|id| (rank(SequenceId(id)), SequenceId(id))).collect();
    ranks.sort_by(|((a, soon_a), _), ((b, soon_b), _)| b.cmp(a).then(soon_a.total_cmp(soon_b)));
    ranks.iter().flat_map(|&(_, id)| model.sequence(id).runs.clone()).collect()
}
