//! Merging: models learnt beside each other, by any number of machines, become one.
//!
//! Two ways lead on from a file. [`Trainer::resume`] learns what came *later*: what the file remembers grows older and
//! competes with what is new. [`Trainer::merge`] brings together what was learnt *beside* each other, and then the result
//! must not depend on who learnt what, or on which parts came together first. Choosing by likeness could not give that:
//! what is like another one depends on which others are there. So the file also keeps what was held and not chosen, and
//! the place in the order from which on nothing was held. Merging unites the held, takes the first in order out of them,
//! and nothing from the earliest of these places on: just what one trainer would hold that had been given all sessions. The
//! choice by likeness is made anew from that.

use std::io::Read;

use super::format::{self, Evidence};
use super::train::{Limits, Trainer};
use crate::error::{Error, Result, errno};

impl Trainer {
    /// A trainer that begins with a model file as one part of several, see [`Trainer::merge`]. Errors: those of
    /// [`Model::load`](super::Model::load); `name` is for them.
    pub fn from_part(name: &str, model: impl Read, limits: Limits) -> Result<Self> {
        let part = format::read_evidence(name, model)?;
        let mut trainer = Self::new(part.geometry, limits);
        trainer.take(part);
        Ok(trainer)
    }

    /// Learns all that the trainer of a model file was given, as old as it is there: as if its sessions had been added
    /// here.
    ///
    /// The order of merging does not show in the model, nor does what was merged with what before, nor whether sessions
    /// came in a part or by [`Trainer::add`]; but all trainers must have had the same limits. (A part that was made by
    /// going on from a model has made a choice already, and counts as what it chose.)
    ///
    /// Errors: those of [`Model::load`](super::Model::load), for which `name` is; `EINVAL` for a model of another image, and on a trainer that
    /// [`Trainer::resume`] made, where it would have to be said which sessions are older.
    pub fn merge(&mut self, name: &str, model: impl Read) -> Result<()> {
        let part = format::read_evidence(name, model)?;
        if self.resumed {
            let text = format!("{name} cannot be merged into a model that learns more: merge first, then go on");
            return Err(Error::new(errno::EINVAL, text));
        }
        self.check(part.geometry, "a model").map_err(|e| Error::new(e.errno(), format!("{name}: {e}")))?;
        self.take(part);
        Ok(())
    }

    fn take(&mut self, part: Evidence) {
        self.before = self.before.saturating_add(part.learnt.sessions);
        if let Some((age, identity)) = part.left {
            self.leave((u64::from(age), identity));
        }
        for recording in part.recordings.into_iter().chain(part.spares) {
            let key = (u64::from(recording.age), recording.identity());
            self.unite(key, recording);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::block::Geometry;
    use crate::model::testing::{IMAGE_BYTES, session};
    use crate::session::Session;

    fn train(sessions: &[Session], limits: Limits) -> Vec<u8> {
        let mut trainer = Trainer::new(sessions[0].geometry, limits);
        sessions.iter().for_each(|s| trainer.add(s).unwrap());
        trainer.finish_file().1
    }

    fn merge(parts: &[&[u8]], limits: Limits) -> Vec<u8> {
        let Some((first, others)) = parts.split_first() else { return Vec::new() };
        let mut trainer = Trainer::from_part("first", *first, limits).unwrap();
        others.iter().for_each(|part| trainer.merge("other", *part).unwrap());
        trainer.finish_file().1
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_is_merged_with_what_does_not_matter(
            // What each session did, and the part in which it is learnt; a session in two parts now and then.
            sessions in prop::collection::vec((0u64..9, prop::collection::vec(0u64..6, 1..4), 0usize..4), 1..16),
            joins in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 3),
            paths_max in 1usize..6,
            touches_max in 100u32..2000,
        ) {
            let limits = Limits { paths_max, touches_max };
            let all: Vec<_> = sessions.iter().map(|(seed, tasks, part)| (session(*seed, tasks), *part)).collect();
            let sessions: Vec<_> = all.iter().map(|(session, _)| session.clone()).collect();
            let at_once = train(&sessions, limits);
            let mut parts: Vec<Vec<u8>> = (0..4)
                .map(|part| all.iter().filter(|(_, p)| *p == part).map(|(s, _)| s.clone()).collect::<Vec<_>>())
                .filter(|part| !part.is_empty())
                .map(|part| train(&part, limits))
                .collect();
            // Any two of those that are left become one, until one is left.
            for (a, b) in joins {
                if parts.len() > 1 {
                    let first = parts.swap_remove(a.index(parts.len()));
                    let second = parts.swap_remove(b.index(parts.len()));
                    parts.push(merge(&[&first, &second], limits));
                }
            }
            prop_assert_eq!(&parts[0], &at_once);
            prop_assert_eq!(merge(&[&at_once], limits), at_once);
        }

        /// The same with parts that went on from models of their own, where sessions have ages.
        #[test]
        fn aged_parts_are_merged_in_any_order(
            calls in prop::collection::vec((0usize..3, 0u64..9, 0u64..6), 3..14),
            paths_max in 1usize..5,
            touches_max in 100u32..2000,
        ) {
            let limits = Limits { paths_max, touches_max };
            let mut files: [Option<Vec<u8>>; 3] = Default::default();
            for (part, seed, task) in calls {
                let session = session(seed, &[task]);
                let mut trainer = match &files[part] {
                    None => Trainer::new(session.geometry, limits),
                    Some(file) => Trainer::resume("m", &file[..], limits).unwrap(),
                };
                trainer.add(&session).unwrap();
                files[part] = Some(trainer.finish_file().1);
            }
            let parts: Vec<&[u8]> = files.iter().flatten().map(|file| &file[..]).collect();
            let forward = merge(&parts, limits);
            let mut backward = parts.clone();
            backward.reverse();
            prop_assert_eq!(&merge(&backward, limits), &forward);
            let rest = merge(&parts[1..], limits);
            if parts.len() > 1 {
                prop_assert_eq!(&merge(&[&rest, parts[0]], limits), &forward);
            }
        }
    }

    #[test]
    fn a_part_of_another_image_and_one_that_is_older_are_refused() {
        let file = train(&[session(1, &[0])], Limits::default());
        let mut resumed = Trainer::resume("m", &file[..], Limits::default()).unwrap();
        let error = resumed.merge("part.vmm", &file[..]).unwrap_err().to_string();
        assert!(error.starts_with("part.vmm cannot be merged into a model that learns more"), "{error}");
        let mut other = Trainer::new(Geometry::new(IMAGE_BYTES + 4096, 4096).unwrap(), Limits::default());
        let error = other.merge("part.vmm", &file[..]).unwrap_err().to_string();
        assert!(error.starts_with("part.vmm: a model of an image of"), "{error}");
    }
}
