//! Failures of a transfer, told apart by whether they may pass.
//!
//! A server that was never reached rightly may be the wrong server: garbage instead of HTTP or an untrusted
//! certificate is then final, so that a mistyped URL is told at once. From one that has served this image
//! before, the same failure is a restart, an expired certificate or a tired load balancer: the guest waits.

use std::io;
use std::time::Duration;

use ureq::Timeout;

use crate::error::errno;

/// Why no answer came, or why its body broke off.
#[derive(Debug)]
pub(super) struct Failure {
    /// What happened, in words that continue "URL: ".
    pub message: String,
    /// The error number when it can never pass.
    pub fatal: Option<i32>,
    /// Nothing moved for the stall limit, so time was lost already.
    pub stalled: bool,
    /// The peer closed the connection without a word: what an idle connection does when it has been dropped.
    pub closed: bool,
}

impl Failure {
    fn transient(message: impl Into<String>) -> Self {
        Self { message: message.into(), fatal: None, stalled: false, closed: false }
    }

    /// A failure that may pass, unless this server has never answered rightly yet.
    fn strange(message: String, errno: i32, reached: bool) -> Self {
        Self { fatal: (!reached).then_some(errno), ..Self::transient(message) }
    }

    /// Classifies an error of ureq. `reached`: the server has given a right answer before; `stall`: the limit.
    pub fn of(error: &ureq::Error, reached: bool, stall: Duration) -> Self {
        use ureq::Error as E;
        match error {
            E::Io(error) => Self::of_io(error, reached, stall),
            E::Timeout(Timeout::Resolve | Timeout::Connect) => Self::transient("cannot connect in time"),
            E::Timeout(_) => Self { stalled: true, ..Self::transient(format!("no byte for {stall:?}")) },
            E::HostNotFound => Self::transient("the host has no address"),
            E::ConnectProxyFailed(reason) => match reason.as_str() {
                r if r.contains("407") => Self::strange(
                    "the proxy wants credentials; give proxy=http://USER:PASSWORD@HOST".into(),
                    errno::EACCES,
                    reached,
                ),
                r if r.contains("403") => {
                    Self::strange("the proxy denies access to this host".into(), errno::EACCES, reached)
                }
                r => Self::transient(r.to_owned()),
            },
            E::Rustls(error) => Self::tls(&error.to_string(), reached),
            E::Tls(reason) => Self::tls(reason, reached),
            E::Protocol(error) => {
                Self::strange(format!("the server does not speak HTTP rightly: {error}"), errno::EPROTO, reached)
            }
            _ => Self::strange(error.to_string(), errno::EPROTO, reached),
        }
    }

    /// Classifies an error of reading a body.
    pub fn of_io(error: &io::Error, reached: bool, stall: Duration) -> Self {
        if let Some(inner) = error.get_ref()
            && let Some(error) = inner.downcast_ref::<ureq::Error>()
        {
            return Self::of(error, reached, stall);
        }
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                Self { stalled: true, ..Self::transient(format!("no byte for {stall:?}")) }
            }
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self { closed: true, ..Self::transient("the server closed the connection") },
            // This is how rustls hands up what it finds wrong with a peer.
            io::ErrorKind::InvalidData => Self::tls(&error.to_string(), reached),
            _ => Self::transient(error.to_string()),
        }
    }

    fn tls(reason: &str, reached: bool) -> Self {
        if reason.contains("invalid peer certificate") {
            let message = format!("the server's certificate is not trusted ({reason}); check it, or give cacert=FILE");
            return Self::strange(message, errno::EACCES, reached);
        }
        Self::strange(format!("no secure connection: {reason}"), errno::EPROTO, reached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(10);

    #[test]
    fn a_cut_connection_may_pass_and_counts_as_closed() {
        for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe] {
            let failure = Failure::of(&ureq::Error::Io(kind.into()), false, STALL);
            assert!(failure.closed && failure.fatal.is_none() && !failure.stalled, "{kind:?}");
        }
    }

    #[test]
    fn a_stall_is_told_from_a_slow_connect() {
        assert!(Failure::of(&ureq::Error::Timeout(Timeout::PerRead), false, STALL).stalled);
        assert!(!Failure::of(&ureq::Error::Timeout(Timeout::Connect), false, STALL).stalled);
        let wrapped = io::Error::other(ureq::Error::Timeout(Timeout::PerRead));
        assert!(Failure::of_io(&wrapped, true, STALL).stalled);
    }

    #[test]
    fn a_bad_certificate_is_final_only_before_the_first_right_answer() {
        let bad = || ureq::Error::Io(io::Error::new(io::ErrorKind::InvalidData, "invalid peer certificate: Expired"));
        assert_eq!(Failure::of(&bad(), false, STALL).fatal, Some(errno::EACCES));
        assert_eq!(Failure::of(&bad(), true, STALL).fatal, None);
    }
}
