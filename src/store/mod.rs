//! The store: one SQLite file of drafts. The only floor with SQL.
//!
//! | file | what a draft meets there |
//! |---|---|
//! | `intake.rs` | it is submitted, with others that come at the same time (`group.rs`) |
//! | `claim.rs` | it is claimed and finished |
//! | `recovery.rs` | its runner is registered, dies, and the draft is taken back |
//! | `wakeup.rs`, `new_work.rs` | it wakes a waiting runner |
//! | `view.rs` | it is looked at, and counted (`tally.rs`) |
//! | `upkeep.rs` | an operator does something about it |
//!
//! The SQL interface, for people who open the file themselves, is documented in
//! `migrations/0001_drafts.sql`.

pub mod claim;
mod group;
pub mod intake;
mod liveness;
pub(crate) mod new_work;
pub mod recovery;
mod tally;
pub mod upkeep;
pub mod view;
pub(crate) mod wakeup;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Row, Transaction, params};

use crate::clock::{Clock, from_unix_ms};
use crate::database::{DEFAULT_BUSY_TIMEOUT, Database, TransactionError};
use crate::draft::{DEFAULT_MAX_TEXT_BYTES, Draft, DraftId, DraftMetadata, DraftSourceSurface};
use crate::error::LibrarianError;
use crate::state::{DraftProcessingDecision, DraftState};

/// How often a draft may err before recovery moves it to `failed`, unless configured otherwise.
pub const DEFAULT_MAX_ERRORS: u32 = 5;

/// A durable store of drafts in one SQLite file. Clones share its connections; threads and
/// processes may use the same file at once.
///
/// When a call that changes something returns `Ok`, the change survives power loss (WAL with
/// `synchronous=FULL`). When it returns an error, nothing of it was changed.
#[derive(Debug, Clone)]
pub struct DraftStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    /// Holds the runners' lock files and the wakeup file.
    runners_directory: PathBuf,
    group: group::Group,
    clock: Clock,
    max_text_bytes: usize,
    max_errors: u32,
}

/// How to open a store: [`DraftStore::options`].
#[derive(Debug, Clone)]
pub struct StoreOptions {
    clock: Clock,
    max_text_bytes: usize,
    max_errors: u32,
    busy_timeout: Duration,
    connections: u32,
}

impl StoreOptions {
    /// The clock for every stamp; the system's if not given.
    #[must_use]
    pub fn clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// The longest text that is taken in, in bytes of UTF-8; 8 MiB if not given.
    #[must_use]
    pub fn max_text_bytes(self, max_text_bytes: usize) -> Self {
        Self { max_text_bytes, ..self }
    }

    /// How many errors (a processor's error, the death of its runner) a draft may have before
    /// recovery moves it to `failed` instead of back to pending; 5 if not given, 0 for no limit.
    #[must_use]
    pub fn max_errors(self, max_errors: u32) -> Self {
        Self { max_errors, ..self }
    }

    /// How long a call waits for other writers before it fails as busy; 5 s if not given. The time
    /// counts from the last sign that another has written, so that a call is not given up behind a
    /// crowd that is served one after the other; but no call waits for longer than twelve times
    /// this. With zero, a call fails at once if another has the lock.
    #[must_use]
    pub fn busy_timeout(self, busy_timeout: Duration) -> Self {
        Self { busy_timeout, ..self }
    }

    /// How many threads of this process can use the store at the same moment; 4 if not given, and
    /// never less than 2. Connections are opened as they are needed.
    #[must_use]
    pub fn connections(self, connections: u32) -> Self {
        Self { connections, ..self }
    }

    /// Open the store at `path`; see [`DraftStore::open`].
    ///
    /// # Errors
    ///
    /// As [`DraftStore::open`].
    pub fn open(self, path: impl AsRef<Path>) -> Result<DraftStore, LibrarianError> {
        let database = Database::open(path.as_ref(), self.connections, self.busy_timeout)?;
        let runners_directory = runners_directory(database.path())?;
        Ok(DraftStore {
            inner: Arc::new(Inner {
                database,
                runners_directory,
                group: group::Group::default(),
                clock: self.clock,
                max_text_bytes: self.max_text_bytes,
                max_errors: self.max_errors,
            }),
        })
    }
}

impl DraftStore {
    /// Open the store at `path`. File and directories are made if they are not there, readable
    /// by their owner alone (0600, 0700); an older schema is brought up to date. Any number of
    /// processes may open a new path at once.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::CannotCreate`] if file or directory cannot be made;
    /// [`LibrarianError::ForeignDatabase`] if the file belongs to another program or a newer
    /// draftq, and [`LibrarianError::DamagedDatabase`] if it is damaged: both leave it unchanged;
    /// [`LibrarianError::Busy`], [`LibrarianError::Database`] and [`LibrarianError::Io`] as usual.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LibrarianError> {
        Self::options().open(path)
    }

    /// Options to open a store with.
    #[must_use]
    pub fn options() -> StoreOptions {
        StoreOptions {
            clock: Clock::system(),
            max_text_bytes: DEFAULT_MAX_TEXT_BYTES,
            max_errors: DEFAULT_MAX_ERRORS,
            busy_timeout: DEFAULT_BUSY_TIMEOUT,
            connections: 4,
        }
    }

    /// The database file's absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.database().path()
    }

    /// The clock behind the stamps.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// The longest text that is taken in, in bytes of UTF-8.
    #[must_use]
    pub fn max_text_bytes(&self) -> usize {
        self.inner.max_text_bytes
    }

    /// How many errors a draft may have before recovery moves it to `failed`; 0: no limit.
    #[must_use]
    pub fn max_errors(&self) -> u32 {
        self.inner.max_errors
    }

    pub(crate) fn runners_directory(&self) -> &Path {
        &self.inner.runners_directory
    }

    fn database(&self) -> &Database {
        &self.inner.database
    }

    /// Write within one transaction; see [`Database::write`].
    fn write<T>(
        &self,
        doing: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, TransactionError>,
    ) -> Result<T, LibrarianError> {
        self.write_since(Instant::now(), doing, body)
    }

    /// As [`write`](Self::write), for a caller that has waited since `began`.
    fn write_since<T>(
        &self,
        began: Instant,
        doing: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, TransactionError>,
    ) -> Result<T, LibrarianError> {
        self.database().write(began, doing, |transaction| {
            let value = body(transaction)?;
            tally::keep_up(transaction)?;
            Ok(value)
        })
    }

    fn now_ms(&self) -> i64 {
        self.inner.clock.now_ms()
    }
}

/// Beside the database itself, wherever a link to it may lie: all its runners must meet there.
fn runners_directory(database: &Path) -> Result<PathBuf, LibrarianError> {
    let mut name = fs::canonicalize(database)
        .map_err(|source| LibrarianError::Io { doing: "find", path: database.to_owned(), source })?
        .into_os_string();
    name.push("-runners");
    Ok(PathBuf::from(name))
}

/// One legal move that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftTransition {
    /// The draft that moved.
    pub id: DraftId,
    /// Where it was.
    pub from: DraftState,
    /// Where it is.
    pub to: DraftState,
}

/// The columns that make up a [`Draft`]; `drafts` is the table's name or alias in the statement.
macro_rules! draft_columns {
    () => {
        "drafts.seq AS seq, drafts.id AS id, drafts.submitted_at AS submitted_at, \
         drafts.source_surface AS source_surface, drafts.source_agent AS source_agent, \
         drafts.source_project AS source_project, drafts.operator AS operator, \
         drafts.provenance_uri AS provenance_uri, drafts.context_tags AS context_tags"
    };
}
pub(crate) use draft_columns;

/// Metadata from a row that has [`draft_columns`].
fn metadata_of(row: &Row<'_>) -> Result<DraftMetadata, rusqlite::Error> {
    Ok(DraftMetadata {
        source_surface: row.get("source_surface")?,
        source_agent: row.get("source_agent")?,
        source_project: row.get("source_project")?,
        operator: row.get("operator")?,
        provenance_uri: row.get("provenance_uri")?,
        context_tags: row.get::<_, Tags>("context_tags")?.0,
        submitted_at: from_unix_ms(row.get("submitted_at")?),
    })
}

/// A draft from a row that has [`draft_columns`] and its `raw_text`.
fn draft_of(row: &Row<'_>) -> Result<Draft, rusqlite::Error> {
    Ok(Draft::stored(row.get("id")?, row.get("raw_text")?, metadata_of(row)?))
}

/// Tags as the database keeps them: a JSON array of strings.
struct Tags(Vec<String>);

impl FromSql for Tags {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "[]" => Ok(Self(Vec::new())),
            json => serde_json::from_str(json).map(Self).map_err(|_| FromSqlError::InvalidType),
        }
    }
}

fn tags_json(tags: &[String]) -> Result<String, LibrarianError> {
    Ok(if tags.is_empty() { "[]".to_owned() } else { serde_json::to_string(tags)? })
}

impl ToSql for DraftId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.to_hex().into())
    }
}

impl FromSql for DraftId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map_err(|_| FromSqlError::InvalidType)
    }
}

impl ToSql for DraftState {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.dir_name().into())
    }
}

impl FromSql for DraftState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map_err(|_| FromSqlError::InvalidType)
    }
}

impl ToSql for DraftProcessingDecision {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for DraftProcessingDecision {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::parse(value.as_str()?).ok_or(FromSqlError::InvalidType)
    }
}

impl FromSql for DraftSourceSurface {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::parse(value.as_str()?).ok_or(FromSqlError::InvalidType)
    }
}

/// The state of the draft with this id, if there is one.
fn state_of(
    connection: &rusqlite::Connection,
    id: DraftId,
) -> Result<Option<DraftState>, TransactionError> {
    use rusqlite::OptionalExtension as _;
    let state = connection
        .prepare_cached("SELECT state FROM drafts WHERE id = ?1")?
        .query_row(params![id], |row| row.get(0))
        .optional()?;
    Ok(state)
}
