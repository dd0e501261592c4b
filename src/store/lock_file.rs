//! A file in the runners directory that its process holds locked for as long as it lives.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::OFlags;

use crate::database::RunnersDirectory;
use crate::error::LibrarianError;

/// What a lock file stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockKind {
    /// A registered runner.
    Runner,
    /// A runner that waits for work.
    Waiting,
}

impl LockKind {
    const ALL: [Self; 2] = [Self::Runner, Self::Waiting];

    fn suffix(self) -> &'static str {
        match self {
            Self::Runner => ".lock",
            Self::Waiting => ".waiting",
        }
    }

    /// Whether this is the name of such a file. A name may come from the database, which may be
    /// hostile, and the file is opened, and removed in the end.
    pub(super) fn is_name(self, name: &str) -> bool {
        let is_number =
            |part: &str| part.len() == 16 && part.bytes().all(|b| b.is_ascii_hexdigit());
        let Some(stem) = name.strip_suffix(self.suffix()) else { return false };
        match stem.split_once('-') {
            // The key of a waiting runner's filter.
            Some((stem, key)) => self == Self::Waiting && is_number(stem) && is_number(key),
            None => is_number(stem),
        }
    }

    /// The kind of the file with this name; `None` if it is no lock file.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.is_name(name))
    }
}

/// A lock file that this process has created and locked.
#[derive(Debug)]
pub(super) struct LockFile {
    directory: RunnersDirectory,
    name: String,
    file: File,
}

impl LockFile {
    /// Create a file with a new name, and lock it. Waiting runners test who is alive when a lock
    /// file is closed that was opened for writing.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::CannotCreate`].
    pub(super) fn create(
        directory: RunnersDirectory,
        kind: LockKind,
        access: OFlags,
    ) -> Result<Self, LibrarianError> {
        Self::create_named(directory, kind.suffix(), access)
    }

    /// Create the file of a waiting runner, with the key of its filter if it has one, and lock it.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::CannotCreate`].
    pub(super) fn create_waiting(
        directory: RunnersDirectory,
        filter: Option<u64>,
    ) -> Result<Self, LibrarianError> {
        let suffix = LockKind::Waiting.suffix();
        let suffix = match filter {
            Some(key) => format!("-{key:016x}{suffix}"),
            None => suffix.to_owned(),
        };
        Self::create_named(directory, &suffix, OFlags::RDONLY)
    }

    fn create_named(
        mut directory: RunnersDirectory,
        suffix: &str,
        access: OFlags,
    ) -> Result<Self, LibrarianError> {
        loop {
            let name = format!("{:016x}{suffix}", fastrand::u64(..));
            let locked = directory.create_file(&name, access).and_then(|file| {
                file.lock()?;
                Ok(file)
            });
            match locked {
                Ok(file) => {
                    let lock = Self { directory, name, file };
                    // Another process may have removed it before it was locked.
                    if lock.has_name() {
                        return Ok(lock);
                    }
                    directory = lock.directory;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => {
                    let path = directory.path().join(name);
                    return Err(LibrarianError::CannotCreate { path, source });
                }
            }
        }
    }

    pub(super) fn directory(&self) -> &RunnersDirectory {
        &self.directory
    }

    /// The file's name in the directory.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the file is where other processes test it. A lock whose file was removed shows
    /// nothing.
    pub(super) fn is_in_place(&self, directory: &RunnersDirectory) -> bool {
        directory.holds(&self.name, &self.file).unwrap_or(false)
    }

    /// Whether no process has removed the file.
    pub(super) fn has_name(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
    }

    /// Remove the file. Returns whether it was there. If it fails, the file is left for
    /// [`remove_free_lock_files`](super::DraftStore::remove_free_lock_files).
    ///
    /// # Errors
    ///
    /// As for a removal.
    pub(super) fn remove(&self) -> io::Result<bool> {
        self.directory.remove_file(&self.name, &self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lock_files_are_touched() {
        assert_eq!(LockKind::of_name("0123456789abcdef.lock"), Some(LockKind::Runner));
        assert_eq!(LockKind::of_name("0123456789abcdef.waiting"), Some(LockKind::Waiting));
        let filtered = "0123456789abcdef-fedcba9876543210.waiting";
        assert_eq!(LockKind::of_name(filtered), Some(LockKind::Waiting));
        for other in [
            "0123456789abcdef-fedcba9876543210.lock",
            "0123456789abcdef-../../../etc/pwd.waiting",
            "0123456789abcdef-.waiting",
            "",
            ".lock",
            ".waiting",
            "wakeup",
            "../../etc/passwd",
            "../23456789abcdef.lock",
            "x/0123456789abcdef.lock",
        ] {
            assert_eq!(LockKind::of_name(other), None, "{other}");
        }
        assert!(!LockKind::Runner.is_name("0123456789abcdef.waiting"));
    }
}
