//! A draft's record, its summary and its events, read from rows.
//!
//! If some columns of a row cannot be read, the other columns are returned, with the names of the
//! unreadable ones. Such a row does not hide other rows.

use rusqlite::Row;
use serde::Serialize;

use super::columns::{Columns, draft_columns, get};
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
    /// The name that the person who decided gave; `None` if a processor decided.
    pub decided_by: Option<String>,
    /// The note of that decision.
    pub note: Option<String>,
    /// The output of that decision.
    pub output: Option<JsonText>,
    /// The class of the last error.
    pub last_error_class: Option<String>,
    /// The message of the last error.
    pub last_error: Option<String>,
    /// The draft that this one replaces.
    pub supersedes: Option<DraftId>,
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
    /// Its place in the order of events over all drafts.
    pub seq: i64,
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
    /// The decision.
    pub decision: Option<DraftProcessingDecision>,
    /// The name that the person who decided gave; `None` if a processor decided.
    pub decided_by: Option<String>,
    /// The note of the decision, or of a requeue.
    pub note: Option<String>,
    /// The output that the move replaced, or that came too late.
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

pub(super) const RECORD_COLUMNS: &str = concat!(
    draft_columns!(),
    ", state, text_bytes, claimed_at, owner, due_at, claims, errors, crashes, defers, decision, decided_by, \
       note, output, last_error_class, last_error, supersedes, updated_at"
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
        decided_by: columns.text("decided_by"),
        note: columns.text("note"),
        output: columns.json("output"),
        last_error_class: columns.text("last_error_class"),
        last_error: columns.text("last_error"),
        supersedes: columns.optional("supersedes"),
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
        &record.decided_by,
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

pub(super) fn event_of(row: &Row<'_>) -> HistoryEvent {
    let mut columns = Columns::of(row);
    HistoryEvent {
        seq: columns.number("seq"),
        event: columns.text("event").unwrap_or_default(),
        from_state: columns.optional("from_state"),
        to_state: columns.value("to_state"),
        at_unix_ms: columns.number("at"),
        runner: columns.optional("runner"),
        pid: columns.optional("pid"),
        decision: columns.optional("decision"),
        decided_by: columns.text("decided_by"),
        note: columns.text("note"),
        output: columns.json("output"),
        error_class: columns.text("error_class"),
        error: columns.text("error"),
        repeats: columns.optional("repeats"),
        by_hand: columns.number("by_hand"),
        unreadable: columns.into_unreadable(),
    }
}
