//! Walks the named paths and reads no file.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Stat};
use walkdir::{DirEntry, WalkDir};

use super::skip::{Skip, SkipReason};
use crate::error::LibrarianError;

/// The endings of file names that are taken below a named directory, in upper or lower case.
pub const EXTENSIONS: [&str; 3] = ["md", "markdown", "txt"];

/// The identity of a file or directory: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity(u64, u64);

impl Identity {
    pub(super) fn of(stat: &Stat) -> Self {
        Self(stat.st_dev, stat.st_ino)
    }
}

/// A path that was named.
#[derive(Debug)]
pub(super) struct Root {
    /// The path as it was named. It is walked and opened under this name, because below a directory
    /// that may not be searched the absolute path cannot be opened.
    pub named: PathBuf,
    pub absolute: PathBuf,
    pub kind: FileType,
    pub identity: Identity,
}

impl Root {
    /// The path of the named file or directory itself, with the links in its parent resolved.
    fn place(&self) -> Option<PathBuf> {
        let parent = fs::canonicalize(self.absolute.parent()?).ok()?;
        Some(parent.join(self.absolute.file_name()?))
    }

    fn look_at(named: &Path) -> Result<Self, LibrarianError> {
        let failed =
            |source| LibrarianError::Io { doing: "sweep", path: named.to_path_buf(), source };
        let stat = rustix::fs::stat(named).map_err(|errno| failed(errno.into()))?;
        Ok(Self {
            named: named.to_path_buf(),
            absolute: absolute(named).map_err(failed)?,
            kind: FileType::from_raw_mode(stat.st_mode),
            identity: Identity::of(&stat),
        })
    }
}

/// The absolute path of a named path. Symbolic links in it are not resolved, with one exception: in
/// a relative path, everything up to and including the last `..` is. Otherwise `../notes` would be
/// another source, with other drafts, from each working directory.
pub(super) fn absolute(named: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(named)?;
    let parts: Vec<Component<'_>> = path.components().collect();
    match parts.iter().rposition(|part| *part == Component::ParentDir) {
        Some(last) if named.is_relative() => {
            let (upward, rest) = parts.split_at(last + 1);
            let mut path = fs::canonicalize(upward.iter().collect::<PathBuf>())?;
            path.extend(rest);
            Ok(path)
        }
        _ => Ok(path),
    }
}

/// A file to read, or a file or directory to skip.
#[derive(Debug)]
pub(super) struct Entry {
    /// Index of the named path.
    pub root: usize,
    /// The path below it; empty for the named path itself.
    pub below: PathBuf,
    pub skip: Option<Skip>,
}

/// What a walk found, in the order of the named paths and, below each of them, sorted by name.
#[derive(Debug)]
pub struct SweepFiles {
    pub(super) roots: Vec<Root>,
    pub(super) entries: Vec<Entry>,
}

/// Walk these paths. No file is opened.
///
/// # Errors
///
/// [`LibrarianError::Io`] if one of the paths does not exist or cannot be reached. All of them are
/// checked before the first is walked. Unreadable files and directories below them are not an
/// error.
pub fn find<P: AsRef<Path>>(paths: &[P]) -> Result<SweepFiles, LibrarianError> {
    let roots: Vec<Root> =
        paths.iter().map(|path| Root::look_at(path.as_ref())).collect::<Result<_, _>>()?;
    let mut entries = Vec::new();
    for (index, root) in roots.iter().enumerate() {
        let itself = |skip| Entry { root: index, below: PathBuf::new(), skip };
        match root.kind {
            FileType::Directory => walk(index, &root.named, &mut entries),
            FileType::RegularFile => entries.push(itself(None)),
            kind => entries.push(itself(Some(Skip::not_regular(kind)))),
        }
    }
    // One walk finds nothing twice.
    if roots.len() > 1 {
        take_once(&roots, &mut entries);
    }
    Ok(SweepFiles { roots, entries })
}

fn walk(root: usize, named: &Path, entries: &mut Vec<Entry>) {
    // walkdir follows a link that is the root itself, and with these settings no other.
    let walk = WalkDir::new(named).min_depth(1).follow_links(false).sort_by_file_name();
    for entry in walk.into_iter().filter_entry(|entry| !is_hidden_directory(entry)) {
        let (path, skip) = match entry {
            Ok(entry) if !is_of_interest(&entry) => continue,
            Ok(entry) if entry.file_type().is_file() => (entry.into_path(), None),
            Ok(entry) => {
                let kind = entry
                    .metadata()
                    .map_or(FileType::Unknown, |it| FileType::from_raw_mode(it.mode()));
                (entry.into_path(), Some(Skip::not_regular(kind)))
            }
            Err(error) => {
                let path = error.path().unwrap_or(named).to_path_buf();
                let detail = error.into_io_error().map(|error| error.to_string());
                (path, Some(Skip { reason: SkipReason::Unreadable, detail }))
            }
        };
        let below = path.strip_prefix(named).map_or_else(|_| path.clone(), Path::to_path_buf);
        entries.push(Entry { root, below, skip });
    }
}

fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().as_bytes().starts_with(b".")
}

fn is_hidden_directory(entry: &DirEntry) -> bool {
    entry.file_type().is_dir() && is_hidden(entry)
}

/// Whether the entry is taken or, if that is impossible, reported: its name has a supported ending,
/// or it is a link to a directory.
fn is_of_interest(entry: &DirEntry) -> bool {
    let kind = entry.file_type();
    let supported = entry.path().extension().is_some_and(|extension| {
        EXTENSIONS.iter().any(|supported| extension.eq_ignore_ascii_case(supported))
    });
    let leads_to_directory = || {
        kind.is_symlink()
            && !is_hidden(entry)
            && fs::metadata(entry.path()).is_ok_and(|target| target.is_dir())
    };
    !kind.is_dir() && (supported || leads_to_directory())
}

/// Remove entries that were found under an earlier root as well, and links that are roots
/// themselves.
fn take_once(roots: &[Root], entries: &mut Vec<Entry>) {
    // The path of each root itself, and the path that it leads to. Between a root and the files
    // below it there is no link, so one resolved path per root is enough. Hard links stay separate:
    // they are different paths, and different sources.
    let places: HashSet<PathBuf> = roots.iter().filter_map(Root::place).collect();
    let targets: Vec<PathBuf> = roots
        .iter()
        .map(|root| fs::canonicalize(&root.named).unwrap_or_else(|_| root.absolute.clone()))
        .collect();
    let mut seen = HashSet::new();
    entries.retain(|entry| {
        let path = entry.path_below(&targets[entry.root]);
        let is_named_link = places.contains(&path)
            && entry.skip.as_ref().is_some_and(|skip| skip.reason == SkipReason::Symlink);
        !is_named_link && seen.insert(path)
    });
}

impl Entry {
    pub(super) fn path_below(&self, root: &Path) -> PathBuf {
        // Joining an empty path would add a slash.
        if self.below.as_os_str().is_empty() { root.to_path_buf() } else { root.join(&self.below) }
    }
}

impl SweepFiles {
    /// How many items [`drafts`](Self::drafts) yields: the files to read, and the skipped ones.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was found, not even a skipped file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
