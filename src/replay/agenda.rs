//! What is to come, in order of time; of one moment, in the order in which it was entered.

use std::collections::BTreeMap;

use crate::block::BlockRange;
use crate::planner::{Cargo, Class, FetchId};
use crate::time::Moment;

/// Something that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The guest has thought and takes its next step.
    Guest,
    /// A request reaches the origin.
    Asked(FetchId, Cargo, Class),
    /// Blocks arrive.
    Arrived(FetchId, BlockRange, Class),
    /// So many bytes of frames come over the link.
    Received(FetchId, u64),
    /// An answer has ended.
    Ended(FetchId),
    /// The planner wanted to be asked again.
    Wake,
    /// Somebody asks for a forecast.
    Question,
}

/// All that is to come.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    entries: BTreeMap<(Moment, u64), News>,
    entered: u64,
}

impl Agenda {
    /// Enters something.
    pub fn add(&mut self, at: Moment, news: News) {
        self.entered += 1;
        self.entries.insert((at, self.entered), news);
    }

    /// Takes out what comes next.
    pub fn next(&mut self) -> Option<(Moment, News)> {
        self.entries.pop_first().map(|((at, _), news)| (at, news))
    }
}
