//! Opening an image: cache, source and engine come together.

use std::sync::OnceLock;

use super::Image;
use crate::block::Geometry;
use crate::config::{Config, ModelChoice};
use crate::engine::{Engine, Parts};
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::learner::Learner;
use crate::notify::{Completion, CompletionQueue, Notifier};
use crate::session::{self, Subject};
use crate::source::published::{KEPT_ENDING, root_of};
use crate::source::{self, Source};
use crate::store::{Cache, Place};
use crate::sys::with_signals_blocked;
use crate::time::Moment;
use crate::uploader::Uploader;

impl Image {
    /// Opens an image with `key=value` options (see [`Config`]); completions are taken with [`Image::reap`].
    ///
    /// Blocks until the origin has said what the image is, unless the cache knows it from before: then no contact
    /// is made. Errors: what the origin, the cache or the options are wrong about.
    pub fn open<S: AsRef<str>>(options: impl IntoIterator<Item = S>) -> Result<Self> {
        Self::open_notifying(options, Notifier::Queue(Box::new(CompletionQueue::new()?)))
    }

    /// Opens an image whose completions go to `ready`, called on library threads.
    pub fn open_with<S: AsRef<str>>(
        options: impl IntoIterator<Item = S>,
        ready: impl Fn(Completion) + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::open_notifying(options, Notifier::Callback(Box::new(ready)))
    }

    /// Opens an image with completions going where `notifier` says.
    pub fn open_notifying<S: AsRef<str>>(options: impl IntoIterator<Item = S>, notifier: Notifier) -> Result<Self> {
        Self::open_config(Config::parse(options)?, notifier)
    }

    fn open_config(mut config: Config, notifier: Notifier) -> Result<Self> {
        let cache = Cache::lock(&Place::of(&config))?;
        let pinned = cache.pinned().cloned();
        if let Some(pinned) = &pinned {
            let block_bytes = pinned.geometry.block_bytes();
            if config.block_bytes_given && config.block_bytes != block_bytes {
                let reason = format!(
                    "this cache was made with block_size={block_bytes}; leave the option out or use another cache"
                );
                return Err(Error::option("block_size", &config.block_bytes.to_string(), reason));
            }
            config.block_bytes = block_bytes;
        }
        let mut source = open_source_aside(&config, pinned.as_ref().map(|p| &p.identity))?;
        if let Some(pinned) = &pinned
            && pinned.source != source.name()
            && root_of(&pinned.identity).is_none()
        {
            // Known by another name, and not by its hash: the origin has to say that it is the same image.
            log::info!(
                "this cache was made from {}; asking {} whether it is the same image",
                pinned.source,
                source.name()
            );
            source = open_source_aside(&config, None)?;
        }
        if let Some(published) = source.published() {
            if let Some(tree) = published.tree()
                && pinned.is_none()
                && !config.block_bytes_given
            {
                // Checked are whole blocks of the tree, so no others are worth fetching.
                config.block_bytes = tree.geometry().block_bytes();
            }
            if let Some(path) = Place::of(&config).beside(KEPT_ENDING) {
                published.keep_pointer(path);
            }
        }
        Self::assemble(cache, source, config, notifier)
    }

    /// Opens an image over a source of the caller's own, for embedders with another transport and for tests.
    pub fn open_source<S: AsRef<str>>(
        source: Box<dyn Source>,
        options: impl IntoIterator<Item = S>,
        notifier: Notifier,
    ) -> Result<Self> {
        let named = [format!("source={}", source.name())];
        let options = options.into_iter().map(|o| o.as_ref().to_owned());
        let mut config = Config::parse(named.into_iter().chain(options))?;
        // Nothing is known of what else such a transport can bring, so nobody is asked for a model.
        config.sources.clear();
        Self::assemble(Cache::lock(&Place::of(&config))?, source, config, notifier)
    }

    fn assemble(cache: Cache, source: Box<dyn Source>, mut config: Config, notifier: Notifier) -> Result<Self> {
        let identity = source.identity().clone();
        let geometry = Geometry::new(identity.size, config.block_bytes)?;
        let (store, journal, present) = cache.begin(&identity, geometry, &source.name())?;
        if store.ephemeral() && !config.fill_given {
            config.fill = false; // a nameless file must not eat the disk unasked
        }
        let gate = Gate::new(geometry, &config)?;
        for run in present {
            gate.states.restore(run);
        }
        log::info!(
            "{}: {} bytes, {} resident in {}",
            source.name(),
            geometry.size(),
            gate.states.resident_count() * geometry.block_bytes(),
            store.path().map_or("a temporary file".into(), |path| path.to_string_lossy())
        );
        let writer = session::Directory::of(&config);
        let subject = Subject::now(&identity, geometry);
        let writer = writer.map(|directory| session::Writer::new(directory, subject.clone()));
        let unlearnt = match config.model {
            ModelChoice::Off => Some("model=off"),
            _ if config.bulk => Some("nobody waits for single blocks (bulk=on)"),
            _ if gate.states.resident_count() == geometry.blocks() => Some("the image is complete"),
            _ => None,
        };
        let published = source.published();
        // What comes first of a published image its packs tell in a round trip or two. Until then the fill would take
        // every connection for blocks from the image's beginning.
        let hold_fill = unlearnt.is_none() && published.is_some() && config.model == ModelChoice::Auto;
        let engine = Engine::start(Parts { gate, store, journal, source, notifier, writer, hold_fill }, &config)?;
        let uploader = Uploader::start(&config, &subject, published);
        let learner = match unlearnt {
            Some(why) => Learner::idle(why),
            None => Learner::start(&config, subject, engine.follower()),
        };
        Ok(Self { learner, uploader, engine, map: OnceLock::new(), opened: Moment::now() })
    }
}

/// Opens the source on a thread of its own: looking up a host name may start threads, and they inherit its signal mask.
/// The caller keeps its own mask meanwhile, so that it can still be interrupted.
fn open_source_aside(config: &Config, pinned: Option<&source::Identity>) -> Result<Box<dyn Source>> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("vms-open".to_owned());
        let opener = with_signals_blocked(|| builder.spawn_scoped(scope, || source::open(config, pinned)));
        let opener = opener.map_err(|e| Error::io("cannot start thread vms-open", e))?;
        opener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
