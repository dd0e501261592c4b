//! What a transaction fails with, and how an SQLite error becomes one of this crate's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::ErrorCode;

use crate::error::{DatabaseError, LibrarianError};

/// What a transaction's body fails with: SQLite's error, which is given its path and purpose
/// here, or one of ours.
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

/// Give an SQLite error its place in our taxonomy.
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
