//! Two processes and one cache: the lock, and sessions that are killed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use vmstream::error::errno;
use vmstream::store::inspect;

use super::{BLOCK, begin, content, range, refused};

/// Names the cache to a child process; its absence tells a child's test that it is an ordinary run.
const CHILD_CACHE: &str = "VMSTREAM_TEST_CACHE";

/// Runs one of the tests below in another process.
fn child(test: &str, cache: &Path) -> (Child, impl Iterator<Item = String>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", test]).env(CHILD_CACHE, cache);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(std::io::Result::ok);
    (child, lines)
}

/// Writes, syncs and records block after block until it is killed; says each block that is recorded.
#[test]
#[ignore = "a child process of the tests below"]
fn child_records_until_killed() {
    let cache = PathBuf::from(std::env::var_os(CHILD_CACHE).expect("only run by another test"));
    let (store, mut journal, present) = begin(&cache).unwrap();
    let mut claimed: Vec<bool> =
        (0..64).map(|block| present.iter().any(|run| run.iter().any(|b| b.0 == block))).collect();
    println!("ready");
    for version in 1.. {
        for block in 0..64 {
            store.write(block * BLOCK, &content(block, version)).unwrap();
            store.sync().unwrap();
            journal.record(&[range(block, block + 1)]).unwrap();
            claimed[block as usize] = true;
            println!("recorded {block} {version}");
            if block % 16 == 15 {
                journal
                    .compact((0..64).filter(|block| claimed[*block as usize]).map(|block| range(block, block + 1)))
                    .unwrap();
            }
        }
    }
}

#[test]
fn another_process_that_has_the_cache_is_named_until_it_is_killed() {
    let root = tempfile::tempdir().unwrap();
    let (mut holder, mut lines) = child("processes::child_records_until_killed", root.path());
    lines.find(|line| line.ends_with("ready")).expect("the child gets the cache");
    let error = refused(begin(root.path()));
    let summary = inspect(root.path());
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(error.errno(), errno::EBUSY);
    assert!(error.to_string().contains(&format!("(pid {})", holder.id())), "{error}");
    assert_eq!(summary.unwrap().locked_by.unwrap().pid, holder.id());
    // The text of the dead one is still there, and misleads nobody.
    assert!(root.path().join("disk.vmj.lock").exists());
    assert_eq!(inspect(root.path()).unwrap().locked_by, None);
    begin(root.path()).unwrap();
}

#[test]
fn a_kill_at_any_time_loses_no_record() {
    let root = tempfile::tempdir().unwrap();
    let mut recorded = [0u64; 64];
    for round in 0..12u64 {
        let (mut writer, mut lines) = child("processes::child_records_until_killed", root.path());
        lines.find(|line| line.ends_with("ready")).expect("the child gets the cache");
        let mut note = |line: String| {
            let mut words = line.split(' ');
            if words.next() == Some("recorded") {
                let block: usize = words.next().unwrap().parse().unwrap();
                recorded[block] = words.next().unwrap().parse().unwrap();
            }
        };
        lines.by_ref().take(5 + 7 * round as usize).for_each(&mut note);
        writer.kill().unwrap();
        writer.wait().unwrap();
        lines.for_each(&mut note);

        let (store, _journal, present) = begin(root.path()).unwrap();
        for block in 0..64 {
            let claimed = present.iter().any(|run| run.start.0 <= block && block < run.end.0);
            assert!(claimed || recorded[block as usize] == 0, "round {round}: block {block} is forgotten");
            if claimed {
                let mut bytes = vec![0; BLOCK as usize];
                store.read(block * BLOCK, &mut bytes).unwrap();
                let version = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
                assert!(bytes == content(block, version), "round {round}: block {block} is wrong");
            }
        }
    }
    assert!(recorded.iter().filter(|version| **version > 0).count() > 30);
}
