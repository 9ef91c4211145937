//! `vmstream verify`: is what a cache holds what was published?

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use clap::Args;
use vmstream::block::{BlockRange, Geometry};
use vmstream::config::Config;
use vmstream::error::{Error, Result, errno};
use vmstream::source;
use vmstream::store;
use vmstream::tree::Tree;

use crate::published::Hashes;
use crate::{Outcome, progress};

/// Bytes that are read and checked at a time.
const PIECE_BYTES: u64 = 4 << 20;
/// Exit code when blocks differ: as for what failed, since a script that expects an untouched cache asks just that.
const EXIT_DIFFERS: u8 = 1;

/// Compare what a cache holds with the published image
///
/// Says how many of its blocks are the published ones, how many differ, and where. What a guest has written differs, and
/// rightly so. Only reads, so it is safe while the cache is in use.
#[derive(Args)]
pub struct VerifyArgs {
    /// The directory given to --cache, the file given to fetch -o, or any raw image
    pub cache: PathBuf,

    /// The link of the published image; without it the one that the cache was made from
    pub link: Option<String>,

    /// Set an option of the source, such as mirror=URL or cacert=FILE; repeatable
    #[arg(long = "option", value_name = "KEY=VALUE")]
    pub options: Vec<String>,
}

/// What lies on the disk.
struct Local {
    path: PathBuf,
    /// What is held; `None` for an image without a journal, which holds all.
    resident: Option<Vec<BlockRange>>,
    geometry: Option<Geometry>,
    /// Where it came from, if from a published image.
    link: Option<String>,
}

/// What the comparison came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    same: u64,
    differs: Vec<BlockRange>,
}

/// Compares, and prints the verdict.
pub fn run(args: &VerifyArgs) -> Result<Outcome> {
    let local = Local::find(&args.cache)?;
    let Some(link) = args.link.clone().or_else(|| local.link.clone()) else {
        let text = format!("{} was not made from a published image: give the link as well", args.cache.display());
        return Err(Error::new(errno::EINVAL, text));
    };
    let mut options = vec![format!("source={link}")];
    options.extend(args.options.iter().cloned());
    let source = source::open(&Config::parse(&options)?, None)?;
    let hashes = Hashes::of(&*source)?;
    let geometry = hashes.tree().geometry();
    if local.geometry.is_some_and(|held| held != geometry) {
        let text = format!("{} is a cache of another image: size or block size differ", args.cache.display());
        return Err(Error::new(errno::EINVAL, text));
    }
    let file =
        File::open(&local.path).map_err(|e| Error::io(format_args!("cannot open {}", local.path.display()), e))?;
    let length =
        file.metadata().map_err(|e| Error::io(format_args!("cannot examine {}", local.path.display()), e))?.len();
    if length != geometry.size() {
        let text = format!("{} has {length} bytes, and the image {}", local.path.display(), geometry.size());
        return Err(Error::new(errno::EINVAL, text));
    }
    let runs = local.resident.unwrap_or_else(|| vec![geometry.all()]);
    let verdict = compare(&hashes, &file, &local.path, &runs)?;
    // A reader that went away is no failure.
    let _ = std::io::stdout().write_all(text(&verdict, hashes.tree()).as_bytes());
    Ok(if verdict.differs.is_empty() { Outcome::Done } else { Outcome::Ended(EXIT_DIFFERS) })
}

impl Local {
    fn find(path: &Path) -> Result<Self> {
        match store::inspect(path) {
            Ok(summary) => {
                let pinned = summary.pinned;
                let root = pinned.identity.validator.as_deref().and_then(|text| text.strip_prefix("root:"));
                Ok(Self {
                    path: summary.image,
                    resident: Some(summary.resident),
                    geometry: Some(pinned.geometry),
                    link: root.map(|root| format!("{}#{root}", pinned.source)),
                })
            }
            // No journal: a finished image, or one that never was a cache.
            Err(error) if error.errno() == errno::ENOENT && path.exists() => {
                let disk = path.join("disk");
                let path = if path.is_dir() { disk } else { path.to_owned() };
                Ok(Self { path, resident: None, geometry: None, link: None })
            }
            Err(error) => Err(error),
        }
    }
}

/// Checks all blocks of `runs`, which are those that are held.
fn compare(hashes: &Hashes, file: &File, path: &Path, runs: &[BlockRange]) -> Result<Verdict> {
    let geometry = hashes.tree().geometry();
    let piece_blocks = PIECE_BYTES / geometry.block_bytes();
    let mut verdict = Verdict::default();
    let mut buffer = Vec::new();
    for run in runs.iter().map(|run| run.intersect(geometry.all())) {
        let mut at = run.start.0;
        while at < run.end.0 {
            let piece = BlockRange::new(at, run.end.0.min(at + piece_blocks));
            at = piece.end.0;
            hashes.load(piece)?;
            buffer.resize(geometry.length(piece) as usize, 0);
            let read = file.read_exact_at(&mut buffer, geometry.offset(piece));
            read.map_err(|e| {
                Error::io(format_args!("cannot read {} at {}", path.display(), geometry.offset(piece)), e)
            })?;
            for (block, bytes) in piece.iter().zip(buffer.chunks(geometry.block_bytes() as usize)) {
                match hashes.tree().check(block, bytes) {
                    Ok(()) => verdict.same += 1,
                    Err(lie) if lie.is_missing() => return Err(Error::new(errno::EIO, lie.to_string())),
                    Err(_) => match verdict.differs.last_mut() {
                        Some(last) if last.end == block => last.end.0 += 1,
                        _ => verdict.differs.push(BlockRange::one(block)),
                    },
                }
            }
        }
    }
    Ok(verdict)
}

fn text(verdict: &Verdict, tree: &Tree) -> String {
    let geometry = tree.geometry();
    let differ: u64 = verdict.differs.iter().map(|range| range.len()).sum();
    let held = verdict.same + differ;
    let bytes = |blocks: u64| progress::size((blocks * geometry.block_bytes()).min(geometry.size()));
    let mut text = format!("root       {}\nheld       {held} blocks ({})\n", tree.root(), bytes(held));
    let _ = writeln!(text, "published  {} blocks ({})", verdict.same, bytes(verdict.same));
    let _ = writeln!(text, "different  {differ} blocks ({})", bytes(differ));
    for &range in &verdict.differs {
        let _ = writeln!(
            text,
            "  bytes {}-{}",
            geometry.offset(range),
            geometry.offset(range) + geometry.length(range) - 1
        );
    }
    text
}
