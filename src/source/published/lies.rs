//! What a place has said that was not so, and whether it is asked once more.
//!
//! A bit that flips on the way looks like a lie, and of an image with a single origin nothing would be left if that were
//! the end of it. So the first damaged answer about a thing is told and the thing asked for again, over a new connection:
//! what spoilt it may have been the old one. The second about the same thing is final. Somebody who lies on purpose
//! gains nothing, as no damaged byte is handed on either way; and as many small lies cost a request each, a place has
//! only so many of them in an hour.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, errno};

/// So many damaged answers of a place are forgiven within [`MEMORY`]: a transport that spoils more is of no use.
const FORGIVEN_MAX: usize = 64;
/// How long a damaged answer counts: an image may be in use for weeks.
const MEMORY: Duration = Duration::from_secs(3600);

/// The damaged answers of one place, and when they came.
#[derive(Debug, Default)]
pub(super) struct Lies(Mutex<HashMap<String, Instant>>);

impl Lies {
    /// True when the thing that `lie` speaks of is to be asked for once more; that is told of.
    pub fn forgive(&self, lie: &str) -> bool {
        self.forgive_at(lie, Instant::now())
    }

    fn forgive_at(&self, lie: &str, now: Instant) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| now.saturating_duration_since(*at) < MEMORY);
        if told.len() >= FORGIVEN_MAX || told.contains_key(lie) {
            return false;
        }
        told.insert(lie.to_owned(), now);
        log::warn!("{lie}; asking once more, over a new connection");
        true
    }
}

/// True for an error that says of what came that it is damaged or false, and not that it did not come.
pub(super) fn is_lie(error: &Error) -> bool {
    error.errno() == errno::EIO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_lie_is_forgiven_once_and_not_without_end() {
        let lies = Lies::default();
        assert!(lies.forgive("block 1") && !lies.forgive("block 1") && lies.forgive("block 2"));
        let forgiven = (3..1000).filter(|number| lies.forgive(&format!("block {number}"))).count();
        assert_eq!(forgiven, FORGIVEN_MAX - 2);
        let later = Instant::now() + MEMORY;
        assert!(lies.forgive_at("block 1", later) && !lies.forgive_at("block 1", later));
    }
}
