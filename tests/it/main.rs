//! Drives the real thing: the library on real files, and the built binary.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed")]
#![allow(clippy::print_stdout, reason = "a test says its seed, its figures and what it skipped")]

mod batches;
mod damaged_rows;
mod deferrals;
mod evidence;
mod examples;
mod fencing;
mod file_version;
mod guard;
mod harness;
mod intake;
mod lifecycle;
mod look;
mod machine;
mod model;
mod moves;
mod opening;
mod output;
mod privacy;
mod public_api;
mod read_only;
mod reading;
mod readme;
mod replaced;
mod requeue;
mod run;
mod schema;
mod schema_rules;
mod selection;
mod signals;
mod submit;
mod sweep;
mod telemetry;
mod trust;
mod waiting;
mod watch;
