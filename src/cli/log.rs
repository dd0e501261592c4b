//! The log, on standard error.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use super::failure::say;
use super::render::in_colour;

/// Start logging: what `RUST_LOG` says; else `info`, but `warn` on a terminal, where a progress
/// bar tells the same, and `error` if it is to be quiet. The run's span is left out of the lines
/// unless `RUST_LOG` asks for it: what it says, the summary says too.
pub fn start(quiet: bool) {
    let level = match (quiet, io::stderr().is_terminal()) {
        (true, _) => "error",
        (false, true) => "warn",
        (false, false) => "info",
    };
    let usual = || EnvFilter::new(format!("{level},mimir.librarian.run=off"));
    let filter = match std::env::var_os(EnvFilter::DEFAULT_ENV) {
        Some(asked) if !asked.is_empty() => EnvFilter::try_from_default_env().unwrap_or_else(|_| {
            say("draftq: RUST_LOG is not a filter such as debug or draftq=trace; logging as usual");
            usual()
        }),
        _ => usual(),
    };
    // A second subscriber in one process is no reason to fail.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(in_colour(&io::stderr()))
        .with_writer(io::stderr)
        // It would complain about standard error on standard error, and panic.
        .log_internal_errors(false)
        .try_init();
}
