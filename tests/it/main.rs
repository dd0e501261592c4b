//! Drives the real thing: the library on real files, and the built binary.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed")]

mod evidence;
mod file_version;
mod harness;
mod lifecycle;
