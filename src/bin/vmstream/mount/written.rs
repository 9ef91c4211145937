//! When a guest last wrote to a mounted disk: a disk that changes must not look to make or rsync as if it had not.
//!
//! What comes by the mount is known when it comes. What the kernel passes through is seen in the local file, which nobody else writes to
//! then: it is complete. Its time is put back when the last of the writers is gone, so it is looked at before.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The moment of the last write, if there was one; known to all threads.
#[derive(Debug, Default)]
pub struct Written {
    /// In nanoseconds since 1970; 0 for never.
    last: AtomicU64,
}

/// The modification time of a local file as it was once; `None` when it could not be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(Option<Duration>);

impl Stamp {
    /// As it is now. Before 1970 nobody writes here.
    pub fn of(file: BorrowedFd<'_>) -> Self {
        let since = |stat: rustix::fs::Stat| {
            let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
            Duration::new(u64::try_from(stat.st_mtime).unwrap_or_default(), nanos)
        };
        Self(rustix::fs::fstat(file).ok().map(since))
    }
}

impl Written {
    /// Somebody writes now.
    pub fn now(&self) {
        self.at(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    }

    fn at(&self, since: Duration) {
        self.last.fetch_max(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// If the local file is not as it was, somebody has written when it says; answers how it is.
    pub fn look(&self, file: BorrowedFd<'_>, before: Stamp) -> Stamp {
        let stamp = Stamp::of(file);
        if let Some(since) = stamp.0.filter(|_| stamp != before) {
            self.at(since);
        }
        stamp
    }

    /// When it was.
    pub fn last(&self) -> Option<SystemTime> {
        let nanos = Some(self.last.load(Ordering::Relaxed)).filter(|&nanos| nanos != 0)?;
        Some(UNIX_EPOCH + Duration::from_nanos(nanos))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_write_is_told_and_only_a_write() {
        let written = Written::default();
        let file = tempfile::tempfile().unwrap();
        let stamp = Stamp::of(file.as_fd());
        assert_eq!((written.look(file.as_fd(), stamp), written.last()), (stamp, None));
        let at = UNIX_EPOCH + Duration::from_millis(1_234_567_890_125);
        file.set_modified(at).unwrap();
        let later = written.look(file.as_fd(), stamp);
        assert_eq!((later == stamp, written.last()), (false, Some(at)));
        written.now();
        let last = written.last();
        assert!(last > Some(at));
        // Put back: that is older than what is known.
        file.set_modified(at - Duration::from_secs(1)).unwrap();
        written.look(file.as_fd(), later);
        assert_eq!(written.last(), last);
    }
}
