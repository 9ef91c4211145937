//! A lesson: the collected sessions of one image become a new model, which is published.
//!
//! The model is made of the *base* and of the sessions that [`super::teaching`] chooses, always anew. So what it knows is a
//! function of what lies in the history now: a session whose file was removed is unlearnt with the next lesson, and no
//! client can gain by sending often what its share does not allow. The base is what the publisher trained or rehearsed:
//! `model.vmm` in the image's private directory, unless it is one that was made here. Of those the ledger `collected.json`
//! has the hashes; the base beneath them is kept as `base.vmm`.
//!
//! The sessions are learnt in groups, the oldest first, so that their weight fades with age as it does when they are
//! learnt as they come.
//!
//! What is done in which order matters only for a crash. The ledger names the old and the new model before the new one is
//! put in place, so whichever is found there is known for ours, and the lesson is done again from the same base.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmstream::error::{Error, Result, errno};
use vmstream::model::{Limits, Model, Trainer};
use vmstream::session::{self, Session};

use super::curve::{self, Curve};
use super::history::Entry;
use super::images::{Images, Published};
use super::teaching::{self, Support};
use crate::files;

/// Sessions that are learnt by one call of the trainer, and so age together.
const GROUP: usize = 32;
/// Largest model and largest ledger that are read, in bytes.
const MODEL_BYTES_MAX: u64 = 32 << 20;
const LEDGER_BYTES_MAX: u64 = 1 << 20;

/// Puts a model, and what is made of it, in place: of this site and image, that model as `model.vmm` and at the readers. With
/// whatever keeps publishers apart it asks the last argument first, and does nothing when that fails: then somebody has
/// published since the lesson began, which must not be undone.
pub type Publish<'a> = &'a dyn Fn(&Path, &str, &[u8], &dyn Fn() -> Result<()>) -> Result<()>;

/// What the ledger says.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Ledger {
    /// Hashes of the latest models that were made here, the newest last.
    models: Vec<String>,
    /// Names of the sessions in the newest.
    sessions: BTreeSet<String>,
    /// How many sessions were learnt in all, those included that are forgotten again.
    heard: u64,
}

/// What came of a lesson.
#[derive(Debug, PartialEq, Eq)]
pub enum Learnt {
    /// A model of so many collected sessions was published.
    Published(usize),
    /// It would be the model that is there.
    Nothing,
}

/// The private files of an image.
struct Desk(PathBuf);

impl Desk {
    fn model(&self) -> PathBuf {
        self.0.join("model.vmm")
    }

    fn base(&self) -> PathBuf {
        self.0.join("base.vmm")
    }

    fn ledger(&self) -> PathBuf {
        self.0.join("collected.json")
    }

    /// A ledger that cannot be read is none: what it told is found again.
    fn read_ledger(&self) -> Ledger {
        let bytes = read(&self.ledger(), LEDGER_BYTES_MAX).ok().flatten().unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }
}

/// Whether sessions lie there that the ledger does not know.
pub fn is_behind(images: &Images, name: &str, entries: &[Entry]) -> bool {
    let known = Desk(images.private(name)).read_ledger().sessions;
    teaching::select(entries).iter().any(|entry| !known.contains(&entry.name))
}

/// Learns. `entries` are the sessions of the history of `image`, the oldest first. Takes memory for what a model remembers,
/// some 400 MiB at most, and time in proportion.
pub fn learn(images: &Images, image: &Published, entries: &[Entry], publish: Publish) -> Result<Learnt> {
    let desk = Desk(images.private(&image.name));
    let mut ledger = desk.read_ledger();
    let present = read(&desk.model(), MODEL_BYTES_MAX)?;
    let ours = present.as_ref().is_some_and(|bytes| ledger.models.contains(&hash(bytes)));
    let base = if ours { read(&desk.base(), MODEL_BYTES_MAX)? } else { present.clone() };
    if !ours {
        // A publisher's model, or none: from here on this is what lies beneath.
        match &base {
            Some(bytes) => files::replace(&desk.base(), bytes)?,
            None => drop(fs::remove_file(desk.base())),
        }
    }
    let chosen = Chosen::load(images, image, entries);
    let (model, bytes) = chosen.train(image, base.as_deref())?;
    if chosen.sessions.is_empty() || present.as_deref() == Some(&bytes) {
        return Ok(Learnt::Nothing);
    }
    let fresh: Vec<_> =
        chosen.sessions.iter().filter(|s| !ledger.sessions.contains(&s.name)).map(|s| &s.session).collect();
    let before = present.as_deref().and_then(|bytes| Model::read("model.vmm", bytes).ok());
    let before = before.filter(|model| model.geometry() == image.geometry);
    let beneath = base.as_deref().and_then(|bytes| Model::read("base.vmm", bytes).ok());
    let heard = ledger.heard + beneath.map_or(0, |model| model.learnt().sessions);
    let point = curve::try_out(before, &fresh, heard);

    ledger.models = present.iter().filter(|_| ours).map(|bytes| hash(bytes)).chain([hash(&bytes)]).collect();
    ledger.heard += fresh.len() as u64;
    ledger.sessions = chosen.sessions.iter().map(|session| session.name.clone()).collect();
    let text = serde_json::to_vec_pretty(&ledger).map_err(|e| Error::io("cannot write what was learnt", e.into()))?;
    files::replace(&desk.ledger(), text)?;
    let still = || {
        let same = images.find(&image.name).is_some_and(|now| now.root == image.root);
        if same && read(&desk.model(), MODEL_BYTES_MAX)? == present {
            return Ok(());
        }
        Err(Error::new(errno::EAGAIN, "a version or a model was published meanwhile; it is learnt on top of that soon"))
    };
    publish(images.site(), &image.name, &bytes, &still)?;
    if let Some(point) = point {
        Curve::load(&desk.0).add(point, &desk.0)?;
    }
    log::info!(
        "{}: learnt {} collected sessions; {} sequences",
        image.name,
        chosen.sessions.len(),
        model.sequences().len()
    );
    Ok(Learnt::Published(chosen.sessions.len()))
}

/// A session to be learnt.
struct Lesson {
    name: String,
    client: String,
    session: Session,
}

struct Chosen {
    sessions: Vec<Lesson>,
}

impl Chosen {
    /// Reads the chosen sessions. Those of another version of the image, which is kept for some time, have other blocks at
    /// the same places; what cannot be read is passed over.
    fn load(images: &Images, image: &Published, entries: &[Entry]) -> Self {
        let validator = image.validator();
        let folder = images.private(&image.name).join("sessions");
        let load = |entry: &&Entry| match session::load(&folder.join(&entry.name)) {
            Ok(recording) => {
                let of_this = recording.subject.validator.as_ref() == Some(&validator);
                (of_this && recording.session.geometry == image.geometry).then(|| Lesson {
                    name: entry.name.clone(),
                    client: entry.client.clone(),
                    session: recording.session,
                })
            }
            Err(error) => {
                log::warn!("{error}: it is not learnt");
                None
            }
        };
        Self { sessions: teaching::select(entries).iter().filter_map(load).collect() }
    }

    /// The model and its file.
    fn train(&self, image: &Published, base: Option<&[u8]>) -> Result<(Model, Vec<u8>)> {
        let numbers: BTreeMap<&str, u32> = self.sessions.iter().map(|s| s.client.as_str()).zip(0..).collect();
        let mut support = Support::among(numbers.len());
        if let Some(support) = &mut support {
            self.sessions.iter().for_each(|lesson| support.count(numbers[lesson.client.as_str()], &lesson.session));
        }
        let begin = |bytes: &[u8]| Trainer::resume("the model kept for this image", bytes, Limits::default());
        let mut trainer = match base {
            Some(bytes) => begin(bytes)?,
            None => Trainer::new(image.geometry, Limits::default()),
        };
        if trainer.geometry() != image.geometry {
            let text = format!("the model kept for {} is one of an image of another size: remove it", image.name);
            return Err(Error::new(errno::EINVAL, text));
        }
        let known = base.map(|bytes| Model::read("the model kept for this image", bytes)).transpose()?;
        let mut groups = self.sessions.chunks(GROUP).peekable();
        while let Some(group) = groups.next() {
            for lesson in group {
                match &support {
                    None => trainer.add(&lesson.session)?,
                    Some(support) => trainer.add(&support.distil(&lesson.session, known.as_ref()))?,
                }
            }
            if groups.peek().is_some() {
                trainer = begin(&trainer.finish_file().1)?;
            }
        }
        Ok(trainer.finish_file())
    }
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The bytes of a file; `None` when there is none. Errors: those of reading, and EFBIG.
fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>> {
    use std::io::Read;
    let failed = |e| Error::io(format_args!("cannot read {}", path.display()), e);
    let file = match fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::time::Duration;

    use vmstream::block::Block;
    use vmstream::config::Config;
    use vmstream::gate::Op;
    use vmstream::replay::{self, Figures, LinkModel, Policy, Setup};
    use vmstream::session::{Access, Recording, Subject, WallTime, file};

    use super::super::history::History;
    use super::*;

    /// Blocks of the made-up image.
    const BLOCKS: u64 = 1 << 18;

    struct Site {
        dir: tempfile::TempDir,
        images: Images,
        history: History,
        clock: u64,
    }

    fn site() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let (size, root) = (BLOCKS * 4096, "ab".repeat(32));
        let text = format!("vmstream 1\nsize {size}\nblock 4096\nimage d.raw\ntree d.vmt 312\nroot {root}\n");
        fs::write(dir.path().join("disk.vmp"), text).unwrap();
        let images = Images::new(dir.path());
        let history = History::open(&images.private("disk").join("sessions"), 256 << 20).unwrap();
        Site { dir, images, history, clock: 0 }
    }

    impl Site {
        fn image(&self) -> Published {
            self.images.find("disk").unwrap()
        }

        fn sends(&mut self, client: u32, session: Session) {
            self.clock += 1_000_000;
            let subject = Subject { validator: Some(self.image().validator()), ..Subject::nameless(session.geometry) };
            let bytes = file::encode(&Recording { subject, session, lost_bytes: 0 });
            self.history.keep(&format!("{client:012x}"), WallTime(self.clock), &bytes).unwrap();
        }

        fn learn(&self) -> Result<Learnt> {
            learn(&self.images, &self.image(), self.history.entries(), &put)
        }

        fn model(&self) -> Arc<Model> {
            Arc::new(Model::load(&self.images.private("disk").join("model.vmm")).unwrap())
        }
    }

    /// Publishes in the simplest way.
    fn put(site: &Path, name: &str, model: &[u8], still: &dyn Fn() -> Result<()>) -> Result<()> {
        still()?;
        files::replace(&Images::new(site).private(name).join("model.vmm"), model)
    }

    /// Numbers that look like chance and are the same always (splitmix64).
    fn mix(seed: u64) -> u64 {
        let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn session(places: impl IntoIterator<Item = u64>) -> Session {
        let access = |(n, block): (u64, u64)| Access {
            at: Duration::from_millis(n * 3),
            op: Op::Read,
            offset: block % BLOCKS * 4096,
            length: 4096,
            stalled: Duration::ZERO,
        };
        let accesses = (0..).zip(places).map(access).collect();
        Session { geometry: vmstream::block::Geometry::new(BLOCKS * 4096, 4096).unwrap(), accesses, marks: Vec::new() }
    }

    /// A boot that all have in common, three of eight tasks, each of which reads its own blocks in its own order, and a
    /// block that no other session has.
    fn honest(seed: u64) -> Session {
        let task = |task: u64| (0..250).map(move |n| mix(task * 1000 + n));
        let tasks = (0..3).map(move |n| 1 + mix(seed * 10 + n) % 8);
        session(task(0).chain(tasks.flat_map(task)).chain([mix(seed << 32)]))
    }

    /// Blocks that nobody needs, and between them those of the boot in another order.
    fn odd(seed: u64) -> Session {
        session((0..1000).map(move |n| if n % 4 == 0 { mix((n * 7 + seed) % 250) } else { mix(1 << 40 | n) }))
    }

    fn waits(model: Arc<Model>, seed: u64) -> Figures {
        let session = honest(seed);
        let steps = replay::guest(&session, 1.0, Duration::from_secs(2));
        let mut config = Config { fill: false, ..Config::default() };
        let foresight = Policy::Planner.foresight(&mut config, Some(&model), &session);
        let link = LinkModel { rate: 25e6 / 8.0, round_trip: Duration::from_millis(50) };
        replay::run(Setup { steps: &steps, geometry: session.geometry, link, config, foresight, packs: None })
    }

    fn popular(model: &Model) -> BTreeSet<Block> {
        let runs = model.popular().iter().flat_map(|id| model.sequence(*id).runs.clone());
        runs.flat_map(|run| run.iter().collect::<Vec<_>>()).collect()
    }

    #[test]
    fn a_thousand_odd_sessions_of_one_client_change_nothing_for_the_others() {
        let mut site = site();
        for client in 0..20 {
            site.sends(client, honest(client.into()));
        }
        assert_eq!(site.learn().unwrap(), Learnt::Published(20));
        let clean = site.model();
        for n in 0..1000 {
            site.sends(666, odd(n));
        }
        assert_eq!(site.learn().unwrap(), Learnt::Published(24), "a share and no more");
        let after = site.model();
        assert_eq!(popular(&after), popular(&clean), "nothing new is popular, and nothing popular is lost");
        for block in (0..1000).filter(|n| n % 4 != 0).map(|n| Block(mix(1 << 40 | n) % BLOCKS)) {
            assert!(after.owner(block).is_none() || clean.owner(block).is_some(), "a made-up block is learnt");
        }
        // Guests that were never seen wait no longer than before, to a twentieth.
        let total = |model: &Arc<Model>| (100..104).map(|seed| waits(model.clone(), seed).stalled).sum::<Duration>();
        let (before, then) = (total(&clean).as_secs_f64(), total(&after).as_secs_f64());
        assert!(then <= before * 1.05, "waits were {before} s and are {then} s");
    }

    #[test]
    fn a_lesson_that_breaks_off_leaves_the_old_state_and_is_made_up_for() {
        let mut site = site();
        site.sends(1, honest(1));
        site.learn().unwrap();
        let desk = site.images.private("disk");
        let old = fs::read(desk.join("model.vmm")).unwrap();
        site.sends(2, honest(2));
        let broken = learn(&site.images, &site.image(), site.history.entries(), &|_, _, _, _| {
            Err(Error::new(errno::ENOSPC, "no room"))
        });
        assert!(broken.is_err());
        assert_eq!(fs::read(desk.join("model.vmm")).unwrap(), old);
        let published = RefCell::new(Vec::new());
        let publish = |at: &Path, name: &str, model: &[u8], still: &dyn Fn() -> Result<()>| {
            assert_eq!((at, name), (site.dir.path(), "disk"));
            published.borrow_mut().extend_from_slice(model);
            put(at, name, model, still)
        };
        assert_eq!(learn(&site.images, &site.image(), site.history.entries(), &publish).unwrap(), Learnt::Published(2));
        assert_eq!(*published.borrow(), fs::read(desk.join("model.vmm")).unwrap());
        assert_eq!(site.learn().unwrap(), Learnt::Nothing, "the same sessions are the same model");
        assert!(!is_behind(&site.images, "disk", site.history.entries()));
    }

    #[test]
    fn the_publishers_model_lies_beneath_and_a_removed_session_is_unlearnt() {
        let mut site = site();
        let mut trainer = Trainer::new(site.image().geometry, Limits::default());
        trainer.add(&session([7, 8, 9])).unwrap();
        let desk = site.images.private("disk");
        fs::create_dir_all(&desk).unwrap();
        fs::write(desk.join("model.vmm"), trainer.finish_file().1).unwrap();
        site.sends(1, session([100, 101]));
        site.sends(2, session([200, 201]));
        site.learn().unwrap();
        let has = |block| site.model().owner(Block(block)).is_some();
        assert!(has(7) && has(100) && has(200));
        let kept = &site.history.entries()[..1];
        learn(&site.images, &site.image(), kept, &put).unwrap();
        assert!(has(7) && has(100) && !has(200));
    }

    #[test]
    fn what_was_published_meanwhile_is_not_undone() {
        let mut site = site();
        site.sends(1, honest(1));
        let theirs = |at: &Path, name: &str, model: &[u8], still: &dyn Fn() -> Result<()>| {
            // The publisher is a moment faster.
            let mut trainer = Trainer::new(site.image().geometry, Limits::default());
            trainer.add(&session([7, 8, 9]))?;
            files::replace(&site.images.private("disk").join("model.vmm"), trainer.finish_file().1)?;
            put(at, name, model, still)
        };
        let late = learn(&site.images, &site.image(), site.history.entries(), &theirs);
        assert_eq!(late.unwrap_err().errno(), errno::EAGAIN);
        assert_eq!(site.model().learnt().sessions, 1);
        assert_eq!(site.learn().unwrap(), Learnt::Published(1));
        assert!(site.model().owner(Block(7)).is_some() && site.model().learnt().sessions == 2);
    }

    #[test]
    fn sessions_of_another_version_and_damaged_files_teach_nothing() {
        let mut site = site();
        site.sends(1, honest(1));
        let name = site.history.entries()[0].name.clone();
        fs::write(site.images.private("disk").join("sessions").join(name), "damaged").unwrap();
        site.sends(2, honest(2));
        let text = fs::read_to_string(site.dir.path().join("disk.vmp")).unwrap();
        fs::write(site.dir.path().join("disk.vmp"), text.replace("abab", "cdcd")).unwrap();
        assert_eq!(site.learn().unwrap(), Learnt::Nothing);
        assert!(!site.images.private("disk").join("model.vmm").exists());
    }
}
