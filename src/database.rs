//! The file: made private, recognised before it is touched, brought to the current schema, and
//! opened so that what is committed survives power loss.
//!
//! Three rules hold everywhere above this floor. Every writing transaction takes the write lock
//! first (`BEGIN IMMEDIATE`) or is a single statement, because SQLite fails at once, whatever the
//! timeout, when a reader turns writer behind another's back. Every pragma is read back, because SQLite passes over one
//! that it does not know or cannot obey. And the file is opened through SQLite only: on POSIX,
//! closing any other descriptor of it drops the locks that this process holds.

use std::cell::Cell;
use std::fs;
use std::io::{self, Read as _};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use r2d2::{ManageConnection, Pool, PooledConnection};
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use scheduled_thread_pool::ScheduledThreadPool;

use crate::error::LibrarianError;

/// Marks the file as draftq's: "drfq" in ASCII.
const APPLICATION_ID: i32 = 0x6472_6671;

/// The migrations in order; the schema's version is how many of them were applied.
const MIGRATIONS: [&str; 1] = [include_str!("../migrations/0001_drafts.sql")];

/// The first SQLite in which two writers cannot corrupt a database in WAL mode.
const REQUIRED_SQLITE: (i32, &str) = (3_051_003, "3.51.3");

/// How long a connection waits for others' locks unless it is configured otherwise.
pub(crate) const DEFAULT_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a thread that waits for a connection of the pool looks whether the first is free.
const LOOK_AT_FIRST: Duration = Duration::from_millis(10);

/// A connection's page cache, in KiB. A batch of moves touches more than SQLite's 2 MiB; what does
/// not fit is written to the WAL before the commit, and read back.
const CACHE_KIB: i64 = 8 * 1024;

/// The current schema's version.
fn schema_version() -> i64 {
    // There are never 2^63 migrations.
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// An open database: a connection to the file, and more where several threads use it at once.
#[derive(Debug)]
pub(crate) struct Database {
    path: PathBuf,
    /// The connection that opening made. Most processes never need another, and the pool, which
    /// starts a thread to open one, would be a tenth of what a short command takes.
    first: Mutex<Connection>,
    more: OnceLock<Pool<Connector>>,
    connections: u32,
    last_connect_error: LastError,
    busy_timeout: Duration,
}

/// A connection for as long as one thread needs it.
enum Lease<'d> {
    First(MutexGuard<'d, Connection>),
    Pooled(PooledConnection<Connector>),
}

impl Deref for Lease<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match self {
            Self::First(connection) => connection,
            Self::Pooled(connection) => connection,
        }
    }
}

impl DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        match self {
            Self::First(connection) => connection,
            Self::Pooled(connection) => connection,
        }
    }
}

/// What a transaction's body fails with: SQLite's error, which is given its path and purpose
/// here, or one of ours.
#[derive(Debug)]
pub(crate) enum Fault {
    Sqlite(rusqlite::Error),
    Ours(LibrarianError),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<LibrarianError> for Fault {
    fn from(error: LibrarianError) -> Self {
        Self::Ours(error)
    }
}

type LastError = Arc<Mutex<Option<rusqlite::Error>>>;

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
        create_private(&path)?;
        recognise(&path)?;
        WAIT_LIMIT.set(busy_timeout);
        let first = connect(&path)
            .and_then(|mut connection| {
                // The newest version may stand in the WAL, where `recognise` does not see it. A
                // file that is refused for it is not checkpointed in passing.
                let checkpoint = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
                connection.set_db_config(checkpoint, true)?;
                migrate(&mut connection, &path)?;
                connection.set_db_config(checkpoint, false)?;
                configure(&connection, &path, busy_timeout)?;
                Ok(connection)
            })
            .map_err(|fault| settle(fault, &path, busy_timeout, "open"))?;

        Ok(Self {
            path,
            first: Mutex::new(first),
            more: OnceLock::new(),
            connections,
            last_connect_error: LastError::default(),
            busy_timeout,
        })
    }

    /// The file's absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Read within one transaction, so that several queries see one moment. `doing` completes
    /// "could not …".
    pub(crate) fn read<T>(
        &self,
        doing: &'static str,
        body: impl FnOnce(&Connection) -> Result<T, Fault>,
    ) -> Result<T, LibrarianError> {
        self.transact(doing, TransactionBehavior::Deferred, |transaction| body(transaction))
    }

    /// Write within one transaction that holds the write lock from its start. When this returns
    /// `Ok`, what was written survives power loss.
    pub(crate) fn write<T>(
        &self,
        doing: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<T, LibrarianError> {
        self.transact(doing, TransactionBehavior::Immediate, body)
    }

    fn transact<T>(
        &self,
        doing: &'static str,
        behavior: TransactionBehavior,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<T, LibrarianError> {
        let attempt = || -> Result<T, Fault> {
            let mut connection = self.connection()?;
            let transaction = connection.transaction_with_behavior(behavior)?;
            let value = body(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        attempt().map_err(|fault| self.settle(fault, doing))
    }

    /// One statement by itself is a transaction by itself.
    pub(crate) fn statement<T>(
        &self,
        doing: &'static str,
        body: impl FnOnce(&Connection) -> Result<T, Fault>,
    ) -> Result<T, LibrarianError> {
        let attempt = || body(&*self.connection()?);
        attempt().map_err(|fault| self.settle(fault, doing))
    }

    fn connection(&self) -> Result<Lease<'_>, Fault> {
        WAIT_LIMIT.set(self.busy_timeout);
        let begun = Instant::now();
        loop {
            match self.first.try_lock() {
                Ok(connection) => return Ok(Lease::First(connection)),
                // A panic in the middle of a transaction has rolled it back.
                Err(TryLockError::Poisoned(poisoned)) => {
                    return Ok(Lease::First(poisoned.into_inner()));
                }
                Err(TryLockError::WouldBlock) => {}
            }
            // Not for all the time at once: the first may be free before one of the pool's.
            let pool = self.more.get_or_init(|| self.pool());
            if let Ok(connection) = pool.get_timeout(LOOK_AT_FIRST) {
                return Ok(Lease::Pooled(connection));
            }
            if begun.elapsed() >= self.busy_timeout {
                break;
            }
        }
        let error = self.last_connect_error.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(match error {
            Some(error) => Fault::Sqlite(error),
            // All connections were in use for as long as one waits for a lock.
            None => Fault::Ours(LibrarianError::Busy {
                path: self.path.clone(),
                waited: self.busy_timeout,
            }),
        })
    }

    /// The pool of the other connections, which opens them as they are needed.
    fn pool(&self) -> Pool<Connector> {
        let connector = Connector {
            path: self.path.clone(),
            busy_timeout: self.busy_timeout,
            manager: SqliteConnectionManager::file(&self.path).with_flags(open_flags()),
            last_error: Arc::clone(&self.last_connect_error),
        };
        Pool::builder()
            .max_size(self.connections.saturating_sub(1).max(1))
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

    fn settle(&self, fault: Fault, doing: &'static str) -> LibrarianError {
        settle(fault, &self.path, self.busy_timeout, doing)
    }
}

/// Give an SQLite error its place in our taxonomy.
fn settle(
    fault: Fault,
    path: &Path,
    busy_timeout: Duration,
    doing: &'static str,
) -> LibrarianError {
    let source = match fault {
        Fault::Ours(error) => return error,
        Fault::Sqlite(error) => error,
    };
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::FileLockingProtocolFailed,
        ) => LibrarianError::Busy { path, waited: busy_timeout },
        Some(ErrorCode::DatabaseCorrupt) => {
            LibrarianError::DamagedDatabase { path, reason: source.to_string() }
        }
        Some(ErrorCode::NotADatabase) => not_sqlite(path),
        _ => match source {
            // Values that the schema's CHECKs and STRICT cannot have let in.
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..) => {
                let reason = format!("a stored value cannot be read while trying to {doing}");
                LibrarianError::DamagedDatabase { path, reason }
            }
            source => LibrarianError::Database { path, doing, source },
        },
    }
}

fn not_sqlite(path: PathBuf) -> LibrarianError {
    LibrarianError::ForeignDatabase {
        path,
        reason: "it is not an SQLite database; name another file with --db".to_owned(),
    }
}

/// Opens connections as the pool asks for them.
#[derive(Debug)]
struct Connector {
    path: PathBuf,
    busy_timeout: Duration,
    manager: SqliteConnectionManager,
    /// r2d2 keeps a connection's error to itself and reports a time-out; this brings it back.
    last_error: LastError,
}

impl ManageConnection for Connector {
    type Connection = Connection;
    type Error = rusqlite::Error;

    fn connect(&self) -> Result<Connection, rusqlite::Error> {
        let ready = self.manager.connect().and_then(|connection| {
            harden(&connection)?;
            match configure(&connection, &self.path, self.busy_timeout) {
                Ok(()) => Ok(connection),
                Err(Fault::Sqlite(error)) => Err(error),
                // The first connection of this process passed the same checks.
                Err(Fault::Ours(_)) => Err(rusqlite::Error::InvalidQuery),
            }
        });
        // Of what went wrong earlier and is mended nobody should be told.
        let failure = ready.as_ref().err().map(|error| match error {
            rusqlite::Error::SqliteFailure(code, text) => {
                rusqlite::Error::SqliteFailure(*code, text.clone())
            }
            _ => rusqlite::Error::InvalidQuery,
        });
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        ready
    }

    fn is_valid(&self, connection: &mut Connection) -> Result<(), rusqlite::Error> {
        self.manager.is_valid(connection)
    }

    fn has_broken(&self, connection: &mut Connection) -> bool {
        self.manager.has_broken(connection)
    }
}

fn open_flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// Make the file and its directory, readable and writable by their owner alone.
fn create_private(path: &Path) -> Result<(), LibrarianError> {
    // Closing a descriptor drops this process's locks on the file, so between the making and the
    // closing no other thread may have opened it through SQLite.
    static CREATING: Mutex<()> = Mutex::new(());
    let _alone = CREATING.lock().unwrap_or_else(PoisonError::into_inner);

    let cannot = |path: &Path| {
        let path = path.to_owned();
        move |source| LibrarianError::CannotCreate { path, source }
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => return Ok(()),
        Ok(_) => {
            return Err(LibrarianError::ForeignDatabase {
                path: path.to_owned(),
                reason: "it is not a regular file; name another with --db".to_owned(),
            });
        }
        Err(source) if path.is_symlink() => return Err(cannot(path)(source)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(LibrarianError::Io { doing: "open", path: path.to_owned(), source });
        }
    }
    if let Some(directory) = path.parent() {
        make_private_directory(directory).map_err(cannot(directory))?;
    }
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        // Another process was first.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(cannot(path)(source)),
    }
}

/// Make a directory, and those above it, for their owner alone.
pub(crate) fn make_private_directory(directory: &Path) -> Result<(), io::Error> {
    let missing: Vec<&Path> =
        directory.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // SQLite makes the file's entry in its directory durable, but not the directory's entry in
    // its parent. As SQLite does, go on where a directory cannot be opened or synced.
    for parent in missing.into_iter().filter_map(Path::parent) {
        let _ = fs::File::open(parent).and_then(|parent| parent.sync_all());
    }
    Ok(())
}

/// Look at the file's header before anything could change the file: an ordinary connection to a
/// foreign database would replay its journal or check its WAL in. An immutable one takes no lock
/// and writes nothing, and its descriptor is known to SQLite.
fn recognise(path: &Path) -> Result<(), LibrarianError> {
    let length = fs::metadata(path).map(|metadata| metadata.len());
    if length.is_ok_and(|length| length == 0) {
        // New, or another process is about to fill it.
        return Ok(());
    }
    let look = || -> Result<(i64, i64), rusqlite::Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(immutable_uri(path), flags)?;
        // In the middle of another process's first start or checkpoint, or of one that was cut
        // off, the file is shorter than its header says. This makes SQLite read the header all
        // the same.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
        connection.pragma_update(None, "writable_schema", true)?;
        // One transaction, so that both are of one moment.
        let transaction = connection.transaction()?;
        Ok((pragma(&transaction, "application_id")?, pragma(&transaction, "user_version")?))
    };
    match look() {
        Ok((application_id, version)) => check_header(path, application_id, version),
        Err(_) if journal_undoes_all(path) => Ok(()),
        Err(error) => Err(settle(error.into(), path, DEFAULT_BUSY_TIMEOUT, "open")),
    }
}

/// Whether the file has a journal that leaves nothing of it: a first start was cut off by a power
/// failure, which may have left no more than zeros. SQLite's locks are not on the journal, so it
/// may be opened. Any other journal beside a file that is not SQLite's is not to be touched.
fn journal_undoes_all(path: &Path) -> bool {
    // The format's magic; then how many pages there were before, in bytes 16 to 20.
    const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    let mut name = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).into_os_string();
    name.push("-journal");
    let mut header = [0; 20];
    let read = fs::File::open(name).and_then(|mut journal| journal.read_exact(&mut header));
    read.is_ok() && header.starts_with(&MAGIC) && header.ends_with(&[0; 4])
}

fn check_header(path: &Path, application_id: i64, version: i64) -> Result<(), LibrarianError> {
    let foreign = |reason| Err(LibrarianError::ForeignDatabase { path: path.to_owned(), reason });
    if application_id != i64::from(APPLICATION_ID) {
        return foreign(
            "it is the SQLite database of another program; name another file with --db".to_owned(),
        );
    }
    if version > schema_version() {
        return foreign(format!(
            "its schema is version {version} and this draftq knows up to {}; use a newer draftq",
            schema_version()
        ));
    }
    if version < 1 {
        return foreign(format!("its schema version {version} is none of draftq's"));
    }
    Ok(())
}

fn immutable_uri(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri.push_str("?immutable=1");
    uri
}

fn connect(path: &Path) -> Result<Connection, Fault> {
    let connection = Connection::open_with_flags(path, open_flags())?;
    harden(&connection)?;
    Ok(connection)
}

/// What a hostile file must not be able to do, and how long to wait for others.
fn harden(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_handler(Some(wait_for_lock))?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Create the schema in a new file, or bring an older one up to date. Any number of processes
/// may do this at once: the version is read under the write lock, so one does it and the others
/// find it done.
fn migrate(connection: &mut Connection, path: &Path) -> Result<(), Fault> {
    let version = pragma(connection, "user_version")?;
    if version == schema_version() {
        check_header(path, pragma(connection, "application_id")?, version)?;
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut version = pragma(&transaction, "user_version")?;
    let is_new = version == 0 && pragma(&transaction, "application_id")? == 0 && {
        let objects: i64 =
            transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        objects == 0
    };
    if is_new {
        // The file may have been there, empty, with whatever mode.
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(path, private).map_err(|source| LibrarianError::Io {
            doing: "make private",
            path: path.to_owned(),
            source,
        })?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    } else {
        check_header(path, pragma(&transaction, "application_id")?, version)?;
    }
    for migration in &MIGRATIONS[usize::try_from(version).unwrap_or(MIGRATIONS.len())..] {
        transaction.execute_batch(migration)?;
        version += 1;
    }
    transaction.pragma_update(None, "user_version", version)?;
    transaction.commit()?;
    check_header(path, pragma(connection, "application_id")?, pragma(connection, "user_version")?)?;
    Ok(())
}

/// Set what a connection needs, and read it back.
fn configure(connection: &Connection, path: &Path, busy_timeout: Duration) -> Result<(), Fault> {
    let begun = Instant::now();
    let mode: String = loop {
        // Turning WAL on wants the file alone for a moment, and for that SQLite does not always
        // call the busy handler. Once on, it stays on, and this only reads.
        let turned = turn_wal_on(connection);
        match turned {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && begun.elapsed() < busy_timeout =>
            {
                std::thread::sleep(Duration::from_micros(fastrand::u64(200..2_000)));
            }
            other => break other?,
        }
    };
    let wrong = |name: &str, found: String| -> Fault {
        Fault::Ours(LibrarianError::Io {
            doing: "set up",
            path: path.to_owned(),
            source: io::Error::other(format!("SQLite keeps {name} at {found}")),
        })
    };
    if mode != "wal" {
        return Err(wrong("journal_mode", mode));
    }
    // synchronous 2 is FULL: every commit is on the disk before it is reported. temp_store 2 is
    // memory: no draft in a temporary file. A mapped file that another process truncates kills.
    for (name, value) in [
        ("synchronous", 2),
        ("temp_store", 2),
        ("mmap_size", 0),
        ("cell_size_check", 1),
        ("journal_size_limit", 64 * 1024 * 1024),
        ("cache_size", -CACHE_KIB),
    ] {
        connection.pragma_update(None, name, value)?;
        let found = pragma(connection, name)?;
        if found != value {
            return Err(wrong(name, found.to_string()));
        }
    }
    match pragma(connection, "trusted_schema")? {
        0 => Ok(()),
        found => Err(wrong("trusted_schema", found.to_string())),
    }
}

fn turn_wal_on(connection: &Connection) -> Result<String, rusqlite::Error> {
    let mut statement = connection.prepare("PRAGMA journal_mode = WAL")?;
    let mut modes = statement.query_map([], |row| row.get(0))?;
    let mode = modes.next().ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    // The mode is told first; then the statement ends, and with that the change is committed.
    match modes.next() {
        Some(Err(error)) => Err(error),
        _ => mode,
    }
}

fn pragma(connection: &Connection, name: &str) -> Result<i64, rusqlite::Error> {
    // SQLite answers an mmap_size of a build without mmap, and nothing else, with no row.
    connection.pragma_query_value(None, name, |row| row.get(0))
}

thread_local! {
    /// How long the connection in this thread's hands may wait, and since when it has been
    /// waiting: SQLite hands a busy handler no more than a count.
    static WAIT_LIMIT: Cell<Duration> = const { Cell::new(DEFAULT_BUSY_TIMEOUT) };
    static WAITING_SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A busy handler: wait for others' locks, less the longer it has lasted.
///
/// SQLite's own handler waits longer each time, so that who has waited long looks seldom and
/// starves behind newcomers who look often. This one turns that round: the first looks are a
/// millisecond apart, later ones closer, so that age wins. The jitter keeps two waiters from
/// looking in step.
fn wait_for_lock(count: i32) -> bool {
    let now = Instant::now();
    let since = WAITING_SINCE.get().filter(|_| count > 0).unwrap_or(now);
    WAITING_SINCE.set(Some(since));
    let waited = now.duration_since(since);
    if waited >= WAIT_LIMIT.get() {
        return false;
    }
    let micros = match waited.as_millis() {
        0..5 => 1_000,
        5..20 => 500,
        20..100 => 250,
        _ => 100,
    };
    std::thread::sleep(Duration::from_micros(micros / 2 + fastrand::u64(0..micros)));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_connection_gets_whichever_is_free_first() {
        let directory = tempfile::tempdir().unwrap();
        let patience = Duration::from_secs(20);
        let database = Database::open(&directory.path().join("drafts.db"), 2, patience).unwrap();
        let first = database.connection().unwrap();
        let pooled = database.connection().unwrap();
        assert!(matches!((&first, &pooled), (Lease::First(_), Lease::Pooled(_))));
        std::thread::scope(|scope| {
            let (begun, waits) = std::sync::mpsc::channel();
            let database = &database;
            let waiting = scope.spawn(move || {
                begun.send(()).unwrap();
                matches!(database.connection(), Ok(Lease::First(_)))
            });
            waits.recv().unwrap();
            // The pool's stays where it is for as long as anybody would wait for it.
            drop(first);
            assert!(waiting.join().unwrap());
        });
        drop(pooled);
    }
}
