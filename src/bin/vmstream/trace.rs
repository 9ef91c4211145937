//! `vmstream trace`: sessions as text, and back.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use vmstream::error::{Error, Result, errno};
use vmstream::session::{self, Recording};

use crate::{Outcome, files};

/// Turn recorded sessions into text, one line an access, or text into session files
///
/// Reads either form. What a killed recorder left of the end of a session is left out, and said.
#[derive(Args)]
pub struct TraceArgs {
    /// Session files or texts
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Write here instead of standard output: a file, or for several sessions an existing directory
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,

    /// Write the compact form instead of text
    #[arg(long)]
    pub compact: bool,
}

/// Converts all files, in their order; the first that fails ends it.
pub fn run(args: &TraceArgs) -> Result<Outcome> {
    let into = args.output.as_deref().filter(|output| output.is_dir());
    if args.files.len() > 1 && into.is_none() {
        let text = "several sessions cannot go into one file: give an existing directory to --output";
        return Err(Error::new(errno::EINVAL, text));
    }
    if args.compact && args.output.is_none() && std::io::stdout().is_terminal() {
        let text = "the compact form is not for a terminal: give a file to --output";
        return Err(Error::new(errno::EINVAL, text));
    }
    for path in &args.files {
        let recording = session::load(path)?;
        if recording.lost_bytes > 0 {
            let (shown, bytes) = (path.display(), recording.lost_bytes);
            log::warn!("{shown}: the last {bytes} bytes are cut off or damaged; what comes before is used");
        }
        let bytes = convert(&recording, args.compact, path)?;
        match (into, &args.output) {
            (Some(directory), _) => files::replace(&target(directory, path, args.compact)?, &bytes)?,
            (None, Some(file)) => files::replace(file, &bytes)?,
            (None, None) => {
                // A reader that went away (`| head -1`) is no failure.
                let _ = std::io::stdout().write_all(&bytes);
            }
        }
    }
    Ok(Outcome::Done)
}

fn convert(recording: &Recording, compact: bool, path: &Path) -> Result<Vec<u8>> {
    if !compact {
        return Ok(session::text::print_recording(recording).into_bytes());
    }
    let bytes = session::file::encode(recording);
    if bytes.len() as u64 > session::file::FILE_BYTES_MAX {
        let text = format!(
            "{}: has {} bytes in the compact form, and {} is the limit: cut it into several sessions",
            path.display(),
            bytes.len(),
            session::file::FILE_BYTES_MAX
        );
        return Err(Error::new(errno::EFBIG, text));
    }
    Ok(bytes)
}

/// The file in `directory` for the session at `path`. Never that session itself.
fn target(directory: &Path, path: &Path, compact: bool) -> Result<PathBuf> {
    let mut target = directory.join(path.file_name().unwrap_or_default());
    target.set_extension(if compact { "vms" } else { "vmtrace" });
    if same_file(&target, path) {
        let text = format!("{} would be replaced by itself: give another directory to --output", path.display());
        return Err(Error::new(errno::EINVAL, text));
    }
    Ok(target)
}

fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = |path| File::open(path).and_then(|file| file.metadata()).map(|m| (m.dev(), m.ino())).ok();
    inode(a).is_some() && inode(a) == inode(b)
}
