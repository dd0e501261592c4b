//! The directory beside the database for the runners' lock files and the wakeup file.
//!
//! Another user who could create files there could make draftq create, overwrite or delete a file
//! elsewhere, or make a live runner seem dead. So the directory and each file in it are checked
//! (`trust.rs`) before they are opened, and files are opened relative to the directory's
//! descriptor, never through a link.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, Gid, Mode, OFlags, ResolveFlags, Uid, fchown, mkdir, openat, openat2,
    unlinkat,
};
use rustix::io::Errno;

use super::facts::{Facts, FileIdentity, Owner, with_suffix};
use super::trust::{Kind, RUNNERS_SUFFIX, check};
use crate::error::LibrarianError;

/// An open runners directory that belongs to the database's owner.
#[derive(Debug)]
pub(crate) struct RunnersDirectory {
    fd: OwnedFd,
    path: PathBuf,
    owner: Owner,
}

impl RunnersDirectory {
    /// The path of the runners directory of the database at this resolved path.
    pub(crate) fn path_beside(database: &Path) -> PathBuf {
        with_suffix(database, RUNNERS_SUFFIX)
    }

    /// Open the directory; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Untrusted`] if it is a link, belongs to another user, or is writable by
    /// others; [`LibrarianError::Io`] if it cannot be opened.
    pub(crate) fn open(path: &Path, owner: Owner) -> Result<Option<Self>, LibrarianError> {
        let cannot = |source| LibrarianError::Io { doing: "open", path: path.to_owned(), source };
        // First by name, so that the error names a link or another owner.
        if check(path, owner, Kind::Directory, || Facts::of(path))?.is_none() {
            return Ok(None);
        }
        let fd = match open_directory(path) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(cannot(error.into())),
        };
        check(path, owner, Kind::Directory, || Facts::of_open(&fd).map(Some))?;
        Ok(Some(Self { fd, path: path.to_owned(), owner }))
    }

    /// Open the directory; create it for its owner alone (0700) if there is none.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open), and [`LibrarianError::CannotCreate`].
    pub(crate) fn open_or_create(path: &Path, owner: Owner) -> Result<Self, LibrarianError> {
        let cannot = |source| LibrarianError::CannotCreate { path: path.to_owned(), source };
        for _ in 0..100 {
            match Self::open(path, owner) {
                Ok(Some(directory)) => return Ok(directory),
                Ok(None) => {}
                Err(LibrarianError::Io { path, source, .. }) => {
                    return Err(LibrarianError::CannotCreate { path, source });
                }
                Err(error) => return Err(error),
            }
            match mkdir(path, Mode::from_raw_mode(0o700)) {
                Ok(()) if owner.is_another() => {
                    give_new_directory(path, owner).map_err(cannot)?;
                }
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(cannot(error.into())),
            }
        }
        // Another process deletes it each time it is created.
        Err(cannot(io::ErrorKind::NotFound.into()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Which directory it is: another may be at its path later.
    pub(crate) fn identity(&self) -> io::Result<FileIdentity> {
        Ok(Facts::of_open(&self.fd)?.identity)
    }

    /// Check every file in the directory.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Untrusted`] for the first entry that is not a regular file with one link,
    /// owned by the database's owner and writable by that owner alone; [`LibrarianError::Io`].
    pub(crate) fn check_contents(&self) -> Result<(), LibrarianError> {
        let cannot = |source| LibrarianError::Io { doing: "read", path: self.path.clone(), source };
        for name in self.names().map_err(cannot)? {
            self.check(Path::new(&name))?;
        }
        Ok(())
    }

    /// The names of the files in the directory.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn check(&self, name: &Path) -> Result<Option<Facts>, LibrarianError> {
        check(&self.path.join(name), self.owner, Kind::File, || Facts::at(&self.fd, name))
    }

    /// Open the file with this name, if there is one that may be used. If it was opened with
    /// [`OFlags::WRONLY`], closing it wakes processes that watch the directory.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Untrusted`], and [`LibrarianError::Io`] if it cannot be opened.
    pub(crate) fn open_file(
        &self,
        name: &str,
        access: OFlags,
    ) -> Result<Option<File>, LibrarianError> {
        let name = Path::new(name);
        // Check by name first: opening and closing the database under another name would drop its
        // locks.
        let Some(expected) = self.check(name)? else { return Ok(None) };
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(&self.fd, name, flags, Mode::empty());
        let cannot =
            |source| LibrarianError::Io { doing: "open", path: self.path.join(name), source };
        let file = match opened {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(cannot(error.into())),
        };
        let found = Facts::of_open(&file).map_err(cannot)?;
        if found.identity != expected.identity {
            return Err(cannot(io::Error::other("it was replaced at this moment")));
        }
        Ok(Some(File::from(file)))
    }

    /// Create a new file for its owner alone (0600).
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AlreadyExists`] if the name is taken.
    pub(crate) fn create_file(&self, name: &str, access: OFlags) -> io::Result<File> {
        let flags = access | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.fd, name, flags, Mode::from_raw_mode(0o600))?;
        if self.owner.is_another()
            && let Err(error) = give(&file, self.owner)
        {
            self.remove_file(name, &file)?;
            return Err(error);
        }
        Ok(File::from(file))
    }

    /// Whether the file with this name is this file.
    pub(crate) fn holds(&self, name: &str, file: impl std::os::fd::AsFd) -> io::Result<bool> {
        let Some(found) = Facts::at(&self.fd, Path::new(name))? else { return Ok(false) };
        Ok(found.identity == Facts::of_open(file)?.identity)
    }

    /// Remove the file with this name if it is this file, and not another that replaced it.
    /// Returns whether this call removed it: of several processes, one does.
    pub(crate) fn remove_file(&self, name: &str, file: impl std::os::fd::AsFd) -> io::Result<bool> {
        if !self.holds(name, file)? {
            return Ok(false);
        }
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// No link is followed anywhere in the path, which is a resolved one.
fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        // Before Linux 5.6, or where a container blocks the call.
        Err(Errno::NOSYS | Errno::PERM) => openat(CWD, path, flags, Mode::empty()),
        other => other,
    }
}

/// Change the owner of the directory that root has just created.
fn give_new_directory(path: &Path, owner: Owner) -> io::Result<()> {
    let fd = open_directory(path)?;
    // The owner of the parent directory may have moved another directory of root's here. An empty
    // one gives nothing away.
    for entry in Dir::read_from(&fd)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
    }
    give(&fd, owner)
}

fn give(file: impl std::os::fd::AsFd, owner: Owner) -> io::Result<()> {
    fchown(file, Some(Uid::from_raw(owner.user)), Some(Gid::from_raw(owner.group)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_existing_file_is_not_taken_for_a_new_one() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("drafts.db-runners");
        let directory = RunnersDirectory::open_or_create(&path, Owner::caller()).unwrap();
        drop(directory.create_file("there", OFlags::WRONLY).unwrap());
        let target = around.path().join("elsewhere");
        symlink(&target, path.join("link")).unwrap();
        for name in ["there", "link"] {
            let error = directory.create_file(name, OFlags::WRONLY).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{name}");
        }
        assert!(!target.exists());
    }

    #[test]
    fn no_link_is_followed_to_the_directory() {
        let around = tempfile::tempdir().unwrap();
        let real = around.path().join("real");
        fs::create_dir(&real).unwrap();
        let path = real.join("drafts.db-runners");
        let owner = Owner::caller();
        drop(RunnersDirectory::open_or_create(&path, owner).unwrap());
        // Resolved before, the path had no link in it.
        let link = around.path().join("link");
        symlink(&real, &link).unwrap();
        let error = RunnersDirectory::open(&link.join("drafts.db-runners"), owner).unwrap_err();
        assert!(matches!(error, LibrarianError::Io { .. }), "{error:?}");
    }

    #[test]
    fn only_an_empty_directory_gets_a_new_owner() {
        let around = tempfile::tempdir().unwrap();
        fs::write(around.path().join("secret"), "").unwrap();
        let error = give_new_directory(around.path(), Owner::caller()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::DirectoryNotEmpty);
    }
}
