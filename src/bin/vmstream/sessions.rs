//! `vmstream sessions`: what was recorded beside a cache, to be looked at or sent to the image's publisher.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use vmstream::config::Config;
use vmstream::error::{Error, Result};
use vmstream::session::{self, Directory, Recording};
use vmstream::uploader::{self, Sent};

use crate::bucket::{self, Bucket, Label};
use crate::publish::stop::Stop;
use crate::{Outcome, progress};

/// List the sessions recorded beside a cache: when, how long, what they needed and how they waited
///
/// Only reads, so it is safe while the cache is in use; of a session that goes on it shows what has been written. With
/// --send nothing is listed.
#[derive(Args)]
pub struct SessionsArgs {
    /// The directory given to --cache, or one given as sessions=DIR
    pub cache: PathBuf,

    /// Print a JSON array of objects instead of lines for a person
    #[arg(long)]
    pub json: bool,

    /// Send the sessions that were not sent there yet to the publisher at this URL, or to a bucket of S3 at
    /// s3://BUCKET/PREFIX: numbers of blocks and times only
    #[arg(long, value_name = "URL", conflicts_with = "json")]
    pub send: Option<String>,

    /// The file whose first line is the token that lets sessions in there
    #[arg(long, value_name = "FILE", requires = "send")]
    pub token: Option<PathBuf>,
}

/// What `--json` prints of each session. The keys are part of the tool's interface: they are added to, never renamed.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    file: String,
    started: Option<String>,
    length_s: f64,
    accesses: usize,
    needed_bytes: u64,
    stalls: usize,
    stall_s: f64,
    marks: Vec<String>,
    image_size: u64,
    block_size: u64,
    validator: Option<String>,
    lost_bytes: u64,
}

impl Row {
    fn new(path: &Path, recording: &Recording) -> Self {
        let Recording { subject, session, lost_bytes } = recording;
        let stalls = || session.accesses.iter().filter(|access| !access.stalled.is_zero());
        Self {
            file: path.display().to_string(),
            started: subject.started.map(|at| at.to_string()),
            length_s: session.length().as_secs_f64(),
            accesses: session.accesses.len(),
            needed_bytes: session.first_needs().map(|(_, range)| subject.geometry.length(range)).sum(),
            stalls: stalls().count(),
            stall_s: session.stood_still().as_secs_f64(),
            marks: session.marks.iter().map(|mark| mark.1.clone()).collect(),
            image_size: subject.geometry.size(),
            block_size: subject.geometry.block_bytes(),
            validator: subject.validator.clone(),
            lost_bytes: *lost_bytes,
        }
    }
}

/// Prints the sessions to standard output, the oldest first. A file that cannot be read is said and passed over.
pub fn run(args: &SessionsArgs) -> Result<Outcome> {
    let directory = session::directory::find(&args.cache)?;
    if let Some(url) = &args.send {
        return send(&Directory::new(&directory, 0), url, args.token.as_deref());
    }
    let mut rows = Vec::new();
    for path in Directory::new(&directory, 0).list()? {
        match session::load(&path) {
            Ok(recording) => rows.push(Row::new(&path, &recording)),
            Err(error) => log::warn!("{error}"),
        }
    }
    let text = if args.json {
        serde_json::to_string_pretty(&rows).map_err(|e| Error::io("cannot write the list", e.into()))? + "\n"
    } else {
        lines(&rows)
    };
    // A reader that went away (`| head -1`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(Outcome::Done)
}

/// Sends sessions and says how many.
fn send(directory: &Directory, url: &str, token: Option<&Path>) -> Result<Outcome> {
    let sent = if url.starts_with(bucket::SCHEME) {
        if token.is_some() {
            return Err(Error::option(
                "--token",
                "FILE",
                "is for a publisher's server: a bucket knows other credentials",
            ));
        }
        to_bucket(directory, url)?
    } else {
        let token = token.map(uploader::read_token).transpose()?;
        uploader::send_all(directory, url, &Config::default().http, token.as_deref())?
    };
    // A reader that went away is no failure.
    let _ = writeln!(std::io::stdout(), "{sent}");
    Ok(Outcome::Done)
}

/// Sends sessions to a bucket. Each is called by a hash of what is sent, so one that comes again takes its own place.
fn to_bucket(directory: &Directory, url: &str) -> Result<Sent> {
    let address: bucket::Address = url.parse().map_err(|e: String| Error::option("--send", url, e))?;
    let bucket = Bucket::open(&address, &Stop::default())?;
    let label = Label { cache: "private, no-cache", kind: "application/octet-stream", root: None };
    uploader::send_by(directory, &address.to_string(), &|session| {
        bucket.put(&format!("{}.vms", &blake3::hash(session).to_hex()[..32]), session, &label)
    })
}

fn lines(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no sessions\n".to_owned();
    }
    let mut text = format!(
        "{:<20} {:>9} {:>9} {:>10} {:>7} {:>9}  {}\n",
        "STARTED", "LENGTH", "ACCESSES", "NEEDED", "STALLS", "STALLED", "MARKS"
    );
    for row in rows {
        // To the second is enough for a person; the files have it all.
        let started = row.started.as_deref().and_then(|at| at.split_once('.')).map_or("unknown", |(at, _)| at);
        let _ = writeln!(
            text,
            "{:<20} {:>8.1}s {:>9} {:>10} {:>7} {:>8.1}s  {}",
            started,
            row.length_s,
            row.accesses,
            progress::size(row.needed_bytes),
            row.stalls,
            row.stall_s,
            printable(&row.marks.join(", "))
        );
    }
    text
}

/// Names come from whoever used the image: none of them shall give orders to a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_summed_up() {
        let text = "# vmtrace 1 size=100000 block=4096 started=1795359888123456\n\
            1000000 R 0 8192 wait=250000\n\
            # 1100000 mark log\x1bin\n\
            2000000 W 0 4096\n\
            3000000 R 98304 1696 wait=500000\n";
        let recording = session::text::parse_recording("t", text.as_bytes()).unwrap();
        let row = Row::new(Path::new("/s/a.vms"), &recording);
        assert_eq!((row.accesses, row.stalls, row.stall_s, row.length_s), (3, 2, 0.75, 3.5));
        assert_eq!(row.needed_bytes, 8192 + 1696, "the last block of the image is short");
        let text = lines(&[row]);
        assert!(text.contains("2026-11-22T15:04:48 ") && text.ends_with("  log in\n"), "{text}");
        assert_eq!(lines(&[]), "no sessions\n");
    }
}
