//! A lesson: the collected sessions of one image become a new model, which is published.
//!
//! The model is made of the *base* and of the sessions that [`super::teaching`] chooses, always anew. So what it knows is a
//! function of what lies in the history now: a session whose file was removed is unlearnt with the next lesson, and no
//! client can gain by sending often what its share does not allow. The base is what the publisher trained or rehearsed: the
//! model in the published packs - only the pointer says what is published - unless it is one that was made here. Before there
//! are packs it is `model.vmm` in the image's private directory, which else is a copy. What was made here, and the base beneath
//! it, is told in [`crate::publish::collected`]. Sessions that the publisher has learnt are left out.
//!
//! The sessions are learnt in groups, the oldest first, so that their weight fades with age as it does when they are
//! learnt as they come.
//!
//! What is done in which order matters only for a crash. The ledger names the old and the new model before the new one is
//! put in place, so whichever is found there is known for ours, and the lesson is done again from the same base.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use vmstream::error::{Error, Result, errno};
use vmstream::model::{FILE_BYTES_MAX, Limits, Model, Trainer};
use vmstream::session::{self, Session};

use super::curve::{self, Curve};
use super::history::Entry;
use super::images::{Images, Published};
use super::teaching::{self, Support};
use crate::files;
use crate::publish::collected::{self, Collected};
use crate::publish::learn::{MODEL, read_ledger};
use crate::publish::pack::published_model;
use crate::publish::prepared;
use crate::publish::site::Site;

/// Sessions that are learnt by one call of the trainer, and so age together.
const GROUP: usize = 32;
/// Most accesses of all sessions that are held at once, of 56 bytes each; they share them evenly. A recorded boot has some
/// thousands, and what one session has beyond its share comes late in it.
const ACCESSES_MAX: usize = 4 << 20;

/// Puts a model, and what is made of it, in place: of this site and image, that model as `model.vmm` and at the readers. With
/// whatever keeps publishers apart it asks the last argument first, and does nothing when that fails: then somebody has
/// published since the lesson began, which must not be undone.
pub type Publish<'a> = &'a dyn Fn(&Path, &str, &[u8], &dyn Fn() -> Result<()>) -> Result<()>;

/// What came of a lesson.
#[derive(Debug, PartialEq, Eq)]
pub enum Learnt {
    /// A model of so many collected sessions was published.
    Published(usize),
    /// It would be the model that is there.
    Nothing,
}

/// The model that stands for what is known now.
fn present(images: &Images, name: &str) -> Result<Option<Vec<u8>>> {
    let site = Site::open(images.site())?;
    match site.pointer(name)? {
        Some(pointer) if pointer.packs.is_some() => published_model(&site, name, &pointer),
        _ => files::read(&images.private(name).join(MODEL), FILE_BYTES_MAX),
    }
}

/// The sessions that are to be learnt, the oldest first.
fn select<'a>(own: &Path, entries: &'a [Entry]) -> Vec<Entry> {
    let theirs = read_ledger(own);
    let is_theirs = |entry: &&'a Entry| {
        let next = theirs.range(entry.content.clone()..).next();
        next.is_some_and(|mark| mark.starts_with(&entry.content))
    };
    let ours: Vec<_> = entries.iter().filter(|entry| !is_theirs(entry)).cloned().collect();
    teaching::select(&ours).into_iter().cloned().collect()
}

/// Whether sessions lie there that the ledger does not know.
pub fn is_behind(images: &Images, name: &str, entries: &[Entry]) -> bool {
    let own = images.private(name);
    let known = Collected::load(&own).sessions;
    select(&own, entries).iter().any(|entry| !known.contains(&entry.name))
}

/// Learns. `entries` are the sessions of the history of `image`, the oldest first. Takes memory for the sessions (224 MiB at
/// most, and 80 for the one that is being read) and for what a model remembers, and time in proportion.
pub fn learn(images: &Images, image: &Published, entries: &[Entry], publish: Publish) -> Result<Learnt> {
    let own = images.private(&image.name);
    let present = self::present(images, &image.name)?;
    if let Some(bytes) = &present {
        // What its publisher meant to say of it, but was killed.
        prepared::settle(&own, bytes)?;
    }
    let mut ledger = Collected::load(&own);
    let ours = present.as_ref().is_some_and(|bytes| ledger.has_made(bytes));
    let base = if ours { collected::read_base(&own)? } else { present.clone() };
    if !ours {
        // A publisher's model, or none: from here on this is what lies beneath.
        match &base {
            Some(bytes) => files::replace(&collected::base_path(&own), bytes)?,
            None => drop(fs::remove_file(collected::base_path(&own))),
        }
    }
    let chosen = Chosen::load(images, image, &select(&own, entries), ACCESSES_MAX);
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

    ledger.models =
        present.iter().filter(|_| ours).map(|bytes| collected::hash(bytes)).chain([collected::hash(&bytes)]).collect();
    ledger.heard += fresh.len() as u64;
    ledger.sessions = chosen.sessions.iter().map(|session| session.name.clone()).collect();
    ledger.save(&own)?;
    let still = || {
        let same = images.find(&image.name).is_some_and(|now| now.root == image.root);
        if same && self::present(images, &image.name)? == present {
            return Ok(());
        }
        Err(Error::new(errno::EAGAIN, "a version or a model was published meanwhile; it is learnt on top of that soon"))
    };
    publish(images.site(), &image.name, &bytes, &still)?;
    if let Some(point) = point {
        Curve::load(&own).add(point, &own)?;
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
    /// the same places; what cannot be read is passed over. No more than so many accesses are held: of each session those at
    /// its beginning.
    fn load(images: &Images, image: &Published, entries: &[Entry], accesses_max: usize) -> Self {
        let share = accesses_max / entries.len().max(1);
        let validator = image.validator();
        let folder = images.private(&image.name).join("sessions");
        let load = |entry: &Entry| match session::load(&folder.join(&entry.name)) {
            Ok(mut recording) => {
                recording.session.accesses.truncate(share);
                recording.session.accesses.shrink_to_fit();
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
        Self { sessions: entries.iter().filter_map(load).collect() }
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
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
    fn what_the_publisher_has_learnt_of_them_is_not_learnt_twice() {
        let mut site = site();
        site.sends(1, session([100, 101]));
        site.sends(2, session([200, 201]));
        let (own, name) = (site.images.private("disk"), site.history.entries()[0].name.clone());
        let bytes = fs::read(own.join("sessions").join(name)).unwrap();
        let mut trainer = Trainer::new(site.image().geometry, Limits::default());
        trainer.add(&session([100, 101])).unwrap();
        fs::write(own.join("model.vmm"), trainer.finish_file().1).unwrap();
        fs::write(own.join("learnt"), format!("{}\n", &blake3::hash(&bytes).to_hex()[..32])).unwrap();
        assert_eq!(site.learn().unwrap(), Learnt::Published(1));
        assert_eq!(site.model().learnt().sessions, 2);
        assert!(!is_behind(&site.images, "disk", site.history.entries()));
    }

    #[test]
    fn a_publisher_that_was_killed_when_it_had_published_loses_nothing() {
        let mut site = site();
        site.sends(1, session([100, 101]));
        site.sends(2, session([200, 201]));
        site.learn().unwrap();
        let own = site.images.private("disk");
        let taught = |base: Option<Vec<u8>>| {
            let begun = base.map(|base| Trainer::resume("base", &base[..], Limits::default()).unwrap());
            let mut trainer = begun.unwrap_or_else(|| Trainer::new(site.image().geometry, Limits::default()));
            trainer.add(&session([7, 8, 9])).unwrap();
            trainer.finish_file().1
        };
        let (model, base) = (taught(fs::read(own.join("model.vmm")).ok()), taught(None));
        let mut known = Collected::load(&own);
        known.models.push(collected::hash(&model));
        known.save(&own).unwrap();
        prepared::prepare(&own, &model, Some(&base), "0123\n").unwrap();
        // Not published yet, so it is not true yet.
        site.learn().unwrap();
        assert!(read_ledger(&own).is_empty() && site.model().owner(Block(7)).is_none());
        fs::write(own.join("model.vmm"), &model).unwrap();
        site.sends(3, session([300, 301]));
        site.learn().unwrap();
        let has = |block| site.model().owner(Block(block)).is_some();
        assert!(has(7) && has(100) && has(300));
        assert_eq!((site.model().learnt().sessions, read_ledger(&own).len()), (4, 1));
    }

    #[test]
    fn sessions_that_are_longer_than_their_share_count_with_their_beginning() {
        let mut site = site();
        site.sends(1, session(0..100));
        site.sends(2, session(1000..1010));
        let chosen = Chosen::load(&site.images, &site.image(), site.history.entries(), 40);
        let lengths: Vec<_> = chosen.sessions.iter().map(|lesson| lesson.session.accesses.len()).collect();
        assert_eq!(lengths, [20, 10]);
        assert_eq!(chosen.sessions[0].session.accesses[..], session(0..20).accesses[..]);
        // Whoever has fewer is taken as it is.
        assert!(site.history.entries().len() * 20 <= 40 && std::mem::size_of::<Access>() <= 56);
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
