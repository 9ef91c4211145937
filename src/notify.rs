//! How a driver learns that a pending request is ready: a callback, or a queue with an event descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crossbeam::queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};

use crate::error::{Error, Result};

/// The end of one pending request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The caller's tag.
    pub tag: u64,
    /// 0 or a negative errno.
    pub result: i32,
}

/// Called once for every pending request, on a library thread with all signals blocked. It must not block for long
/// and may call the gate.
pub type ReadyFn = Box<dyn Fn(Completion) + Send + Sync>;

/// A queue of completions and the descriptor that is readable while it holds some.
#[derive(Debug)]
pub struct CompletionQueue {
    queue: SegQueue<Completion>,
    event: OwnedFd,
}

impl CompletionQueue {
    /// An empty queue.
    pub fn new() -> Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let event = event.map_err(|e| Error::io("cannot make an event descriptor", e.into()))?;
        Ok(Self { queue: SegQueue::new(), event })
    }

    /// Adds a completion and makes the descriptor readable.
    pub fn push(&self, completion: Completion) {
        self.queue.push(completion);
        self.signal();
    }

    fn signal(&self) {
        // Fails only when the counter would overflow, and then the descriptor is readable anyway.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Takes up to `out.len()` completions; the descriptor stays readable when more are left.
    pub fn reap(&self, out: &mut [Completion]) -> usize {
        // First quiet the descriptor, then take: what is pushed in between is either taken now or signalled anew.
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
        let mut count = 0;
        for slot in out.iter_mut() {
            let Some(completion) = self.queue.pop() else { return count };
            *slot = completion;
            count += 1;
        }
        if !self.queue.is_empty() {
            self.signal();
        }
        count
    }

    /// The descriptor, readable while completions wait. Do not read it. A completion that is taken between its entry in
    /// the queue and its signal leaves it readable once more, until the next [`CompletionQueue::reap`].
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Where completions go.
pub enum Notifier {
    /// To a function.
    Callback(ReadyFn),
    /// Into a queue.
    Queue(Box<CompletionQueue>),
}

impl Notifier {
    /// Hands over one completion.
    pub fn notify(&self, completion: Completion) {
        match self {
            Notifier::Callback(call) => call(completion),
            Notifier::Queue(queue) => queue.push(completion),
        }
    }
}

impl std::fmt::Debug for Notifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Notifier::Callback(_) => "Callback",
            Notifier::Queue(_) => "Queue",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn readable(queue: &CompletionQueue) -> bool {
        let fd = queue.event_fd();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn the_descriptor_is_readable_exactly_while_completions_wait() {
        let queue = CompletionQueue::new().unwrap();
        assert!(!readable(&queue));
        for tag in 0..5 {
            queue.push(Completion { tag, result: 0 });
        }
        let mut out = [Completion { tag: 99, result: 1 }; 3];
        assert!(readable(&queue));
        assert_eq!(queue.reap(&mut out), 3);
        assert_eq!(out.map(|c| c.tag), [0, 1, 2]);
        assert!(readable(&queue));
        assert_eq!(queue.reap(&mut out), 2);
        assert!(!readable(&queue));
        assert_eq!(queue.reap(&mut out), 0);
    }
}
