//! fio as a second opinion: it writes blocks that carry a checksum and their own place, in a region of its own.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::stamp::SECTOR_BYTES;

/// Where fio works, as offset and size in bytes.
#[derive(Clone, Copy)]
pub struct Region {
    /// First sector.
    pub sector: u64,
    /// Number of sectors, whole blocks of 4 KiB.
    pub sectors: u64,
}

impl Region {
    /// True when fio is installed.
    pub fn usable() -> bool {
        Command::new("fio").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    fn command(self, disk: &Path, arguments: &[&str]) -> Command {
        let mut filename = OsString::from("--filename=");
        filename.push(disk);
        let mut command = Command::new("fio");
        command
            .arg(filename)
            .args(["--name=beside", "--ioengine=psync", "--thread", "--bs=4k"])
            .args(["--verify=crc32c", "--verify_fatal=1"])
            .arg(format!("--offset={}", self.sector * SECTOR_BYTES as u64))
            .arg(format!("--size={}", self.sectors * SECTOR_BYTES as u64))
            .args(arguments)
            // Where it leaves the state files that nobody wants.
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Writes the whole region once and flushes it: what every later check builds on.
    pub fn prepare(self, disk: &Path) -> Result<(), String> {
        succeeded(self.command(disk, &["--rw=write", "--do_verify=0", "--end_fsync=1"]).output())
    }

    /// Every block of the region is one that fio wrote there as a whole, at whatever time.
    pub fn verify(self, disk: &Path) -> Result<(), String> {
        succeeded(self.command(disk, &["--rw=read"]).output())
    }

    /// Starts random writes, each verified soon after, for longer than any round lasts.
    pub fn disturb(self, disk: &Path, seed: u64) -> Child {
        let seed = format!("--randseed={seed}");
        let work = ["--rw=randwrite", "--verify_backlog=16", "--fsync=8", "--time_based=1", "--runtime=120", &seed];
        self.command(disk, &work).spawn().expect("cannot start fio")
    }
}

/// A fio whose disk was killed: it may have failed to read or write, but it must never have read a wrong byte.
pub fn judge(child: Child) -> Result<(), String> {
    // Where the kernel goes on with the cache's own file, the kill does not end its work. One that has ended is
    // still there to be signalled, because nobody has waited for it yet.
    let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM);
    let output = child.wait_with_output().map_err(|error| format!("cannot wait for fio: {error}"))?;
    let text = words(&output);
    if text.contains("verify:") || text.contains("verify failed") {
        Err(format!("fio read a wrong byte:\n{text}"))
    } else {
        Ok(())
    }
}

fn succeeded(output: std::io::Result<Output>) -> Result<(), String> {
    let output = output.map_err(|error| format!("cannot run fio: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("fio failed:\n{}", words(&output))) }
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
