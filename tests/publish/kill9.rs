//! A publisher that is killed at any moment leaves the old version or the new one, and nothing that stays for ever.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;

#[test]
fn a_reader_sees_the_old_or_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, site) = (dir.path().join("disk.img"), dir.path().join("site"));
    let version = |version: u64| image(&disk, 8 << 20, &[(version << 12, 3 << 20)]);
    version(0);
    publish(&disk, &site, &["--keep", "1"]);
    let mut roots = vec![see(&site, "disk").pointer.root];
    let (mut killed, mut ended) = (0, 0);
    for step in 0..16u64 {
        version(step + 1);
        // From the first instant on to well beyond the time that it takes.
        let mut child = Command::new(env!("CARGO_BIN_EXE_vmstream"))
            .args(["publish", text(&disk), "-o", text(&site)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_millis(step * step * 2);
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() >= deadline => {
                    child.kill().unwrap();
                    break child.wait().unwrap();
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let root = see(&site, "disk").pointer.root;
        if status.success() {
            ended += 1;
            assert!(!roots.contains(&root), "it said that the new version is there");
        } else {
            killed += 1;
        }
        roots.push(root);
    }
    assert!(killed > 0, "none of {ended} was killed");
    // Whatever they left is gone with the next one.
    version(99);
    publish(&disk, &site, &[]);
    see(&site, "disk");
    assert_eq!(shown(&site).len(), 3, "{:?}", shown(&site));
    assert_eq!(std::fs::read_dir(site.join(".vmstream/disk/new")).unwrap().count(), 0);
}
