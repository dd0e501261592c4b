//! The database file: created private, recognised before it is changed, migrated to the current
//! schema, and opened so that every commit survives power loss.
//!
//! | file | what it does |
//! |---|---|
//! | `file.rs` | creates the file and its directory, and recognises it before it is opened |
//! | `facts.rs` | what the kernel says about a file |
//! | `trust.rs` | refuses a file with two names, of another owner, or that others can write |
//! | `runners_directory.rs` | opens what is in the directory beside the file, never through a link |
//! | `in_use.rs` | keeps a file that takes another's place apart from that one's -wal |
//! | `schema.rs` | creates and migrates the schema |
//! | `connection.rs` | opens and configures one connection |
//! | `pool.rs` | leases connections to threads |
//! | `read_only.rs` | reads without writing anything |
//! | `busy.rs` | how long to wait for others' locks |
//! | `turn.rs` | the queue of writers that wait for the write lock |
//! | `error.rs` | turns an SQLite error into one of this crate's |
//!
//! Three rules hold for every use of this module. Every writing transaction takes the write lock
//! first (`BEGIN IMMEDIATE`) or is a single statement, because SQLite fails at once, whatever the
//! time-out, when a reader becomes a writer after another has written. Every pragma is read back,
//! because SQLite ignores a pragma that it does not know or cannot set. And the file is opened
//! through SQLite only: on POSIX, closing any other descriptor of it drops the locks that this
//! process holds.

mod busy;
mod connection;
mod error;
mod facts;
mod file;
mod in_use;
mod pool;
mod read_only;
mod runners_directory;
mod schema;
mod trust;
mod turn;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use self::busy::{Files, Wait};
use self::error::classify;
use self::pool::{Connections, Place, retire};
use self::read_only::Reader;
use self::turn::WriterQueue;
use crate::error::LibrarianError;

pub(crate) use self::busy::DEFAULT_BUSY_TIMEOUT;
pub(crate) use self::error::{TransactionError, is_row_fault};
pub(crate) use self::facts::{FileIdentity, Owner};
pub(crate) use self::file::inspect;
pub(crate) use self::runners_directory::RunnersDirectory;

/// The first SQLite in which two writers cannot corrupt a database in WAL mode.
const REQUIRED_SQLITE: (i32, &str) = (3_051_003, "3.51.3");

/// How often opening is tried while the file is replaced, or while root creates a file beside it.
const OPEN_TRIES: u32 = 10;

/// How a database is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// For writing; file and directory are created if there are none.
    Create,
    /// For writing, if the file exists.
    Write,
    /// For reading, if the file exists. Nothing is created or changed.
    Read,
}

/// An open database.
#[derive(Debug)]
pub(crate) struct Database {
    /// The path as it was given, but absolute.
    named: PathBuf,
    /// All links followed.
    path: PathBuf,
    owner: Owner,
    files: Arc<Files>,
    queue: WriterQueue,
    source: Source,
    busy_timeout: Duration,
}

#[derive(Debug)]
enum Source {
    Writable(Connections),
    ReadOnly(Reader),
}

impl Database {
    /// Open the database at `path`. A file that is not draftq's is not changed.
    pub(crate) fn open(
        path: &Path,
        access: Access,
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
        let named = std::path::absolute(path).map_err(|source| LibrarianError::Io {
            doing: "resolve",
            path: path.to_owned(),
            source,
        })?;
        if access == Access::Read {
            let reader = Reader::open(&named, busy_timeout)?;
            let (path, owner) = (reader.path().to_owned(), Owner::caller());
            let files = Files::new(&path, owner);
            let queue = WriterQueue::new(&files);
            let source = Source::ReadOnly(reader);
            return Ok(Self { named, path, owner, files, queue, source, busy_timeout });
        }
        let create = access == Access::Create;
        for tries in (1..=OPEN_TRIES).rev() {
            let joined = in_use::join(&named, create, busy_timeout)?;
            let (path, owner) = (joined.path.clone(), joined.owner);
            let files = Files::new(&path, owner);
            let queue = WriterQueue::new(&files);
            // A file that is in use needs no lock but for reading. The first start, and the first
            // after a crash, need exclusive access.
            let mut wait = Wait::new(&files, busy_timeout, Instant::now());
            let first = queue.run(&mut wait, || open_first(&path)).map(|(first, _turn)| first);
            if !file::is_at(&named, joined.identity) {
                // SQLite may have opened the old file or the new one; this may be the last
                // connection to the old one.
                if let Ok(first) = &first {
                    retire(first, &files);
                }
                continue;
            }
            let first = match first {
                Ok(first) => first,
                // Root may have created a -shm at this moment, and changes its owner next.
                Err(TransactionError::Sqlite(error))
                    if tries > 1 && error.sqlite_error_code() == Some(ErrorCode::CannotOpen) =>
                {
                    file::inspect(&path)?;
                    continue;
                }
                Err(error) => {
                    let error = classify(error, &path, busy_timeout, "open");
                    if matches!(error, LibrarianError::ForeignDatabase { .. }) {
                        joined.in_use.undo();
                    }
                    return Err(error);
                }
            };
            // Once more, for files that were created beside it since, and before anything is
            // stored.
            file::inspect(&path)?;
            let place = Place::new(&named, joined);
            let connections = Connections::new(first, place, connections, busy_timeout, &files);
            let source = Source::Writable(connections);
            return Ok(Self { named, path, owner, files, queue, source, busy_timeout });
        }
        Err(LibrarianError::FileReplaced { path: named })
    }

    /// The file's absolute path, all links followed.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path as it was given, but absolute.
    pub(crate) fn named(&self) -> &Path {
        &self.named
    }

    /// The owner of the file and of every file beside it.
    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    /// Whether the file at the path is still the one that is open here.
    pub(crate) fn is_current(&self) -> bool {
        match &self.source {
            Source::Writable(connections) => connections.check_current().is_ok(),
            Source::ReadOnly(reader) => reader.is_current(),
        }
    }

    /// Fail if the database was opened for reading.
    pub(crate) fn require_writable(&self, doing: &'static str) -> Result<(), LibrarianError> {
        self.connections(doing).map(|_| ())
    }

    fn connections(&self, doing: &'static str) -> Result<&Connections, LibrarianError> {
        match &self.source {
            Source::Writable(connections) => Ok(connections),
            Source::ReadOnly(_) => {
                Err(LibrarianError::ReadOnlyStore { path: self.path.clone(), doing })
            }
        }
    }

    /// Read within one transaction, so that several queries see one moment. `doing` completes
    /// "could not …". The body may be called more than once.
    pub(crate) fn read<T>(
        &self,
        doing: &'static str,
        mut body: impl FnMut(&Connection) -> Result<T, TransactionError>,
    ) -> Result<T, LibrarianError> {
        match &self.source {
            Source::Writable(connections) => self.lease(connections, doing, |connection| {
                let transaction =
                    Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
                let value = body(&transaction)?;
                transaction.commit()?;
                Ok(value)
            }),
            Source::ReadOnly(reader) => {
                reader.read(&mut body).map_err(|error| reader.explain(error, doing))
            }
        }
    }

    /// Read with one statement, which is a transaction by itself. The body may be called more than
    /// once.
    pub(crate) fn statement<T>(
        &self,
        doing: &'static str,
        mut body: impl FnMut(&Connection) -> Result<T, TransactionError>,
    ) -> Result<T, LibrarianError> {
        match &self.source {
            Source::Writable(connections) => self.lease(connections, doing, body),
            Source::ReadOnly(reader) => {
                reader.read(&mut body).map_err(|error| reader.explain(error, doing))
            }
        }
    }

    fn lease<T>(
        &self,
        connections: &Connections,
        doing: &'static str,
        mut body: impl FnMut(&Connection) -> Result<T, TransactionError>,
    ) -> Result<T, LibrarianError> {
        let mut attempt = || {
            let mut wait = self.wait(Instant::now());
            let connection = connections.lease(&mut wait)?;
            busy::waiting(&wait, || body(&connection))
        };
        attempt().map_err(|error| self.classify(error, doing))
    }

    /// Write within one transaction that holds the write lock from its start, for a caller that has
    /// waited since `began`. When this returns `Ok`, the changes survive power loss, and the file
    /// was at its path until then. Fails without writing if another version of the schema is there
    /// by now.
    pub(crate) fn write<T>(
        &self,
        began: Instant,
        doing: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, TransactionError>,
    ) -> Result<T, LibrarianError> {
        let connections = self.connections(doing)?;
        let attempt = || {
            let mut wait = self.wait(began);
            let value = {
                let connection = connections.lease(&mut wait)?;
                let immediate = TransactionBehavior::Immediate;
                let (transaction, _turn) = self
                    .queue
                    .run(&mut wait, || Ok(Transaction::new_unchecked(&connection, immediate)?))?;
                connections.check_current()?;
                schema::check_unchanged(&transaction, &self.path)?;
                let value = body(&transaction)?;
                transaction.commit()?;
                value
            };
            // A commit to a file that has been removed is lost.
            connections.check_current()?;
            Ok(value)
        };
        attempt().map_err(|error| self.classify(error, doing))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_after_the_file_is_gone_is_not_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drafts.db");
        let database = Database::open(&path, Access::Create, 2, DEFAULT_BUSY_TIMEOUT).unwrap();
        let written = database.write(Instant::now(), "write", |_| {
            std::fs::remove_file(&path).unwrap();
            Ok(())
        });
        assert!(matches!(written, Err(LibrarianError::FileReplaced { .. })), "{written:?}");
    }
}
