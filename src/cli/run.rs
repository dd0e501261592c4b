//! `draftq run`: process what is pending, once.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use clap::Args;
use draftq::{DEFAULT_HOLD_WAIT_SECS, DraftFilter, RunReport};

use super::arguments::{one_or_more, seconds, zero_or_more};
use super::context::Context;
use super::failure::{EX_SOFTWARE, Failure};
use super::filter::RunFilter;
use super::messages::message;
use super::processing::Processing;
use super::run_progress::RunProgress;
use super::submit_files::SubmitFiles;
use super::summary::{RunDocument, to_text, why_not_zero};

/// Process the pending drafts, once.
///
/// The run recovers the drafts of dead runners, then claims the pending drafts one by one, in order
/// of submission. The program decides about each draft, and the run stores the decision. Drafts
/// that are submitted meanwhile are left for the next run. The exit code is 70 if there were errors
/// or deferrals, or if the run ended at a hold (`draftq pause`); a line on standard error says which.
#[derive(Debug, Args)]
#[command(override_usage = "draftq run [OPTIONS] (--defer | -- PROGRAM [ARG]…)")]
#[command(after_help = "\
Examples:
  draftq run --defer
  draftq run -- ./judge
  draftq run --jobs 4 --timeout-secs 120 -- ./ask-the-model --careful
  draftq run --project billing -- ./judge-invoices
  draftq run --sweep ~/notes --exit-code -- sh -c 'grep -qv TODO || exit 75'")]
pub struct Run {
    /// Submit the files below this path first, as `draftq sweep` does.
    #[arg(long, value_name = "PATH")]
    sweep: Vec<PathBuf>,
    /// Claim at most this many drafts.
    #[arg(long, value_name = "N", value_parser = one_or_more::<NonZeroUsize>)]
    limit: Option<NonZeroUsize>,
    /// Stop at the first error of the processor.
    #[arg(long)]
    fail_fast: bool,
    /// How long to wait for the end of a hold, set by `draftq pause` for example, before the run
    /// ends.
    #[arg(long, value_name = "SECS", default_value_t = DEFAULT_HOLD_WAIT_SECS)]
    #[arg(value_parser = zero_or_more::<u64>)]
    hold_wait_secs: u64,
    #[command(flatten)]
    processing: Processing,
    #[command(flatten)]
    filter: RunFilter,
}

impl Run {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let mut processors = self.processing.processors()?;
        let (files, filter) = match self.sweep.as_slice() {
            [] => (None, self.filter.to_filter()?),
            paths => {
                let provenance = self.filter.to_provenance();
                let files = SubmitFiles::new(paths, &provenance, context)?;
                (Some(files), DraftFilter::default())
            }
        };
        let store = context.store()?;
        let cancellation = self.processing.cancellation_by_signal()?;
        let swept = match &files {
            Some(files) => Some(files.submit(&store, context.shows_progress(), &cancellation)?),
            None => None,
        };

        let limit = self.limit.map_or(usize::MAX, NonZeroUsize::get);
        let progress = Arc::new(RunProgress::new(context.shows_progress(), limit));
        let shown = Arc::clone(&progress);
        let runner = self
            .processing
            .runner(&store, &cancellation)
            .filter(filter)
            .hold_wait(seconds(self.hold_wait_secs))
            .limit(limit)
            .stop_at_error(self.fail_fast)
            .observer(move |summary| shown.show(summary));
        let begun = Instant::now();
        let RunReport { summary, stopped_by, .. } =
            runner.run(&mut processors.workers, SystemTime::now());
        progress.clear();

        let output = context.output_for_scripts();
        if output.is_json() {
            let sweep = swept.as_ref();
            output.json(&RunDocument { processor: processors.kind, summary: &summary, sweep })?;
        } else {
            if let Some(swept) = &swept {
                output.text(&swept.to_text())?;
            }
            output.text(&to_text(&summary, begun.elapsed(), self.processing.stale_after()))?;
        }
        match stopped_by {
            Some(error) => Err(error.into()),
            None => match why_not_zero(&summary) {
                Some(why) => {
                    message(&format!("draftq: exit code {EX_SOFTWARE}: {why}"));
                    Ok(ExitCode::from(EX_SOFTWARE))
                }
                None => Ok(ExitCode::SUCCESS),
            },
        }
    }
}
