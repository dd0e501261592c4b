//! What a command fails with, and the exit code for it (those of sysexits.h).

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use draftq::LibrarianError;
use draftq::error::ErrorKind;
use draftq::escape;

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
pub fn from_clap(error: &clap::Error) -> ExitCode {
    // If nobody reads it, nobody misses it.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS }
}

/// A line on standard error. A path or an id in it may hold anything.
pub fn say(message: &str) {
    let mut line = escape::text(message).into_owned();
    let _ = writeln!(line);
    // There is nowhere left to complain about standard error.
    let _ = io::stderr().lock().write_all(line.as_bytes());
}
