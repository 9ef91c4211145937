//! The recorder: hears of what a guest does, and has it in order when somebody comes for it.
//!
//! It does no I/O and asks no clock, so it may be told under a lock that guests wait for. News does not come in order: the
//! note of a hit is found a little later than a miss is, and how long an access waited is known only at its end. So
//! events lie here, sorted by the moment at which the guest asked, until they are complete. They go out in batches,
//! when enough have come together or some time after the first; an access that waits holds back what came
//! after it, but not without limit: then it goes out with the wait it has so far.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::{Access, Event};
use crate::gate::Op;
use crate::time::Moment;

/// Events that are written at once: a chunk of some 20 KiB.
const BATCH_EVENTS: usize = 4096;
/// Longest that an event lies here once it is complete: so much of a session a crash costs.
const BATCH_AGE: Duration = Duration::from_secs(5);
/// Most events that wait behind one that is not complete.
const EVENTS_MAX: usize = 4 * BATCH_EVENTS;

/// What happens in one session, on its way to a file.
#[derive(Debug)]
pub struct Recorder {
    opened: Moment,
    /// False: nothing is to be recorded, and nothing is kept.
    on: bool,
    /// True: it is not known yet whether this becomes a session, so nothing goes out.
    held_back: bool,
    events: VecDeque<Held>,
    /// By number of the request.
    waits: HashMap<u64, Wait>,
    /// When the oldest event came, or was last found not to be complete.
    since: Option<Moment>,
    /// Time of the latest event that has gone out: nothing earlier can follow.
    out: Duration,
    /// Touches that were never heard of, since this was last told.
    missed: u64,
}

/// How long an access waited, as far as that is known.
#[derive(Clone, Copy, Debug)]
enum Wait {
    Since(Moment),
    Over(Duration),
}

#[derive(Debug)]
struct Held {
    event: Event,
    /// The request whose end is to be heard of.
    request: Option<u64>,
}

impl Recorder {
    /// A recorder of the session of an image that was opened at `opened`; one that is not `on` hears of everything and
    /// keeps nothing.
    pub fn new(opened: Moment, on: bool) -> Self {
        let (events, waits) = (VecDeque::new(), HashMap::new());
        Self { opened, on, held_back: false, events, waits, since: None, out: Duration::ZERO, missed: 0 }
    }

    /// While `held_back` nothing goes out, and what is here at the end never does. Some ten thousand events are kept so
    /// long; of later ones only the number.
    pub fn hold_back(&mut self, held_back: bool) {
        self.held_back = held_back;
    }

    /// The guest touched bytes that were here, at `at`.
    pub fn touched(&mut self, op: Op, offset: u64, length: u64, at: Moment) {
        self.hold(Event::Access(self.access(op, offset, length, at)), None);
    }

    /// The guest asked, at `at`, for bytes that were not all here. `request` names the access until
    /// [`Recorder::answered`]; no two that wait may have the same number.
    pub fn asked(&mut self, request: u64, op: Op, offset: u64, length: u64, at: Moment) {
        if self.on {
            self.waits.insert(request, Wait::Since(at));
        }
        self.hold(Event::Access(self.access(op, offset, length, at)), Some(request));
    }

    /// The guest need not wait any longer for this request, of which the recorder may know nothing.
    pub fn answered(&mut self, request: u64, at: Moment) {
        if let Some(wait) = self.waits.get_mut(&request) {
            *wait = wait.over(at);
        }
    }

    /// Nobody waits any longer for anything.
    pub fn all_answered(&mut self, at: Moment) {
        self.waits.values_mut().for_each(|wait| *wait = wait.over(at));
    }

    /// Somebody names the moment `at`.
    pub fn mark(&mut self, name: &str, at: Moment) {
        self.hold(Event::Mark(at.since(self.opened), name.to_owned()), None);
    }

    /// So many touches came too fast to be noted. A mark says so with the next batch.
    pub fn missed(&mut self, touches: u64) {
        self.missed += touches;
    }

    fn access(&self, op: Op, offset: u64, length: u64, at: Moment) -> Access {
        Access { at: at.since(self.opened), op, offset, length, stalled: Duration::ZERO }
    }

    fn hold(&mut self, mut event: Event, request: Option<u64>) {
        if !self.on {
            return;
        }
        if self.held_back && self.events.len() >= EVENTS_MAX {
            request.map(|request| self.waits.remove(&request));
            self.missed += 1;
            return;
        }
        let at = event.at().max(self.out);
        match &mut event {
            Event::Access(access) => access.at = at,
            Event::Mark(mark, _) => *mark = at,
        }
        self.since.get_or_insert(self.opened + at);
        let later = self.events.iter().rev().take_while(|held| held.event.at() > at).count();
        self.events.insert(self.events.len() - later, Held { event, request });
    }

    /// When [`Recorder::take_due`] wants to be asked again even if nothing happens.
    pub fn deadline(&self) -> Option<Moment> {
        self.since.filter(|_| !self.held_back).map(|since| since + BATCH_AGE)
    }

    /// The events that are to be written now: none, until there are many or the first has lain for some time.
    pub fn take_due(&mut self, now: Moment) -> Vec<Event> {
        let many = self.events.len() >= BATCH_EVENTS && !self.held_back;
        if !many && self.deadline().is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.tell_missed(now);
        let forced = if self.events.len() < EVENTS_MAX { 0 } else { BATCH_EVENTS };
        self.take(forced, now)
    }

    /// All events: the session is at its end. What still waits has waited until `now`. None of one that is held back.
    pub fn take_all(&mut self, now: Moment) -> Vec<Event> {
        if self.held_back {
            return Vec::new();
        }
        self.tell_missed(now);
        self.take(self.events.len(), now)
    }

    /// One mark for all that were missed: a guest that is too fast to be noted must not fill the record with marks.
    fn tell_missed(&mut self, now: Moment) {
        match std::mem::take(&mut self.missed) {
            0 => {}
            touches => self.mark(&format!("{touches} touches not recorded"), now),
        }
    }

    /// Takes the first `forced` events, and those behind them that are complete.
    fn take(&mut self, forced: usize, now: Moment) -> Vec<Event> {
        let mut taken = Vec::new();
        while let Some(held) = self.events.front() {
            let wait = held.request.and_then(|request| self.waits.get(&request).copied());
            if matches!(wait, Some(Wait::Since(_))) && taken.len() >= forced {
                break;
            }
            let Some(Held { mut event, request }) = self.events.pop_front() else { break };
            self.out = event.at();
            if let (Event::Access(access), Some(Wait::Over(stalled))) = (&mut event, wait.map(|wait| wait.over(now))) {
                access.stalled = stalled;
            }
            request.map(|request| self.waits.remove(&request));
            taken.push(event);
        }
        self.since = (!self.events.is_empty()).then_some(now);
        taken
    }
}

impl Wait {
    fn over(self, at: Moment) -> Self {
        match self {
            Self::Since(asked) => Self::Over(at.since(asked)),
            over => over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENED: Moment = Moment(7_000_000_000);

    fn ms(ms: u64) -> Moment {
        OPENED + Duration::from_millis(ms)
    }

    /// Time, place and wait of accesses, in milliseconds and bytes; marks as places from 1000.
    fn told(events: Vec<Event>) -> Vec<(u128, u64, u128)> {
        let tell = |event| match event {
            Event::Access(a) => (a.at.as_millis(), a.offset, a.stalled.as_millis()),
            Event::Mark(at, name) => (at.as_millis(), 1000 + name.len() as u64, 0),
        };
        events.into_iter().map(tell).collect()
    }

    #[test]
    fn events_go_out_sorted_and_complete() {
        let mut recorder = Recorder::new(OPENED, true);
        assert_eq!(recorder.deadline(), None);
        recorder.asked(1, Op::Read, 100, 1, ms(10));
        recorder.mark("abc", ms(30));
        recorder.touched(Op::Read, 200, 1, ms(20)); // found later than the mark was heard
        recorder.answered(1, ms(25));
        recorder.answered(77, ms(25));
        recorder.asked(2, Op::Write, 300, 1, ms(40));
        recorder.touched(Op::Read, 400, 1, ms(50));
        let due = recorder.deadline().unwrap();
        assert_eq!(due, ms(5010));
        assert_eq!(recorder.take_due(ms(5009)), []);
        assert_eq!(told(recorder.take_due(due)), [(10, 100, 15), (20, 200, 0), (30, 1003, 0)]);
        // The rest waits behind request 2, and is looked at again in a while.
        assert_eq!(recorder.deadline(), Some(ms(10_010)));
        assert_eq!(recorder.take_due(ms(10_010)), []);
        recorder.answered(2, ms(11_040));
        recorder.touched(Op::Read, 500, 1, ms(5)); // earlier than what has gone out
        assert_eq!(told(recorder.take_all(ms(20_000))), [(30, 500, 0), (40, 300, 11_000), (50, 400, 0)]);
        assert_eq!((recorder.deadline(), recorder.take_all(ms(20_000)).len()), (None, 0));
    }

    #[test]
    fn what_was_missed_is_told_once_a_batch() {
        let mut recorder = Recorder::new(OPENED, true);
        recorder.touched(Op::Read, 100, 1, ms(10));
        recorder.missed(3);
        recorder.missed(0);
        recorder.missed(39);
        assert_eq!(recorder.take_due(ms(20)), []);
        let mark = |at| Event::Mark(Duration::from_millis(at), "42 touches not recorded".to_owned());
        assert_eq!(recorder.take_due(ms(6000))[1..], [mark(6000)]);
        assert_eq!(recorder.take_all(ms(7000)), []);
        recorder.missed(42);
        assert_eq!(recorder.take_all(ms(8000)), [mark(8000)]);
    }

    #[test]
    fn a_recorder_that_is_off_keeps_nothing() {
        let mut recorder = Recorder::new(OPENED, false);
        recorder.asked(1, Op::Read, 1, 1, ms(1));
        recorder.touched(Op::Read, 2, 1, ms(2));
        recorder.mark("m", ms(3));
        recorder.missed(4);
        assert!(recorder.waits.is_empty() && recorder.deadline().is_none() && recorder.take_all(ms(4)).is_empty());
    }

    #[test]
    fn what_is_held_back_goes_out_when_it_is_let_go_and_never_if_it_is_not() {
        let mut recorder = Recorder::new(OPENED, true);
        recorder.hold_back(true);
        recorder.asked(1, Op::Read, 100, 1, ms(10));
        recorder.answered(1, ms(15));
        for n in 1..=EVENTS_MAX as u64 {
            recorder.touched(Op::Read, n, 1, ms(20));
        }
        recorder.asked(2, Op::Read, 200, 1, ms(30));
        assert_eq!((recorder.deadline(), recorder.take_due(ms(60_000))), (None, Vec::new()));
        assert_eq!(recorder.take_all(ms(60_000)), []);
        assert_eq!((recorder.events.len(), recorder.waits.len()), (EVENTS_MAX, 1), "what is kept is bounded");
        recorder.hold_back(false);
        assert_eq!(recorder.deadline(), Some(ms(5010)), "it is due at once");
        let events = recorder.take_due(ms(60_000));
        assert_eq!(told(events[..2].to_vec()), [(10, 100, 5), (20, 1, 0)]);
        assert_eq!(events.last(), Some(&Event::Mark(Duration::from_secs(60), "2 touches not recorded".to_owned())));
    }

    #[test]
    fn many_events_are_due_at_once() {
        let mut recorder = Recorder::new(OPENED, true);
        for n in 0..BATCH_EVENTS as u64 {
            assert_eq!(recorder.take_due(ms(1)), [], "after {n}");
            recorder.touched(Op::Read, n, 1, ms(1));
        }
        assert_eq!(recorder.take_due(ms(1)).len(), BATCH_EVENTS);
    }

    #[test]
    fn one_that_never_ends_does_not_hold_back_the_others_for_ever() {
        let mut recorder = Recorder::new(OPENED, true);
        recorder.asked(1, Op::Read, 0, 1, ms(0));
        let mut out = Vec::new();
        for n in 1..3 * EVENTS_MAX as u64 {
            recorder.touched(Op::Read, n, 1, ms(n));
            out.extend(recorder.take_due(ms(n)));
            assert!(recorder.events.len() <= EVENTS_MAX);
        }
        out.extend(recorder.take_all(ms(99_999)));
        recorder.answered(1, ms(100_000));
        assert!(recorder.waits.is_empty(), "what has gone out is forgotten");
        let out = told(out);
        assert_eq!(out.len(), 3 * EVENTS_MAX);
        assert_eq!(out[0], (0, 0, EVENTS_MAX as u128 - 1), "it waited so long when it went out");
        assert!(out.is_sorted());
    }

    #[test]
    fn what_still_waits_at_the_end_has_waited_until_then() {
        let mut recorder = Recorder::new(OPENED, true);
        recorder.asked(1, Op::Read, 1, 1, ms(1));
        recorder.all_answered(ms(4));
        recorder.asked(2, Op::Read, 2, 1, ms(5));
        assert_eq!(told(recorder.take_all(ms(10))), [(1, 1, 3), (5, 2, 5)]);
    }
}
