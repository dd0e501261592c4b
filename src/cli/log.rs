//! The log, on standard error.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::debug_fn;

use super::messages::message;
use super::terminal::{stderr_is_terminal, uses_colour};

/// Start logging, at the level of `RUST_LOG`; otherwise `error` if `quiet`, `warn` on a terminal,
/// where a progress bar shows the same, else `info`. The run's span is left out unless `RUST_LOG`
/// asks for it, because the summary contains the same figures.
pub fn start(quiet: bool) {
    let level = match (quiet, stderr_is_terminal()) {
        (true, _) => "error",
        (false, true) => "warn",
        (false, false) => "info",
    };
    let default = || EnvFilter::new(format!("{level},mimir.librarian.run=off"));
    let filter = match std::env::var_os(EnvFilter::DEFAULT_ENV) {
        Some(asked) if !asked.is_empty() => EnvFilter::try_from_default_env().unwrap_or_else(|_| {
            message("draftq: RUST_LOG is not a filter such as debug or draftq=trace; using the default");
            default()
        }),
        _ => default(),
    };
    // It fails only if there is a subscriber already, which is no error here.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(fields())
        .with_ansi(uses_colour(&io::stderr()))
        .with_writer(io::stderr)
        // It would report an error of standard error on standard error, and panic.
        .log_internal_errors(false)
        .try_init();
}

/// Writes the fields of an event escaped to one line: a path or a name in them may contain
/// anything.
fn fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    debug_fn(|line, field, value| {
        let value = format!("{value:?}");
        let value = draftq::escape_line(&value);
        match field.name() {
            "message" => write!(line, "{value}"),
            name => write!(line, "{name}={value}"),
        }
    })
    .delimited(" ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_in_a_field_is_obeyed_or_makes_a_line() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .fmt_fields(fields())
            .with_writer(move || writer.clone())
            .finish();
        let hostile = "a\n2026 ERROR forged\r\u{1b}[2J\u{200b}\u{202e}\u{2028}\u{e0041}b";
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("span", of_span = hostile, shown = %hostile);
            let _entered = span.enter();
            let path = Path::new(hostile);
            let error = io::Error::other(hostile);
            let error: &(dyn std::error::Error + 'static) = &error;
            tracing::warn!(
                text = hostile, shown = %hostile, debugged = ?hostile, path = %path.display(),
                error, "message of {hostile}"
            );
            tracing::info!(hostile);
        });
        let written = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(written.lines().count(), 2, "{written}");
        assert_eq!(written.replace('\n', "").find(draftq::is_unsafe_to_show), None, "{written:?}");
        assert!(written.contains("message of a\\n2026 ERROR forged"), "{written}");
        assert!(written.contains(" path=a\\n2026"), "{written}");
    }
}
