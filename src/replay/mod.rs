//! Replaying sessions against a modelled link, in virtual time, with the planner that also runs in the engine.
//!
//! *The guest* is serial and a closed loop: each access comes its think time after the one before was served. Its think time
//! is the gap in the recorded session, perhaps scaled to a faster machine, and cut where a person was thinking.
//! *The link* ([`LinkModel`]) is one FIFO towards the guest; what has been asked for cannot be taken back. *The bound*
//! ([`oracle`]) is what a link could do at best that knows the future, and a [`Policy`] is who decides what comes ahead.
//!
//! Nothing here reads a clock: the same session, link and policy give the same [`Figures`] on every machine.

mod agenda;
pub mod calibration;
mod downlink;
mod figures;
pub mod oracle;
mod policy;
mod states;
#[cfg(test)]
mod tests;
mod world;

pub use downlink::LinkModel;
pub use figures::Figures;
pub use policy::Policy;
pub use world::{Setup, run, run_asking};

use std::time::Duration;

use crate::gate::Op;
use crate::session::Session;

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

/// The guest of a session: its pauses without the time that it waited for bytes, scaled, and cut at `pause_max`. It begins
/// with its first access.
pub fn guest(session: &Session, scale: f64, pause_max: Duration) -> Vec<Step> {
    let mut last = None;
    let mut stalled = Duration::ZERO;
    let step = |access: &crate::session::Access| {
        let at = access.at.saturating_sub(stalled);
        let gap = at.saturating_sub(last.unwrap_or(at));
        last = Some(at);
        stalled += access.stalled;
        let think = gap.mul_f64(scale).min(pause_max);
        Step { think, op: access.op, offset: access.offset, length: access.length }
    };
    session.accesses.iter().map(step).collect()
}
