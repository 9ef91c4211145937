//! Tells what a guest waits for from what the kernel guesses, among its requests for single pages.
//!
//! A request from the page cache for more than a page is readahead, and is refused ([`super::windows`]). But the kernel
//! leaves out the pages that it has, so what is left of its guess between them comes as single pages, which look just like
//! faults. There may be a hundred at once, since a kernel that wants its memory back drops first what nobody used of an
//! earlier guess. A fault then stands behind them in its queue, which lets twelve through at a time: seconds over a distant
//! link, and bytes, for nothing.
//!
//! Who asks, and in which order, gives them away. A thread sends its guess without waiting, in pieces that rise, and then
//! waits for the page at which it stopped. So a page behind a piece that was refused, or behind one of the same thread that is
//! not answered yet, is one more piece, and is refused. A page before these is the one that the thread needs: it comes again
//! because the guess has failed, and is let through.
//!
//! The first piece of a guess cannot be told when it is a single page, and is fetched. The page at which the thread has stopped
//! is never lost: it comes again after a refusal. Nor does a page that was taken for a guess cost the guest more than a moment:
//! the kernel tries a fault that failed once more, and the same page is not refused twice. That must hold whatever else comes in
//! between, as the second refusal kills the monitor (SIGBUS): pieces of earlier guesses may be late, since the kernel sends twelve
//! at a time, and requests of one thread may overtake each other on their way to here.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A guess is no longer, in pages: two large pages of 2 MiB, in small ones of 4 KiB.
const GUESS_PAGES: u64 = 1024;

/// So many of the single pages refused last are remembered: more than can come between the two tries of a fault, which are the
/// pieces of the guess and what is late of earlier ones.
const REFUSED_MAX: usize = 16 * GUESS_PAGES as usize;

/// What the threads of a monitor ask for.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// By thread. One that was answered all it asked for has none, unless a piece of several pages was refused to it last.
    guesses: HashMap<u32, Guess>,
    /// Single pages that were refused and have not come again, and the number of that refusal. They outlive the guess that they
    /// were taken for: a fault is not over when another one seems to begin.
    refused: HashMap<u64, u64>,
    /// The last refusals in their order: page and number.
    refusals: VecDeque<(u64, u64)>,
    /// Number of the last guess or refusal.
    count: u64,
}

/// What one thread asks for on end.
#[derive(Debug)]
struct Guess {
    number: u64,
    first: u64,
    /// Behind the last piece.
    end: u64,
    /// Single pages let through and not answered.
    unanswered: u32,
    /// A piece of several pages was refused.
    broken: bool,
    /// The last piece of several pages that was refused, if nothing was asked for since.
    piece: Option<(u64, u64)>,
}

/// A request that is let through. To be dropped before it is answered: from then on its thread may ask for something else.
#[derive(Debug)]
pub struct Fault {
    faults: Arc<Faults>,
    thread: u32,
    number: u64,
}

impl Faults {
    /// A thread asks for several pages, these: true when they are to be refused. The same piece twice on
    /// end is no guess, but a fault of a kernel with large pages.
    pub fn refuses(&self, thread: u32, first: u64, end: u64) -> bool {
        let mut known = self.lock();
        let piece = Some((first, end));
        let guess = known.guess(thread, first);
        if guess.piece == piece {
            return false;
        }
        if !guess.goes_on_at(first) {
            known.begin(thread, first);
        }
        let guess = known.guess(thread, first);
        (guess.end, guess.broken, guess.piece) = (end, true, piece);
        true
    }

    /// A thread asks for one page that is not here: `None` when it is a guess, to be refused. Thread 0 is one that the kernel
    /// has no number for here; of such nothing is known.
    pub fn ask(self: &Arc<Self>, thread: u32, page: u64) -> Option<Fault> {
        let mut known = self.lock();
        let again = known.comes_again(page);
        let guess = known.guess(thread, page);
        guess.piece = None;
        let guessing = thread != 0 && (guess.unanswered > 0 || guess.broken);
        if guessing && !again && guess.goes_on_at(page) {
            guess.end = page + 1;
            known.refuse(page);
            return None;
        }
        if guessing {
            // What came before is nothing that it waits for.
            known.begin(thread, page);
        } else {
            guess.first = page;
        }
        let guess = known.guess(thread, page);
        guess.unanswered += 1;
        guess.end = page + 1;
        let number = guess.number;
        Some(Fault { faults: Arc::clone(self), thread, number })
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// What the thread is at, a new guess if it was at nothing.
    fn guess(&mut self, thread: u32, first: u64) -> &mut Guess {
        let Self { guesses, count, .. } = self;
        guesses.entry(thread).or_insert_with(|| Guess::new(count, first))
    }

    /// The thread begins anew.
    fn begin(&mut self, thread: u32, first: u64) {
        let guess = Guess::new(&mut self.count, first);
        self.guesses.insert(thread, guess);
    }

    /// A single page is refused.
    fn refuse(&mut self, page: u64) {
        if self.refusals.len() == REFUSED_MAX
            && let Some((oldest, number)) = self.refusals.pop_front()
            && self.refused.get(&oldest) == Some(&number)
        {
            self.refused.remove(&oldest);
        }
        self.count += 1;
        self.refused.insert(page, self.count);
        self.refusals.push_back((page, self.count));
    }

    /// True for a page that was refused when it came last, whoever asked for it.
    fn comes_again(&mut self, page: u64) -> bool {
        self.refused.remove(&page).is_some()
    }
}

impl Guess {
    fn new(count: &mut u64, first: u64) -> Self {
        *count += 1;
        Self { number: *count, first, end: first, unanswered: 0, broken: false, piece: None }
    }

    /// True when a piece that begins with this page may be one more of the guess.
    fn goes_on_at(&self, page: u64) -> bool {
        (self.end..self.first.saturating_add(GUESS_PAGES)).contains(&page)
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let mut known = self.faults.lock();
        if let Some(guess) = known.guesses.get_mut(&self.thread)
            && guess.number == self.number
        {
            guess.unanswered -= 1;
            if guess.unanswered == 0 && guess.piece.is_none() {
                known.guesses.remove(&self.thread);
            } else if guess.unanswered == 0 {
                guess.broken = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_wait_for_its_first_page_is_guessing() {
        let faults = Arc::new(Faults::default());
        let _first = faults.ask(7, 100).expect("it may be a fault");
        assert!((101..130).step_by(3).all(|page| faults.ask(7, page).is_none()));
        assert!(faults.ask(8, 200).is_some(), "another thread is at another page");
        assert!(faults.ask(7, 110).is_some(), "here it has stopped: the page comes again");
    }

    #[test]
    fn when_a_guess_is_over_the_next_page_is_a_fault() {
        let faults = Arc::new(Faults::default());
        let first = faults.ask(7, 100).unwrap();
        faults.refuses(7, 110, 150);
        assert!(faults.ask(7, 160).is_none());
        let stopped = faults.ask(7, 120).expect("a page of what was refused");
        drop(stopped);
        let next = faults.ask(7, 500).expect("the first page is still not answered, and nobody waits for it");
        drop(first);
        assert!(faults.ask(7, 501).is_none(), "an end of an earlier guess does not end this one");
        drop(next);
        assert!(faults.ask(7, 502).is_some());
        assert!(faults.ask(7, 501).is_some(), "after a refusal it comes again");
        assert!(
            faults.lock().guesses.is_empty(),
            "nothing is kept of threads that wait for nothing and were refused nothing"
        );
    }

    #[test]
    fn a_page_behind_a_piece_that_was_refused_is_part_of_the_guess() {
        let faults = Arc::new(Faults::default());
        faults.refuses(7, 100, 130);
        assert!(faults.ask(7, 131).is_none());
        faults.refuses(7, 140, 150);
        assert!(faults.ask(7, 150).is_none());
        assert!(faults.ask(8, 160).is_some(), "another thread has guessed nothing");
        assert!(faults.ask(7, 100 + GUESS_PAGES).is_some(), "so long is no guess");
        faults.refuses(7, 100, 130);
        faults.refuses(7, 90, 95);
        assert!(faults.ask(7, 99).is_none(), "an earlier piece begins another guess");
        assert!(faults.ask(7, 92).is_some());
    }

    #[test]
    fn no_page_is_refused_twice() {
        let faults = Arc::new(Faults::default());
        for page in [10, 11, 90] {
            let _first = faults.ask(7, 1).unwrap();
            assert!(faults.ask(7, page).is_none());
            let _again = faults.ask(7, page).expect("the second time");
            assert!(faults.ask(7, page).is_some(), "nor the third");
        }
    }

    #[test]
    fn a_piece_that_was_overtaken_does_not_have_the_page_behind_it_refused_again() {
        let faults = Arc::new(Faults::default());
        assert!(faults.refuses(7, 100, 130));
        assert!(faults.ask(7, 500).is_none());
        assert!(faults.refuses(7, 130, 160));
        assert!(faults.ask(7, 500).is_some());
    }

    #[test]
    fn a_late_piece_of_an_earlier_guess_does_not_have_a_fault_refused_twice() {
        let faults = Arc::new(Faults::default());
        let _first = faults.ask(7, 500).unwrap();
        assert!(faults.ask(7, 510).is_none(), "the first try");
        let _late = faults.ask(7, 120).expect("a piece of an earlier guess, below this one");
        assert!(faults.ask(7, 510).is_some(), "the second try");
        let _first = faults.ask(8, 700).unwrap();
        assert!(faults.ask(8, 710).is_none());
        let _first = faults.ask(9, 700).unwrap();
        assert!(faults.ask(9, 710).is_some(), "whoever asks");
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let faults = Arc::new(Faults::default());
        for first in (0..100).map(|guess| guess * GUESS_PAGES) {
            let _first = faults.ask(7, first).unwrap();
            assert!((first + 1..first + GUESS_PAGES).all(|page| faults.ask(7, page).is_none()));
        }
        for _ in 0..9 {
            let _first = faults.ask(7, 1).unwrap();
            assert!(faults.ask(7, 2).is_none());
            assert!(faults.ask(7, 2).is_some(), "an earlier refusal is forgotten, not the last");
        }
        let known = faults.lock();
        assert_eq!((known.refusals.len(), known.refused.len(), known.guesses.len()), (REFUSED_MAX, REFUSED_MAX - 9, 0));
    }

    #[test]
    fn what_was_refused_long_ago_does_not_hide_the_next_guess() {
        let faults = Arc::new(Faults::default());
        let first = faults.ask(7, 10).unwrap();
        assert!(faults.ask(7, 11).is_none());
        drop(first);
        let _far = faults.ask(7, 9000).unwrap();
        assert!(faults.ask(7, 9001).is_none());
    }

    #[test]
    fn a_fault_of_several_pages_comes_again_as_well() {
        let faults = Arc::new(Faults::default());
        assert!(faults.refuses(7, 96, 112));
        assert!(!faults.refuses(7, 96, 112));
        assert!(faults.refuses(7, 112, 128));
        let _other = faults.ask(7, 112);
        assert!(faults.refuses(7, 112, 128), "something else came in between");
    }

    #[test]
    fn threads_without_a_number_are_let_through() {
        let faults = Arc::new(Faults::default());
        let held: Vec<_> = (0..9).map(|page| faults.ask(0, page)).collect();
        assert!(held.iter().all(Option::is_some));
    }
}
