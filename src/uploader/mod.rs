//! The uploader: sends recorded sessions to whoever publishes the image, if the user said so (`upload=`), so that the next
//! guests are foreseen better.
//!
//! What is sent of a session is [`crate::session::Recording::anonymous`]: the root hash of the image, and which blocks were
//! needed when and for how long the guest waited. Each goes once to a place; a list beside the sessions says which
//! (`ledger`). Only sessions of published images are sent, and of this image.
//!
//! It happens on a thread of its own: some seconds after the opening, when the first rush is over, and at the end, for the
//! session that has just ended. The end waits a few seconds for it and no longer; what is left goes at the next opening. No
//! failure is one of the image: it is said in the log, and tried again next time.
//!
//! The place may come from the pointer, which nobody vouches for. So credentials, extra headers and the token go there only
//! when it is of the image's own origin or was given by the user, and it is not asked without TLS where the image was
//! asked with it.

mod courier;
mod ledger;

pub use courier::{Sent, send_all, send_by};

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::config::{Config, HttpOptions, Upload};
use crate::error::{Error, Result, errno};
use crate::session::{Directory, Subject};
use crate::source::http::{Delivery, same_origin};
use crate::source::{FetchError, Published};
use crate::sys::with_signals_blocked;

/// How long after the opening the first sessions go: a guest that boots needs the link for itself.
const BEGIN_AFTER: Duration = Duration::from_secs(10);
/// How long the end waits for the last session to go.
const END_TIME_MAX: Duration = Duration::from_secs(3);
/// Limit of connecting and of silence, since the end may have to wait for either.
const STALL_MAX: Duration = Duration::from_secs(3);
/// Longest token file, in bytes.
const TOKEN_BYTES_MAX: u64 = 4096;
/// Stack of the thread, in bytes: TLS handshakes need the most.
const STACK_BYTES: usize = 512 << 10;

/// The uploader of one image.
pub(crate) struct Uploader {
    common: Arc<Common>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread and its owner share.
#[derive(Default)]
struct Common {
    phase: Mutex<Phase>,
    changed: Condvar,
    /// The delivery that is under way, to be broken off.
    under_way: Mutex<Option<Arc<Delivery>>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// The image is in use.
    #[default]
    Open,
    /// It is closed: what is left may go.
    Ending,
    /// It has taken too long.
    Late,
    /// The thread is done.
    Over,
}

/// A lock that outlives a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread needs.
struct Job {
    upload: Upload,
    token: Option<PathBuf>,
    http: HttpOptions,
    source: Option<String>,
    directory: Directory,
    subject: Subject,
    published: Option<Arc<Published>>,
}

impl Uploader {
    /// Begins, with the thread, if sessions of this image are to be sent. `published` is asked where to.
    pub fn start(config: &Config, subject: &Subject, published: Option<Arc<Published>>) -> Self {
        let idle = Self { common: Arc::default(), thread: Mutex::new(None) };
        let (Some(directory), false) = (Directory::of(config), config.upload == Upload::Off || config.bulk) else {
            return idle;
        };
        if !courier::is_published(subject) {
            log::warn!("no session is sent: only those of published images are (a link to NAME.vmp)");
            return idle;
        }
        let job = Job {
            upload: config.upload.clone(),
            token: config.upload_token.clone(),
            http: config.http.clone(),
            source: config.sources.first().cloned(),
            directory,
            subject: subject.clone(),
            published,
        };
        let common = idle.common.clone();
        let builder = std::thread::Builder::new().name("vms-upload".to_owned()).stack_size(STACK_BYTES);
        match with_signals_blocked(|| builder.spawn(move || job.run(&common))) {
            Ok(thread) => *lock(&idle.thread) = Some(thread),
            Err(error) => log::warn!("no session is sent: cannot start thread vms-upload: {error}"),
        }
        idle
    }

    /// Ends the image as `end` does, which writes the session to its end, and then itself; answers what `end` did.
    pub fn finish_after<T>(&self, end: impl FnOnce() -> T) -> T {
        let ended = end();
        self.finish();
        ended
    }

    /// Sends what is left, the session that has just ended included, for some seconds at most, and ends the thread. The
    /// writer of that session must be gone.
    pub fn finish(&self) {
        let Some(thread) = lock(&self.thread).take() else { return };
        let mut phase = lock(&self.common.phase);
        if *phase == Phase::Open {
            *phase = Phase::Ending;
        }
        self.common.changed.notify_all();
        let waits = |phase: &mut Phase| *phase != Phase::Over;
        let (mut phase, late) =
            self.common.changed.wait_timeout_while(phase, END_TIME_MAX, waits).unwrap_or_else(PoisonError::into_inner);
        if late.timed_out() {
            *phase = Phase::Late;
        }
        drop(phase);
        if let Some(delivery) = &*lock(&self.common.under_way) {
            delivery.abort();
        }
        // A panic there has cost some sessions and nothing else.
        let _ = thread.join();
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Common {
    fn is_late(&self) -> bool {
        *lock(&self.phase) == Phase::Late
    }
}

impl Job {
    fn run(self, common: &Common) {
        let open = |phase: &mut Phase| *phase == Phase::Open;
        let waited = common.changed.wait_timeout_while(lock(&common.phase), BEGIN_AFTER, open);
        let closed = waited.map(|(phase, _)| *phase != Phase::Open).unwrap_or(true);
        if !closed {
            self.round(common);
            drop(common.changed.wait_while(lock(&common.phase), open));
        }
        self.round(common);
        *lock(&common.phase) = Phase::Over;
        common.changed.notify_all();
    }

    /// Sends what was not sent yet.
    fn round(&self, common: &Common) {
        let Some(place) = self.place() else { return };
        let sent = place.and_then(|(url, http, token)| {
            let delivery = Arc::new(Delivery::to(&url, &http, token.as_deref()).map_err(refusal)?);
            *lock(&common.under_way) = Some(delivery.clone());
            if common.is_late() {
                delivery.abort(); // whoever gave up came before it was there to be seen
            }
            courier::send(&self.directory, Some(&self.subject), &url, &delivery, &|| common.is_late())
        });
        *lock(&common.under_way) = None;
        match sent {
            Ok(Sent { sent: 0, refused: 0, .. }) => {}
            Ok(sent) => log::info!("sessions: {sent}"),
            Err(error) => log::warn!("sessions were not sent: {error}"),
        }
    }

    /// Where to, with what may be told there; `None` while nobody wants sessions.
    fn place(&self) -> Option<Result<(String, HttpOptions, Option<String>)>> {
        let (url, given) = match &self.upload {
            Upload::Off => return None,
            Upload::To(url) => (url.clone(), true),
            Upload::On => (self.wanted()?, false),
        };
        Some(self.terms(url, given))
    }

    /// Where the pointer says that sessions are taken. An image that is all here may not have asked for it yet.
    fn wanted(&self) -> Option<String> {
        let published = self.published.as_ref()?;
        if published.sessions_url().is_none()
            && let Err(error) = published.contact()
        {
            log::debug!("where sessions are taken is not known: {}", refusal(error));
        }
        published.sessions_url().map(str::to_owned)
    }

    fn terms(&self, url: String, given: bool) -> Result<(String, HttpOptions, Option<String>)> {
        let source = self.source.as_deref().unwrap_or_default();
        let tls = |url: &str| url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        if !given && tls(source) && !tls(&url) {
            let text = "the image came over TLS, but sessions are wanted without: give upload=URL if that is right";
            return Err(Error::new(errno::EPROTO, text));
        }
        let own = same_origin(source, &url);
        let token = if own || given { self.token.as_deref().map(read_token).transpose()? } else { None };
        let mut http = self.http.clone();
        if !own {
            (http.user, http.headers) = (None, Vec::new());
        }
        http.connect_timeout = http.connect_timeout.min(STALL_MAX);
        http.stall_timeout = http.stall_timeout.min(STALL_MAX);
        Ok((url, http, token))
    }
}

/// The token in a file: its first line.
pub fn read_token(path: &Path) -> Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text))
        .map_err(|e| Error::io(format_args!("cannot read the upload token in {}", path.display()), e))?;
    match text.lines().next().map(str::trim) {
        Some(token) if !token.is_empty() => Ok(token.to_owned()),
        _ => Err(Error::new(errno::EINVAL, format!("{} has no upload token in its first line", path.display()))),
    }
}

fn refusal(error: FetchError) -> Error {
    match error {
        FetchError::Fatal(error) => error,
        FetchError::Transient { message, .. } => Error::new(errno::EHOSTUNREACH, message),
        FetchError::Stopped => Error::new(errno::ECANCELED, "it was broken off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Geometry;

    fn job(options: &[&str], says: &str) -> Job {
        let config = Config::parse(["source=https://h/disk.vmp", "user=me:secret"].iter().chain(options)).unwrap();
        let published = Published::new(None);
        published.learn_sessions(says.to_owned());
        Job {
            upload: config.upload,
            token: config.upload_token,
            http: config.http,
            source: config.sources.first().cloned(),
            directory: Directory::new(Path::new("/nonexistent"), 0),
            subject: Subject::nameless(Geometry::new(1 << 20, 4096).unwrap()),
            published: Some(Arc::new(published)),
        }
    }

    #[test]
    fn what_a_pointer_says_gets_no_secrets_of_another_origin() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "a-long-upload-token\nmore\n").unwrap();
        let token = format!("upload_token={}", file.path().display());
        let told = |upload: &str, says| {
            let (_, http, token) = job(&[upload, &token], says).place().unwrap().ok()?;
            Some((http.user.is_some(), token.is_some()))
        };
        assert_eq!(told("upload=on", "https://h/sessions/disk"), Some((true, true)));
        assert_eq!(told("upload=on", "https://evil/sessions/disk"), Some((false, false)));
        assert_eq!(told("upload=https://other/x", "unused"), Some((false, true)), "the user named it");
        assert_eq!(told("upload=on", "http://h/sessions/disk"), None, "without TLS");
        assert_eq!(told("upload=http://h/x", "unused"), Some((false, true)));
        assert!(job(&["upload=off"], "").place().is_none());
    }

    #[test]
    fn an_image_that_is_not_to_tell_has_no_thread() {
        let dir = tempfile::tempdir().unwrap();
        let cache = format!("cache={}", dir.path().display());
        let geometry = Geometry::new(1 << 20, 4096).unwrap();
        let named = Subject { validator: Some(format!("root:{}", "ab".repeat(32))), ..Subject::nameless(geometry) };
        for (option, subject, runs) in [
            ("upload=off", &named, false),
            ("upload=on", &Subject::nameless(geometry), false),
            ("upload=on", &named, true),
        ] {
            let config = Config::parse(["source=http://h/disk.vmp", &cache, option]).unwrap();
            let uploader = Uploader::start(&config, subject, None);
            assert_eq!(lock(&uploader.thread).is_some(), runs, "{option}");
            uploader.finish();
        }
    }
}
