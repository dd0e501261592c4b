//! A durable local inbox for drafts: prose that agents and people wrote, and that is not to be
//! trusted until a processor has looked at it.
//!
//! draftq owns the mechanics of a run (recover what a dead run left, claim, call the processor,
//! move the draft on) and nothing of the judgement, which is injected: a [`DraftProcessor`] in
//! Rust, or any program ([`processors::command`]). Drafts live in one SQLite file that several
//! runners and people with a SQL shell may use at once.
//!
//! ```
//! use std::time::{Duration, SystemTime};
//! use draftq::{
//!     Draft, DraftMetadata, DraftProcessingDecision, DraftProcessor, DraftSourceSurface,
//!     DraftStore, LibrarianError, run_once,
//! };
//!
//! struct Judge;
//!
//! impl DraftProcessor for Judge {
//!     fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
//!         if draft.raw_text().to_lowercase().contains("ignore all previous instructions") {
//!             return Ok(DraftProcessingDecision::Quarantined);
//!         }
//!         Ok(DraftProcessingDecision::Accepted)
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("drafts.db");
//! let store = DraftStore::open(path)?;
//! let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
//! store.submit(&Draft::with_metadata("The staging database moved to port 5433.".into(), metadata))?;
//!
//! let summary = run_once(&store, &mut Judge, SystemTime::now(), Duration::from_secs(900))?;
//! assert_eq!(summary.accepted, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! * **Durable.** When [`DraftStore::submit`] or a move has returned, it survives power loss.
//! * **At least once.** A draft may be processed again after a crash; what the processor returns
//!   is stored exactly once, in the transaction that moves the draft.
//! * **Fenced.** Each claim has a token of its own; a runner that lost its claim changes nothing.
//! * **Dead is dead, slow is not.** A dead runner's drafts go back at the next run of anyone; a
//!   live runner's are never taken, however slow its processor is.
//! * **The same draft is taken in once.** A draft's id follows from its text and provenance.

#![forbid(unsafe_code)]

pub mod clock;
mod database;
pub mod draft;
pub mod error;
pub mod escape;
pub mod processor;
pub mod processors;
pub mod runner;
pub mod state;
pub mod store;
pub mod sweep;
pub mod watch;

pub use draft::{Draft, DraftId, DraftMetadata, DraftSourceSurface};
pub use error::{LibrarianError, ProcessorError};
pub use processor::{DraftProcessor, Outcome};
pub use processors::deferred::DeferredDraftProcessor;
pub use runner::{DEFAULT_PROCESSING_STALE_SECS, DraftRunItem, DraftRunSummary, Runner, run_once};
pub use state::{DraftProcessingDecision, DraftState};
pub use store::{DraftStore, DraftTransition};

/// What the README shows of the library compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
