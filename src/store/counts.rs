//! Counts drafts, over the indexes.
//!
//! Each index holds the drafts of some states and nothing else, so a count reads no more than the
//! entries that it counts.

use rusqlite::Connection;
use serde::{Serialize, Serializer};

use super::DraftStore;
use crate::database::TransactionError;
use crate::error::LibrarianError;
use crate::state::DraftState;

/// Counts drafts that are pending and due.
pub(super) const COUNT_READY: &str = "SELECT count(*) FROM drafts INDEXED BY drafts_ready \
     WHERE state = 'pending' AND due_at = 0";

/// Counts pending drafts that are not due yet.
pub(super) const COUNT_DELAYED: &str = "SELECT count(*) FROM drafts INDEXED BY drafts_delayed \
     WHERE state = 'pending' AND due_at > 0";

/// Counts drafts in processing.
pub(super) const COUNT_PROCESSING: &str =
    "SELECT count(*) FROM drafts INDEXED BY drafts_in_flight WHERE state = 'processing'";

/// Counts drafts in this terminal state. The state is a literal, so that the planner uses the index.
pub(super) fn count_finished(state: DraftState) -> String {
    format!(
        "SELECT count(*) FROM drafts INDEXED BY drafts_finished WHERE state = '{state}' \
             AND state <> 'pending' AND state <> 'processing'"
    )
}

/// Counts over the whole store, read in one transaction.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct StoreStats {
    /// The number of drafts.
    pub drafts: u64,
    /// The number of drafts in each state, in the order of the states.
    #[serde(serialize_with = "state_map")]
    pub states: Vec<(DraftState, u64)>,
    /// The number of pending drafts that are not due yet.
    pub delayed: u64,
    /// When the first of those is due.
    pub next_due_unix_ms: Option<i64>,
    /// When the draft that will be claimed next was submitted.
    pub oldest_ready_unix_ms: Option<i64>,
    /// When the oldest claim was made.
    pub oldest_claim_unix_ms: Option<i64>,
    /// Size of the database in bytes, without its WAL.
    pub database_bytes: u64,
}

fn state_map<S: Serializer>(
    states: &[(DraftState, u64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(states.iter().map(|(state, drafts)| (state, drafts)))
}

impl DraftStore {
    /// Counts over the whole store. They are read from indexes, not from the drafts.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn stats(&self) -> Result<StoreStats, LibrarianError> {
        self.database().read("count drafts", |connection| {
            let delayed = count(connection, COUNT_DELAYED)?;
            let states = DraftState::ALL
                .into_iter()
                .map(|state| {
                    let drafts = match state {
                        DraftState::Pending => count(connection, COUNT_READY)? + delayed,
                        DraftState::Processing => count(connection, COUNT_PROCESSING)?,
                        state => count(connection, &count_finished(state))?,
                    };
                    Ok((state, drafts))
                })
                .collect::<Result<Vec<_>, TransactionError>>()?;
            let database_bytes = connection
                .prepare_cached(
                    "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
                )?
                .query_row([], |row| row.get(0))?;
            let number = |sql| -> Result<Option<i64>, TransactionError> {
                let mut statement = connection.prepare_cached(sql)?;
                let mut rows = statement.query([])?;
                // A value that is not a number is left out, so that it does not hide the counts.
                Ok(rows.next()?.and_then(|row| row.get(0).ok().flatten()))
            };
            let next_due_unix_ms = number(
                "SELECT min(due_at) FROM drafts INDEXED BY drafts_delayed \
                 WHERE state = 'pending' AND due_at > 0",
            )?;
            let oldest_ready_unix_ms = number(
                "SELECT submitted_at FROM drafts INDEXED BY drafts_ready \
                 WHERE state = 'pending' AND due_at = 0 ORDER BY seq LIMIT 1",
            )?;
            let oldest_claim_unix_ms = number(
                "SELECT min(claimed_at) FROM drafts INDEXED BY drafts_in_flight \
                 WHERE state = 'processing'",
            )?;
            Ok(StoreStats {
                drafts: states.iter().map(|entry| entry.1).sum(),
                states,
                delayed,
                next_due_unix_ms,
                oldest_ready_unix_ms,
                oldest_claim_unix_ms,
                database_bytes,
            })
        })
    }
}

pub(super) fn count(connection: &Connection, sql: &str) -> Result<u64, TransactionError> {
    let count: i64 = connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    Ok(u64::try_from(count).unwrap_or(0))
}
