//! Group commit: threads of one process that submit at the same time share a transaction.
//!
//! The first thread commits as leader. Threads that arrive meanwhile queue; the next leader, one of
//! them, commits for all of them. A submit that is alone commits at once.
//!
//! Each thread's time-out counts from its own arrival. When a leader fails because the database is
//! busy, the threads that have waited for as long as the time-out fail with it; the others lead
//! with the time that they have left.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::submission::Submission;
use crate::draft::Draft;

/// The most bytes of text that a leader takes from the queue at once.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// The threads of one store that are submitting.
#[derive(Debug, Default)]
pub(super) struct Group {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    led: bool,
    /// Threads that wait, for a leader or for their own turn.
    followers: usize,
    next_ticket: u64,
    /// Drafts that wait for a leader, in order of arrival.
    waiting: Vec<(u64, Draft)>,
    /// The results of drafts that a leader took; `None` if the leader failed.
    served: HashMap<u64, Option<Submission>>,
    /// How many leaders have failed because the database was busy.
    busy_leaders: u64,
}

/// What a thread does after it joined.
#[derive(Debug)]
pub(super) enum Role {
    /// Submit the draft, and those in the queue. The thread has waited since its arrival.
    Leader { arrived: Instant },
    /// Nothing: a leader submitted it.
    Served(Submission),
    /// Fail as busy, as the leader did. Holds how long the thread has waited.
    Busy { waited: Duration },
}

impl Group {
    /// Join with a draft. Returns when the draft is durable, when it is this thread's turn to lead,
    /// or when the database was busy for longer than `limit`.
    pub(super) fn join(&self, draft: &Draft, limit: Duration) -> Role {
        let arrived = Instant::now();
        let mut state = self.lock();
        if !state.led {
            state.led = true;
            return Role::Leader { arrived };
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push((ticket, draft.clone()));
        let mut busy_leaders = state.busy_leaders;
        loop {
            state.followers += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.followers -= 1;
            match state.served.remove(&ticket) {
                Some(Some(submission)) => return Role::Served(submission),
                // Its leader failed: this thread queues again, and gets its own error when it
                // leads.
                Some(None) => state.waiting.push((ticket, draft.clone())),
                None => {}
            }
            let waited = arrived.elapsed();
            if state.busy_leaders != busy_leaders && waited >= limit {
                // If another leader has taken its draft by now, wait for that leader's result.
                let before = state.waiting.len();
                state.waiting.retain(|(waiting, _)| *waiting != ticket);
                if state.waiting.len() < before {
                    return Role::Busy { waited };
                }
            }
            busy_leaders = state.busy_leaders;
            if !state.led {
                state.led = true;
                state.waiting.retain(|(waiting, _)| *waiting != ticket);
                return Role::Leader { arrived };
            }
        }
    }

    /// For the leader: take at most `most` drafts from the queue.
    pub(super) fn take_waiting(&self, most: usize) -> Vec<(u64, Draft)> {
        let mut state = self.lock();
        let mut bytes = 0;
        let fitting = state.waiting.iter().take(most).take_while(|(_, draft)| {
            // The first draft is taken whatever its length, or it would block the queue.
            let fits = bytes == 0 || bytes + draft.raw_text().len() <= MAX_BYTES;
            bytes += draft.raw_text().len();
            fits
        });
        let fitting = fitting.count();
        state.waiting.drain(..fitting).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The leader's role, until it is dropped.
#[derive(Debug)]
pub(super) struct Lead<'g>(&'g Group);

impl<'g> Lead<'g> {
    /// For a thread with [`Role::Leader`].
    pub(super) fn new(group: &'g Group) -> Self {
        Self(group)
    }

    /// Pass the results to the threads whose drafts were taken.
    pub(super) fn serve(self, served: impl Iterator<Item = (u64, Option<Submission>)>) {
        self.0.lock().served.extend(served);
    }

    /// Record that the database was busy for as long as this leader could wait.
    pub(super) fn fail_busy(&self) {
        self.0.lock().busy_leaders += 1;
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.led = false;
        // Most often no thread waits, and a wake-up call takes a microsecond.
        if state.followers > 0 {
            self.0.changed.notify_all();
        }
    }
}
