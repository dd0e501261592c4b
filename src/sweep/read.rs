//! Reads the files that a walk found, one at a time.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};

use super::options::SweepOptions;
use super::skip::{Skip, SkipReason, SkippedFile};
use super::walk::{Entry, Identity, Root, SweepFiles};
use crate::draft::Draft;
use crate::metadata::{DraftMetadata, MAX_METADATA_BYTES};

/// One file or directory that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swept {
    /// It is a draft, not yet submitted.
    Draft(Draft),
    /// It was skipped.
    Skipped(SkippedFile),
}

impl SweepFiles {
    /// Read the files, one at each step of the iterator.
    ///
    /// The iterator yields each file or directory that was found once, in order, as a draft or as
    /// skipped. It keeps no text.
    #[must_use]
    pub fn drafts<'a>(&'a self, options: &'a SweepOptions) -> SweepDrafts<'a> {
        SweepDrafts { found: self, options, next: 0, directory: None }
    }
}

/// The drafts and skipped files of a sweep; see [`SweepFiles::drafts`].
pub struct SweepDrafts<'a> {
    found: &'a SweepFiles,
    options: &'a SweepOptions,
    next: usize,
    /// The directory of the last file, because the next file is often in it.
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

    /// Open a file that was a regular file when it was found, if it still is.
    fn open(&mut self, entry: &'a Entry) -> Result<File, Skip> {
        // O_NONBLOCK and O_NOCTTY are for a FIFO or a terminal that replaces the file between the
        // check and the opening.
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
    /// Links in the named path are followed at each opening. They must lead to the same file or
    /// directory as at the start of the sweep.
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

/// The provenance URI of this absolute path. It is not percent-encoded, because the file version
/// does not encode it, and the draft's id depends on it. For an absolute named path the two
/// versions give one id. (For a relative one, the file version keeps the relative path; those ids
/// differ.)
pub(super) fn file_uri(path: &Path) -> Result<String, Skip> {
    let path = path.to_str().ok_or(Skip::new(SkipReason::NonUtf8Name))?;
    let uri = format!("file://{path}");
    if uri.len() > MAX_METADATA_BYTES {
        return Err(Skip::new(SkipReason::NameTooLong));
    }
    Ok(uri)
}

/// The whole text of a file, if the file does not change while it is read: half of a text would
/// become a draft of its own.
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
    // Some editors leave a byte order mark in an otherwise empty file.
    if text.trim_start_matches('\u{feff}').trim().is_empty() {
        return Err(Skip::new(SkipReason::Empty));
    }
    Ok(text)
}

/// All bytes, if there are at most `limit`; at most one more is read. The file's size is not relied
/// on: a file may grow, and files in `/proc` report no size.
pub(super) fn read_capped(reader: impl Read, claimed: u64, limit: usize) -> Result<Vec<u8>, Skip> {
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

pub(super) fn has_changed(before: &Stat, after: &Stat) -> bool {
    let of = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    of(before) != of(after)
}
