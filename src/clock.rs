//! The clock behind a store's stamps, and time as the database keeps it: whole milliseconds
//! since the Unix epoch, UTC.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// The last millisecond of the year 9999: the latest time that ISO 8601, SQLite and `time` all
/// can print. Every stamp is held between the epoch and this, so that no sum of two overflows.
pub const MAX_UNIX_MS: i64 = 253_402_300_799_999;

/// Where a store's stamps come from.
#[derive(Clone, Default)]
pub struct Clock(Option<Arc<Manual>>);

struct Manual {
    now_ms: AtomicI64,
    uptime_ms: AtomicI64,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that does not run: it changes when it is [`set`](Self::set). Its clones share it.
    /// For tests.
    #[must_use]
    pub fn manual(at: SystemTime) -> Self {
        let (now_ms, uptime_ms) = (AtomicI64::new(unix_ms(at)), AtomicI64::new(0));
        Self(Some(Arc::new(Manual { now_ms, uptime_ms })))
    }

    /// Let time pass on a manual clock until this time, or set the clock back. Does nothing to the
    /// system's clock.
    pub fn set(&self, at: SystemTime) {
        if let Some(manual) = &self.0 {
            let before = manual.now_ms.swap(unix_ms(at), Ordering::SeqCst);
            manual.uptime_ms.fetch_add((unix_ms(at) - before).max(0), Ordering::SeqCst);
        }
    }

    /// Set a manual clock without time passing, as an administrator does. Does nothing to the
    /// system's clock.
    pub fn jump(&self, at: SystemTime) {
        if let Some(manual) = &self.0 {
            manual.now_ms.store(unix_ms(at), Ordering::SeqCst);
        }
    }

    /// Milliseconds since the epoch, from 0 to [`MAX_UNIX_MS`].
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        match &self.0 {
            Some(manual) => manual.now_ms.load(Ordering::SeqCst),
            None => unix_ms(SystemTime::now()),
        }
    }

    /// The time at which the machine booted, by this clock, in milliseconds since the epoch; it may
    /// be negative. It changes when the clock is set, and not with time.
    pub(crate) fn booted_at_ms(&self) -> i64 {
        match &self.0 {
            Some(manual) => self.now_ms() - manual.uptime_ms.load(Ordering::SeqCst),
            None => {
                // Since the boot, with the time that the machine was suspended.
                let uptime = clock_gettime(ClockId::Boottime);
                let uptime_ms = uptime.tv_sec.saturating_mul(1_000) + uptime.tv_nsec / 1_000_000;
                self.now_ms() - uptime_ms
            }
        }
    }

    /// The same moment as a [`SystemTime`].
    #[must_use]
    pub fn now(&self) -> SystemTime {
        from_unix_ms(self.now_ms())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(_) => write!(f, "Clock::manual({} ms)", self.now_ms()),
            None => f.write_str("Clock::system"),
        }
    }
}

/// Milliseconds since the epoch, held between 0 and [`MAX_UNIX_MS`].
#[must_use]
pub fn unix_ms(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, duration_ms)
}

/// The time of these milliseconds, which are held between 0 and [`MAX_UNIX_MS`].
#[must_use]
pub fn from_unix_ms(ms: i64) -> SystemTime {
    let ms = ms.clamp(0, MAX_UNIX_MS);
    UNIX_EPOCH + Duration::from_millis(ms.unsigned_abs())
}

/// A length in milliseconds, at most [`MAX_UNIX_MS`].
#[must_use]
pub(crate) fn duration_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(MAX_UNIX_MS).min(MAX_UNIX_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_held_in_range() {
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(unix_ms(before), 0);
        assert_eq!(from_unix_ms(i64::MIN), UNIX_EPOCH);
        assert_eq!(unix_ms(from_unix_ms(i64::MAX)), MAX_UNIX_MS);
        assert_eq!(unix_ms(from_unix_ms(1_234)), 1_234);
        assert_eq!(duration_ms(Duration::MAX), MAX_UNIX_MS);
    }

    #[test]
    fn clones_of_a_manual_clock_share_it() {
        let clock = Clock::manual(UNIX_EPOCH);
        let other = clock.clone();
        clock.set(from_unix_ms(7));
        assert_eq!(other.now_ms(), 7);
    }
}
