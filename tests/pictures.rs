//! The pictures of `vmstream inspect` and `vmstream replay` from the outside, on made-up sessions.
#![cfg(feature = "tool")]

#[path = "support/traces.rs"]
mod traces;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use roxmltree::Document;

/// A session in which the guest does not do anything that the origin would have to serve.
const WRITES_ONLY: &str = "# vmtrace 1 size=1073741824 block=4096\n5 W 4096 8192\n";

fn vmstream(arguments: &[&str], files: &[PathBuf]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmstream")).args(arguments).args(files).output().unwrap()
}

fn succeed(arguments: &[&str], files: &[PathBuf]) {
    let output = vmstream(arguments, files);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What a command that must fail says.
fn fail(arguments: &[&str], files: &[PathBuf]) -> String {
    let output = vmstream(arguments, files);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn session(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path
}

/// Three sessions of different work, and a model of them.
fn learnt(directory: &Path) -> (Vec<PathBuf>, PathBuf) {
    let work: [(u64, &[u64]); 3] = [(1, &[0, 1]), (2, &[0, 1]), (3, &[1, 2])];
    let sessions: Vec<_> = work
        .iter()
        .map(|(seed, tasks)| session(directory, &format!("s{seed}.vmtrace"), &traces::trace(*seed, tasks)))
        .collect();
    let model = directory.join("m.vmm");
    succeed(&["train", "-o", model.to_str().unwrap()], &sessions);
    (sessions, model)
}

/// The texts of a picture, which must be well-formed and small, and nothing of which may lie outside of it.
fn texts(path: &Path) -> Vec<String> {
    let svg = fs::read_to_string(path).unwrap();
    assert!(svg.len() < 2 << 20, "{} bytes", svg.len());
    let document = Document::parse(&svg).unwrap();
    let number = |node: roxmltree::Node, name: &str| node.attribute(name).unwrap().parse::<i64>().unwrap();
    let root = document.root_element();
    let (width, height) = (number(root, "width"), number(root, "height"));
    for shape in root.descendants().filter(|node| node.has_tag_name("rect")) {
        let (x, y) = (number(shape, "x"), number(shape, "y"));
        let right = x + number(shape, "width");
        let lower = y + number(shape, "height");
        assert!(x >= 0 && y >= 0 && right <= width && lower <= height, "{shape:?}");
    }
    let shown = root.descendants().filter(|node| node.has_tag_name("text"));
    shown.map(|node| node.text().unwrap_or_default().trim().to_owned()).collect()
}

/// How many shapes have a colour.
fn shapes(path: &Path, colour: &str) -> usize {
    let svg = fs::read_to_string(path).unwrap();
    let document = Document::parse(&svg).unwrap();
    document.descendants().filter(|node| node.attribute("fill") == Some(colour)).count()
}

fn has(texts: &[String], part: &str) -> bool {
    texts.iter().any(|text| text.contains(part))
}

#[test]
fn a_model_is_drawn_with_its_map_and_its_ways() {
    let directory = tempfile::tempdir().unwrap();
    let (_, model) = learnt(directory.path());
    let picture = directory.path().join("m.svg");
    succeed(&["inspect", "--svg", picture.to_str().unwrap()], std::slice::from_ref(&model));
    let said = texts(&picture);
    for part in
        ["What m.vmm has learnt", "image of 1.0 GiB; 3 sessions learnt", "rows of 16.0 MiB", "not used", "512.0 MiB"]
    {
        assert!(has(&said, part), "no {part:?} in {said:?}");
    }
    // The start and one task are in all sessions, another task in two of them and the last in one.
    for share in ["MB, 100 %", "MB, 67 %", "MB, 33 %"] {
        assert!(has(&said, share), "no {share:?} in {said:?}");
    }
    // An arrow has a head, and no other shape is a polygon.
    assert!(fs::read_to_string(&picture).unwrap().contains("<polygon"));

    let first = fs::read(&picture).unwrap();
    succeed(&["inspect", "--json", "--svg", picture.to_str().unwrap()], &[model]);
    assert!(fs::read(&picture).unwrap() == first, "the same model gives the same bytes");
}

#[test]
fn a_replay_is_drawn_with_blocks_bytes_and_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let (sessions, model) = learnt(directory.path());
    let picture = directory.path().join("r.svg");
    let draw = |policy: &str, more: &[&str]| {
        let mut arguments = vec!["replay", "--policy", policy, "--svg", picture.to_str().unwrap()];
        arguments.extend(["--model", model.to_str().unwrap()]);
        arguments.extend(more);
        arguments.push("--trace");
        succeed(&arguments, &sessions[..1]);
        texts(&picture)
    };
    let said = draw("planner", &[]);
    for part in [
        "Replay of s1, policy planner",
        "link of 25.0 Mbit/s and 50 ms",
        "Blocks:",
        "Bytes:",
        "Waiting:",
        "% of the link",
    ] {
        assert!(has(&said, part), "no {part:?} in {said:?}");
    }
    assert!(has(&said, "needed, ") && has(&said, "ahead, ") && !has(&said, "fill, "), "{said:?}");
    let first = fs::read(&picture).unwrap();
    draw("planner", &[]);
    assert!(fs::read(&picture).unwrap() == first, "the same replay gives the same bytes");
    // Sky blue is what comes ahead and the bars; the legends have one each. On demand nothing comes ahead.
    let ahead = shapes(&picture, "#56B4E9");
    let said = draw("none", &[]);
    assert!(!has(&said, "ahead, ") && has(&said, "on demand, "), "{said:?}");
    assert!(shapes(&picture, "#D55E00") > 20, "the guest waits for all that it touches");
    assert!(ahead > 20);
    assert!(has(&draw("planner", &["--fill"]), "fill, "));
}

#[test]
fn several_sessions_have_a_picture_each() {
    let directory = tempfile::tempdir().unwrap();
    let (sessions, _) = learnt(directory.path());
    let picture = directory.path().join("r.d.svg");
    succeed(&["replay", "--svg", picture.to_str().unwrap(), "--trace"], &sessions[..2]);
    for name in ["s1", "s2"] {
        let said = texts(&directory.path().join(format!("r.d.{name}.svg")));
        assert!(has(&said, &format!("Replay of {name},")), "{said:?}");
    }
    assert!(!picture.exists());
    // Of two with the same name only one picture would be left.
    let said =
        fail(&["replay", "--svg", picture.to_str().unwrap(), "--trace"], &[&sessions[..2], &sessions[..1]].concat());
    assert!(said.contains("two sessions are called s1"), "{said}");
}

#[test]
fn little_is_drawn_as_little() {
    let directory = tempfile::tempdir().unwrap();
    let empty = session(directory.path(), "empty.vmtrace", "# vmtrace 1 size=8192 block=4096\n");
    // A name that XML would read as something else, and one that it cannot hold at all.
    let writes = session(directory.path(), "<&\u{1}\">.vmtrace", WRITES_ONLY);
    let flush = session(directory.path(), "flush.vmtrace", "# vmtrace 1 size=1 block=4096\n9 F 0 0\n");
    let picture = directory.path().join("r.svg");
    for (session, name) in [(empty, "empty"), (writes.clone(), "<&?\">"), (flush, "flush")] {
        succeed(&["replay", "--svg", picture.to_str().unwrap(), "--trace"], &[session]);
        assert!(has(&texts(&picture), &format!("Replay of {name},")), "{name}");
    }
    let model = directory.path().join("m.vmm");
    let drawn = |session: PathBuf| {
        succeed(&["train", "--anew", "-o", model.to_str().unwrap()], &[session]);
        succeed(&["inspect", "--svg", picture.to_str().unwrap()], std::slice::from_ref(&model));
        texts(&picture)
    };
    assert!(has(&drawn(writes), "0 blocks of 4.0 KiB in 0 sequences"));
    // One block in an image that is less than a cell of its map, and one at the far end of the greatest.
    let small = session(directory.path(), "small.vmtrace", "# vmtrace 1 size=1 block=4096\n1 R 0 1\n");
    assert!(has(&drawn(small), "1 blocks of 4.0 KiB in 1 sequences"));
    let end = 1u64 << 46;
    let text = format!("# vmtrace 1 size={end} block=4096\n1 R {} 4096\n", end - 4096);
    assert!(has(&drawn(session(directory.path(), "great.vmtrace", &text)), "image of 64.0 TiB"));
}

#[test]
fn what_forecasts_said_is_drawn_against_what_happened() {
    let directory = tempfile::tempdir().unwrap();
    let (sessions, _) = learnt(directory.path());
    let (picture, figures) = (directory.path().join("c.svg"), directory.path().join("c.json"));
    let svg = ["replay", "--rate", "5mbit", "--calibration-svg", picture.to_str().unwrap()];
    let draw = |more: &[&str], sessions: &[PathBuf]| {
        let output = vmstream(&[&svg[..], more, &["--trace"]].concat(), sessions);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), texts(&picture))
    };
    // Without the other file, the table is there all the same.
    let (table, said) = draw(&["--leave-one-out"], &sessions);
    assert!(table.contains("stall within 30 s"), "{table}");
    for part in ["in 3 replays, policy planner", "link of 5.0 Mbit/s and 50 ms", "said: risk in %", "happened: %"] {
        assert!(has(&said, part), "no {part:?} in {said:?}");
    }
    let first = fs::read(&picture).unwrap();
    let (_, again) = draw(&["--leave-one-out", "--calibration", figures.to_str().unwrap()], &sessions);
    assert!(fs::read(&picture).unwrap() == first && again == said, "the same replays give the same bytes");
    // A panel has the classes of its horizon, each with the number of its answers, and no other shape is a circle.
    let figures: serde_json::Value = serde_json::from_slice(&fs::read(&figures).unwrap()).unwrap();
    let classes = figures["classes"].as_array().unwrap();
    assert!(classes.len() >= 3, "{classes:?}");
    for horizon in [1, 5, 30] {
        let mine = classes.iter().filter(|class| class["horizon_s"] == f64::from(horizon));
        let answers: u64 = mine.map(|class| class["answers"].as_u64().unwrap()).sum();
        assert!(has(&said, &format!("A stall within {horizon} s, {answers} forecasts")), "{said:?}");
    }
    let mut labels: Vec<_> = said.iter().filter(|text| text.starts_with("n=")).cloned().collect();
    let mut expected: Vec<_> = classes.iter().map(|class| format!("n={}", class["answers"])).collect();
    labels.sort();
    expected.sort();
    assert_eq!(labels, expected);
    // Each is filled and has an edge.
    let svg = fs::read_to_string(&picture).unwrap();
    assert_eq!(svg.matches("<circle").count(), 2 * classes.len());

    // A session that is over before the first question.
    let empty = session(directory.path(), "empty.vmtrace", "# vmtrace 1 size=8192 block=4096\n");
    let (_, said) = draw(&[], &[empty]);
    assert_eq!(said.iter().filter(|text| *text == "nothing was asked").count(), 3, "{said:?}");
    assert!(has(&said, "in 1 replay, policy planner") && !has(&said, "n="), "{said:?}");
}

#[test]
fn a_file_that_cannot_be_written_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let (sessions, model) = learnt(directory.path());
    let nowhere = directory.path().join("none/x.svg");
    let nowhere = nowhere.to_str().unwrap();
    for said in [
        fail(&["inspect", "--svg", nowhere], &[model]),
        fail(&["replay", "--svg", nowhere, "--trace"], &sessions[..1]),
        fail(&["replay", "--calibration-svg", nowhere, "--trace"], &sessions[..1]),
    ] {
        assert!(said.contains("cannot write") && said.contains("none/x.svg"), "{said}");
    }
    // What was there stays as it was until the new picture is whole, and no half-made file lies beside it.
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), sessions.len() + 1, "{left:?}");
}

#[test]
fn guests_that_were_held_are_drawn_beside_what_was_said_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let (sessions, _) = learnt(directory.path());
    let (picture, figures) = (directory.path().join("h.svg"), directory.path().join("h.json"));
    let mut arguments =
        vec!["replay", "--leave-one-out", "--rate", "5mbit", "--hold", "up-to=20s,every=5s,for=5s,risk=50%"];
    arguments.extend(["--hold-svg", picture.to_str().unwrap(), "--hold-json", figures.to_str().unwrap(), "--trace"]);
    let output = vmstream(&arguments, &sessions);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("risk of a stall in 5 s") && table.contains("--wait risk=50%:"), "{table}");
    let said = texts(&picture);
    for part in ["said of 3 guests", "link of 5.0 Mbit/s and 50 ms", "within 5 s", "held for so many seconds"] {
        assert!(has(&said, part), "no {part:?} in {said:?}");
    }
    let written: serde_json::Value = serde_json::from_slice(&fs::read(&figures).unwrap()).unwrap();
    let holds = written["holds"].as_array().unwrap();
    assert_eq!(holds.len(), 5);
    assert_eq!(written["trials"].as_array().unwrap().len(), 15);
    let held: Vec<_> = holds.iter().map(|row| row["held_s"].as_f64().unwrap()).collect();
    assert_eq!(held, [0.0, 5.0, 10.0, 15.0, 20.0]);
    assert_eq!(holds[0]["stalled"], 1.0, "nobody has anything at the start");
    // Two lines in each of two panels, with a point for each hold.
    assert_eq!(fs::read_to_string(&picture).unwrap().matches("<circle").count(), 4 * holds.len());
    let first = fs::read(&picture).unwrap();
    succeed(&arguments, &sessions);
    assert!(fs::read(&picture).unwrap() == first, "the same trials give the same bytes");

    // A session in which nothing is done.
    let empty = session(directory.path(), "empty.vmtrace", "# vmtrace 1 size=8192 block=4096\n");
    let svg = ["replay", "--hold", "up-to=1s", "--hold-svg", picture.to_str().unwrap(), "--trace"];
    succeed(&svg, &[empty]);
    assert!(has(&texts(&picture), "no guest does anything"));
}

#[test]
fn a_machine_that_was_held_is_drawn() {
    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("r.svg");
    let mut text = String::new();
    for second in 0..20 {
        let status =
            format!(r#"{{"size": 20, "resident_bytes": {second}, "stall_risk": {}}}"#, 1.0 - f64::from(second) / 20.0);
        text += &format!("{{\"at_s\": {second}, \"status\": {status}}}\n");
    }
    text +=
        "{\"at_s\": 8, \"event\": \"online\"}\n{\"at_s\": 8.5, \"answer_s\": 2.5}\n{\"at_s\": 12, \"answer_s\": 0.1}\n";
    text += "{\"at_s\": 15, \"event\": \"origin stopped\"}\n";
    let record = session(directory.path(), "record", &text);
    let draw = ["inspect", "--run", "--svg", picture.to_str().unwrap()];
    let output = vmstream(&draw, std::slice::from_ref(&record));
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.contains("on-line    after 8.0 s; the risk said last was 60.0 %"), "{lines}");
    assert!(lines.contains("answers    2, the longest after 2.50 s, 1 after more than a second"), "{lines}");
    let said = texts(&picture);
    for part in ["A machine that was held: record", "on-line after 8 s; the first of 2 answers took 2.50 s", "Reality:"]
    {
        assert!(has(&said, part), "no {part:?} in {said:?}");
    }
    assert_eq!(fs::read_to_string(&picture).unwrap().matches("<circle").count(), 2, "an answer is a point");
    // What is no record is refused with the line in which it shows.
    let broken = session(directory.path(), "broken", &format!("{text}nonsense\n"));
    assert!(fail(&draw, &[broken]).contains("line 25"));
    assert!(fail(&draw, &[directory.path().join("none")]).contains("no such file"));
}
