//! Sweeps: files that agents and people wrote become drafts.
//!
//! A sweep has two steps. [`find`] walks the named paths and reads no file. [`SweepFiles::drafts`]
//! then reads one file at a time, so that the caller knows the number of files, can submit in
//! batches, and never holds all texts at once.
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
//! Below a named directory: regular files whose name ends in `.md`, `.markdown` or `.txt`, in upper
//! or lower case, at any depth, hidden files too. Directories whose name begins with a dot are not
//! entered. Symbolic links are not followed, neither to files nor to directories. Files with other
//! names are ignored; everything else that is skipped is reported with its [`SkipReason`], and
//! never stops the sweep.
//!
//! A path that was named may be hidden, it may be a symbolic link, and if it is a file, its name
//! may have any ending. If two named paths lead to the same file, it is taken once, under the first
//! of them.
//!
//! # What a hostile tree cannot do
//!
//! The tree may change during the sweep, with bad intent. Below a named directory every part of a
//! path is opened separately and without following links, so a directory that was swapped for a
//! link does not lead out of the tree. Only regular files are opened, and opening does not block,
//! so a FIFO cannot stop the sweep. At most one byte more than the limit is read, whatever the size
//! of the file.

mod options;
mod read;
mod skip;
#[cfg(test)]
mod tests;
mod walk;

pub use self::options::{SweepOptions, default_agent, is_sweep_surface};
pub use self::read::{SweepDrafts, Swept};
pub use self::skip::{SkipReason, SkippedFile};
pub use self::walk::{EXTENSIONS, SweepFiles, find};
