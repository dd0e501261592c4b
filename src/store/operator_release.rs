//! Takes drafts from live runners for an operator, because their processor hangs.

use rusqlite::{Connection, OptionalExtension as _, named_params};
use serde::Serialize;

use super::DraftStore;
use super::columns::{get, lossy_text};
use super::liveness::{Liveness, RunnerLocks};
use crate::database::TransactionError;
use crate::error::LibrarianError;
use crate::id::DraftId;
use crate::state::DraftState;

/// A draft that an operator took from a live runner. It is pending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Released {
    /// The draft.
    pub id: DraftId,
    /// The runner that held it: `runners.id`.
    pub runner: i64,
    /// The process id of the runner.
    pub pid: i64,
    /// The name of its processor.
    pub processor: String,
    /// When the runner claimed the draft, in milliseconds since the Unix epoch.
    pub claimed_at_unix_ms: i64,
}

impl DraftStore {
    /// Take drafts from the live runners that hold them, because their processor hangs, for example:
    /// they go back to pending, in their old place in the order, and no error is counted. All in one
    /// transaction: on an error, none is moved.
    ///
    /// The runner refuses the late result, and goes on with other drafts. A
    /// [`CommandProcessor`](crate::CommandProcessor) kills the draft's program within a second or so;
    /// other processors learn it by their [`StopSignal`](crate::StopSignal). A draft is never
    /// processed by the same run again.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::UnknownDraft`] for an unknown id; [`LibrarianError::DraftNotHeld`] for a
    /// draft that no live runner holds, which [`requeue`](Self::requeue) moves;
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn release_held(&self, ids: &[DraftId]) -> Result<Vec<Released>, LibrarianError> {
        let now = self.now_ms();
        let mut ids = ids.to_vec();
        let mut seen = std::collections::HashSet::new();
        ids.retain(|id| seen.insert(*id));
        let released = self.write("release drafts", |transaction| {
            let locks = self.runner_locks();
            ids.iter().map(|id| release_held(transaction, &locks, *id, now)).collect()
        });
        let released: Vec<Released> = released?;
        self.notify(released.len());
        Ok(released)
    }
}

fn release_held(
    connection: &Connection,
    locks: &RunnerLocks,
    id: DraftId,
    now: i64,
) -> Result<Released, TransactionError> {
    let state: DraftState = connection
        .prepare_cached("SELECT state FROM drafts WHERE id = ?1")?
        .query_row([id.to_hex()], |row| get(row, "state"))
        .optional()?
        .ok_or(LibrarianError::UnknownDraft { id })?;
    let held = connection
        .prepare_cached(
            "SELECT runners.id AS runner, pid, processor, lock_file, claimed_at \
             FROM drafts JOIN runners ON runners.id = drafts.owner \
             WHERE drafts.id = ?1 AND ended_at IS NULL",
        )?
        .query_row([id.to_hex()], |row| {
            let released = Released {
                id,
                runner: row.get("runner")?,
                pid: row.get("pid")?,
                processor: lossy_text(row, "processor")?,
                claimed_at_unix_ms: row.get("claimed_at")?,
            };
            Ok((released, lossy_text(row, "lock_file")?))
        })
        .optional()?;
    let Some((released, _)) =
        held.filter(|(_, lock_file)| locks.liveness(lock_file) == Liveness::Alive)
    else {
        return Err(LibrarianError::DraftNotHeld { id, state }.into());
    };
    connection
        .prepare_cached(
            "UPDATE drafts SET state = 'pending', claims = max(claims - 1, 0), \
                 claimed_at = NULL, claim_booted_at = NULL, claim_token = NULL, owner = NULL, \
                 updated_at = :now, revision = (revision + 1) & 4294967295 \
             WHERE id = :id AND state = 'processing'",
        )?
        .execute(named_params! { ":now": now, ":id": id.to_hex() })?;
    Ok(released)
}
