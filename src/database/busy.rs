//! Waiting for the write lock.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long a connection waits for others' locks unless it is configured otherwise.
pub(crate) const DEFAULT_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

thread_local! {
    /// How long the connection in this thread's hands may wait, and since when it has been
    /// waiting: SQLite hands a busy handler no more than a count.
    static WAIT_LIMIT: Cell<Duration> = const { Cell::new(DEFAULT_BUSY_TIMEOUT) };
    static WAITING_SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// How long this thread waits for locks from now on.
pub(super) fn set_wait_limit(limit: Duration) {
    WAIT_LIMIT.set(limit);
}

/// A busy handler: wait for others' locks, less the longer it has lasted.
///
/// SQLite's own handler waits longer each time, so that who has waited long looks seldom and
/// starves behind newcomers who look often. This one turns that round: the first looks are a
/// millisecond apart, later ones closer, so that age wins. The jitter keeps two waiters from
/// looking in step.
pub(super) fn wait_for_lock(count: i32) -> bool {
    let now = Instant::now();
    let since = WAITING_SINCE.get().filter(|_| count > 0).unwrap_or(now);
    WAITING_SINCE.set(Some(since));
    let waited = now.duration_since(since);
    if waited >= WAIT_LIMIT.get() {
        return false;
    }
    let micros = match waited.as_millis() {
        0..5 => 1_000,
        5..20 => 500,
        20..100 => 250,
        _ => 100,
    };
    std::thread::sleep(Duration::from_micros(micros / 2 + fastrand::u64(0..micros)));
    true
}
