//! Following a guest: what it will want, in what order.
//!
//! A *belief* (`belief`) says for each remembered session how much the present one looks like it, and where in it the
//! guest may be. From that an *order* ([`Predictor`]) is made: what lies ahead in those sessions, by belief over
//! time-to-use. Of all orders the one by greatest *hazard*, probability over time, loses least when guesses are wrong.
//!
//! Where a guest is going is known best while it is busy with something known. Between two tasks nothing is near, and then
//! the link is best used for what the guest will need whatever comes next. So each sequence has a second hazard beside that
//! of its place on the way: that sessions like this one use it at all, sooner or later.
//!
//! After Potter, Oka, Kato (2006): the sequence that overlaps most with what the guest did last is streamed, and the
//! transition graph gives what follows it, far into the future, re-checked as activity arrives.

mod belief;
mod forecast;
mod script;

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;

use crate::block::{Block, BlockRange};
use crate::link::Link;
use crate::model::{Model, SequenceId};
use belief::{Belief, Cursor, Likely};
pub use forecast::{Conditions, Expectation, Prospects};
pub use script::Script;

/// Steps of the remembered sessions that are looked at behind a cursor: order is never quite the same twice.
const BACK: u32 = 6;
/// How far ahead is looked, in seconds of the guest's own time.
const HORIZON_S: f32 = 60.0;
/// How far ahead is looked, in sequences.
const HORIZON_VISITS: u32 = 400;
/// Both horizons are this many times wider when little is left within them.
const WIDER: u32 = 4;
/// Little is left when there are fewer candidates than this.
const FEW: usize = 16;
/// Sequences below this probability are no candidates.
const PROBABILITY_MIN: f64 = 0.3;
/// Weight of the hazard that a sequence is used sooner or later, beside that of its place, ...
const SOME_TIME: f64 = 0.7;
/// ... and the time-to-use that stands for "sooner or later", in seconds of the guest's own time.
const SOME_TIME_S: f64 = 0.5;
/// The exponent by which the likenesses of sessions are evened out for it: what a guest did says little of what it will do
/// when it turns to something else.
const EVEN: f64 = 0.3;
/// Candidates of the popularity order that are laid out at once: more than the link takes until the next plan.
const POPULAR_MAX: usize = 256;
/// The time of so many blocks on the link is added to every time-to-use. It makes what is very near equally urgent, so that
/// probability decides there.
const FLAT_BLOCKS: f64 = 256.0;
/// Time of a block on a link that has not been measured yet, in seconds: 4 KiB at 32 Mbit/s.
const BLOCK_S: f64 = 1e-3;

/// What the guest may want.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Blocks.
    pub range: BlockRange,
    /// Probability that the guest wants it in the time looked at.
    pub probability: f32,
    /// True for what is only popular: it fills the image, nobody expects it soon.
    pub fill: bool,
}

/// Foresight of what a guest will touch.
pub trait Foresight: Debug + Send {
    /// The guest needed what these blocks hold, perhaps not for the first time. True when earlier sessions touched some of
    /// them, so that foresight is a better guess than readahead.
    fn touch(&mut self, range: BlockRange) -> bool;
    /// Renews the candidates; `absent` tells whether any block of a range is missing.
    fn plan(&mut self, link: &Link, absent: &dyn Fn(BlockRange) -> bool);
    /// What to fetch, the most urgent first.
    fn candidates(&self) -> &[Candidate];
    /// What earlier sessions let one expect of the guest; `None` for a foresight that knows of none.
    fn expectation(&self) -> Option<Expectation> {
        None
    }
    /// The likeliest place of the guest: number of the session, and seconds on its clock.
    fn place(&self) -> Option<(usize, f32)> {
        None
    }
}

/// What is summed up for a sequence over the likely sessions.
#[derive(Clone, Copy, Debug, Default)]
struct Outlook {
    /// Of those in which it lies ahead: probability over time.
    hazard: f64,
    /// Their probability.
    soon: f64,
    /// Share of those that have it anywhere.
    some_time: f64,
}

impl Outlook {
    /// That the guest wants it.
    fn probability(&self) -> f64 {
        1.0 - (1.0 - self.soon.min(1.0)) * (1.0 - self.some_time.min(1.0))
    }

    /// By which it is put in order. A square root of the probability more than the hazard: what fails costs the link.
    fn urgency(&self, flat_s: f64) -> f64 {
        (self.hazard + SOME_TIME * self.some_time / (SOME_TIME_S + flat_s)) * self.probability().sqrt()
    }
}

/// A model that follows one guest.
#[derive(Debug)]
pub struct Predictor {
    model: Arc<Model>,
    belief: Belief,
    /// Blocks of sequences that the guest has touched.
    touched: HashSet<Block>,
    /// By sequence: nothing of it was absent when it was looked at last.
    complete: Vec<bool>,
    /// How many of the popular sequences, from the first on, are complete.
    popular_from: usize,
    /// By sequence: the number of the plan that last had it among its candidates.
    planned: Vec<u64>,
    plans: u64,
    /// By sequence; zero but for those in `ahead`.
    outlook: Vec<Outlook>,
    /// Sequences that lie ahead, in no order: empty between plans.
    ahead: Vec<SequenceId>,
    candidates: Vec<Candidate>,
}

impl Predictor {
    /// A guest that begins now, at the beginning of any of the remembered sessions.
    pub fn new(model: Arc<Model>) -> Self {
        let sequences = model.sequences().len();
        Self {
            belief: Belief::new(&model),
            touched: HashSet::new(),
            complete: vec![false; sequences],
            popular_from: 0,
            planned: vec![0; sequences],
            plans: 0,
            outlook: vec![Outlook::default(); sequences],
            ahead: Vec::new(),
            candidates: Vec::new(),
            model,
        }
    }

    /// Sums up what the likely sessions have: anywhere, and ahead of the cursors within horizons that are `wider` times the
    /// usual.
    fn look_ahead(&mut self, flat_s: f64, wider: u32) {
        let Self { model, belief, complete, outlook, ahead, .. } = self;
        let likely: Vec<_> = belief.likely().collect();
        let evened: f64 = likely.iter().map(|session| session.likeness.powf(EVEN)).sum();
        for Likely { path, weight, likeness, cursors } in likely {
            let visits = &model.paths()[path].visits;
            let share = likeness.powf(EVEN) / evened;
            for index in visits.iter().map(|visit| visit.sequence.0 as usize).filter(|&index| !complete[index]) {
                if outlook[index].some_time == 0.0 {
                    ahead.push(SequenceId(index as u32));
                }
                outlook[index].some_time += share;
            }
            // The guest is at one of them, if at all.
            let strengths: f64 = cursors.iter().map(|cursor| cursor.strength).sum();
            for cursor in cursors {
                let probability = weight * cursor.strength / strengths;
                let from = visits.len().min(cursor.position.saturating_sub(BACK) as usize);
                let to = visits.len().min(from + (HORIZON_VISITS * wider) as usize);
                for visit in &visits[from..to] {
                    let distance_s = (visit.at - cursor.at).max(0.0);
                    if distance_s > HORIZON_S * wider as f32 {
                        break;
                    }
                    let index = visit.sequence.0 as usize;
                    if !complete[index] {
                        outlook[index].soon += probability;
                        outlook[index].hazard += probability / (f64::from(distance_s) + flat_s);
                    }
                }
            }
        }
    }

    /// Turns what was summed up into candidates, by urgency. Only the probable ones are put in order: of what lies ahead of
    /// a guest that may be anywhere they are a small part.
    fn rank(&mut self, flat_s: f64, absent: &dyn Fn(BlockRange) -> bool) {
        let mut probable = Vec::new();
        for id in self.ahead.drain(..) {
            let outlook = std::mem::take(&mut self.outlook[id.0 as usize]);
            let probability = outlook.probability();
            if probability >= PROBABILITY_MIN {
                probable.push((outlook.urgency(flat_s), probability, id));
            }
        }
        probable.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.2.cmp(&b.2)));
        for (_, probability, id) in probable {
            self.add(id, probability as f32, false, absent);
        }
    }

    fn add(&mut self, id: SequenceId, probability: f32, fill: bool, absent: &dyn Fn(BlockRange) -> bool) {
        let before = self.candidates.len();
        for &range in &self.model.sequence(id).runs {
            if absent(range) {
                self.candidates.push(Candidate { range, probability, fill });
            }
        }
        if self.candidates.len() > before {
            self.planned[id.0 as usize] = self.plans;
        } else {
            // A block that becomes absent again, because a guest's write failed, is left to demand.
            self.complete[id.0 as usize] = true;
        }
    }
}

impl Foresight for Predictor {
    fn touch(&mut self, range: BlockRange) -> bool {
        let mut known = false;
        for (part, id) in self.model.owned(range) {
            known = true;
            for block in part.iter() {
                if self.touched.insert(block) {
                    self.belief.observe(&self.model, id);
                }
            }
        }
        known
    }

    fn plan(&mut self, link: &Link, absent: &dyn Fn(BlockRange) -> bool) {
        let block_s =
            if link.rate() > 0.0 { self.model.geometry().block_bytes() as f64 / link.rate() } else { BLOCK_S };
        let flat_s = link.round_trip().unwrap_or_default().as_secs_f64() + FLAT_BLOCKS * block_s;
        for wider in [1, WIDER] {
            self.plans += 1;
            self.candidates.clear();
            self.look_ahead(flat_s, wider);
            self.rank(flat_s, absent);
            if self.candidates.len() >= FEW {
                break;
            }
        }
        let model = Arc::clone(&self.model);
        let popular = model.popular();
        while popular.get(self.popular_from).is_some_and(|id| self.complete[id.0 as usize]) {
            self.popular_from += 1;
        }
        let limit = self.candidates.len() + POPULAR_MAX;
        for &id in &popular[self.popular_from..] {
            if self.candidates.len() >= limit {
                break;
            }
            if !self.complete[id.0 as usize] && self.planned[id.0 as usize] != self.plans {
                self.add(id, model.share(id), true, absent);
            }
        }
    }

    fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    fn expectation(&self) -> Option<Expectation> {
        Expectation::new(&self.model, self.belief.likely(), &self.candidates)
    }

    fn place(&self) -> Option<(usize, f32)> {
        let session = self.belief.likely().next()?;
        let cursor = session.cursors.iter().max_by(|a, b| a.strength.total_cmp(&b.strength))?;
        Some((session.path, cursor.at))
    }
}

#[cfg(test)]
mod tests;
