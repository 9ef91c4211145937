//! What each sector of one writer's region may hold after a crash.
//!
//! For a sector the ledger knows the content that was last flushed and every content written since, in order. While
//! the mount lives the sector reads as the last of these. After a kill it may read as the flushed one or as any
//! later one - a disk may keep what it was not told to flush - but never as an older one, and never as a mixture.
//! What was then seen is what the disk holds from there on.

use std::collections::BTreeMap;

use crate::stamp::Generation;

/// The contents one sector may have.
struct Sector {
    flushed: Generation,
    since: Vec<Generation>,
}

impl Sector {
    fn current(&self) -> Generation {
        self.since.last().copied().unwrap_or(self.flushed)
    }
}

/// The ledger of one region. Sectors that are not in it were never written and hold what the origin holds.
#[derive(Default)]
pub struct Ledger {
    sectors: BTreeMap<u64, Sector>,
    /// Sectors with contents that were not flushed.
    unflushed: Vec<u64>,
}

impl Ledger {
    /// A write or discard is about to begin: from here on a crash may leave it in the sector or not.
    pub fn begin(&mut self, sector: u64, generation: Generation) {
        let entry = self
            .sectors
            .entry(sector)
            .or_insert_with(|| Sector { flushed: Generation::at_origin(sector), since: Vec::new() });
        entry.since.push(generation);
        self.unflushed.push(sector);
    }

    /// All that was begun before is flushed: the disk has promised to keep it.
    pub fn flushed(&mut self) {
        for sector in self.unflushed.drain(..) {
            if let Some(entry) = self.sectors.get_mut(&sector) {
                entry.flushed = entry.current();
                entry.since.clear();
            }
        }
    }

    /// What the sector must read as while nothing has crashed and its last write has returned.
    pub fn current(&self, sector: u64) -> Generation {
        self.sectors.get(&sector).map_or_else(|| Generation::at_origin(sector), Sector::current)
    }

    /// The sectors that were ever written.
    pub fn written(&self) -> impl Iterator<Item = u64> {
        self.sectors.keys().copied()
    }

    /// After a crash the sector was found to hold `found`. Says what it may hold when that is not among it.
    pub fn settle(&mut self, sector: u64, found: Option<Generation>) -> Result<(), String> {
        let fresh = Sector { flushed: Generation::at_origin(sector), since: Vec::new() };
        let entry = self.sectors.get_mut(&sector);
        let allowed = entry.as_deref().unwrap_or(&fresh);
        let found = match found {
            Some(found) if found == allowed.flushed || allowed.since.contains(&found) => found,
            wrong => {
                let text = wrong.map_or_else(|| "a mixture or foreign bytes".to_owned(), |g| format!("{g:?}"));
                return Err(format!(
                    "sector {sector} holds {text}; flushed was {:?}, written since {:?}",
                    allowed.flushed, allowed.since
                ));
            }
        };
        if let Some(entry) = entry {
            *entry = Sector { flushed: found, since: Vec::new() };
        }
        Ok(())
    }
}

#[test]
fn a_lost_flush_is_noticed_and_a_lost_tail_is_not() {
    let g = Generation::written;
    let mut ledger = Ledger::default();
    ledger.begin(5, g(1));
    ledger.begin(5, g(2));
    ledger.flushed();
    ledger.begin(5, g(3));
    ledger.begin(5, g(4));
    assert_eq!(ledger.current(5), g(4));
    assert!(ledger.settle(5, Some(g(1))).is_err(), "older than the flush");
    assert!(ledger.settle(5, Some(Generation::at_origin(5))).is_err(), "written over by the origin");
    assert!(ledger.settle(5, None).is_err());
    assert_eq!(ledger.settle(5, Some(g(3))), Ok(()));
    assert!(ledger.settle(5, Some(g(4))).is_err(), "came back after it was seen to be lost");
    assert!(ledger.settle(6, Some(g(1))).is_err(), "never written");
    assert_eq!(ledger.settle(6, Some(Generation::at_origin(6))), Ok(()));
}
