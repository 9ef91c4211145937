//! The handle by which a test holds and spoils chosen requests.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is done to one request on a test's wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// It fails in a way that may pass, before any byte.
    Error,
    /// It fails for good.
    Fatal,
    /// It is cut after so many bytes.
    Cut(u64),
}

/// Holds, releases and spoils the requests of a [`FaultSource`](super::FaultSource); clones are the same handle.
///
/// All methods may be called from any thread. A held request blocks its worker until it is released, so release
/// before closing what uses the source.
#[derive(Clone, Debug, Default)]
pub struct FaultControl(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    holding: bool,
    /// The ranges (offset, length) that are held now, oldest first.
    held: Vec<(u64, u64)>,
    /// Held requests that may go on although the others stay.
    tickets: usize,
    injected: VecDeque<Injected>,
    requests: u64,
}

impl FaultControl {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on requests wait.
    pub fn hold(&self) {
        self.state().holding = true;
    }

    /// Lets all waiting requests go on, and all to come.
    pub fn release(&self) {
        let mut state = self.state();
        state.holding = false;
        state.tickets = 0;
        self.0.changed.notify_all();
    }

    /// Lets one request go on: one that waits, else the next one.
    pub fn release_one(&self) {
        self.state().tickets += 1;
        self.0.changed.notify_all();
    }

    /// Waits until exactly `count` requests are held; false if that does not happen within `limit`.
    pub fn wait_held(&self, count: usize, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.state();
        while state.held.len() != count {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The ranges (offset, length) of the requests held now, oldest first.
    pub fn held(&self) -> Vec<(u64, u64)> {
        self.state().held.clone()
    }

    /// Spoils the next request that goes on; several wishes queue up.
    pub fn fail_next(&self, how: Injected) {
        self.state().injected.push_back(how);
    }

    /// Number of requests that came so far, held ones included.
    pub fn requests(&self) -> u64 {
        self.state().requests
    }

    /// Takes a request in: waits while requests are held, then says how it is to be spoiled.
    pub(super) fn admit(&self, offset: u64, length: u64) -> Option<Injected> {
        let mut state = self.state();
        state.requests += 1;
        if state.holding {
            state.held.push((offset, length));
            self.0.changed.notify_all();
            while state.holding && state.tickets == 0 {
                state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.tickets = state.tickets.saturating_sub(1);
            if let Some(at) = state.held.iter().position(|range| *range == (offset, length)) {
                state.held.remove(at);
            }
            self.0.changed.notify_all();
        }
        state.injected.pop_front()
    }
}
