//! Tests of the library on real files, and of the built binary.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed")]
#![allow(clippy::print_stdout, reason = "a test says its seed, its figures and what it skipped")]

mod batches;
mod by_hand;
mod claim_ahead;
mod damaged_rows;
mod decide;
mod deferrals;
mod evidence;
mod examples;
mod fencing;
mod file_version;
mod files;
mod foreign_files;
mod guard;
mod harness;
mod holds;
mod imports;
mod intake;
mod look;
mod machine;
mod model;
mod opening;
mod other_users;
mod outcomes;
mod output;
mod paths;
mod privacy;
mod public_api;
mod read_only;
mod reading;
mod readme;
mod recovery;
mod registration;
mod replaced;
mod requeue;
mod run;
mod run_end;
mod runners_directory;
mod schema_rules;
mod selection;
mod shells;
mod signals;
mod sql_views;
mod submit;
mod sweep;
mod telemetry;
mod two_names;
mod users;
mod waiting;
mod wakeup;
mod watch;
mod workers;
