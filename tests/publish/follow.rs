//! Whoever follows a link may come to nothing: the origin is away, the machine must not or cannot be run. Then all is as it was.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vmstream::Image;

use crate::support::*;

/// Longer than anything here takes on the busiest machine; only a defect waits for it.
const LIMIT: Duration = Duration::from_secs(60);

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < LIMIT, "{what}: not after {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A process that does not outlive its test.
struct Process(Child);

impl Process {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmstream"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn code(&mut self) -> Option<i32> {
        eventually("its end", || self.0.try_wait().unwrap()).code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A link as a desktop has it, and the server that it leads to.
fn serve(site: &Path, link: &str) -> (Process, String) {
    let mut server = Process::start(&["serve", "--listen", "127.0.0.1:0", text(site)]);
    let mut line = String::new();
    BufReader::new(server.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let host = line.trim().strip_prefix("http://").unwrap().trim_end_matches('/');
    let name = link.rsplit_once('/').unwrap().1;
    (server, format!("vmstream://{host}/{name}"))
}

/// `vmstream run` with only these programs in reach.
fn run(programs: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmstream"));
    command.arg("run").args(arguments).env("PATH", programs).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_run_without_a_guest_leaves_no_directory_no_writes_and_no_session() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    small_image(&at("disk.img"));
    std::fs::create_dir(at("own")).unwrap();
    let (cache, keep) = (at("c"), at("own/new/writes"));
    // Nobody has allowed the one, and there is no program for the others.
    for (boot, word) in [("uml", Some("--allow-uml")), ("qemu", None)] {
        let link = publish(&at("disk.img"), &at("site"), &["--boot", boot]);
        for option in ["fill=off", "fill=on"] {
            let arguments = [&link, "--cache", text(&cache), "--keep-writes", text(&keep), "--option", option];
            let output = run(&at("own"), &arguments);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains(word.unwrap_or_default()), "{said}");
            assert!(cache.join("disk").exists(), "the cache stays");
            assert!(!cache.join("run").exists(), "{boot}: the directory of the run is there");
            assert!(!cache.join("sessions").exists(), "{boot}: a session of nobody's was recorded");
            assert_eq!(std::fs::read_dir(at("own")).unwrap().count(), 0, "{boot}: --keep-writes was made");
        }
        std::fs::remove_dir_all(&cache).unwrap();
    }
}

/// Starts what a click on `link` does, with a terminal's input that the test holds.
fn click(link: &str, place: &Path) -> Child {
    let entry = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/share/vmstream.desktop")).unwrap();
    let line = entry.lines().find_map(|line| line.strip_prefix("Exec=vmstream ")).unwrap();
    assert!(entry.lines().any(|line| line == "Terminal=true"));
    // No quotes and no other field: then the words are those between blanks, and the link is one of them whatever it holds.
    assert!(
        line.chars().all(|c| c.is_ascii_alphanumeric() || "-% ".contains(c)) && line.matches('%').count() == 1,
        "{line}"
    );
    let words = line.split(' ').map(|word| if word == "%u" { link } else { word });
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmstream"));
    command.args(words).env("XDG_CACHE_HOME", place).current_dir(place);
    command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn what_a_click_on_a_link_could_not_do_can_be_read_until_enter() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing of it is for a shell, and there is no such host.
    let link = "vmstream:///$(touch a)`touch b`;touch c \"' %u";
    for signal in [None, Some(Signal::TERM)] {
        let mut clicked = Process(click(link, dir.path()));
        let mut said = String::new();
        let mut errors = BufReader::new(clicked.0.stderr.take().unwrap());
        while !said.contains("press Enter") {
            let mut byte = [0];
            errors.read_exact(&mut byte).unwrap_or_else(|_| panic!("it did not wait: {said}"));
            said.push(byte[0].into());
        }
        assert!(said.contains(link), "{said}");
        match signal {
            None => clicked.0.stdin.as_ref().unwrap().write_all(b"\n").unwrap(),
            Some(signal) => kill_process(Pid::from_child(&clicked.0), signal).unwrap(),
        }
        assert_eq!(clicked.code(), Some(if signal.is_some() { 143 } else { 1 }));
    }
    let made: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(made.is_empty(), "{made:?}");
}

#[test]
fn a_first_signal_ends_whoever_waits_to_hear_what_parts_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    small_image(&at("disk.img"));
    let link = publish(&at("disk.img"), &at("site"), &["--boot", "qemu"]);
    let cache = at("c");
    let options = [format!("source={link}"), format!("cache={}", cache.display()), "fill=off".to_owned()];
    let open = || Image::open(options.iter().map(String::as_str).chain(["sessions=off", "prefetch=none"])).unwrap();
    let mut wanted = [0; 4096];
    open().read_at(0, &mut wanted).unwrap();
    std::fs::create_dir(at("m")).unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    silent.set_nonblocking(true).unwrap();
    let away = format!("http://{}/disk.vmp#{}", silent.local_addr().unwrap(), link.rsplit_once('#').unwrap().1);
    // Where the table of the parts lies is known, and then not even that.
    for known in [true, false] {
        assert!(known || std::fs::remove_file(cache.join("disk.head")).is_ok());
        for command in [&["mount", &away, text(&at("m")), "--regions"][..], &["run", &away]] {
            let status = at(&format!("status-{}-{known}", command[0]));
            let mut words = [command, &["--cache", text(&cache), "--json-status", text(&status)]].concat();
            // The origin is asked for nothing but that, and nobody gives it up by himself.
            for option in ["fill=off", "model=off", "stall_timeout=60s"] {
                words.extend(["--option", option]);
            }
            let mut waiting = Process::start(&words);
            // Until then the image is being opened, and a signal is heard anyway.
            eventually("the state of the open image", || status.exists().then_some(()));
            let _asked = eventually("a question to the origin", || silent.accept().ok());
            kill_process(Pid::from_child(&waiting.0), Signal::TERM).unwrap();
            assert_eq!(waiting.code(), Some(143), "{command:?}");
            assert!(!cache.join("sessions").exists() && !cache.join("run").exists(), "there was no guest");
            while silent.accept().is_ok() {}
        }
    }
    let mut found = [0; 4096];
    std::fs::remove_dir_all(at("site")).unwrap();
    open().read_at(0, &mut found).unwrap();
    assert_eq!(found, wanted, "what was here is here");
}

#[test]
fn a_link_of_a_desktop_s_leads_to_the_image_for_all_who_take_links() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    small_image(&at("disk.img"));
    let (_server, link) = serve(&at("site"), &publish(&at("disk.img"), &at("site"), &[]));
    let fetched = vmstream(&["fetch", &link, "-o", text(&at("copy"))]);
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
    assert!(std::fs::read(at("copy")).unwrap() == std::fs::read(at("disk.img")).unwrap());
    let again = vmstream(&["fetch", &link, "-o", text(&at("again")), "--reuse", text(&at("copy"))]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let verified = vmstream(&["verify", text(&at("copy")), &link]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    for command in [&["mount", "vmstream:///x.vmp", text(dir.path())][..], &["fetch", "vmstream://u@h/x", "-o", "x"]] {
        let output = vmstream(command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("vmstream://HOST/PATH.vmp#HASH"), "{said}");
    }
}
