//! What a place has said that was not so, and whether it is asked once more.
//!
//! A bit that flips on the way looks like a lie, and of an image with a single origin nothing would be left if that were
//! the end of it. So the first damaged answer about a thing is told and the thing asked for again, over a new connection:
//! what spoilt it may have been the old one. The second about the same thing is final. Somebody who lies on purpose
//! gains nothing, as no damaged byte is handed on either way; and as many small lies cost a request each, a place has
//! only so many of them.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, errno};

/// So many damaged answers are forgiven in the life of a place: a transport that spoils more is of no use.
const FORGIVEN_MAX: usize = 64;

/// The damaged answers of one place so far.
#[derive(Debug, Default)]
pub(super) struct Lies(Mutex<HashSet<String>>);

impl Lies {
    /// True when the thing that `lie` speaks of is to be asked for once more; that is told of.
    pub fn forgive(&self, lie: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= FORGIVEN_MAX || !told.insert(lie.to_owned()) {
            return false;
        }
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
    }
}
