//! Runs: recover claims, claim drafts, call the processor, move the drafts. The processor decides
//! ([`DraftProcessor`](crate::DraftProcessor)).
//!
//! | file | what it does |
//! |---|---|
//! | `options.rs` | a runner, its options and its registration |
//! | `run.rs` | one run |
//! | `dispatcher.rs` | the state that a run's workers and its writer thread share |
//! | `hold_wait.rs` | waits for the end of a hold |
//! | `lost_claims.rs` | stops the processors of drafts whose claims were lost |
//! | `worker.rs` | takes claims, calls the processor, submits the results |
//! | `writer.rs` | the thread that claims from the store and stores results |
//! | `batch_size.rs` | how many drafts to claim at once |
//! | `report.rs` | counts and logs what became of a draft |
//! | `summary.rs` | the summary and report of a run |
//! | `wait.rs` | waits for work |
//! | `watch.rs` | run after run |
//! | `cancellation.rs` | ends a run or a watch early |
//! | `lock.rs` | locks a mutex |

mod batch_size;
mod cancellation;
mod dispatcher;
mod hold_wait;
mod lock;
mod lost_claims;
mod options;
mod report;
mod run;
mod summary;
mod wait;
mod watch;
mod worker;
mod writer;

pub use self::cancellation::Cancellation;
pub use self::options::{DEFAULT_HOLD_WAIT_SECS, DEFAULT_PROCESSING_STALE_SECS, Runner};
pub use self::run::run_once;
pub use self::summary::{DraftRunError, DraftRunItem, DraftRunSummary, RunReport};
pub use self::wait::{Waiter, Wake};
pub use self::watch::WatchEvent;
