//! Small files that others read while we write them.

use std::path::Path;

use vmstream::error::{Error, Result};

/// Writes a small file beside `path` and renames it there.
pub fn replace(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let failed = |e| Error::io(format_args!("cannot write {}", path.display()), e);
    // A device or a pipe, such as /dev/stdout, can only be written to.
    if path.metadata().is_ok_and(|m| !m.is_file()) {
        return std::fs::write(path, content).map_err(failed);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    std::fs::write(&beside, content).and_then(|()| std::fs::rename(&beside, path)).map_err(|e| {
        // Whatever failed, nothing half-made stays behind.
        let _ = std::fs::remove_file(&beside);
        failed(e)
    })
}
