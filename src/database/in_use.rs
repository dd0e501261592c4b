//! Keeps a file that replaces another apart from the other's -wal.
//!
//! SQLite finds -wal and -shm by name. If the database is removed or replaced while a process has
//! it open, the next process would open the new file with the old one's -wal and -shm, and both
//! would write to them: drafts are lost, the file is damaged, and SQLite notices nothing. So each
//! process holds a shared lock (`flock`) on a small file in the runners directory, the entry file,
//! which holds device and inode of the file that is open. A process that finds another file at the
//! path waits until no process holds the lock, and then writes a new entry.
//!
//! The kernel frees the lock when a process ends, however it ends. The entry need not survive a
//! crash.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::facts::{Owner, with_suffix};
use super::file::{self, FileIdentity};
use super::runners_directory::RunnersDirectory;
use super::trust::examine;
use crate::error::LibrarianError;

const FILE_NAME: &str = "in-use";

/// The length of an entry: two numbers in hexadecimal digits.
const ENTRY_BYTES: usize = 33;

/// A process's lock on the entry file, until it is dropped.
#[derive(Debug)]
pub(super) struct InUse {
    lock: File,
    created: Created,
}

/// The files that were created, to be removed if the database is refused.
#[derive(Debug, Default)]
struct Created {
    file: Option<RunnersDirectory>,
    directory: Option<PathBuf>,
}

impl InUse {
    /// Remove the files that were created: the database is not draftq's.
    pub(super) fn undo(self) {
        if let Some(directory) = &self.created.file {
            let _ = directory.remove_file(FILE_NAME, &self.lock);
        }
        if let Some(directory) = &self.created.directory {
            // It stays if it is not empty.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// A database that may be opened.
#[derive(Debug)]
pub(super) struct Joined {
    /// Its path, all links followed.
    pub path: PathBuf,
    pub identity: FileIdentity,
    pub owner: Owner,
    pub in_use: InUse,
}

/// Join the processes that have the file at this path open, and create the file if there is none
/// and `create` is set. Waits for at most the busy time-out for processes that still have the
/// previous file open.
pub(super) fn join(
    named: &Path,
    create: bool,
    busy_timeout: Duration,
) -> Result<Joined, LibrarianError> {
    let deadline = Instant::now() + busy_timeout;
    let none = || LibrarianError::NoDatabase { path: named.to_owned() };
    let mut recognised = None;
    let mut created = Created::default();
    loop {
        let path = match create {
            true => file::create_place(named)?,
            false => match file::resolve(named) {
                Ok(Some(path)) => path,
                // A link without a target.
                Ok(None) | Err(LibrarianError::CannotCreate { .. }) => return Err(none()),
                Err(error) => return Err(error),
            },
        };
        let examined = examine(&path)?;
        let found = examined.map(|examined| examined.identity);
        match found {
            None if !create => return Err(none()),
            // Nothing is created beside a file that is not draftq's.
            Some(identity) if recognised != found => match file::recognise(&path) {
                Ok(()) => recognised = found,
                Err(error) if file::is_at(&path, identity) => return Err(error),
                // It was replaced during the check.
                Err(_) => {
                    wait_for_others(named, deadline, busy_timeout)?;
                    continue;
                }
            },
            _ => {}
        }
        let owner = examined.map_or_else(Owner::caller, |examined| examined.owner);
        if let Some((identity, owner, lock)) = try_join(&path, found, owner, create, &mut created)?
        {
            return Ok(Joined { path, identity, owner, in_use: InUse { lock, created } });
        }
        wait_for_others(named, deadline, busy_timeout)?;
    }
}

/// As [`join`], for a process that only reads: nothing is created or written. `None` if there is no
/// entry file that can be used.
pub(super) fn join_reading(
    path: &Path,
    identity: FileIdentity,
    busy_timeout: Duration,
) -> Result<Option<InUse>, LibrarianError> {
    let deadline = Instant::now() + busy_timeout;
    let name = RunnersDirectory::path_beside(path).join(FILE_NAME);
    loop {
        // It is missing, or belongs to another user. Processes that write create or refuse it.
        if !fs::symlink_metadata(&name).is_ok_and(|is| is.is_file()) {
            return Ok(None);
        }
        // The flags are bits of a C int.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let opened = fs::OpenOptions::new().read(true).custom_flags(flags).open(&name);
        let Ok(lock) = opened else { return Ok(None) };
        if lock.try_lock_shared().is_ok() {
            if entry_of(&lock) == Some(identity) {
                return Ok(Some(InUse { lock, created: Created::default() }));
            }
            // No process has the other file open: the entry is old.
            if lock.unlock().is_ok() && lock.try_lock().is_ok() {
                return Ok(None);
            }
        }
        wait_for_others(path, deadline, busy_timeout)?;
    }
}

fn wait_for_others(
    path: &Path,
    deadline: Instant,
    busy_timeout: Duration,
) -> Result<(), LibrarianError> {
    if Instant::now() >= deadline {
        let path = path.to_owned();
        return Err(LibrarianError::ReplacedFileInUse { path, waited: busy_timeout });
    }
    std::thread::sleep(Duration::from_micros(fastrand::u64(500..3_000)));
    Ok(())
}

/// `None` if another process prevents it at this moment.
fn try_join(
    path: &Path,
    found: Option<FileIdentity>,
    owner: Owner,
    create: bool,
    created: &mut Created,
) -> Result<Option<(FileIdentity, Owner, File)>, LibrarianError> {
    let place = RunnersDirectory::path_beside(path);
    let name = place.join(FILE_NAME);
    let cannot = |source| LibrarianError::Io { doing: "use", path: name.clone(), source };
    let missing = fs::symlink_metadata(&place).is_err();
    let directory = RunnersDirectory::open_or_create(&place, owner)?;
    if missing {
        created.directory = Some(place);
    }
    // Most often the entry is right, and no file is opened for writing: closing it would wake
    // waiting runners, because inotify reports the end of a runner in the same way.
    let open = |access| match directory.open_file(FILE_NAME, access) {
        // The same failure as if the file could not be created.
        Err(LibrarianError::Io { path, source, .. }) => {
            Err(LibrarianError::CannotCreate { path, source })
        }
        opened => opened,
    };
    if let Some(lock) = open(OFlags::RDONLY)? {
        if !locked(lock.try_lock_shared()).map_err(cannot)? {
            return Ok(None);
        }
        if let Some(identity) = found
            && entry_of(&lock) == found
        {
            let linked = lock.metadata().map_err(cannot)?.nlink() > 0;
            return Ok(linked.then_some((identity, owner, lock)));
        }
    }
    let (lock, new) = match open(OFlags::RDWR)? {
        Some(lock) => (lock, false),
        None => match directory.create_file(FILE_NAME, OFlags::RDWR) {
            Ok(lock) => (lock, true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(source) => return Err(LibrarianError::CannotCreate { path: name, source }),
        },
    };
    if new {
        created.file = Some(directory);
    }
    if !locked(lock.try_lock()).map_err(cannot)? || lock.metadata().map_err(cannot)?.nlink() == 0 {
        return Ok(None);
    }
    // While this lock is held, no other process opens or creates a file at this path.
    let examined = match examine(path)? {
        Some(examined) => examined,
        None if !create => return Ok(None),
        None => {
            // They belong to a file that no longer exists. Another program may have them open.
            for suffix in ["-wal", "-shm"] {
                match fs::remove_file(with_suffix(path, suffix)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(cannot(error));
                    }
                    _ => {}
                }
            }
            file::create_private(path)?
        }
    };
    if found.is_some_and(|found| found != examined.identity) {
        // It is another file now, which has not been recognised yet.
        return Ok(None);
    }
    let identity = examined.identity;
    let entry = format!("{:016x} {:016x}", identity.device, identity.inode);
    lock.write_all_at(entry.as_bytes(), 0).map_err(cannot)?;
    // The kernel frees the exclusive lock before it takes the shared one, so another process may
    // lock it in between.
    let kept = locked(lock.try_lock_shared()).map_err(cannot)?;
    Ok(kept.then_some((identity, examined.owner, lock)))
}

fn locked(result: Result<(), TryLockError>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The entry; `None` if there is none, or it is not valid.
fn entry_of(mut lock: &File) -> Option<FileIdentity> {
    let mut bytes = [0; ENTRY_BYTES];
    lock.read_exact(&mut bytes).ok()?;
    let (device, inode) = str::from_utf8(&bytes).ok()?.split_once(' ')?;
    Some(FileIdentity {
        device: u64::from_str_radix(device, 16).ok()?,
        inode: u64::from_str_radix(inode, 16).ok()?,
    })
}
