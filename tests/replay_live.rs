//! `vmstream replay --live`: the engine itself under a recorded guest, over HTTP on a shaped link.
//!
//! How long things take is printed and compared with virtual time by a wide factor only: this machine may be busy. The
//! guest checks every byte that it reads, so a replay that succeeds has shown that the contents are right.
#![cfg(feature = "tool")]

#[path = "support/traces.rs"]
mod traces;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vmstream::gate::Op;
use vmstream::replay::{Figures, Step, live};
use vmstream::source::pattern::PatternSource;

/// Live over virtual time. Below: time was lost in the figures. Above: something waited that should not have.
const FACTOR: std::ops::Range<f64> = 0.7..4.0;

fn session(directory: &Path, seed: u64, tasks: &[u64]) -> PathBuf {
    let path = directory.join(format!("{seed}.vmtrace"));
    std::fs::write(&path, traces::trace(seed, tasks)).unwrap();
    path
}

/// The tool, with a directory of its own for what is temporary.
fn vmstream(directory: &Path, arguments: &[&str]) -> Command {
    let temporary = directory.join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmstream"));
    command.args(arguments).env("TMPDIR", temporary).stdin(Stdio::null());
    command
}

fn left_behind(directory: &Path) -> usize {
    std::fs::read_dir(directory.join("tmp")).unwrap().count()
}

/// The figures of the live replay of one session.
fn replay(directory: &Path, options: &[&str], trace: &Path) -> Value {
    let json = directory.join("figures.json");
    let mut arguments = vec!["replay", "--live", "--rate", "50mbit", "--rtt", "10ms", "--think", "0.3"];
    arguments.extend(["--json", json.to_str().unwrap(), "--trace", trace.to_str().unwrap()]);
    arguments.extend(options);
    let output = vmstream(directory, &arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("live/virtual") && table.lines().count() == 3, "{table}");
    println!("{options:?}\n{table}");
    assert_eq!(left_behind(directory), 0);
    let figures: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    figures[0].clone()
}

#[test]
fn the_engine_does_what_virtual_time_says() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let trace = session(directory, 1, &[0, 1]);
    let model = directory.join("m.vmm");
    let others = [session(directory, 2, &[0, 1]), session(directory, 3, &[1, 0])];
    let learnt = vmstream(directory, &["train", "-o", model.to_str().unwrap()]).args(others).output().unwrap();
    assert!(learnt.status.success(), "{}", String::from_utf8_lossy(&learnt.stderr));

    let learnt = replay(directory, &["--model", model.to_str().unwrap()], &trace);
    let ahead = replay(directory, &["--policy", "readahead"], &trace);
    let none = replay(directory, &["--policy", "none"], &trace);
    for live in [&learnt, &ahead, &none] {
        let figure = |key: &str| live[key].as_f64().unwrap();
        let (total, stall) = (figure("total_s"), figure("stall_s"));
        assert!(total >= figure("guest_s") + stall - 1e-6, "the guest thinks, waits, or is late: {live}");
        assert!(FACTOR.contains(&figure("live_over_virtual")), "{live}");
        assert!((figure("live_over_virtual") - total / figure("virtual_total_s")).abs() < 1e-6);
        assert!(figure("bytes") >= figure("used_bytes") && figure("used_bytes") > 0.0, "{live}");
        assert!(figure("stalls") >= figure("stalls_over_100ms") && figure("requests") > 0.0);
    }
    // What was needed is the same whoever brings it; on demand alone it is all that comes.
    assert_eq!(learnt["used_bytes"], none["used_bytes"]);
    assert_eq!(none["bytes"], none["used_bytes"]);
    assert!(learnt["stalls"].as_u64() < none["stalls"].as_u64(), "{learnt} {none}");
}

#[test]
fn a_guest_lives_on_the_image_of_somebody_else() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let trace = session(directory, 1, &[0, 1]);
    let json = directory.join("figures.json");
    let on = |url: &str| {
        let arguments = ["replay", "--think", "0", "--json", json.to_str().unwrap(), "--option", "prefetch=none"];
        vmstream(directory, &arguments).args(["--on", url, "--trace", trace.to_str().unwrap()]).output().unwrap()
    };
    let large = on(&format!("pattern:{}", traces::IMAGE_BYTES));
    assert!(large.status.success(), "{}", String::from_utf8_lossy(&large.stderr));
    let figures: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(figures[0]["bytes"], figures[0]["used_bytes"]);
    assert!(figures[0]["used_bytes"].as_u64() > Some(0) && figures[0]["requests"].as_u64() > Some(0), "{figures}");
    let small = on("pattern:4K");
    assert_eq!(small.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&small.stderr).contains("outside the image of 4096 bytes"));
    assert_eq!(left_behind(directory), 0);
}

#[test]
fn a_signal_ends_it_and_nothing_stays() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let trace = session(directory, 1, &[0, 1]);
    // So slow that it would take minutes.
    let arguments = ["replay", "--live", "--rate", "200kbit", "--trace", trace.to_str().unwrap()];
    let mut child = vmstream(directory, &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while left_behind(directory) == 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "it does not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("0 of 1 sessions replayed"), "{said}");
    assert_eq!(left_behind(directory), 0);
}

/// A guest that reads, writes, discards, flushes and reads again, on an image of another seed than it expects if
/// `expected` is not 7.
fn guest(expected: u64) -> vmstream::Result<Figures> {
    let step = |op, offset, length| Step { think: Duration::from_micros(500), op, offset, length };
    let steps = [
        step(Op::Write, 4096, 8192),
        step(Op::Write, 100_000, 1000),
        step(Op::Flush, 0, 0),
        step(Op::Discard, 8192, 4096),
        step(Op::Read, 0, 131_072),
        step(Op::Read, 4096, 4096),
        step(Op::Read, (1 << 20) - 512, 512),
    ];
    let cache = tempfile::tempdir().unwrap();
    let options =
        ["source=pattern:1M,seed=7", "fill=off", "prefetch=none", &format!("cache={}", cache.path().display())];
    live::run(live::Setup {
        steps: &steps,
        options: &options.map(str::to_owned),
        image: live::Subject::MadeUp {
            contents: PatternSource::open(&format!("pattern:1M,seed={expected}"), None)?,
            foresight: None,
        },
        go_on: &mut |done| done < steps.len(),
    })
}

#[test]
fn the_guest_notices_wrong_bytes() {
    let figures = guest(7).unwrap();
    // The edge of a write, the rest of what is read but not written, and the image's last block.
    let needed = 4096 + (131_072 - 8192 - 4096) + 4096;
    assert_eq!((figures.steps, figures.used_bytes, figures.bytes), (7, needed, needed));
    assert_eq!(figures.stalls, 3);
    let error = guest(8).unwrap_err().to_string();
    assert!(error.contains("wrong byte at 0"), "{error}");
}
