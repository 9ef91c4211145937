//! Replaying sessions against a modelled link, in virtual time, with the planner that also runs in the engine; and in real
//! time ([`live`]), with the engine itself.
//!
//! *The guest* is serial and a closed loop: each access comes its think time after the one before was served. Its think time
//! is the gap in the recorded session, perhaps scaled to a faster machine, and cut where a person was thinking.
//! *The link* ([`LinkModel`]) is one FIFO towards the guest; what has been asked for cannot be taken back. *The bound*
//! ([`oracle`]) is what a link could do at best that knows the future, and a [`Policy`] is who decides what comes ahead.
//!
//! Who wants to see more than figures watches ([`watch()`]) and is told of each [`Sight`] as it happens, or asks the planner on
//! the way what is to come ([`calibration`]).
//!
//! But for `live` nothing here reads a clock: the same session, link and policy give the same [`Figures`] on every machine.

mod agenda;
pub mod calibration;
mod contents;
mod downlink;
mod figures;
pub mod hold;
pub mod live;
pub mod oracle;
mod policy;
mod sight;
mod states;
#[cfg(test)]
mod tests;
mod world;

pub use downlink::LinkModel;
pub use figures::Figures;
pub use policy::Policy;
pub use sight::Sight;
pub use world::{Observer, Setup, run, watch};

use std::time::Duration;

use crate::gate::Op;
use crate::session::{GuestClock, Session};

/// A step of the guest: it thinks, then it does this.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Pause before it.
    pub think: Duration,
    /// What it does.
    pub op: Op,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// The guest of a session: its pauses on its own clock, which stands while it waits for bytes ([`GuestClock`], as in
/// training), scaled, and cut at `pause_max`. It begins with its first access.
pub fn guest(session: &Session, scale: f64, pause_max: Duration) -> Vec<Step> {
    let mut clock = GuestClock::default();
    let mut last = None;
    let step = |access: &crate::session::Access| {
        let at = clock.at(access);
        let pause = at.saturating_sub(last.replace(at).unwrap_or(at));
        let think = pause.mul_f64(scale).min(pause_max);
        Step { think, op: access.op, offset: access.offset, length: access.length }
    };
    session.accesses.iter().map(step).collect()
}
