//! Opening a connection: flags, limits against a hostile file, and pragmas that are read back.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::busy::wait_for_lock;
use super::error::TransactionError;
use crate::error::LibrarianError;

/// The page cache of a connection, in KiB. A batch of moves changes more pages than fit in SQLite's
/// default of 2 MiB; those that do not fit are written to the WAL before the commit, and read back.
const CACHE_KIB: i64 = 8 * 1024;

/// The path is resolved: a link in it was created since then, and is refused.
pub(super) fn open_flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

pub(super) fn connect(path: &Path) -> Result<Connection, TransactionError> {
    let connection = Connection::open_with_flags(path, open_flags())?;
    harden(&connection)?;
    Ok(connection)
}

/// A connection that cannot write. SQLite still creates a -shm, if it can, for a -wal that no
/// process has open: it cannot read the -wal without one.
pub(super) fn connect_read_only(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags)
}

/// Protect the connection from a hostile file, and set its busy handler.
pub(super) fn harden(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_handler(Some(wait_for_lock))?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Configure a connection, and read every setting back.
pub(super) fn configure(
    connection: &Connection,
    path: &Path,
    busy_timeout: Duration,
) -> Result<(), TransactionError> {
    let started = Instant::now();
    let mode: String = loop {
        // Turning WAL on needs exclusive access for a moment, and for that SQLite does not always
        // call the busy handler. In a database that is in WAL mode already, this only reads.
        let turned = turn_wal_on(connection);
        match turned {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && started.elapsed() < busy_timeout =>
            {
                std::thread::sleep(Duration::from_micros(fastrand::u64(200..2_000)));
            }
            other => break other?,
        }
    };
    if mode != "wal" {
        return Err(wrong(path, "journal_mode", mode));
    }
    // synchronous 2 is FULL: every commit is on the disk before it is reported.
    set(connection, path, &[("synchronous", 2), ("journal_size_limit", 64 * 1024 * 1024)])?;
    configure_reading(connection, path)
}

/// Settings for every connection, also for one that cannot write.
pub(super) fn configure_reading(
    connection: &Connection,
    path: &Path,
) -> Result<(), TransactionError> {
    // temp_store 2 is memory: no draft in a temporary file. A mapped file that another process
    // truncates kills.
    let pragmas =
        [("temp_store", 2), ("mmap_size", 0), ("cell_size_check", 1), ("cache_size", -CACHE_KIB)];
    set(connection, path, &pragmas)?;
    match pragma(connection, "trusted_schema")? {
        0 => Ok(()),
        found => Err(wrong(path, "trusted_schema", found.to_string())),
    }
}

fn set(
    connection: &Connection,
    path: &Path,
    pragmas: &[(&str, i64)],
) -> Result<(), TransactionError> {
    for (name, value) in pragmas {
        connection.pragma_update(None, name, value)?;
        let found = pragma(connection, name)?;
        if found != *value {
            return Err(wrong(path, name, found.to_string()));
        }
    }
    Ok(())
}

fn wrong(path: &Path, name: &str, found: String) -> TransactionError {
    TransactionError::Ours(LibrarianError::Io {
        doing: "set up",
        path: path.to_owned(),
        source: io::Error::other(format!("SQLite keeps {name} at {found}")),
    })
}

fn turn_wal_on(connection: &Connection) -> Result<String, rusqlite::Error> {
    let mut statement = connection.prepare("PRAGMA journal_mode = WAL")?;
    let mut modes = statement.query_map([], |row| row.get(0))?;
    let mode = modes.next().ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    // The first row is the mode; the change is committed when the statement ends.
    match modes.next() {
        Some(Err(error)) => Err(error),
        _ => mode,
    }
}

pub(super) fn pragma(connection: &Connection, name: &str) -> Result<i64, rusqlite::Error> {
    // SQLite answers an mmap_size of a build without mmap, and nothing else, with no row.
    connection.pragma_query_value(None, name, |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values are repeated here, because `configure` reads a wrong value back as
    /// correct.
    #[test]
    fn a_configured_connection_is_durable_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drafts.db");
        let connection = Connection::open(&path).unwrap();
        harden(&connection).unwrap();
        configure(&connection, &path, Duration::from_secs(5)).unwrap();
        for (name, value) in [
            ("synchronous", 2),
            ("temp_store", 2),
            ("mmap_size", 0),
            ("cell_size_check", 1),
            ("trusted_schema", 0),
            ("journal_size_limit", 64 * 1024 * 1024),
        ] {
            assert_eq!(pragma(&connection, name).unwrap(), value, "{name}");
        }
        let mode: String =
            connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "wal");
        for (option, value) in [
            (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
            (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        ] {
            assert_eq!(connection.db_config(option).unwrap(), value, "{option:?}");
        }
    }

    /// SQLite reports no error for a setting that it does not take.
    #[test]
    fn a_setting_that_sqlite_does_not_take_is_an_error() {
        let path = Path::new("/d/q.db");
        let connection = Connection::open_in_memory().unwrap();
        harden(&connection).unwrap();
        let said = |result| match result {
            Err(TransactionError::Ours(error)) => error.to_string(),
            other => panic!("{other:?}"),
        };
        // There is no WAL without a file, as on a file system without shared memory.
        let no_wal = said(configure(&connection, path, Duration::ZERO));
        assert!(no_wal.contains("keeps journal_mode at memory"), "{no_wal}");
        let no_page = said(set(&connection, path, &[("page_size", 3)]));
        assert!(no_page.contains("keeps page_size at 4096"), "{no_page}");
        let directory = tempfile::tempdir().unwrap();
        let connection = Connection::open(directory.path().join("drafts.db")).unwrap();
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, true).unwrap();
        let trusted = said(configure_reading(&connection, path));
        assert!(trusted.contains("keeps trusted_schema at 1"), "{trusted}");
    }
}
