//! Errors of the argument parser, and the help that it returns as an error.

use std::io;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::failure::EX_USAGE;
use super::messages::write_to_stderr;
use super::output::Output;
use super::terminal::uses_colour;

/// Print an error of the parser. Help and version are results and go to standard output.
pub fn report(mut error: clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let help = error.render();
        let help = match uses_colour(&io::stdout()) {
            true => help.ansi().to_string(),
            false => help.to_string(),
        };
        return match Output::new(false).bytes(help.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        };
    }
    let unchanged = hide_arguments(&mut error);
    let message = error.render();
    // A coloured message contains clap's own escape sequences, so it cannot be escaped any more.
    if unchanged && uses_colour(&io::stderr()) {
        write_to_stderr(&message.ansi().to_string());
    } else {
        write_to_stderr(&draftq::escape_text(&message.to_string()));
    }
    ExitCode::from(EX_USAGE)
}

/// The flags whose values may be a draft's text or belong to one.
const PRIVATE: [&str; 9] = [
    "--text",
    "--agent",
    "--project",
    "--operator",
    "--provenance",
    "--tag",
    "--grep",
    "--error",
    "--note",
];

/// Escape the arguments that clap repeats, and hide those that may be the value of a private
/// flag. A word that is not a flag's name may be such a value, too: the flag may be missing, or
/// the text unquoted. Returns whether nothing was changed.
fn hide_arguments(error: &mut clap::Error) -> bool {
    let unknown = error.kind() == ErrorKind::UnknownArgument;
    let of_private_flag = error.get(ContextKind::InvalidArg).is_some_and(|argument| {
        let name = argument.to_string();
        PRIVATE.iter().any(|flag| name.split([' ', '=']).next() == Some(flag))
    });
    let shown = |kind: ContextKind, word: &str| -> String {
        let hidden = match kind {
            ContextKind::InvalidArg => unknown && !is_flag_name(word),
            ContextKind::InvalidValue => of_private_flag,
            _ => false,
        };
        match hidden {
            // Clap reports a missing value as an empty one.
            true if !word.is_empty() => "(not shown: it may be part of a draft)".to_owned(),
            _ => draftq::escape_line(word).into_owned(),
        }
    };
    let changed: Vec<(ContextKind, ContextValue)> = error
        .context()
        .filter_map(|(kind, value)| {
            let new = match value {
                ContextValue::String(word) => ContextValue::String(shown(kind, word)),
                ContextValue::Strings(words) => {
                    ContextValue::Strings(words.iter().map(|word| shown(kind, word)).collect())
                }
                _ => return None,
            };
            (new != *value).then_some((kind, new))
        })
        .collect();
    if changed.is_empty() {
        return true;
    }
    for (kind, value) in changed {
        error.insert(kind, value);
    }
    // A suggestion repeats the argument as well, between escape sequences of clap's own.
    error.remove(ContextKind::Suggested);
    false
}

/// Whether this looks like the name of a flag: letters, digits and hyphens after one or two
/// hyphens.
fn is_flag_name(word: &str) -> bool {
    let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).unwrap_or_default();
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}
