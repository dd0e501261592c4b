//! A durable local inbox for drafts: texts that agents and people wrote, and that are not to be
//! trusted until a processor has decided about them.
//!
//! draftq does the mechanics of a run: it recovers abandoned claims, claims drafts, calls the
//! processor and moves the drafts. The processor decides: a function ([`from_fn`]), a
//! [`DraftProcessor`], or any program ([`CommandProcessor`]). Drafts are stored in one SQLite file,
//! which several runners and people with a SQL shell may use at once.
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
//! * **Fenced.** Each claim has its own token; a runner that lost its claim changes nothing.
//! * **Certain liveness.** A dead runner's drafts return to pending at the next run of any runner;
//!   a live runner's drafts are never taken from it, however slow its processor is.
//! * **Deduplicated.** A draft's id follows from its text and provenance. A second submit of the
//!   same draft adds nothing.

#![forbid(unsafe_code)]

mod clock;
mod database;
mod decision;
mod draft;
mod envelope;
mod error;
mod escape;
mod filter;
mod hold;
mod id;
mod json;
mod metadata;
mod outcome;
mod processor;
mod processors;
mod runner;
mod state;
mod stop;
mod store;
mod sweep;

pub use clock::{Clock, MAX_UNIX_MS, from_unix_ms, unix_ms};
pub use decision::OperatorDecision;
pub use draft::{DEFAULT_MAX_TEXT_BYTES, Draft};
pub use envelope::DRAFT_SCHEMA_VERSION;
pub use error::{
    DatabaseError, DraftDamage, DraftRejection, ErrorKind, JsonFault, LibrarianError,
    ProcessorError,
};
pub use escape::{
    is_unsafe as is_unsafe_to_show, json as escape_json, line as escape_line, text as escape_text,
};
pub use filter::DraftFilter;
pub use hold::{Hold, HoldKind, NewHold};
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
    Cancellation, DEFAULT_HOLD_WAIT_SECS, DEFAULT_PROCESSING_STALE_SECS, DraftRunError,
    DraftRunItem, DraftRunSummary, RunReport, Runner, Waiter, Wake, WatchEvent, run_once,
};
pub use state::{DraftProcessingDecision, DraftState, NotADraftState};
pub use stop::{StopAction, StopSignal};
pub use store::claimed::{Claim, Claimed};
pub use store::counts::StoreStats;
pub use store::decide::{OperatorMove, SeenDraft, Superseded};
pub use store::operator_release::Released;
pub use store::pages::DraftPage;
pub use store::query::DraftQuery;
pub use store::record::{DraftRecord, DraftSummary, HistoryEvent};
pub use store::recover::Recovery;
pub use store::registration::{DEFAULT_MAX_ERRORS, RunnerInfo, RunnerRegistration};
pub use store::requeue::Requeued;
pub use store::snapshot::PendingSnapshot;
pub use store::submission::Submission;
pub use store::submit_batches::BatchedSubmit;
pub use store::{DraftStore, DraftTransition, StoreOptions};
pub use sweep::{
    EXTENSIONS as SWEEP_EXTENSIONS, SkipReason, SkippedFile, SweepDrafts, SweepFiles, SweepOptions,
    Swept, default_agent as default_sweep_agent, find as find_sweep_files, is_sweep_surface,
};

/// What the documentation shows of the library compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../docs/processors.md")]
struct Processors;
