//! The mount is killed with SIGKILL, again and again, in the middle of everything; what it promised must hold.
//!
//! A round: mount the same cache, check that every sector that was ever written holds what was last flushed or
//! something written later, let four writers loose (in every fourth round fio as well), kill the mount after a random
//! number of their operations. After [`ROUNDS_PER_CACHE`] rounds the whole disk is checked and the cache begun anew,
//! so that kills meet it empty, filling and full. See [`ledger`] for what exactly may be found after a kill.
//!
//! The tests need FUSE and minutes, so `cargo test` leaves them out; `tests/system/kill9.sh` runs them.
//! `VMSTREAM_KILL9_ROUNDS` is the number of rounds, `VMSTREAM_KILL9_SEED` another sequence of operations, `VMSTREAM`
//! another build of the tool.

mod fio;
mod ledger;
mod rig;
mod stamp;
mod writer;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use fio::Region;
use rig::{Mount, Origin};
use stamp::{Generation, Random, SECTOR_BYTES};
use writer::{Buffer, Course, SECTORS_MAX, Writer};

/// Size of the image, in sectors: 64 MiB, which the origin's rate brings in about eight rounds.
const IMAGE_SECTORS: u64 = 64 * 2048;
/// Rounds after which a cache is checked as a whole and begun anew.
const ROUNDS_PER_CACHE: u64 = 20;
/// Sectors in a block of the cache.
const BLOCK_SECTORS: u64 = 8;
/// Most operations, of all writers together, between mount and kill.
const OPERATIONS_MAX: u64 = 600;
/// No operation takes so long on a living disk, however busy the machine is.
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);
/// Where fio works: beside the writers, before the last 8 MiB that nobody writes.
const FIO: Region = Region { sector: 48 * 2048, sectors: 8 * 2048 };

/// The writers. The two that use the page cache share a block, and so do the two that pass it by; between the pairs
/// there is a gap, because Linux makes no promise to two who write one page in different ways.
fn writers(seed: u64) -> Vec<Writer> {
    let regions = [(3, 20_485, false), (20_485, 40_963, false), (41_091, 61_501, true), (61_501, 81_917, true)];
    let new = |(n, (begin, end, direct))| Writer::new(begin..end, direct, seed * 8 + n);
    (0..).zip(regions).map(new).collect()
}

/// Writes the image that the origin publishes.
fn publish(path: &Path) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut bytes = [0; SECTOR_BYTES];
    for sector in 0..IMAGE_SECTORS {
        stamp::fill(sector, Generation::at_origin(sector), &mut bytes);
        file.write_all(&bytes)?;
    }
    file.into_inner()?.sync_all()
}

/// Reads `sectors` (at most [`SECTORS_MAX`]) from `begin` and settles each with the ledger of its writer.
fn settle(disk: &File, buffer: &mut Buffer, writers: &mut [Writer], begin: u64, sectors: u64) -> Result<(), String> {
    let bytes = buffer.sectors(sectors);
    disk.read_exact_at(bytes, begin * SECTOR_BYTES as u64)
        .map_err(|error| format!("read at sector {begin}: {error}"))?;
    for (sector, piece) in (begin..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
        let found = stamp::recognise(sector, piece);
        match writers.iter_mut().find(|writer| writer.region.contains(&sector)) {
            Some(writer) => writer.ledger.settle(sector, found)?,
            None if found == Some(Generation::at_origin(sector)) => {}
            None => return Err(format!("sector {sector}, which nobody wrote, holds {found:?}")),
        }
    }
    Ok(())
}

/// Checks the blocks that hold a written sector, and some others.
fn check_written(disk: &File, writers: &mut [Writer], random: &mut Random) -> Result<(), String> {
    let mut blocks: Vec<u64> =
        writers.iter().flat_map(|writer| writer.ledger.written()).map(|sector| sector / BLOCK_SECTORS).collect();
    // Few, so that the check itself does not fetch the image.
    let behind_fio = (FIO.sector + FIO.sectors) / BLOCK_SECTORS;
    blocks.extend((0..8).map(|_| behind_fio + random.below(IMAGE_SECTORS / BLOCK_SECTORS - behind_fio)));
    blocks.sort_unstable();
    blocks.dedup();
    let mut buffer = Buffer::new();
    for run in blocks.chunk_by(|a, b| a + 1 == *b) {
        for part in run.chunks((SECTORS_MAX / BLOCK_SECTORS) as usize) {
            settle(disk, &mut buffer, writers, part[0] * BLOCK_SECTORS, part.len() as u64 * BLOCK_SECTORS)?;
        }
    }
    Ok(())
}

/// Checks everything but fio's region.
fn check_all(disk: &File, writers: &mut [Writer]) -> Result<(), String> {
    let mut buffer = Buffer::new();
    for begin in (0..IMAGE_SECTORS).step_by(SECTORS_MAX as usize) {
        if !(FIO.sector..FIO.sector + FIO.sectors).contains(&begin) {
            settle(disk, &mut buffer, writers, begin, SECTORS_MAX)?;
        }
    }
    Ok(())
}

/// Lets the writers work until the kill, and brings them home.
fn work_and_kill(mount: &mut Mount, writers: &mut [Writer], beside: bool, random: &mut Random) -> Result<(), String> {
    let course = Course::default();
    let (progress, operations) = sync_channel(64);
    let disturber = beside.then(|| FIO.disturb(&mount.disk(), random.below(1 << 32)));
    let files: Vec<File> = writers.iter().map(|writer| mount.open(writer.direct)).collect();
    let mut outcome = std::thread::scope(|scope| {
        let (course, progress) = (&course, &progress);
        let at_work: Vec<_> = writers
            .iter_mut()
            .zip(&files)
            .map(|(writer, file)| scope.spawn(move || writer.work(file, course, progress)))
            .collect();
        let target = 1 + random.below(OPERATIONS_MAX);
        let mut idle = Ok(());
        for done in 0..target {
            // A writer that found something wrong has gone home already; its word comes with the others'.
            if at_work.iter().any(|writer| writer.is_finished()) {
                break;
            }
            if operations.recv_timeout(PROGRESS_LIMIT).is_err() {
                idle = Err(format!("nothing was done for {PROGRESS_LIMIT:?} after {done} operations"));
                break;
            }
        }
        course.killing.store(true, Ordering::SeqCst);
        mount.kill();
        course.over.store(true, Ordering::SeqCst);
        at_work
            .into_iter()
            .fold(idle, |sum, writer| sum.and(writer.join().map_err(|_| "a writer panicked".to_owned())?))
    });
    if let Some(child) = disturber {
        outcome = outcome.and(fio::judge(child));
    }
    outcome
}

/// The rounds of one cache. Answers how many there were.
fn one_cache(origin: &Origin, work: &Path, options: &[&str], seed: u64, rounds: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut writers = writers(seed);
    let url = origin.url("disk.img");
    let start = || Mount::start(&url, work, IMAGE_SECTORS * SECTOR_BYTES as u64, options);
    let (fio, mut fio_prepared) = (Region::usable(), false);
    let told = |what: &str, round: u64, outcome: Result<(), String>| {
        if let Err(text) = outcome {
            panic!("{what}, round {round} of seed {seed}: {text}");
        }
    };
    for round in 0..rounds {
        let mut mount = start();
        told("after a kill", round, check_written(&mount.open(false), &mut writers, &mut random));
        if fio_prepared {
            told("after a kill", round, FIO.verify(&mount.disk()));
        }
        let beside = fio && round % 4 == 3;
        if beside && !fio_prepared {
            told("before fio", round, FIO.prepare(&mount.disk()));
            fio_prepared = true;
        }
        told("at work", round, work_and_kill(&mut mount, &mut writers, beside, &mut random));
    }
    // Twice: what the first look found must still be there after a clean end.
    for _ in 0..2 {
        let mount = start();
        told("at the end", rounds, check_all(&mount.open(true), &mut writers));
        if fio_prepared {
            told("at the end", rounds, FIO.verify(&mount.disk()));
        }
        mount.stop();
    }
    rounds
}

/// All rounds, cache after cache.
fn torture(rate: &str, options: &[&str]) {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("not a number"));
    let (total, seed) = (number("VMSTREAM_KILL9_ROUNDS", 40), number("VMSTREAM_KILL9_SEED", 2006));
    let work = tempfile::tempdir().expect("cannot make a directory");
    let published = work.path().join("published");
    fs::create_dir(&published).expect("cannot make a directory");
    publish(&published.join("disk.img")).expect("cannot write the image");
    let origin = Origin::start(&published, work.path(), rate);
    let mut done = 0;
    while done < total {
        done += one_cache(&origin, work.path(), options, seed + done, ROUNDS_PER_CACHE.min(total - done));
        fs::remove_dir_all(work.path().join("cache")).expect("cannot remove the cache");
        println!("kill9: {done} of {total} rounds so far");
    }
    println!("kill9: {total} rounds, nothing wrong, nothing lost");
}

#[test]
#[ignore = "needs FUSE and minutes; tests/system/kill9.sh runs it"]
fn survives_kills() {
    torture("200mbit", &[]);
}

#[test]
#[ignore = "needs FUSE and minutes; tests/system/kill9.sh runs it"]
fn survives_kills_over_a_faulty_link() {
    torture("200mbit", &["fault=seed=7,error=5%,cut=2%,short=3%,delay=500us", "retry_min=5ms", "retry_max=50ms"]);
}
