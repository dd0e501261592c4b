//! Whether a runner is alive: lock files.
//!
//! Time alone cannot distinguish a dead runner from a slow one. So each runner holds an exclusive
//! lock (`flock`) on its own file, in a directory beside the database, for as long as it lives. The
//! kernel frees the lock when the process ends, however it ends, and a reused process id has no
//! effect on it.
//!
//! The lock works across containers and namespaces on one machine, as long as they share the
//! directory. Between machines it does not work on every network file system, and SQLite's WAL does
//! not work there at all. A copy of a database contains the runners of the original: with a copy of
//! the directory their locks are free, without it there are none, so that age decides.

use std::collections::HashSet;
use std::fs::TryLockError;

use rustix::fs::OFlags;

use super::DraftStore;
use super::lock_file::{LockFile, LockKind};
use crate::database::RunnersDirectory;
use crate::error::LibrarianError;

/// How many locks are tested at once to tidy up. If there are more, a random selection is tested:
/// otherwise two hundred watches that test each other's locks use a tenth of a core.
const MAX_TESTED: usize = 32;

/// Whether a runner is alive. Its lock alone decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Liveness {
    /// Its lock is held, or cannot be tested.
    Alive,
    /// Its lock is free.
    Dead,
    /// It has no lock.
    LockGone,
}

/// The locks of the runners of one database.
#[derive(Debug)]
pub(super) enum RunnerLocks {
    /// They are in this directory.
    In(RunnersDirectory),
    /// There is no directory, and so no lock.
    None,
    /// The directory cannot be opened, or must not be trusted.
    Untestable,
}

impl RunnerLocks {
    /// Whether the runner with this lock is alive.
    ///
    /// If a live runner counts as dead, another runner processes its drafts a second time. If a
    /// dead one counts as alive, its drafts only wait. So if the lock cannot be tested
    /// (permissions, no descriptors left, a file that must not be trusted), the runner counts as
    /// alive.
    pub(super) fn liveness(&self, lock_file: &str) -> Liveness {
        let directory = match self {
            Self::In(directory) => directory,
            Self::None => return Liveness::LockGone,
            Self::Untestable => return Liveness::Alive,
        };
        if !LockKind::Runner.is_name(lock_file) {
            return Liveness::LockGone;
        }
        let lock = match directory.open_file(lock_file, OFlags::RDONLY) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Liveness::LockGone,
            Err(_) => return Liveness::Alive,
        };
        // Shared, so that two tests at the same moment do not disturb each other.
        match lock.try_lock_shared() {
            Ok(()) => Liveness::Dead,
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => Liveness::Alive,
        }
    }
}

impl DraftStore {
    /// The locks of this store's runners. Drop it after the test, because it holds a descriptor.
    pub(super) fn runner_locks(&self) -> RunnerLocks {
        match self.runners_directory() {
            Ok(Some(directory)) => RunnerLocks::In(directory),
            Ok(None) => RunnerLocks::None,
            Err(_) => RunnerLocks::Untestable,
        }
    }

    /// Create a lock file for a runner, and lock it.
    pub(super) fn take_runner_lock(&self) -> Result<LockFile, LibrarianError> {
        LockFile::create(self.create_runners_directory()?, LockKind::Runner, OFlags::WRONLY)
    }

    /// Check that a runner of this process could register and test the locks of others. A run
    /// checks this before it recovers claims, because a process that cannot use the runners
    /// directory must not judge by it. A runner that `holds_lock` there has passed the check
    /// before; what it opens is checked again when it is opened.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Untrusted`] if the runners directory, or a file in it, must not be used;
    /// [`LibrarianError::CannotCreate`] if no lock file can be created there;
    /// [`LibrarianError::Io`].
    pub(crate) fn check_runners_directory(&self, holds_lock: bool) -> Result<(), LibrarianError> {
        let directory = self.create_runners_directory()?;
        if holds_lock {
            return Ok(());
        }
        let lock = LockFile::create(directory, LockKind::Runner, OFlags::RDONLY)?;
        let checked = lock.directory().check_contents();
        lock.remove().map_err(|source| {
            let path = lock.directory().path().join(lock.name());
            LibrarianError::CannotCreate { path, source }
        })?;
        checked
    }

    /// Remove lock files of dead runners: of those that were just declared dead, of those that died
    /// before they were registered, and of those that died between their end and the removal of
    /// their file; and the files of waiting runners that died. Files that cannot be removed now are
    /// left for the next call.
    pub(super) fn remove_free_lock_files(&self) {
        let Ok(Some(directory)) = self.runners_directory() else { return };
        let Ok(names) = directory.names() else { return };
        let names = names.into_iter().filter_map(|name| name.into_string().ok());
        let mut names: Vec<String> =
            names.filter(|name| LockKind::of_name(name).is_some()).collect();
        select_at_random(&mut names);
        let mut free = Vec::new();
        for name in names {
            // The lock is held until the end: a runner that has created its file and not locked it
            // yet waits for the lock, and then creates another file.
            if let Ok(Some(lock)) = directory.open_file(&name, OFlags::RDONLY)
                && lock.try_lock_shared().is_ok()
            {
                free.push((name, lock));
            }
        }
        if free.is_empty() {
            return;
        }
        // While a row says that the runner is alive, the free lock is needed as the proof that it
        // is dead. A free lock file without a row never gets a row.
        let needed = self.database().read("find lock files", |connection| {
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

/// Keep at most [`MAX_TESTED`] of them.
pub(super) fn select_at_random<T>(all: &mut Vec<T>) {
    if all.len() > MAX_TESTED {
        fastrand::shuffle(all);
        all.truncate(MAX_TESTED);
    }
}

/// Where a runner runs, for people who read its row. Its liveness does not depend on it: a machine
/// may have no boot id, and several may have the same name.
pub(super) struct Host {
    pub host: String,
    pub boot_id: String,
}

impl Host {
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
        // Another process tests at the same moment.
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
