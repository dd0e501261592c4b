//! Which file the processes at one path have open.
//!
//! SQLite finds -wal and -shm by name. If the database is removed or another file is moved into its
//! place while a process has it open, the next process would open the new file with the old one's
//! -wal and -shm, and both would write to them: drafts are lost, the file is damaged, and SQLite
//! notices nothing. So each process holds a shared lock (`flock`) on a small file in the runners
//! directory that says which file it opened (device and inode). Who finds another file there than
//! the one at the path waits until nobody holds the lock, then writes down the new one.
//!
//! The kernel frees the lock when a process ends, however it ends. What is written down is no more
//! than a hint of what the holders have open, and need not survive a crash.

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

/// How many bytes say which file it is: two numbers in hexadecimal digits.
const ENTRY_BYTES: usize = 33;

/// A place among the processes that have the file open, until it is dropped.
#[derive(Debug)]
pub(super) struct InUse {
    lock: File,
    made: Made,
}

/// What was made, to be taken away again if the database is refused.
#[derive(Debug, Default)]
struct Made {
    file: Option<RunnersDirectory>,
    directory: Option<PathBuf>,
}

impl InUse {
    /// Take away what was made here: the database is not ours.
    pub(super) fn undo(self) {
        if let Some(directory) = &self.made.file {
            let _ = directory.remove_file(FILE_NAME, &self.lock);
        }
        if let Some(directory) = &self.made.directory {
            // If there is something in it by now, it stays.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// A database that may be opened.
#[derive(Debug)]
pub(super) struct Joined {
    /// Where it is, all links followed.
    pub path: PathBuf,
    pub identity: FileIdentity,
    pub owner: Owner,
    pub in_use: InUse,
}

/// Join those who have the file open that is at this path, and make one if there is none and
/// `create` says so. Waits for at most the busy time-out for those who still have an earlier one
/// open.
pub(super) fn join(
    named: &Path,
    create: bool,
    busy_timeout: Duration,
) -> Result<Joined, LibrarianError> {
    let deadline = Instant::now() + busy_timeout;
    let none = || LibrarianError::NoDatabase { path: named.to_owned() };
    let mut recognised = None;
    let mut made = Made::default();
    loop {
        let path = match create {
            true => file::make_place(named)?,
            false => match file::resolve(named) {
                Ok(Some(path)) => path,
                // A link that leads nowhere.
                Ok(None) | Err(LibrarianError::CannotCreate { .. }) => return Err(none()),
                Err(error) => return Err(error),
            },
        };
        let examined = examine(&path)?;
        let found = examined.map(|examined| examined.identity);
        match found {
            None if !create => return Err(none()),
            // Nothing is made beside a file that is not draftq's.
            Some(identity) if recognised != found => match file::recognise(&path) {
                Ok(()) => recognised = found,
                Err(error) if file::is_at(&path, identity) => return Err(error),
                // It was replaced while it was looked at.
                Err(_) => {
                    wait_for_others(named, deadline, busy_timeout)?;
                    continue;
                }
            },
            _ => {}
        }
        let owner = examined.map_or_else(Owner::caller, |examined| examined.owner);
        if let Some((identity, owner, lock)) = try_join(&path, found, owner, create, &mut made)? {
            return Ok(Joined { path, identity, owner, in_use: InUse { lock, made } });
        }
        wait_for_others(named, deadline, busy_timeout)?;
    }
}

/// For a process that only reads: as [`join`], but nothing is made or written. `None` where there
/// is nothing to join.
pub(super) fn join_reading(
    path: &Path,
    identity: FileIdentity,
    busy_timeout: Duration,
) -> Result<Option<InUse>, LibrarianError> {
    let deadline = Instant::now() + busy_timeout;
    let name = RunnersDirectory::path_beside(path).join(FILE_NAME);
    loop {
        // Missing, or of another user: whoever writes sees to it that it is right.
        if !fs::symlink_metadata(&name).is_ok_and(|is| is.is_file()) {
            return Ok(None);
        }
        // The flags fit: they are bits of a C int.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let opened = fs::OpenOptions::new().read(true).custom_flags(flags).open(&name);
        let Ok(lock) = opened else { return Ok(None) };
        if lock.try_lock_shared().is_ok() {
            if entry_of(&lock) == Some(identity) {
                return Ok(Some(InUse { lock, made: Made::default() }));
            }
            // Nobody has the other file open: the entry is an old one.
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

/// `None` if others are in the way at this moment.
fn try_join(
    path: &Path,
    found: Option<FileIdentity>,
    owner: Owner,
    create: bool,
    made: &mut Made,
) -> Result<Option<(FileIdentity, Owner, File)>, LibrarianError> {
    let place = RunnersDirectory::path_beside(path);
    let name = place.join(FILE_NAME);
    let cannot = |source| LibrarianError::Io { doing: "use", path: name.clone(), source };
    let missing = fs::symlink_metadata(&place).is_err();
    let directory = RunnersDirectory::open_or_create(&place, owner)?;
    if missing {
        made.directory = Some(place);
    }
    // Most often the entry is right, and nothing is opened to write: the end of that would wake
    // waiting runners, which are told of the end of other runners in this way.
    let open = |access| match directory.open_file(FILE_NAME, access) {
        // It was to be made then.
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
        made.file = Some(directory);
    }
    if !locked(lock.try_lock()).map_err(cannot)? || lock.metadata().map_err(cannot)?.nlink() == 0 {
        return Ok(None);
    }
    // From here to the end of this lock nobody else opens or makes a file at this path.
    let examined = match examine(path)? {
        Some(examined) => examined,
        None if !create => return Ok(None),
        None => {
            // They are of a file that is gone. What no draftq has open another program may have.
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
        // Another by now, which nobody has recognised yet.
        return Ok(None);
    }
    let identity = examined.identity;
    let entry = format!("{:016x} {:016x}", identity.device, identity.inode);
    lock.write_all_at(entry.as_bytes(), 0).map_err(cannot)?;
    // The kernel frees a lock before it takes the other, so another may come in between.
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

/// What is written down in the file; `None` if that is nothing, or nonsense.
fn entry_of(mut lock: &File) -> Option<FileIdentity> {
    let mut bytes = [0; ENTRY_BYTES];
    lock.read_exact(&mut bytes).ok()?;
    let (device, inode) = str::from_utf8(&bytes).ok()?.split_once(' ')?;
    Some(FileIdentity {
        device: u64::from_str_radix(device, 16).ok()?,
        inode: u64::from_str_radix(inode, 16).ok()?,
    })
}
