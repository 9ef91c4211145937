//! `vmstream fetch`: completes an image into an ordinary file.

use std::path::PathBuf;

use clap::Args;
use vmstream::error::{Error, Result, errno};

use crate::Outcome;

/// Fetch a whole image into FILE, going on where an earlier run stopped
///
/// Until it is complete a journal lies beside FILE; it remembers what has arrived. With the last block
/// FILE is an ordinary raw image.
#[derive(Args)]
pub struct FetchArgs {
    /// The raw image: http://, https://, file: or pattern:SIZE
    pub url: String,

    /// Where to put the image
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

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

/// Fetches until the image is complete or a signal ends it.
pub fn run(args: &FetchArgs) -> Result<Outcome> {
    let _ = args;
    Err(Error::new(errno::ENOSYS, "fetch: this build has no engine"))
}
