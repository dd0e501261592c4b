//! A durable local inbox for drafts: prose that agents and people wrote, and that is not to be
//! trusted until a processor has looked at it.
//!
//! draftq owns the mechanics of a run (recover what a dead run left, claim, call the processor,
//! move the draft on) and nothing of the judgement, which is injected: a [`DraftProcessor`] in
//! Rust, or any program ([`CommandProcessor`]). Drafts live in one SQLite file that several
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

mod clock;
mod database;
mod draft;
mod envelope;
mod error;
mod escape;
mod id;
mod json;
mod metadata;
mod outcome;
mod processor;
mod processors;
mod runner;
mod state;
mod store;
mod sweep;

pub use clock::{Clock, MAX_UNIX_MS, from_unix_ms, unix_ms};
pub use draft::{DEFAULT_MAX_TEXT_BYTES, Draft};
pub use envelope::DRAFT_SCHEMA_VERSION;
pub use error::{
    DatabaseError, DraftDamage, DraftRejection, ErrorKind, JsonFault, LibrarianError,
    ProcessorError,
};
pub use escape::{
    is_unsafe as is_unsafe_to_show, json as escape_json, line as escape_line, text as escape_text,
};
pub use id::{DraftId, NotADraftId};
pub use json::JsonText;
pub use metadata::{DraftMetadata, DraftSource, DraftSourceSurface, MAX_METADATA_BYTES, MAX_TAGS};
pub use outcome::{MAX_DELAY, Outcome};
pub use processor::DraftProcessor;
pub use processors::deferred::DeferredDraftProcessor;
pub use processors::exec::{
    CommandProcessor, MAX_NOTE_BYTES, MAX_OUTPUT_BYTES, STDERR_TAIL_BYTES, kill_running_programs,
    kill_running_programs_and_exit,
};
pub use processors::from_fn::{FromFn, from_fn};
pub use runner::{
    Cancellation, DEFAULT_PROCESSING_STALE_SECS, DraftRunError, DraftRunItem, DraftRunSummary,
    RunReport, Runner, Waiter, Wake, WatchEvent, run_once,
};
pub use state::{DraftProcessingDecision, DraftState, NotADraftState};
pub use store::batches::BatchedSubmit;
pub use store::claim::{Claim, Claimed, PendingSnapshot};
pub use store::intake::Submission;
pub use store::pages::DraftPage;
pub use store::query::DraftQuery;
pub use store::recovery::Recovery;
pub use store::registration::{DEFAULT_MAX_ERRORS, RunnerInfo, RunnerRegistration};
pub use store::upkeep::Requeued;
pub use store::view::{DraftRecord, DraftSummary, HistoryEvent, StoreStats};
pub use store::{DraftStore, DraftTransition, StoreOptions};
pub use sweep::{
    EXTENSIONS as SWEEP_EXTENSIONS, SkipReason, SkippedFile, SweepDrafts, SweepFiles, SweepOptions,
    Swept, default_agent as default_sweep_agent, find as find_sweep_files, is_sweep_surface,
};

/// What the documentation shows of the library compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../docs/processors.md")]
struct Processors;
