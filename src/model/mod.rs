//! The model: what earlier sessions of an image teach about the next one.
//!
//! After Potter, Oka, Kato, *Virtual Machine Streaming and its Applications* (2006): accesses close in time form
//! *sequences*, and how earlier guests went from one sequence to another is the transition graph. Here the graph remembers
//! the path: a session is kept as the list of sequences it went through, so that what follows can depend on all that went
//! before and not only on the last step (Lei and Duchamp, 1997, follow whole remembered runs in this way).
//!
//! The sequences are a partition: each block belongs to one at most, so nothing is sent twice.
//!
//! [`Trainer`] makes models from sessions. A model is kept as a file of a few bytes a block (`docs/format-model.md`),
//! which also holds the recordings it was made from, so that more sessions can be learnt later; [`Model::load`] reads only
//! what following a guest needs.

pub(crate) mod bytes;
mod format;
mod header;
mod merge;
mod owners;
mod poison;
mod recording;
mod retention;
mod sequences;
#[cfg(test)]
pub(crate) mod testing;
mod train;

pub use train::{Limits, Trainer};

/// Largest model file that is taken from anywhere or published, in bytes: more than twice what training with the usual limits
/// makes of any sessions.
pub const FILE_BYTES_MAX: u64 = 32 << 20;

use crate::block::{Block, BlockRange, Geometry};
use owners::Owners;

/// So many sessions later a path counts half: what is popular follows a change of the guests' work.
const HALF_LIFE_SESSIONS: f32 = 64.0;
/// From so many paths on, what only one of them uses is not popular: it may be the trace of an accident.
const SUPPORT_PATHS: usize = 8;

/// Number of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u32);

/// Blocks that are used together, in the order of their use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The blocks, as runs of neighbours.
    pub runs: Vec<BlockRange>,
    /// Number of blocks.
    pub blocks: u32,
}

/// A session's use of a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Visit {
    /// Since the session's start on the guest's clock, in seconds.
    pub at: f32,
    /// Which sequence.
    pub sequence: SequenceId,
}

/// One remembered session: the sequences it went through, in order of time, each once.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// Sessions that were learnt by later calls.
    pub age: u32,
    /// In order of time.
    pub visits: Vec<Visit>,
}

impl Path {
    /// How much the path counts beside others: 1 for the newest, less with age.
    pub fn weight(&self) -> f32 {
        // Never nothing: shares are of the sum of all weights.
        (-(self.age as f32) / HALF_LIFE_SESSIONS).exp2().max(f32::MIN_POSITIVE)
    }
}

/// Where a sequence occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the path.
    pub path: u32,
    /// Number of the visit in it.
    pub position: u32,
}

/// How much went into a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learnt {
    /// Sessions learnt so far, repetitions included; most of them may have been forgotten.
    pub sessions: u64,
    /// Sessions that are remembered but set aside, because they touched hugely more than is usual.
    pub set_aside: u32,
}

/// What is known of an image from its sessions.
#[derive(Debug)]
pub struct Model {
    geometry: Geometry,
    learnt: Learnt,
    sequences: Vec<Sequence>,
    paths: Vec<Path>,
    /// For each sequence where its places begin, and one entry more.
    places_from: Vec<u32>,
    /// Where the sequences occur: by sequence, then by path.
    places: Vec<Place>,
    owners: Owners,
    /// For each sequence the share of paths that use it, by weight.
    shares: Vec<f32>,
    /// Sequences by share, then by time.
    popular: Vec<SequenceId>,
}

impl Model {
    /// A model of sequences and of the paths through them; `None` when they contradict each other: a block in two
    /// sequences, a visit of a sequence that does not exist or the second of a path to the same one.
    fn new(geometry: Geometry, learnt: Learnt, sequences: Vec<Sequence>, paths: Vec<Path>) -> Option<Self> {
        let owners = Owners::new(&sequences)?;
        let mut places_from = vec![0u32; sequences.len() + 1];
        for visit in paths.iter().flat_map(|path| &path.visits) {
            *places_from.get_mut(visit.sequence.0 as usize + 1)? += 1;
        }
        let mut all = 0u32;
        for from in &mut places_from {
            all = all.checked_add(*from)?;
            *from = all;
        }
        let mut next = places_from.clone();
        let mut places = vec![Place { path: u32::MAX, position: 0 }; all as usize];
        let mut shares = vec![0f32; sequences.len()];
        let mut times = vec![0f64; sequences.len()];
        for (number, path) in (0..).zip(&paths) {
            let weight = path.weight();
            for (position, visit) in (0..).zip(&path.visits) {
                let sequence = visit.sequence.0 as usize;
                let place = next[sequence] as usize;
                if place > places_from[sequence] as usize && places[place - 1].path == number {
                    return None;
                }
                places[place] = Place { path: number, position };
                next[sequence] += 1;
                shares[sequence] += weight;
                times[sequence] += f64::from(visit.at * weight);
            }
        }
        let weights: f32 = paths.iter().map(Path::weight).sum();
        let support_min = if paths.len() >= SUPPORT_PATHS { 2 } else { 1 };
        let mut ranks = Vec::with_capacity(sequences.len());
        for sequence in 0..sequences.len() {
            let share = std::mem::take(&mut shares[sequence]);
            if places_from[sequence + 1] - places_from[sequence] >= support_min {
                ranks.push((share, times[sequence] / f64::from(share), SequenceId(sequence as u32)));
            }
            shares[sequence] = if weights > 0.0 { share / weights } else { 0.0 };
        }
        ranks.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
        let popular = ranks.into_iter().map(|rank| rank.2).collect();
        Some(Self { geometry, learnt, sequences, paths, places_from, places, owners, shares, popular })
    }

    /// Size of the image and of the blocks.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// How much went into it.
    pub fn learnt(&self) -> Learnt {
        self.learnt
    }

    /// All sequences.
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// The sequence with this number, which must be one of this model's.
    pub fn sequence(&self, id: SequenceId) -> &Sequence {
        &self.sequences[id.0 as usize]
    }

    /// All remembered sessions but those set aside: the newest first, of equally old ones the longest first.
    pub fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// Where a sequence occurs, by path, one place a path.
    pub fn places(&self, id: SequenceId) -> &[Place] {
        let at = id.0 as usize;
        &self.places[self.places_from[at] as usize..self.places_from[at + 1] as usize]
    }

    /// The share of the paths that use a sequence, from 0 to 1; each counts with its weight.
    pub fn share(&self, id: SequenceId) -> f32 {
        self.shares[id.0 as usize]
    }

    /// The sequence that a block belongs to.
    pub fn owner(&self, block: Block) -> Option<SequenceId> {
        self.owners.find(block)
    }

    /// The parts of `range` that belong to sequences, in order of place.
    pub fn owned(&self, range: BlockRange) -> impl Iterator<Item = (BlockRange, SequenceId)> {
        self.owners.within(range)
    }

    /// The sequences with support, the one that most sessions use first, of those the one that is used soonest. Once
    /// enough sessions are known, what only one of them used is not here.
    pub fn popular(&self) -> &[SequenceId] {
        &self.popular
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(sequences: u64, paths: &[(u32, &[u32])]) -> Option<Model> {
        let sequences = (0..sequences).map(|s| Sequence { runs: vec![BlockRange::one(Block(s))], blocks: 1 }).collect();
        let visit = |(at, &s): (usize, &u32)| Visit { at: at as f32, sequence: SequenceId(s) };
        let paths = paths
            .iter()
            .map(|&(age, visits)| Path { age, visits: visits.iter().enumerate().map(visit).collect() })
            .collect();
        Model::new(Geometry::new(1 << 30, 4096).unwrap(), Learnt::default(), sequences, paths)
    }

    #[test]
    fn places_are_the_inverse_of_paths() {
        let model = model(3, &[(0, &[2, 0]), (0, &[0]), (0, &[])]).unwrap();
        assert_eq!(model.places(SequenceId(0)), [Place { path: 0, position: 1 }, Place { path: 1, position: 0 }]);
        assert_eq!(model.places(SequenceId(1)), []);
        assert_eq!(model.places(SequenceId(2)), [Place { path: 0, position: 0 }]);
        assert_eq!(model.popular(), [0, 2].map(SequenceId), "what nobody visits is not popular");
        assert!((model.share(SequenceId(0)) - 2.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(model(1, &[(0, &[0, 0])]).is_none(), "twice in one path");
        assert!(model(1, &[(0, &[1])]).is_none(), "no such sequence");
    }

    #[test]
    fn what_is_new_counts_more() {
        // Three old sessions went to 0, two new ones to 1.
        let old = 2 * HALF_LIFE_SESSIONS as u32;
        let model = model(2, &[(0, &[1]), (0, &[1]), (old, &[0]), (old, &[0]), (old, &[0])]).unwrap();
        assert_eq!(model.popular(), [1, 0].map(SequenceId));
    }

    #[test]
    fn the_oldest_paths_still_count_when_there_are_no_others() {
        let old = model(2, &[(u32::MAX, &[0]), (u32::MAX, &[0, 1])]).unwrap();
        assert_eq!([0, 1].map(|id| old.share(SequenceId(id))), [1.0, 0.5]);
    }

    #[test]
    fn what_one_of_many_did_is_not_popular() {
        let with = |others: usize| {
            let mut paths: Vec<(u32, &[u32])> = vec![(0, &[0]); others];
            paths.push((0, &[0, 1]));
            model(2, &paths).unwrap().popular().to_vec()
        };
        assert_eq!(with(6), [0, 1].map(SequenceId));
        assert_eq!(with(7), [0].map(SequenceId));
    }
}
