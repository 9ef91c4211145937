//! `vmstream fetch`: completes an image into an ordinary file.

mod reuse;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use vmstream::Image;
use vmstream::error::{Error, Result, errno};

use crate::report::{REPORT_EVERY, ReportArgs, Reporter};
use crate::{Outcome, link, progress, signals};

/// How often to look whether the image is complete.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Fetch a whole image into FILE, going on where an earlier run stopped
///
/// Until it is complete a journal lies beside FILE; it remembers what has arrived. With the last block
/// FILE is an ordinary raw image.
#[derive(Args)]
pub struct FetchArgs {
    /// The raw image (http://, https://, file: or pattern:SIZE), or the link to a published one: URL.vmp#HASH, or vmstream://HOST/PATH.vmp#HASH
    pub url: String,

    /// Where to put the image
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

    /// Copy from this cache, raw image or block device what a published image has as well, such as an older version of it; repeatable
    #[arg(long, value_name = "OLD")]
    pub reuse: Vec<PathBuf>,

    /// Set an option of the image, such as mirror=URL or connections=4; repeatable
    #[arg(long = "option", value_name = "KEY=VALUE")]
    pub options: Vec<String>,

    #[command(flatten)]
    pub report: ReportArgs,
}

/// Fetches until the image is complete or a signal ends it.
pub fn run(args: &FetchArgs) -> Result<Outcome> {
    let stop = Arc::new(AtomicI32::new(0));
    let seen = stop.clone();
    let opening = signals::Opening::default();
    let opened = opening.clone();
    signals::handle(move |event| {
        opening.end_on(event);
        if let signals::Event::Stop(signal) = event {
            seen.store(signal, Ordering::Release);
        }
    })?;
    let mut reporter = Reporter::new(&args.report)?;
    let source = link::source(&args.url)?;
    let mut options = vec![
        format!("source={source}"),
        format!("file={}", args.output.display()),
        "bulk=on".to_owned(),
        // What lies here already is not fetched.
        format!("fill={}", if args.reuse.is_empty() { "on" } else { "off" }),
        "prefetch=none".to_owned(),
    ];
    options.extend(args.options.iter().cloned());
    let olds = reuse::open(&args.reuse, &source, &args.output)?;
    let image = Image::open(&options)?;
    opened.done();
    for old in &olds {
        let copied = reuse::copy(&image, old, &|| stop.load(Ordering::Acquire) != 0)?;
        log::info!("{} copied from {}", progress::size(copied), old.path().display());
    }
    if !args.reuse.is_empty() {
        image.flush()?;
        image.set("fill", "on")?;
    }
    let mut reported: Option<Instant> = None;
    while !image.is_complete() {
        let signal = stop.load(Ordering::Acquire);
        if signal != 0 {
            reporter.report(&image);
            drop(reporter);
            image.close()?;
            log::warn!("{} is not complete; the same command goes on from here", args.output.display());
            return Ok(Outcome::Interrupted(signal));
        }
        if reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            reported = Some(Instant::now());
            reporter.report(&image);
            if image.stats().failed {
                let why = image.last_error().unwrap_or_default();
                let text = format!("{} cannot be completed: {why}", args.output.display());
                return Err(Error::new(errno::EIO, text));
            }
        }
        thread::sleep(LOOK_EVERY);
    }
    reporter.report(&image);
    drop(reporter);
    image.finish()?;
    Ok(Outcome::Done)
}
