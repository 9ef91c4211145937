//! Following made-up guests: tasks in new orders, guests nobody has seen, and what must hold for all of them.

use proptest::prelude::*;

use super::*;
use crate::model::testing::{session, task};
use crate::model::{Limits, Trainer};

fn model(sessions: &[&[u64]]) -> Arc<Model> {
    let first = session(1, sessions[0]);
    let mut trainer = Trainer::new(first.geometry, Limits::default());
    for (seed, tasks) in (1..).zip(sessions) {
        trainer.add(&session(seed, tasks)).unwrap();
    }
    Arc::new(trainer.finish())
}

fn planned(predictor: &mut Predictor, resident: &HashSet<Block>) -> Vec<Candidate> {
    predictor.plan(&Link::default(), &|range| range.iter().any(|b| !resident.contains(&b)));
    predictor.candidates().to_vec()
}

/// The blocks that a guest needs which does these tasks, in order.
fn touched(seed: u64, tasks: &[u64]) -> Vec<Block> {
    session(seed, tasks).first_touches().iter().map(|touch| touch.block).collect()
}

/// Where in the order of streaming the first block of a task's area stands.
fn rank(candidates: &[Candidate], number: u64) -> usize {
    let area = BlockRange { start: task(number, 0), end: task(number + 1, 0) };
    candidates.iter().position(|c| area.contains(c.range.start)).unwrap_or(usize::MAX)
}

fn follow(predictor: &mut Predictor, blocks: &[Block]) -> HashSet<Block> {
    for &block in blocks {
        predictor.touch(BlockRange::one(block));
    }
    blocks.iter().copied().collect()
}

#[test]
fn a_guest_that_begins_a_task_gets_the_rest_of_it_first() {
    let mut predictor = Predictor::new(model(&[&[1, 2, 3], &[4, 5, 6], &[2, 5, 1], &[6, 3, 4]]));
    let mut blocks = touched(99, &[5]);
    let begun = blocks.iter().position(|b| *b >= task(5, 0)).unwrap();
    blocks.truncate(begun + 40);
    let resident = follow(&mut predictor, &blocks);
    let candidates = planned(&mut predictor, &resident);
    assert_eq!(rank(&candidates, 5), 0, "{:?}", &candidates[..4]);
}

#[test]
fn what_follows_depends_on_the_way_there() {
    // After task 2 comes 3 for those who came from 1, and 5 for those who came from 4.
    let mut predictor = Predictor::new(model(&[&[1, 2, 3], &[1, 2, 3], &[4, 2, 5], &[4, 2, 5]]));
    let resident = follow(&mut predictor, &touched(99, &[4, 2]));
    let candidates = planned(&mut predictor, &resident);
    let likelihood = |number| candidates.get(rank(&candidates, number)).map_or(0.0, |c| c.probability);
    assert!(likelihood(5) > likelihood(3) + 0.02, "{} against {}", likelihood(5), likelihood(3));
}

#[test]
fn before_the_first_touch_the_beginning_of_the_sessions_is_expected() {
    let mut predictor = Predictor::new(model(&[&[1, 2], &[1, 3]]));
    let candidates = planned(&mut predictor, &HashSet::new());
    assert!(!candidates[0].fill && candidates[0].range.start < task(0, 0));
    assert!(rank(&candidates, 1) < rank(&candidates, 2));
}

#[test]
fn a_model_of_nothing_foresees_nothing() {
    let geometry = session(1, &[1]).geometry;
    let mut predictor = Predictor::new(Arc::new(Trainer::new(geometry, Limits::default()).finish()));
    predictor.touch(BlockRange::new(0, 100));
    assert!(planned(&mut predictor, &HashSet::new()).is_empty());
    assert!(!predictor.knows(BlockRange::new(0, 100)));
}

proptest! {
    /// Whatever the guest does: no block twice, nothing that is here, expected before popular, never without end.
    #[test]
    fn candidates_keep_their_promises(steps in proptest::collection::vec((0..8u64, 0..64u64, any::<bool>()), 0..200)) {
        let model = model(&[&[1, 2, 3], &[3, 2, 1], &[4, 5], &[6, 1]]);
        let blocks: u64 = model.sequences().iter().map(|s| u64::from(s.blocks)).sum();
        let mut predictor = Predictor::new(model);
        let mut resident = HashSet::new();
        for (number, block, plan) in steps {
            predictor.touch(BlockRange::one(task(number, block)));
            resident.insert(task(number, block));
            if plan {
                let candidates = planned(&mut predictor, &resident);
                let mut seen = HashSet::new();
                for candidate in &candidates {
                    prop_assert!(candidate.range.iter().all(|b| seen.insert(b)), "a block twice");
                    prop_assert!(candidate.range.iter().any(|b| !resident.contains(&b)), "all of it is here");
                    prop_assert!((0.0..=1.0).contains(&candidate.probability));
                }
                prop_assert!(candidates.is_sorted_by_key(|c| c.fill));
                prop_assert!(seen.len() as u64 <= blocks);
            }
        }
    }
}
