//! What the kernel says about a file and its owner. Nothing here opens a file.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxAttributes, StatxFlags, makedev, statat, statx};
use rustix::io::Errno;
use rustix::process::geteuid;

/// Which file it is: the same under every name, and another one after a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileIdentity {
    pub device: u64,
    pub inode: u64,
}

/// To whom the database belongs, and everything beside it.
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

    /// Whether what this process makes must be given to this owner.
    pub(crate) fn is_another(self) -> bool {
        self.user != geteuid().as_raw()
    }
}

/// What the kernel says of a file, a link not followed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    pub kind: FileType,
    pub mode: u32,
    pub user: u32,
    pub group: u32,
    pub links: u32,
    pub size: u64,
    pub identity: FileIdentity,
    /// Whether something is mounted exactly here; `false` where the kernel cannot tell.
    pub is_mount_point: bool,
}

impl Facts {
    /// Of what is at this path; `None` if nothing is.
    pub(crate) fn of(path: &Path) -> io::Result<Option<Self>> {
        Self::at(CWD, path)
    }

    /// Of what has this name in the directory.
    pub(crate) fn at(directory: impl AsFd, name: &Path) -> io::Result<Option<Self>> {
        Self::read(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
    }

    /// Of an open file.
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
                // The bit is only ever set where the kernel knows of it.
                is_mount_point: found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
            })),
            Err(Errno::NOENT) => Ok(None),
            // An old kernel, or a container that does not let it through.
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

/// Whether the user has a number of its own in this user namespace. Those that have none all
/// appear as one (65534 as a rule), which may have an owner as well.
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
