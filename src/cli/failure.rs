//! Why a command failed, and its exit code (those of sysexits.h).

use std::io;
use std::process::ExitCode;

use draftq::{ErrorKind, LibrarianError};

use super::messages::message;

/// Wrong usage.
pub const EX_USAGE: u8 = 64;
/// Bad input data.
const EX_DATAERR: u8 = 65;
/// No such draft, file or database.
const EX_NOINPUT: u8 = 66;
/// The run met errors or a hold, or drafts were deferred.
pub const EX_SOFTWARE: u8 = 70;
/// A file or directory cannot be created.
const EX_CANTCREAT: u8 = 73;
/// Storage or input/output error.
const EX_IOERR: u8 = 74;
/// The database is busy.
const EX_TEMPFAIL: u8 = 75;
/// The database of another program, or of a newer draftq.
const EX_CONFIG: u8 = 78;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// The reader of standard output closed it, as `head` does. This is not an error.
    ClosedPipe,
    /// A message for the user, and an exit code.
    Error { code: u8, message: String },
}

impl Failure {
    /// The arguments do not make sense together.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Error { code: EX_USAGE, message: message.into() }
    }

    /// The input is not acceptable.
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self::Error { code: EX_DATAERR, message: message.into() }
    }

    /// There is no such draft, file or program.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::Error { code: EX_NOINPUT, message: message.into() }
    }

    /// Add to the message what was done before the failure.
    pub fn although(self, fact: &str) -> Self {
        match self {
            Self::ClosedPipe => Self::ClosedPipe,
            Self::Error { code, message } => {
                Self::Error { code, message: format!("{message}; {fact}") }
            }
        }
    }

    /// Print the message; return the exit code.
    pub fn report(self) -> ExitCode {
        match self {
            Self::ClosedPipe => ExitCode::SUCCESS,
            Self::Error { code, message: text } => {
                message(&format!("draftq: {text}"));
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
            ErrorKind::Processor | ErrorKind::LostClaim | ErrorKind::OnHold => EX_SOFTWARE,
            ErrorKind::CannotCreate => EX_CANTCREAT,
            ErrorKind::Busy => EX_TEMPFAIL,
            ErrorKind::ForeignDatabase => EX_CONFIG,
            _ => EX_IOERR,
        };
        Self::Error { code, message: error.to_string() }
    }
}

/// An error of standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::ClosedPipe;
        }
        Self::Error { code: EX_IOERR, message: format!("cannot write the output: {error}") }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::from(LibrarianError::from(error))
    }
}
