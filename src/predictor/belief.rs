//! Which of the remembered sessions the present one looks like, and where in it the guest may be.
//!
//! Each session has a weight, and up to three *cursors*: places in it, each with a strength that fades as the guest goes on
//! elsewhere. A first touch of a sequence multiplies the weights of the sessions that went through it, near a cursor by a
//! full factor and elsewhere by a part of it; the rarer the sequence, the larger the factor. What a session has on the way
//! there and the guest left out speaks against it. Then a little of the weight is shared out as at the beginning, because a
//! guest may turn to something else at any time.

use crate::model::{Model, SequenceId};

/// Probability that a guest which follows a session touches what that session does not have next.
const NOISE: f64 = 0.3;
/// Exponent that tempers the evidence: touches that follow each other are not independent.
const TEMPER: f64 = 0.6;
/// Share of the weight that is spread evenly at each new sequence.
const FORGET: f64 = 0.05;
/// Of the likeness so much less is spread.
const REMEMBER: f64 = 0.2;
/// Exponent of the factor for a session that has the sequence, but elsewhere.
const ELSEWHERE: f64 = 0.5;
/// A session's weight falls by this factor for each of its sequences that the guest passed over ...
const PASSED_OVER: f64 = 0.95;
/// ... on the way from a cursor to where it was seen next, up to so many.
const PASSED_OVER_MAX: u32 = 32;
/// A place is near a cursor within so many seconds of the guest's own time, ...
const NEAR_S: f32 = 6.0;
/// ... or so many sequences.
const NEAR_POSITIONS: u32 = 16;
/// A cursor's strength falls by e in so many new sequences.
const FADE_SEQUENCES: f64 = 15.0;
/// Cursors in one session.
const CURSORS_MAX: usize = 3;
/// Touches of a sequence that count: the first says most, each further one less.
const TOUCHES_MAX: u8 = 4;
/// Sessions that are looked at for what comes next, at most, ...
const LIKELY_MAX: usize = 32;
/// ... and their least weight, as a share of the greatest.
const LIKELY_SHARE: f64 = 0.01;

/// A place in a session where the guest may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cursor {
    /// Number of the visit.
    pub position: u32,
    /// Its time, in seconds of the guest's own time.
    pub at: f32,
    /// From 1, when the guest was seen there just now, down to 0.
    pub strength: f64,
}

#[derive(Debug)]
struct Follower {
    weight: f64,
    /// The same with a longer memory: how much the session is one like this, wherever in it the guest is now.
    likeness: f64,
    /// The weight that it has when nothing is known of the guest: newer sessions count more.
    prior: f64,
    cursors: Vec<Cursor>,
}

/// A session that the guest may be repeating.
#[derive(Clone, Copy, Debug)]
pub struct Likely<'a> {
    /// Its number in the model.
    pub path: usize,
    /// Belief that the guest follows it now.
    pub weight: f64,
    /// Belief that the guest's session is one like it.
    pub likeness: f64,
    /// Where in it the guest may be.
    pub cursors: &'a [Cursor],
}

/// The belief about one guest. The weights of the sessions add up to one, and so do the likenesses.
#[derive(Debug)]
pub struct Belief {
    followers: Vec<Follower>,
    /// By sequence: first touches of its blocks so far, up to [`TOUCHES_MAX`].
    touches: Vec<u8>,
}

impl Belief {
    /// Nothing is known but that a session begins.
    pub fn new(model: &Model) -> Self {
        let start = Cursor { position: 0, at: 0.0, strength: 1.0 };
        let sum: f64 = model.paths().iter().map(|path| f64::from(path.weight())).sum();
        let priors = model.paths().iter().map(|path| f64::from(path.weight()) / sum);
        let followers =
            priors.map(|prior| Follower { weight: prior, likeness: prior, prior, cursors: vec![start] }).collect();
        Self { followers, touches: vec![0; model.sequences().len()] }
    }

    /// The guest touched a block of this sequence for the first time.
    pub fn observe(&mut self, model: &Model, id: SequenceId) {
        let touches = &mut self.touches[id.0 as usize];
        let before = *touches;
        if before == TOUCHES_MAX {
            return;
        }
        *touches += 1;
        if before == 0 {
            self.fade();
        }
        let strength = 1.0 / f64::from(before + 1);
        let places = model.places(id);
        // Half a session more on each side, so that neither all nor none of them is certainty.
        let share = (places.len() as f64 + 0.5) / (self.followers.len() as f64 + 1.0);
        let gain = ((1.0 - NOISE + NOISE * share) / (NOISE * share)).powf(TEMPER * strength);
        let gain_elsewhere = gain.powf(ELSEWHERE);
        for place in places {
            let visits = &model.paths()[place.path as usize].visits;
            let follower = &mut self.followers[place.path as usize];
            let factor = match follower.seen_at(place.position, visits[place.position as usize].at) {
                None => gain_elsewhere,
                // The first touch is the one that went there.
                Some(from) if before == 0 && from < place.position => {
                    let way = from + 1..place.position.min(from + 1 + PASSED_OVER_MAX);
                    let left_out = |p: &u32| self.touches[visits[*p as usize].sequence.0 as usize] == 0;
                    gain * PASSED_OVER.powi(way.filter(left_out).count() as i32)
                }
                Some(_) => gain,
            };
            follower.weight *= factor;
            follower.likeness *= factor;
        }
        self.mix(FORGET * strength);
    }

    fn fade(&mut self) {
        let fade = (-1.0 / FADE_SEQUENCES).exp();
        for cursor in self.followers.iter_mut().flat_map(|f| &mut f.cursors) {
            cursor.strength *= fade;
        }
    }

    /// Makes the weights add up to one, `share` of which is spread as at the beginning.
    fn mix(&mut self, share: f64) {
        let slow = share * REMEMBER;
        let weights: f64 = self.followers.iter().map(|f| f.weight).sum();
        let likenesses: f64 = self.followers.iter().map(|f| f.likeness).sum();
        for follower in &mut self.followers {
            follower.weight = (1.0 - share) * follower.weight / weights + share * follower.prior;
            follower.likeness = (1.0 - slow) * follower.likeness / likenesses + slow * follower.prior;
        }
    }

    /// The sessions worth a look, the likeliest first.
    pub fn likely(&self) -> impl Iterator<Item = Likely<'_>> {
        let greatest = self.followers.iter().map(|f| f.weight).fold(0.0, f64::max);
        let mut likely: Vec<_> =
            self.followers.iter().enumerate().filter(|(_, f)| f.weight > greatest * LIKELY_SHARE).collect();
        likely.sort_by(|a, b| b.1.weight.total_cmp(&a.1.weight));
        likely.into_iter().take(LIKELY_MAX).map(|(number, f)| Likely {
            path: number,
            weight: f.weight,
            likeness: f.likeness,
            cursors: &f.cursors,
        })
    }
}

impl Follower {
    /// Moves the nearest cursor to where the guest was seen, and answers whence. With none near there is a new one, in the
    /// place of the weakest if need be.
    fn seen_at(&mut self, position: u32, at: f32) -> Option<u32> {
        let here = Cursor { position, at, strength: 1.0 };
        let near = |c: &&mut Cursor| c.position.abs_diff(position) <= NEAR_POSITIONS || (c.at - at).abs() <= NEAR_S;
        if let Some(cursor) = self.cursors.iter_mut().filter(near).min_by_key(|c| c.position.abs_diff(position)) {
            return Some(std::mem::replace(cursor, here).position);
        }
        if self.cursors.len() < CURSORS_MAX {
            self.cursors.push(here);
        } else if let Some(weakest) = self.cursors.iter_mut().min_by(|a, b| a.strength.total_cmp(&b.strength)) {
            *weakest = here;
        }
        None
    }
}
