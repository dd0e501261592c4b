//! Drafts are processed: `run` and `watch`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::{ArgGroup, Args};
use draftq::CommandProcessor;
use draftq::DEFAULT_MAX_ERRORS;
use draftq::ErrorKind;
use draftq::{Cancellation, RunReport, WatchEvent};
use draftq::{
    DEFAULT_PROCESSING_STALE_SECS, DeferredDraftProcessor, DraftProcessor, DraftRunSummary,
    DraftStore, LibrarianError, Runner,
};
use serde::Serialize;

use super::failure::{EX_SOFTWARE, Failure, say};
use super::intake::{Provenance, Staging, SweepSummary};
use super::progress::RunProgress;
use super::render::{Output, count, duration};
use super::{Context, from_one, from_zero, seconds, signals};

/// So many drafts are listed in a line of a watch: it works for as long as it likes in the memory
/// that it began with, and what became of the others is in the database.
const LISTED: usize = 1_000;

/// More workers than this are a slip of the hand: each is a thread and a program.
const MAX_JOBS: usize = 1024;

/// What decides about the drafts, and how the run goes about it.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("processor").required(true)))]
struct Processing {
    /// Defer every draft: a dry run, which changes nothing for good.
    #[arg(long, group = "processor")]
    defer: bool,
    /// The program that decides, and its arguments. It is started once per draft, reads the draft
    /// as a line of JSON, and answers with one JSON object on its last line, such as
    /// {"decision":"accepted"} or {"decision":"skipped","note":"…"}. Exit code 75 defers the draft,
    /// 69 says that the program is unavailable; without a valid answer it is an error.
    #[arg(last = true, group = "processor", value_name = "PROGRAM")]
    program: Vec<OsString>,
    /// The program's exit code is its answer: 0 accepts the draft, 75 defers it, 69 says that the
    /// program is unavailable, any other is an error. What it prints means nothing.
    #[arg(long, conflicts_with = "defer")]
    exit_code: bool,
    /// Kill the program, and what it started, if it takes longer than this for a draft.
    #[arg(long, value_name = "SECS", conflicts_with = "defer", value_parser = from_one::<NonZeroU64>)]
    timeout_secs: Option<NonZeroU64>,
    /// How many programs run at the same time.
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_jobs)]
    jobs: NonZeroUsize,
    /// How old a claim that nobody holds must be to be taken back.
    #[arg(long, value_name = "SECS", default_value_t = DEFAULT_PROCESSING_STALE_SECS)]
    #[arg(value_parser = from_zero::<u64>)]
    stale_processing_secs: u64,
    /// After how many errors a draft goes to `failed`; 0 is no limit.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_ERRORS)]
    #[arg(value_parser = from_zero::<u32>)]
    max_errors: u32,
    /// After a first signal (SIGINT, SIGTERM, SIGHUP or SIGQUIT), how long programs may still run before they are killed;
    /// without it, for as long as they like.
    #[arg(long, value_name = "SECS", value_parser = from_zero::<u64>)]
    grace_secs: Option<u64>,
}

fn parse_jobs(text: &str) -> Result<NonZeroUsize, String> {
    match from_one::<NonZeroUsize>(text)? {
        jobs if jobs.get() > MAX_JOBS => Err(format!("more than {MAX_JOBS} are not run at a time")),
        jobs => Ok(jobs),
    }
}

type AnyProcessor = Box<dyn DraftProcessor + Send>;

/// What is ready to run.
struct Ready {
    name: &'static str,
    processors: Vec<AnyProcessor>,
}

impl Processing {
    /// The processors, if there is such a program: said once, and before anything is claimed.
    fn ready(&self) -> Result<Ready, Failure> {
        let jobs = self.jobs.get();
        let Some((program, args)) = self.program.split_first() else {
            let processors =
                (0..jobs).map(|_| Box::new(DeferredDraftProcessor) as AnyProcessor).collect();
            return Ok(Ready { name: "deferred", processors });
        };
        let timeout = self.timeout_secs.map(|secs| Duration::from_secs(secs.get()));
        let mut processor = CommandProcessor::new(program, args.to_vec())
            .map_err(|error| cannot_run(program, &error))?
            .with_timeout(timeout);
        if self.exit_code {
            processor = processor.decide_by_exit_code();
        }
        let processors = (0..jobs).map(|_| Box::new(processor.clone()) as AnyProcessor).collect();
        Ok(Ready { name: "exec", processors })
    }

    fn store(&self, context: &Context) -> Result<DraftStore, Failure> {
        context.store()
    }

    fn runner(&self, store: &DraftStore, name: &str, cancellation: &Cancellation) -> Runner {
        Runner::new(store, name)
            .stale_after(Duration::from_secs(self.stale_processing_secs))
            .max_errors(self.max_errors)
            .cancellation(cancellation.clone())
    }

    /// Let signals end the run in good order.
    fn heed_signals(&self) -> Result<Cancellation, Failure> {
        let cancellation = Cancellation::default();
        signals::cancel_on_signal(&cancellation, self.grace_secs.map(seconds))?;
        Ok(cancellation)
    }
}

/// Missing or not executable: either way there is no such program to run.
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

/// Process what is pending, once.
///
/// Takes back what dead runs left, claims the pending drafts one by one, first in, first out, asks
/// the program, and moves each draft to where it belongs. Drafts that come in meanwhile are left
/// for the next run. Exits with 70 if there were errors or deferrals.
#[derive(Debug, Args)]
#[command(override_usage = "draftq run [OPTIONS] (--defer | -- PROGRAM [ARG]…)")]
#[command(after_help = "\
Examples:
  draftq run --defer
  draftq run -- ./judge
  draftq run --jobs 4 --timeout-secs 120 -- ./ask-the-model --careful
  draftq run --sweep ~/notes --exit-code -- sh -c 'grep -qv TODO || exit 75'")]
pub struct Run {
    /// Stage the files below this path first, as `draftq sweep` does.
    #[arg(long, value_name = "PATH")]
    sweep: Vec<PathBuf>,
    /// Claim at most this many drafts.
    #[arg(long, value_name = "N", value_parser = from_one::<NonZeroUsize>)]
    limit: Option<NonZeroUsize>,
    /// Stop at the first error of the processor.
    #[arg(long)]
    fail_fast: bool,
    #[command(flatten)]
    processing: Processing,
    #[command(flatten)]
    provenance: Provenance,
}

/// The summary of a run as JSON.
#[derive(Serialize)]
struct RunDocument<'a> {
    processor: &'a str,
    summary: &'a DraftRunSummary,
    #[serde(skip_serializing_if = "Option::is_none")]
    sweep: Option<&'a SweepSummary>,
}

impl Run {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let mut ready = self.processing.ready()?;
        if self.sweep.is_empty() && self.provenance.is_given() {
            return Err(Failure::usage(
                "the flags that say where drafts came from go with --sweep; give it, or leave \
                 them out",
            ));
        }
        let staging = match self.sweep.as_slice() {
            [] => None,
            paths => Some(Staging::new(paths, &self.provenance, context)?),
        };
        let store = self.processing.store(context)?;
        let cancellation = self.processing.heed_signals()?;
        let sweep = match &staging {
            Some(staging) => {
                Some(staging.submit(&store, context.shows_progress(), &cancellation)?)
            }
            None => None,
        };

        let limit = self.limit.map_or(usize::MAX, NonZeroUsize::get);
        let progress = Arc::new(RunProgress::new(context.shows_progress(), limit));
        let shown = Arc::clone(&progress);
        let runner = self
            .processing
            .runner(&store, ready.name, &cancellation)
            .limit(limit)
            .stop_at_error(self.fail_fast)
            .observer(move |summary| shown.show(summary));
        let begun = Instant::now();
        let RunReport { summary, stopped_by, .. } =
            runner.run(&mut ready.processors, SystemTime::now());
        progress.clear();

        let output = context.output_for_scripts();
        if output.is_json() {
            let sweep = sweep.as_ref();
            output.json(&RunDocument { processor: ready.name, summary: &summary, sweep })?;
        } else {
            if let Some(sweep) = &sweep {
                output.text(&sweep.to_text())?;
            }
            output.text(&to_text(
                &summary,
                begun.elapsed(),
                self.processing.stale_processing_secs,
            ))?;
        }
        match stopped_by {
            Some(error) => Err(error.into()),
            None if summary.errors + summary.deferred + summary.lost_claims > 0 => {
                Ok(ExitCode::from(EX_SOFTWARE))
            }
            None => Ok(ExitCode::SUCCESS),
        }
    }
}

/// Process what is pending, and go on with what comes in, until a signal ends it (SIGINT, SIGTERM,
/// SIGHUP or SIGQUIT).
///
/// Prints a line for each iteration that did something. An error is logged, and it goes on.
#[derive(Debug, Args)]
#[command(override_usage = "draftq watch [OPTIONS] (--defer | -- PROGRAM [ARG]…)")]
#[command(after_help = "\
Examples:
  draftq watch -- ./judge
  nohup draftq watch -- ./judge >> decisions.log &
  draftq watch --poll-secs 5 --json -- ./judge | jq .summary.accepted")]
pub struct Watch {
    /// Look at least this often; what comes in is noticed at once.
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = from_one::<NonZeroU64>)]
    poll_secs: NonZeroU64,
    /// End after this many looks.
    #[arg(long, value_name = "N", value_parser = from_one::<NonZeroU64>)]
    iterations: Option<NonZeroU64>,
    #[command(flatten)]
    processing: Processing,
}

impl Watch {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let mut ready = self.processing.ready()?;
        let store = self.processing.store(context)?;
        let cancellation = self.processing.heed_signals()?;
        let runner = self.processing.runner(&store, ready.name, &cancellation).most_items(LISTED);
        // The runner's must be the only one, to be closed when the file is replaced.
        drop(store);
        let output = context.output_for_scripts();
        let (name, poll_interval) = (ready.name, seconds(self.poll_secs.get()));
        let iterations = self.iterations.map(NonZeroU64::get);
        runner.watch(&mut ready.processors, poll_interval, iterations, |event| {
            match event {
                WatchEvent::Ran { report, took } => {
                    self.print(output, name, &report, took)?;
                    report.stopped_by.map(outlive).transpose()?;
                }
                WatchEvent::Failed(error) => outlive(error)?,
                // Somebody may be in the middle of putting it there.
                WatchEvent::CannotReopen(error) => complain(&error),
                WatchEvent::Replaced { path } => say(&format!(
                    "draftq: the database {} was removed or replaced; closed it, and waiting for \
                     one there",
                    path.display()
                )),
                WatchEvent::Reopened { path } => {
                    say(&format!("draftq: opened the database that is at {} now", path.display()));
                }
                _ => {}
            }
            Ok::<(), Failure>(())
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn print(
        &self,
        output: Output,
        processor: &str,
        report: &RunReport,
        took: Duration,
    ) -> Result<(), Failure> {
        let summary = &report.summary;
        if !summary.did_something() {
            return Ok(());
        }
        if output.is_json() {
            return output.json(&RunDocument { processor, summary, sweep: None });
        }
        output.text(&to_text(summary, took, self.processing.stale_processing_secs))
    }
}

/// A watch outlives what goes wrong in an iteration, but for a file that must not be used any more.
fn outlive(error: LibrarianError) -> Result<(), Failure> {
    if error.kind() == ErrorKind::ForeignDatabase {
        return Err(error.into());
    }
    complain(&error);
    Ok(())
}

fn complain(error: &LibrarianError) {
    say(&format!("draftq: {error}; watching on"));
}

/// The decisions of a run, those that there were.
pub fn tally(summary: &DraftRunSummary) -> String {
    let parts = [
        (summary.accepted, "accepted"),
        (summary.skipped, "skipped"),
        (summary.failed, "failed"),
        (summary.quarantined, "quarantined"),
        (summary.deferred, "deferred"),
        (summary.errors, "without a decision"),
        (summary.lost_claims, "lost to another runner"),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| format!("{number} {what}"))
        .collect();
    parts.join(", ")
}

/// The summary of a run for a person.
fn to_text(summary: &DraftRunSummary, took: Duration, stale_secs: u64) -> String {
    let mut lines = Vec::new();
    if summary.recovered_processing > 0 {
        let drafts = count(summary.recovered_processing, "draft");
        lines.push(format!("Took back {drafts} that a dead or stale run had left."));
    }
    if summary.exhausted > 0 {
        let drafts = count(summary.exhausted, "draft");
        lines
            .push(format!("Gave up on {drafts} after too many errors; see `list --state failed`."));
    }
    let left = summary.pending_seen.saturating_sub(summary.claimed + summary.claim_misses);
    lines.push(match (summary.claimed, left) {
        (0, 0) => "Nothing to do: no draft is pending and due.".to_owned(),
        (0, _) => "No draft was processed.".to_owned(),
        (claimed, _) => format!(
            "Processed {} in {}: {}.",
            count(claimed, "draft"),
            duration(took),
            tally(summary)
        ),
    });
    if left > 0 {
        lines.push(format!("{} still pending when it ended.", count(left, "draft")));
    }
    if summary.claim_misses > 0 {
        lines.push(format!("{} went to another runner.", count(summary.claim_misses, "draft")));
    }
    if summary.errors > 0 {
        lines.push(format!(
            "What was left without a decision stays in processing and is tried again after {}; \
             see `list --state processing`.",
            duration(Duration::from_secs(stale_secs))
        ));
    }
    lines.join("\n")
}
