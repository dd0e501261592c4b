//! Reads a database without writing: no file is created or changed.
//!
//! SQLite's read-only connection creates a -wal and a -shm if it can, fails if it cannot, and
//! leaves them behind. So if there is no -wal, or an empty one, the file is opened as immutable,
//! and its times are compared afterwards. If they differ, or if there is a -wal, it is read with
//! the usual locks.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, ErrorCode};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::busy::{self, Files, Wait};
use super::connection::{configure_reading, connect_read_only, harden};
use super::error::TransactionError;
use super::facts::{Owner, with_suffix};
use super::file::{self, FileIdentity, open_immutable};
use super::in_use::{self, InUse};
use super::schema;
use super::trust;
use crate::error::LibrarianError;

/// The resolution of a file's times: two changes within this time may leave the same time.
const CLOCK_STEP: Duration = Duration::from_millis(10);

/// How many times a file that was opened as immutable may change during a read before it is read
/// with the usual locks.
const UNCHANGED_TRIES: u32 = 3;

/// A database that is only read, by one thread at a time.
#[derive(Debug)]
pub(super) struct Reader {
    /// As it was given.
    named: PathBuf,
    /// All links followed.
    path: PathBuf,
    busy_timeout: Duration,
    current: Mutex<Option<Opened>>,
}

#[derive(Debug)]
struct Opened {
    path: PathBuf,
    connection: Connection,
    /// The stamp of a file that was opened as immutable.
    unchanged: Option<Stamp>,
    identity: FileIdentity,
    /// Dropped after the connection.
    _in_use: Option<InUse>,
}

/// A file's identity, length and times. Every change of the file changes one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    identity: FileIdentity,
    bytes: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Reader {
    /// Open the file and check that it is draftq's, of the current schema.
    pub(super) fn open(named: &Path, busy_timeout: Duration) -> Result<Self, LibrarianError> {
        let named = named.to_owned();
        let path = match file::resolve(&named) {
            Ok(Some(path)) => path,
            // A link without a target.
            Ok(None) | Err(LibrarianError::CannotCreate { .. }) => {
                return Err(LibrarianError::NoDatabase { path: named });
            }
            Err(error) => return Err(error),
        };
        let reader = Self { named, path, busy_timeout, current: Mutex::new(None) };
        reader.read(&mut |_| Ok(())).map_err(|error| reader.explain(error, "open"))?;
        Ok(reader)
    }

    /// The file's absolute path, all links followed.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file at the path is the one that was read last.
    pub(super) fn is_current(&self) -> bool {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().is_none_or(|opened| file::is_at(&self.named, opened.identity))
    }

    /// Read within one transaction. The body is called again if the file was changed meanwhile.
    pub(super) fn read<T>(
        &self,
        body: &mut dyn FnMut(&Connection) -> Result<T, TransactionError>,
    ) -> Result<T, TransactionError> {
        let files = Files::new(&self.path, Owner::caller());
        let wait = Wait::new(&files, self.busy_timeout, Instant::now());
        busy::waiting(&wait, || self.read_waiting(body))
    }

    fn read_waiting<T>(
        &self,
        body: &mut dyn FnMut(&Connection) -> Result<T, TransactionError>,
    ) -> Result<T, TransactionError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tries = 0;
        loop {
            let usable = current.take().filter(|opened| match &opened.unchanged {
                Some(stamp) => unchanging(&self.path).is_ok_and(|now| now == Some(*stamp)),
                None => file::is_at(&self.path, opened.identity),
            });
            let mut opened = match usable {
                Some(opened) => opened,
                None => self.connect(tries < UNCHANGED_TRIES)?,
            };
            let result = read_in(&mut opened, body);
            match opened.unchanged {
                Some(stamp) if unchanging(&self.path)? != Some(stamp) => tries += 1,
                _ => {
                    *current = Some(opened);
                    return result;
                }
            }
        }
    }

    fn connect(&self, may_be_unchanging: bool) -> Result<Opened, TransactionError> {
        let path = &self.path;
        let none = || LibrarianError::NoDatabase { path: path.clone() };
        let identity = trust::examine_to_read(path)?.ok_or_else(none)?;
        may_read(path).map_err(|source| LibrarianError::Io {
            doing: "read",
            path: path.clone(),
            source,
        })?;
        if may_be_unchanging && let Some(stamp) = settled(path)? {
            if stamp.bytes == 0 {
                return Err(none().into());
            }
            let connection = open_immutable(path)?;
            return self.opened(connection, Some(stamp), stamp.identity, None);
        }
        file::recognise(path)?;
        let in_use = in_use::join_reading(path, identity, self.busy_timeout)?;
        let connection = connect_read_only(path)?;
        if !file::is_at(path, identity) {
            return Err(LibrarianError::FileReplaced { path: path.clone() }.into());
        }
        self.opened(connection, None, identity, in_use)
    }

    fn opened(
        &self,
        connection: Connection,
        unchanged: Option<Stamp>,
        identity: FileIdentity,
        in_use: Option<InUse>,
    ) -> Result<Opened, TransactionError> {
        harden(&connection)?;
        configure_reading(&connection, &self.path)?;
        let path = self.path.clone();
        Ok(Opened { path, connection, unchanged, identity, _in_use: in_use })
    }

    /// An error of SQLite as one of this crate's. One that comes from an unreadable -wal says so.
    pub(super) fn explain(&self, error: TransactionError, doing: &'static str) -> LibrarianError {
        // A rollback journal is used only until the database is in WAL mode, so its creation was cut
        // short: nothing was stored yet, and the next command that writes completes it.
        let cut_short = matches!(&error, TransactionError::Sqlite(rusqlite::Error::SqliteFailure(code, _))
            if code.extended_code == rusqlite::ffi::SQLITE_READONLY_ROLLBACK);
        if cut_short {
            return LibrarianError::NoDatabase { path: self.path.clone() };
        }
        let wal = with_suffix(&self.path, "-wal");
        let unreadable = matches!(&error, TransactionError::Sqlite(error) if matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied)
        ));
        if unreadable && has_content(&wal).unwrap_or(true) {
            let why = match may_read(&wal) {
                Err(error) => error,
                Ok(()) => io::Error::other(
                    "SQLite needs the -shm file beside it, which cannot be read or created here; let \
                     the database's owner run `draftq run --defer`, or copy the database with its \
                     -wal to a directory that you may write to",
                ),
            };
            return LibrarianError::Io { doing: "read", path: wal, source: why };
        }
        super::error::classify(error, &self.path, self.busy_timeout, doing)
    }
}

fn read_in<T>(
    opened: &mut Opened,
    body: &mut dyn FnMut(&Connection) -> Result<T, TransactionError>,
) -> Result<T, TransactionError> {
    let transaction = opened.connection.transaction()?;
    schema::require_current(&opened.path, &transaction, opened.unchanged.is_none())?;
    let value = body(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// The stamp of the file, if no -wal or journal holds a part of the database.
fn unchanging(path: &Path) -> Result<Option<Stamp>, LibrarianError> {
    if has_content(&with_suffix(path, "-journal"))? || has_content(&with_suffix(path, "-wal"))? {
        return Ok(None);
    }
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(LibrarianError::Io { doing: "open", path: path.to_owned(), source });
        }
    };
    Ok(Some(Stamp {
        identity: FileIdentity { device: metadata.dev(), inode: metadata.ino() },
        bytes: metadata.len(),
        modified_ns: (metadata.mtime(), metadata.mtime_nsec()),
        changed_ns: (metadata.ctime(), metadata.ctime_nsec()),
    }))
}

/// As [`unchanging`], at least [`CLOCK_STEP`] after the last change, so that the next change leaves
/// another time.
fn settled(path: &Path) -> Result<Option<Stamp>, LibrarianError> {
    let started = Instant::now();
    loop {
        let stamp = unchanging(path)?;
        let Some(Stamp { changed_ns: (seconds, nanoseconds), .. }) = stamp else { return Ok(None) };
        let changed = u64::try_from(seconds).ok().zip(u32::try_from(nanoseconds).ok());
        let age = changed.and_then(|(seconds, nanoseconds)| {
            let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
            SystemTime::now().duration_since(changed).ok()
        });
        match age.and_then(|age| CLOCK_STEP.checked_sub(age)) {
            Some(left) if started.elapsed() < CLOCK_STEP => std::thread::sleep(left),
            _ => return Ok(stamp),
        }
    }
}

fn has_content(path: &Path) -> Result<bool, LibrarianError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len() > 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(LibrarianError::Io { doing: "open", path: path.to_owned(), source }),
    }
}

/// Whether the file may be read, without opening it: closing it would drop SQLite's locks.
fn may_read(path: &Path) -> io::Result<()> {
    Ok(accessat(CWD, path, Access::READ_OK, AtFlags::EACCESS)?)
}

#[cfg(test)]
mod tests {
    use super::super::connection::pragma;
    use super::super::{Access, Database};
    use super::*;

    /// A change in the same tick of the clock would leave the same times.
    #[test]
    fn a_file_that_has_just_changed_is_not_read_as_immutable_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drafts.db");
        fs::write(&path, "changed").unwrap();
        let (seconds, nanoseconds) = settled(&path).unwrap().unwrap().changed_ns;
        let since = Duration::new(seconds.unsigned_abs(), nanoseconds.unsigned_abs() as u32);
        let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + since).unwrap();
        assert!(age >= CLOCK_STEP, "{age:?}");
    }

    #[test]
    fn what_is_changed_while_it_is_read_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drafts.db");
        let timeout = Duration::from_secs(20);
        let write = || {
            let database = Database::open(&path, Access::Create, 2, timeout).unwrap();
            let again = |transaction: &rusqlite::Transaction<'_>| {
                let version = pragma(transaction, "user_version")?;
                Ok(transaction.pragma_update(None, "user_version", version)?)
            };
            database.write(Instant::now(), "write", again).unwrap();
        };
        write();
        let reader = Reader::open(&path, timeout).unwrap();
        let mut calls = 0;
        let read = reader.read(&mut |_| {
            calls += 1;
            if calls == 1 {
                write();
            }
            Ok(())
        });
        assert!(read.is_ok(), "{read:?}");
        assert_eq!(calls, 2);
        let current = reader.current.lock().unwrap();
        assert!(current.as_ref().is_some_and(|opened| opened.unchanged.is_some()));
    }
}
