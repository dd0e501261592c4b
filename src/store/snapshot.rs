//! What one run may claim.

use rusqlite::OptionalExtension as _;

use super::claimed::{Claim, NewClaims, Next};
use super::{DraftStore, counts};
use crate::error::LibrarianError;

/// The drafts that one run may claim: those that were pending and due at one moment, in order of
/// submission.
#[derive(Debug, Clone)]
pub struct PendingSnapshot {
    pending_seen: usize,
    /// Drafts up to this `seq` were claimed already, so that a draft that this run deferred is not
    /// claimed again.
    pub(super) after: i64,
    /// Drafts after this `seq` were submitted later.
    pub(super) until: i64,
    /// The number of drafts that can still be claimed, because drafts that are requeued meanwhile
    /// may be between the others.
    pub(super) remaining: usize,
}

impl PendingSnapshot {
    /// How many drafts were pending and due.
    #[must_use]
    pub fn pending_seen(&self) -> usize {
        self.pending_seen
    }

    /// Whether no more drafts can be claimed from it.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.remaining == 0 || self.after >= self.until
    }

    /// How many drafts can still be claimed from it, at most.
    pub(super) fn remaining(&self) -> usize {
        if self.is_used_up() { 0 } else { self.remaining }
    }

    /// Advance past these claims.
    pub(crate) fn advance(&mut self, claims: &NewClaims) {
        match claims.next {
            Next::Drafts => self.after = claims.found.last().map_or(self.after, |(seq, _)| *seq),
            Next::Nothing => self.after = self.until,
            Next::Suspect => {}
        }
        self.remaining = self.remaining.saturating_sub(claims.found.len());
    }

    /// Go back to the first of these claims, which were released.
    pub(crate) fn rewind(&mut self, released: &[Box<Claim>]) {
        if let Some(first) = released.iter().map(|claim| claim.key.seq).min() {
            self.after = self.after.min(first - 1);
            self.remaining += released.len();
        }
    }
}

impl DraftStore {
    /// The drafts that a run that begins now may claim.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn pending_snapshot(&self) -> Result<PendingSnapshot, LibrarianError> {
        self.database().read("count pending drafts", |connection| {
            let last = connection
                .prepare_cached(
                    "SELECT seq FROM drafts INDEXED BY drafts_ready \
                     WHERE state = 'pending' AND due_at = 0 ORDER BY seq DESC LIMIT 1",
                )?
                .query_row([], |row| row.get(0))
                .optional()?
                .unwrap_or(0);
            let seen = counts::count(connection, counts::COUNT_READY)?;
            let pending_seen = usize::try_from(seen).unwrap_or(usize::MAX);
            Ok(PendingSnapshot { pending_seen, after: 0, until: last, remaining: pending_seen })
        })
    }
}
