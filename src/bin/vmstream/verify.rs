//! `vmstream verify`: is what a cache holds what was published?

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use vmstream::block::{Block, BlockRange, Geometry};
use vmstream::config::Config;
use vmstream::error::{Error, Result, errno};
use vmstream::source::published::{Address, KEPT_ENDING, root_of};
use vmstream::source::{self, Identity};
use vmstream::store;
use vmstream::tree::{Root, Tree};

use crate::local::LocalImage;
use crate::progress::Meter;
use crate::published::Hashes;
use crate::report::REPORT_EVERY;
use crate::{Outcome, link, progress};

/// Bytes that are read and checked at a time.
const PIECE_BYTES: u64 = 4 << 20;
/// Between the names of places in that of an image with mirrors.
const BETWEEN_PLACES: &str = ", ";
/// Exit code when blocks differ: not that of what failed, so that a script can tell a damaged cache from an origin that is away.
const EXIT_DIFFERS: u8 = 3;

/// Compare what a cache holds with the published image
///
/// Says how many of its blocks are the published ones, how many differ, and where. What a guest has written differs, and
/// rightly so. Only reads, so it is safe while the cache is in use.
#[derive(Args)]
pub struct VerifyArgs {
    /// The directory given to --cache, the file given to fetch -o, or any raw image
    pub cache: PathBuf,

    /// The link of the published image (URL.vmp#HASH); without it the version that the cache was made from is looked for where
    /// it came from
    pub link: Option<String>,

    /// Set an option of the source, such as mirror=URL or cacert=FILE; repeatable
    #[arg(long = "option", value_name = "KEY=VALUE")]
    pub options: Vec<String>,

    /// Show progress even when standard error is no terminal
    #[arg(long)]
    pub progress: bool,
}

/// What lies on the disk.
struct Local {
    image: LocalImage,
    /// What is held; `None` for an image without a journal, which holds all.
    resident: Option<Vec<BlockRange>>,
    geometry: Option<Geometry>,
    /// Where it came from, if from a published image.
    origin: Option<Origin>,
}

/// What a cache knows of the published image that it was made from.
struct Origin {
    identity: Identity,
    root: Root,
    /// The places that it came from, as they were called in messages: without credentials.
    name: String,
    /// Where the pointer to this version is kept.
    kept: PathBuf,
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
    let hashes = match (&args.link, &local.origin) {
        (Some(link), _) => {
            let options = [format!("source={}", link::source(link)?)].into_iter().chain(args.options.iter().cloned());
            Hashes::of(source::open(&Config::parse(options)?, None)?)?
        }
        (None, Some(origin)) => origin.hashes(&args.options).map_err(|error| {
            let text = format!(
                "{error}; if {} is not where it is to be found, give its link as well (NAME.vmp#{})",
                origin.name, origin.root
            );
            Error::new(error.errno(), text)
        })?,
        (None, None) => {
            let text = format!("{} was not made from a published image: give the link as well", args.cache.display());
            return Err(Error::new(errno::EINVAL, text));
        }
    };
    let geometry = hashes.tree().geometry();
    if local.geometry.is_some_and(|held| held != geometry) {
        let text = format!("{} is a cache of another image: size or block size differ", args.cache.display());
        return Err(Error::new(errno::EINVAL, text));
    }
    if local.image.size() != geometry.size() {
        let (path, bytes) = (local.image.path().display(), local.image.size());
        let text = format!("{path} has {bytes} bytes, and the image {}", geometry.size());
        return Err(Error::new(errno::EINVAL, text));
    }
    let runs = local.resident.unwrap_or_else(|| vec![geometry.all()]);
    let total = runs.iter().map(|run| run.len()).sum();
    let gauge = Gauge { meter: Meter::new(args.progress), drawn: None, geometry, total };
    let mut comparison = Comparison { hashes: &hashes, image: &local.image, verdict: Verdict::default(), gauge };
    runs.iter().try_for_each(|run| comparison.compare(run.intersect(geometry.all())))?;
    let Comparison { verdict, gauge, .. } = comparison;
    drop(gauge);
    // A reader that went away is no failure.
    let _ = std::io::stdout().write_all(text(&verdict, hashes.tree()).as_bytes());
    Ok(if verdict.differs.is_empty() { Outcome::Done } else { Outcome::Ended(EXIT_DIFFERS) })
}

impl Local {
    fn find(path: &Path) -> Result<Self> {
        match store::inspect(path) {
            Ok(summary) => {
                let store::Pinned { identity, geometry, source: name, .. } = summary.pinned;
                let mut kept = summary.image.clone().into_os_string();
                kept.push(KEPT_ENDING);
                let root = root_of(&identity);
                Ok(Self {
                    image: LocalImage::open(&summary.image)?,
                    resident: Some(summary.resident),
                    geometry: Some(geometry),
                    origin: root.map(|root| Origin { identity, root, name, kept: kept.into() }),
                })
            }
            // No journal: a finished image, or one that never was a cache.
            Err(error) if error.errno() == errno::ENOENT && path.exists() => {
                Ok(Self { image: LocalImage::open(path)?, resident: None, geometry: None, origin: None })
            }
            Err(error) => Err(error),
        }
    }
}

impl Origin {
    /// The hashes of the version that the cache is of, also when the places have another one by now.
    fn hashes(&self, options: &[String]) -> Result<Hashes> {
        let mut places = vec![self.name.as_str()];
        let several: Vec<_> = self.name.split(BETWEEN_PLACES).collect();
        // A comma may also be part of the name of a single place.
        if several.iter().all(|place| Address::parse(place).is_ok_and(|address| address.is_some())) {
            places = several;
        }
        let keys = std::iter::once("source").chain(std::iter::repeat("mirror"));
        let links = keys.zip(places).map(|(key, place)| format!("{key}={place}#{}", self.root));
        let config = Config::parse(links.chain(options.iter().cloned()))?;
        let source = source::open(&config, Some(&self.identity))?;
        if let Some(published) = source.published() {
            published.recall_pointer(self.kept.clone());
        }
        Hashes::of(source)
    }
}

/// A comparison under way.
struct Comparison<'a> {
    hashes: &'a Hashes,
    image: &'a LocalImage,
    verdict: Verdict,
    gauge: Gauge,
}

impl Comparison<'_> {
    /// Compares the blocks of a range, which are held. What is a hole in both images is not read.
    fn compare(&mut self, range: BlockRange) -> Result<()> {
        let hashes = self.hashes;
        let mut at = range.start;
        for used in hashes.tree().holes().used_in(range) {
            self.compare_hole(BlockRange { start: at, end: used.start })?;
            self.read(used)?;
            at = used.end;
        }
        self.compare_hole(BlockRange { start: at, end: range.end })
    }

    /// Compares blocks that are zero in the published image.
    fn compare_hole(&mut self, hole: BlockRange) -> Result<()> {
        let shift = self.hashes.tree().geometry().block_shift();
        let mut at = hole.start;
        while at < hole.end {
            let data = self.image.next_data(at.0 << shift)?;
            let data = data.map_or(hole.end, |data| Block(data >> shift).clamp(at, hole.end));
            self.verdict.same += data.0 - at.0;
            self.gauge.show(&self.verdict);
            if data == hole.end {
                break;
            }
            let end = self.image.next_hole(data.0 << shift)?.map_or(hole.end.0, |end| end.div_ceil(1 << shift));
            at = Block(end.clamp(data.0 + 1, hole.end.0));
            self.read(BlockRange { start: data, end: at })?;
        }
        Ok(())
    }

    /// Reads and compares.
    fn read(&mut self, range: BlockRange) -> Result<()> {
        let tree = self.hashes.tree();
        let geometry = tree.geometry();
        let piece_blocks = PIECE_BYTES / geometry.block_bytes();
        let mut buffer = Vec::new();
        let mut at = range.start.0;
        while at < range.end.0 {
            let piece = BlockRange::new(at, range.end.0.min(at + piece_blocks));
            at = piece.end.0;
            self.hashes.load(piece)?;
            buffer.resize(geometry.length(piece) as usize, 0);
            self.image.read(geometry.offset(piece), &mut buffer)?;
            for (block, bytes) in piece.iter().zip(buffer.chunks(geometry.block_bytes() as usize)) {
                match tree.check(block, bytes) {
                    Ok(()) => self.verdict.same += 1,
                    Err(lie) if lie.is_missing() => return Err(Error::new(errno::EIO, lie.to_string())),
                    Err(_) => self.verdict.differs_at(block),
                }
            }
            self.gauge.show(&self.verdict);
        }
        Ok(())
    }
}

impl Verdict {
    fn differs_at(&mut self, block: Block) {
        match self.differs.last_mut() {
            Some(last) if last.end == block => last.end.0 += 1,
            _ => self.differs.push(BlockRange::one(block)),
        }
    }

    fn different(&self) -> u64 {
        self.differs.iter().map(|range| range.len()).sum()
    }
}

/// Shows how far a comparison is.
struct Gauge {
    meter: Meter,
    drawn: Option<Instant>,
    geometry: Geometry,
    /// Blocks to compare.
    total: u64,
}

impl Gauge {
    fn show(&mut self, verdict: &Verdict) {
        if self.drawn.is_some_and(|drawn| drawn.elapsed() < REPORT_EVERY) {
            return;
        }
        self.drawn = Some(Instant::now());
        self.meter.show(&line(self.geometry, verdict, self.total));
    }
}

/// The progress line.
fn line(geometry: Geometry, verdict: &Verdict, total: u64) -> String {
    let different = verdict.different();
    let bytes = |blocks: u64| (blocks * geometry.block_bytes()).min(geometry.size());
    let (compared, all) = (bytes(verdict.same + different), bytes(total));
    format!("compared {:>7} of {}  different {different}", progress::percent(compared, all), progress::size(all))
}

fn text(verdict: &Verdict, tree: &Tree) -> String {
    let geometry = tree.geometry();
    let differ = verdict.different();
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
