//! Threads that no signal of the host program ever reaches.

/// Runs `spawn` with all signals blocked in the calling thread, then puts its mask back. A thread started inside
/// inherits the full mask from its first instruction on: User-Mode Linux takes process-directed SIGALRM and SIGIO for
/// its own and panics when one of our threads is the one that gets it.
pub fn with_signals_blocked<T>(spawn: impl FnOnce() -> T) -> T {
    struct Restore(libc::sigset_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: the set was filled by the call in `with_signals_blocked`.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
        }
    }
    // SAFETY: both sets live on this stack; sigfillset initialises `all`, pthread_sigmask fills `old` before it is read,
    // and neither fails for these arguments.
    let _restore = unsafe {
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let mut old = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
        Restore(old.assume_init())
    };
    spawn()
}

#[cfg(test)]
mod tests {
    fn blocked_count() -> u32 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap().count_ones()
    }

    #[test]
    fn a_thread_starts_with_every_blockable_signal_blocked_and_the_caller_keeps_its_mask() {
        let before = blocked_count();
        let inside = super::with_signals_blocked(|| std::thread::spawn(blocked_count)).join().unwrap();
        // 64 signals less SIGKILL and SIGSTOP, and less the two that the C library keeps for itself.
        assert!(inside >= 60, "{inside} signals blocked");
        assert_eq!(blocked_count(), before);
    }
}
