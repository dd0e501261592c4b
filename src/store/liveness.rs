//! Whether a runner lives: lock files.
//!
//! Time alone cannot tell a dead runner from a slow one. So each runner holds an exclusive lock
//! (`flock`) on a file of its own, in a directory beside the database, for as long as it lives.
//! The kernel frees the lock when the process ends, however it ends, and a reused process id has
//! no effect on it.
//!
//! The lock is one of the kernel: it holds across containers and namespaces on one machine, as
//! long as they share the directory. Between machines it does not hold on every network file
//! system, and SQLite's WAL does not work there at all. A copy of a database has the runners of
//! the original in it: with a copy of the directory their locks are free, without it there are
//! none, so that age decides.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::io;

use rustix::fs::OFlags;

use super::DraftStore;
use crate::database::RunnersDirectory;
use crate::error::LibrarianError;

/// How many lock files of dead runners are removed at once: each takes a descriptor meanwhile.
const MOST_TIDIED: usize = 32;

/// Whether a runner lives. Its lock alone decides, whatever else is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Liveness {
    /// Its lock is held, or cannot be tested.
    Alive,
    /// Its lock is free.
    Dead,
    /// It has no lock.
    LockGone,
}

/// The locks of the runners of one database, as far as they can be tested.
#[derive(Debug)]
pub(super) enum RunnerLocks {
    /// They are in this directory.
    In(RunnersDirectory),
    /// There is no directory, and so no lock.
    None,
    /// The directory cannot be opened, or is not to be trusted.
    Untestable,
}

impl RunnerLocks {
    /// Whether the runner with this lock lives.
    ///
    /// A live runner that is taken for dead loses its drafts to another, which processes them a
    /// second time. A dead one that is taken for alive keeps its drafts waiting. So where the lock
    /// cannot be tested (permissions, no descriptors left, a file that is not to be trusted), the
    /// runner counts as alive.
    pub(super) fn liveness(&self, lock_file: &str) -> Liveness {
        let directory = match self {
            Self::In(directory) => directory,
            Self::None => return Liveness::LockGone,
            Self::Untestable => return Liveness::Alive,
        };
        if !is_lock_name(lock_file) {
            return Liveness::LockGone;
        }
        let lock = match directory.open_file(lock_file, OFlags::RDONLY) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Liveness::LockGone,
            Err(_) => return Liveness::Alive,
        };
        // Shared, so that two who look at once do not take each other for the runner.
        match lock.try_lock_shared() {
            Ok(()) => Liveness::Dead,
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => Liveness::Alive,
        }
    }
}

/// A lock file that this process has made and holds.
#[derive(Debug)]
pub(super) struct RunnerLock {
    directory: RunnersDirectory,
    name: String,
    file: File,
}

impl RunnerLock {
    /// Make a lock file that nobody had before, and lock it.
    fn take(directory: RunnersDirectory) -> Result<Self, LibrarianError> {
        loop {
            // Opened for writing, so that its closing tells those who wait that the runner ended.
            let (name, file) = new_lock_file(&directory, OFlags::WRONLY)?;
            match file.lock().and_then(|()| has_name(&file)) {
                Ok(true) => return Ok(Self { directory, name, file }),
                // Somebody tidied it away before it was locked.
                Ok(false) => {}
                Err(source) => {
                    let path = directory.path().join(name);
                    return Err(LibrarianError::CannotCreate { path, source });
                }
            }
        }
    }

    /// Whether the file is where others test it. A lock whose file was deleted protects nothing.
    pub(super) fn is_in_place(&self, directory: &RunnersDirectory) -> bool {
        directory.holds(&self.name, &self.file).unwrap_or(false)
    }

    /// The file's name, as the runner's entry gives it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Remove the file. If that fails, it is left for [`DraftStore::tidy_lock_files`].
    pub(super) fn remove(&self) {
        let _ = self.directory.remove_file(&self.name, &self.file);
    }
}

/// Make a lock file of a name that nobody had before.
fn new_lock_file(
    directory: &RunnersDirectory,
    access: OFlags,
) -> Result<(String, File), LibrarianError> {
    loop {
        let name = format!("{:016x}.lock", fastrand::u64(..));
        match directory.create_file(&name, access) {
            Ok(file) => return Ok((name, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                let path = directory.path().join(name);
                return Err(LibrarianError::CannotCreate { path, source });
            }
        }
    }
}

fn has_name(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(file.metadata()?.nlink() > 0)
}

impl DraftStore {
    /// The locks of this store's runners, for as long as one look at them takes.
    pub(super) fn runner_locks(&self) -> RunnerLocks {
        match self.runners_directory() {
            Ok(Some(directory)) => RunnerLocks::In(directory),
            Ok(None) => RunnerLocks::None,
            Err(_) => RunnerLocks::Untestable,
        }
    }

    /// Make a lock file for a runner, and hold it.
    pub(super) fn take_runner_lock(&self) -> Result<RunnerLock, LibrarianError> {
        RunnerLock::take(self.make_runners_directory()?)
    }

    /// Whether a runner of this process could register and test the locks of others. A run asks
    /// before it recovers anything: one that cannot use the runners directory must not judge
    /// others by it. A runner that `holds_lock` there already need not be able to make one.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Untrusted`] if the runners directory, or anything in it, must not be
    /// used; [`LibrarianError::CannotCreate`] if no lock can be made there; [`LibrarianError::Io`].
    pub(crate) fn check_runners_directory(&self, holds_lock: bool) -> Result<(), LibrarianError> {
        let directory = self.make_runners_directory()?;
        if holds_lock {
            return directory.check_contents();
        }
        // Opened for reading, so that its closing wakes nobody.
        let (name, file) = new_lock_file(&directory, OFlags::RDONLY)?;
        let path = directory.path().join(&name);
        let cannot = |source| LibrarianError::CannotCreate { path: path.clone(), source };
        let locked = file.lock_shared().map_err(&cannot);
        let checked = locked.and_then(|()| directory.check_contents());
        directory.remove_file(&name, &file).map_err(&cannot)?;
        checked
    }

    /// Remove the lock files of runners that are no more: of those just declared dead, and of
    /// those that died before they had entered themselves, or between their end and this.
    /// What cannot be removed now, the next one will.
    pub(super) fn tidy_lock_files(&self) {
        let Ok(Some(directory)) = self.runners_directory() else { return };
        let Ok(names) = directory.names() else { return };
        let mut free = Vec::new();
        for name in names {
            let Some(name) = name.to_str().filter(|name| is_lock_name(name)) else { continue };
            // Held until the end: a runner that has made its file and not locked it yet waits
            // for that, and then makes another.
            if let Ok(Some(lock)) = directory.open_file(name, OFlags::RDONLY)
                && lock.try_lock_shared().is_ok()
            {
                free.push((name.to_owned(), lock));
            }
            if free.len() == MOST_TIDIED {
                break;
            }
        }
        if free.is_empty() {
            return;
        }
        // Where the entry says that the runner lives, the free lock is still needed as the proof
        // that it does not. No entry can come to be for a lock that nobody holds.
        let needed = self.database().read("look for lock files", |connection| {
            let mut statement = connection
                .prepare_cached("SELECT lock_file FROM runners WHERE ended_at IS NULL")?;
            let names = statement.query_map([], |row| row.get(0))?;
            Ok(names.collect::<Result<HashSet<String>, _>>()?)
        });
        let Ok(needed) = needed else { return };
        for (name, lock) in &free {
            if !needed.contains(name) {
                let _ = directory.remove_file(name, lock);
            }
        }
    }
}

/// Whether this is a name that we give: a database may come from anywhere, and the file is opened,
/// and deleted in the end.
fn is_lock_name(name: &str) -> bool {
    let stem = name.strip_suffix(".lock");
    stem.is_some_and(|stem| stem.len() == 16 && stem.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Where a runner runs, for people who look at its entry. Whether it lives does not depend on it:
/// a machine may have no boot id to read, and several may share a name.
pub(super) struct Here {
    pub host: String,
    pub boot_id: String,
}

impl Here {
    pub fn new() -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let boot_id =
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { host, boot_id: boot_id.trim().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_lock_files_are_touched() {
        assert!(is_lock_name("0123456789abcdef.lock"));
        for other in
            ["", ".lock", "../../etc/passwd", "../23456789abcdef.lock", "x/0123456789abcdef.lock"]
        {
            assert!(!is_lock_name(other), "{other}");
        }
    }

    #[test]
    fn a_lock_is_tested_by_its_name_in_the_directory_and_shared() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("drafts.db-runners");
        let owner = crate::database::Owner::caller();
        let directory = RunnersDirectory::open_or_create(&path, owner).unwrap();
        let name = "0123456789abcdef.lock";
        let file = directory.create_file(name, OFlags::WRONLY).unwrap();
        let elsewhere = RunnersDirectory::open_or_create(&around.path().join("other"), owner);
        drop(elsewhere.unwrap().create_file(name, OFlags::WRONLY).unwrap());
        let locks = RunnerLocks::In(directory);
        assert_eq!(locks.liveness(name), Liveness::Dead);
        // Another looks at the same moment.
        file.lock_shared().unwrap();
        assert_eq!(locks.liveness(name), Liveness::Dead);
        file.unlock().unwrap();
        file.lock().unwrap();
        assert_eq!(locks.liveness(name), Liveness::Alive);
        // A database may come from anywhere: no file outside the directory is opened.
        assert_eq!(locks.liveness(&format!("../other/{name}")), Liveness::LockGone);
        assert_eq!(locks.liveness("fedcba9876543210.lock"), Liveness::LockGone);
        assert_eq!(RunnerLocks::None.liveness(name), Liveness::LockGone);
        assert_eq!(RunnerLocks::Untestable.liveness(name), Liveness::Alive);
    }
}
