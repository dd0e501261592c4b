//! Requeues finished drafts for an operator.

use std::collections::HashMap;

use rusqlite::{Connection, named_params};
use serde::Serialize;

use super::DraftStore;
use super::columns::{get, state_of};
use super::pages::{DraftPage, each_seq};
use super::query::DraftQuery;
use crate::database::TransactionError;
use crate::error::LibrarianError;
use crate::id::DraftId;
use crate::state::DraftState;

/// The most drafts that one transaction requeues, so that other processes can write in between.
const MAX_BATCH: usize = 500;

/// The result of a requeue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Requeued {
    /// The draft.
    pub id: DraftId,
    /// The state it was in. If that is pending, nothing was changed.
    pub from: DraftState,
}

impl Serialize for Requeued {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let mut fields = serializer.serialize_struct("Requeued", 3)?;
        fields.serialize_field("id", &self.id.to_hex())?;
        fields.serialize_field("from", &self.from)?;
        fields.serialize_field("state", &DraftState::Pending)?;
        fields.end()
    }
}

impl DraftStore {
    /// Return finished drafts to pending, to be processed again in their old place in the order,
    /// with a new error budget and no delay. A pending draft stays as it is. All in one
    /// transaction: on an error, none is moved.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::UnknownDraft`] for an unknown id; [`LibrarianError::DraftInProcessing`]
    /// for a draft in processing.
    pub fn requeue(&self, ids: &[DraftId]) -> Result<Vec<Requeued>, LibrarianError> {
        let now = self.now_ms();
        let requeued: Vec<_> = self.write("requeue drafts", |transaction| {
            ids.iter().map(|id| requeue(transaction, *id, now)).collect()
        })?;
        self.notify(requeued.len());
        Ok(requeued)
    }

    /// Requeue the drafts that the query asks for, as [`requeue`](Self::requeue) does, except those
    /// in processing. A call does one page, at most 500 drafts, in one transaction;
    /// [`DraftPage::next`] says where the next page begins. A draft that another process moves
    /// meanwhile is requeued only if the query asks for it still.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`]; then nothing of this page was
    /// changed.
    pub fn requeue_matching(
        &self,
        query: &DraftQuery,
    ) -> Result<DraftPage<Requeued>, LibrarianError> {
        // The texts are read before, so that the write lock is not held for long.
        let page = self.page(
            &query.at_most(MAX_BATCH),
            "seq, id",
            |row| Ok((row.get::<_, i64>("seq")?, get(row, "id")?)),
            |_| 0,
        )?;
        let ids: HashMap<i64, DraftId> = page.rows.iter().copied().collect();
        let mut requeued = Vec::new();
        if !ids.is_empty() {
            let again = query.again_for(ids.values().copied().collect());
            let now = self.now_ms();
            requeued = self.write("requeue drafts", |transaction| {
                let mut found = Vec::new();
                each_seq(transaction, &again, ids.len(), |seq| {
                    found.extend(ids.get(&seq));
                    Ok(true)
                })?;
                let mut requeued = Vec::new();
                for id in found {
                    match requeue(transaction, id, now) {
                        Ok(draft) => requeued.push(draft),
                        Err(TransactionError::Ours(LibrarianError::DraftInProcessing {
                            ..
                        })) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(requeued)
            })?;
            self.notify(requeued.len());
        }
        Ok(DraftPage { rows: requeued, passed_over: page.passed_over, next: page.next })
    }
}

fn requeue(connection: &Connection, id: DraftId, now: i64) -> Result<Requeued, TransactionError> {
    let from = state_of(connection, id)?.ok_or(LibrarianError::UnknownDraft { id })?;
    if from == DraftState::Processing {
        return Err(LibrarianError::DraftInProcessing { id }.into());
    }
    connection
        .prepare_cached(
            "UPDATE drafts SET state = 'pending', decision = NULL, note = NULL, output = NULL, \
                 usage = NULL, decided_by = NULL, \
                 errors = 0, crashes = 0, defers_in_a_row = 0, suspect = 0, error_budget = NULL, \
                 last_error_class = NULL, last_error = NULL, \
                 updated_at = :now, revision = (revision + 1) & 4294967295 \
             WHERE id = :id AND state NOT IN ('pending', 'processing')",
        )?
        .execute(named_params! { ":id": id.to_hex(), ":now": now })?;
    Ok(Requeued { id, from })
}
