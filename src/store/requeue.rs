//! Requeues drafts for an operator: finished ones, and those in processing that no live runner
//! holds.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension as _, named_params};
use serde::Serialize;

use super::DraftStore;
use super::columns::{get, lossy_text};
use super::liveness::Liveness;
use super::pages::{DraftPage, each_seq};
use super::query::DraftQuery;
use super::registration::set_ended;
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
    /// The live runner that holds the draft. Then nothing was changed, and the draft is still in
    /// processing.
    pub held_by: Option<i64>,
}

impl Requeued {
    /// The state that the draft is in now: pending, or processing if a runner holds it.
    #[must_use]
    pub fn state(&self) -> DraftState {
        if self.held_by.is_some() { DraftState::Processing } else { DraftState::Pending }
    }
}

impl Serialize for Requeued {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let fields = if self.held_by.is_some() { 4 } else { 3 };
        let mut fields = serializer.serialize_struct("Requeued", fields)?;
        fields.serialize_field("id", &self.id.to_hex())?;
        fields.serialize_field("from", &self.from)?;
        fields.serialize_field("state", &self.state())?;
        if let Some(runner) = self.held_by {
            fields.serialize_field("held_by", &runner)?;
        }
        fields.end()
    }
}

impl DraftStore {
    /// Return drafts to pending, to be processed again in their old place in the order, with a new
    /// error budget and no delay. A pending draft stays as it is. All in one transaction: on an
    /// error, none is moved.
    ///
    /// A draft in processing is requeued if no live runner holds it: after an error of its
    /// processor, after a claim without an owner ([`transition`](Self::transition), or by hand), or
    /// because its runner is dead.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::UnknownDraft`] for an unknown id; [`LibrarianError::DraftHeld`] for a
    /// draft that a live runner holds.
    pub fn requeue(&self, ids: &[DraftId]) -> Result<Vec<Requeued>, LibrarianError> {
        let requeued: Vec<_> = self.write("requeue drafts", |transaction| {
            let mut requeue = Requeue::new(self, transaction);
            ids.iter()
                .map(|id| {
                    let requeued = requeue.draft(*id, None)?;
                    match requeued.held_by {
                        None => Ok(requeued),
                        Some(runner) => Err(held_error(transaction, *id, runner)?.into()),
                    }
                })
                .collect()
        })?;
        self.notify(requeued.len());
        Ok(requeued)
    }

    /// Requeue the drafts that the query asks for, as [`requeue`](Self::requeue) does. A draft that
    /// a live runner holds stays as it is; [`Requeued::held_by`] names the runner. A call does one
    /// page, at most 500 drafts, in one transaction; [`DraftPage::next`] says where the next page
    /// begins. A draft that another process moves meanwhile is requeued only if it still matches
    /// the query.
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
            requeued = self.write("requeue drafts", |transaction| {
                let mut found = Vec::new();
                each_seq(transaction, &again, ids.len(), |seq| {
                    found.extend(ids.get(&seq));
                    Ok(true)
                })?;
                let mut requeue = Requeue::new(self, transaction);
                found.into_iter().map(|id| requeue.draft(id, None)).collect()
            })?;
            self.notify(requeued.len());
        }
        Ok(DraftPage { rows: requeued, unreadable: page.unreadable, next: page.next })
    }

    /// Whether [`requeue`](Self::requeue) and [`decide`](Self::decide) would accept this draft now:
    /// it exists, and no live runner holds it. Changes nothing.
    ///
    /// # Errors
    ///
    /// Those of [`requeue`](Self::requeue).
    pub fn check_requeue(&self, id: DraftId) -> Result<(), LibrarianError> {
        self.database().read("look for a draft's runner", |connection| {
            match Requeue::new(self, connection).holder(id)?.live_owner() {
                None => Ok(()),
                Some(runner) => Err(held_error(connection, id, runner)?.into()),
            }
        })
    }
}

/// The operator's moves of one transaction.
pub(super) struct Requeue<'a> {
    store: &'a DraftStore,
    pub(super) connection: &'a Connection,
    pub(super) now: i64,
    /// The runners that were tested.
    runners: HashMap<i64, Liveness>,
}

/// The state of a draft, and the runner that owns its claim.
pub(super) struct Holder {
    pub(super) state: DraftState,
    owner: Option<(i64, Liveness)>,
}

impl Holder {
    pub(super) fn live_owner(&self) -> Option<i64> {
        self.owner.filter(|(_, liveness)| *liveness == Liveness::Alive).map(|(owner, _)| owner)
    }
}

impl<'a> Requeue<'a> {
    pub(super) fn new(store: &'a DraftStore, connection: &'a Connection) -> Self {
        Self { store, connection, now: store.now_ms(), runners: HashMap::new() }
    }

    /// Requeue a draft, with a note in its history.
    pub(super) fn draft(
        &mut self,
        id: DraftId,
        note: Option<&str>,
    ) -> Result<Requeued, TransactionError> {
        let holder = self.holder(id)?;
        let requeued = Requeued { id, from: holder.state, held_by: holder.live_owner() };
        if requeued.held_by.is_some() {
            return Ok(requeued);
        }
        self.free(id, &holder)?;
        self.connection
            .prepare_cached(
                "UPDATE drafts SET state = 'pending', claimed_at = NULL, claim_booted_at = NULL, \
                     claim_token = NULL, owner = NULL, due_at = 0, \
                     decision = NULL, note = :note, output = NULL, usage = NULL, \
                     decided_by = NULL, errors = 0, crashes = 0, defers_in_a_row = 0, \
                     suspect = 0, error_budget = NULL, last_error_class = NULL, \
                     last_error = NULL, requeues = min(requeues, 999999999) + 1, \
                     updated_at = :now, revision = (revision + 1) & 4294967295 \
                 WHERE id = :id AND state <> 'pending'",
            )?
            .execute(named_params! { ":id": id.to_hex(), ":note": note, ":now": self.now })?;
        Ok(requeued)
    }

    /// Take a draft from an owner that is not alive.
    pub(super) fn free(&self, id: DraftId, holder: &Holder) -> Result<(), TransactionError> {
        match holder.owner {
            Some((owner, Liveness::Dead)) => self.end_dead_runner(owner),
            Some((_, Liveness::LockGone)) => self.remove_owner(id),
            Some((_, Liveness::Alive)) | None => Ok(()),
        }
    }

    pub(super) fn holder(&mut self, id: DraftId) -> Result<Holder, TransactionError> {
        let (state, owner) = self
            .connection
            .prepare_cached("SELECT state, owner FROM drafts WHERE id = ?1")?
            .query_row([id.to_hex()], |row| Ok((get(row, "state")?, row.get("owner")?)))
            .optional()?
            .ok_or(LibrarianError::UnknownDraft { id })?;
        let owner = match owner {
            None => None,
            Some(owner) => Some((owner, self.liveness(owner)?)),
        };
        Ok(Holder { state, owner })
    }

    /// Whether this runner is alive. A runner is dead if its row is missing or shows its end.
    fn liveness(&mut self, runner: i64) -> Result<Liveness, TransactionError> {
        if let Some(liveness) = self.runners.get(&runner) {
            return Ok(*liveness);
        }
        let lock_file = self
            .connection
            .prepare_cached("SELECT lock_file FROM runners WHERE id = ?1 AND ended_at IS NULL")?
            .query_row([runner], |row| lossy_text(row, "lock_file"))
            .optional()?;
        let liveness = match lock_file {
            Some(lock_file) => self.store.runner_locks().liveness(&lock_file),
            None => Liveness::Dead,
        };
        self.runners.insert(runner, liveness);
        Ok(liveness)
    }

    /// Remove the owner of a claim whose runner has no lock file. The runner may be alive, so its
    /// other claims are not touched.
    pub(super) fn remove_owner(&self, id: DraftId) -> Result<(), TransactionError> {
        self.connection
            .prepare_cached("UPDATE drafts SET owner = NULL, claim_token = NULL WHERE id = ?1")?
            .execute([id.to_hex()])?;
        Ok(())
    }

    /// Record the end of a dead runner. If it held several drafts, none of them alone is to blame
    /// for its death; recovery could no longer tell, because it counts the drafts that are left.
    fn end_dead_runner(&self, runner: i64) -> Result<(), TransactionError> {
        let held: i64 = self
            .connection
            .prepare_cached(
                "SELECT count(*) FROM drafts INDEXED BY drafts_in_flight \
                 WHERE state = 'processing' AND owner = ?1 \
                     AND EXISTS (SELECT 1 FROM runners WHERE id = ?1 AND ended_at IS NULL)",
            )?
            .query_row([runner], |row| row.get(0))?;
        if held > 1 {
            self.connection
                .prepare_cached(
                    "UPDATE drafts INDEXED BY drafts_in_flight SET suspect = 1, \
                         updated_at = ?2, revision = (revision + 1) & 4294967295 \
                     WHERE state = 'processing' AND owner = ?1",
                )?
                .execute([runner, self.now])?;
        }
        set_ended(self.connection, runner, self.now)
    }
}

/// The error for a draft that this runner holds.
pub(super) fn held_error(
    connection: &Connection,
    id: DraftId,
    runner: i64,
) -> Result<LibrarianError, TransactionError> {
    let (pid, processor) = connection
        .prepare_cached("SELECT pid, processor FROM runners WHERE id = ?1")?
        .query_row([runner], |row| Ok((row.get("pid")?, lossy_text(row, "processor")?)))?;
    Ok(LibrarianError::DraftHeld { id, runner, pid, processor })
}
