//! How many connections there may be: what the kernel lets one process have of file descriptors.
//!
//! The usual soft limit is 1024, made for programs that use `select`; the hard limit is far higher, and raising one's own
//! up to it is what it is there for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of a connection at most: its socket, and the file that is being sent.
const EACH: u64 = 2;
/// Descriptors for all else: listener, runtime, log, directories being listed, files of a lesson.
const OTHERS: u64 = 64;
/// More connections than this are not taken, whatever the limit is: each may hold some hundred kilobytes.
const CONNECTIONS_MAX: u64 = 8192;
/// With fewer a word is said: so many guests may well come at once.
const EXPECTED: u64 = 500;

/// Raises the limit of descriptors as far as it is allowed and as it is of use; answers how many connections go with it.
pub fn connections_max() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = CONNECTIONS_MAX * EACH + OTHERS;
    let allowed = limit.maximum.map_or(wanted, |hard| hard.min(wanted));
    let mut have = limit.current.unwrap_or(u64::MAX);
    if have < allowed {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum: limit.maximum }) {
            Ok(()) => have = allowed,
            Err(error) => log::debug!("cannot raise the limit of open files: {error}"),
        }
    }
    let connections = connections(have);
    if connections < EXPECTED {
        log::warn!(
            "only {connections} connections can be served at once, as this process may open {have} files; more will wait. \
             Raise the hard limit (ulimit -Hn, LimitNOFILE=) to {}",
            EXPECTED * EACH + OTHERS
        );
    }
    usize::try_from(connections).unwrap_or(usize::MAX)
}

/// The connections that so many descriptors are enough for.
fn connections(descriptors: u64) -> u64 {
    (descriptors.saturating_sub(OTHERS) / EACH).clamp(1, CONNECTIONS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_one_and_never_too_many() {
        assert_eq!([0, 65, 1024, 4096, u64::MAX].map(connections), [1, 1, 480, 2016, 8192]);
    }

    #[test]
    fn five_hundred_guests_have_room_where_the_kernel_allows_it() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let connections = connections_max() as u64;
        assert!(connections >= EXPECTED || hard < EXPECTED * EACH + OTHERS, "{connections} of {hard}");
    }
}
