//! Small files, which others may read while we write them.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use vmstream::error::{Error, Result, errno};

/// The bytes of a file; `None` when there is none.
///
/// # Errors
/// Those of reading, and EFBIG for one that has more than `bytes_max`.
pub fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>> {
    let failed = |e| Error::io(format_args!("cannot read {}", path.display()), e);
    let file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        let text = format!("{} has more than {bytes_max} bytes, so it is not what its name says", path.display());
        return Err(Error::new(errno::EFBIG, text));
    }
    Ok(Some(bytes))
}

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
