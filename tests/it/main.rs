//! Drives the real thing: the library on real files, and the built binary.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed")]
#![allow(clippy::print_stdout, reason = "a random test prints its seed and its figures")]

mod fencing;
mod file_version;
mod harness;
mod lifecycle;
mod readme;
mod schema;
