//! Reads drafts, their histories and their counts.
//!
//! If some columns of a row cannot be read, the other columns are returned, with the names of the
//! unreadable ones. Such a row does not hide other rows.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::{Serialize, Serializer};

use super::columns::{Columns, draft_columns, draft_of, get, verified_draft_of};
use super::{DraftStore, counts};
use crate::database::TransactionError;
use crate::draft::Draft;
use crate::error::{DraftDamage, LibrarianError};
use crate::id::DraftId;
use crate::json::JsonText;
use crate::metadata::DraftSourceSurface;
use crate::state::{DraftProcessingDecision, DraftState};

/// At most this many bytes of each text in a [`DraftSummary`] are read.
const SUMMARY_TEXT_BYTES: usize = 2 * 1024;

/// Everything about a draft except its text. The JSON keys are the names of the database's columns;
/// times are milliseconds since the Unix epoch, UTC.
///
/// A value that cannot be read is `None`, 0 or empty, and its column is named in `unreadable`. In
/// text that is not UTF-8, the invalid bytes are replaced by U+FFFD.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DraftRecord {
    /// Its place in the order of submission.
    pub seq: i64,
    /// The id.
    pub id: DraftId,
    /// The state of the draft.
    pub state: DraftState,
    /// The kind of source that it came from.
    pub source_surface: Option<DraftSourceSurface>,
    /// The agent that wrote it.
    pub source_agent: Option<String>,
    /// The project it belongs to.
    pub source_project: Option<String>,
    /// The person for whom it was written.
    pub operator: Option<String>,
    /// A URI, path or event id of the source.
    pub provenance_uri: Option<String>,
    /// Its tags.
    pub context_tags: Vec<String>,
    /// When it was submitted, as the submitter stated it.
    pub submitted_at_unix_ms: i64,
    /// Length of its text in bytes of UTF-8.
    pub text_bytes: u64,
    /// When it was claimed, if it is in processing.
    pub claimed_at_unix_ms: Option<i64>,
    /// The runner that holds its claim.
    pub owner: Option<i64>,
    /// No runner claims the draft before this time.
    pub due_at_unix_ms: Option<i64>,
    /// How often it was claimed.
    pub claims: u64,
    /// How many errors it has had since it was submitted or last requeued.
    pub errors: u64,
    /// How often its runner died while it held this draft and no other, since it was submitted or
    /// last requeued.
    pub crashes: u64,
    /// How often its processor deferred it.
    pub defers: u64,
    /// The last decision.
    pub decision: Option<DraftProcessingDecision>,
    /// The note of that decision.
    pub note: Option<String>,
    /// The output of that decision.
    pub output: Option<JsonText>,
    /// The class of the last error.
    pub last_error_class: Option<String>,
    /// The message of the last error.
    pub last_error: Option<String>,
    /// When draftq last changed the row.
    pub updated_at_unix_ms: i64,
    /// The columns that cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<&'static str>,
}

/// The fields of a draft that a list shows. Long texts are cut off. The JSON keys are those of
/// [`DraftRecord`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DraftSummary {
    /// Its place in the order of submission.
    pub seq: i64,
    /// The id.
    pub id: DraftId,
    /// The state of the draft.
    pub state: DraftState,
    /// The kind of source that it came from.
    pub source_surface: Option<DraftSourceSurface>,
    /// The agent that wrote it.
    pub source_agent: Option<String>,
    /// The project it belongs to.
    pub source_project: Option<String>,
    /// When it was submitted, as the submitter stated it, in milliseconds since the Unix epoch.
    pub submitted_at_unix_ms: i64,
    /// How many errors it has had since it was submitted or last requeued.
    pub errors: u64,
    /// The last decision.
    pub decision: Option<DraftProcessingDecision>,
    /// The note of that decision.
    pub note: Option<String>,
    /// The class of the last error.
    pub last_error_class: Option<String>,
    /// The message of the last error.
    pub last_error: Option<String>,
    /// The columns that cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<&'static str>,
}

/// One event in the history of a draft. The comments of the `history` table define the events.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct HistoryEvent {
    /// What happened: `submitted`, `claimed`, `decided`, `deferred`, `released`, `recovered`,
    /// `exhausted`, `requeued`, `resolved`, `errored` or `refused`.
    pub event: String,
    /// The state before; `None` if the draft was new.
    pub from_state: Option<DraftState>,
    /// The state after; `None` if it cannot be read.
    pub to_state: Option<DraftState>,
    /// When, in milliseconds since the Unix epoch.
    pub at_unix_ms: i64,
    /// The runner that claimed, held or lost the claim.
    pub runner: Option<i64>,
    /// The process id of that runner.
    pub pid: Option<i64>,
    /// The processor's decision.
    pub decision: Option<DraftProcessingDecision>,
    /// The processor's note.
    pub note: Option<String>,
    /// The processor's output.
    pub output: Option<JsonText>,
    /// The class of the error.
    pub error_class: Option<String>,
    /// The message of the error.
    pub error: Option<String>,
    /// For a deferral after the first 20 in a row: how many deferrals this event stands for.
    pub repeats: Option<u64>,
    /// Whether the move was made by hand, with SQL.
    pub by_hand: bool,
    /// The columns that cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<&'static str>,
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
    /// The draft with this id, if it is in this state.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::DraftNotFound`] if it is not in this state; [`LibrarianError::DamagedDraft`]
    /// if it was changed after it was submitted.
    pub fn load(&self, state: DraftState, id: DraftId) -> Result<Draft, LibrarianError> {
        self.database().statement("load a draft", |connection| {
            let mut statement = connection.prepare_cached(concat!(
                "SELECT ",
                draft_columns!(),
                ", raw_text FROM drafts LEFT JOIN draft_texts USING (seq) \
                 WHERE drafts.id = ?1 AND drafts.state = ?2"
            ))?;
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
            let mut statement = connection.prepare_cached(concat!(
                "SELECT ",
                draft_columns!(),
                ", raw_text FROM drafts LEFT JOIN draft_texts USING (seq) \
                 WHERE drafts.state = ?1 ORDER BY drafts.seq"
            ))?;
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
            let mut statement = connection.prepare_cached(concat!(
                "SELECT ",
                draft_columns!(),
                ", raw_text FROM drafts LEFT JOIN draft_texts USING (seq) WHERE drafts.id = ?1"
            ))?;
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

    /// Counts over the whole store. They are read from indexes, not from the drafts.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn stats(&self) -> Result<StoreStats, LibrarianError> {
        self.database().read("count drafts", |connection| {
            let delayed = counts::delayed(connection)?;
            let states = DraftState::ALL
                .into_iter()
                .map(|state| {
                    let drafts = match state {
                        DraftState::Pending => counts::ready(connection)? + delayed,
                        DraftState::Processing => counts::processing(connection)?,
                        state => counts::finished(connection, state)?,
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
        "SELECT event, from_state, to_state, at, runner, pid, decision, note, output, \
                error_class, error, repeats, by_hand \
         FROM history LEFT JOIN runners ON runners.id = history.runner \
         WHERE draft = ?1 \
         ORDER BY history.seq",
    )?;
    let events = statement.query_map([record.seq], |row| Ok(event_of(row)))?;
    let events = events.collect::<Result<_, _>>()?;
    Ok((record, events))
}

pub(super) const RECORD_COLUMNS: &str = concat!(
    draft_columns!(),
    ", state, text_bytes, claimed_at, owner, due_at, claims, errors, crashes, defers, decision, note, \
       output, last_error_class, last_error, updated_at"
);

pub(super) const SUMMARY_COLUMNS: &str = "seq, id, state, source_surface, source_agent, source_project, \
     submitted_at, errors, decision, note, last_error_class, last_error";

/// The record of a row; an error only if its id or state cannot be read.
pub(super) fn record_of(row: &Row<'_>) -> Result<DraftRecord, rusqlite::Error> {
    let (seq, id, state) = (row.get("seq")?, get(row, "id")?, get(row, "state")?);
    let mut columns = Columns::of(row);
    Ok(DraftRecord {
        seq,
        id,
        state,
        source_surface: columns.value("source_surface"),
        source_agent: columns.text("source_agent"),
        source_project: columns.text("source_project"),
        operator: columns.text("operator"),
        provenance_uri: columns.text("provenance_uri"),
        context_tags: columns.tags("context_tags"),
        submitted_at_unix_ms: columns.number("submitted_at"),
        text_bytes: columns.number("text_bytes"),
        claimed_at_unix_ms: columns.optional("claimed_at"),
        owner: columns.optional("owner"),
        due_at_unix_ms: columns.value("due_at").filter(|due_at| *due_at > 0),
        claims: columns.number("claims"),
        errors: columns.number("errors"),
        crashes: columns.number("crashes"),
        defers: columns.number("defers"),
        decision: columns.optional("decision"),
        note: columns.text("note"),
        output: columns.json("output"),
        last_error_class: columns.text("last_error_class"),
        last_error: columns.text("last_error"),
        updated_at_unix_ms: columns.number("updated_at"),
        unreadable: columns.into_unreadable(),
    })
}

/// About how much memory a record takes.
pub(super) fn record_bytes(record: &DraftRecord) -> usize {
    let texts = [
        &record.source_agent,
        &record.source_project,
        &record.operator,
        &record.provenance_uri,
        &record.note,
        &record.last_error_class,
        &record.last_error,
    ];
    let texts = texts.into_iter().flatten().chain(&record.context_tags).map(String::len);
    let output = record.output.as_ref().map_or(0, |output| output.get().len());
    size_of::<DraftRecord>() + output + texts.sum::<usize>()
}

/// The summary of a row; an error only if its id or state cannot be read.
pub(super) fn summary_of(row: &Row<'_>) -> Result<DraftSummary, rusqlite::Error> {
    let (seq, id, state) = (row.get("seq")?, get(row, "id")?, get(row, "state")?);
    let mut columns = Columns::of(row);
    Ok(DraftSummary {
        seq,
        id,
        state,
        source_surface: columns.value("source_surface"),
        source_agent: columns.text_start("source_agent", SUMMARY_TEXT_BYTES),
        source_project: columns.text_start("source_project", SUMMARY_TEXT_BYTES),
        submitted_at_unix_ms: columns.number("submitted_at"),
        errors: columns.number("errors"),
        decision: columns.optional("decision"),
        note: columns.text_start("note", SUMMARY_TEXT_BYTES),
        last_error_class: columns.text_start("last_error_class", SUMMARY_TEXT_BYTES),
        last_error: columns.text_start("last_error", SUMMARY_TEXT_BYTES),
        unreadable: columns.into_unreadable(),
    })
}

fn event_of(row: &Row<'_>) -> HistoryEvent {
    let mut columns = Columns::of(row);
    HistoryEvent {
        event: columns.text("event").unwrap_or_default(),
        from_state: columns.optional("from_state"),
        to_state: columns.value("to_state"),
        at_unix_ms: columns.number("at"),
        runner: columns.optional("runner"),
        pid: columns.optional("pid"),
        decision: columns.optional("decision"),
        note: columns.text("note"),
        output: columns.json("output"),
        error_class: columns.text("error_class"),
        error: columns.text("error"),
        repeats: columns.optional("repeats"),
        by_hand: columns.number("by_hand"),
        unreadable: columns.into_unreadable(),
    }
}
