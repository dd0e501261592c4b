//! Drives the real thing: the library on real files, and the built binary.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed")]

mod file_version;
mod harness;
mod lifecycle;
mod look;
mod privacy;
mod run;
mod submit;
mod sweep;
mod telemetry;
