//! Metadata of files, and their owners. Nothing here opens a file.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxAttributes, StatxFlags, makedev, statat, statx};
use rustix::io::Errno;
use rustix::process::geteuid;

/// The identity of a file: the same under every name, and different after a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileIdentity {
    pub device: u64,
    pub inode: u64,
}

/// The owner of the database and of every file beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub user: u32,
    pub group: u32,
}

impl Owner {
    /// The user and group that this process acts as.
    pub(crate) fn caller() -> Self {
        Self { user: geteuid().as_raw(), group: rustix::process::getegid().as_raw() }
    }

    /// Whether files that this process creates must be given to this owner.
    pub(crate) fn is_another(self) -> bool {
        self.user != geteuid().as_raw()
    }
}

/// Metadata of a file. A link is not followed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    pub kind: FileType,
    pub mode: u32,
    pub user: u32,
    pub group: u32,
    pub links: u32,
    pub size: u64,
    pub identity: FileIdentity,
    /// Whether it is a mount point; `false` where the kernel does not report it.
    pub is_mount_point: bool,
}

impl Facts {
    /// Metadata of the file at this path; `None` if there is none.
    pub(crate) fn of(path: &Path) -> io::Result<Option<Self>> {
        Self::at(CWD, path)
    }

    /// Metadata of the file with this name in the directory; `None` if there is none.
    pub(crate) fn at(directory: impl AsFd, name: &Path) -> io::Result<Option<Self>> {
        Self::read(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
    }

    /// Metadata of an open file.
    pub(crate) fn of_open(file: impl AsFd) -> io::Result<Self> {
        let facts = Self::read(file.as_fd(), Path::new(""), AtFlags::EMPTY_PATH)?;
        facts.ok_or_else(|| Errno::NOENT.into())
    }

    fn read(
        directory: std::os::fd::BorrowedFd<'_>,
        name: &Path,
        flags: AtFlags,
    ) -> io::Result<Option<Self>> {
        match statx(directory, name, flags, StatxFlags::BASIC_STATS) {
            Ok(found) => Ok(Some(Self {
                kind: FileType::from_raw_mode(found.stx_mode.into()),
                mode: u32::from(found.stx_mode) & 0o7777,
                user: found.stx_uid,
                group: found.stx_gid,
                links: found.stx_nlink,
                size: found.stx_size,
                identity: FileIdentity {
                    device: makedev(found.stx_dev_major, found.stx_dev_minor),
                    inode: found.stx_ino,
                },
                // A kernel that does not know the bit does not set it.
                is_mount_point: found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
            })),
            Err(Errno::NOENT) => Ok(None),
            // An old kernel, or a container that blocks the call.
            Err(Errno::NOSYS | Errno::PERM) => match statat(directory, name, flags) {
                Ok(found) => Ok(Some(Self {
                    kind: FileType::from_raw_mode(found.st_mode),
                    mode: found.st_mode & 0o7777,
                    user: found.st_uid,
                    group: found.st_gid,
                    links: found.st_nlink.min(2) as u32,
                    size: found.st_size.unsigned_abs(),
                    identity: FileIdentity { device: found.st_dev, inode: found.st_ino },
                    is_mount_point: false,
                })),
                Err(Errno::NOENT) => Ok(None),
                Err(error) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether the user has its own number in this user namespace. All users without one appear under
/// the same number (usually 65534), which a real user may have too.
pub(super) fn is_mapped(user: u32) -> bool {
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else { return true };
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), _, Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        (first..first.saturating_add(count)).contains(&u64::from(user))
    })
}

/// The kind of a file, with its article.
pub(super) fn name_of(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        _ => "a device",
    }
}

/// The path with something added to its last name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
