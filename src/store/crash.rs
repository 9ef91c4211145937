//! Crash tests: random sessions on a disk in memory, stopped before and after every step they take.

use super::cache::{Bound, bind};
use super::chain::Chain;
use super::header::Header;
use super::medium::{Folder, Medium, Names};
use super::memory::{Disk, Faults, Random};
use super::runs;
use crate::block::{BlockRange, Geometry};
use crate::error::Result;
use crate::source::Identity;

const BLOCKS: u64 = 20;
/// One sector: a block that is overwritten is old or new, as on a real disk.
const BLOCK_BYTES: u64 = 512;

fn names() -> Names {
    Names::of("disk".as_ref())
}

fn header(now_s: i64, salt: u64) -> Header {
    let identity = Identity { size: BLOCKS * BLOCK_BYTES, validator: Some("\"a\"".into()), mtime_s: None };
    Header::new(&identity, Geometry::new(identity.size, BLOCK_BYTES).unwrap(), "test", now_s, salt).unwrap()
}

fn open(disk: &Disk, salt: u64) -> Result<Bound<Disk>> {
    let found = Chain::open(disk, &names())?;
    bind(disk, &names(), found, header(salt as i64, salt))
}

/// The content of a block in its `version`th writing.
fn content(block: u64, version: u64) -> Vec<u8> {
    [block.to_le_bytes(), version.to_le_bytes()].concat().repeat(BLOCK_BYTES as usize / 16)
}

/// What must and may be true of one block.
#[derive(Clone, Copy, Default, Debug)]
struct Fate {
    /// The last version that somebody tried to write; 0 for none.
    latest: u64,
    /// The last version that was written, in this session if the block was absent when it began; 0 for none.
    written: u64,
    /// The last version that was synced.
    synced: u64,
    /// A record of it succeeded: every reopened journal must claim it.
    recorded: bool,
    /// A record of it was at least tried: a journal may claim it.
    tried: bool,
}

#[derive(Clone)]
struct Model {
    fates: [Fate; BLOCKS as usize],
    versions: u64,
    random: Random,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self { fates: [Fate::default(); BLOCKS as usize], versions: 0, random: Random(seed) }
    }

    /// A session of random steps that ends early when the disk stops or a failure makes it hopeless. What the engine
    /// may not do is not done here either: recording what was not synced, or anything after a failed sync.
    fn session(&mut self, disk: &Disk, steps: u64) {
        let salt = self.random.next();
        let Ok(bound) = open(disk, salt) else { return };
        let Bound { image, mut chain, runs } = bound;
        self.adopt(&runs);
        for _ in 0..steps {
            match self.random.below(10) {
                0..=3 => {
                    let start = self.random.below(BLOCKS);
                    let end = (start + 1 + self.random.below(4)).min(BLOCKS);
                    for block in start..end {
                        self.versions += 1;
                        self.fates[block as usize].latest = self.versions;
                        if image.write_at(block * BLOCK_BYTES, &content(block, self.versions)).is_err() {
                            return;
                        }
                        self.fates[block as usize].written = self.versions;
                    }
                }
                4..=5 => {
                    if image.sync().is_err() {
                        return;
                    }
                    self.fates.iter_mut().for_each(|fate| fate.synced = fate.written);
                }
                6..=8 => {
                    let mut chosen = Vec::new();
                    for (block, fate) in self.fates.iter_mut().enumerate() {
                        if fate.synced > 0 && (!fate.recorded || self.random.one_in(8)) && !self.random.one_in(4) {
                            fate.tried = true;
                            chosen.push(BlockRange::new(block as u64, block as u64 + 1));
                        }
                    }
                    if chain.append(&chosen).is_ok() {
                        chosen.iter().for_each(|run| self.fates[run.start.0 as usize].recorded = true);
                    }
                }
                _ => {
                    let all = self.fates.iter().enumerate().filter(|(_, fate)| fate.recorded);
                    let all = all.map(|(block, _)| BlockRange::new(block as u64, block as u64 + 1));
                    let _ = chain.compact(all);
                }
            }
            if disk.stopped() {
                return;
            }
        }
    }

    /// Checks what a reopened journal claims; from now on all of it counts as recorded.
    fn adopt(&mut self, claimed: &[BlockRange]) {
        for (block, fate) in self.fates.iter_mut().enumerate() {
            let claimed = claimed.iter().any(|run| run.start.0 <= block as u64 && (block as u64) < run.end.0);
            assert!(claimed || !fate.recorded, "block {block} was recorded and is forgotten: {fate:?}");
            assert!(!claimed || fate.tried, "block {block} is claimed and was never recorded: {fate:?}");
            fate.recorded = claimed;
            if !claimed {
                (fate.written, fate.synced) = (0, 0);
            }
        }
    }

    /// Checks a disk after a power failure, and goes on from what is there.
    fn check_after_power_failure(&mut self, disk: &Disk) {
        let salt = self.random.next();
        let bound = open(disk, salt).unwrap_or_else(|e| panic!("cannot reopen: {e}"));
        self.adopt(&bound.runs);
        let image = disk.content("disk").unwrap();
        assert_eq!(image.len() as u64, BLOCKS * BLOCK_BYTES);
        for (block, fate) in self.fates.iter_mut().enumerate() {
            let found = &image[block * BLOCK_BYTES as usize..][..BLOCK_BYTES as usize];
            let version = u64::from_le_bytes(found[8..16].try_into().unwrap());
            if fate.recorded {
                let whole = found == content(block as u64, version);
                assert!(whole, "block {block} is claimed and torn: {fate:?}");
                assert!((fate.synced..=fate.latest).contains(&version), "block {block}: {version}, {fate:?}");
                (fate.latest, fate.written, fate.synced) = (version, version, version);
            }
        }
    }
}

/// Runs sessions of `seed` and stops them at every moment; then tries `ways` power failures, and a kill followed by
/// more sessions and a power failure.
fn stop_everywhere(seed: u64, steps: u64, faults: Faults, ways: u64) -> u64 {
    let run = |stop_at: Option<u64>| {
        let disk = Disk::new(seed, faults);
        stop_at.inspect(|moment| disk.stop_at(*moment));
        let mut model = Model::new(seed);
        for _ in 0..2 {
            model.session(&disk, steps);
        }
        (disk, model)
    };
    let moments = run(None).0.moments();
    for moment in 0..moments {
        let (disk, model) = run(Some(moment));
        assert!(disk.stopped());
        for way in 0..ways {
            let seed = seed ^ (moment << 20) ^ (way << 40);
            let (mut disk, mut model) = (disk.clone(), model.clone());
            model.random = Random(seed);
            if way % 2 == 1 {
                disk = disk.after_kill();
                disk.stop_at(disk.moments() + model.random.below(80));
                model.session(&disk, steps / 2);
            }
            for again in 0..2 {
                disk = disk.after_power_failure(seed ^ again);
                model.check_after_power_failure(&disk);
                model.session(&disk, steps / 2);
            }
        }
    }
    moments
}

#[test]
fn a_stop_at_any_moment_loses_no_record_and_claims_nothing_false() {
    let moments: u64 = (0..16).map(|seed| stop_everywhere(seed, 20, Faults::default(), 4)).sum();
    assert!(moments > 2000, "too few moments to mean anything: {moments}");
}

#[test]
fn so_it_is_on_a_disk_that_is_often_full_and_sometimes_fails() {
    for seed in 100..116 {
        stop_everywhere(seed, 20, Faults { full_one_in: 4, sync_one_in: 15 }, 4);
    }
}

#[test]
fn opening_may_be_stopped_twice_at_any_moments() {
    let fresh = |stop_at: Option<u64>| {
        let disk = Disk::new(1, Faults::default());
        stop_at.inspect(|moment| disk.stop_at(*moment));
        let _ = open(&disk, 5);
        disk
    };
    let moments = fresh(None).moments();
    assert!(moments > 15);
    for first in 0..moments {
        for second in 0..=moments {
            let disk = fresh(Some(first)).after_kill();
            disk.stop_at(disk.moments() + second);
            let _ = open(&disk, 6);
            for seed in 0..20 {
                let disk = disk.after_power_failure(seed);
                let bound = open(&disk, 7).unwrap_or_else(|e| panic!("stops {first} and {second}, seed {seed}: {e}"));
                assert_eq!(bound.runs, []);
            }
        }
    }
}

#[test]
fn a_record_that_could_not_be_synced_is_not_believed_by_the_next_session() {
    let mut failures = 0;
    for seed in 0..100 {
        let disk = Disk::new(seed, Faults::default());
        let mut bound = open(&disk, 5).unwrap();
        disk.set_faults(Faults { full_one_in: 0, sync_one_in: 2 });
        let failed = (0..BLOCKS).any(|block| bound.chain.append(&[BlockRange::new(block, block + 1)]).is_err());
        failures += u64::from(failed);
        disk.set_faults(Faults::default());
        let disk = disk.after_kill();
        let believed = open(&disk, 6).unwrap().runs;
        // What the page cache showed must be on the disk as well.
        assert_eq!(open(&disk.after_power_failure(seed), 7).unwrap().runs, believed, "seed {seed}");
    }
    assert!(failures > 90);
}

#[test]
fn finishing_leaves_a_journal_that_says_all_or_an_image_that_has_all() {
    let whole: Vec<u8> = (0..BLOCKS).flat_map(|block| content(block, 1)).collect();
    let run = |stop_at: Option<u64>| {
        let disk = Disk::new(1, Faults::default());
        let Bound { image, mut chain, .. } = open(&disk, 5).unwrap();
        image.write_at(0, &whole).unwrap();
        image.sync().unwrap();
        chain.append(&[BlockRange::new(0, BLOCKS)]).unwrap();
        let before = disk.moments();
        stop_at.inspect(|moment| disk.stop_at(before + moment));
        let _ = chain.remove();
        (disk.moments() - before, disk)
    };
    let moments = run(None).0;
    assert!(moments >= 4);
    for moment in 0..moments {
        for seed in 0..20 {
            let disk = run(Some(moment)).1.after_power_failure(seed);
            assert_eq!(disk.content("disk").unwrap(), whole);
            if let Some((_, runs)) = Chain::open(&disk, &names()).unwrap() {
                assert_eq!(runs, [BlockRange::new(0, BLOCKS)]);
            }
        }
    }
}

#[test]
fn an_incomplete_image_keeps_its_journal() {
    let disk = Disk::new(1, Faults::default());
    let Bound { mut chain, .. } = open(&disk, 5).unwrap();
    chain.append(&[BlockRange::new(0, BLOCKS - 1)]).unwrap();
    let text = chain.remove().unwrap_err().to_string();
    assert!(text.contains("19 of 20"), "{text}");
    assert!(disk.content("disk.vmj").is_some());
}

/// A journal of many records, and the runs that each prefix of it claims.
fn journal() -> (Vec<u8>, Vec<(usize, Vec<BlockRange>)>) {
    let disk = Disk::new(1, Faults::default());
    let Bound { mut chain, .. } = open(&disk, 77).unwrap();
    let length = || disk.content("disk.vmj").unwrap().len();
    let (mut claimed, mut prefixes) = (Vec::new(), vec![(length(), Vec::new())]);
    for start in [3, 9, 0, 15, 4] {
        let runs = [BlockRange::new(start, start + 2), BlockRange::new(start + 3, start + 4)];
        chain.append(&runs).unwrap();
        claimed.extend(runs);
        runs::merge(&mut claimed);
        prefixes.push((length(), claimed.clone()));
    }
    (disk.content("disk.vmj").unwrap(), prefixes)
}

fn claims(journal: &[u8]) -> Result<Vec<BlockRange>> {
    let disk = Disk::new(1, Faults::default());
    disk.put("disk.vmj", journal);
    disk.put("disk", &[0; (BLOCKS * BLOCK_BYTES) as usize]);
    open(&disk, 1).map(|bound| bound.runs)
}

#[test]
fn a_journal_cut_anywhere_claims_its_whole_records() {
    let (bytes, prefixes) = journal();
    for length in 0..=bytes.len() {
        match prefixes.iter().rev().find(|(end, _)| *end <= length) {
            Some((_, wanted)) => assert_eq!(&claims(&bytes[..length]).unwrap(), wanted, "{length}"),
            None => drop(claims(&bytes[..length]).expect_err("half a header")),
        }
    }
}

#[test]
fn a_bit_flipped_anywhere_is_an_error_or_ends_what_is_claimed() {
    let (bytes, prefixes) = journal();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            match prefixes.iter().rev().find(|(end, _)| *end <= at) {
                Some((_, wanted)) => assert_eq!(&claims(&bytes).unwrap(), wanted, "byte {at} bit {bit}"),
                None => drop(claims(&bytes).expect_err("a damaged header")),
            }
        }
    }
}

#[test]
fn a_failed_append_changes_nothing_and_may_be_repeated() {
    let disk = Disk::new(3, Faults { full_one_in: 2, sync_one_in: 0 });
    let mut bound = (0..100).find_map(|_| open(&disk, 5).ok()).expect("once in a while there is space");
    let (mut wanted, mut failures) = (Vec::new(), 0);
    for block in 0..BLOCKS {
        let runs = [BlockRange::new(block, block + 1)];
        while let Err(error) = bound.chain.append(&runs) {
            assert!(error.is_full());
            failures += 1;
            let (_, claimed) = Chain::open(&disk, &names()).unwrap().unwrap();
            assert_eq!(claimed, wanted, "a failed append is seen");
        }
        wanted.extend(runs);
        runs::merge(&mut wanted);
    }
    assert!(failures > 5);
    assert_eq!(open(&disk.after_power_failure(1), 6).unwrap().runs, [BlockRange::new(0, BLOCKS)]);
}

#[test]
fn after_a_failed_sync_nothing_is_recorded_any_more() {
    let disk = Disk::new(1, Faults { full_one_in: 0, sync_one_in: 6 });
    let mut bound = (0..100).find_map(|_| open(&disk, 5).ok()).expect("most syncs succeed");
    let run = [BlockRange::new(0, 1)];
    let first = (0..1000).find_map(|_| bound.chain.append(&run).err()).expect("some sync fails").to_string();
    for _ in 0..20 {
        let later = bound.chain.append(&[BlockRange::new(1, 2)]).unwrap_err();
        assert!(later.to_string().contains(&first), "{later}");
        assert!(bound.chain.compact(run.into_iter()).is_err() && !bound.chain.wants_compaction());
    }
}

#[test]
fn a_time_the_origin_does_not_tell_is_chosen_once() {
    let disk = Disk::new(1, Faults::default());
    assert_eq!(open(&disk, 5).unwrap().chain.header().mtime_s, 5);
    let mut bound = open(&disk, 99).unwrap();
    bound.chain.compact(bound.runs.into_iter()).unwrap();
    let (chain, _) = Chain::open(&disk, &names()).unwrap().unwrap();
    assert_eq!((chain.header().mtime_s, chain.header().pinned.identity.mtime_s), (5, None));
}

#[test]
fn a_journal_grows_to_a_bound_and_is_rewritten() {
    let disk = Disk::new(1, Faults::default());
    let Bound { mut chain, .. } = open(&disk, 5).unwrap();
    let all = BlockRange::new(0, BLOCKS);
    let mut appended = 0;
    while !chain.wants_compaction() {
        chain.append(&[all]).unwrap();
        appended += 1;
    }
    assert!(appended > 1000);
    // A session that ended without compacting leaves that to the next one.
    let before = disk.content("disk.vmj").unwrap().len();
    assert_eq!(open(&disk, 6).unwrap().runs, [all]);
    let after = disk.content("disk.vmj").unwrap().len();
    assert!(after < 200 && before > 100_000, "{before} bytes became {after}");
    assert!(disk.open("disk.vmj.new".as_ref()).unwrap().is_none());
}
