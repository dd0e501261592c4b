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
