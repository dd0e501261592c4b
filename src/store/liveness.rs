//! Whether a runner lives: lock files.
//!
//! Time alone cannot tell a dead runner from a slow one. So each runner holds an exclusive lock
//! (`flock`) on a file of its own, in a directory beside the database, for as long as it lives.
//! The kernel frees the lock when the process ends, however it ends, and a reused process id has
//! no effect on it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::DraftStore;
use crate::database::make_private_directory;
use crate::error::LibrarianError;

/// Whether a runner lives, as far as can be known from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Liveness {
    Alive,
    Dead,
    /// Its lock file is gone.
    LockGone,
    /// It is on another machine, or its lock cannot be tried.
    Unknown,
}

/// What the database says of a runner's lock.
#[derive(Debug)]
pub(super) struct LockEntry<'a> {
    pub host: &'a str,
    pub boot_id: &'a str,
    pub lock_file: &'a str,
}

impl DraftStore {
    /// Whether the runner with this entry lives.
    pub(super) fn liveness(&self, runner: &LockEntry<'_>, here: &Here) -> Liveness {
        if runner.boot_id != here.boot_id {
            // Locks do not outlive the kernel. Of another machine nothing can be known.
            let rebooted = runner.host == here.host;
            return if rebooted { Liveness::Dead } else { Liveness::Unknown };
        }
        let Some(path) = lock_path(self.runners_directory(), runner.lock_file) else {
            return Liveness::Unknown;
        };
        let lock = match open_lock(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Liveness::LockGone,
            Err(_) => return Liveness::Unknown,
        };
        // Shared, so that two who look at once do not take each other for the runner.
        match lock.try_lock_shared() {
            Ok(()) => Liveness::Dead,
            Err(fs::TryLockError::WouldBlock) => Liveness::Alive,
            Err(fs::TryLockError::Error(_)) => Liveness::Unknown,
        }
    }

    /// Remove the lock files of runners that are no more: of those just declared dead, and of
    /// those that died before they had entered themselves, or between their end and this.
    /// What cannot be removed now, the next one will.
    pub(super) fn tidy_lock_files(&self) {
        let directory = self.runners_directory();
        let Ok(entries) = fs::read_dir(directory) else { return };
        let mut free = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(path) = lock_path(directory, &name) else { continue };
            // Held until the end: a runner that has made its file and not locked it yet waits
            // for that, and then makes another.
            if let Ok(lock) = open_lock(&path)
                && lock.try_lock_shared().is_ok()
            {
                free.push((name, path, lock));
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
        for (name, path, _lock) in &free {
            if !needed.contains(name) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Make a lock file that nobody had before, and lock it.
pub(super) fn take_new_lock(directory: &Path) -> Result<(PathBuf, File), LibrarianError> {
    let cannot = |path: &Path| {
        let path = path.to_owned();
        move |source| LibrarianError::CannotCreate { path, source }
    };
    make_private_directory(directory).map_err(cannot(directory))?;
    loop {
        let path = directory.join(format!("{:016x}.lock", fastrand::u64(..)));
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(lock) => {
                lock.lock().map_err(cannot(&path))?;
                // Somebody may have tidied it away before it was locked.
                if lock.metadata().map_err(cannot(&path))?.nlink() > 0 {
                    return Ok((path, lock));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(cannot(&path)(source)),
        }
    }
}

/// Where this lock file is, if the name is one that we give: a database may come from anywhere,
/// and the file is deleted in the end.
fn lock_path(directory: &Path, lock_file: &str) -> Option<PathBuf> {
    let stem = lock_file.strip_suffix(".lock")?;
    let ours = stem.len() == 16 && stem.bytes().all(|b| b.is_ascii_hexdigit());
    ours.then(|| directory.join(lock_file))
}

fn open_lock(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().read(true).custom_flags(no_follow()).open(path)
}

fn no_follow() -> i32 {
    // The flag fits: it is one bit of a C int.
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

/// What tells this machine, and this run of its kernel, from others.
pub(super) struct Here {
    pub host: String,
    pub boot_id: String,
}

impl Here {
    pub fn new() -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { host, boot_id: boot_id.trim().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_lock_files_are_touched() {
        let directory = Path::new("/d");
        let ours = lock_path(directory, "0123456789abcdef.lock");
        assert_eq!(ours.as_deref(), Some(Path::new("/d/0123456789abcdef.lock")));
        for other in
            ["", ".lock", "../../etc/passwd", "../23456789abcdef.lock", "x/0123456789abcdef.lock"]
        {
            assert_eq!(lock_path(directory, other), None, "{other}");
        }
    }
}
