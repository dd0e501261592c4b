//! The processor and how it is run: the options of `run` and `watch`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use clap::{ArgGroup, Args};
use draftq::{
    Cancellation, CommandProcessor, DEFAULT_MAX_ERRORS, DEFAULT_PROCESSING_STALE_SECS,
    DeferredDraftProcessor, DraftProcessor, DraftStore, LibrarianError, Runner,
};

use super::arguments::{name, one_or_more, seconds, zero_or_more};
use super::failure::Failure;
use super::processor_name::default_name;
use super::signals;

/// The most workers. A larger number is most likely a typing error, because each worker is a thread
/// and a program.
const MAX_JOBS: usize = 1024;

/// The processor and its options.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("processor").required(true)))]
pub struct Processing {
    /// Defer every draft: a dry run.
    #[arg(long, group = "processor")]
    defer: bool,
    /// The program that decides, and its arguments. It is started once per draft, reads the draft
    /// as a line of JSON, and answers with one JSON object on its last line, such as
    /// {"decision":"accepted"} or {"decision":"skipped","note":"…"}. Exit code 75 defers the
    /// draft; 69 says that the program is unavailable. Anything else without a valid answer is an
    /// error.
    #[arg(last = true, group = "processor", value_name = "PROGRAM")]
    program: Vec<OsString>,
    /// Take the program's exit code as its answer, and ignore what it prints: 0 accepts the draft,
    /// 75 defers it, 69 says that the program is unavailable, any other is an error.
    #[arg(long, conflicts_with = "defer")]
    exit_code: bool,
    /// Kill the program, and what it started, if it takes longer than this for a draft.
    #[arg(long, value_name = "SECS", conflicts_with = "defer")]
    #[arg(value_parser = one_or_more::<NonZeroU64>)]
    timeout_secs: Option<NonZeroU64>,
    /// How many programs run at the same time.
    #[arg(long, value_name = "N", default_value = "1", value_parser = jobs)]
    jobs: NonZeroUsize,
    /// Recover drafts in processing that no runner holds after this time.
    #[arg(long, value_name = "SECS", default_value_t = DEFAULT_PROCESSING_STALE_SECS)]
    #[arg(value_parser = zero_or_more::<u64>)]
    stale_processing_secs: u64,
    /// Move a draft to `failed` after this many errors; 0 means no limit.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_ERRORS)]
    #[arg(value_parser = zero_or_more::<u32>)]
    max_errors: u32,
    /// The processor's name, stored with its runners: `draftq pause --name` and holds that the
    /// processor asks for concern all runners of this name [default: the program's file name, of an
    /// interpreter that of its script, of `sh -c` and the like that of the interpreter].
    #[arg(long, value_name = "NAME", value_parser = name())]
    name: Option<String>,
    /// Kill programs that still run this long after the first signal (SIGINT, SIGTERM, SIGHUP or
    /// SIGQUIT) [default: no limit].
    #[arg(long, value_name = "SECS", value_parser = zero_or_more::<u64>)]
    grace_secs: Option<u64>,
}

fn jobs(text: &str) -> Result<NonZeroUsize, String> {
    match one_or_more::<NonZeroUsize>(text)? {
        jobs if jobs.get() > MAX_JOBS => Err(format!("expected at most {MAX_JOBS}")),
        jobs => Ok(jobs),
    }
}

type AnyProcessor = Box<dyn DraftProcessor + Send>;

/// One processor per worker.
pub struct Processors {
    /// What kind of processor it is, for the summary.
    pub kind: &'static str,
    pub workers: Vec<AnyProcessor>,
}

impl Processing {
    /// The processors. Fails if there is no such program, before anything is claimed.
    pub fn processors(&self) -> Result<Processors, Failure> {
        let jobs = self.jobs.get();
        let Some((program, args)) = self.program.split_first() else {
            let workers =
                (0..jobs).map(|_| Box::new(DeferredDraftProcessor) as AnyProcessor).collect();
            return Ok(Processors { kind: "deferred", workers });
        };
        let timeout = self.timeout_secs.map(|secs| Duration::from_secs(secs.get()));
        let mut processor = CommandProcessor::new(program, args.to_vec())
            .map_err(|error| cannot_run(program, &error))?
            .with_timeout(timeout);
        if self.exit_code {
            processor = processor.decide_by_exit_code();
        }
        let workers = (0..jobs).map(|_| Box::new(processor.clone()) as AnyProcessor).collect();
        Ok(Processors { kind: "exec", workers })
    }

    /// The name of the processor, for the database.
    fn processor_name(&self) -> String {
        match (&self.name, self.program.split_first()) {
            (Some(name), _) => name.clone(),
            (None, Some((program, args))) => default_name(program, args),
            (None, None) => "deferred".to_owned(),
        }
    }

    pub fn runner(&self, store: &DraftStore, cancellation: &Cancellation) -> Runner {
        Runner::new(store, &self.processor_name())
            .stale_after(Duration::from_secs(self.stale_processing_secs))
            .max_errors(self.max_errors)
            .cancellation(cancellation.clone())
    }

    /// A cancellation that the first signal requests.
    pub fn cancellation_by_signal(&self) -> Result<Cancellation, Failure> {
        let cancellation = Cancellation::default();
        signals::cancel_on_signal(&cancellation, self.grace_secs.map(seconds))?;
        Ok(cancellation)
    }

    /// The age at which a claim that no runner holds is recovered.
    pub fn stale_after(&self) -> Duration {
        Duration::from_secs(self.stale_processing_secs)
    }
}

/// The program is missing or not executable; in both cases there is no such program to run.
fn cannot_run(program: &OsStr, error: &LibrarianError) -> Failure {
    let looked_up = !program.as_bytes().contains(&b'/');
    Failure::not_found(match error {
        _ if program.is_empty() => "cannot run the PROGRAM: its name is empty".to_owned(),
        LibrarianError::Io { path, source, .. }
            if looked_up && source.kind() == io::ErrorKind::NotFound =>
        {
            format!("cannot run {}: there is no such program in PATH", path.display())
        }
        error => error.to_string(),
    })
}
