//! The store: one SQLite file of drafts. The only floor with SQL.
//!
//! | file | what it does with a draft |
//! |---|---|
//! | `intake.rs` | submits it, with others that arrive at the same time (`group.rs`) |
//! | `batches.rs` | submits it, one of very many |
//! | `claim.rs` | claims it |
//! | `finish.rs` | stores its decision or error, and moves it |
//! | `batch.rs` | does both for many in one transaction |
//! | `transition.rs` | moves it under the file version's name |
//! | `registration.rs` | registers the runner that claims it |
//! | `liveness.rs` | tests whether that runner lives |
//! | `recovery.rs` | returns it when the runner is dead |
//! | `wakeup.rs`, `new_work.rs` | wakes a waiting runner for it |
//! | `view.rs`, `columns.rs`, `counts.rs` | shows and counts it |
//! | `upkeep.rs` | requeues it for an operator |
//!
//! The SQL interface, for people who open the file themselves, is documented in
//! `migrations/0002_drafts.sql`.

pub(crate) mod batch;
pub mod batches;
pub mod claim;
mod columns;
mod counts;
pub(crate) mod finish;
mod group;
pub mod intake;
mod liveness;
pub(crate) mod new_work;
pub mod pages;
pub mod query;
pub mod recovery;
pub mod registration;
mod transition;
pub mod upkeep;
pub mod view;
pub(crate) mod wakeup;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::types::ValueRef;
use rusqlite::{Row, Transaction};
use serde::Serialize;

use crate::clock::Clock;
use crate::database::{
    Access, DEFAULT_BUSY_TIMEOUT, Database, RunnersDirectory, TransactionError, inspect,
};
use crate::draft::DEFAULT_MAX_TEXT_BYTES;
use crate::error::LibrarianError;
use crate::id::DraftId;
use crate::state::DraftState;

/// A durable store of drafts in one SQLite file. Clones share its connections; threads and
/// processes may use the same file at once.
///
/// When a call that changes something returns `Ok`, the change survives power loss (WAL with
/// `synchronous=FULL`). When it returns an error, nothing of it was changed.
///
/// A store keeps the file open that was at its path. When that file is removed, or another is put
/// in its place, whatever would write fails with [`LibrarianError::FileReplaced`], and the store
/// must be dropped and opened again: until then, no other process writes to the new file.
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
    /// When this process last looked for dead runners that hold no claim.
    idle_checked: Mutex<Option<Instant>>,
    options: StoreOptions,
}

/// How to open a store: [`DraftStore::options`].
#[derive(Debug, Clone)]
#[must_use = "options do nothing until a store is opened with them"]
pub struct StoreOptions {
    clock: Clock,
    max_text_bytes: usize,
    busy_timeout: Duration,
    connections: u32,
    create: bool,
    read_only: bool,
}

impl StoreOptions {
    /// The clock for every stamp; the system's if not given.
    pub fn clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// The longest text that is taken in, in bytes of UTF-8; 8 MiB if not given.
    pub fn max_text_bytes(self, max_text_bytes: usize) -> Self {
        Self { max_text_bytes, ..self }
    }

    /// How long a call waits for other writers before it fails as busy; 5 s if not given. The time
    /// counts from the last sign that another has written, so that a call is not given up behind a
    /// crowd that is served one after the other; but no call waits for longer than twelve times
    /// this. With zero, a call fails at once if another has the lock.
    pub fn busy_timeout(self, busy_timeout: Duration) -> Self {
        Self { busy_timeout, ..self }
    }

    /// How many threads of this process can use the store at the same moment; 4 if not given, and
    /// never less than 2. Connections are opened as they are needed.
    pub fn connections(self, connections: u32) -> Self {
        Self { connections, ..self }
    }

    /// Whether file and directories are made if they are not there; they are if not given.
    pub fn create(self, create: bool) -> Self {
        Self { create, ..self }
    }

    /// Whether the store is only to be read; see [`DraftStore::open_read_only`].
    pub fn read_only(self, read_only: bool) -> Self {
        Self { read_only, ..self }
    }

    /// Open the store at `path`; see [`DraftStore::open`].
    ///
    /// # Errors
    ///
    /// As [`DraftStore::open`] or [`DraftStore::open_read_only`]; and
    /// [`LibrarianError::NoDatabase`] if there is no file and none is to be made.
    pub fn open(self, path: impl AsRef<Path>) -> Result<DraftStore, LibrarianError> {
        let access = match (self.read_only, self.create) {
            (true, _) => Access::Read,
            (false, true) => Access::Create,
            (false, false) => Access::Write,
        };
        let database = Database::open(path.as_ref(), access, self.connections, self.busy_timeout)?;
        let runners_directory = RunnersDirectory::path_beside(database.path());
        let inner = Inner {
            database,
            runners_directory,
            group: group::Group::default(),
            idle_checked: Mutex::default(),
            options: self,
        };
        Ok(DraftStore { inner: Arc::new(inner) })
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
    /// [`LibrarianError::ReplacedFileInUse`] as long as a process has a file open that was at this
    /// path before; [`LibrarianError::Busy`], [`LibrarianError::Database`] and [`LibrarianError::Io`] as usual.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LibrarianError> {
        Self::options().open(path)
    }

    /// Options to open a store with.
    pub fn options() -> StoreOptions {
        StoreOptions {
            clock: Clock::system(),
            max_text_bytes: DEFAULT_MAX_TEXT_BYTES,
            busy_timeout: DEFAULT_BUSY_TIMEOUT,
            connections: 4,
            create: true,
            read_only: false,
        }
    }

    /// Open the store at `path` to read: to list, load, inspect and count. Nothing is made,
    /// changed or left behind, so it works on a read-only file, directory and file system, also
    /// beside runners that write.
    ///
    /// Every call sees what was committed before it. What would write fails with
    /// [`LibrarianError::ReadOnlyStore`]. Threads read one after the other. A file that was
    /// replaced is opened anew by the next call.
    ///
    /// What is in a -wal that no process has open can be read only where SQLite finds its -shm or
    /// can make one.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::NoDatabase`] if there is no file, or an empty one;
    /// [`LibrarianError::ForeignDatabase`] if it belongs to another program or a newer draftq, or if
    /// its schema is older than this one's, which only a store that writes brings up to date;
    /// [`LibrarianError::Io`] if the file or its -wal cannot be read;
    /// [`LibrarianError::ReplacedFileInUse`]; otherwise as [`open`](Self::open).
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self, LibrarianError> {
        Self::options().read_only(true).open(path)
    }

    /// Open the file that is at the path now, with the same options, but make none.
    ///
    /// # Errors
    ///
    /// As [`StoreOptions::open`]. [`LibrarianError::ReplacedFileInUse`] as long as this process or
    /// another has a store open with the file that was there before.
    pub fn reopen(&self) -> Result<Self, LibrarianError> {
        self.opener()()
    }

    /// Whether the file at the path is still the one that this store has open. If not, it was
    /// removed, or another was put in its place, and whatever would write fails with
    /// [`LibrarianError::FileReplaced`]. Costs a microsecond.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.database().is_current()
    }

    /// The database file's absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.database().path()
    }

    /// Whether the file may still be used: it has one name, its owner is as before, and nobody
    /// else can write to it or replace it. All that can change while the store is open, so each
    /// run asks again. Costs a few microseconds and opens nothing.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Untrusted`], [`LibrarianError::ForeignDatabase`] if something else is at
    /// the path, and [`LibrarianError::Io`].
    pub fn check_file(&self) -> Result<(), LibrarianError> {
        inspect(self.path()).map(|_| ())
    }

    /// The clock behind the stamps.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.inner.options.clock
    }

    /// The longest text that is taken in, in bytes of UTF-8.
    #[must_use]
    pub fn max_text_bytes(&self) -> usize {
        self.inner.options.max_text_bytes
    }

    /// What opens the file that is at this store's path then, with the same options, but makes
    /// none. To be called when the store is closed.
    pub(crate) fn opener(&self) -> impl Fn() -> Result<Self, LibrarianError> + use<> {
        let options = self.inner.options.clone().create(false);
        let named = self.database().named().to_owned();
        move || options.clone().open(&named)
    }

    /// The runners directory, if there is one.
    fn runners_directory(&self) -> Result<Option<RunnersDirectory>, LibrarianError> {
        RunnersDirectory::open(&self.inner.runners_directory, self.database().owner())
    }

    /// The runners directory, made if there is none.
    fn make_runners_directory(&self) -> Result<RunnersDirectory, LibrarianError> {
        self.database().require_writable("make the runners directory")?;
        RunnersDirectory::open_or_create(&self.inner.runners_directory, self.database().owner())
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
        self.database().write(began, doing, body)
    }

    fn now_ms(&self) -> i64 {
        self.inner.options.clock.now_ms()
    }
}

/// One legal move that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
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

/// A text that may have been damaged from outside; what is not UTF-8 in it is replaced.
fn lossy_text(row: &Row<'_>, column: &str) -> Result<String, rusqlite::Error> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
            String::from_utf8_lossy(bytes).into_owned()
        }
        _ => String::new(),
    })
}

fn tags_json(tags: &[String]) -> Result<String, LibrarianError> {
    Ok(if tags.is_empty() { "[]".to_owned() } else { serde_json::to_string(tags)? })
}

/// The state of the draft with this id, if there is one.
fn state_of(
    connection: &rusqlite::Connection,
    id: DraftId,
) -> Result<Option<DraftState>, TransactionError> {
    use rusqlite::OptionalExtension as _;
    let state = connection
        .prepare_cached("SELECT state FROM drafts WHERE id = ?1")?
        .query_row([id.to_hex()], |row| columns::get(row, "state"))
        .optional()?;
    Ok(state)
}

/// The seq of the history's last event; 0 if there is none.
fn last_event(connection: &rusqlite::Connection) -> Result<i64, TransactionError> {
    use rusqlite::OptionalExtension as _;
    let mut statement =
        connection.prepare_cached("SELECT seq FROM history ORDER BY seq DESC LIMIT 1")?;
    Ok(statement.query_row([], |row| row.get(0)).optional()?.unwrap_or(0))
}
