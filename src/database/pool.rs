//! The connections of a store: one that opening made, and a pool for the other threads.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use r2d2::{ManageConnection, Pool, PooledConnection};
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use scheduled_thread_pool::ScheduledThreadPool;

use super::busy::{self, Files, Wait};
use super::connection::{configure, harden, open_flags};
use super::error::TransactionError;
use super::file::{self, FileIdentity};
use super::in_use::{InUse, Joined};
use crate::error::LibrarianError;

/// How often a thread that waits for a connection of the pool checks whether the first is free.
const FIRST_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// How long the last use of a file that is gone from its path waits for locks.
const RETIRE_LIMIT: Duration = Duration::from_millis(200);

/// The connections to one file.
#[derive(Debug)]
pub(super) struct Connections {
    /// The connection that opening made. Most processes never need another, and the pool, which
    /// starts a thread to open one, would be a tenth of what a short command takes.
    first: Mutex<Connection>,
    others: OnceLock<Pool<Connector>>,
    limit: u32,
    last_connect_error: LastError,
    files: Arc<Files>,
    busy_timeout: Duration,
    /// Ends after the connections do.
    place: Arc<Place>,
}

/// Which file it is, and where.
#[derive(Debug)]
pub(super) struct Place {
    /// As it was given.
    named: PathBuf,
    /// All links followed.
    path: PathBuf,
    identity: FileIdentity,
    /// Says to others that the file is open here.
    _in_use: InUse,
}

impl Place {
    pub(super) fn new(named: &Path, joined: Joined) -> Self {
        let Joined { path, identity, in_use, .. } = joined;
        Self { named: named.to_owned(), path, identity, _in_use: in_use }
    }

    /// Whether the file is still there.
    fn is_current(&self) -> bool {
        file::is_at(&self.named, self.identity)
    }
}

/// A connection for as long as one thread needs it.
pub(super) enum Lease<'d> {
    First(MutexGuard<'d, Connection>),
    Pooled(PooledConnection<Connector>),
}

impl Deref for Lease<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match self {
            Self::First(connection) => connection,
            Self::Pooled(pooled) => &pooled.connection,
        }
    }
}

impl DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        match self {
            Self::First(connection) => connection,
            Self::Pooled(pooled) => &mut pooled.connection,
        }
    }
}

impl Connections {
    /// At most `limit` connections, and never fewer than two, of which `first` is one.
    pub(super) fn new(
        first: Connection,
        place: Place,
        limit: u32,
        busy_timeout: Duration,
        files: &Arc<Files>,
    ) -> Self {
        Self {
            first: Mutex::new(first),
            others: OnceLock::new(),
            limit,
            last_connect_error: LastError::default(),
            files: Arc::clone(files),
            busy_timeout,
            place: Arc::new(place),
        }
    }

    /// Fail if the file at the path is another one by now, or none.
    pub(super) fn check_current(&self) -> Result<(), TransactionError> {
        if self.place.is_current() {
            return Ok(());
        }
        let path = self.place.path.clone();
        Err(TransactionError::Ours(LibrarianError::FileReplaced { path }))
    }

    /// Wait for a free connection.
    pub(super) fn lease(&self, wait: &mut Wait) -> Result<Lease<'_>, TransactionError> {
        loop {
            match self.first.try_lock() {
                Ok(connection) => return Ok(Lease::First(connection)),
                // A panic in the middle of a transaction has rolled it back.
                Err(TryLockError::Poisoned(poisoned)) => {
                    return Ok(Lease::First(poisoned.into_inner()));
                }
                Err(TryLockError::WouldBlock) => {}
            }
            // A new one would be to the file that is there now.
            self.check_current()?;
            // Not for the whole time at once: the first may be free before one of the pool's.
            let pool = self.others.get_or_init(|| self.pool());
            if let Ok(connection) = pool.get_timeout(FIRST_CHECK_INTERVAL) {
                return Ok(Lease::Pooled(connection));
            }
            if wait.is_over() {
                break;
            }
        }
        let error = self.last_connect_error.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(match error {
            Some(error) => TransactionError::Sqlite(error),
            // All connections were in use for as long as a thread waits for a lock.
            None => wait.busy(),
        })
    }

    /// The pool of the other connections, which opens them as they are needed.
    fn pool(&self) -> Pool<Connector> {
        let connector = Connector {
            place: Arc::clone(&self.place),
            files: Arc::clone(&self.files),
            busy_timeout: self.busy_timeout,
            manager: SqliteConnectionManager::file(&self.place.path).with_flags(open_flags()),
            last_error: Arc::clone(&self.last_connect_error),
        };
        Pool::builder()
            .max_size(self.limit.saturating_sub(1).max(1))
            .min_idle(Some(0))
            // Connections live as long as the store: a timer that replaces them would only wake
            // an idle process.
            .max_lifetime(None)
            .idle_timeout(None)
            .test_on_check_out(false)
            // It opens connections, now and then; one thread is enough for that.
            .thread_pool(Arc::new(ScheduledThreadPool::builder().num_threads(1).build()))
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .build_unchecked(connector)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        let first = self.first.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Of what closing does, this takes longest; what follows the next look is to be short, since
        // SQLite leaves the -wal of a file that is moved in between as it is.
        first.flush_prepared_statement_cache();
        if !self.place.is_current() {
            retire(first, &self.files);
        }
    }
}

/// Before the last connection to a file closes that is not at its path any more: put what is in its
/// -wal into it, for it may have been moved, and leave nothing in that -wal, which may still be there
/// under the name that the next file's has.
pub(super) fn retire(connection: &Connection, files: &Arc<Files>) {
    let wait = Wait::new(files, RETIRE_LIMIT, Instant::now());
    // SQLite compares the inode as well before it removes a -wal by its name when it closes; this
    // holds for a device that is another, too.
    let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    // If it fails, another process has the file open, and does the same.
    let _ = busy::waiting(&wait, || {
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    });
}

/// A connection of the pool.
#[derive(Debug)]
pub(super) struct Pooled {
    connection: Connection,
    /// Ends after the connection does.
    _place: Arc<Place>,
}

type LastError = Arc<Mutex<Option<rusqlite::Error>>>;

/// Opens connections as the pool asks for them.
#[derive(Debug)]
pub(super) struct Connector {
    place: Arc<Place>,
    files: Arc<Files>,
    busy_timeout: Duration,
    manager: SqliteConnectionManager,
    /// r2d2 keeps a connection's error to itself and reports a time-out; this brings it back.
    last_error: LastError,
}

impl ManageConnection for Connector {
    type Connection = Pooled;
    type Error = rusqlite::Error;

    fn connect(&self) -> Result<Pooled, rusqlite::Error> {
        // On a thread of the pool, where nobody else has said how long to wait.
        let wait = Wait::new(&self.files, self.busy_timeout, Instant::now());
        let ready = busy::waiting(&wait, || {
            let connection = self.manager.connect()?;
            harden(&connection)?;
            match configure(&connection, &self.place.path, self.busy_timeout) {
                // SQLite opened what was at the path then.
                Ok(()) if !self.place.is_current() => {
                    Err(rusqlite::Error::InvalidPath(self.place.path.clone()))
                }
                Ok(()) => Ok(Pooled { connection, _place: Arc::clone(&self.place) }),
                Err(TransactionError::Sqlite(error)) => Err(error),
                // The first connection of this process passed the same checks.
                Err(TransactionError::Ours(_)) => Err(rusqlite::Error::InvalidQuery),
            }
        });
        // A success clears the last error.
        let failure = ready.as_ref().err().map(|error| match error {
            rusqlite::Error::SqliteFailure(code, text) => {
                rusqlite::Error::SqliteFailure(*code, text.clone())
            }
            _ => rusqlite::Error::InvalidQuery,
        });
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        ready
    }

    fn is_valid(&self, pooled: &mut Pooled) -> Result<(), rusqlite::Error> {
        self.manager.is_valid(&mut pooled.connection)
    }

    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        self.manager.has_broken(&mut pooled.connection)
    }
}

#[cfg(test)]
mod tests {
    use super::super::in_use;
    use super::*;

    #[test]
    fn a_waiting_thread_gets_whichever_connection_is_free_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drafts.db");
        let limit = Duration::from_secs(20);
        let joined = in_use::join(&path, true, limit).unwrap();
        let first = Connection::open(&joined.path).unwrap();
        let files = Files::new(&joined.path, joined.owner);
        let place = Place::new(&path, joined);
        let connections = Connections::new(first, place, 2, limit, &files);
        let mut wait = Wait::new(&files, limit, Instant::now());
        let mut waiting_thread = wait.clone();
        let first = connections.lease(&mut wait).unwrap();
        let pooled = connections.lease(&mut wait).unwrap();
        assert!(matches!((&first, &pooled), (Lease::First(_), Lease::Pooled(_))));
        std::thread::scope(|scope| {
            let (begun, waits) = std::sync::mpsc::channel();
            let connections = &connections;
            let waiting = scope.spawn(move || {
                begun.send(()).unwrap();
                matches!(connections.lease(&mut waiting_thread), Ok(Lease::First(_)))
            });
            waits.recv().unwrap();
            // The pool's connection stays leased for longer than anybody would wait for it.
            drop(first);
            assert!(waiting.join().unwrap());
        });
        drop(pooled);
    }

    #[test]
    fn a_connection_of_the_pool_waits_for_as_long_as_the_store_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drafts.db");
        let busy_timeout = Duration::from_millis(200);
        let joined = in_use::join(&path, true, busy_timeout).unwrap();
        let holder = Connection::open(&path).unwrap();
        holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let connector = Connector {
            files: Files::new(&joined.path, joined.owner),
            place: Arc::new(Place::new(&path, joined)),
            busy_timeout,
            manager: SqliteConnectionManager::file(&path).with_flags(open_flags()),
            last_error: LastError::default(),
        };
        let begun = Instant::now();
        // r2d2 connects on a thread of its own.
        let failed = std::thread::scope(|scope| {
            scope.spawn(|| connector.connect().is_err()).join().unwrap()
        });
        assert!(failed);
        let waited = begun.elapsed();
        assert!((busy_timeout..Duration::from_secs(3)).contains(&waited), "{waited:?}");
    }
}
