//! Group commit: threads of one process that submit at the same time share a transaction.
//!
//! The first thread commits as leader. Threads that arrive meanwhile queue; the next leader, one of
//! them, commits for all of them. A submit that is alone commits at once.
//!
//! Each thread's time-out counts from its own arrival. When a leader fails, the threads whose drafts
//! it took lead one after the other, each with the time that it has left, and get their own errors.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

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
    /// The results of drafts that a leader has submitted.
    served: HashMap<u64, Submission>,
}

/// What a thread does after it joined.
#[derive(Debug)]
pub(super) enum Role {
    /// Submit the draft, and those in the queue. The thread has waited since its arrival.
    Leader { arrived: Instant },
    /// Nothing: a leader submitted it.
    Served(Submission),
}

impl Group {
    /// Join with a draft. Returns when the draft is durable, or when it is this thread's turn to
    /// lead.
    pub(super) fn join(&self, draft: &Draft) -> Role {
        let arrived = Instant::now();
        let mut state = self.lock();
        if !state.led {
            state.led = true;
            return Role::Leader { arrived };
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push((ticket, draft.clone()));
        loop {
            state.followers += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.followers -= 1;
            if let Some(submission) = state.served.remove(&ticket) {
                return Role::Served(submission);
            }
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
    pub(super) fn serve(self, served: impl Iterator<Item = (u64, Submission)>) {
        self.0.lock().served.extend(served);
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

#[cfg(test)]
mod tests {
    use std::thread::{scope, yield_now};
    use std::time::SystemTime;

    use super::*;
    use crate::state::DraftState;
    use crate::{DraftMetadata, DraftSourceSurface};

    fn draft(text: &str) -> Draft {
        let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
        Draft::with_metadata(text.to_owned(), metadata)
    }

    /// Let a second thread wait while the first leads. Returns what the second does after `lead`.
    fn follow(lead: impl FnOnce(Lead<'_>, &Group)) -> (Role, Group) {
        let group = Group::default();
        assert!(matches!(group.join(&draft("first")), Role::Leader { .. }));
        let role = scope(|scope| {
            let follower = scope.spawn(|| group.join(&draft("second")));
            while group.lock().followers == 0 {
                yield_now();
            }
            lead(Lead::new(&group), &group);
            follower.join().unwrap()
        });
        (role, group)
    }

    #[test]
    fn a_thread_whose_draft_was_not_taken_leads_next() {
        let (role, group) = follow(|lead, _| drop(lead));
        assert!(matches!(role, Role::Leader { .. }), "{role:?}");
        assert!(group.take_waiting(10).is_empty(), "no other leader takes its draft");
    }

    #[test]
    fn a_thread_gets_the_result_from_the_leader_that_took_its_draft() {
        let (role, _) = follow(|lead, group| {
            let taken = group.take_waiting(10);
            lead.serve(taken.iter().map(|(ticket, draft)| {
                (*ticket, Submission { id: draft.id(), state: DraftState::Pending, created: true })
            }));
        });
        assert!(matches!(role, Role::Served(it) if it.id == draft("second").id()), "{role:?}");
    }

    #[test]
    fn a_thread_leads_when_the_leader_that_took_its_draft_failed() {
        let (role, group) = follow(|lead, group| {
            assert_eq!(group.take_waiting(10).len(), 1);
            drop(lead);
        });
        assert!(matches!(role, Role::Leader { .. }), "{role:?}");
        assert!(group.take_waiting(10).is_empty());
    }

    #[test]
    fn a_leader_takes_few_long_texts_and_at_least_one() {
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
