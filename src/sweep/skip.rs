//! Why a file is skipped.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;
use serde::{Serialize, Serializer};

/// Why a file, or a directory with everything in it, was skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SkipReason {
    /// The file is empty, or holds only white space (and a byte order mark).
    Empty,
    /// The file has more bytes than the limit.
    TooLarge,
    /// The file's bytes are not UTF-8.
    NotUtf8,
    /// The file or directory cannot be opened or read.
    Unreadable,
    /// A FIFO, a socket or a device.
    NotRegular,
    /// A symbolic link that was not named itself.
    Symlink,
    /// The path is not UTF-8, and a provenance URI is.
    NonUtf8Name,
    /// The path is too long for a provenance URI ([`MAX_METADATA_BYTES`](crate::MAX_METADATA_BYTES)).
    NameTooLong,
    /// The file was removed, replaced or written to during the sweep. The next sweep takes it if it
    /// is complete.
    Changed,
}

impl SkipReason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::Empty,
        Self::TooLarge,
        Self::NotUtf8,
        Self::Unreadable,
        Self::NotRegular,
        Self::Symlink,
        Self::NonUtf8Name,
        Self::NameTooLong,
        Self::Changed,
    ];

    /// The reason in snake_case, for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TooLarge => "too_large",
            Self::NotUtf8 => "not_utf8",
            Self::Unreadable => "unreadable",
            Self::NotRegular => "not_regular",
            Self::Symlink => "symlink",
            Self::NonUtf8Name => "non_utf8_name",
            Self::NameTooLong => "name_too_long",
            Self::Changed => "changed",
        }
    }

    /// The reason for people, as the end of a sentence that begins with the path.
    #[must_use]
    pub fn explanation(self) -> &'static str {
        match self {
            Self::Empty => "is empty or blank",
            Self::TooLarge => "is too large",
            Self::NotUtf8 => "is not UTF-8 text",
            Self::Unreadable => "cannot be read",
            Self::NotRegular => "is not a regular file",
            Self::Symlink => "is a symbolic link",
            Self::NonUtf8Name => "has a name that is not UTF-8",
            Self::NameTooLong => "has too long a path",
            Self::Changed => "changed while it was swept",
        }
    }
}

/// A file or directory that was skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SkippedFile {
    /// Its absolute path. In JSON, bytes that are not UTF-8 become U+FFFD.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Why it was skipped.
    pub reason: SkipReason,
    /// More about the reason, such as the system's error. It holds none of the file's content.
    pub detail: Option<String>,
}

/// serde refuses a path that is not UTF-8, and such paths must be reported.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// A reason and its detail, without a path.
#[derive(Debug, Clone)]
pub(super) struct Skip {
    pub reason: SkipReason,
    pub detail: Option<String>,
}

impl Skip {
    pub(super) fn new(reason: SkipReason) -> Self {
        Self { reason, detail: None }
    }

    pub(super) fn with(reason: SkipReason, detail: impl ToString) -> Self {
        Self { reason, detail: Some(detail.to_string()) }
    }

    /// Anything but a regular file.
    pub(super) fn not_regular(kind: FileType) -> Self {
        let what = match kind {
            FileType::Symlink => return Self::new(SkipReason::Symlink),
            FileType::Fifo => "a FIFO",
            FileType::Socket => "a socket",
            FileType::CharacterDevice => "a character device",
            FileType::BlockDevice => "a block device",
            FileType::Directory => "a directory",
            FileType::RegularFile | FileType::Unknown => "of an unknown type",
        };
        Self::with(SkipReason::NotRegular, what)
    }
}

impl From<Errno> for Skip {
    /// The failure of a system call on a file that existed when it was found.
    fn from(errno: Errno) -> Self {
        let reason = match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => SkipReason::Changed,
            _ => SkipReason::Unreadable,
        };
        Self::with(reason, io::Error::from(errno))
    }
}
