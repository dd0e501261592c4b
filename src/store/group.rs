//! Group commit: threads of one process that submit at the same time share a transaction.
//!
//! The first thread commits as leader. Threads that arrive meanwhile queue; the next leader, one
//! of them, commits for all of them. No thread waits for the sake of others: a submit that is
//! alone commits alone, at once.
//!
//! Each thread's time-out counts from its own arrival. When a leader fails because the database
//! is busy, those that have waited for as long as the time-out fail with it; the others lead with
//! the time that they have left.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::intake::Submission;
use crate::draft::Draft;

/// Most bytes of texts that a leader takes along at once.
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
    /// Drafts that wait for a leader, first come first.
    waiting: Vec<(u64, Draft)>,
    /// What became of those that were taken along; `None` if their leader failed.
    served: HashMap<u64, Option<Submission>>,
    /// How many leaders have failed because the database was busy.
    busy_leaders: u64,
}

/// What a thread that joins has to do.
#[derive(Debug)]
pub(super) enum Role {
    /// Submit the draft, and those that are waiting. The thread has waited since its arrival.
    Leader { arrived: Instant },
    /// Nothing: another did.
    Served(Submission),
    /// Fail as busy: this is how long the thread has waited, and the leader waited in vain.
    Busy { waited: Duration },
}

impl Group {
    /// Come with a draft; returns when it is durable, when it is this thread's turn to lead, or
    /// when the database was busy for longer than `limit`.
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
                // Its leader failed: it leads next, for an error of its own.
                Some(None) => state.waiting.push((ticket, draft.clone())),
                None => {}
            }
            let waited = arrived.elapsed();
            if state.busy_leaders != busy_leaders && waited >= limit {
                // If its draft is with another leader by now, it must hear from that one.
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

    /// For the leader: those that wait, at most so many, to be taken along.
    pub(super) fn take_waiting(&self, most: usize) -> Vec<(u64, Draft)> {
        let mut state = self.lock();
        let mut bytes = 0;
        let fitting = state.waiting.iter().take(most).take_while(|(_, draft)| {
            // The first fits whatever its length, or it would keep those behind it waiting.
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

/// The lead, until it is dropped.
#[derive(Debug)]
pub(super) struct Lead<'g>(&'g Group);

impl<'g> Lead<'g> {
    /// For a thread that was told to lead.
    pub(super) fn new(group: &'g Group) -> Self {
        Self(group)
    }

    /// Tell those that were taken along.
    pub(super) fn serve(self, served: impl Iterator<Item = (u64, Option<Submission>)>) {
        self.0.lock().served.extend(served);
    }

    /// Tell all that wait that the database was busy for as long as this leader could wait.
    pub(super) fn fail_busy(&self) {
        self.0.lock().busy_leaders += 1;
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.led = false;
        // Most often there are none, and asking the kernel to wake them takes a microsecond.
        if state.followers > 0 {
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{scope, yield_now};
    use std::time::SystemTime;

    use super::*;
    use crate::state::DraftState;
    use crate::{DraftMetadata, DraftSourceSurface};

    const HOUR: Duration = Duration::from_secs(3600);

    fn draft(text: &str) -> Draft {
        let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
        Draft::with_metadata(text.to_owned(), metadata)
    }

    /// A thread comes while another leads, and waits until what `led` does with the lead.
    fn follow(limit: Duration, led: impl FnOnce(Lead<'_>, &Group)) -> (Role, Group) {
        let group = Group::default();
        assert!(matches!(group.join(&draft("first"), limit), Role::Leader { .. }));
        let role = scope(|scope| {
            let follower = scope.spawn(|| group.join(&draft("second"), limit));
            while group.lock().followers == 0 {
                yield_now();
            }
            led(Lead::new(&group), &group);
            follower.join().unwrap()
        });
        (role, group)
    }

    #[test]
    fn the_next_leader_has_its_draft_to_itself() {
        let (role, group) = follow(HOUR, |lead, _| drop(lead));
        assert!(matches!(role, Role::Leader { .. }), "{role:?}");
        assert!(group.take_waiting(10).is_empty());
    }

    #[test]
    fn who_has_waited_long_enough_fails_with_a_busy_leader_and_nobody_else() {
        let (role, group) = follow(Duration::ZERO, |lead, _| lead.fail_busy());
        assert!(matches!(role, Role::Busy { .. }), "{role:?}");
        assert!(group.take_waiting(10).is_empty());
        let (role, _) = follow(HOUR, |lead, _| lead.fail_busy());
        assert!(matches!(role, Role::Leader { .. }), "{role:?}");
    }

    #[test]
    fn who_was_taken_along_hears_from_that_leader() {
        let submission = |id| Submission { id, state: DraftState::Pending, created: true };
        let (role, _) = follow(Duration::ZERO, |lead, group| {
            let taken = group.take_waiting(10);
            // An earlier leader fails meanwhile.
            lead.fail_busy();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(50) {
                group.changed.notify_all();
            }
            lead.serve(taken.iter().map(|(ticket, draft)| (*ticket, Some(submission(draft.id())))));
        });
        assert!(matches!(role, Role::Served(it) if it.id == draft("second").id()), "{role:?}");
        // If the leader failed, the next one leads, with the same draft.
        let (role, group) = follow(HOUR, |lead, group| {
            let taken = group.take_waiting(10);
            lead.serve(taken.iter().map(|(ticket, _)| (*ticket, None)));
        });
        assert!(matches!(role, Role::Leader { .. }), "{role:?}");
        assert!(group.take_waiting(10).is_empty());
    }

    #[test]
    fn a_leader_takes_few_long_texts_along_and_at_least_one() {
        let group = Group::default();
        for (ticket, mib) in [(0, 3), (1, 3), (2, 6), (3, 1), (4, 1)] {
            let text = "x".repeat(mib * 1024 * 1024);
            group.lock().waiting.push((ticket, draft(&text)));
        }
        let taken = || -> Vec<u64> {
            group.take_waiting(10).into_iter().map(|(ticket, _)| ticket).collect()
        };
        assert_eq!([taken(), taken(), taken(), taken()], [vec![0], vec![1], vec![2], vec![3, 4]]);
    }
}
