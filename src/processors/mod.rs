//! Processors that come with the crate: one that defers everything, one that asks any program.

pub(crate) mod deferred;
pub(crate) mod exec;
