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

/// The version that the first migration creates. Version 1 was never released.
const FIRST_VERSION: i64 = 2;

/// The migrations in order: the first creates the schema in an empty file, each other one brings
/// the version before it to its own. To change the schema, add a file to `migrations/` and a line
/// here; what is released is never edited.
const MIGRATIONS: [&str; 1] = [include_str!("../../migrations/0002_drafts.sql")];

/// The current schema's version.
fn schema_version() -> i64 {
    version_after(&MIGRATIONS)
}

/// The version that the last of these migrations leads to.
fn version_after(migrations: &[&str]) -> i64 {
    // There are never 2^63 migrations.
    FIRST_VERSION - 1 + i64::try_from(migrations.len()).unwrap_or(0)
}

pub(super) fn check_header(
    path: &Path,
    application_id: i64,
    version: i64,
) -> Result<(), LibrarianError> {
    check_header_up_to(path, application_id, version, schema_version())
}

fn check_header_up_to(
    path: &Path,
    application_id: i64,
    version: i64,
    newest: i64,
) -> Result<(), LibrarianError> {
    let foreign = |reason| Err(LibrarianError::ForeignDatabase { path: path.to_owned(), reason });
    if application_id != i64::from(APPLICATION_ID) {
        return foreign(
            "it is the SQLite database of another program; name another file with --db".to_owned(),
        );
    }
    if version > newest {
        return foreign(format!(
            "its schema is version {version} and this draftq knows up to {newest}; use a newer \
             draftq"
        ));
    }
    if (1..FIRST_VERSION).contains(&version) {
        return foreign(format!(
            "its schema is version {version}, of a draftq that was never released; keep the file, \
             name another with --db, and submit its drafts there"
        ));
    }
    if version < FIRST_VERSION {
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

/// Within a transaction that holds the write lock: no process has changed the schema's version
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
    migrate_with(connection, path, &MIGRATIONS)
}

/// All missing migrations are one transaction: after a crash the file has the old schema or the
/// new one.
fn migrate_with(
    connection: &mut Connection,
    path: &Path,
    migrations: &[&str],
) -> Result<(), TransactionError> {
    let newest = version_after(migrations);
    let version = pragma(connection, "user_version")?;
    if version == newest {
        check_header_up_to(path, pragma(connection, "application_id")?, version, newest)?;
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
        version = FIRST_VERSION - 1;
    } else {
        check_header_up_to(path, pragma(&transaction, "application_id")?, version, newest)?;
    }
    let applied = usize::try_from(version - (FIRST_VERSION - 1)).unwrap_or(migrations.len());
    for migration in migrations.iter().skip(applied) {
        transaction.execute_batch(migration)?;
        version += 1;
    }
    transaction.pragma_update(None, "user_version", version)?;
    transaction.commit()?;
    let application_id = pragma(connection, "application_id")?;
    check_header_up_to(path, application_id, pragma(connection, "user_version")?, newest)?;
    Ok(())
}

#[cfg(test)]
#[path = "upgrade_tests.rs"]
mod upgrade_tests;

#[cfg(test)]
mod tests {
    use super::*;

    /// Before it is opened, the file alone was looked at. What is in its -wal is seen here first.
    #[test]
    fn what_is_another_programs_is_not_migrated() {
        let path = Path::new("/d/q.db");
        for sql in [
            "CREATE TABLE theirs (x)".to_owned(),
            "PRAGMA application_id = 5".to_owned(),
            format!("PRAGMA user_version = {}", schema_version()),
        ] {
            let mut connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(&sql).unwrap();
            let refused = migrate(&mut connection, path);
            let foreign = matches!(
                refused,
                Err(TransactionError::Ours(LibrarianError::ForeignDatabase { .. }))
            );
            assert!(foreign, "{sql}: {refused:?}");
        }
    }

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
