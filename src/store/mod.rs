//! The store: one SQLite file of drafts. Only this module and `database` contain SQL.
//!
//! | file | what it does with a draft |
//! |---|---|
//! | `submit.rs` | submits it; `group.rs` lets threads that submit at the same time share a commit |
//! | `submit_batches.rs` | submits it as one of very many |
//! | `insert.rs` | inserts its rows |
//! | `due.rs` | makes it claimable when its delay is over |
//! | `snapshot.rs` | decides whether a run may claim it |
//! | `claim.rs` | claims it |
//! | `finish.rs` | stores its decision or error, and moves it |
//! | `exchange.rs` | finishes and claims many in one transaction |
//! | `transition.rs` | moves it, under the file version's name |
//! | `registration.rs` | registers the runner that claims it |
//! | `liveness.rs` | tests whether that runner is alive |
//! | `recover.rs` | returns it to pending when the runner is dead |
//! | `lock_file.rs` | holds the lock that shows that a process lives |
//! | `wakeup.rs` | wakes a waiting runner for it |
//! | `new_work.rs` | finds it, if no process notified |
//! | `query.rs`, `pages.rs` | selects and lists it |
//! | `view.rs`, `record.rs`, `columns.rs` | reads it |
//! | `counts.rs` | counts it |
//! | `hold.rs` | sets, ends and reads holds, during which nothing is claimed |
//! | `filter.rs` | the conditions of a runner's filter |
//! | `requeue.rs` | returns it to pending for an operator |
//! | `held_claims.rs` | tells a runner whether it still holds it |
//! | `operator_release.rs` | takes it from a live runner for an operator |
//! | `decide.rs` | moves it by an operator's decision, replaces it, and takes such a move back |
//!
//! `draft_store.rs` holds the store itself and its options; `submission.rs` and `claimed.rs` hold
//! the types that several files share. `migrations/0002_drafts.sql` documents the tables for people
//! who open the file with SQL.

mod claim;
pub(crate) mod claimed;
mod columns;
pub(crate) mod counts;
pub(crate) mod decide;
mod draft_store;
mod due;
pub(crate) mod exchange;
mod filter;
pub(crate) mod finish;
mod group;
#[cfg(test)]
mod growth_tests;
pub(crate) mod held_claims;
pub(crate) mod hold;
mod insert;
mod liveness;
mod lock_file;
pub(crate) mod new_work;
pub(crate) mod operator_release;
pub(crate) mod pages;
pub(crate) mod query;
pub(crate) mod record;
pub(crate) mod recover;
pub(crate) mod registration;
pub(crate) mod requeue;
pub(crate) mod snapshot;
pub(crate) mod submission;
mod submit;
pub(crate) mod submit_batches;
mod transition;
mod view;
pub(crate) mod wakeup;

pub use self::draft_store::{DraftStore, DraftTransition, StoreOptions};
