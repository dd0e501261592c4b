//! What has come in that a waiting runner could claim: the query for writers that do not notify,
//! such as a SQL shell.

use super::{DraftStore, last_event};
use crate::error::LibrarianError;

/// What a waiting runner polls for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewWork {
    /// The seq of the history's last event.
    pub last_event: i64,
    /// Whether drafts have become claimable since the event that was given, and one is still
    /// claimable: others may have taken them.
    pub work: bool,
    /// When the next delayed draft is due, in milliseconds since the epoch.
    pub next_due_ms: Option<i64>,
}

impl DraftStore {
    /// What has come in since this event. Reads only the events since then, however long the
    /// queue and the history are.
    pub(crate) fn new_work(&self, since: i64) -> Result<NewWork, LibrarianError> {
        self.database().read("look for new work", |connection| {
            let last_event = last_event(connection)?;
            let work = last_event > since
                && connection
                    .prepare_cached(
                        "SELECT EXISTS (SELECT 1 FROM history WHERE seq > ?1 \
                             AND event IN ('submitted', 'requeued', 'recovered', 'released')) \
                         AND EXISTS (SELECT 1 FROM drafts INDEXED BY drafts_ready \
                                     WHERE state = 'pending' AND due_at = 0)",
                    )?
                    .query_row([since], |row| row.get(0))?;
            let next_due_ms = connection
                .prepare_cached(
                    "SELECT min(due_at) FROM drafts INDEXED BY drafts_delayed \
                     WHERE state = 'pending' AND due_at > 0",
                )?
                .query_row([], |row| row.get(0))?;
            Ok(NewWork { last_event, work, next_due_ms })
        })
    }
}
