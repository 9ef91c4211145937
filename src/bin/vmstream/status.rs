//! `vmstream status`: what a cache holds, without touching it.

use std::path::PathBuf;

use clap::Args;
use vmstream::error::{Error, Result, errno};

use crate::Outcome;

/// Show what a cache holds: which image, how much of it, and who uses it now
///
/// Only reads, so it is safe while the cache is in use.
#[derive(Args)]
pub struct StatusArgs {
    /// The directory given to --cache, or the file given to fetch -o
    pub cache: PathBuf,

    /// Print one JSON object instead of lines for a person
    #[arg(long)]
    pub json: bool,
}

/// Prints the state of the cache to standard output.
pub fn run(args: &StatusArgs) -> Result<Outcome> {
    let _ = args;
    Err(Error::new(errno::ENOSYS, "status: this build has no engine"))
}
