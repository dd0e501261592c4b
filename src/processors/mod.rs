//! The crate's processors: one that calls a function, one that starts a program for each draft, and
//! one that defers every draft.

pub(crate) mod deferred;
pub(crate) mod exec;
pub(crate) mod from_fn;
