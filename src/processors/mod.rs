//! Processors that come with the crate: one made from a function, one that asks a program, and one
//! that defers every draft.

pub(crate) mod deferred;
pub(crate) mod exec;
pub(crate) mod from_fn;
