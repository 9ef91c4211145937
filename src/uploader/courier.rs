//! One round of sending: the sessions of a directory that were not sent to a place yet.

use std::fmt;

use super::ledger::Ledger;
use super::refusal;
use crate::config::HttpOptions;
use crate::error::{Error, Result, errno};
use crate::session::{self, Directory, Subject, file};
use crate::source::http::Delivery;

/// What sessions of published images have before the root hash.
const ROOT: &str = "root:";

/// What came of a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Sessions that were taken, or were known already.
    pub sent: usize,
    /// Sessions that will never be taken there; they are not offered again.
    pub refused: usize,
    /// Sessions that are left for another time.
    pub left: usize,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sent, {} refused, {} left for another time", self.sent, self.refused, self.left)
    }
}

/// True when sessions of this image say of which published one they are.
pub(super) fn is_published(subject: &Subject) -> bool {
    subject.validator.as_ref().is_some_and(|validator| validator.starts_with(ROOT))
}

/// Sends all sessions of published images in `directory` that were not sent to `url` yet: once each, the oldest first, and
/// only what [`crate::session::Recording::anonymous`] leaves of them. Sessions that are still written are left. Blocks.
///
/// # Errors
/// Bad options, nobody who answers, and answers that the next session would get as well (401, 404, 429, 5xx, ...). What was
/// sent before that stays sent.
pub fn send_all(directory: &Directory, url: &str, http: &HttpOptions, token: Option<&str>) -> Result<Sent> {
    let delivery = Delivery::to(url, http, token).map_err(refusal)?;
    send(directory, None, url, &delivery, &|| false)
}

/// The same to a place of another kind: `deliver` is given the bytes of each session and takes it, or fails as all that follow
/// would. `place` is what the list beside the sessions calls it.
///
/// # Errors
/// Those of `deliver`. What was sent before that stays sent.
pub fn send_by(directory: &Directory, place: &str, deliver: &dyn Fn(&[u8]) -> Result<()>) -> Result<Sent> {
    round(directory, None, place, &|_, bytes| deliver(bytes).map(|()| true), &|| false)
}

/// The same over a delivery, for sessions of `subject` alone if it is given, until `stop` says so.
pub(super) fn send(
    directory: &Directory,
    subject: Option<&Subject>,
    url: &str,
    delivery: &Delivery,
    stop: &dyn Fn() -> bool,
) -> Result<Sent> {
    let deliver = |name: &str, bytes: &[u8]| {
        let reply = delivery.send(bytes).map_err(refusal)?;
        match reply.status {
            200..=299 => Ok(true),
            // It is too large, or of a version that is not published there any more: that does not change.
            413 | 415 | 422 => {
                log::debug!("{}: {} says {} to {name}", delivery.name(), reply.status, reply.text);
                Ok(false)
            }
            status => {
                let text = format!("{} answers {status}: {}", delivery.name(), reply.text);
                Err(Error::new(if status == 401 { errno::EACCES } else { errno::EPROTO }, text))
            }
        }
    };
    round(directory, subject, url, &deliver, stop)
}

/// A session, called so, for a place: whether it was taken or never will be.
type Deliver<'a> = &'a dyn Fn(&str, &[u8]) -> Result<bool>;

fn round(
    directory: &Directory,
    subject: Option<&Subject>,
    url: &str,
    deliver: Deliver<'_>,
    stop: &dyn Fn() -> bool,
) -> Result<Sent> {
    let mut ledger = Ledger::open(directory, url);
    let mut result = Sent::default();
    for path in directory.list()? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|n| !n.contains(char::is_control))
        else {
            continue;
        };
        if ledger.knows(name) {
            continue;
        }
        if stop() || file::is_being_written(&path) {
            result.left += 1;
            continue;
        }
        let recording = match session::load(&path) {
            Ok(recording) => recording,
            Err(error) => {
                log::debug!("{error}: it is not sent");
                continue;
            }
        };
        let other = subject.is_some_and(|subject| !recording.subject.is_of(subject));
        if other || !is_published(&recording.subject) || recording.session.accesses.is_empty() {
            continue;
        }
        match deliver(name, &file::encode(&recording.anonymous()))? {
            true => result.sent += 1,
            false => result.refused += 1,
        }
        ledger.add(name)?;
    }
    Ok(result)
}
