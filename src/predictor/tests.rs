//! Following made-up guests: tasks in new orders, guests nobody has seen, and what must hold for all of them.

use proptest::prelude::*;

use super::*;
use crate::model::testing::{IMAGE_BYTES, changed, session, task};
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
    assert!(rank(&candidates, 5) < rank(&candidates, 3));
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
    assert!(!predictor.touch(BlockRange::new(0, 100)));
}

/// A guest does something, or a plan is made.
#[derive(Clone, Debug)]
enum Event {
    /// It touches so many blocks from there, and they are here from then on.
    Touch(u64, u64),
    /// It touches them before they are here.
    Want(u64, u64),
    /// They come without being touched.
    Arrive(u64, u64),
    /// They are here no more, as after a write that failed.
    Vanish(u64, u64),
    Plan,
}

fn event() -> impl Strategy<Value = Event> {
    // Places near the beginnings of tasks, where sequences are, and sometimes anywhere.
    let place = prop_oneof![
        4 => (0..8u64, 0..600u64).prop_map(|(number, block)| task(number, block).0 - 100),
        1 => 0..IMAGE_BYTES / 4096 - 300,
    ];
    let range = (place, 1..300u64);
    prop_oneof![
        range.clone().prop_map(|(at, blocks)| Event::Touch(at, blocks)),
        range.clone().prop_map(|(at, blocks)| Event::Want(at, blocks)),
        range.clone().prop_map(|(at, blocks)| Event::Arrive(at, blocks)),
        range.prop_map(|(at, blocks)| Event::Vanish(at, blocks)),
        Just(Event::Plan),
    ]
}

/// Follows a guest through `events` and checks each plan.
fn check(model: Arc<Model>, events: &[Event]) -> Result<(), TestCaseError> {
    let pieces = model.sequences().iter().map(|s| s.runs.len()).max().unwrap_or(0);
    let mut predictor = Predictor::new(model);
    let mut resident = HashSet::new();
    for event in events {
        match *event {
            Event::Touch(at, blocks) => {
                predictor.touch(BlockRange::new(at, at + blocks));
                resident.extend(BlockRange::new(at, at + blocks).iter());
            }
            Event::Want(at, blocks) => {
                predictor.touch(BlockRange::new(at, at + blocks));
            }
            Event::Arrive(at, blocks) => resident.extend(BlockRange::new(at, at + blocks).iter()),
            Event::Vanish(at, blocks) => {
                resident.retain(|block| !BlockRange::new(at, at + blocks).contains(*block));
            }
            Event::Plan => {
                let candidates = planned(&mut predictor, &resident);
                let mut seen = HashSet::new();
                for candidate in &candidates {
                    prop_assert!(candidate.range.iter().all(|b| seen.insert(b)), "a block twice");
                    prop_assert!(candidate.range.iter().any(|b| !resident.contains(&b)), "all of it is here");
                    prop_assert!((0.0..=1.0).contains(&candidate.probability), "{candidate:?}");
                    prop_assert!(predictor.model.owned(candidate.range).next().is_some());
                }
                prop_assert!(candidates.is_sorted_by_key(|c| c.fill));
                // The last of them may come as a whole.
                prop_assert!(candidates.iter().filter(|c| c.fill).count() <= POPULAR_MAX + pieces);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any sessions learnt, any order of events: no block twice, nothing that is here, expected before popular, never
    /// without end.
    #[test]
    fn plans_keep_their_promises_whatever_was_learnt(
        sessions in prop::collection::vec(prop::collection::vec(0..8u64, 0..4), 0..12),
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut trainer = Trainer::new(session(1, &[]).geometry, Limits::default());
        for (seed, tasks) in (1..).zip(&sessions) {
            trainer.add(&session(seed, tasks)).unwrap();
        }
        check(Arc::new(trainer.finish()), &events)?;
    }

    /// A model of a stranger's, with right checksums, is refused or followed like any other.
    #[test]
    fn plans_keep_their_promises_whoever_made_the_model(
        changes in prop::collection::vec((0..1usize << 20, any::<u8>()), 0..4),
        events in prop::collection::vec(event(), 0..30),
    ) {
        thread_local!(static FILE: Vec<u8> = {
            let mut trainer = Trainer::new(session(1, &[]).geometry, Limits::default());
            (1..5).for_each(|seed| trainer.add(&session(seed, &[seed, 2 * seed % 7])).unwrap());
            trainer.finish_file().1
        });
        let file = changed(FILE.with(Clone::clone), &changes);
        if let Ok(model) = Model::read("m", &file[..]) {
            check(Arc::new(model), &events)?;
        }
    }
}
