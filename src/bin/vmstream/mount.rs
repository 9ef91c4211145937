//! `vmstream mount`: an image on a web server as an ordinary file, `DIR/disk`.

use std::path::PathBuf;

use clap::Args;
use vmstream::error::{Error, Result, errno};

use crate::Outcome;

/// Mount a disk image that lies on a web server as the file DIR/disk
///
/// Blocks are fetched when they are first read; what the guest writes stays in the cache. Runs in the
/// foreground until the file system is unmounted or SIGINT or SIGTERM comes; a second signal ends it at once.
#[derive(Args)]
pub struct MountArgs {
    /// The raw image: http://, https://, file: or pattern:SIZE
    pub url: String,

    /// Existing directory to mount on
    pub dir: PathBuf,

    /// Keep what arrives in this directory, across runs; without it a temporary file is used
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,

    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,

    /// Let other users use the mount (needs user_allow_other in /etc/fuse.conf, or root)
    #[arg(long)]
    pub allow_other: bool,

    /// Set an option of the image, such as mirror=URL or connections=4; repeatable
    #[arg(long = "option", value_name = "KEY=VALUE")]
    pub options: Vec<String>,

    /// Keep the state in this file, as one JSON object that is replaced about once a second
    #[arg(long, value_name = "FILE")]
    pub json_status: Option<PathBuf>,

    /// Show progress even when standard error is no terminal
    #[arg(long)]
    pub progress: bool,
}

/// Mounts and serves until it is unmounted or told to stop.
pub fn run(args: &MountArgs) -> Result<Outcome> {
    let _ = args;
    Err(Error::new(errno::ENOSYS, "mount: this build has no engine"))
}
