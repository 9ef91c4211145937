//! The disk of a machine that stands still, copied to one raw file by `qemu-img`, which knows all formats and what lies
//! under an overlay.

use std::path::Path;
use std::process::Command;

use serde_json::json;
use vmstream::error::{Error, Result, errno};

use crate::point::qmp::Qmp;

/// Where the disk is.
pub struct Disk {
    file: String,
    format: String,
}

impl Disk {
    /// Finds it.
    ///
    /// Errors: `EINVAL` when there are several or none.
    pub fn find(qmp: &mut Qmp) -> Result<Self> {
        let found = qmp.ask("query-block", json!({}))?;
        let drives = found.as_array().map(Vec::as_slice).unwrap_or_default();
        let disks: Vec<_> = drives.iter().filter(|drive| drive["inserted"].is_object()).collect();
        let [disk] = disks[..] else {
            let text = format!("the machine has {} disks: a restore point has exactly one", disks.len());
            return Err(Error::new(errno::EINVAL, text));
        };
        let text = |key: &str| disk["inserted"][key].as_str().unwrap_or_default().to_owned();
        Ok(Self { file: text("file"), format: text("drv") })
    }

    /// Copies what the guest sees on it to a new file, zeroes as holes. `process` is QEMU's directory in /proc.
    pub fn copy(&self, process: &Path, target: &Path) -> Result<()> {
        // QEMU holds the lock of the file, and does not write now.
        let output = Command::new("qemu-img")
            .args(["convert", "-U", "-f", &self.format, "-O", "raw", "-S", "4k", &self.file])
            .arg(target)
            .current_dir(process.join("cwd"))
            .output()
            .map_err(|e| Error::io("cannot run qemu-img (Debian package qemu-utils)", e))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            let text = format!("qemu-img cannot copy the disk {}: {}", self.file, why.trim());
            return Err(Error::new(errno::EIO, text));
        }
        let synced = std::fs::File::open(target).and_then(|file| file.sync_all());
        synced.map_err(|e| Error::io(format_args!("cannot make durable {}", target.display()), e))
    }
}
