//! In which order the sequences of a model lie in the packs, and which of them share a frame.
//!
//! A predicted path streams as few long requests when what follows each other on it lies side by side. Paths branch and
//! a line does not, so the line is made for what most guests do: first the *trunk*, the sequences that most sessions go
//! through, in order of time; then each remembered session, the weightiest first, adds what is not placed yet, in the
//! order of its use. So what only some sessions do stands as one stretch for each of them, and what several of them
//! share stands in the stretch of the first.
//!
//! The line is cut into frames: units that are fetched, unpacked and checked as a whole. A frame ends where the next
//! sequence would make it too long, and where sequences begin that other sessions use, as soon as it is long enough to
//! pack well: what is fetched for the sake of one sequence should be of use for the rest. The first one is cut
//! there in any case, because a guest on a slow link waits for it.

use crate::model::{Model, Sequence, SequenceId};

/// A frame holds at most so many bytes of blocks, unless it is of one sequence. Measured; the figures are in
/// docs/format.md.
pub const FRAME_BYTES: u64 = 128 << 10;
/// From so many bytes on, a frame ends where the sessions that use its sequences change.
const FRAME_BYTES_MIN: u64 = 32 << 10;
/// They have changed when less than this share of the sessions that use one of two neighbours use both.
const ALIKE_MIN: f64 = 0.5;
/// Sequences that at least this share of the sessions use are the trunk.
const TRUNK_SHARE: f32 = 0.5;

/// The frames of a model: each the sequences that it holds, in order. `bytes` says how many bytes of a sequence travel;
/// sequences without any, and those longer than `bytes_max`, which no reader would take, are in no frame.
pub fn order(model: &Model, bytes_max: u64, bytes: &dyn Fn(&Sequence) -> u64) -> Vec<Vec<SequenceId>> {
    let mut frames: Vec<Vec<SequenceId>> = Vec::new();
    let mut filled = 0;
    let mut last = None;
    for id in line(model) {
        let length = bytes(model.sequence(id));
        if length == 0 || length > bytes_max {
            continue;
        }
        let parts = last.is_some_and(|last| {
            filled + length > FRAME_BYTES || (filled >= FRAME_BYTES_MIN && alike(model, last, id) < ALIKE_MIN)
        });
        match frames.last_mut() {
            Some(frame) if !parts => {
                frame.push(id);
                filled += length;
            }
            _ => {
                frames.push(vec![id]);
                filled = length;
            }
        }
        last = Some(id);
    }
    cut_first(&mut frames, &|id| bytes(model.sequence(id)));
    frames
}

/// Makes two frames of the first one: what a guest waits for before anything else is here should be soon over.
fn cut_first(frames: &mut Vec<Vec<SequenceId>>, bytes: &dyn Fn(SequenceId) -> u64) {
    let Some(first) = frames.first_mut() else { return };
    let mut filled = 0;
    let fits = first.iter().take_while(|&&id| {
        filled += bytes(id);
        filled <= FRAME_BYTES_MIN
    });
    let at = fits.count().max(1);
    let rest = first.split_off(at);
    if !rest.is_empty() {
        frames.insert(1, rest);
    }
}

/// All sequences that any path visits, each once.
fn line(model: &Model) -> Vec<SequenceId> {
    let mut line: Vec<SequenceId> = Vec::with_capacity(model.sequences().len());
    let mut placed = vec![false; model.sequences().len()];
    let mut add = |id: SequenceId, line: &mut Vec<SequenceId>| {
        if !std::mem::replace(&mut placed[id.0 as usize], true) {
            line.push(id);
        }
    };
    let all = (0..model.sequences().len() as u32).map(SequenceId);
    let mut trunk: Vec<_> =
        all.filter(|&id| model.share(id) >= TRUNK_SHARE).map(|id| (mean_time(model, id), id)).collect();
    trunk.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    for (_, id) in trunk {
        add(id, &mut line);
    }
    // The newest first, and of equally new ones the longest.
    for visit in model.paths().iter().flat_map(|path| &path.visits) {
        add(visit.sequence, &mut line);
    }
    line
}

/// When the sessions that use a sequence use it, in seconds since their start, the mean by weight.
fn mean_time(model: &Model, id: SequenceId) -> f64 {
    let (mut sum, mut weights) = (0.0, 0.0);
    for place in model.places(id) {
        let path = &model.paths()[place.path as usize];
        let weight = f64::from(path.weight());
        sum += weight * f64::from(path.visits[place.position as usize].at);
        weights += weight;
    }
    if weights > 0.0 { sum / weights } else { 0.0 }
}

/// How much the sets of sessions of two sequences have in common, by Jaccard's measure.
fn alike(model: &Model, a: SequenceId, b: SequenceId) -> f64 {
    let (a, b) = (model.places(a), model.places(b));
    let mut others = b.iter().map(|place| place.path).peekable();
    let mut both = 0;
    for place in a {
        while others.next_if(|&path| path < place.path).is_some() {}
        both += usize::from(others.next_if_eq(&place.path).is_some());
    }
    let either = a.len() + b.len() - both;
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Limits, Trainer, testing::session};

    fn model(sessions: &[(u64, &[u64])]) -> Model {
        let sessions: Vec<_> = sessions.iter().map(|&(seed, tasks)| session(seed, tasks)).collect();
        let mut trainer = Trainer::new(sessions[0].geometry, Limits::default());
        sessions.iter().for_each(|session| trainer.add(session).unwrap());
        trainer.finish()
    }

    fn bytes(sequence: &Sequence) -> u64 {
        u64::from(sequence.blocks) * 4096
    }

    #[test]
    fn each_sequence_is_in_one_frame_and_frames_are_neither_long_nor_empty() {
        let model = model(&[(1, &[0, 1, 2]), (2, &[1, 2, 3]), (3, &[3, 0]), (4, &[2])]);
        let frames = order(&model, u64::MAX, &bytes);
        let mut seen: Vec<SequenceId> = frames.iter().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..model.sequences().len() as u32).map(SequenceId).collect::<Vec<_>>());
        for frame in &frames {
            let length: u64 = frame.iter().map(|&id| bytes(model.sequence(id))).sum();
            assert!((1..=FRAME_BYTES).contains(&length), "{length}");
        }
    }

    #[test]
    fn what_all_share_comes_first_and_in_order_of_time() {
        let model = model(&[(1, &[0]), (2, &[1]), (3, &[2]), (4, &[3])]);
        let line = line(&model);
        let trunk = line.iter().take_while(|&&id| model.share(id) >= TRUNK_SHARE).count();
        assert!(trunk > 5 && line[trunk..].iter().all(|&id| model.share(id) < TRUNK_SHARE));
        assert!(line[..trunk].is_sorted_by_key(|&id| mean_time(&model, id)));
    }

    #[test]
    fn a_stretch_is_of_one_session_and_a_frame_of_those_who_go_together() {
        let model = model(&[(1, &[0]), (2, &[1]), (3, &[2]), (4, &[3])]);
        let frames = order(&model, u64::MAX, &bytes);
        // The tasks have nothing in common, so beyond the least length no frame is of two of them.
        for frame in &frames {
            let length = |upto: usize| frame[..upto].iter().map(|&id| bytes(model.sequence(id))).sum::<u64>();
            let changes = (1..frame.len()).filter(|&at| alike(&model, frame[at - 1], frame[at]) < ALIKE_MIN);
            assert!(changes.map(length).all(|filled| filled < FRAME_BYTES_MIN));
        }
    }

    #[test]
    fn what_does_not_travel_or_is_too_long_for_any_reader_is_in_no_frame() {
        let model = model(&[(1, &[0])]);
        assert!(order(&model, u64::MAX, &|_| 0).is_empty());
        assert!(order(&model, 4096, &|_| 4097).is_empty());
        assert_eq!(order(&model, u64::MAX, &|_| FRAME_BYTES).len(), model.sequences().len());
    }
}
