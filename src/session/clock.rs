//! The two clocks of a session: the calendar's, which says when it began, and the guest's, which stands still while the
//! guest waits for bytes.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Access;

/// A moment on the calendar, in microseconds since 1970 (UTC). Shown as `2026-11-22T15:04:48.123456Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime(pub u64);

/// The first moment that has no year of four digits any more, so no name: the start of the year 10000.
const WALL_END_US: u64 = 253_402_300_800_000_000;
const DAY_S: u64 = 86_400;

impl WallTime {
    /// Now.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_micros()).unwrap_or(u64::MAX).min(WALL_END_US - 1))
    }

    /// True from 1970 to 9999, the years that can be shown.
    pub fn is_sound(self) -> bool {
        self.0 < WALL_END_US
    }

    /// Year, month and day, after H. Hinnant's `civil_from_days`: years that begin in March have their leap day last.
    fn date(self) -> (u64, u64, u64) {
        let days = self.0 / 1_000_000 / DAY_S + 719_468; // since 0000-03-01
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        (era * 400 + year_of_era + u64::from(month <= 2), month, day)
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.date();
        let (second, micros) = (self.0 / 1_000_000 % DAY_S, self.0 % 1_000_000);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

/// Takes the time out in which the guest stood still: that in which at least one of its accesses waited. Accesses that
/// wait side by side count once.
#[derive(Clone, Copy, Debug, Default)]
pub struct GuestClock {
    /// Standstills that are over.
    stood: Duration,
    /// The latest one.
    from: Duration,
    until: Duration,
}

impl GuestClock {
    /// When the guest made `access`, on its own clock. To be asked for each access of a session, in order.
    pub fn at(&mut self, access: &Access) -> Duration {
        if access.at > self.until {
            self.stood += self.until - self.from;
            (self.from, self.until) = (access.at, access.at);
        }
        let at = access.at.saturating_sub(self.stood + (access.at - self.from));
        self.until = self.until.max(access.at.saturating_add(access.stalled));
        at
    }

    /// Time that the guest stood still in all accesses so far.
    pub fn stood_still(&self) -> Duration {
        self.stood + (self.until - self.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::Op;

    #[test]
    fn moments_are_shown_as_the_calendar_has_them() {
        for (us, shown) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
            (951_868_799_999_999, "2000-02-29T23:59:59.999999Z"),
            (1_795_359_888_123_456, "2026-11-22T15:04:48.123456Z"),
            (4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z"),
            (WALL_END_US - 1, "9999-12-31T23:59:59.999999Z"),
        ] {
            assert_eq!(WallTime(us).to_string(), shown);
            assert!(WallTime(us).is_sound());
        }
        assert!(!WallTime(WALL_END_US).is_sound() && WallTime::now().is_sound());
    }

    #[test]
    fn the_guests_clock_stands_while_anything_waits() {
        let mut clock = GuestClock::default();
        // (at, waited, on the guest's clock), in milliseconds
        for (at, stalled, guest) in
            [(10, 0, 10), (20, 10, 20), (30, 5, 20), (40, 10, 25), (45, 10, 25), (50, 1, 25), (60, 0, 30), (61, 0, 31)]
        {
            let ms = Duration::from_millis;
            let access = Access { at: ms(at), op: Op::Read, offset: 0, length: 1, stalled: ms(stalled) };
            assert_eq!(clock.at(&access), ms(guest), "at {at}");
        }
        assert_eq!(clock.stood_still(), Duration::from_millis(30));
    }
}
