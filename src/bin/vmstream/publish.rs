//! `vmstream publish`: an image becomes something that can be streamed from any web server.
//!
//! What lies at the origin afterwards is told in `docs/format.md`, how it is used in `docs/publishing.md`. One noun a file:
//! `image`, `parts`, `bootable` and `qcow2` read what is published, `hash` goes over it once, `site` is the directory it goes to,
//! `versions` knows which files are old, `learn` puts a model and packs beside it, `prepared` is what belongs to a model that is
//! about to be published, `collected` is what a server has learnt meanwhile,
//! `moved` finds blocks of an older version again.

mod bootable;
pub mod collected;
mod compress;
mod gauge;
mod hash;
mod image;
pub mod learn;
mod moved;
pub mod pack;
mod parts;
pub mod prepared;
mod qcow2;
pub mod site;
pub mod stop;
mod versions;

use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use vmstream::block::{BLOCK_BYTES_DEFAULT, Geometry};
use vmstream::error::{Error, Result, errno};
use vmstream::source::published::{NamedFile, Pointer};
use vmstream::tree::Tree;

use crate::bucket::{self, Bucket};
use crate::point::boot::Boot;
use crate::{Outcome, progress};
use gauge::Gauge;
use hash::Hashed;
use image::Input;
use pack::Kept;
use site::{Desk, Draft, Site};
use stop::Stop;

/// How often to look whether all is sent, and how long what is under way to a bucket may take to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const END_TIME_MAX: Duration = Duration::from_millis(500);

/// Put an image into a directory from which any web server can stream it
///
/// Beside the raw image come a tree of hashes, so that readers need not trust the server, and, where guests were watched,
/// a model and packs of what they use. The last line of standard output is the link to pass around. Publishing
/// again under the same name writes what has changed, and a reader sees the old or the new.
#[derive(Args)]
pub struct PublishArgs {
    /// A raw or qcow2 image, a block device, or a cache of vmstream that nobody uses
    pub image: PathBuf,

    /// IMAGE is a restore point: a directory that 'vmstream snapshot' has filled
    #[arg(long, conflicts_with = "link")]
    pub restore_point: bool,

    /// Say in the image what 'vmstream run' boots it in, and with how much memory
    #[arg(long, value_name = "uml[,root=ubda1][,memory=512M]", value_parser = Boot::option, conflicts_with_all = ["link", "restore_point"])]
    pub boot: Option<Boot>,

    /// The directory to publish to
    #[arg(short, long, value_name = "SITE")]
    pub output: PathBuf,

    /// What the image is called there; without it, what its file is called
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Copy nothing: publish the raw file where it lies in SITE, or a hard link to it
    #[arg(long)]
    pub link: bool,

    /// Take what guests will want from this model instead of the one that was published before
    #[arg(long, value_name = "MODEL")]
    pub model: Option<PathBuf>,

    /// Learn the sessions in this directory
    #[arg(long, value_name = "DIR")]
    pub sessions: Option<PathBuf>,

    /// Keep the files of so many versions for readers that began with them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub keep: Option<u16>,

    /// Invite readers to send their sessions to this URL, absolute or beside the pointer
    #[arg(long, value_name = "URL")]
    pub collect: Option<String>,

    /// Send it to this bucket of S3 as well
    #[arg(long, value_name = "s3://BUCKET/PREFIX")]
    pub to: Option<bucket::Address>,

    /// The address under which SITE is served, for the link
    #[arg(long, value_name = "BASE")]
    pub url: Option<site::Base>,
}

/// Publishes, and prints the link.
pub fn run(args: &PublishArgs) -> Result<Outcome> {
    let stop = Stop::on_signals()?;
    stop.outcome(publish(args, &stop))
}

fn publish(args: &PublishArgs, stop: &Stop) -> Result<Outcome> {
    let name = match &args.name {
        Some(name) => name.as_str(),
        None => site::name_of(&args.image).unwrap_or_default(),
    };
    site::check_name(name).map_err(|e| Error::new(e.errno(), format!("{e}; --name NAME gives it one")))?;
    let bucket = args.to.as_ref().map(|to| Bucket::open(to, stop)).transpose()?;
    // Before anything is made: a slip in the image's name leaves no directory behind.
    let input = if args.restore_point { Input::open_point(&args.image)? } else { Input::open(&args.image, stop)? };
    let input = match &args.boot {
        Some(boot) => input.bootable(boot),
        None => input,
    };
    let geometry = Geometry::new(input.size(), BLOCK_BYTES_DEFAULT)?;
    let site = Site::make(&args.output)?;
    let desk = site.desk(name)?;
    let before = desk.pointer()?;
    let kept = match &before {
        Some(pointer) => pack::kept(&site, name, pointer)?,
        None => Kept::default(),
    };

    let job = Job { args, desk: &desk, input: &input, geometry, before: before.as_ref(), kept: &kept, stop };
    let (hashed, mut drafts, mut pointer) = job.image()?;
    if let Some(collect) = &args.collect {
        pointer.sessions = Some(collect.clone());
        // What no reader would take is not published.
        if Pointer::parse(pointer.to_string().as_bytes()).ok().as_ref() != Some(&pointer) {
            let reason = "must be an http or https URL, or a name beside the pointer such as sessions/disk";
            return Err(Error::option("--collect", collect, reason));
        }
    }
    let tree = Tree::read(&hashed.tree, hashed.root)?;
    let lesson = job.lesson(&pointer, &tree)?;
    if let Some(lesson) = lesson.as_ref().filter(|lesson| lesson.changed || pointer.packs.is_none() || !kept.sound) {
        // The image has its public name only when all of it has.
        let image = drafts
            .iter()
            .find(|(_, file)| *file == pointer.image)
            .map_or(desk.path(&pointer.image), |(draft, _)| draft.path().to_owned());
        let (draft, packs) = pack::pack(&desk, &tree, &lesson.model, &image, stop)?;
        drafts.push((draft, packs.name.clone()));
        pointer.packs = Some(packs);
    } else if !kept.sound {
        // Nobody knows any more what was in them.
        pointer.packs = None;
    }
    input.check_unchanged()?;
    stop.check()?;
    if let Some(lesson) = &lesson {
        lesson.announce(&desk)?;
    }
    let unchanged = before.as_ref() == Some(&pointer) && drafts.is_empty();
    if unchanged {
        log::info!("{name} is published already as it is");
        if let Some(keep) = args.keep {
            desk.keep(usize::from(keep))?;
        }
    } else {
        desk.publish(&pointer, drafts, args.keep.map(usize::from))?;
    }
    if let Some(lesson) = lesson {
        lesson.keep(&desk)?;
    }
    say(&tree, &pointer, &hashed);
    let mut link = site::link(args.url.as_ref(), &site, name, &hashed.root);
    if let Some(bucket) = bucket {
        let url = upload(bucket, &site, name, stop)?;
        if args.url.is_none() {
            link = format!("{url}#{}", hashed.root);
        }
    }
    writeln!(std::io::stdout(), "{link}").map_err(|e| Error::io("cannot print the link", e))?;
    Ok(Outcome::Done)
}

/// Sends what is published to a bucket; answers the pointer's address there. On a thread of its own, because a request
/// whose answer does not come cannot be broken off: who wants to end waits for it a little and then leaves it behind.
fn upload(bucket: Bucket, site: &Site, name: &str, stop: &Stop) -> Result<String> {
    let (sender, outcome) = channel();
    let (site, name, seen) = (site.clone(), name.to_owned(), stop.clone());
    let work = move || {
        let gauge = Mutex::new(None::<(Gauge, u64)>);
        let sent = bucket::upload::upload(site.directory(), &name, &bucket, &|sent, all| {
            let mut gauge = gauge.lock().unwrap_or_else(PoisonError::into_inner);
            let (gauge, shown) = gauge.get_or_insert_with(|| (Gauge::new("sent", all), 0));
            // Lanes come here in no order.
            gauge.read(sent.saturating_sub(*shown));
            *shown = sent.max(*shown);
            seen.signal().is_none()
        });
        // Nobody listens any more when it took too long to end.
        let _ = sender.send(sent);
    };
    let started = thread::Builder::new().name("upload".into()).spawn(work);
    started.map_err(|e| Error::io("cannot start the thread that sends", e))?;
    let mut ending = None;
    loop {
        match outcome.recv_timeout(LOOK_EVERY) {
            // Also when the wish to end came too late: it is all there.
            Ok(Ok(url)) => return Ok(url),
            // What it was ended by says more than where.
            Ok(Err(error)) => return stop.check().and(Err(error)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Error::new(errno::EIO, "sending broke off: a defect")),
        }
        if stop.signal().is_some() && ending.get_or_insert_with(Instant::now).elapsed() > END_TIME_MAX {
            log::warn!("ended in the middle of a request: parts of a large file may be left over in the bucket");
            stop.check()?;
        }
    }
}

/// What one call works on.
struct Job<'a> {
    args: &'a PublishArgs,
    desk: &'a Desk,
    input: &'a Input,
    geometry: Geometry,
    /// What is published now.
    before: Option<&'a Pointer>,
    /// What was learnt before.
    kept: &'a Kept,
    stop: &'a Stop,
}

/// Files with the names they will get.
type Drafts = Vec<(Draft, String)>;

impl Job<'_> {
    /// Reads the image, and makes what depends on it alone: drafts of the files that are not there yet, and a pointer.
    fn image(&self) -> Result<(Hashed, Drafts, Pointer)> {
        let looks_the_same = self
            .before
            .is_some_and(|pointer| (pointer.geometry, pointer.mtime_s) == (self.geometry, Some(self.input.mtime_s())));
        if !self.args.link && !looks_the_same {
            return self.copy();
        }
        let hashed = self.pass(None)?;
        if let Some(pointer) = self.as_it_lies(&hashed)? {
            return Ok((hashed, Vec::new(), pointer));
        }
        // It only looked the same, or its files are not what they were.
        if self.args.link { self.link(hashed) } else { self.copy() }
    }

    fn pass(&self, copy: Option<&Draft>) -> Result<Hashed> {
        let shown = copy.map_or(String::new(), |draft| draft.path().display().to_string());
        let mut gauge = Gauge::new(if copy.is_some() { "copied" } else { "read" }, self.input.data_bytes());
        let copy = copy.map(|draft| (&draft.file, shown.as_str()));
        hash::pass(self.input, self.geometry, copy, &mut gauge, self.stop)
    }

    /// Copies the image, unless it turns out that what it is made of is published already.
    fn copy(&self) -> Result<(Hashed, Drafts, Pointer)> {
        let draft = self.desk.draft("image")?;
        let hashed = self.pass(Some(&draft))?;
        if let Some(pointer) = self.as_it_lies(&hashed)? {
            return Ok((hashed, Vec::new(), pointer));
        }
        draft.set_mtime(self.input.mtime_s())?;
        let file = self.desk.file_name(&hashed.root.to_string(), "raw");
        self.with_tree(hashed, vec![(draft, file.clone())], file)
    }

    /// Publishes the file itself.
    fn link(&self, hashed: Hashed) -> Result<(Hashed, Drafts, Pointer)> {
        let Some(path) = self.input.raw_file() else {
            let text =
                format!("{} is not a raw file, so --link cannot leave it where it is", self.input.path().display());
            return Err(Error::new(errno::EINVAL, text));
        };
        if let Some(file) = site::name_within(self.desk.site().directory(), path)? {
            return self.with_tree(hashed, Vec::new(), file);
        }
        let draft = self.desk.link(path, "image").map_err(|e| {
            let what = format!(
                "cannot link {} into {} (leave out --link to copy it, or move it into that directory)",
                path.display(),
                self.desk.site().directory().display()
            );
            Error::io(what, e)
        })?;
        let file = self.desk.file_name(&hashed.root.to_string(), "raw");
        self.with_tree(hashed, vec![(draft, file.clone())], file)
    }

    /// Adds the draft of the tree, and makes the pointer to all of it.
    fn with_tree(&self, hashed: Hashed, mut drafts: Drafts, image: String) -> Result<(Hashed, Drafts, Pointer)> {
        let file = self.desk.file_name(&hashed.root.to_string(), "vmt");
        let draft = self.desk.draft("tree")?;
        let written = (&draft.file).write_all(&hashed.tree);
        written.map_err(|e| Error::io(format_args!("cannot write {}", draft.path().display()), e))?;
        drafts.push((draft, file.clone()));
        let pointer = Pointer {
            geometry: self.geometry,
            mtime_s: Some(self.input.mtime_s()),
            image,
            tree: NamedFile { name: file, bytes: hashed.tree.len() as u64 },
            root: hashed.root,
            packs: self.before.filter(|pointer| pointer.root == hashed.root).and_then(|pointer| pointer.packs.clone()),
            sessions: self.before.and_then(|pointer| pointer.sessions.clone()),
        };
        Ok((hashed, drafts, pointer))
    }

    /// What is published, if it is what was read just now and its files are what they were. Who publishes again expects
    /// that everything is right afterwards, and a server's disk may have bad blocks; so the image that lies there is read as well.
    fn as_it_lies(&self, hashed: &Hashed) -> Result<Option<Pointer>> {
        let Some(pointer) = self.before.filter(|pointer| pointer.root == hashed.root) else { return Ok(None) };
        if std::fs::read(self.desk.path(&pointer.tree.name)).ok().as_ref() != Some(&hashed.tree) {
            log::warn!("{} is not what was published: it is made again", pointer.tree.name);
            return Ok(None);
        }
        let path = self.desk.path(&pointer.image);
        // A linked one was read just now.
        let sound = self.input.is_file(&path) || {
            match Input::open_published(&path, self.geometry) {
                Ok(there) => {
                    let mut gauge = Gauge::new("checked", there.data_bytes());
                    let found = hash::pass(&there, self.geometry, None, &mut gauge, self.stop);
                    // What cannot be read is what is to be mended; only the user's wish to end is none.
                    self.stop.check()?;
                    found.is_ok_and(|found| found.root == hashed.root)
                }
                Err(_) => false,
            }
        };
        if !sound {
            log::warn!("{} is not what was published: it is made again", pointer.image);
        }
        Ok(sound.then(|| pointer.clone()))
    }

    /// What is known of the guests of this image: from the command line, or from before, be it of an older version.
    fn lesson(&self, pointer: &Pointer, tree: &Tree) -> Result<Option<learn::Lesson>> {
        let kept = self.kept.model.as_ref();
        let same_image = self.before.is_some_and(|before| before.root == pointer.root);
        let base = match (&self.args.model, kept) {
            (Some(path), _) => Some(learn::read_model(path)?),
            (None, Some(kept)) if same_image => Some(kept.clone()),
            (None, Some(kept)) => self.before.map(|before| moved::model(self.desk, before, kept, tree)).transpose()?,
            (None, None) => None,
        };
        let mut learning = learn::Learning::new(base, tree);
        // What an earlier model had learnt says nothing of another one, nor of none.
        if let (None, Some(kept)) = (&self.args.model, kept) {
            learning.remember(self.desk, kept, same_image)?;
        }
        if let Some(directory) = &self.args.sessions {
            let new = learning.learn(directory)?;
            log::info!("{new} new sessions in {}", directory.display());
        }
        Ok(learning.finish(kept.map(Vec::as_slice).filter(|_| same_image)))
    }
}

/// Says on standard error what was published; what is asked for on standard output is the link.
fn say(tree: &Tree, pointer: &Pointer, hashed: &Hashed) {
    let used = tree.holes().used() * pointer.geometry.block_bytes();
    let packs = match &pointer.packs {
        Some(packs) => format!("packs {}", progress::size(packs.bytes)),
        None => "no packs (publish a model or rehearse to have them)".to_owned(),
    };
    log::info!(
        "{} of {} used, hash tree {}, {packs}",
        progress::size(used.min(pointer.geometry.size())),
        progress::size(pointer.geometry.size()),
        progress::size(hashed.tree.len() as u64),
    );
}
