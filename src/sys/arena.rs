//! A large array of atomic words that costs memory only where it was written.

use crate::error::{Error, Result};
use crate::sync::AtomicU64;

/// A fixed array of zero-initialised `AtomicU64` in anonymous memory that the kernel commits page by page.
#[derive(Debug)]
pub struct Arena {
    #[cfg(not(vmstream_shuttle))]
    map: memmap2::MmapMut,
    #[cfg(vmstream_shuttle)]
    words: Vec<AtomicU64>,
    len: usize,
}

#[cfg(not(vmstream_shuttle))]
impl Arena {
    /// An array of `len` words, all zero.
    pub fn new(len: usize) -> Result<Self> {
        let bytes =
            len.max(1).checked_mul(8).ok_or_else(|| Error::new(crate::error::errno::EFBIG, "block table too large"))?;
        let what = || format!("cannot reserve {bytes} bytes of address space for block states");
        let map =
            memmap2::MmapOptions::new().len(bytes).no_reserve_swap().map_anon().map_err(|e| Error::io(what(), e))?;
        // Scattered accesses to a huge image must cost 4 KiB each, not a huge page each; and a VMM that forks or
        // clones its address space (User-Mode Linux for every guest process) need not copy our page tables.
        // Neither advice is needed for correctness, and an old kernel may refuse it.
        let _ = map.advise(memmap2::Advice::NoHugePage);
        let _ = map.advise(memmap2::Advice::DontFork);
        Ok(Self { map, len })
    }

    /// The word at `index`; `None` outside the array.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&AtomicU64> {
        // SAFETY: the map is at least `len` words long (`new`), page-aligned, zero-initialised, lives as long as
        // `self`, and is only ever accessed through shared atomics made here.
        (index < self.len).then(|| unsafe { &*self.map.as_ptr().cast::<AtomicU64>().add(index) })
    }
}

#[cfg(vmstream_shuttle)]
impl Arena {
    /// An array of `len` words, all zero.
    pub fn new(len: usize) -> Result<Self> {
        let _: Option<Error> = None;
        Ok(Self { words: (0..len).map(|_| AtomicU64::new(0)).collect(), len })
    }

    /// The word at `index`; `None` outside the array.
    pub fn get(&self, index: usize) -> Option<&AtomicU64> {
        self.words.get(index)
    }
}

impl Arena {
    /// The word at `index`. Panics outside the array.
    #[inline]
    pub fn word(&self, index: usize) -> &AtomicU64 {
        match self.get(index) {
            Some(word) => word,
            None => panic!("word {index} of {}", self.len),
        }
    }
}
