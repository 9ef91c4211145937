//! Which recordings stay when there are more than a model may remember: those that differ most from the others.
//!
//! Plain age would let a hundred sessions of one kind push out the only one of another, such as the one that starts the machine
//! where the others begin at a restore point. So the one leaves that is missed least: its worth is what its nearest
//! neighbour among the others does not have of it, and it halves with age, so that what never comes again goes at last.
//! Since the last of a kind has no near neighbour, similar sessions thin each other out down to a few.
//!
//! Likeness is Jaccard's measure of the touched blocks, taken from a sample: the blocks whose hash falls below a bound,
//! the same ones in every recording. All of it is a function of the set of recordings, not of the order in which they came.

use std::cmp::Ordering;

use super::recording::Recording;
use super::train::Limits;

/// One block in so many is compared: some hundred of a session, whose likeness is then known to a few hundredths.
const SAMPLED: u64 = 64;

/// More recordings than this are not compared, as time and memory would grow with the square: the last leave.
const COMPARED_MAX: usize = 1024;

/// Takes the least missed out of `recordings`, which are in an order of age, until the limits hold or one is left. Answers
/// what was taken out, in the same order.
pub(super) fn thin_out(recordings: &mut Vec<Recording>, limits: Limits) -> Vec<Recording> {
    let mut touches: u64 = recordings.iter().map(|r| u64::from(r.listed)).sum();
    let too_many =
        |count: usize, touches: u64| count > 1 && (count > limits.paths_max || touches > u64::from(limits.touches_max));
    let mut count = recordings.len();
    while count > COMPARED_MAX && too_many(count, touches) {
        count -= 1;
        touches -= u64::from(recordings[count].listed);
    }
    let last = recordings.split_off(count);
    if !too_many(count, touches) {
        return last;
    }
    let samples: Vec<Vec<u64>> = recordings.iter().map(sample).collect();
    let mut likeness = vec![vec![0f32; samples.len()]; samples.len()];
    for (a, b) in (0..samples.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
        likeness[a][b] = jaccard(&samples[a], &samples[b]);
        likeness[b][a] = likeness[a][b];
    }
    let mut left: Vec<usize> = (0..recordings.len()).collect();
    while too_many(left.len(), touches) {
        let worth = |&at: &usize| {
            let nearest = left.iter().filter(|&&other| other != at).map(|&other| likeness[at][other]);
            // As many sessions as there is room for: where all differ, the oldest leave as they would from a ring.
            let halvings = recordings[at].age as f32 / limits.paths_max.max(1) as f32;
            (1.0 - nearest.fold(0.0, f32::max)) * (-halvings).exp2()
        };
        let worths: Vec<f32> = left.iter().map(worth).collect();
        // Of equals the last, which is the oldest.
        let least = (0..left.len()).rev().min_by(|&a, &b| worths[a].total_cmp(&worths[b])).unwrap_or(0);
        touches -= u64::from(recordings[left.remove(least)].listed);
    }
    let mut taken = Vec::with_capacity(recordings.len() - left.len() + last.len());
    for (at, recording) in std::mem::take(recordings).into_iter().enumerate() {
        let stays = left.binary_search(&at).is_ok();
        if stays { recordings.push(recording) } else { taken.push(recording) }
    }
    taken.extend(last);
    taken
}

/// The sampled blocks of a recording by their hashes (Fibonacci hashing), in order.
fn sample(recording: &Recording) -> Vec<u64> {
    let blocks = recording.runs.iter().flat_map(|run| run.range().iter());
    let hashes = blocks.map(|block| block.0.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut sample: Vec<u64> = hashes.filter(|&hash| hash < u64::MAX / SAMPLED).collect();
    sample.sort_unstable();
    sample
}

/// What two sets have in common, as a share of what either has; 1 for two that are empty.
fn jaccard(a: &[u64], b: &[u64]) -> f32 {
    let (mut i, mut j, mut common) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        let order = a[i].cmp(&b[j]);
        common += usize::from(order == Ordering::Equal);
        i += usize::from(order != Ordering::Greater);
        j += usize::from(order != Ordering::Less);
    }
    let all = a.len() + b.len() - common;
    if all == 0 { 1.0 } else { common as f32 / all as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Block;
    use crate::model::recording::Run;

    /// A recording of 4,096 blocks from each of these places.
    fn recording(age: u32, places: &[u64]) -> Recording {
        let run = |&place: &u64| Run { at_ms: 0, blocks: 4096, start: Block(place << 16) };
        let listed = 4096 * places.len() as u32;
        Recording { age, touched: listed, listed, runs: places.iter().map(run).collect() }
    }

    fn kept(mut recordings: Vec<Recording>, paths_max: usize) -> Vec<Recording> {
        thin_out(&mut recordings, Limits { paths_max, ..Limits::default() });
        recordings
    }

    #[test]
    fn many_of_one_kind_do_not_push_out_the_only_one_of_another() {
        let mut all: Vec<_> = (0..8).map(|age| recording(age, &[1, 2, 3])).collect();
        all.push(recording(9, &[1, 7, 8]));
        let mut kept = all.clone();
        let taken = thin_out(&mut kept, Limits { paths_max: 4, ..Limits::default() });
        assert_eq!(kept, [all[0].clone(), all[1].clone(), all[2].clone(), all[8].clone()]);
        assert_eq!(taken, all[3..8]);
    }

    #[test]
    fn where_all_differ_or_all_are_alike_the_oldest_leave() {
        let differ: Vec<_> = (0..6).map(|at| recording(at as u32, &[at])).collect();
        assert_eq!(kept(differ.clone(), 4), differ[..4]);
        let alike: Vec<_> = (0..6).map(|age| recording(age, &[1])).collect();
        assert_eq!(kept(alike.clone(), 4), alike[..4]);
    }

    #[test]
    fn what_never_comes_again_goes_at_last() {
        let mut all: Vec<_> = (0..4).map(|age| recording(age, &[0, 1 + u64::from(age)])).collect();
        all.push(recording(40, &[9]));
        assert!(kept(all, 4).iter().all(|r| r.age < 40));
    }

    #[test]
    fn one_is_always_kept_and_touches_are_limited() {
        let mut all = vec![recording(0, &[1, 2]), recording(0, &[3])];
        thin_out(&mut all, Limits { paths_max: 9, touches_max: 1 });
        assert_eq!(all.len(), 1);
        let mut all: Vec<_> = (0..4).map(|at| recording(at as u32, &[at])).collect();
        thin_out(&mut all, Limits { paths_max: 9, touches_max: 8192 });
        assert_eq!(all.len(), 2);
    }
}
