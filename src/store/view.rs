//! Reads single drafts, and all drafts in a state.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::DraftStore;
use super::columns::{draft_columns, draft_of, get, verified_draft_of};
use super::record::{DraftRecord, HistoryEvent, RECORD_COLUMNS, event_of, record_of};
use crate::database::TransactionError;
use crate::draft::Draft;
use crate::error::{DraftDamage, LibrarianError};
use crate::id::DraftId;
use crate::state::DraftState;

/// Selects drafts with their texts; a condition follows.
macro_rules! select_drafts {
    ($condition:literal) => {
        concat!(
            "SELECT ",
            draft_columns!(),
            ", raw_text FROM drafts LEFT JOIN draft_texts USING (seq) WHERE ",
            $condition
        )
    };
}

impl DraftStore {
    /// The draft with this id, if it is in this state.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::DraftNotFound`] if it is not in this state; [`LibrarianError::DamagedDraft`]
    /// if it was changed after it was submitted.
    pub fn load(&self, state: DraftState, id: DraftId) -> Result<Draft, LibrarianError> {
        self.database().statement("load a draft", |connection| {
            let mut statement = connection
                .prepare_cached(select_drafts!("drafts.id = ?1 AND drafts.state = ?2"))?;
            let mut rows = statement.query(params![id.to_hex(), state.as_str()])?;
            match rows.next()? {
                None => Err(LibrarianError::DraftNotFound { state, id }.into()),
                Some(row) => {
                    Ok(draft_of(row)
                        .map_err(|damage| LibrarianError::DamagedDraft { id, damage })?)
                }
            }
        })
    }

    /// All drafts in this state with their texts, in order of submission. For a long queue use
    /// [`query`](Self::query), which returns pages without texts.
    ///
    /// A draft that was changed after it was submitted is left out, and a warning is logged;
    /// [`load`](Self::load) returns the error.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn list(&self, state: DraftState) -> Result<Vec<Draft>, LibrarianError> {
        self.database().statement("list drafts", |connection| {
            let mut statement = connection
                .prepare_cached(select_drafts!("drafts.state = ?1 ORDER BY drafts.seq"))?;
            let mut rows = statement.query([state.as_str()])?;
            let mut drafts = Vec::new();
            while let Some(row) = rows.next()? {
                match draft_of(row) {
                    Ok(draft) => drafts.push(draft),
                    Err(damage) => tracing::warn!(
                        target: "mimir.librarian.damaged_draft",
                        seq = row.get::<_, i64>("seq").unwrap_or_default(),
                        draft_id = get::<DraftId>(row, "id").ok().map(tracing::field::display),
                        %damage,
                        "draft was left out"
                    ),
                }
            }
            Ok(drafts)
        })
    }

    /// The ids that begin with these hexadecimal digits, at most `limit`, in order.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn ids_with_prefix(
        &self,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<DraftId>, LibrarianError> {
        self.database().statement("look for an id", |connection| {
            // 'g' follows the last hexadecimal digit.
            let mut statement = connection.prepare_cached(
                "SELECT id FROM drafts WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY id",
            )?;
            let mut rows = statement.query([prefix])?;
            let mut ids = Vec::new();
            while ids.len() < limit
                && let Some(row) = rows.next()?
            {
                // A value that is not an id is left out.
                ids.extend(get::<DraftId>(row, "id").ok());
            }
            Ok(ids)
        })
    }

    /// Record, history and text of one draft, read in one transaction.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::UnknownDraft`] if no draft has this id; [`LibrarianError::DamagedDraft`]
    /// if its text or provenance was changed after it was submitted; [`record`](Self::record) then
    /// returns the rest.
    pub fn inspect(
        &self,
        id: DraftId,
    ) -> Result<(DraftRecord, Vec<HistoryEvent>, Draft), LibrarianError> {
        self.database().read("show a draft", |connection| {
            let (record, events) = record(connection, id)?;
            let mut statement = connection.prepare_cached(select_drafts!("drafts.id = ?1"))?;
            let mut rows = statement.query([id.to_hex()])?;
            let draft = match rows.next()? {
                None => return Err(LibrarianError::UnknownDraft { id }.into()),
                Some(row) => verified_draft_of(row),
            };
            let (draft, _) = draft.map_err(|damage| LibrarianError::DamagedDraft { id, damage })?;
            Ok((record, events, draft))
        })
    }

    /// Record and history of one draft, without its text.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::UnknownDraft`] if no draft has this id; [`LibrarianError::DamagedDraft`]
    /// if its state cannot be read.
    pub fn record(&self, id: DraftId) -> Result<(DraftRecord, Vec<HistoryEvent>), LibrarianError> {
        self.database().read("show a draft", |connection| record(connection, id))
    }
}

fn record(
    connection: &Connection,
    id: DraftId,
) -> Result<(DraftRecord, Vec<HistoryEvent>), TransactionError> {
    let record = connection
        .prepare_cached(&format!("SELECT {RECORD_COLUMNS} FROM drafts WHERE id = ?1"))?
        .query_row([id.to_hex()], |row| Ok(record_of(row)))
        .optional()?
        .ok_or(LibrarianError::UnknownDraft { id })?;
    // The id is readable, so it must be the state that is not.
    let record = record.map_err(|_| LibrarianError::DamagedDraft {
        id,
        damage: DraftDamage::Unreadable { column: "state" },
    })?;
    let mut statement = connection.prepare_cached(
        "SELECT history.seq AS seq, event, from_state, to_state, at, runner, pid, decision, \
                decided_by, note, output, error_class, error, repeats, by_hand \
         FROM history LEFT JOIN runners ON runners.id = history.runner \
         WHERE draft = ?1 \
         ORDER BY history.seq",
    )?;
    let events = statement.query_map([record.seq], |row| Ok(event_of(row)))?;
    let events = events.collect::<Result<_, _>>()?;
    Ok((record, events))
}
