//! The file and its directory: created private, and recognised before they are changed.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::busy::DEFAULT_BUSY_TIMEOUT;
use super::connection::pragma;
use super::error::classify;
pub(crate) use super::facts::FileIdentity;
use super::facts::with_suffix;
use super::schema::check_header;
use super::trust::{Examined, examine};
use crate::error::LibrarianError;

/// The path of the file at `path`, with all links followed. `None` if there is no file.
///
/// Called once, at open. Everything afterwards uses the resolved path, so that a link that is
/// changed later has no effect, and all symbolic links to a file share one -wal and one runners
/// directory.
///
/// # Errors
///
/// [`LibrarianError::CannotCreate`] for a link without a target, [`LibrarianError::Io`] if the path
/// cannot be followed.
pub(crate) fn resolve(path: &Path) -> Result<Option<PathBuf>, LibrarianError> {
    match fs::canonicalize(path) {
        Ok(path) => Ok(Some(path)),
        Err(source) if path.is_symlink() => {
            Err(LibrarianError::CannotCreate { path: path.to_owned(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LibrarianError::Io { doing: "open", path: path.to_owned(), source }),
    }
}

/// The identity of the file at this resolved path, if the file, its directory and the files beside
/// it may be used; `None` if there is no file. Opens and creates nothing.
///
/// # Errors
///
/// [`LibrarianError::Untrusted`] for a second link, a mount point, another owner, or a mode that
/// lets others write; [`LibrarianError::ForeignDatabase`] if it is not a regular file;
/// [`LibrarianError::Io`].
pub(crate) fn inspect(path: &Path) -> Result<Option<FileIdentity>, LibrarianError> {
    Ok(examine(path)?.map(|examined| examined.identity))
}

/// Whether the file at this path, links followed, is still this one. Costs one `stat`, about a
/// microsecond.
pub(super) fn is_at(path: &Path, identity: FileIdentity) -> bool {
    fs::metadata(path)
        .is_ok_and(|metadata| metadata.dev() == identity.device && metadata.ino() == identity.inode)
}

/// The resolved path of the file at `path`, which need not exist. Creates its directory if there is
/// none.
pub(super) fn create_place(path: &Path) -> Result<PathBuf, LibrarianError> {
    if let Some(path) = resolve(path)? {
        return Ok(path);
    }
    let cannot = |path: &Path| {
        let path = path.to_owned();
        move |source| LibrarianError::CannotCreate { path, source }
    };
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(cannot(path)(io::ErrorKind::IsADirectory.into()));
    };
    if path.as_os_str().as_bytes().ends_with(b"/") {
        return Err(cannot(path)(io::ErrorKind::IsADirectory.into()));
    }
    create_private_directory(directory).map_err(cannot(directory))?;
    Ok(fs::canonicalize(directory).map_err(cannot(directory))?.join(name))
}

/// Create the file at this resolved path if there is none, readable and writable by its owner
/// alone, and check it.
pub(super) fn create_private(path: &Path) -> Result<Examined, LibrarianError> {
    // Closing a descriptor of the file drops this process's locks on it, so no other thread may
    // open the file through SQLite between its creation and the closing.
    static CREATING: Mutex<()> = Mutex::new(());
    let _alone = CREATING.lock().unwrap_or_else(PoisonError::into_inner);

    let cannot = |source| LibrarianError::CannotCreate { path: path.to_owned(), source };
    if let Some(examined) = examine(path)? {
        return Ok(examined);
    }
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => {}
        // Another process was first.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(cannot(source)),
    }
    examine(path)?.ok_or_else(|| cannot(io::ErrorKind::NotFound.into()))
}

/// Create a directory, and those above it, for their owner alone.
fn create_private_directory(directory: &Path) -> Result<(), io::Error> {
    let missing: Vec<&Path> =
        directory.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // SQLite syncs the file's directory, but not the directory's parent. As in SQLite, a directory
    // that cannot be opened or synced is no error.
    for parent in missing.into_iter().filter_map(Path::parent) {
        let _ = fs::File::open(parent).and_then(|parent| parent.sync_all());
    }
    Ok(())
}

/// Check the file's header before anything can change the file: an ordinary connection to a foreign
/// database would replay its journal or checkpoint its WAL. An immutable connection takes no lock
/// and writes nothing, and SQLite knows its descriptor.
pub(super) fn recognise(path: &Path) -> Result<(), LibrarianError> {
    let length = fs::metadata(path).map(|metadata| metadata.len());
    if length.is_ok_and(|length| length == 0) {
        // It is new, or another process is about to fill it.
        return Ok(());
    }
    let look = || -> Result<(i64, i64), rusqlite::Error> {
        let mut connection = open_immutable(path)?;
        // During another process's first start or checkpoint, or after an interrupted one, the file
        // is shorter than its header says. With these settings SQLite reads the header all the
        // same.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
        connection.pragma_update(None, "writable_schema", true)?;
        // Both values must come from one moment.
        let transaction = connection.transaction()?;
        Ok((pragma(&transaction, "application_id")?, pragma(&transaction, "user_version")?))
    };
    match look() {
        Ok((application_id, version)) => check_header(path, application_id, version),
        Err(_) if journal_undoes_all(path) => Ok(()),
        Err(error) => Err(classify(error.into(), path, DEFAULT_BUSY_TIMEOUT, "open")),
    }
}

/// Whether the file has a journal that undoes everything in it: a power failure interrupted a first
/// start, and may have left only zeros. SQLite's locks are not on the journal, so this may open it.
/// A file that is not SQLite's may have any other journal, which must not be changed.
fn journal_undoes_all(path: &Path) -> bool {
    // The magic number of the format. Bytes 16 to 20 hold the number of pages before the
    // transaction.
    const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    let mut header = [0; 20];
    let read = fs::File::open(with_suffix(path, "-journal"))
        .and_then(|mut journal| journal.read_exact(&mut header));
    read.is_ok() && header.starts_with(&MAGIC) && header.ends_with(&[0; 4])
}

/// Open a file that no process changes meanwhile: no lock is taken, and neither -wal nor -shm is
/// opened or created.
pub(super) fn open_immutable(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(immutable_uri(path), flags).map_err(|error| match error {
        // rusqlite's message would show the URI.
        rusqlite::Error::SqliteFailure(code, _) => rusqlite::Error::SqliteFailure(code, None),
        error => error,
    })
}

fn immutable_uri(path: &Path) -> String {
    use std::fmt::Write as _;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// From the start: who opens it before the schema makes it private keeps it open.
    #[test]
    fn a_new_file_is_private_before_anything_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drafts.db");
        create_private(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }
}
