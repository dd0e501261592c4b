//! `draftq watch`: process pending drafts and new ones until a signal.

use std::num::NonZeroU64;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use draftq::{ErrorKind, Hold, HoldKind, LibrarianError, RunReport, WatchEvent};

use super::arguments::{one_or_more, seconds};
use super::context::Context;
use super::failure::Failure;
use super::filter::Filter;
use super::messages::message;
use super::output::Output;
use super::processing::Processing;
use super::summary::{RunDocument, to_text};
use super::wording::hold_end;

/// A line of output lists at most this many drafts, so that the memory of a watch is bounded.
const MAX_ITEMS: usize = 1_000;

/// Process the pending drafts, and wait for more, until a signal.
///
/// The signals are SIGINT, SIGTERM, SIGHUP and SIGQUIT. Prints a line for each iteration that did
/// something. It continues after errors. While `draftq pause` or another hold is in force, it claims
/// nothing and waits.
#[derive(Debug, Args)]
#[command(override_usage = "draftq watch [OPTIONS] (--defer | -- PROGRAM [ARG]…)")]
#[command(after_help = "\
Examples:
  draftq watch -- ./judge
  nohup draftq watch -- ./judge >> decisions.log &
  draftq watch --poll-secs 5 --json -- ./judge | jq .summary.accepted")]
pub struct Watch {
    /// Start an iteration at least this often. A new draft starts one at once.
    #[arg(long, value_name = "SECS", default_value = "30")]
    #[arg(value_parser = one_or_more::<NonZeroU64>)]
    poll_secs: NonZeroU64,
    /// End after this many iterations.
    #[arg(long, value_name = "N", value_parser = one_or_more::<NonZeroU64>)]
    iterations: Option<NonZeroU64>,
    #[command(flatten)]
    processing: Processing,
    #[command(flatten)]
    filter: Filter,
}

impl Watch {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let mut processors = self.processing.processors()?;
        let store = context.store()?;
        let cancellation = self.processing.cancellation_by_signal()?;
        let runner = self
            .processing
            .runner(&store, &cancellation)
            .filter(self.filter.to_filter())
            .max_items(MAX_ITEMS);
        // If the file is replaced, the runner must be able to close it.
        drop(store);
        let output = context.output_for_scripts();
        let (kind, poll_interval) = (processors.kind, seconds(self.poll_secs.get()));
        let mut holds = ShownHolds::default();
        let iterations = self.iterations.map(NonZeroU64::get);
        runner.watch(&mut processors.workers, poll_interval, iterations, |event| {
            match event {
                WatchEvent::Ran { report, took } => {
                    self.print(output, kind, &report, took)?;
                    holds.show(report.summary.hold.as_ref());
                    report.stopped_by.map(go_on_after).transpose()?;
                }
                WatchEvent::Failed(error) => go_on_after(error)?,
                // Whatever the error, because another process may be creating the file.
                WatchEvent::CannotReopen(error) => report_and_go_on(&error),
                WatchEvent::Replaced { path } => message(&format!(
                    "draftq: the database {} was removed or replaced; closed it, and waiting for \
                     a new one",
                    path.display()
                )),
                WatchEvent::Reopened { path } => {
                    message(&format!("draftq: opened the new database {}", path.display()));
                }
                // Events that the library adds later.
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
        output.text(&to_text(summary, took, self.processing.stale_after()))
    }
}

/// The holds that the watch has reported: each once.
#[derive(Default)]
struct ShownHolds(Option<Hold>);

impl ShownHolds {
    /// Report the hold at which an iteration ended, if it is a new one. The holds of a processor may
    /// come with each draft, so they are not reported.
    fn show(&mut self, hold: Option<&Hold>) {
        let hold = hold.filter(|hold| hold.kind != HoldKind::Processor);
        if let Some(hold) = hold.filter(|hold| self.0.as_ref() != Some(*hold)) {
            message(&format!("draftq: {hold}; it lasts {}; the watch waits", hold_end(hold)));
        }
        self.0 = hold.cloned();
    }
}

/// Continue after an error of an iteration, unless the file must not be used any more.
fn go_on_after(error: LibrarianError) -> Result<(), Failure> {
    if error.kind() == ErrorKind::ForeignDatabase {
        return Err(error.into());
    }
    report_and_go_on(&error);
    Ok(())
}

fn report_and_go_on(error: &LibrarianError) {
    message(&format!("draftq: {error}; the watch continues"));
}
