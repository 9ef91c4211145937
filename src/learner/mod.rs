//! The learner: where the model of an image comes from, while the image is already in use.
//!
//! With `model=auto` there are two teachers. The *publisher* may have put a model beside the image, under the image's name
//! with `.vmm` behind it (`publisher`); and the *sessions* that were recorded here tell what this user does. A publisher
//! knows every guest's boot but not what this one is used for, so where there are both, the sessions are learnt on top of
//! the publisher's model, as the newer part of one record (`lessons`). A published image has its model in its packs
//! (`packs`), together with what is to be fetched by it. What was fetched and learnt stays on a *shelf*, in the
//! directory of the sessions (`shelf`), so that the next start has it at once.
//!
//! All of it happens on one thread of its own that begins when the image is open: first what lies on the shelf, as it costs
//! milliseconds, then sessions that are new, then the question to the publisher. Whenever that makes a better model the
//! guest is followed by it from there on, told what it has touched so far. What fails is told of and left out: a model is a
//! help and nothing more.

mod lessons;
mod packs;
mod publisher;
mod shelf;

pub use shelf::kept;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::config::{Config, HttpOptions, ModelChoice};
use crate::engine::Follower;
use crate::error::{Error, errno};
use crate::model::FILE_BYTES_MAX as MODEL_BYTES_MAX;
use crate::model::Model;
use crate::predictor::{Predictor, Script};
use crate::session::{Directory, Subject};
use crate::source::{Document, Found, Published};
use crate::stats::ModelInUse;
use crate::sys::with_signals_blocked;
use packs::Packs;
use publisher::Publisher;
use shelf::Shelf;

/// Stack of the thread, in bytes: TLS handshakes need the most.
const STACK_BYTES: usize = 512 << 10;

/// The learner of one image.
pub(crate) struct Learner {
    common: Arc<Common>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Where a model is kept that came with packs, and whose packs: they may still turn out to be false.
    doubtful: Mutex<Option<Doubtful>>,
}

/// A model that is kept and may be false.
struct Doubtful {
    published: Arc<Published>,
    directory: Directory,
    subject: Subject,
}

/// What the thread and its owner share.
#[derive(Default)]
struct Common {
    closing: AtomicBool,
    /// The fetch that is under way, to be broken off.
    fetching: Mutex<Option<Arc<Document>>>,
    status: Mutex<ModelInUse>,
}

/// A lock that outlives a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Learner {
    /// Begins, with the thread. `subject` is the image, `follower` brings what is learnt to its planner.
    pub fn start(config: &Config, subject: Subject, follower: Follower) -> Self {
        let common = Arc::new(Common::default());
        common.say(0, "none yet: it is being looked for");
        let teachers = Teachers {
            choice: config.model.clone(),
            publisher: config.sources.first().and_then(|source| Publisher::of(source)),
            http: config.http.clone(),
            directory: Directory::of(config),
        };
        let doubtful = follower.published().zip(teachers.directory.clone()).map(|(published, directory)| {
            let subject = subject.clone();
            Doubtful { published, directory, subject }
        });
        let mut pupil = Pupil { common: common.clone(), subject, follower };
        let builder = std::thread::Builder::new().name("vms-learn".to_owned()).stack_size(STACK_BYTES);
        let thread = with_signals_blocked(|| builder.spawn(move || pupil.learn(teachers)));
        if let Err(error) = &thread {
            log::warn!("no prediction: cannot start thread vms-learn: {error}");
            common.say(0, "none: its thread could not be started");
        }
        Self { common, thread: Mutex::new(thread.ok()), doubtful: Mutex::new(doubtful) }
    }

    /// A learner that has nothing to learn, because of `why`.
    pub fn idle(why: &str) -> Self {
        let common = Arc::new(Common::default());
        common.say(0, &format!("none: {why}"));
        Self { common, thread: Mutex::new(None), doubtful: Mutex::new(None) }
    }

    /// The model in use.
    pub fn status(&self) -> ModelInUse {
        // Looked at first: what the thread said last stands in the status when it has ended.
        let settled = lock(&self.thread).as_ref().is_none_or(JoinHandle::is_finished);
        ModelInUse { settled, ..lock(&self.common.status).clone() }
    }

    /// Ends the thread for good, as somebody else foresees what the guest does; `text` is what the status says then.
    pub fn dismiss(&self, text: &str) {
        self.stop();
        self.common.say(0, text);
    }

    /// Ends the thread. It is done soon: a fetch is broken off, and between sessions that are learnt it looks up.
    pub fn stop(&self) {
        self.common.closing.store(true, Ordering::SeqCst);
        if let Some(document) = &*lock(&self.common.fetching) {
            document.abort();
        }
        // On a line of its own, so that the lock is free while the thread ends: `status` needs it.
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic there has cost the guest its prediction and nothing else.
            let _ = thread.join();
        }
        // Only now is it known how the packs did.
        if let Some(Doubtful { published, directory, subject }) = lock(&self.doubtful).take()
            && published.packs_lied()
        {
            log::info!("the model in {} came with packs that are false: it is forgotten", directory.path().display());
            Shelf::open(directory, &subject).distrust();
        }
    }
}

impl Drop for Learner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Common {
    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    fn say(&self, sessions: u64, text: &str) {
        *lock(&self.status) = ModelInUse { sessions, text: text.to_owned(), settled: false };
    }
}

/// Who may teach.
struct Teachers {
    choice: ModelChoice,
    publisher: Option<Publisher>,
    http: HttpOptions,
    directory: Option<Directory>,
}

/// What the thread has.
struct Pupil {
    common: Arc<Common>,
    subject: Subject,
    follower: Follower,
}

impl Pupil {
    fn learn(&mut self, teachers: Teachers) {
        let result = match &teachers.choice {
            ModelChoice::Off => return,
            ModelChoice::Auto => return self.learn_by_itself(teachers),
            ModelChoice::File(path) => publisher::read(path).map(|bytes| (path.display().to_string(), bytes)),
            ModelChoice::Url(url) => Document::at(url, &teachers.http)
                .map_err(publisher::refusal)
                .and_then(|document| self.fetch(document, None))
                .map(|(name, found)| match found {
                    Found::New { bytes, .. } => (name, bytes),
                    Found::Unchanged => (name, Vec::new()), // never without a validator to compare with
                }),
        };
        match result {
            Ok((name, bytes)) => {
                self.follow(&name, &bytes, &name);
            }
            Err(error) => self.give_up(&error),
        }
    }

    /// Says that there is no model, unless it is only that the image closes.
    fn give_up(&self, error: &Error) {
        if !self.common.is_closing() {
            log::warn!("no prediction: {error}");
            self.common.say(0, &format!("none: {error}"));
        }
    }

    /// Fetches a document so that [`Learner::stop`] can break it off; answers its name as well.
    fn fetch(&self, document: Document, known: Option<&str>) -> Result<(String, Found), Error> {
        let document = Arc::new(document);
        *lock(&self.common.fetching) = Some(document.clone());
        if self.common.is_closing() {
            document.abort(); // whoever stopped us came before it was there to be seen
        }
        let found = document.fetch(MODEL_BYTES_MAX, known).map_err(publisher::refusal);
        *lock(&self.common.fetching) = None;
        Ok((document.name(), found?))
    }

    /// Follows the guest by the model in `bytes`; false, and a warning, when it is none, or one of another image.
    fn follow(&self, name: &str, bytes: &[u8], text: &str) -> bool {
        match Model::read(name, bytes).and_then(|model| self.fitting(name, model)) {
            Ok(model) => {
                self.follow_model(model, text);
                true
            }
            Err(error) => {
                self.give_up(&error);
                false
            }
        }
    }

    fn follow_model(&self, model: Model, text: &str) {
        let sessions = model.learnt().sessions;
        log::info!("following the guest by a model of {sessions} sessions: {text}");
        self.follower.follow(Box::new(Predictor::new(Arc::new(model))));
        self.common.say(sessions, text);
    }

    fn fitting(&self, name: &str, model: Model) -> Result<Model, Error> {
        let (its, ours) = (model.geometry(), self.subject.geometry);
        if its == ours {
            return Ok(model);
        }
        let text = format!(
            "the model {name} is one of an image of {} bytes in blocks of {}, this one has {} in blocks of {}: train one \
             for this image",
            its.size(),
            its.block_bytes(),
            ours.size(),
            ours.block_bytes()
        );
        Err(Error::new(errno::EINVAL, text))
    }

    /// The shelf, the sessions, the publisher.
    fn learn_by_itself(&mut self, teachers: Teachers) {
        let Teachers { publisher, http, directory, .. } = teachers;
        let mut shelf = directory.map(|directory| Shelf::open(directory, &self.subject));
        let mut following = false;
        if let Some(shelf) = &mut shelf {
            following = self.follow_shelf(shelf);
        }
        let published = self.follower.published();
        // Lessons take a processor for up to a second, and packs may be at work meanwhile.
        if let Some(shelf) = shelf.as_mut().filter(|_| published.is_none()) {
            following |= self.take_lessons(shelf);
        }
        let mut why = "no session was learnt here yet".to_owned();
        if let Some(published) = published {
            match self.learn_of_packs(&published, shelf.as_mut(), following) {
                Ok(new) => following |= new,
                Err(error) if self.common.is_closing() || error.errno() == errno::ECANCELED => log::debug!("{error}"),
                Err(error) => {
                    log::warn!("no packs: {error}");
                    why = error.to_string();
                }
            }
            if let Some(shelf) = shelf.as_mut().filter(|_| !self.common.is_closing()) {
                following |= self.take_lessons(shelf);
            }
            return self.conclude(following, &why);
        }
        let Some(publisher) = publisher.filter(|_| !self.common.is_closing()) else {
            return self.conclude(following, &why);
        };
        let known = shelf.as_ref().and_then(Shelf::published_validator);
        let found = match &publisher {
            Publisher::Beside(path) => publisher::read(path).map(|bytes| Found::New { bytes, validator: None }),
            Publisher::Web(url) => Document::at(url, &http)
                .map_err(publisher::refusal)
                .and_then(|document| self.fetch(document, known.as_deref()))
                .map(|found| found.1),
        };
        let heeded = found.and_then(|found| match found {
            Found::New { bytes, validator } => self.heed(&publisher.name(), shelf.as_mut(), bytes, validator),
            Found::Unchanged => Ok(false),
        });
        match heeded {
            Ok(new) => following |= new,
            // Most images have none.
            Err(error) if error.errno() == errno::ENOENT => {
                why = format!("nothing at {}, and {why}", publisher.name());
                if let Some(shelf) = &mut shelf {
                    shelf.forget_published();
                }
            }
            Err(error) if self.common.is_closing() => log::debug!("{error}"),
            Err(error) => {
                log::warn!("no model from beside the image: {error}");
                why = error.to_string();
            }
        }
        self.conclude(following, &why);
    }

    /// Takes what the packs of a published image have; where those of one place are of no use, what those of the next have.
    /// True when the guest is followed by it; `following` says that it is followed by something already.
    fn learn_of_packs(
        &mut self,
        published: &Arc<Published>,
        mut shelf: Option<&mut Shelf>,
        following: bool,
    ) -> Result<bool, Error> {
        loop {
            let error = match self.learn_of_these(published.clone(), shelf.as_deref_mut(), following) {
                Err(error) => error,
                learnt => return learnt,
            };
            if self.common.is_closing() || !published.replace_packs() {
                return Err(error);
            }
            log::warn!("{error}; taking those of another place");
        }
    }

    /// The start at once, then the model, and all frames.
    fn learn_of_these(
        &mut self,
        published: Arc<Published>,
        shelf: Option<&mut Shelf>,
        following: bool,
    ) -> Result<bool, Error> {
        let Some(mut packs) = Packs::find(published, self.subject.geometry)? else { return Ok(false) };
        self.follower.pass_over_holes();
        let start = packs.start()?;
        // Before anybody follows the guest by them, or the first of them would be fetched as ranges.
        self.follower.fetch_packs(start.clone());
        if !following {
            let script = (0..start.count()).flat_map(|frame| start.runs(frame).to_vec()).collect();
            self.follower.follow(Box::new(Script::new(script)));
        }
        let closing = || self.common.is_closing();
        let name = format!("the model in {}", packs.name());
        let kept = shelf.as_ref().filter(|shelf| shelf.published_validator().as_deref() == Some(packs.edition()));
        let kept = kept.and_then(|shelf| shelf.published());
        let kept = kept.filter(|bytes| bytes.len() as u64 == packs.model_bytes());
        let fitting = kept.and_then(|bytes| {
            let model = Model::read(&name, &bytes[..]).ok()?;
            // One that does not fit these packs after all is fetched again.
            let index = packs.index(&model, &closing).ok()?;
            Some((bytes, model, index))
        });
        let (bytes, model, index) = match fitting {
            Some(fitting) => fitting,
            None => {
                let bytes = packs.model(&closing)?;
                let model = Model::read(&name, &bytes[..])?;
                let index = packs.index(&model, &closing)?;
                (bytes, model, index)
            }
        };
        self.follower.fetch_packs(index);
        let validator = Some(packs.edition().to_owned());
        let new = self.heed(&name, shelf, bytes, validator)?;
        if !new && !following {
            // It is on the shelf, and could not be read there.
            self.follow_model(model, PUBLISHED);
        }
        Ok(true)
    }

    fn conclude(&self, following: bool, why: &str) {
        if !following {
            self.common.say(0, &format!("none: {why}"));
        }
    }

    /// Follows by what lies on the shelf, the learnt before the published.
    fn follow_shelf(&self, shelf: &Shelf) -> bool {
        let learnt = shelf.learnt().is_some_and(|bytes| self.follow(&shelf.learnt_name(), &bytes, &shelf.describe()));
        learnt || shelf.published().is_some_and(|bytes| self.follow(&shelf.published_name(), &bytes, PUBLISHED_BEFORE))
    }

    /// Learns what is new among the sessions; true when the guest is followed by it.
    fn take_lessons(&self, shelf: &mut Shelf) -> bool {
        let learnt = lessons::take(shelf, &self.subject, &|| self.common.is_closing());
        learnt.is_some_and(|model| {
            self.follow_model(model, &shelf.describe());
            true
        })
    }

    /// Takes what the publisher has, and learns the sessions anew on top of it. Answers false when it is in use already.
    fn heed(
        &self,
        name: &str,
        shelf: Option<&mut Shelf>,
        bytes: Vec<u8>,
        validator: Option<String>,
    ) -> Result<bool, Error> {
        if shelf.as_ref().is_some_and(|shelf| shelf.published().as_ref() == Some(&bytes)) {
            return Ok(false);
        }
        // Looked at before it replaces one that may be better.
        let model = Model::read(name, &bytes[..]).and_then(|model| self.fitting(name, model))?;
        let learnt = shelf.is_some_and(|shelf| {
            shelf.publish(&bytes, validator);
            self.take_lessons(shelf)
        });
        if !learnt {
            self.follow_model(model, PUBLISHED);
        }
        Ok(true)
    }
}

/// Where a model is from, for a person.
const PUBLISHED: &str = "published beside the image";
const PUBLISHED_BEFORE: &str = "published beside the image, as it was found there earlier";
