//! Which packs are used: those of one place, as all others must have the same or serve none.
//!
//! Nothing binds packs to an image but that they prove useful. The first place that has any decides, as a rule; when its packs
//! turn out to be of no use before their frames are fetched, those of another place are chosen.

use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use super::pointer::NamedFile;
use super::{Frames, PacksFile};

/// The choice.
#[derive(Default)]
pub(super) struct Chosen(RwLock<State>);

#[derive(Default)]
struct State {
    file: Option<PacksFile>,
    frames: Option<Arc<dyn Frames>>,
    /// Those that are not chosen again, by name and length. No more than there are places.
    refused: Vec<(String, u64)>,
}

impl Chosen {
    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The packs in use.
    pub fn file(&self) -> Option<PacksFile> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).file.clone()
    }

    /// Chooses these, unless others are in use or these were refused.
    pub fn choose(&self, file: PacksFile) {
        let mut state = self.write();
        if state.file.is_none() && !state.refused.contains(&(file.name.clone(), file.bytes)) {
            state.file = Some(file);
        }
    }

    /// True when nothing is in use and these were not refused.
    pub fn may_be(&self, named: &NamedFile) -> bool {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        state.file.is_none() && !state.refused.contains(&(named.name.clone(), named.bytes))
    }

    /// Has no packs any more, and never these again. Answers them.
    pub fn refuse(&self) -> Option<PacksFile> {
        let mut state = self.write();
        let refused = state.file.take()?;
        state.refused.push((refused.name.clone(), refused.bytes));
        Some(refused)
    }

    /// Takes a refusal back, as nobody has anything better.
    pub fn restore(&self, refused: PacksFile) {
        let mut state = self.write();
        if state.file.is_none() {
            state.refused.pop();
            state.file = Some(refused);
        }
    }

    /// True for the packs in use.
    pub fn is(&self, named: &NamedFile) -> bool {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        state.file.as_ref().is_some_and(|file| (&file.name, file.bytes) == (&named.name, named.bytes))
    }

    /// Says what opens frames of the packs called `name`, if they are still in use.
    pub fn open_by(&self, name: &str, frames: Arc<dyn Frames>) {
        let mut state = self.write();
        if state.file.as_ref().is_some_and(|file| file.name == name) {
            state.frames = Some(frames);
        }
    }

    /// What opens frames of these packs; `None` when others are in use, or nobody has read their index.
    pub fn frames_of(&self, named: &NamedFile) -> Option<Arc<dyn Frames>> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let used = state.file.as_ref().filter(|file| (&file.name, file.bytes) == (&named.name, named.bytes));
        used.and(state.frames.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_not_chosen_again_unless_there_is_nothing_else() {
        let named = |name: &str| NamedFile { name: name.to_owned(), bytes: 5 };
        let file = |name: &str| PacksFile { name: name.to_owned(), bytes: 5, head: Arc::default() };
        let chosen = Chosen::default();
        assert!(chosen.may_be(&named("a")) && chosen.refuse().is_none());
        chosen.choose(file("a"));
        chosen.choose(file("b"));
        assert!(chosen.is(&named("a")) && !chosen.may_be(&named("b")));
        let refused = chosen.refuse().unwrap();
        chosen.choose(file("a"));
        assert!(chosen.file().is_none() && !chosen.may_be(&named("a")) && chosen.may_be(&named("b")));
        chosen.restore(refused);
        assert!(chosen.is(&named("a")));
        chosen.refuse();
        chosen.choose(file("b"));
        assert!(chosen.is(&named("b")));
    }
}
