//! A draft is looked at. Nothing here writes.

use std::time::SystemTime;

use rusqlite::{OptionalExtension as _, Row, named_params, params};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::counts;
use super::{DraftStore, draft_columns, draft_of, metadata_of};
use crate::clock::unix_ms;
use crate::database::TransactionError;
use crate::draft::{Draft, DraftId, DraftMetadata, DraftSourceSurface};
use crate::error::LibrarianError;
use crate::state::{DraftProcessingDecision, DraftState};

/// Everything about a draft but its text. As JSON its names are those of the database's columns;
/// times are milliseconds since the Unix epoch, UTC.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DraftRecord {
    /// Place in the order of submission.
    pub seq: i64,
    /// The id.
    #[serde(serialize_with = "hex")]
    pub id: DraftId,
    /// Where the draft is.
    pub state: DraftState,
    /// Where it came from.
    #[serde(flatten, serialize_with = "flat_metadata")]
    pub metadata: DraftMetadata,
    /// Length of its text in bytes of UTF-8.
    pub text_bytes: u64,
    /// When it was claimed, while it is in processing.
    pub claimed_at_unix_ms: Option<i64>,
    /// The runner that holds it.
    pub owner: Option<i64>,
    /// Before this time a pending draft is not claimed.
    pub due_at_unix_ms: Option<i64>,
    /// How often it was claimed.
    pub claims: u64,
    /// How many errors it had since its submission or its last requeue.
    pub errors: u64,
    /// How often its runner died while it held this draft and no other, since its submission or
    /// its last requeue.
    pub crashes: u64,
    /// How often its processor deferred it.
    pub defers: u64,
    /// The last decision.
    pub decision: Option<DraftProcessingDecision>,
    /// The processor's note with it.
    pub note: Option<String>,
    /// The processor's output with it.
    pub output: Option<Box<RawValue>>,
    /// A short word for the last error.
    pub last_error_class: Option<String>,
    /// What the last error said.
    pub last_error: Option<String>,
    /// When draftq last changed the row.
    pub updated_at_unix_ms: i64,
}

fn hex<S: Serializer>(id: &DraftId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn flat_metadata<S: Serializer>(
    metadata: &DraftMetadata,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap as _;
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("source_surface", &metadata.source_surface)?;
    map.serialize_entry("source_agent", &metadata.source_agent)?;
    map.serialize_entry("source_project", &metadata.source_project)?;
    map.serialize_entry("operator", &metadata.operator)?;
    map.serialize_entry("provenance_uri", &metadata.provenance_uri)?;
    map.serialize_entry("context_tags", &metadata.context_tags)?;
    map.serialize_entry("submitted_at_unix_ms", &unix_ms(metadata.submitted_at))?;
    map.end()
}

/// One event of a draft's life; see the `history` table for what the events mean.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct HistoryEvent {
    /// What happened: `submitted`, `claimed`, `decided`, `deferred`, `released`, `recovered`,
    /// `exhausted`, `requeued`, `errored` or `refused`.
    pub event: String,
    /// The state before, if there was one.
    pub from_state: Option<DraftState>,
    /// The state after.
    pub to_state: DraftState,
    /// When, in milliseconds since the Unix epoch.
    pub at_unix_ms: i64,
    /// The runner that claimed, held or lost the claim.
    pub runner: Option<i64>,
    /// The process id of that runner.
    pub pid: Option<u32>,
    /// The processor's decision.
    pub decision: Option<DraftProcessingDecision>,
    /// The processor's note.
    pub note: Option<String>,
    /// The processor's output.
    pub output: Option<Box<RawValue>>,
    /// A short word for the error.
    pub error_class: Option<String>,
    /// What the error said.
    pub error: Option<String>,
    /// For a deferral beyond the first 20 in a row: how many of them this event stands for.
    pub repeats: Option<u64>,
    /// Whether the move was typed into a SQL shell.
    pub by_hand: bool,
}

/// Which drafts to list, and in which order.
#[derive(Debug, Clone, Default)]
pub struct DraftQuery {
    /// Only these states; empty for all.
    pub states: Vec<DraftState>,
    /// Only this surface.
    pub source_surface: Option<DraftSourceSurface>,
    /// Only this agent.
    pub source_agent: Option<String>,
    /// Only this project.
    pub source_project: Option<String>,
    /// Only with this tag.
    pub tag: Option<String>,
    /// Only what was submitted at or after this time.
    pub since: Option<SystemTime>,
    /// The last submitted first.
    pub newest_first: bool,
    /// At most this many.
    pub limit: usize,
    /// Go on after the draft of this `seq`, in the order asked for.
    pub after_seq: Option<i64>,
}

/// Counts over the whole store, of one moment.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct StoreStats {
    /// All drafts.
    pub drafts: u64,
    /// How many are in each state, in the order of the states.
    #[serde(serialize_with = "state_map")]
    pub states: Vec<(DraftState, u64)>,
    /// Pending drafts that wait for a time.
    pub delayed: u64,
    /// When the first of them is due.
    pub next_due_unix_ms: Option<i64>,
    /// When the draft that is next to be claimed was submitted.
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
    /// [`LibrarianError::DraftNotFound`] if it is not.
    pub fn load(&self, state: DraftState, id: DraftId) -> Result<Draft, LibrarianError> {
        self.database().statement("load a draft", |connection| {
            let mut statement = connection.prepare_cached(concat!(
                "SELECT ",
                draft_columns!(),
                ", raw_text FROM drafts JOIN draft_texts USING (seq) \
                 WHERE drafts.id = ?1 AND drafts.state = ?2"
            ))?;
            let draft = statement.query_row(params![id, state], draft_of).optional()?;
            draft.ok_or_else(|| LibrarianError::DraftNotFound { state, id }.into())
        })
    }

    /// Every draft in this state, in order of submission, texts and all. For long queues,
    /// [`query`](Self::query) gives pages without texts.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn list(&self, state: DraftState) -> Result<Vec<Draft>, LibrarianError> {
        self.database().statement("list drafts", |connection| {
            let mut statement = connection.prepare_cached(concat!(
                "SELECT ",
                draft_columns!(),
                ", raw_text FROM drafts JOIN draft_texts USING (seq) \
                 WHERE drafts.state = ?1 ORDER BY drafts.seq"
            ))?;
            let drafts = statement.query_map([state], draft_of)?;
            Ok(drafts.collect::<Result<_, _>>()?)
        })
    }

    /// The records that the query asks for, a page of at most `limit`.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn query(&self, query: &DraftQuery) -> Result<Vec<DraftRecord>, LibrarianError> {
        let states = match query.states.as_slice() {
            [] => DraftState::ALL.as_slice(),
            states => states,
        };
        // Literals, so that the planner can match them with the partial indexes.
        let names: Vec<String> =
            states.iter().map(|state| format!("'{}'", state.dir_name())).collect();
        let review = if states.iter().all(|state| state.is_terminal()) {
            " AND state IN ('accepted', 'skipped', 'failed', 'quarantined')"
        } else {
            ""
        };
        // A bound that is always there is a place to begin in the table; one that may be NULL
        // is a filter, and every page would read all pages before it.
        let (compare, order, start) =
            if query.newest_first { ("<", "DESC", i64::MAX) } else { (">", "ASC", 0) };
        let sql = format!(
            "SELECT {RECORD_COLUMNS} FROM drafts WHERE state IN ({}){review} \
                 AND seq {compare} :after \
                 AND (:surface IS NULL OR source_surface = :surface) \
                 AND (:agent IS NULL OR source_agent = :agent) \
                 AND (:project IS NULL OR source_project = :project) \
                 AND (:since IS NULL OR submitted_at >= :since) \
                 AND (:tag IS NULL OR EXISTS \
                      (SELECT 1 FROM json_each(context_tags) WHERE value = :tag)) \
             ORDER BY seq {order} LIMIT :limit",
            names.join(", ")
        );
        self.database().statement("list drafts", |connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let records = statement.query_map(
                named_params! {
                    ":after": query.after_seq.unwrap_or(start),
                    ":surface": query.source_surface.map(DraftSourceSurface::as_str),
                    ":agent": query.source_agent,
                    ":project": query.source_project,
                    ":since": query.since.map(unix_ms),
                    ":tag": query.tag,
                    ":limit": i64::try_from(query.limit).unwrap_or(i64::MAX),
                },
                record_of,
            )?;
            Ok(records.collect::<Result<_, _>>()?)
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
                "SELECT id FROM drafts WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY id LIMIT ?2",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let ids = statement.query_map(params![prefix, limit], |row| row.get(0))?;
            Ok(ids.collect::<Result<_, _>>()?)
        })
    }

    /// Record, history and text of one draft, of one moment.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::UnknownDraft`] if no draft has this id.
    pub fn inspect(
        &self,
        id: DraftId,
    ) -> Result<(DraftRecord, Vec<HistoryEvent>, Draft), LibrarianError> {
        self.database().read("show a draft", |connection| {
            let record = connection
                .prepare_cached(&format!("SELECT {RECORD_COLUMNS} FROM drafts WHERE id = ?1"))?
                .query_row([id], record_of)
                .optional()?
                .ok_or(LibrarianError::UnknownDraft { id })?;
            let raw_text = connection
                .prepare_cached("SELECT raw_text FROM draft_texts WHERE seq = ?1")?
                .query_row([record.seq], |row| row.get(0))?;
            let draft = Draft::stored(id, raw_text, record.metadata.clone());
            let mut statement = connection.prepare_cached(
                "SELECT event, from_state, to_state, at, runner, pid, decision, note, output, \
                        error_class, error, repeats, by_hand \
                 FROM history LEFT JOIN runners ON runners.id = history.runner \
                 WHERE draft = ?1 \
                 ORDER BY history.seq",
            )?;
            let events = statement.query_map([record.seq], event_of)?;
            let events = events.collect::<Result<_, _>>()?;
            Ok((record, events, draft))
        })
    }

    /// Counts over the whole store. What they cost does not grow with it.
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
            let next_due_unix_ms = connection
                .prepare_cached(
                    "SELECT min(due_at) FROM drafts INDEXED BY drafts_delayed \
                     WHERE state = 'pending' AND due_at > 0",
                )?
                .query_row([], |row| row.get(0))?;
            let oldest_ready_unix_ms = connection
                .prepare_cached(
                    "SELECT submitted_at FROM drafts INDEXED BY drafts_ready \
                     WHERE state = 'pending' AND due_at = 0 ORDER BY seq LIMIT 1",
                )?
                .query_row([], |row| row.get(0))
                .optional()?;
            let oldest_claim_unix_ms = connection
                .prepare_cached(
                    "SELECT min(claimed_at) FROM drafts INDEXED BY drafts_in_flight \
                     WHERE state = 'processing'",
                )?
                .query_row([], |row| row.get(0))?;
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

const RECORD_COLUMNS: &str = concat!(
    draft_columns!(),
    ", state, text_bytes, claimed_at, owner, due_at, claims, errors, crashes, defers, decision, note, \
       output, last_error_class, last_error, updated_at"
);

fn record_of(row: &Row<'_>) -> Result<DraftRecord, rusqlite::Error> {
    Ok(DraftRecord {
        seq: row.get("seq")?,
        id: row.get("id")?,
        state: row.get("state")?,
        metadata: metadata_of(row)?,
        text_bytes: row.get("text_bytes")?,
        claimed_at_unix_ms: row.get("claimed_at")?,
        owner: row.get("owner")?,
        due_at_unix_ms: Some(row.get("due_at")?).filter(|due_at| *due_at > 0),
        claims: row.get("claims")?,
        errors: row.get("errors")?,
        crashes: row.get("crashes")?,
        defers: row.get("defers")?,
        decision: row.get("decision")?,
        note: row.get("note")?,
        output: json_of(row, "output")?,
        last_error_class: row.get("last_error_class")?,
        last_error: row.get("last_error")?,
        updated_at_unix_ms: row.get("updated_at")?,
    })
}

fn event_of(row: &Row<'_>) -> Result<HistoryEvent, rusqlite::Error> {
    Ok(HistoryEvent {
        event: row.get("event")?,
        from_state: row.get("from_state")?,
        to_state: row.get("to_state")?,
        at_unix_ms: row.get("at")?,
        runner: row.get("runner")?,
        pid: row.get("pid")?,
        decision: row.get("decision")?,
        note: row.get("note")?,
        output: json_of(row, "output")?,
        error_class: row.get("error_class")?,
        error: row.get("error")?,
        repeats: row.get("repeats")?,
        by_hand: row.get("by_hand")?,
    })
}

/// JSON that was checked when it was stored.
fn json_of(row: &Row<'_>, column: &str) -> Result<Option<Box<RawValue>>, rusqlite::Error> {
    let Some(text) = row.get::<_, Option<String>>(column)? else { return Ok(None) };
    RawValue::from_string(text).map(Some).map_err(|_| {
        let position = row.as_ref().column_index(column).unwrap_or_default();
        rusqlite::Error::InvalidColumnType(position, column.to_owned(), rusqlite::types::Type::Text)
    })
}
