//! Drives the real thing: the library on real files, and the built binary.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed")]
#![allow(clippy::print_stdout, reason = "a test says its seed, its figures and what it skipped")]

mod evidence;
mod fencing;
mod file_version;
mod growth;
mod harness;
mod intake;
mod lifecycle;
mod look;
mod model;
mod opening;
mod privacy;
mod read_only;
mod readme;
mod replaced;
mod run;
mod schema;
mod submit;
mod sweep;
mod telemetry;
mod trust;
mod watch;
