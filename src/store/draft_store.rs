//! The store and its options.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Transaction;
use serde::Serialize;

use super::group::Group;
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
/// A store keeps the file open that was at its path. When that file is removed or replaced, calls
/// that write fail with [`LibrarianError::FileReplaced`], and the store must be dropped and opened
/// again: until then, no other process writes to the new file.
#[derive(Debug, Clone)]
pub struct DraftStore {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    database: Database,
    /// Holds the runners' lock files and the wakeup file.
    pub(super) runners_directory: PathBuf,
    pub(super) group: Group,
    /// When this process last tested for dead runners that hold no claim.
    pub(super) idle_checked: Mutex<Option<Instant>>,
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
    /// The clock for every stamp; the system's if not set.
    pub fn clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// The longest text that is accepted, in bytes of UTF-8; 8 MiB if not set.
    pub fn max_text_bytes(self, max_text_bytes: usize) -> Self {
        Self { max_text_bytes, ..self }
    }

    /// How long a call waits for other writers before it fails as busy; 5 s if not set. The time
    /// counts from the last sign that another writer made progress, so that a call is not given up
    /// while a long queue is served; but no call waits for longer than twelve times this. With
    /// zero, a call fails at once if another process has the lock.
    pub fn busy_timeout(self, busy_timeout: Duration) -> Self {
        Self { busy_timeout, ..self }
    }

    /// How many threads of this process can use the store at the same moment; 4 if not set, and
    /// never less than 2. Connections are opened as they are needed.
    pub fn connections(self, connections: u32) -> Self {
        Self { connections, ..self }
    }

    /// Whether file and directories are created if they do not exist; they are if not set.
    pub fn create(self, create: bool) -> Self {
        Self { create, ..self }
    }

    /// Whether the store is opened read-only; see [`DraftStore::open_read_only`].
    pub fn read_only(self, read_only: bool) -> Self {
        Self { read_only, ..self }
    }

    /// Open the store at `path`; see [`DraftStore::open`].
    ///
    /// # Errors
    ///
    /// As [`DraftStore::open`] or [`DraftStore::open_read_only`]; and
    /// [`LibrarianError::NoDatabase`] if there is no file and none is created.
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
            group: Group::default(),
            idle_checked: Mutex::default(),
            options: self,
        };
        Ok(DraftStore { inner: Arc::new(inner) })
    }
}

impl DraftStore {
    /// Open the store at `path`. File and directories are created if they do not exist, readable by
    /// their owner alone (0600, 0700); an older schema is brought up to date. Any number of
    /// processes may open a new path at once.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::CannotCreate`] if file or directory cannot be created;
    /// [`LibrarianError::ForeignDatabase`] if the file belongs to another program or a newer
    /// draftq, and [`LibrarianError::DamagedDatabase`] if it is damaged: both leave it unchanged;
    /// [`LibrarianError::ReplacedFileInUse`] as long as a process has the previous file at this
    /// path open; [`LibrarianError::Busy`], [`LibrarianError::Database`] and
    /// [`LibrarianError::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LibrarianError> {
        Self::options().open(path)
    }

    /// Options for opening a store.
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

    /// Open the store at `path` read-only: to list, load, inspect and count. Nothing is created,
    /// changed or left behind, so it works on a read-only file, directory and file system, also
    /// beside runners that write.
    ///
    /// Every call sees everything that was committed before it. Calls that write fail with
    /// [`LibrarianError::ReadOnlyStore`]. Threads read one after the other. If the file was
    /// replaced, the next call opens the new one.
    ///
    /// The content of a -wal that no process has open can be read only if SQLite finds its -shm or
    /// can create one.
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

    /// Open the file that is at the path now, with the same options, but create none.
    ///
    /// # Errors
    ///
    /// As [`StoreOptions::open`]. [`LibrarianError::ReplacedFileInUse`] as long as this process or
    /// another has a store open with the file that was there before.
    pub fn reopen(&self) -> Result<Self, LibrarianError> {
        self.opener()()
    }

    /// Whether the file at the path is still the one that this store has open. If not, it was
    /// removed or replaced, and calls that write fail with [`LibrarianError::FileReplaced`]. Costs
    /// a microsecond.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.database().is_current()
    }

    /// The database file's absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.database().path()
    }

    /// Check that the file may still be used: it has one name, its owner is as before, and no other
    /// user can write to it or replace it. All that can change while the store is open, so each run
    /// checks again. Costs a few microseconds and opens nothing.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Untrusted`]; [`LibrarianError::ForeignDatabase`] if it is not a regular
    /// file; [`LibrarianError::Io`].
    pub fn check_file(&self) -> Result<(), LibrarianError> {
        inspect(self.path()).map(|_| ())
    }

    /// The clock behind the stamps.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.inner.options.clock
    }

    /// The longest text that is accepted, in bytes of UTF-8.
    #[must_use]
    pub fn max_text_bytes(&self) -> usize {
        self.inner.options.max_text_bytes
    }

    /// A function that opens the file at this store's path, with the same options, but creates
    /// none. It is called when the store is closed.
    pub(crate) fn opener(&self) -> impl Fn() -> Result<Self, LibrarianError> + use<> {
        let options = self.inner.options.clone().create(false);
        let named = self.database().named().to_owned();
        move || options.clone().open(&named)
    }

    /// The runners directory, if there is one.
    pub(super) fn runners_directory(&self) -> Result<Option<RunnersDirectory>, LibrarianError> {
        RunnersDirectory::open(&self.inner.runners_directory, self.database().owner())
    }

    /// The runners directory, created if there is none.
    pub(super) fn create_runners_directory(&self) -> Result<RunnersDirectory, LibrarianError> {
        self.database().require_writable("create the runners directory")?;
        RunnersDirectory::open_or_create(&self.inner.runners_directory, self.database().owner())
    }

    pub(super) fn database(&self) -> &Database {
        &self.inner.database
    }

    /// Write within one transaction; see [`Database::write`].
    pub(super) fn write<T>(
        &self,
        doing: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, TransactionError>,
    ) -> Result<T, LibrarianError> {
        self.write_since(Instant::now(), doing, body)
    }

    /// As [`write`](Self::write), for a caller that has waited since `began`.
    pub(super) fn write_since<T>(
        &self,
        began: Instant,
        doing: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, TransactionError>,
    ) -> Result<T, LibrarianError> {
        self.database().write(began, doing, body)
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.inner.options.clock.now_ms()
    }
}

/// A move of a draft.
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
