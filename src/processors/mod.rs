//! Processors that come with the crate: one that defers everything, one that asks any program.

pub mod command;
pub mod deferred;
