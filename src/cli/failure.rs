//! What a command fails with, and the exit code for it (those of sysexits.h).

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind as UsageError};
use draftq::ErrorKind;
use draftq::LibrarianError;

use super::render::{Output, in_colour};

/// Wrong usage.
const EX_USAGE: u8 = 64;
/// Bad input data.
const EX_DATAERR: u8 = 65;
/// No such draft or file.
const EX_NOINPUT: u8 = 66;
/// The run met errors, or drafts were deferred.
pub const EX_SOFTWARE: u8 = 70;
/// A file or directory cannot be created.
const EX_CANTCREAT: u8 = 73;
/// Storage or input/output error.
const EX_IOERR: u8 = 74;
/// The database is busy.
const EX_TEMPFAIL: u8 = 75;
/// The database of another program, or of a newer draftq.
const EX_CONFIG: u8 = 78;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// Standard output was closed by its reader: nothing to complain about.
    ClosedPipe,
    /// Something to say, and a code to exit with.
    Said { code: u8, message: String },
}

impl Failure {
    /// The flags do not make sense together.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Said { code: EX_USAGE, message: message.into() }
    }

    /// What was handed in is no good.
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self::Said { code: EX_DATAERR, message: message.into() }
    }

    /// What was named is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::Said { code: EX_NOINPUT, message: message.into() }
    }

    /// The same with what holds in spite of it, for a user who would think otherwise.
    pub fn although(self, fact: &str) -> Self {
        match self {
            Self::ClosedPipe => Self::ClosedPipe,
            Self::Said { code, message } => {
                Self::Said { code, message: format!("{message}; {fact}") }
            }
        }
    }

    /// Tell the user, and give the code to exit with.
    pub fn report(self) -> ExitCode {
        match self {
            Self::ClosedPipe => ExitCode::SUCCESS,
            Self::Said { code, message } => {
                say(&format!("draftq: {message}"));
                ExitCode::from(code)
            }
        }
    }
}

impl From<LibrarianError> for Failure {
    fn from(error: LibrarianError) -> Self {
        let code = match error.kind() {
            ErrorKind::BadInput => EX_DATAERR,
            ErrorKind::NotFound => EX_NOINPUT,
            ErrorKind::Processor | ErrorKind::LostClaim => EX_SOFTWARE,
            ErrorKind::CannotCreate => EX_CANTCREAT,
            ErrorKind::Busy => EX_TEMPFAIL,
            ErrorKind::ForeignDatabase => EX_CONFIG,
            _ => EX_IOERR,
        };
        Self::Said { code, message: error.to_string() }
    }
}

/// Writing results failed.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::ClosedPipe;
        }
        Self::Said { code: EX_IOERR, message: format!("cannot write the output: {error}") }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::from(LibrarianError::from(error))
    }
}

/// Help and version go to standard output and are no failure; everything else is wrong usage.
pub fn from_clap(mut error: clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Every word of it is ours.
        let help = error.render();
        let help = match in_colour(&io::stdout()) {
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
    // In colour our own escapes stand between the words, so nothing can be escaped any more.
    if unchanged && in_colour(&io::stderr()) {
        tell(&message.ansi().to_string());
    } else {
        tell(&draftq::escape_text(&message.to_string()));
    }
    ExitCode::from(EX_USAGE)
}

/// The flags whose values may be a draft's text or belong to one.
const PRIVATE: [&str; 6] =
    ["--text", "--agent", "--project", "--operator", "--provenance", "--tag"];

/// Clap repeats the arguments as they are. Escape them, and leave out those that may be the
/// value of a private flag: a word that is no flag's name stands there because a flag was left
/// out or a text was not quoted. Returns whether nothing had to be changed.
fn hide_arguments(error: &mut clap::Error) -> bool {
    let unknown = error.kind() == UsageError::UnknownArgument;
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
            // Of a value that is missing clap makes an empty one.
            true if !word.is_empty() => "(not shown: it may be of a draft)".to_owned(),
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
    // A tip repeats the argument as well, between escapes of clap's own.
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

/// One line on standard error. A path or a name in it may hold anything, also line breaks.
pub fn say(message: &str) {
    let mut line = draftq::escape_line(message).into_owned();
    line.push('\n');
    tell(&line);
}

fn tell(message: &str) {
    // There is nowhere left to complain about standard error.
    let _ = io::stderr().lock().write_all(message.as_bytes());
}
