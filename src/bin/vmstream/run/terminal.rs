//! The terminal that a guest has as its console.

use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::signals::Last;

/// The terminal as it is now, which it becomes again when this is dropped, or when the process is ended at once: a monitor that is
/// killed leaves it as its guest had it, without echo and line ends.
pub struct Terminal {
    saved: Saved,
    _last: Option<Last>,
}

struct Saved(OwnedFd, Termios);

impl Saved {
    fn restore(&self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(&self.0, OptionalActions::Now, &self.1);
    }
}

impl Terminal {
    /// That of standard input; `None` when there is none.
    pub fn save() -> Option<Self> {
        let save = || {
            let input = std::io::stdin().as_fd().try_clone_to_owned().ok()?;
            let state = tcgetattr(&input).ok()?;
            Some(Saved(input, state))
        };
        let last = save().map(|saved| Last::new(move || saved.restore()));
        Some(Self { saved: save()?, _last: last })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.saved.restore();
    }
}
