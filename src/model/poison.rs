//! Sessions that teach nothing: a program that reads the whole disk, a backup, a checker.
//!
//! Such a session touches every block, in the order of the disk. Learnt, it would lay out the sequences of all blocks that
//! were not known before, tie blocks together that have nothing to do with each other, and make each of them likely. What
//! tells it from work is its size alone: that it shares little with others is also true of the first session after
//! a change of the guest's work, which must be learnt at once, and two backups share everything. A scan that is no
//! larger than a session does no such harm, because no popularity comes of blocks that only one session of many touched.
//!
//! A session set aside stays in the record: when sessions of its size become usual it comes in.

use super::recording::Recording;
use crate::block::Geometry;

/// Fewer sessions say nothing about what is usual.
const SESSIONS_MIN: usize = 4;
/// Set aside is what touches more than so many times the median.
const MEDIANS_MAX: u64 = 8;
/// And more than this, in bytes: next to very short sessions, a boot and no more, a day's work is no poison.
const BYTES_MIN: u64 = 64 << 20;

/// The greatest number of blocks that a session may touch and be learnt.
pub(super) fn blocks_max(recordings: &[Recording], geometry: Geometry) -> u64 {
    if recordings.len() < SESSIONS_MIN {
        return u64::MAX;
    }
    let mut sizes: Vec<u32> = recordings.iter().map(|r| r.touched).collect();
    let (_, &mut median, _) = sizes.select_nth_unstable(recordings.len() / 2);
    (u64::from(median) * MEDIANS_MAX).max(BYTES_MIN >> geometry.block_shift())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dwarfs_the_others_is_set_aside() {
        let geometry = Geometry::new(1 << 32, 4096).unwrap();
        let max = |sizes: &[u32]| {
            let recordings: Vec<_> =
                sizes.iter().map(|&touched| Recording { age: 0, touched, listed: 0, runs: Vec::new() }).collect();
            blocks_max(&recordings, geometry)
        };
        assert_eq!(max(&[9000, 1 << 20, 1 << 20]), u64::MAX, "three sessions have no usual size");
        assert_eq!(max(&[1 << 20, 5000, 6000, 4000, 1 << 20]), 48_000);
        assert_eq!(max(&[100, 100, 100, 9000]), 16_384, "64 MiB is never poison");
    }
}
