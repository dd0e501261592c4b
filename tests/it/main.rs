//! Drives the real thing: the library on real files, and the built binary.

mod file_version;
mod harness;
mod lifecycle;
