//! `vmstream train`, `inspect` and `replay` from the outside, on made-up sessions.
#![cfg(feature = "tool")]

#[path = "support/traces.rs"]
mod traces;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Three sessions: two do the same work, the third something else as well.
const WORK: [(u64, &[u64]); 3] = [(1, &[0, 1]), (2, &[0, 1]), (3, &[1, 2])];

fn sessions(directory: &Path) -> Vec<PathBuf> {
    let write = |(seed, tasks): (u64, &[u64])| {
        let path = directory.join(format!("{seed}.vmtrace"));
        std::fs::write(&path, traces::trace(seed, tasks)).unwrap();
        path
    };
    WORK.map(write).to_vec()
}

fn vmstream(arguments: &[&str], files: &[PathBuf]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmstream")).args(arguments).args(files).output().unwrap()
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a command that must fail says.
fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn inspect(model: &Path) -> Value {
    let output = vmstream(&["inspect", "--json"], &[model.to_owned()]);
    serde_json::from_str(&succeeded(&output)).unwrap()
}

#[test]
fn a_model_is_made_and_learns_more() {
    let directory = tempfile::tempdir().unwrap();
    let sessions = sessions(directory.path());
    let model = directory.path().join("m.vmm");
    let output = ["train", "-o", model.to_str().unwrap()];
    let said = succeeded(&vmstream(&output, &sessions[..2]));
    assert!(said.contains("2 sessions learnt, 2 remembered"), "{said}");
    let two = inspect(&model);
    assert_eq!((&two["paths"], &two["size"]), (&2.into(), &traces::IMAGE_BYTES.into()));

    succeeded(&vmstream(&output, &sessions[2..]));
    let three = inspect(&model);
    assert_eq!((&three["sessions_learnt"], &three["paths"]), (&3.into(), &3.into()));
    assert!(three["blocks"].as_u64() > two["blocks"].as_u64(), "the third session did something new");
    // The start is in all three: popular, and before the tasks.
    let first = &three["popular"][0];
    assert_eq!(first["share"], 1.0);
    assert!(first["offset"].as_u64().unwrap() < traces::first_block(0) * 4096, "{first}");
    let support: Vec<_> = three["support"].as_array().unwrap().iter().map(|s| s["paths_max"].as_u64()).collect();
    assert_eq!(support, [Some(0), Some(1), Some(2), Some(4)]);
    assert!(three["transitions"][0]["paths"].as_u64() >= Some(2));

    succeeded(&vmstream(&["train", "--anew", "-o", model.to_str().unwrap()], &sessions[2..]));
    assert_eq!(inspect(&model)["sessions_learnt"], 1);
}

#[test]
fn the_order_of_the_sessions_does_not_show_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut sessions = sessions(directory.path());
    let made = |name: &str, sessions: &[PathBuf]| {
        let path = directory.path().join(name);
        succeeded(&vmstream(&["train", "-o", path.to_str().unwrap()], sessions));
        std::fs::read(path).unwrap()
    };
    let one = made("one", &sessions);
    sessions.reverse();
    assert_eq!(made("other", &sessions), one);
}

#[test]
fn parts_are_merged_in_any_order_with_models_and_sessions_alike() {
    let directory = tempfile::tempdir().unwrap();
    let sessions = sessions(directory.path());
    // One is remembered, so that what was not chosen counts.
    let made = |name: &str, merge: bool, files: &[&PathBuf]| {
        let path = directory.path().join(name);
        let files: Vec<_> = files.iter().map(|&file| file.clone()).collect();
        let mut arguments = vec!["train", "--remember", "1", "-o", path.to_str().unwrap()];
        arguments.extend(merge.then_some("--merge"));
        succeeded(&vmstream(&arguments, &files));
        path
    };
    let read = |path: &PathBuf| std::fs::read(path).unwrap();
    let [a, b, c] = &sessions[..] else { panic!("three sessions") };
    let at_once = read(&made("all", false, &[a, b, c]));
    let parts = [a, b, c].map(|session| made(&format!("{}.vmm", session.display()), false, &[session]));
    let [x, y, z] = &parts;
    assert_eq!(read(&made("flat", true, &[z, x, y])), at_once);
    let left = made("left", true, &[x, y]);
    let right = made("right", true, &[z, y]);
    assert_eq!(read(&made("left-deep", true, &[&left, z])), at_once);
    assert_eq!(read(&made("right-deep", true, &[x, &right])), at_once);
    // What lies there already is replaced, not merged.
    assert_eq!(read(&made("left-deep", true, &[c, &left])), at_once);
    let new = directory.path().join("new");
    let said = failed(&vmstream(&["train", "-o", new.to_str().unwrap()], std::slice::from_ref(x)));
    assert!(said.contains("1.vmtrace.vmm is a model, not a session: merge models with --merge"), "{said}");
    assert!(!new.exists());
}

/// Written before models had spares.
#[test]
fn a_model_of_version_1_is_read_as_ever() {
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/model/format-1.vmm");
    let told = inspect(&old);
    let figures = ["sessions_learnt", "paths", "blocks", "sequences"].map(|key| told[key].as_u64());
    assert_eq!(figures, [Some(3), Some(3), Some(116), Some(16)]);
    let directory = tempfile::tempdir().unwrap();
    let merged = directory.path().join("m.vmm");
    succeeded(&vmstream(&["train", "--merge", "-o", merged.to_str().unwrap()], &[old]));
    assert_eq!(inspect(&merged)["paths"], told["paths"]);
    assert_eq!(std::fs::read(merged).unwrap()[8], 2, "it is written as version 2");
}

#[test]
fn what_is_wrong_is_said_and_leaves_the_model_alone() {
    let directory = tempfile::tempdir().unwrap();
    let sessions = sessions(directory.path());
    let model = directory.path().join("m.vmm");
    let output = ["train", "-o", model.to_str().unwrap()];
    succeeded(&vmstream(&output, &sessions));
    let good = std::fs::read(&model).unwrap();

    let other = directory.path().join("other.vmtrace");
    std::fs::write(&other, "# vmtrace 1 size=8192 block=4096\n1 R 0 4096\n").unwrap();
    let said = failed(&vmstream(&output, &[sessions[0].clone(), other.clone()]));
    assert!(said.contains("other.vmtrace: a session of an image of 8192 bytes"), "{said}");
    let said = failed(&vmstream(&output, &[directory.path().join("none")]));
    assert!(said.contains("cannot read") && said.contains("none"), "{said}");
    assert_eq!(std::fs::read(&model).unwrap(), good);

    std::fs::write(&model, &good[..good.len() - 1]).unwrap();
    let said = failed(&vmstream(&output, &sessions));
    assert!(said.contains("m.vmm ends within its record"), "{said}");
    // Who only looks needs no record.
    assert_eq!(inspect(&model)["paths"], 3);
    let said = failed(&vmstream(&["inspect"], &[other]));
    assert!(said.contains("other.vmtrace is"), "{said}");
}

/// The figures of a replay by session.
fn replay(directory: &Path, options: &[&str], traces: &[PathBuf]) -> Vec<Value> {
    let json = directory.join("figures.json");
    let mut arguments = vec!["replay", "--json", json.to_str().unwrap()];
    arguments.extend(options);
    arguments.push("--trace");
    let table = succeeded(&vmstream(&arguments, traces));
    assert_eq!(table.lines().count(), traces.len() + 2, "{table}");
    serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
}

#[test]
fn a_replay_says_what_a_model_is_worth() {
    let directory = tempfile::tempdir().unwrap();
    let sessions = sessions(directory.path());
    let figure = |figures: &[Value], key: &str| figures[0][key].as_f64().unwrap();
    let run = |options: &[&str]| replay(directory.path(), options, &sessions[..1]);
    let [none, ahead] = [run(&["--policy", "none"]), run(&[])];
    // The same work was learnt from the second and the third session.
    let model = directory.path().join("m.vmm");
    succeeded(&vmstream(&["train", "-o", model.to_str().unwrap()], &sessions[1..]));
    let learnt = run(&["--model", model.to_str().unwrap()]);
    let totals = [&learnt, &ahead, &none].map(|figures| figure(figures, "total_s"));
    assert!(totals.is_sorted(), "with a model, without, on demand: {totals:?}");
    for figures in [&none, &ahead, &learnt] {
        assert!(figure(figures, "total_s") >= figure(figures, "oracle_total_s"));
        let waited = figure(figures, "total_s") - figure(figures, "guest_s");
        assert!((waited - figure(figures, "stall_s")).abs() < 1e-6, "{waited}");
        assert_eq!(figure(figures, "used_bytes") + figure(figures, "wasted_bytes"), figure(figures, "bytes"));
        assert!(figure(figures, "stalls") >= figure(figures, "stalls_over_100ms") && figure(figures, "requests") > 0.0);
    }
    assert_eq!((&learnt[0]["trace"], &learnt[0]["policy"]), (&"1".into(), &"planner".into()));
    assert!(figure(&run(&["--rate", "5mbit"]), "total_s") > figure(&ahead, "total_s"));
}

#[test]
fn leaving_one_out_is_learning_from_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let sessions = sessions(directory.path());
    let model = directory.path().join("m.vmm");
    succeeded(&vmstream(&["train", "-o", model.to_str().unwrap()], &sessions[1..]));
    for policy in ["planner", "fifo", "union"] {
        let out = replay(directory.path(), &["--policy", policy, "--leave-one-out"], &sessions);
        let options = ["--policy", policy, "--model", model.to_str().unwrap()];
        assert_eq!(out[0], replay(directory.path(), &options, &sessions[..1])[0], "{policy}");
    }
    // Sessions that are only learnt count like the others.
    let others: Vec<_> = sessions[1..].iter().map(|path| path.to_str().unwrap()).collect();
    let also = [&["--leave-one-out", "--also-learn"], &others[..]].concat();
    let all = replay(directory.path(), &["--leave-one-out"], &sessions);
    assert_eq!(replay(directory.path(), &also, &sessions[..1])[0], all[0]);
    assert_ne!(replay(directory.path(), &["--leave-one-out", "--remember", "1"], &sessions)[0], all[0]);
    let said = failed(&vmstream(&["replay", "--policy", "fifo", "--trace"], &sessions));
    assert!(said.contains("fifo plays back a model: give --model"), "{said}");
    let other = directory.path().join("other.vmtrace");
    std::fs::write(&other, "# vmtrace 1 size=8192 block=4096\n1 R 0 4096\n").unwrap();
    let said = failed(&vmstream(&["replay", "--model", model.to_str().unwrap(), "--trace"], &[other]));
    assert!(said.contains("model of another image"), "{said}");
}
