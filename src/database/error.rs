//! The error of a transaction, and its conversion to an error of this crate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::ErrorCode;

use crate::error::{DatabaseError, LibrarianError};

/// The error of a transaction's body: SQLite's, to which `classify` adds path and purpose, or one
/// of this crate.
#[derive(Debug)]
pub(crate) enum TransactionError {
    Sqlite(rusqlite::Error),
    Ours(LibrarianError),
}

impl From<rusqlite::Error> for TransactionError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<LibrarianError> for TransactionError {
    fn from(error: LibrarianError) -> Self {
        Self::Ours(error)
    }
}

/// Convert an SQLite error to one of this crate's.
pub(super) fn classify(
    error: TransactionError,
    path: &Path,
    busy_timeout: Duration,
    doing: &'static str,
) -> LibrarianError {
    let source = match error {
        TransactionError::Ours(error) => return error,
        TransactionError::Sqlite(error) => error,
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
            source => LibrarianError::Database { path, doing, source: DatabaseError::new(source) },
        },
    }
}

fn not_sqlite(path: PathBuf) -> LibrarianError {
    LibrarianError::ForeignDatabase {
        path,
        reason: "it is not an SQLite database; name another file with --db".to_owned(),
    }
}

/// Whether a statement failed because of the values in a row, so that it fails each time. SQLite
/// undoes the statement and keeps the transaction.
pub(crate) fn is_row_fault(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig)
    )
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn each_failure_of_sqlite_is_named_for_what_can_be_done() {
        use rusqlite::ffi;
        let kind = |code| {
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            match classify(error.into(), Path::new("/d/q.db"), Duration::ZERO, "read") {
                LibrarianError::Busy { .. } => "busy",
                LibrarianError::DamagedDatabase { .. } => "damaged",
                LibrarianError::ForeignDatabase { .. } => "foreign",
                LibrarianError::Database { .. } => "another",
                error => panic!("{error:?}"),
            }
        };
        for (code, expected) in [
            (ffi::SQLITE_BUSY, "busy"),
            (ffi::SQLITE_BUSY_SNAPSHOT, "busy"),
            (ffi::SQLITE_LOCKED, "busy"),
            (ffi::SQLITE_PROTOCOL, "busy"),
            (ffi::SQLITE_CORRUPT, "damaged"),
            (ffi::SQLITE_NOTADB, "foreign"),
            (ffi::SQLITE_FULL, "another"),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
        let error = rusqlite::Error::IntegralValueOutOfRange(0, 5);
        let error = classify(error.into(), Path::new("/d/q.db"), Duration::ZERO, "read");
        assert!(matches!(error, LibrarianError::DamagedDatabase { .. }), "{error:?}");
    }

    /// Of a fault of a row, the other rows are kept apart; a fault of the database is one of all.
    #[test]
    fn a_fault_of_a_row_is_told_from_one_of_the_database() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT CHECK (v <> '')) STRICT")
            .unwrap();
        for (sql, of_the_row) in [
            ("INSERT INTO t (v) VALUES ('')", true),
            ("INSERT INTO t (v) VALUES (x'00')", true),
            ("INSERT INTO t (k) VALUES ('no number')", true),
            ("INSERT INTO t (v) VALUES (zeroblob(2000000000))", true),
            ("INSERT INTO t (v) VALUES (abs(-9223372036854775807 - 1))", false),
            ("INSERT INTO nowhere (v) VALUES ('a')", false),
        ] {
            let error = connection.execute(sql, []).unwrap_err();
            assert_eq!(is_row_fault(&error), of_the_row, "{sql}: {error}");
        }
    }
}
