//! The schema: recognised by its application id and version, created, and migrated.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::connection::pragma;
use super::error::TransactionError;
use crate::error::LibrarianError;

/// Marks the file as draftq's: "drfq" in ASCII.
const APPLICATION_ID: i32 = 0x6472_6671;

/// The migrations in order; the schema's version is how many of them were applied.
const MIGRATIONS: [&str; 1] = [include_str!("../../migrations/0001_drafts.sql")];

/// The current schema's version.
fn schema_version() -> i64 {
    // There are never 2^63 migrations.
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

pub(super) fn check_header(
    path: &Path,
    application_id: i64,
    version: i64,
) -> Result<(), LibrarianError> {
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

/// Whether nothing at all is in the file.
fn is_new(connection: &Connection, version: i64) -> Result<bool, rusqlite::Error> {
    if version != 0 || pragma(connection, "application_id")? != 0 {
        return Ok(false);
    }
    connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))
}

/// For a connection that cannot migrate: the schema is exactly the current one. `in_the_making`
/// says that another process may be about to make it.
pub(super) fn require_current(
    path: &Path,
    connection: &Connection,
    in_the_making: bool,
) -> Result<(), TransactionError> {
    let version = pragma(connection, "user_version")?;
    if in_the_making && is_new(connection, version)? {
        return Err(LibrarianError::NoDatabase { path: path.to_owned() }.into());
    }
    check_header(path, pragma(connection, "application_id")?, version)?;
    Ok(check_age(path, version, schema_version())?)
}

fn check_age(path: &Path, version: i64, current: i64) -> Result<(), LibrarianError> {
    if version < current {
        return Err(LibrarianError::ForeignDatabase {
            path: path.to_owned(),
            reason: format!(
                "its schema is version {version} and this draftq reads {current}; the next command \
                 that writes, such as `draftq submit`, brings it up to date"
            ),
        });
    }
    Ok(())
}

/// Within a transaction that holds the write lock: nobody has brought the schema to another version
/// since it was opened. About a microsecond.
pub(super) fn check_unchanged(
    connection: &Connection,
    path: &Path,
) -> Result<(), TransactionError> {
    let version: i64 =
        connection.prepare_cached("PRAGMA user_version")?.query_row([], |row| row.get(0))?;
    if version == schema_version() {
        return Ok(());
    }
    Err(TransactionError::Ours(LibrarianError::ForeignDatabase {
        path: path.to_owned(),
        reason: format!(
            "its schema became version {version} while this draftq, which knows {}, had it open; \
             nothing was written; use the draftq that changed it",
            schema_version()
        ),
    }))
}

/// Create the schema in a new file, or bring an older one up to date. Any number of processes
/// may do this at once: the version is read under the write lock, so one does it and the others
/// find it done.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), TransactionError> {
    let version = pragma(connection, "user_version")?;
    if version == schema_version() {
        check_header(path, pragma(connection, "application_id")?, version)?;
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut version = pragma(&transaction, "user_version")?;
    if is_new(&transaction, version)? {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_schema_is_not_read() {
        let path = Path::new("/d/q.db");
        let error = check_age(path, 1, 2).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::ForeignDatabase);
        let message = error.to_string();
        assert!(message.contains("version 1") && message.contains("draftq submit"), "{message}");
        assert!(check_age(path, 2, 2).is_ok());
    }
}
