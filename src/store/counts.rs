//! How many drafts there are in each state, counted over the indexes.
//!
//! Each index holds the drafts of some states and nothing else, so a count reads no more than the
//! entries that it counts.

use rusqlite::Connection;

use crate::database::TransactionError;
use crate::state::DraftState;

/// How many drafts are pending and due.
pub(super) fn ready(connection: &Connection) -> Result<u64, TransactionError> {
    count(
        connection,
        "SELECT count(*) FROM drafts INDEXED BY drafts_ready WHERE state = 'pending' AND due_at = 0",
    )
}

/// How many pending drafts wait for a time.
pub(super) fn delayed(connection: &Connection) -> Result<u64, TransactionError> {
    count(
        connection,
        "SELECT count(*) FROM drafts INDEXED BY drafts_delayed \
         WHERE state = 'pending' AND due_at > 0",
    )
}

/// How many drafts are in processing.
pub(super) fn processing(connection: &Connection) -> Result<u64, TransactionError> {
    count(
        connection,
        "SELECT count(*) FROM drafts INDEXED BY drafts_in_flight WHERE state = 'processing'",
    )
}

/// How many drafts are in this terminal state.
pub(super) fn finished(
    connection: &Connection,
    state: DraftState,
) -> Result<u64, TransactionError> {
    // A literal, so that the planner matches it with the index.
    count(
        connection,
        &format!(
            "SELECT count(*) FROM drafts INDEXED BY drafts_finished WHERE state = '{state}' \
                 AND state <> 'pending' AND state <> 'processing'"
        ),
    )
}

fn count(connection: &Connection, sql: &str) -> Result<u64, TransactionError> {
    let count: i64 = connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    Ok(u64::try_from(count).unwrap_or(0))
}
