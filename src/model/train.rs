//! Training: sessions become a model.
//!
//! A trainer holds recordings, at most twice as many as [`Limits`] allow, in one strict order: those of this call before
//! those of earlier ones and these by age, and among equally old ones by identity, which is a hash of what the session did.
//! Too many, and the last in that order leave. So what is held depends on what was learnt and not on the order in which the
//! sessions of a call were given; and of a call with more sessions than can be held a fair sample remains, because a
//! hash prefers nothing. In the end those that are least like the others are kept (`retention`).
//!
//! The model is then made from all recordings at once: it is a function of them, and the file has all the state there is.
//! Paths are ordered by age and then by length, since long sessions lay out sequences best.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::Read;

use super::format::Evidence;
use super::recording::Recording;
use super::{Learnt, Model, format, poison, retention, sequences};
use crate::block::{Block, Geometry};
use crate::error::{Error, Result, errno};
use crate::session::Session;

/// Bounds of what a model remembers, and so of its size, and of the time and memory of training.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most sessions whose paths are kept; the old and those much like others make room.
    pub paths_max: usize,
    /// Most first touches that are kept, of all these sessions together. Training takes at most some 100 bytes for each.
    /// One session alone is always kept, up to 131,072 touches of it.
    pub touches_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        // 256 sessions of 16,384 blocks (64 MiB) each. With fewer than some 32 paths guests are recognised late.
        Self { paths_max: 256, touches_max: 4 << 20 }
    }
}

/// So many times the limits are held while sessions come in, so that there is a choice of what to keep.
const CHOICE: usize = 2;

/// Place of a recording among those kept: rank by age, see [`Trainer::age`], and identity.
type Key = (u64, u64);

/// Collects sessions and makes a model of them.
#[derive(Debug)]
pub struct Trainer {
    pub(super) geometry: Geometry,
    limits: Limits,
    kept: BTreeMap<Key, Recording>,
    /// First touches in `kept`.
    touches: u64,
    /// The first in order that had to leave. Nothing behind it comes in any more: otherwise a short session might find room
    /// that a long one before it did not, or not, depending on which came first.
    left: Option<Key>,
    /// True when it goes on from a model, whose sessions are older than those of this call.
    pub(super) resumed: bool,
    /// Sessions learnt by earlier calls, or by those whose models are merged.
    pub(super) before: u64,
    /// And by this one.
    added: u64,
}

impl Trainer {
    /// A trainer for images of this geometry that knows nothing yet.
    pub fn new(geometry: Geometry, limits: Limits) -> Self {
        Self { geometry, limits, kept: BTreeMap::new(), touches: 0, left: None, resumed: false, before: 0, added: 0 }
    }

    /// A trainer that goes on from a model file; `name` is for errors, which are those of [`Model::load`]. The sessions
    /// to come are newer than those in it.
    pub fn resume(name: &str, model: impl Read, limits: Limits) -> Result<Self> {
        let Evidence { geometry, learnt, recordings, .. } = format::read_evidence(name, model)?;
        let mut trainer = Self::new(geometry, limits);
        trainer.resumed = true;
        trainer.before = learnt.sessions;
        for recording in recordings {
            trainer.keep((u64::from(recording.age) + 1, recording.identity()), recording);
        }
        Ok(trainer)
    }

    /// A trainer that goes on from the model of another version of the image, for this one. `place` says where a block of
    /// that version lies in this one; what has no place any more is forgotten, and so are sessions of which nothing is
    /// left. No two blocks may get the same place. Blocks must be of the same size in both (else `EINVAL`).
    pub fn resume_moved(
        name: &str,
        model: impl Read,
        geometry: Geometry,
        place: &dyn Fn(Block) -> Option<Block>,
        limits: Limits,
    ) -> Result<Self> {
        let Evidence { geometry: old, learnt, recordings, .. } = format::read_evidence(name, model)?;
        if old.block_bytes() != geometry.block_bytes() {
            let (was, is) = (old.block_bytes(), geometry.block_bytes());
            return Err(Error::new(errno::EINVAL, format!("{name} has blocks of {was} bytes, and the image of {is}")));
        }
        let within = |block| place(block).filter(|block| geometry.all().contains(*block));
        let mut trainer = Self::new(geometry, limits);
        trainer.resumed = true;
        trainer.before = learnt.sessions;
        for recording in recordings.iter().map(|recording| recording.moved(&within)).filter(|r| r.listed > 0) {
            trainer.unite((u64::from(recording.age) + 1, recording.identity()), recording);
        }
        Ok(trainer)
    }

    /// Size of the image and of the blocks.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Learns a session. It must be one of the same image: of the same size, in the same blocks (else `EINVAL`). A session
    /// that is known already becomes new again.
    pub fn add(&mut self, session: &Session) -> Result<()> {
        self.check(session.geometry, "a session")?;
        self.added += 1;
        let recording = Recording::new(session);
        self.unite((0, recording.identity()), recording);
        Ok(())
    }

    /// Refuses what is of another image.
    pub(super) fn check(&self, geometry: Geometry, what: &str) -> Result<()> {
        if geometry == self.geometry {
            return Ok(());
        }
        let text = |g: Geometry| format!("{} bytes in blocks of {}", g.size(), g.block_bytes());
        Err(Error::new(
            errno::EINVAL,
            format!(
                "{what} of an image of {} cannot be learnt for one of {}: train a model for each image",
                text(geometry),
                text(self.geometry)
            ),
        ))
    }

    /// Keeps a recording once: of the same session twice, the newer.
    pub(super) fn unite(&mut self, key: Key, recording: Recording) {
        let known: Vec<Key> = self.kept.keys().filter(|known| known.1 == key.1).copied().collect();
        if known.iter().any(|&known| known < key) {
            return;
        }
        for key in known {
            self.forget(key);
        }
        self.keep(key, recording);
    }

    fn keep(&mut self, key: Key, recording: Recording) {
        if self.left.is_some_and(|left| key >= left) {
            return;
        }
        self.touches += u64::from(recording.listed);
        if let Some(same) = self.kept.insert(key, recording) {
            self.touches -= u64::from(same.listed);
        }
        let paths_max = self.limits.paths_max.max(1).saturating_mul(CHOICE);
        let touches_max = u64::from(self.limits.touches_max) * CHOICE as u64;
        while self.kept.len() > paths_max || self.touches > touches_max {
            let Some(&last) = self.kept.keys().next_back().filter(|_| self.kept.len() > 1) else { break };
            self.leave(last);
        }
    }

    /// Lets go of all from this place on, now and later.
    pub(super) fn leave(&mut self, from: Key) {
        if self.left.is_some_and(|left| left <= from) {
            return;
        }
        self.left = Some(from);
        while let Some(&last) = self.kept.keys().next_back().filter(|&&last| last >= from) {
            self.forget(last);
        }
    }

    fn forget(&mut self, key: Key) {
        if let Some(gone) = self.kept.remove(&key) {
            self.touches -= u64::from(gone.listed);
        }
    }

    /// The age that belongs to a rank. Ranks are ages, but where a model is gone on from: there those of this call have
    /// rank 0, and how much older than they the others are is known in the end only.
    fn age(&self, rank: u64) -> u32 {
        let age = match (self.resumed, rank) {
            (false, _) | (true, 0) => rank,
            (true, _) => (rank - 1).saturating_add(self.added),
        };
        age.try_into().unwrap_or(u32::MAX)
    }

    /// The model of all that was added.
    pub fn finish(mut self) -> Model {
        let (recordings, _) = self.choose();
        self.compile(&recordings)
    }

    /// The model and its file, from which [`Trainer::resume`] and [`Trainer::merge`] go on.
    pub fn finish_file(mut self) -> (Model, Vec<u8>) {
        let left = self.left.map(|(rank, identity)| (self.age(rank), identity));
        let (recordings, spares) = self.choose();
        let model = self.compile(&recordings);
        let file = format::encode(&model, &recordings, &spares, left);
        (model, file)
    }

    /// What the model is made from, and what else is held.
    fn choose(&mut self) -> (Vec<Recording>, Vec<Recording>) {
        let kept = std::mem::take(&mut self.kept);
        let aged = |((rank, _), recording)| Recording { age: self.age(rank), ..recording };
        let mut recordings: Vec<_> = kept.into_iter().map(aged).collect();
        let spares = retention::thin_out(&mut recordings, self.limits);
        // Stable, so that equally old and long ones stay in the order of their identities.
        recordings.sort_by_key(|recording| (recording.age, Reverse(recording.listed)));
        (recordings, spares)
    }

    fn compile(&self, recordings: &[Recording]) -> Model {
        let blocks_max = poison::blocks_max(recordings, self.geometry);
        let usual: Vec<_> = recordings.iter().filter(|r| u64::from(r.touched) <= blocks_max).collect();
        let (sequences, paths) = sequences::build(&usual);
        let sessions = self.before.saturating_add(self.added);
        let learnt = Learnt { sessions, set_aside: (recordings.len() - usual.len()) as u32 };
        let model = Model::new(self.geometry, learnt, sequences, paths);
        model.expect("sequences are a partition, and paths go through them once")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::block::BlockRange;
    use crate::model::SequenceId;
    use crate::model::testing::{IMAGE_BYTES, session, task};

    fn train(sessions: &[Session], limits: Limits) -> (Model, Vec<u8>) {
        let mut trainer = Trainer::new(sessions[0].geometry, limits);
        sessions.iter().for_each(|s| trainer.add(s).unwrap());
        trainer.finish_file()
    }

    fn few(paths_max: usize) -> Limits {
        Limits { paths_max, ..Limits::default() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_order_of_sessions_does_not_matter(
            tasks in prop::collection::vec(prop::collection::vec(0u64..6, 1..5), 1..12),
            turn in 0usize..12,
            paths_max in 1usize..12,
            touches_max in 100u32..3000,
        ) {
            let sessions: Vec<_> = (0..).zip(&tasks).map(|(seed, tasks)| session(seed, tasks)).collect();
            let mut other = sessions.clone();
            other.rotate_left(turn % sessions.len());
            other.reverse();
            let limits = Limits { paths_max, touches_max };
            prop_assert_eq!(train(&sessions, limits).1, train(&other, limits).1);
        }

        #[test]
        fn limits_hold_and_training_goes_on_from_the_file(
            calls in prop::collection::vec(prop::collection::vec(0u64..9, 1..4), 1..8),
            paths_max in 1usize..6,
        ) {
            let (mut file, mut seed) = (None::<Vec<u8>>, 0);
            for call in &calls {
                let mut trainer = match &file {
                    None => Trainer::new(Geometry::new(IMAGE_BYTES, 4096).unwrap(), few(paths_max)),
                    Some(file) => Trainer::resume("m", &file[..], few(paths_max)).unwrap(),
                };
                for &task in call {
                    trainer.add(&session(seed, &[task])).unwrap();
                    seed += 1;
                }
                let (model, bytes) = trainer.finish_file();
                let read = Model::read("m", &bytes[..]).unwrap();
                prop_assert_eq!(read.paths(), model.paths());
                prop_assert_eq!(read.sequences(), model.sequences());
                prop_assert_eq!(read.popular(), model.popular());
                prop_assert_eq!(read.learnt().sessions, seed);
                prop_assert_eq!(model.paths().len(), paths_max.min(seed as usize));
                prop_assert!(model.paths().is_sorted_by_key(|p| p.age));
                file = Some(bytes);
            }
        }
    }

    #[test]
    fn every_touched_block_has_an_owner_and_no_other_has() {
        let sessions = [session(1, &[0, 1]), session(2, &[1, 2])];
        let (model, _) = train(&sessions, Limits::default());
        let touched: std::collections::BTreeSet<_> =
            sessions.iter().flat_map(|s| s.first_touches()).map(|t| t.block).collect();
        for block in 0..model.geometry().blocks() {
            assert_eq!(model.owner(Block(block)).is_some(), touched.contains(&Block(block)), "{block}");
        }
        assert_eq!(model.sequences().iter().map(|s| s.blocks as usize).sum::<usize>(), touched.len());
    }

    #[test]
    fn a_session_given_twice_is_one_path_and_is_new_again() {
        let (a, b) = (session(1, &[0]), session(2, &[1]));
        let (_, file) = train(&[a.clone(), b.clone()], Limits::default());
        let mut trainer = Trainer::resume("m", &file[..], Limits::default()).unwrap();
        trainer.add(&b).unwrap();
        let model = trainer.finish();
        assert_eq!(model.paths().iter().map(|p| p.age).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(model.learnt().sessions, 3);
        let block = task(1, 0);
        assert_eq!(model.places(model.owner(block).unwrap())[0].path, 0, "the newer one is the first");
    }

    #[test]
    fn old_sessions_make_room_but_a_rare_kind_stays() {
        // One session of task 5, then forty of task 0, each learnt by a call of its own.
        let (_, mut file) = train(&[session(1, &[5, 6])], few(4));
        for seed in 2..42 {
            let mut trainer = Trainer::resume("m", &file[..], few(4)).unwrap();
            trainer.add(&session(seed, &[0, 1])).unwrap();
            file = trainer.finish_file().1;
            let model = Model::read("m", &file[..]).unwrap();
            assert!(model.owner(task(0, 0)).is_some() && model.paths()[0].age == 0, "the newest is there");
            if seed == 9 {
                assert!(model.owner(task(5, 0)).is_some(), "eight sessions later, where four have room");
            }
        }
        assert!(Model::read("m", &file[..]).unwrap().owner(task(5, 0)).is_none(), "forty sessions later");
    }

    #[test]
    fn a_read_of_the_whole_disk_and_a_random_scan_make_nothing_popular() {
        let mut sessions: Vec<_> = (0..20).map(|seed| session(seed, &[seed % 5, (seed + 1) % 5])).collect();
        let clean = train(&sessions, Limits::default()).0;
        let geometry = clean.geometry();
        let access = |i: u64, offset, length| crate::session::Access {
            at: std::time::Duration::from_millis(i),
            op: crate::gate::Op::Read,
            offset,
            length,
            stalled: std::time::Duration::ZERO,
        };
        let whole = (0..geometry.size() >> 20).map(|i| access(i, i << 20, 1 << 20)).collect();
        // Steps by a large prime: every block it reads is one of its own.
        let scan = (0..2000).map(|i| access(i, (i * 7_368_787 % geometry.blocks()) * 4096, 4096)).collect();
        for accesses in [whole, scan] {
            sessions.push(Session { geometry, accesses, marks: Vec::new() });
        }
        let (model, file) = train(&sessions, Limits::default());
        assert_eq!(model.learnt().set_aside, 1, "the whole disk");
        let blocks = |m: &Model, id: SequenceId| m.sequence(id).runs.clone();
        let popular = |m: &Model| {
            let mut runs: Vec<_> = m.popular().iter().flat_map(|&id| blocks(m, id)).flat_map(|r| r.iter()).collect();
            runs.sort();
            runs
        };
        let own = popular(&clean);
        let strange = popular(&model).into_iter().filter(|block| own.binary_search(block).is_err()).count();
        assert_eq!(strange, 0, "popular because of poison");
        // Set aside is not forgotten: it waits in the record.
        let again = Trainer::resume("m", &file[..], Limits::default()).unwrap().finish();
        assert_eq!((again.paths().len(), again.learnt().set_aside), (21, 1));
    }

    #[test]
    fn what_was_learnt_of_an_older_version_moves_with_its_blocks() {
        let (old, file) = train(&[session(1, &[0]), session(2, &[1])], Limits::default());
        let larger = Geometry::new(IMAGE_BYTES + (1 << 20), 4096).unwrap();
        // All lies a MiB further on, but for task 1, which is gone.
        let gone = old.owner(task(1, 0)).map(|id| old.sequence(id).runs.clone()).unwrap();
        let place = |block: Block| {
            let lost = gone.iter().any(|run: &BlockRange| run.contains(block));
            (!lost).then_some(Block(block.0 + 256))
        };
        let moved = Trainer::resume_moved("m", &file[..], larger, &place, Limits::default()).unwrap().finish();
        assert_eq!((moved.geometry(), moved.learnt().sessions, moved.paths().len()), (larger, 2, 2));
        let owned = |model: &Model, block: Block| model.owner(block).is_some();
        for block in old.geometry().all().iter() {
            let stays = owned(&old, block) && place(block).is_some();
            assert_eq!(owned(&moved, Block(block.0 + 256)), stays, "{block:?}");
        }
        let none = Trainer::resume_moved("m", &file[..], larger, &|_| None, Limits::default()).unwrap().finish();
        assert_eq!((none.paths().len(), none.sequences().len()), (0, 0));
        let coarse = Geometry::new(IMAGE_BYTES, 8192).unwrap();
        let error = Trainer::resume_moved("m", &file[..], coarse, &Some, Limits::default()).unwrap_err().to_string();
        assert!(error.contains("blocks of 4096"), "{error}");
    }

    #[test]
    fn a_session_of_another_image_is_refused() {
        let mut trainer = Trainer::new(Geometry::new(IMAGE_BYTES + 4096, 4096).unwrap(), Limits::default());
        let error = trainer.add(&session(1, &[0])).unwrap_err().to_string();
        assert!(error.contains("cannot be learnt"), "{error}");
    }
}
