//! Counts allocations of this process while somebody wants to know.
#![allow(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

struct Counting;

static COUNTED: AtomicU64 = AtomicU64::new(0);
/// Off outside [`during`], so that the other parts share no cache line for it.
static ON: AtomicBool = AtomicBool::new(false);

// SAFETY: hands everything on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ON.load(Ordering::Relaxed) {
            COUNTED.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise is the one this call wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above, so from the system.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of all threads of this process while `body` runs.
pub fn during(body: impl FnOnce()) -> u64 {
    let before = COUNTED.load(Ordering::Relaxed);
    ON.store(true, Ordering::SeqCst);
    body();
    ON.store(false, Ordering::SeqCst);
    COUNTED.load(Ordering::Relaxed) - before
}
