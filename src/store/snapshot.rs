//! What one run may claim.

use std::sync::Arc;

use rusqlite::{OptionalExtension as _, ToSql};

use super::claimed::{Claim, NewClaims, Next};
use super::filter::{conditions, parameters};
use super::{DraftStore, counts};
use crate::error::LibrarianError;
use crate::filter::DraftFilter;

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
    /// It holds only the drafts that pass this filter.
    filter: Option<Arc<DraftFilter>>,
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
            Ok(PendingSnapshot {
                pending_seen,
                after: 0,
                until: last,
                remaining: pending_seen,
                filter: None,
            })
        })
    }

    /// As [`pending_snapshot`](Self::pending_snapshot), but only the drafts that pass the filter.
    /// All drafts that are pending and due are read for it.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn filtered_snapshot(
        &self,
        filter: &DraftFilter,
    ) -> Result<PendingSnapshot, LibrarianError> {
        if filter.is_empty() {
            return self.pending_snapshot();
        }
        let (condition, values) = conditions(filter);
        let (seen, last): (i64, i64) =
            self.database().statement("count pending drafts", |connection| {
                Ok(connection
                    .prepare_cached(&format!(
                        "SELECT count(*), ifnull(max(seq), 0) FROM drafts INDEXED BY drafts_ready \
                         WHERE state = 'pending' AND due_at = 0{condition}"
                    ))?
                    .query_row(parameters(&values).as_slice(), |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })?)
            })?;
        let pending_seen = usize::try_from(seen).unwrap_or(usize::MAX);
        Ok(PendingSnapshot {
            pending_seen,
            after: 0,
            until: last,
            remaining: pending_seen,
            filter: Some(Arc::new(filter.clone())),
        })
    }

    /// The next drafts of a snapshot with a filter, at most `want`, in order; `None` if it has no
    /// filter. They are looked for without the write lock, because many other drafts may be between
    /// them. What the filter tests cannot change, and the claim tests whether they are still pending.
    pub(super) fn candidates(
        &self,
        snapshot: &PendingSnapshot,
        want: usize,
    ) -> Result<Option<Vec<i64>>, LibrarianError> {
        let Some(filter) = &snapshot.filter else { return Ok(None) };
        if want == 0 {
            return Ok(Some(Vec::new()));
        }
        let (condition, values) = conditions(filter);
        let want = i64::try_from(want).unwrap_or(i64::MAX);
        let seqs = self.database().statement("find drafts to claim", |connection| {
            let mut parameters: Vec<(&str, &dyn ToSql)> = parameters(&values);
            parameters.extend([
                (":after", &snapshot.after as &dyn ToSql),
                (":until", &snapshot.until),
                (":want", &want),
            ]);
            let mut statement = connection.prepare_cached(&format!(
                "SELECT seq FROM drafts INDEXED BY drafts_ready \
                 WHERE state = 'pending' AND due_at = 0 AND seq > :after AND seq <= :until{condition} \
                 ORDER BY seq LIMIT :want"
            ))?;
            let seqs = statement.query_map(parameters.as_slice(), |row| row.get(0))?;
            Ok(seqs.collect::<Result<Vec<i64>, _>>()?)
        })?;
        Ok(Some(seqs))
    }
}
