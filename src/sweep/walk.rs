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

/// What the ends of file names below a named directory may be, in whatever case.
pub const EXTENSIONS: [&str; 3] = ["md", "markdown", "txt"];

/// What a file or directory is, whatever its name: device and inode.
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
    /// As it was named. It is walked and opened under this name: from a working directory below
    /// one that may not be searched, the absolute path leads nowhere.
    pub named: PathBuf,
    pub absolute: PathBuf,
    pub kind: FileType,
    pub identity: Identity,
}

impl Root {
    /// The path of the named thing itself, with links in what leads to it resolved.
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

/// The absolute path of what was named. Symbolic links in it are not resolved, with one exception:
/// `..` in a relative path is, by the file system, up to and including the last one. Otherwise
/// `../notes` would be another source, and its drafts other drafts, from every working directory.
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

/// A candidate, or what the walk already skips.
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
/// [`LibrarianError::Io`] if one of the paths is not there or cannot be reached; all of them are
/// looked at before the first is walked. What cannot be read below them is no error.
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
    // Within one walk nothing comes up twice.
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

/// Whether the entry is taken or, if it cannot be, worth a word: a name that promises a draft, or
/// a link to a directory in which there might be some.
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

/// Drop what comes up again under a later root, and links that are roots themselves.
fn take_once(roots: &[Root], entries: &mut Vec<Entry>) {
    // Where each root itself is, link or not, and where it leads. Between a root and what was
    // found below it there is no link, so one resolved path per root is enough. Hard links stay
    // apart: they are different paths, and different sources.
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
    /// How many things [`drafts`](Self::drafts) yields: the files to read, and what is skipped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was found, not even something to skip.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
