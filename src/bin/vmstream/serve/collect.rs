//! Collecting sessions: what a client posts becomes a file of the history, or is refused with a reason.
//!
//! Nothing of a body is believed. It is read with a limit of bytes and of time, parsed by the code that reads recorded
//! sessions, and what is stored is written anew from what was understood: accesses and their times. Marks, the time of day,
//! the image's date and whatever else a file may hold is dropped. The image must be known and the session must say that it
//! is one of it.
//!
//! | status | why |
//! |---|---|
//! | 201, 200 | kept; was known already |
//! | 401 | no token, or a wrong one |
//! | 404 | no such image is published here |
//! | 408, 413 | the body came too slowly; is too large |
//! | 415, 422 | the body is no session; is none of this image |
//! | 429 | this client sends too often, or too many at once |
//! | 500, 507 | the disk fails; is full |
//! | 503 | too many sessions come at once |
//!
//! What is refused is read to its end all the same, for some seconds, and forgotten as it comes.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use hyper::{HeaderMap, Request, StatusCode};
use tokio::sync::Semaphore;
use vmstream::error::{Error, Result};
use vmstream::session::{Subject, WallTime, file};

use super::clients::{Address, Key, Rates, Turns};
use super::history::{History, Kept};
use super::images::{Images, Published};
use super::schedule::Schedule;
use super::token::Tokens;

/// Where sessions are posted, followed by the name of the image.
pub const PATH: &str = "/sessions/";
/// Largest session that is taken, in bytes: more than a million accesses, which take 80 MiB while they are looked at.
pub const SESSION_BYTES_MAX: u64 = 4 << 20;
/// How long a session may take to come.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);
/// How long it may take until the rate counts, and what it must reach from then on, in bytes a second: a guest behind a slow
/// modem does. Who sends less only wants to be in the way.
const PACE_AFTER: Duration = Duration::from_secs(5);
const PACE_BYTES_S: u64 = 4 << 10;
/// How long the rest of a refused one may take.
const REST_TIME_MAX: Duration = Duration::from_secs(5);
/// Sessions that may come at the same time; others wait, so long at most. Bounds the memory to 64 MiB.
const BODIES_MAX: usize = 16;
const TURN_TIME_MAX: Duration = Duration::from_secs(20);
/// Of these so many may be of one client, which then cannot keep out the others.
const CLIENT_BODIES_MAX: usize = 4;
/// Sessions that are looked at at the same time.
const PARSED_MAX: usize = 2;

/// An answer to a posted session.
#[derive(Debug)]
pub struct Reply {
    /// The status of the answer.
    pub status: StatusCode,
    /// One line for a person.
    pub text: String,
    /// How long to wait before trying again, where that helps.
    pub retry_after: Option<Duration>,
}

impl Reply {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), retry_after: None }
    }
}

/// How sessions are collected.
#[derive(Debug)]
pub struct Rules {
    /// Who may send; anybody without.
    pub tokens: Option<Tokens>,
    /// Most sessions of one client a minute.
    pub per_minute: u32,
    /// Most bytes of all sessions of one image.
    pub history_bytes: u64,
    /// Whether a proxy stands before us that says for whom it asks.
    pub trust_proxy: bool,
}

/// Takes sessions. All methods may be called from several threads at once.
#[derive(Debug)]
pub struct Collector {
    images: Images,
    rules: Rules,
    rates: Rates,
    key: Key,
    histories: Mutex<HashMap<String, Arc<Mutex<History>>>>,
    schedule: Arc<Schedule>,
    turns: Turns,
    bodies: Semaphore,
    parsed: Semaphore,
}

/// The address in what a proxy writes, of which some add the port.
fn ip(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

impl Collector {
    /// A collector for the images of a site. Makes its private directory, with the key that hides clients.
    pub fn new(images: Images, rules: Rules, schedule: Arc<Schedule>) -> Result<Self> {
        let private = images.site().join(".vmstream");
        DirBuilder::new().recursive(true).mode(0o700).create(&private).map_err(|e| {
            Error::io(format_args!("cannot collect sessions: cannot make the directory {}", private.display()), e)
        })?;
        Ok(Self {
            images,
            rates: Rates::new(rules.per_minute),
            rules,
            key: Key::load(&private.join("clients.key"))?,
            histories: Mutex::default(),
            schedule,
            turns: Turns::new(CLIENT_BODIES_MAX),
            bodies: Semaphore::new(BODIES_MAX),
            parsed: Semaphore::new(PARSED_MAX),
        })
    }

    /// Takes the session that is posted for the image `name`. What goes wrong is an answer too.
    pub async fn take(self: &Arc<Self>, peer: SocketAddr, name: &str, request: Request<Incoming>) -> Reply {
        let (head, mut body) = request.into_parts();
        let reply = self.judge(peer, name, &head.headers, &mut body).await.unwrap_or_else(|refusal| refusal);
        if reply.status != StatusCode::PAYLOAD_TOO_LARGE && !body.is_end_stream() {
            // What is refused is taken all the same: a connection that is closed on what it has not read loses the answer.
            let _ = tokio::time::timeout(REST_TIME_MAX, pass_over(&mut body)).await;
        }
        reply
    }

    async fn judge(
        self: &Arc<Self>,
        peer: SocketAddr,
        name: &str,
        headers: &HeaderMap,
        body: &mut Incoming,
    ) -> std::result::Result<Reply, Reply> {
        let header = |name| headers.get(name);
        let address = self.address(peer, headers);
        self.rates.take(address, Instant::now()).map_err(|wait| Reply {
            retry_after: Some(wait),
            ..Reply::new(StatusCode::TOO_MANY_REQUESTS, "too many sessions of one client; later ones are welcome")
        })?;
        let mut own_token = None;
        if let Some(tokens) = &self.rules.tokens {
            let found = tokens.find(header(AUTHORIZATION).map(|value| value.as_bytes()));
            let token = found.ok_or_else(|| {
                Reply::new(StatusCode::UNAUTHORIZED, "sessions are taken with a token only: give upload_token=FILE")
            })?;
            own_token = tokens.tell_apart().then_some(token);
        }
        let kind = header(CONTENT_TYPE).map_or("application/octet-stream", |value| value.to_str().unwrap_or_default());
        if !kind.eq_ignore_ascii_case("application/octet-stream") {
            return Err(Reply::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "send a session file as application/octet-stream",
            ));
        }
        let declared = header(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if declared.is_some_and(|bytes: u64| bytes > SESSION_BYTES_MAX) {
            return Err(too_large());
        }
        // Looked up before the body is read, so that what is for nobody costs nothing.
        let (this, name) = (self.clone(), name.to_owned());
        let image = off(move || this.image(&name)).await??;
        let turn = self.turns.take(address).ok_or_else(|| Reply {
            retry_after: Some(Duration::from_secs(1)),
            ..Reply::new(StatusCode::TOO_MANY_REQUESTS, "too many sessions of one client at once; send one by one")
        })?;
        // The semaphores are never closed.
        let permit = tokio::time::timeout(TURN_TIME_MAX, self.bodies.acquire()).await.map_err(|_| Reply {
            retry_after: Some(TURN_TIME_MAX),
            ..Reply::new(StatusCode::SERVICE_UNAVAILABLE, "too many sessions come at once; later ones are welcome")
        })?;
        let body = read(body).await?;
        let parsing = self.parsed.acquire().await;
        let client = self.key.name(address, own_token);
        let this = self.clone();
        let reply = off(move || this.store(&image, &client, &body)).await?;
        drop((turn, permit, parsing));
        reply
    }

    fn address(&self, peer: SocketAddr, headers: &HeaderMap) -> Address {
        // The last entry of the last header is what the proxy itself saw; all before it anybody can write.
        let last = headers.get_all("x-forwarded-for").iter().next_back().filter(|_| self.rules.trust_proxy);
        let told = last.and_then(|text| ip(text.to_str().ok()?.rsplit(',').next()?.trim()));
        told.unwrap_or(peer.ip()).into()
    }

    fn image(&self, name: &str) -> std::result::Result<Published, Reply> {
        self.images.find(name).ok_or_else(|| Reply::new(StatusCode::NOT_FOUND, "no such image is published here"))
    }

    /// Looks at a session and keeps it. Blocks.
    fn store(&self, image: &Published, client: &str, body: &[u8]) -> std::result::Result<Reply, Reply> {
        let session = understood(&self.images, image, body)?;
        let kept = self.history(&image.name).and_then(|history| {
            history.lock().unwrap_or_else(PoisonError::into_inner).keep(client, WallTime::now(), &session)
        });
        match kept {
            Ok(Kept::New) => {
                self.schedule.heard(&image.name);
                Ok(Reply::new(StatusCode::CREATED, "kept"))
            }
            Ok(Kept::Known) => Ok(Reply::new(StatusCode::OK, "known already")),
            Err(error) => {
                log::error!("{error}");
                if error.is_full() {
                    return Err(Reply::new(StatusCode::INSUFFICIENT_STORAGE, "there is no room for this session"));
                }
                Err(Reply::new(StatusCode::INTERNAL_SERVER_ERROR, "the session could not be kept; the log says why"))
            }
        }
    }

    /// The history of an image, opened once. Blocks when it is not open yet.
    pub fn history(&self, name: &str) -> Result<Arc<Mutex<History>>> {
        let mut histories = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(history) = histories.get(name) {
            return Ok(history.clone());
        }
        let path = self.images.private(name).join("sessions");
        let history = Arc::new(Mutex::new(History::open(&path, self.rules.history_bytes)?));
        histories.insert(name.to_owned(), history.clone());
        Ok(history)
    }

    /// The images whose sessions are collected.
    pub fn images(&self) -> &Images {
        &self.images
    }
}

fn too_large() -> Reply {
    let text = format!("a session has {SESSION_BYTES_MAX} bytes at most");
    Reply::new(StatusCode::PAYLOAD_TOO_LARGE, text)
}

/// Runs what may block.
async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> std::result::Result<T, Reply> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Reply::new(StatusCode::INTERNAL_SERVER_ERROR, "the session could not be looked at"))
}

/// Reads a body up to the limit of bytes, as long as it comes fast enough.
async fn read(body: &mut Incoming) -> std::result::Result<Vec<u8>, Reply> {
    let began = Instant::now();
    let mut bytes = Vec::new();
    loop {
        let piece = tokio::time::timeout_at((began + patience(bytes.len() as u64)).into(), next(body)).await;
        let slow = |_| Reply::new(StatusCode::REQUEST_TIMEOUT, "the session came too slowly");
        let Some(piece) = piece.map_err(slow)?? else { return Ok(bytes) };
        if bytes.len() as u64 + piece.len() as u64 > SESSION_BYTES_MAX {
            return Err(too_large());
        }
        bytes.extend_from_slice(&piece);
    }
}

/// How long after the beginning of a body of which so many bytes are here more must have come.
fn patience(bytes: u64) -> Duration {
    (PACE_AFTER + Duration::from_secs(bytes / PACE_BYTES_S)).min(BODY_TIME_MAX)
}

/// Reads what is left of a body and keeps nothing of it; beyond the limit it is left.
async fn pass_over(body: &mut Incoming) -> std::result::Result<(), Reply> {
    let mut left = SESSION_BYTES_MAX;
    while let Some(piece) = next(body).await? {
        left = left.checked_sub(piece.len() as u64).ok_or_else(too_large)?;
    }
    Ok(())
}

/// The next piece of a body; `None` at its end.
async fn next(body: &mut Incoming) -> std::result::Result<Option<Bytes>, Reply> {
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        let frame = frame.map_err(|_| Reply::new(StatusCode::BAD_REQUEST, "the session broke off"))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// The file that is kept of a posted session: what was understood of it, of this image, and nothing else.
fn understood(images: &Images, image: &Published, body: &[u8]) -> std::result::Result<Vec<u8>, Reply> {
    let foreign = |text: &str| Reply::new(StatusCode::UNPROCESSABLE_ENTITY, text);
    let recording = file::parse("the session", body)
        .map_err(|error| Reply::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error.to_string()))?;
    if recording.lost_bytes > 0 {
        return Err(foreign("the session is damaged or cut off: send it as it was recorded"));
    }
    let Subject { geometry, validator, .. } = &recording.subject;
    let named = validator.as_deref().is_some_and(|text| images.is_of(image, text));
    if !named || *geometry != image.geometry {
        return Err(foreign("this is no session of the image that is published here under this name"));
    }
    if recording.session.accesses.is_empty() {
        return Err(foreign("nothing happened in this session"));
    }
    Ok(file::encode(&recording.anonymous()))
}

#[cfg(test)]
mod tests {
    use vmstream::block::Geometry;
    use vmstream::gate::Op;
    use vmstream::session::{Access, Recording, Session};

    use super::*;

    fn site() -> (tempfile::TempDir, Images) {
        let dir = tempfile::tempdir().unwrap();
        let text =
            format!("vmstream 1\nsize 1048576\nblock 4096\nimage d.raw\ntree d.vmt 312\nroot {}\n", "ab".repeat(32));
        std::fs::write(dir.path().join("disk.vmp"), text).unwrap();
        let images = Images::new(dir.path());
        (dir, images)
    }

    fn recording(validator: Option<&str>) -> Recording {
        let geometry = Geometry::new(1 << 20, 4096).unwrap();
        let access = |n| Access {
            at: Duration::from_millis(n),
            op: Op::Read,
            offset: n * 4096,
            length: 4096,
            stalled: Duration::from_micros(n),
        };
        let session = Session {
            geometry,
            accesses: (1..9).map(access).collect(),
            marks: vec![(Duration::from_millis(3), "login of alice".to_owned())],
        };
        let subject = Subject {
            geometry,
            validator: validator.map(str::to_owned),
            mtime_s: Some(7),
            started: Some(WallTime(1_795_359_888_123_456)),
        };
        Recording { subject, session, lost_bytes: 0 }
    }

    #[test]
    fn a_body_must_come_at_some_pace() {
        assert_eq!(patience(0), PACE_AFTER);
        assert_eq!(patience(10 * PACE_BYTES_S), PACE_AFTER + Duration::from_secs(10));
        assert_eq!(patience(SESSION_BYTES_MAX), BODY_TIME_MAX);
    }

    #[test]
    fn a_proxy_is_believed_what_it_has_added_itself_and_only_if_it_is_one() {
        let (_dir, images) = site();
        let collector = |trust_proxy| {
            let rules = Rules { tokens: None, per_minute: 1, history_bytes: 1, trust_proxy };
            Collector::new(images.clone(), rules, Arc::new(Schedule::new(1, Duration::ZERO))).unwrap()
        };
        let peer: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let seen = |trust_proxy, told: &[&'static str]| {
            let mut headers = HeaderMap::new();
            told.iter().for_each(|told| _ = headers.append("x-forwarded-for", told.parse().unwrap()));
            collector(trust_proxy).address(peer, &headers)
        };
        let address = |text: &str| Address::from(text.parse::<std::net::IpAddr>().unwrap());
        assert_eq!(seen(true, &["10.6.6.6, 10.0.0.2"]), address("10.0.0.2"));
        assert_eq!(seen(true, &["10.6.6.6", "10.0.0.2"]), address("10.0.0.2"), "the last of several headers");
        assert_eq!(seen(false, &["10.6.6.6"]), address("10.0.0.1"));
        assert_eq!(seen(true, &["10.6.6.6", "nonsense"]), address("10.0.0.1"));
        assert_eq!(seen(true, &[]), address("10.0.0.1"));
        assert_eq!(seen(true, &["10.0.0.2:4711"]), address("10.0.0.2"), "with a port");
        assert_eq!(seen(true, &["[2001:db8::1]:4711"]), seen(true, &["2001:db8::1"]));
        assert_eq!(seen(true, &["[2001:db8::1]"]), address("2001:db8::1"));
    }

    #[test]
    fn only_places_and_times_are_kept() {
        let (_dir, images) = site();
        let image = images.find("disk").unwrap();
        let sent = recording(Some(&image.validator()));
        let kept = understood(&images, &image, &file::encode(&sent)).unwrap();
        let again = file::parse("kept", &kept).unwrap();
        assert_eq!(again.session.accesses, sent.session.accesses);
        assert_eq!((again.session.marks.len(), again.subject.mtime_s, again.subject.started), (0, None, None));
        assert!(!kept.windows(5).any(|w| w == b"alice"));
        assert_eq!(again.subject.validator, Some(image.validator()));
    }

    #[test]
    fn what_is_no_session_of_the_image_is_refused() {
        let (_dir, images) = site();
        let image = images.find("disk").unwrap();
        let status = |body: &[u8]| understood(&images, &image, body).unwrap_err().status;
        assert_eq!(status(b"GET / HTTP/1.1"), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(status(b""), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        for other in [None, Some("\"etag\""), Some("root:"), Some(&*format!("root:{}", "cd".repeat(32)))] {
            assert_eq!(status(&file::encode(&recording(other))), StatusCode::UNPROCESSABLE_ENTITY, "{other:?}");
        }
        let good = file::encode(&recording(Some(&image.validator())));
        assert_eq!(status(&good[..good.len() - 1]), StatusCode::UNPROCESSABLE_ENTITY);
        let mut empty = recording(Some(&image.validator()));
        empty.session.accesses.clear();
        assert_eq!(status(&file::encode(&empty)), StatusCode::UNPROCESSABLE_ENTITY);
        let mut other = recording(Some(&image.validator()));
        other.subject.geometry = Geometry::new(1 << 20, 512).unwrap();
        assert_eq!(status(&file::encode(&other)), StatusCode::UNPROCESSABLE_ENTITY);
    }
}
