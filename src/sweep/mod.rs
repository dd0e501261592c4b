//! A safe directory walk: the files that agents and people left behind, as drafts.
//!
//! A sweep has two steps. [`find`] walks the named paths and reads no file; [`SweepFiles::drafts`] then
//! reads one file at a time, so that a caller knows how much there is to do, submits in batches,
//! and never holds all texts at once.
//!
//! ```no_run
//! use std::time::SystemTime;
//!
//! use draftq::{
//!     DraftMetadata, DraftSourceSurface, SweepOptions, Swept, find_sweep_files,
//! };
//!
//! # fn main() -> Result<(), draftq::LibrarianError> {
//! let found = find_sweep_files(&["notes"])?;
//! let metadata = DraftMetadata::new(DraftSourceSurface::Directory, SystemTime::now());
//! for swept in found.drafts(&SweepOptions::new(metadata)) {
//!     match swept {
//!         Swept::Draft(draft) => { /* submit it */ }
//!         Swept::Skipped(file) => { /* name it, with file.reason */ }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What is taken
//!
//! Below a named directory: regular files whose name ends in `.md`, `.markdown` or `.txt`, in
//! whatever case, at any depth, hidden files too. Directories whose name begins with a dot are not
//! entered. Symbolic links are not followed, neither to files nor to directories. Files with other
//! names are passed over without a word; everything else that is not taken is reported with its
//! [`SkipReason`], and never stops the sweep.
//!
//! A path that was named is taken at its word: it may be hidden, it may be a symbolic link, and if
//! it is a file, its name may end in anything. Where two named paths lead to the same file, it is
//! taken once, under the first of them.
//!
//! # What a hostile tree cannot do
//!
//! The tree may change while it is swept, and whoever changes it may mean harm. Below a named
//! directory every part of a path is opened on its own and without following links, so a
//! directory swapped for a link does not lead out of the tree. Nothing is opened that is not a
//! regular file by then, and opening does not wait, so a FIFO cannot hold the sweep up. At most one
//! byte more than the limit is read, whatever size a file claims to have.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::{Serialize, Serializer};
use walkdir::{DirEntry, WalkDir};

use crate::draft::{DEFAULT_MAX_TEXT_BYTES, Draft};
use crate::error::LibrarianError;
use crate::metadata::{DraftMetadata, DraftSourceSurface, MAX_METADATA_BYTES};

/// What the ends of file names below a named directory may be, in whatever case.
pub const EXTENSIONS: [&str; 3] = ["md", "markdown", "txt"];

/// How the files of a sweep become drafts.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SweepOptions {
    /// The metadata of every draft; the provenance URI is set for each file.
    pub metadata: DraftMetadata,
    /// Largest file that is taken, in bytes. It should be the limit of the store.
    pub max_text_bytes: usize,
}

impl SweepOptions {
    /// These metadata, with the surface's [default agent](default_agent) if they name none, and
    /// the default limit of [`DEFAULT_MAX_TEXT_BYTES`].
    #[must_use]
    pub fn new(mut metadata: DraftMetadata) -> Self {
        if metadata.source_agent.is_none() {
            metadata.source_agent = default_agent(metadata.source_surface).map(str::to_owned);
        }
        Self { metadata, max_text_bytes: DEFAULT_MAX_TEXT_BYTES }
    }
}

/// The agent whose files a sweep of this surface finds, where the surface says so.
///
/// The agent is part of a draft's id; the file version fills in the same.
#[must_use]
pub fn default_agent(surface: DraftSourceSurface) -> Option<&'static str> {
    match surface {
        DraftSourceSurface::ClaudeMemory => Some("claude"),
        DraftSourceSurface::CodexMemory => Some("codex"),
        DraftSourceSurface::CopilotSessionStore => Some("copilot"),
        DraftSourceSurface::Directory
        | DraftSourceSurface::Mcp
        | DraftSourceSurface::Cli
        | DraftSourceSurface::RepoHandoff
        | DraftSourceSurface::AgentExport
        | DraftSourceSurface::ConsensusQuorum => None,
    }
}

/// Whether drafts of this surface are found as files in directories.
#[must_use]
pub fn is_sweep_surface(surface: DraftSourceSurface) -> bool {
    match surface {
        DraftSourceSurface::Directory
        | DraftSourceSurface::ClaudeMemory
        | DraftSourceSurface::CodexMemory
        | DraftSourceSurface::RepoHandoff
        | DraftSourceSurface::AgentExport => true,
        DraftSourceSurface::Mcp
        | DraftSourceSurface::Cli
        | DraftSourceSurface::ConsensusQuorum
        | DraftSourceSurface::CopilotSessionStore => false,
    }
}

/// Why a file, or a directory with all that is in it, was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SkipReason {
    /// The file holds nothing, or nothing but white space (and a byte order mark).
    Empty,
    /// The file has more bytes than the limit.
    TooLarge,
    /// The file's bytes are not UTF-8.
    NotUtf8,
    /// The file or directory cannot be opened or read.
    Unreadable,
    /// A FIFO, a socket or a device.
    NotRegular,
    /// A symbolic link that nobody named.
    Symlink,
    /// The path is not UTF-8, and a provenance URI is.
    NonUtf8Name,
    /// The path is too long for a provenance URI ([`MAX_METADATA_BYTES`]).
    NameTooLong,
    /// The file went away, was replaced, or was written to while the sweep was at it; the next
    /// sweep will take it if it is complete by then.
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

    /// The reason for a program, in snake_case.
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

    /// The reason for a person, as the end of a sentence that begins with the path.
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

/// A file or directory that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SkippedFile {
    /// Its absolute path. As JSON, what is not UTF-8 in it becomes U+FFFD.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Why it was not taken.
    pub reason: SkipReason,
    /// More about the reason, such as the system's error. It holds nothing of the file's content.
    pub detail: Option<String>,
}

/// serde refuses a path that is not UTF-8, and just such paths are to be reported here.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// What became of one thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swept {
    /// It is a draft, not yet submitted.
    Draft(Draft),
    /// It was not taken.
    Skipped(SkippedFile),
}

/// A reason and its detail, before they belong to a path.
#[derive(Debug, Clone)]
struct Skip {
    reason: SkipReason,
    detail: Option<String>,
}

impl Skip {
    fn new(reason: SkipReason) -> Self {
        Self { reason, detail: None }
    }

    fn with(reason: SkipReason, detail: impl ToString) -> Self {
        Self { reason, detail: Some(detail.to_string()) }
    }

    /// Anything but a regular file.
    fn not_regular(kind: FileType) -> Self {
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
    /// The failure of a system call on something that was there when it was found.
    fn from(errno: Errno) -> Self {
        let reason = match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => SkipReason::Changed,
            _ => SkipReason::Unreadable,
        };
        Self::with(reason, io::Error::from(errno))
    }
}

/// What a file or directory is, whatever its name: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64);

impl Identity {
    fn of(stat: &Stat) -> Self {
        Self(stat.st_dev, stat.st_ino)
    }
}

/// A path that was named.
#[derive(Debug)]
struct Root {
    /// As it was named. It is walked and opened under this name: from a working directory below
    /// one that may not be searched, the absolute path leads nowhere.
    named: PathBuf,
    absolute: PathBuf,
    kind: FileType,
    identity: Identity,
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
fn absolute(named: &Path) -> io::Result<PathBuf> {
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
struct Entry {
    /// Index of the named path.
    root: usize,
    /// The path below it; empty for the named path itself.
    below: PathBuf,
    skip: Option<Skip>,
}

/// What a walk found, in the order of the named paths and, below each of them, sorted by name.
#[derive(Debug)]
pub struct SweepFiles {
    roots: Vec<Root>,
    entries: Vec<Entry>,
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
    fn path_below(&self, root: &Path) -> PathBuf {
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

    /// Read the files, one at each step.
    ///
    /// The iterator yields each thing that was found once, in order, as a draft or as skipped. It
    /// holds no text that it has yielded.
    #[must_use]
    pub fn drafts<'a>(&'a self, options: &'a SweepOptions) -> SweepDrafts<'a> {
        SweepDrafts { found: self, options, next: 0, directory: None }
    }
}

/// The drafts of a sweep, and what was skipped; see [`SweepFiles::drafts`].
pub struct SweepDrafts<'a> {
    found: &'a SweepFiles,
    options: &'a SweepOptions,
    next: usize,
    /// The directory of the file read last: the next one is often in it.
    directory: Option<OpenDirectory<'a>>,
}

struct OpenDirectory<'a> {
    root: usize,
    below: &'a Path,
    handle: OwnedFd,
}

impl Iterator for SweepDrafts<'_> {
    type Item = Swept;

    fn next(&mut self) -> Option<Swept> {
        let found = self.found;
        let entry = found.entries.get(self.next)?;
        self.next += 1;
        let path = entry.path_below(&found.roots[entry.root].absolute);
        let read = match &entry.skip {
            Some(skip) => Err(skip.clone()),
            None => self.read(entry, &path),
        };
        Some(match read {
            Ok(draft) => Swept::Draft(draft),
            Err(Skip { reason, detail }) => Swept::Skipped(SkippedFile { path, reason, detail }),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.found.entries.len() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for SweepDrafts<'_> {}

impl<'a> SweepDrafts<'a> {
    fn read(&mut self, entry: &'a Entry, path: &Path) -> Result<Draft, Skip> {
        let provenance = file_uri(path)?;
        let file = self.open(entry)?;
        let raw_text = read_text(&file, self.options.max_text_bytes)?;
        let provenance_uri = Some(provenance);
        let metadata = DraftMetadata { provenance_uri, ..self.options.metadata.clone() };
        Ok(Draft::with_metadata(raw_text, metadata))
    }

    /// Open a file that was regular when it was found, if it still is.
    fn open(&mut self, entry: &'a Entry) -> Result<File, Skip> {
        // O_NONBLOCK and O_NOCTTY are for what may take the file's place between the look and the
        // opening: a FIFO nobody writes to, a terminal.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match (entry.below.parent(), entry.below.file_name()) {
            (Some(parent), Some(name)) => {
                let directory = self.directory(entry.root, parent)?;
                regular(&rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?)?;
                rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW, Mode::empty())?
            }
            _ => {
                let root = &self.found.roots[entry.root];
                regular(&rustix::fs::stat(&root.named)?)?;
                let file = rustix::fs::open(&root.named, flags, Mode::empty())?;
                root.recognize(&file)?;
                file
            }
        };
        regular(&rustix::fs::fstat(&file)?)?;
        Ok(File::from(file))
    }

    /// The directory at this path below a root, reached without following a link.
    fn directory(&mut self, root: usize, below: &'a Path) -> Result<&OwnedFd, Skip> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = match self.directory.take() {
            Some(open) if open.root == root && open.below == below => open,
            _ => {
                let named = &self.found.roots[root];
                let mut handle = rustix::fs::openat(CWD, &named.named, flags, Mode::empty())?;
                named.recognize(&handle)?;
                for part in below {
                    let flags = flags | OFlags::NOFOLLOW;
                    handle = rustix::fs::openat(&handle, part, flags, Mode::empty())?;
                }
                OpenDirectory { root, below, handle }
            }
        };
        Ok(&self.directory.insert(open).handle)
    }
}

impl Root {
    /// Links in the named path are followed at every opening; they must still lead to the same
    /// place as when the user's word was taken for it.
    fn recognize(&self, opened: impl AsFd) -> Result<(), Skip> {
        let identity = Identity::of(&rustix::fs::fstat(opened)?);
        if identity == self.identity { Ok(()) } else { Err(Skip::new(SkipReason::Changed)) }
    }
}

fn regular(stat: &Stat) -> Result<(), Skip> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        kind => Err(Skip::not_regular(kind)),
    }
}

/// The provenance URI of this absolute path: not percent-encoded, though a URI should be, because
/// the file version writes it so, and a draft's id follows from it. For a path that is named
/// absolutely the two versions give one id. (Named relatively, the file version keeps the relative
/// path, which says little about where the file is; those ids differ.)
fn file_uri(path: &Path) -> Result<String, Skip> {
    let path = path.to_str().ok_or(Skip::new(SkipReason::NonUtf8Name))?;
    let uri = format!("file://{path}");
    if uri.len() > MAX_METADATA_BYTES {
        return Err(Skip::new(SkipReason::NameTooLong));
    }
    Ok(uri)
}

/// The whole text of a file that holds still while it is read: half of what somebody is about to
/// write would become a draft of its own.
fn read_text(file: &File, limit: usize) -> Result<String, Skip> {
    let before = rustix::fs::fstat(file)?;
    let bytes = read_capped(file, u64::try_from(before.st_size).unwrap_or_default(), limit)?;
    if has_changed(&before, &rustix::fs::fstat(file)?) {
        return Err(Skip::new(SkipReason::Changed));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        Skip::with(SkipReason::NotUtf8, format!("invalid at byte {offset}"))
    })?;
    // Some editors leave a byte order mark in a file that is otherwise empty.
    if text.trim_start_matches('\u{feff}').trim().is_empty() {
        return Err(Skip::new(SkipReason::Empty));
    }
    Ok(text)
}

/// All bytes, if there are at most `limit`; at most one more is read to find out. The size that
/// the file claims is not to be relied on: it may grow, and files in `/proc` claim none.
fn read_capped(reader: impl Read, claimed: u64, limit: usize) -> Result<Vec<u8>, Skip> {
    let too_large = || Skip::with(SkipReason::TooLarge, format!("more than {limit} bytes"));
    let cap = u64::try_from(limit).unwrap_or(u64::MAX);
    if claimed > cap {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(claimed).unwrap_or(0).min(1 << 20) + 1);
    reader
        .take(cap.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Skip::with(SkipReason::Unreadable, error))?;
    if bytes.len() > limit { Err(too_large()) } else { Ok(bytes) }
}

fn has_changed(before: &Stat, after: &Stat) -> bool {
    let of = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    of(before) != of(after)
}

#[cfg(test)]
mod tests;
