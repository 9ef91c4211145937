//! Time on a processor, which on a machine that others use too says more than time on the clock.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time that this thread has had on a processor so far.
pub fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
