//! The decision that follows from how a program ended and what it printed.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use super::reply::{self, Answer, Printed};
use super::running::{Ending, Finished, MAX_OUTPUT_BYTES};
use crate::error::ProcessorError;
use crate::id::DraftId;
use crate::outcome::Outcome;
use crate::state::DraftProcessingDecision;

/// The exit code for a deferral: `EX_TEMPFAIL` of sysexits.h.
const EX_TEMPFAIL: i32 = 75;

/// The exit code for a program that cannot work now, whatever the draft: `EX_UNAVAILABLE` of
/// sysexits.h.
const EX_UNAVAILABLE: i32 = 69;

/// The decision. With `by_exit_code`, what the program printed does not count.
pub(super) fn judge(
    finished: &Finished,
    id: DraftId,
    by_exit_code: bool,
) -> Result<Outcome, ProcessorError> {
    let status = match &finished.ending {
        Ending::Exited(status) => status,
        Ending::TimedOut { limit, killed } => {
            let end = if *killed { "was killed" } else { "could not be killed" };
            let message = format!("the program did not finish within {limit:?} and {end}");
            return Err(ProcessorError::new("timeout", message));
        }
        Ending::Stopped { killed } => {
            let end = if *killed { "was killed" } else { "could not be killed" };
            let message =
                format!("the draft was taken from its runner meanwhile, and the program {end}");
            return Err(ProcessorError::new("stopped", message));
        }
        Ending::OutputTooLarge => {
            let message = format!(
                "the program wrote more than {MAX_OUTPUT_BYTES} bytes to its standard output and was killed"
            );
            return Err(ProcessorError::new("output_too_large", message));
        }
    };
    let code = match status.code() {
        Some(code @ (0 | EX_TEMPFAIL | EX_UNAVAILABLE)) => code,
        _ => return Err(failure(*status)),
    };
    let printed = match by_exit_code {
        true => None,
        false => Some(reply::read(&finished.stdout, id)?),
    };
    let deferred = DraftProcessingDecision::Deferred;
    match (code, printed) {
        (0, None) => Ok(DraftProcessingDecision::Accepted.into()),
        (0, Some(Printed::Answer(Answer::Decided(outcome)))) => Ok(outcome),
        (0, Some(Printed::NoAnswer(seen))) => Err(reply::protocol(&format!(
            "it exited with status 0, and {seen} (with --exit-code, status 0 alone means accepted)"
        ))),
        (EX_TEMPFAIL, None | Some(Printed::NoAnswer(_))) => Ok(deferred.into()),
        (EX_TEMPFAIL, Some(Printed::Answer(Answer::Decided(outcome))))
            if outcome.decision() == deferred =>
        {
            Ok(outcome)
        }
        (EX_TEMPFAIL, Some(_)) => {
            Err(reply::protocol("it exited with status 75 (deferred), and its answer differs"))
        }
        (_, None | Some(Printed::NoAnswer(_))) => Err(unavailable(String::new())),
        (_, Some(Printed::Answer(Answer::Unavailable(reason)))) => Err(unavailable(reason)),
        (_, Some(Printed::Answer(Answer::Decided(_)))) => {
            Err(reply::protocol("it exited with status 69 (unavailable), and its answer differs"))
        }
    }
}

/// The error of a program that cannot work now, whatever the draft. The reason may hold anything.
fn unavailable(reason: String) -> ProcessorError {
    ProcessorError::new("unavailable", "the program says that it is unavailable")
        .with_detail(reason)
        .uncharged()
}

/// The error of a program that ended with another exit code than 0, 69 and 75.
fn failure(status: ExitStatus) -> ProcessorError {
    match (status.code(), status.signal()) {
        (Some(code), _) => {
            ProcessorError::new("exit", format!("the program exited with status {code}"))
        }
        (None, Some(signal)) => {
            let name = signal_name(signal).map(|name| format!(" ({name})")).unwrap_or_default();
            ProcessorError::new(
                "signal",
                format!("the program was killed by signal {signal}{name}"),
            )
        }
        // Stopped or continued: the wait does not ask for these.
        (None, None) => ProcessorError::new("signal", "the program ended without an exit status"),
    }
}

/// The usual name of a signal that can end a process.
fn signal_name(signal: i32) -> Option<&'static str> {
    use rustix::process::Signal;
    Some(match Signal::from_named_raw(signal)? {
        Signal::HUP => "SIGHUP",
        Signal::INT => "SIGINT",
        Signal::QUIT => "SIGQUIT",
        Signal::ILL => "SIGILL",
        Signal::TRAP => "SIGTRAP",
        Signal::ABORT => "SIGABRT",
        Signal::BUS => "SIGBUS",
        Signal::FPE => "SIGFPE",
        Signal::KILL => "SIGKILL",
        Signal::USR1 => "SIGUSR1",
        Signal::SEGV => "SIGSEGV",
        Signal::USR2 => "SIGUSR2",
        Signal::PIPE => "SIGPIPE",
        Signal::ALARM => "SIGALRM",
        Signal::TERM => "SIGTERM",
        Signal::XCPU => "SIGXCPU",
        Signal::XFSZ => "SIGXFSZ",
        Signal::SYS => "SIGSYS",
        _ => return None,
    })
}
