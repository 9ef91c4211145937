//! What of the collected sessions is learnt. Pure.
//!
//! Anybody may send sessions, and what one client sends shall not decide what all others are served. Three rules stand
//! before those that a model has itself (whole-disk readers are set aside, weights halve with age, what one session of
//! many did is not popular):
//!
//! * *A share.* Of one client the newest sessions count, [`CLIENT_MAX`] at most, and no more than an eighth of all that are
//!   learnt, as long as that is more than [`CLIENT_MIN`]. A site with one client has nobody to protect from it.
//! * *A window.* The newest [`WINDOW`] sessions count, as many as a model remembers.
//! * *Support.* Once there are [`SUPPORT_CLIENTS`] clients, a block counts only when two of them touched it, or when the
//!   publisher's own model has it. So what a single one makes up is not learnt at all, in however many sessions; nor does
//!   the published model show what only one client has on its disk.
//!
//! Two addresses are two clients here. Who must be told apart more surely gets a token.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use vmstream::block::{Block, BlockRange};
use vmstream::gate::Op;
use vmstream::model::Model;
use vmstream::session::{Access, Session};

use super::history::Entry;

/// Most sessions of one client that are learnt.
const CLIENT_MAX: usize = 16;
/// So many of one client may be learnt whatever their share is.
const CLIENT_MIN: usize = 4;
/// One client gets one in so many of all that are learnt.
const SHARE: usize = 8;
/// Most sessions that are learnt: as many as a model remembers the paths of.
pub const WINDOW: usize = 256;
/// From so many clients on a block needs two of them. With fewer, two that do the same are too rare.
const SUPPORT_CLIENTS: usize = 4;
/// Blocks of a session that are looked at: as many as a model keeps of one session.
const SESSION_BLOCKS_MAX: usize = 128 << 10;
/// Blocks that are remembered while support is counted, at some 30 bytes each; clients share them evenly.
const BLOCKS_MAX: usize = 2 << 20;

/// The sessions to learn, the oldest first. `entries` are in order of time.
pub fn select(entries: &[Entry]) -> Vec<&Entry> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    entries.iter().for_each(|entry| *counts.entry(&entry.client).or_default() += 1);
    let each = quota(counts.values().copied());
    let mut taken: HashMap<&str, usize> = HashMap::new();
    let mut chosen: Vec<&Entry> = entries
        .iter()
        .rev()
        .filter(|entry| {
            let taken = taken.entry(&entry.client).or_default();
            *taken += 1;
            *taken <= each
        })
        .take(WINDOW)
        .collect();
    chosen.reverse();
    chosen
}

/// How many sessions of each client are learnt, where clients have sent so many each.
fn quota(counts: impl Iterator<Item = usize> + Clone) -> usize {
    let total = |each: usize| counts.clone().map(|count| count.min(each)).sum::<usize>();
    if counts.clone().nth(1).is_none() {
        return CLIENT_MAX;
    }
    (CLIENT_MIN + 1..=CLIENT_MAX).rev().find(|&each| each <= total(each) / SHARE).unwrap_or(CLIENT_MIN)
}

/// Which blocks have support.
#[derive(Debug, Default)]
pub struct Support {
    /// The one client that touched a block, or [`MANY`].
    touched: HashMap<Block, u32>,
    /// How many blocks of each client are in it.
    spent: HashMap<u32, usize>,
    budget: usize,
}

/// Not the number of a client.
const MANY: u32 = u32::MAX;

impl Support {
    /// Nothing is supported yet; `None` when there are too few clients to ask for support.
    pub fn among(clients: usize) -> Option<Self> {
        (clients >= SUPPORT_CLIENTS).then(|| Self { budget: BLOCKS_MAX / clients, ..Self::default() })
    }

    /// Counts a session of the client with this number.
    pub fn count(&mut self, client: u32, session: &Session) {
        let spent = self.spent.entry(client).or_default();
        for block in blocks(session) {
            match self.touched.get_mut(&block) {
                Some(known) if *known != client => *known = MANY,
                Some(_) => {}
                None if *spent < self.budget => {
                    *spent += 1;
                    self.touched.insert(block, client);
                }
                // Such a client has touched more than can be looked at: what nobody else did does not count anyhow.
                None => {}
            }
        }
    }

    /// What of a session is learnt: first touches of blocks with support, on the guest's own clock. `base` is the
    /// publisher's model.
    pub fn distil(&self, session: &Session, base: Option<&Model>) -> Session {
        let supported = |block: Block| {
            self.touched.get(&block) == Some(&MANY) || base.is_some_and(|model| model.owner(block).is_some())
        };
        let mut accesses: Vec<Access> = Vec::new();
        let mut left = SESSION_BLOCKS_MAX;
        for (at, range) in session.first_needs() {
            let mut run: Option<BlockRange> = None;
            for block in range.iter().take(left) {
                left -= 1;
                if supported(block) {
                    match &mut run {
                        Some(run) => run.end = Block(block.0 + 1),
                        None => run = Some(BlockRange::one(block)),
                    }
                } else if let Some(run) = run.take() {
                    accesses.push(read(session, at, run));
                }
            }
            accesses.extend(run.map(|run| read(session, at, run)));
            if left == 0 {
                break;
            }
        }
        Session { geometry: session.geometry, accesses, marks: Vec::new() }
    }
}

fn blocks(session: &Session) -> impl Iterator<Item = Block> {
    session.first_needs().flat_map(|(_, range)| range.iter()).take(SESSION_BLOCKS_MAX)
}

fn read(session: &Session, at: Duration, run: BlockRange) -> Access {
    let (offset, length) = (session.geometry.offset(run), session.geometry.length(run));
    Access { at, op: Op::Read, offset, length, stalled: Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use vmstream::block::Geometry;

    use super::*;

    fn entries(clients: &[(&str, usize)]) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (client, count) in clients {
            for n in 0..*count {
                let name = format!("20261122T{n:06}.000000Z-{client:a>12}-{n:016x}.vms");
                entries.push(Entry::parse(&name, 100).unwrap());
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    }

    fn counts(chosen: &[&Entry], client: &str) -> usize {
        chosen.iter().filter(|entry| entry.client.ends_with(client)).count()
    }

    #[test]
    fn one_client_gets_a_share_and_no_more() {
        let many: Vec<(String, usize)> = (0..20).map(|n| (format!("{n:03x}"), 1)).collect();
        let mut with: Vec<(&str, usize)> = many.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        with.push(("bad", 64));
        let entries = entries(&with);
        let chosen = select(&entries);
        assert_eq!((counts(&chosen, "bad"), chosen.len()), (4, 24));
        assert!(chosen.is_sorted_by_key(|entry| &entry.name));
        assert_eq!(chosen.last().unwrap().name, entries.last().unwrap().name, "the newest count");
    }

    #[test]
    fn the_share_grows_with_the_others() {
        assert_eq!(quota([64].into_iter()), 16, "nobody else is there");
        assert_eq!(quota([64, 64].into_iter()), 4);
        assert_eq!(quota([64; 8].into_iter()), 16);
        assert_eq!(quota([64, 9, 9, 9, 9, 9, 9, 9, 9].into_iter()), 10);
        assert_eq!(quota(std::iter::empty()), 16);
        let full = entries(&[("1", 64), ("2", 64), ("3", 64), ("4", 64), ("5", 64), ("6", 64), ("7", 64), ("8", 64)]);
        assert_eq!(select(&full).len(), 128);
    }

    fn session(blocks: &[u64]) -> Session {
        let geometry = Geometry::new(1 << 30, 4096).unwrap();
        let access = |(n, block): (u64, &u64)| Access {
            at: Duration::from_millis(n),
            op: Op::Read,
            offset: block * 4096,
            length: 4096,
            stalled: Duration::ZERO,
        };
        Session { geometry, accesses: (0..).zip(blocks).map(access).collect(), marks: Vec::new() }
    }

    #[test]
    fn what_only_one_client_touched_is_not_learnt() {
        assert!(Support::among(3).is_none());
        let mut support = Support::among(4).unwrap();
        for _ in 0..3 {
            support.count(0, &session(&[1, 2, 3, 9]));
        }
        support.count(1, &session(&[2, 3, 8]));
        let distilled = support.distil(&session(&[9, 2, 8, 3, 1]), None);
        assert_eq!(
            distilled,
            Session {
                accesses: vec![
                    read(&distilled, Duration::from_millis(1), BlockRange::one(Block(2))),
                    read(&distilled, Duration::from_millis(3), BlockRange::one(Block(3)))
                ],
                ..distilled.clone()
            }
        );
    }

    #[test]
    fn a_read_of_everything_costs_no_more_than_any_other() {
        let mut support = Support::among(4).unwrap();
        let mut whole = session(&[0]);
        whole.geometry = Geometry::new(1 << 44, 4096).unwrap();
        whole.accesses[0].length = 1 << 44;
        support.count(0, &whole);
        support.count(1, &whole);
        assert_eq!(support.touched.len(), SESSION_BLOCKS_MAX);
        assert_eq!(support.distil(&whole, None).accesses[0].length, (SESSION_BLOCKS_MAX as u64) << 12);
    }
}
