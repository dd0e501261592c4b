//! A processor that starts a program for each draft.

mod find;
mod guard;
mod judge;
mod registry;
mod reply;
mod running;
mod tail;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use self::find::find;
use self::judge::judge;
use self::registry::Registry;
use crate::draft::Draft;
use crate::error::LibrarianError;
use crate::outcome::Outcome;
use crate::processor::DraftProcessor;
use crate::state::DraftProcessingDecision;
use crate::stop::StopSignal;

pub use self::reply::MAX_NOTE_BYTES;
pub use self::running::MAX_OUTPUT_BYTES;
pub use self::tail::STDERR_TAIL_BYTES;

/// Starts a program for each draft; the program's answer is the decision.
///
/// **Input.** The arguments as given, with no shell in between; the environment and the working
/// directory of this process; on standard input the draft as one line of JSON
/// ([`Draft::to_envelope`]), then end of file. The program may read as much of it as it needs. The
/// draft's text is in no argument, no environment variable and no file.
///
/// **Answer.** One JSON object on the last non-empty line of standard output:
///
/// ```json
/// {"decision":"deferred","note":"not now","output":{"any":"JSON"},"usage":{"input_tokens":1200,"cost_usd":0.004},"retry_after_secs":60,"hold_secs":2.5}
/// ```
///
/// All keys but `decision` are optional, and null means absent for them. `decision` is one of
/// `accepted`, `skipped`, `failed`, `quarantined` and `deferred`. An `id`, if there is one, must be
/// that of the draft. The two delays are numbers of seconds, not negative, and limited to
/// [`MAX_DELAY`](crate::MAX_DELAY); the note has at most [`MAX_NOTE_BYTES`]; the output is kept as
/// it was written; `usage` is an object of numbers. A program that cannot work now, whatever the
/// draft, answers `{"unavailable":"why"}`, to which only `id` and `usage` may be added.
///
/// | the program ended with | and an answer | and none |
/// |---|---|---|
/// | exit code 0 | the answer decides | error (`protocol`) |
/// | exit code 75 (`EX_TEMPFAIL`) | it must say `deferred` | deferred |
/// | exit code 69 (`EX_UNAVAILABLE`) | it must say `unavailable` | error (`unavailable`) |
/// | any other exit code, or a signal | error | error |
///
/// **It fails closed.** Only such a line accepts a draft. A line that resembles an answer and is
/// not valid is an error of class `protocol`, never another decision: an unknown, misspelt or
/// repeated key, a key with upper-case letters, invalid JSON, a byte order mark, a line after the
/// answer, two answers. Other lines before the answer are ignored, and lines may end in CRLF. The
/// error says what was found and what was expected, and quotes nothing.
///
/// If the exit code is the answer ([`decide_by_exit_code`](Self::decide_by_exit_code)), standard
/// output goes to `/dev/null`, exit code 0 means accepted, and 75 and 69 mean the same as above.
///
/// The answer of a program that failed afterwards does not count: the program may have died before
/// it finished the work that its answer describes.
///
/// **Errors.** [`ProcessorError`](crate::ProcessorError) of one of these classes. Its detail is the
/// tail of the program's standard error, with control characters escaped, at most
/// [`STDERR_TAIL_BYTES`]:
///
/// | class | when | charged to the draft |
/// |---|---|---|
/// | `exit` | another exit code than 0, 69 and 75 | yes |
/// | `signal` | killed by a signal | yes |
/// | `timeout` | not finished by its deadline | yes |
/// | `output_too_large` | more than [`MAX_OUTPUT_BYTES`] on standard output | yes |
/// | `protocol` | no valid answer, or one that the exit code contradicts | yes |
/// | `unavailable` | exit code 69, or it says so; the detail begins with the reason | no |
/// | `stopped` | the runner lost its claim, and the program was killed; nothing is stored | – |
/// | `spawn` | the program or its guard could not be started | no |
/// | `io` | the program could not be watched: no descriptor, no memory | no |
///
/// **Cleanup.** The program is the leader of its own process group. Before `process` returns, the
/// whole group is killed (`SIGKILL`), whether the program has exited, has reached its deadline, or
/// has exceeded its output limit. This includes background children of a program that succeeded:
/// otherwise one set per draft would accumulate, and could still work on a draft whose result is
/// stored. Children that hold standard output open have 100 ms to finish; what they write until
/// then counts.
///
/// If this process dies, however it dies, its programs are killed as well, with their groups: by a
/// guard, one small `/bin/sh` for each process that starts programs. It is started with the first
/// program, restarted if it dies, and ends with this process. Where there is no `/bin/sh`, programs
/// run without a guard, and a warning is logged once.
///
/// Not killed are: a process that has left the program's group (`setsid`, a daemon, a job of an
/// interactive shell); a program that runs as another user and may not be killed, or that hangs in
/// the kernel (it is abandoned after half a second); a program that was started a moment before
/// this process was killed, if the guard had not been informed of it yet; and all programs, if the
/// guard is killed or stopped together with this process.
///
/// `process` returns within a second of the deadline, whatever the program does.
///
/// The calling process must ignore `SIGPIPE` (a program may close its standard input early) and
/// must not ignore `SIGCHLD` (exit statuses would be lost, and every draft would be an `io` error).
/// Both are so in every ordinary Rust program.
#[derive(Debug, Clone)]
pub struct CommandProcessor {
    program: PathBuf,
    name: OsString,
    args: Vec<OsString>,
    timeout: Option<Duration>,
    by_exit_code: bool,
    registry: &'static Registry,
}

impl CommandProcessor {
    /// A processor that runs this program with these arguments, without a time limit.
    ///
    /// The program is found at once, so that a wrong name can be reported before any draft is
    /// claimed. A name with a slash is a path, from the working directory if it is relative; any
    /// other name is searched for in `PATH`. The program is then always the one found here, and its
    /// `argv[0]` is the name as given.
    ///
    /// # Errors
    ///
    /// Only [`LibrarianError::Io`] with `doing: "run"` and a `source` of one of two kinds:
    /// [`std::io::ErrorKind::NotFound`] if there is no such program, and
    /// [`std::io::ErrorKind::PermissionDenied`] if there is such a file but it cannot be executed.
    pub fn new(program: &OsStr, args: Vec<OsString>) -> Result<Self, LibrarianError> {
        let found = find(program).map_err(|(path, errno)| LibrarianError::Io {
            doing: "run",
            path,
            source: errno.into(),
        })?;
        Ok(Self {
            program: found,
            name: program.to_owned(),
            args,
            timeout: None,
            by_exit_code: false,
            registry: &registry::RUNNING,
        })
    }

    /// The same processor with a time limit per draft, from the start of the program to its exit;
    /// `None` means no limit.
    #[must_use]
    pub fn with_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        Self { timeout: timeout.into(), ..self }
    }

    /// The same processor with the exit code as the answer: 0 is accepted, and standard output is
    /// ignored and goes to `/dev/null`. 75 is deferred and 69 unavailable, as without this.
    #[must_use]
    pub fn decide_by_exit_code(self) -> Self {
        Self { by_exit_code: true, ..self }
    }
}

impl DraftProcessor for CommandProcessor {
    fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        self.process_to_outcome(draft).map(|outcome| outcome.decision())
    }

    fn process_to_outcome(&mut self, draft: &Draft) -> Result<Outcome, LibrarianError> {
        self.process_until(draft, &StopSignal::default())
    }

    fn process_until(
        &mut self,
        draft: &Draft,
        stop: &StopSignal,
    ) -> Result<Outcome, LibrarianError> {
        let mut input = draft.to_envelope();
        input.push('\n');
        let mut command = Command::new(&self.program);
        let stdout = if self.by_exit_code { Stdio::null() } else { Stdio::piped() };
        command.arg0(&self.name).args(&self.args).stdout(stdout);
        let verdict =
            running::run(&mut command, input.as_bytes(), self.timeout, self.registry, stop)
                .and_then(|finished| {
                    judge(&finished, draft.id(), self.by_exit_code).map_err(|error| {
                        let mut detail = error.detail().unwrap_or_default().to_owned();
                        let tail = finished.stderr.to_text();
                        if !detail.is_empty() && !tail.is_empty() {
                            detail.push('\n');
                        }
                        detail.push_str(&tail);
                        error.with_detail(detail)
                    })
                });
        match verdict {
            // This process is stopping and killed the program; the draft is not to blame.
            Err(_) if self.registry.is_stopped() => {
                Ok(Outcome::new(DraftProcessingDecision::Deferred)
                    .with_note("the run was stopped before the program had finished"))
            }
            verdict => Ok(verdict?),
        }
    }
}

/// Kill every running program of this process's [`CommandProcessor`]s, with its process group, and
/// start no more: a `process` that waits for its program, or is called later, defers its draft.
///
/// Call it just before this process exits; it cannot be undone. It returns at once, without waiting
/// for the programs to end. It takes locks, so a signal handler must not call it.
pub fn kill_running_programs() {
    drop(registry::RUNNING.stop());
}

/// As [`kill_running_programs`], and end this process at once, before a worker can take the end of
/// its program for an answer. Its drafts are recovered as those of any dead runner.
pub fn kill_running_programs_and_exit(code: i32) -> ! {
    let _untold = registry::RUNNING.stop();
    std::process::exit(code)
}
