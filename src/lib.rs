//! draftq

#![forbid(unsafe_code)]

pub mod clock;
pub mod draft;
pub mod error;
pub mod escape;
pub mod processor;
pub mod processors;
pub mod state;
pub mod sweep;
