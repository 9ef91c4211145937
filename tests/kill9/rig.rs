//! The processes of a round: an origin, and a mount that can be killed. All are gone when their values are.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest time anything here takes on a busy machine; what takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at something that has no way to call back.
const POLL: Duration = Duration::from_millis(5);

/// The tool under test: `VMSTREAM` names another build than the one of this test run.
fn tool() -> Command {
    Command::new(std::env::var_os("VMSTREAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_vmstream").into()))
}

/// Waits for something, and fails with its name and the process's own words when it does not come.
fn wait_for(what: &str, child: &mut Child, log: &Path, mut there: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !there() {
        let ended = child.try_wait().expect("cannot ask for the state of a process");
        if ended.is_some() || begin.elapsed() > LIMIT {
            let log = fs::read_to_string(log).unwrap_or_default();
            panic!("no {what} (process: {ended:?}); it said:\n{log}");
        }
        std::thread::sleep(POLL);
    }
}

/// A running `vmstream serve` over a directory.
pub struct Origin {
    child: Child,
    address: String,
}

impl Origin {
    /// Serves `directory` at `rate`, fast enough for a cache to fill within a few rounds and slow enough to be
    /// filling in most of them.
    pub fn start(directory: &Path, work: &Path, rate: &str) -> Self {
        let (port_file, log) = (work.join("port"), work.join("origin.log"));
        let mut child = tool()
            .arg("serve")
            .arg(directory)
            .args(["--listen", "127.0.0.1:0", "--rate", rate, "--rtt", "2ms", "--port-file"])
            .arg(&port_file)
            .stdin(Stdio::null())
            .stderr(File::create(&log).expect("cannot create a log"))
            .stdout(Stdio::null())
            .spawn()
            .expect("cannot start vmstream serve");
        let mut text = String::new();
        wait_for("port of the origin", &mut child, &log, || {
            text = fs::read_to_string(&port_file).unwrap_or_default();
            text.ends_with('\n')
        });
        let port = text.trim().rsplit(':').next().unwrap_or_default();
        Self { child, address: format!("http://127.0.0.1:{port}") }
    }

    /// Address of a file of the served directory.
    pub fn url(&self, file: &str) -> String {
        format!("{}/{file}", self.address)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running `vmstream mount`.
pub struct Mount {
    child: Child,
    directory: PathBuf,
}

impl Mount {
    /// Mounts `url` with its cache in `work` and waits until the disk is there with its size.
    pub fn start(url: &str, work: &Path, size: u64, options: &[&str]) -> Self {
        let (directory, log) = (work.join("mnt"), work.join("mount.log"));
        fs::create_dir_all(&directory).expect("cannot make the mount point");
        let mut command = tool();
        command.arg("mount").arg(url).arg(&directory).arg("--cache").arg(work.join("cache"));
        for option in options {
            command.args(["--option", option]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("cannot create a log"))
            .spawn()
            .expect("cannot start vmstream mount");
        let mut mount = Self { child, directory };
        let disk = mount.disk();
        wait_for("disk in the mount", &mut mount.child, &log, || fs::metadata(&disk).is_ok_and(|m| m.len() == size));
        mount
    }

    /// The streamed disk.
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk")
    }

    /// Opens the disk for reading and writing, past the page cache when `direct`.
    pub fn open(&self, direct: bool) -> File {
        let flags = if direct { rustix::fs::OFlags::DIRECT.bits() } else { 0 };
        let disk = File::options().read(true).write(true).custom_flags(flags as i32).open(self.disk());
        disk.expect("cannot open the streamed disk")
    }

    /// `kill -9`: the process gets no chance to do anything more.
    pub fn kill(&mut self) {
        self.child.kill().expect("cannot kill the mount");
        self.child.wait().expect("cannot wait for the mount");
    }

    /// SIGTERM: the clean way out.
    pub fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("cannot end the mount");
        let begin = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("cannot wait for the mount") {
                Some(status) => break status,
                None if begin.elapsed() > LIMIT => panic!("the mount did not end after SIGTERM"),
                None => std::thread::sleep(POLL),
            }
        };
        assert!(status.success(), "the mount ended with {status} after SIGTERM");
    }
}

impl Drop for Mount {
    /// Takes the mount point away, which a killed process leaves behind; a clean one leaves nothing and this fails.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = Command::new("fusermount3").arg("-uzq").arg(&self.directory).stderr(Stdio::null()).status();
    }
}
