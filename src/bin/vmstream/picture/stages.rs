//! From the many sequences of a model to the few stages that a person can follow.
//!
//! A *stage* is a set of sequences that the same sessions go through at about the same time: what a guest does as one piece
//! of work. A model has thousands of sequences of a few blocks, of which one piece of work uses hundreds, in an order that
//! varies a little.
//!
//! The sequences are gone through in order of their mean time, and each joins a stage of its neighbours: of the
//! sequences that stand a few visits before or behind it on enough of its paths. Of these stages it takes the one
//! whose sessions are most nearly its own, by Jaccard's measure; if there is none, it founds one. It is compared with
//! the founder of a stage, in time as well, and not with the last that joined: else a chain of small differences
//! would join what all sessions do at first to what one does at last. Time is linear in the number of visits.

use std::collections::HashMap;

use vmstream::model::{Model, Path, Place, SequenceId};

/// On the paths, so many visits before and behind a sequence are its neighbours.
const NEIGHBOURS: usize = 8;
/// A stage is near when it is on at least one in so many of the paths. That bounds the stages to be compared with,
/// however many paths there are, and is low enough to find what stands near in time with others in between.
const NEAR_SHARE: usize = 10;
/// A stage is at most one in so many of a mean session long, so that a picture of the session shows it as a part: who is
/// farther from the founder is none of it.
const SESSION_PARTS: f64 = 10.0;
/// Least similarity of the sets of sessions.
const ALIKE_MIN: f64 = 0.5;
/// A stage counts as visited by a session that uses at least one in so many of its bytes.
const USED_SHARE: u64 = 4;

/// A stage lasts from the tenth to the ninth in ten of the bytes that a session uses of it: single blocks that one
/// session happens to use much sooner or later than the rest would make it look longer than it is.
const MOST: (u64, u64) = (1, 9);

/// What sessions do as one piece of work.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Bytes of all its sequences.
    pub bytes: u64,
    /// Of the sessions, from 0 to 1, by weight.
    pub share: f64,
    /// Mean time by which a tenth of it was used, in seconds of the guest's.
    pub begins_s: f64,
    /// Mean time by which nine tenths of it were.
    pub ends_s: f64,
}

/// How many sessions go from one stage directly to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Index of the stage that is left.
    pub from: usize,
    /// Index of the next one.
    pub to: usize,
    /// Of the sessions, from 0 to 1, by weight.
    pub share: f64,
}

/// The main stages of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stages {
    /// Those with the most bytes, counted by the share of sessions that use them; in order of time.
    pub stages: Vec<Stage>,
    /// Those with the greatest share first.
    pub steps: Vec<Step>,
    /// Bytes of all sequences that a session uses and that are in none of `stages`.
    pub left_out_bytes: u64,
}

/// No stage yet.
const NONE: u32 = u32::MAX;

/// Finds the stages of a model, and keeps the `most` greatest.
pub fn find(model: &Model, most: usize) -> Stages {
    let (homes, count) = homes(model);
    let mut bytes = vec![0u64; count];
    for (number, &home) in (0..).zip(&homes) {
        if home != NONE {
            bytes[home as usize] += sequence_bytes(model, SequenceId(number));
        }
    }
    let visits: Vec<_> = model.paths().iter().map(|path| visits(model, path, &homes, &bytes)).collect();
    let mut stages: Vec<_> =
        bytes.iter().map(|&bytes| (0.0, Stage { bytes, share: 0.0, begins_s: 0.0, ends_s: 0.0 })).collect();
    let mut weights = 0.0;
    for (path, visits) in model.paths().iter().zip(&visits) {
        let weight = f64::from(path.weight());
        weights += weight;
        for visit in visits {
            let (sum, stage) = &mut stages[visit.stage];
            *sum += weight;
            stage.begins_s += weight * f64::from(visit.begins);
            stage.ends_s += weight * f64::from(visit.ends);
        }
    }
    for (sum, stage) in stages.iter_mut().filter(|(sum, _)| *sum > 0.0) {
        stage.share = *sum / weights;
        stage.begins_s /= *sum;
        stage.ends_s /= *sum;
    }
    let all: u64 = bytes.iter().sum();
    let weight = |at: usize| stages[at].1.share * bytes[at] as f64;
    let mut main: Vec<usize> = (0..count).filter(|&at| weight(at) > 0.0).collect();
    main.sort_by(|&a, &b| weight(b).total_cmp(&weight(a)).then(a.cmp(&b)));
    main.truncate(most);
    main.sort_by(|&a, &b| stages[a].1.begins_s.total_cmp(&stages[b].1.begins_s).then(a.cmp(&b)));
    let steps = steps(model, &visits, &main, weights);
    let stages: Vec<_> = main.iter().map(|&at| stages[at].1.clone()).collect();
    let left_out_bytes = all - stages.iter().map(|stage| stage.bytes).sum::<u64>();
    Stages { stages, steps, left_out_bytes }
}

fn sequence_bytes(model: &Model, id: SequenceId) -> u64 {
    model.sequence(id).runs.iter().map(|&run| model.geometry().length(run)).sum()
}

fn time(model: &Model, place: Place) -> f32 {
    model.paths()[place.path as usize].visits[place.position as usize].at
}

/// For each sequence the number of its stage, and how many stages there are.
fn homes(model: &Model) -> (Vec<u32>, usize) {
    let mean = |id: SequenceId| {
        let places = model.places(id);
        places.iter().map(|&place| f64::from(time(model, place))).sum::<f64>() / places.len() as f64
    };
    let mut order: Vec<_> = (0..model.sequences().len() as u32)
        .map(SequenceId)
        .filter(|&id| !model.places(id).is_empty())
        .map(|id| (mean(id), id))
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut homes = vec![NONE; model.sequences().len()];
    let mut founders: Vec<SequenceId> = Vec::new();
    let length_max_s = mean_session_s(model) / SESSION_PARTS;
    for (_, id) in order {
        let alike = |home: u32| {
            let (alike, apart_s) = compare(model, founders[home as usize], id);
            (alike >= ALIKE_MIN && apart_s <= length_max_s).then_some((alike, home))
        };
        let alike = neighbours(model, id, &homes).into_iter().filter_map(alike);
        let best = alike.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        homes[id.0 as usize] = best.map_or_else(
            || {
                founders.push(id);
                founders.len() as u32 - 1
            },
            |(_, home)| home,
        );
    }
    (homes, founders.len())
}

/// Mean time of the last visit of a path, in seconds.
fn mean_session_s(model: &Model) -> f64 {
    let last = model.paths().iter().filter_map(|path| path.visits.last()).map(|visit| f64::from(visit.at));
    last.sum::<f64>() / model.paths().len().max(1) as f64
}

/// The stages that are near a sequence on enough of its paths. There are a few dozen at most, however many paths there are.
fn neighbours(model: &Model, id: SequenceId, homes: &[u32]) -> Vec<u32> {
    let places = model.places(id);
    let mut found = Vec::new();
    for place in places {
        let visits = &model.paths()[place.path as usize].visits;
        let at = place.position as usize;
        let around = &visits[at.saturating_sub(NEIGHBOURS)..(at + NEIGHBOURS + 1).min(visits.len())];
        let mut near: Vec<u32> = around.iter().map(|visit| homes[visit.sequence.0 as usize]).collect();
        near.sort_unstable();
        near.dedup();
        found.extend(near.into_iter().filter(|&home| home != NONE));
    }
    found.sort_unstable();
    let often = found.chunk_by(|a, b| a == b).filter(|same| same.len() * NEAR_SHARE >= places.len());
    often.map(|same| same[0]).collect()
}

/// How alike the sets of paths of two sequences are - what both have over what one of them has - and how far apart the
/// sequences are in those that have both, in seconds on the mean.
fn compare(model: &Model, one: SequenceId, other: SequenceId) -> (f64, f64) {
    let (one, other) = (model.places(one), model.places(other));
    let (mut both, mut apart, mut a, mut b) = (0, 0.0, 0, 0);
    // Places are in order of path.
    while let (Some(&x), Some(&y)) = (one.get(a), other.get(b)) {
        if x.path == y.path {
            both += 1;
            apart += f64::from((time(model, x) - time(model, y)).abs());
        }
        a += usize::from(x.path <= y.path);
        b += usize::from(y.path <= x.path);
    }
    let all = one.len() + other.len() - both;
    (both as f64 / all.max(1) as f64, apart / both.max(1) as f64)
}

/// A path's use of a stage, in seconds.
struct StageVisit {
    stage: usize,
    begins: f32,
    ends: f32,
}

/// The stages that a path goes through, in order of time.
fn visits(model: &Model, path: &Path, homes: &[u32], bytes: &[u64]) -> Vec<StageVisit> {
    // By stage, what of it was used when.
    let mut uses: HashMap<u32, Vec<(f32, u64)>> = HashMap::new();
    for visit in &path.visits {
        let home = homes[visit.sequence.0 as usize];
        uses.entry(home).or_default().push((visit.at, sequence_bytes(model, visit.sequence)));
    }
    let visit = |(home, uses): (u32, Vec<(f32, u64)>)| {
        let stage = home as usize;
        let used: u64 = uses.iter().map(|(_, bytes)| bytes).sum();
        // The time at which so many tenths of what is used had been.
        let tenth = |tenths: u64| {
            let mut sum = 0;
            let reached = |(_, bytes): &&(f32, u64)| {
                sum += bytes;
                sum * 10 >= used * tenths
            };
            uses.iter().find(reached).map_or(0.0, |(at, _)| *at)
        };
        let visit = StageVisit { stage, begins: tenth(MOST.0), ends: tenth(MOST.1) };
        (used * USED_SHARE >= bytes[stage]).then_some(visit)
    };
    let mut visits: Vec<_> = uses.into_iter().filter_map(visit).collect();
    visits.sort_by(|a, b| a.begins.total_cmp(&b.begins).then(a.stage.cmp(&b.stage)));
    visits
}

/// The steps between the main stages; what a session does between them is passed over.
fn steps(model: &Model, visits: &[Vec<StageVisit>], main: &[usize], weights: f64) -> Vec<Step> {
    let index: HashMap<usize, usize> = main.iter().enumerate().map(|(at, &stage)| (stage, at)).collect();
    let mut sums: HashMap<(usize, usize), f64> = HashMap::new();
    for (path, visits) in model.paths().iter().zip(visits) {
        let through: Vec<_> = visits.iter().filter_map(|visit| index.get(&visit.stage).copied()).collect();
        for pair in through.windows(2) {
            *sums.entry((pair[0], pair[1])).or_default() += f64::from(path.weight());
        }
    }
    let mut steps: Vec<_> = sums.into_iter().map(|((from, to), sum)| Step { from, to, share: sum / weights }).collect();
    steps.sort_by(|a, b| b.share.total_cmp(&a.share).then((a.from, a.to).cmp(&(b.from, b.to))));
    steps
}

#[cfg(test)]
#[path = "../../../../tests/support/traces.rs"]
mod traces;

#[cfg(test)]
mod tests {
    use vmstream::model::{Limits, Trainer};
    use vmstream::session::text;

    use super::*;

    fn model(work: &[&[u64]]) -> Model {
        let session = |(seed, tasks): (u64, &&[u64])| {
            text::parse("made up", traces::trace(seed, tasks).as_bytes()).expect("the helper writes valid text")
        };
        let sessions: Vec<_> = (1..).zip(work).map(session).collect();
        let mut trainer = Trainer::new(sessions[0].geometry, Limits::default());
        sessions.iter().for_each(|session| trainer.add(session).expect("of the same image"));
        trainer.finish()
    }

    fn rounded(share: f64) -> u32 {
        (share * 100.0).round() as u32
    }

    #[test]
    fn what_the_same_sessions_do_at_one_time_is_a_stage() {
        // The start in all, then one task, then one of two others.
        let model = model(&[&[0, 1], &[0, 2], &[0, 1], &[0, 2]]);
        let found = find(&model, usize::MAX);
        assert!(found.stages.len() * 3 < model.sequences().len(), "{found:?}");
        let common = found.stages.iter().take_while(|stage| rounded(stage.share) == 100).count();
        assert!(common >= 2 && found.stages[common..].iter().all(|stage| rounded(stage.share) == 50), "{found:?}");
        // All go through what is common as a chain, then half of them to each of two others that never meet again.
        let into = |to: usize| {
            let steps = found.steps.iter().filter(|step| step.to == to);
            steps.map(|step| (step.from, rounded(step.share))).collect::<Vec<_>>()
        };
        assert_eq!(into(0), []);
        (1..common).for_each(|to| assert_eq!(into(to), [(to - 1, 100)]));
        let later: Vec<_> = (common..found.stages.len()).flat_map(into).collect();
        assert_eq!(later.len(), found.stages.len() - common, "one way into each: {found:?}");
        assert_eq!(later.iter().filter(|(from, _)| *from == common - 1).count(), 2, "{found:?}");
        let session_s = mean_session_s(&model);
        for stage in &found.stages {
            let lasts_s = stage.ends_s - stage.begins_s;
            // As far before its founder as behind it.
            assert!((0.0..=2.0 * session_s / SESSION_PARTS).contains(&lasts_s), "{stage:?}");
        }
    }

    #[test]
    fn no_byte_is_lost_or_counted_twice() {
        let model = model(&[&[0, 1, 2], &[2, 0], &[3], &[1, 3, 0]]);
        let used = (0..model.sequences().len() as u32).map(SequenceId).filter(|&id| !model.places(id).is_empty());
        let used: u64 = used.map(|id| sequence_bytes(&model, id)).sum();
        for most in [0, 1, 3, usize::MAX] {
            let found = find(&model, most);
            assert!(found.stages.len() <= most);
            assert_eq!(found.left_out_bytes + found.stages.iter().map(|stage| stage.bytes).sum::<u64>(), used);
            for step in &found.steps {
                let ends = found.stages[step.from].share.min(found.stages[step.to].share);
                assert!(step.from != step.to && step.share <= ends + 1e-9, "{step:?}");
            }
        }
    }

    #[test]
    fn a_model_of_nothing_has_no_stages() {
        let session =
            text::parse("made up", "# vmtrace 1 size=8192 block=4096\n1 W 0 4096\n".as_bytes()).expect("valid text");
        let mut trainer = Trainer::new(session.geometry, Limits::default());
        trainer.add(&session).expect("it is well-formed");
        assert_eq!(find(&trainer.finish(), 9), Stages::default());
    }
}
