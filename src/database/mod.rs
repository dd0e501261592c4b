//! The database file: created private, recognised before it is touched, brought to the current
//! schema, and opened so that what is committed survives power loss.
//!
//! | file | what it does |
//! |---|---|
//! | `file.rs` | creates the file and its directory, and recognises it before it is opened |
//! | `trust.rs` | refuses a file with two names, of another owner, or that others can write |
//! | `runners_directory.rs` | opens what is in the directory beside the file, never through a link |
//! | `schema.rs` | creates and migrates the schema |
//! | `connection.rs` | opens and configures one connection |
//! | `pool.rs` | leases connections to threads |
//! | `busy.rs` | how long to wait for others' locks |
//! | `turn.rs` | the queue of writers that wait for the write lock |
//! | `error.rs` | turns an SQLite error into one of this crate's |
//!
//! Three rules hold for everything that uses this module. Every writing transaction takes the
//! write lock first (`BEGIN IMMEDIATE`) or is a single statement, because SQLite fails at once,
//! whatever the time-out, when a reader becomes a writer after another has written. Every pragma is
//! read back, because SQLite ignores one that it does not know or cannot obey. And the file is
//! opened through SQLite only: on POSIX, closing any other descriptor of it drops the locks that
//! this process holds.

mod busy;
mod connection;
mod error;
mod file;
mod pool;
mod runners_directory;
mod schema;
mod trust;
mod turn;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Transaction, TransactionBehavior};

use self::busy::{Files, Wait};
use self::error::classify;
use self::pool::Connections;
use self::turn::WriterQueue;
use crate::error::LibrarianError;

pub(crate) use self::busy::DEFAULT_BUSY_TIMEOUT;
pub(crate) use self::error::TransactionError;
pub(crate) use self::file::inspect;
pub(crate) use self::runners_directory::RunnersDirectory;
pub(crate) use self::trust::Owner;

/// The first SQLite in which two writers cannot corrupt a database in WAL mode.
const REQUIRED_SQLITE: (i32, &str) = (3_051_003, "3.51.3");

/// An open database.
#[derive(Debug)]
pub(crate) struct Database {
    path: PathBuf,
    owner: Owner,
    files: Arc<Files>,
    queue: WriterQueue,
    connections: Connections,
    busy_timeout: Duration,
}

impl Database {
    /// Open the database at `path`, making file and directory if there are none (0600, 0700).
    /// A file that is not draftq's is left as it is, to the byte.
    pub(crate) fn open(
        path: &Path,
        connections: u32,
        busy_timeout: Duration,
    ) -> Result<Self, LibrarianError> {
        if rusqlite::version_number() < REQUIRED_SQLITE.0 {
            return Err(LibrarianError::SqliteTooOld {
                found: rusqlite::version(),
                required: REQUIRED_SQLITE.1,
            });
        }
        // An absolute path also keeps SQLite from reading a leading `file:` as a URI.
        let path = std::path::absolute(path).map_err(|source| LibrarianError::Io {
            doing: "resolve",
            path: path.to_owned(),
            source,
        })?;
        let (path, owner) = file::create_private(&path)?;
        file::recognise(&path)?;
        let files = Files::new(&path, owner);
        let queue = WriterQueue::new(&files);
        // A file that is there and in use needs no lock but for reading. The first start, and
        // the first after a crash, need the file for themselves.
        let mut wait = Wait::new(&files, busy_timeout, Instant::now());
        let (first, _turn) = queue
            .run(&mut wait, || open_first(&path))
            .map_err(|error| classify(error, &path, busy_timeout, "open"))?;
        // Once more, for what was put beside the file since, and before anything is stored.
        file::inspect(&path)?;
        let connections = Connections::new(first, &path, connections, busy_timeout, &files);
        Ok(Self { path, owner, files, queue, connections, busy_timeout })
    }

    /// The file's absolute path, all links followed.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// To whom the file belongs, and everything beside it.
    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    /// Read within one transaction, so that several queries see one moment. `doing` completes
    /// "could not …".
    pub(crate) fn read<T>(
        &self,
        doing: &'static str,
        body: impl FnOnce(&Connection) -> Result<T, TransactionError>,
    ) -> Result<T, LibrarianError> {
        self.statement(doing, |connection| {
            let transaction =
                Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
            let value = body(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
    }

    /// Read with one statement, which is a transaction by itself.
    pub(crate) fn statement<T>(
        &self,
        doing: &'static str,
        body: impl FnOnce(&Connection) -> Result<T, TransactionError>,
    ) -> Result<T, LibrarianError> {
        let attempt = || {
            let mut wait = self.wait(Instant::now());
            let connection = self.connections.lease(&mut wait)?;
            busy::waiting(&wait, || body(&connection))
        };
        attempt().map_err(|error| self.classify(error, doing))
    }

    /// Write within one transaction that holds the write lock from its start, for a caller that
    /// has waited since `began`. When this returns `Ok`, what was written survives power loss.
    pub(crate) fn write<T>(
        &self,
        began: Instant,
        doing: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, TransactionError>,
    ) -> Result<T, LibrarianError> {
        let attempt = || {
            let mut wait = self.wait(began);
            let connection = self.connections.lease(&mut wait)?;
            let immediate = TransactionBehavior::Immediate;
            let (transaction, _turn) = self
                .queue
                .run(&mut wait, || Ok(Transaction::new_unchecked(&connection, immediate)?))?;
            let value = body(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        attempt().map_err(|error| self.classify(error, doing))
    }

    /// Write with one statement, which is a transaction by itself, and with what belongs to it.
    /// `body` is called again if it fails as busy, and must have changed nothing then. When this
    /// returns `Ok`, what was written survives power loss.
    pub(crate) fn write_statement<T>(
        &self,
        began: Instant,
        doing: &'static str,
        mut body: impl FnMut(&Connection) -> Result<T, TransactionError>,
    ) -> Result<T, LibrarianError> {
        let mut attempt = || {
            let mut wait = self.wait(began);
            let connection = self.connections.lease(&mut wait)?;
            let (value, _turn) = self.queue.run(&mut wait, || body(&connection))?;
            Ok(value)
        };
        attempt().map_err(|error| self.classify(error, doing))
    }

    /// How long a call waits before it fails as busy, if nobody else makes progress.
    pub(crate) fn busy_timeout(&self) -> Duration {
        self.busy_timeout
    }

    fn wait(&self, began: Instant) -> Wait {
        Wait::new(&self.files, self.busy_timeout, began)
    }

    fn classify(&self, error: TransactionError, doing: &'static str) -> LibrarianError {
        classify(error, &self.path, self.busy_timeout, doing)
    }
}

/// Open the connection that creates or migrates the schema. It does not wait for locks.
fn open_first(path: &Path) -> Result<Connection, TransactionError> {
    let mut connection = connection::connect(path)?;
    // The newest version may be in the WAL, where `recognise` does not see it. A file that is
    // refused for it must not be checkpointed when this connection closes.
    let checkpoint = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    connection.set_db_config(checkpoint, true)?;
    schema::migrate(&mut connection, path)?;
    connection.set_db_config(checkpoint, false)?;
    connection::configure(&connection, path, Duration::ZERO)?;
    Ok(connection)
}
