//! The file and its directory: created private, and recognised before anything could change it.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::busy::DEFAULT_BUSY_TIMEOUT;
use super::connection::pragma;
use super::error::classify;
use super::schema::check_header;
use crate::error::LibrarianError;

/// Make the file and its directory, readable and writable by their owner alone.
pub(super) fn create_private(path: &Path) -> Result<(), LibrarianError> {
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
pub(super) fn recognise(path: &Path) -> Result<(), LibrarianError> {
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
        Err(error) => Err(classify(error.into(), path, DEFAULT_BUSY_TIMEOUT, "open")),
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
