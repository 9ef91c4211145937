//! The memory of a running machine: the file that QEMU shares it in.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::json;
use vmstream::error::{Error, Result, errno};
use vmstream::tree::is_zero;

use crate::point::qmp::Qmp;

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 1 << 20;
/// What is looked at for zeroes: a page, which is what a balloon gives back and what a block holds.
const PAGE_BYTES: usize = 4096;

/// Where the memory is.
pub struct Memory {
    id: String,
    bytes: u64,
    path: PathBuf,
    file: File,
}

impl Memory {
    /// Finds it. `process` is QEMU's directory in /proc.
    ///
    /// Errors: `EINVAL` when it is not in a file that QEMU shares, with the options that make it so.
    pub fn find(qmp: &mut Qmp, process: &Path) -> Result<Self> {
        let total = qmp.ask("query-memory-size-summary", json!({}))?["base-memory"].as_u64().unwrap_or(0);
        let advice = |why: &str| {
            let mib = total >> 20;
            let text = format!(
                "{why}: start QEMU with -object memory-backend-file,id=ram,size={mib}M,mem-path=FILE,share=on -m {mib}M \
                 -machine TYPE,memory-backend=ram"
            );
            Error::new(errno::EINVAL, text)
        };
        let found = qmp.ask("query-memdev", json!({}))?;
        let backends = found.as_array().map(Vec::as_slice).unwrap_or_default();
        let [backend] = backends else {
            return Err(advice("the machine's memory is not in one memory backend"));
        };
        let id = backend["id"].as_str().unwrap_or_default().to_owned();
        if backend["share"] != true || backend["size"].as_u64() != Some(total) {
            return Err(advice("the machine's memory is not shared, or not all of it is in one backend"));
        }
        let path = qmp.ask("qom-get", json!({"path": format!("/objects/{id}"), "property": "mem-path"}));
        let path = path.ok().and_then(|path| path.as_str().map(PathBuf::from));
        let path = path.ok_or_else(|| advice("the machine's memory is in no file"))?;
        // As QEMU sees it.
        let path = process.join("cwd").join(path);
        let file = File::open(&path);
        let file = file.map_err(|e| Error::io(format_args!("cannot open the memory's {}", path.display()), e))?;
        let metadata = file.metadata().map_err(|e| Error::io(format_args!("cannot examine {}", path.display()), e))?;
        if !metadata.is_file() || metadata.len() != total {
            return Err(advice(&format!("{} is not the machine's memory and nothing else", path.display())));
        }
        Ok(Self { id, bytes: total, path, file })
    }

    /// What QEMU calls it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its size, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How much of it is no hole now, in bytes.
    pub fn used_bytes(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        metadata
            .map(|metadata| metadata.blocks() * 512)
            .map_err(|e| Error::io(format_args!("cannot examine the memory's {}", self.path.display()), e))
    }

    /// Copies it to an empty file, zeroes as holes; answers how many bytes were not zero. The machine must stand still.
    pub fn copy(&self, target: &File) -> Result<u64> {
        copy(&self.file, self.bytes, target)
            .map_err(|e| Error::io(format_args!("cannot copy the memory from {}", self.path.display()), e))
    }
}

fn copy(source: &File, bytes: u64, target: &File) -> io::Result<u64> {
    target.set_len(bytes)?;
    let mut buffer = vec![0; PIECE_BYTES];
    let (mut at, mut kept) = (0, 0);
    while at < bytes {
        // A hole is passed over in one step; a file system that knows none reads zeroes.
        at = match rustix::fs::seek(source, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data / PAGE_BYTES as u64 * PAGE_BYTES as u64,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => at,
        };
        let piece = &mut buffer[..(bytes - at).min(PIECE_BYTES as u64) as usize];
        source.read_exact_at(piece, at)?;
        for (page, number) in piece.chunks(PAGE_BYTES).zip(0u64..) {
            if !is_zero(page) {
                target.write_all_at(page, at + number * PAGE_BYTES as u64)?;
                kept += page.len() as u64;
            }
        }
        at += piece.len() as u64;
    }
    target.sync_all()?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_become_holes() {
        let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        source.set_len(8 << 20).unwrap();
        source.write_all_at(&[0; 3 << 20], 1 << 20).unwrap();
        source.write_all_at(&[7; 5000], (5 << 20) + 100).unwrap();
        assert_eq!(copy(&source, 8 << 20, &target).unwrap(), 8192);
        let (mut expected, mut got) = (vec![0; 8 << 20], vec![1; 8 << 20]);
        source.read_exact_at(&mut expected, 0).unwrap();
        target.read_exact_at(&mut got, 0).unwrap();
        assert!(expected == got);
        assert!(target.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
