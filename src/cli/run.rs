//! `draftq run`: process what is pending, once.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use clap::Args;
use draftq::RunReport;

use super::arguments::one_or_more;
use super::context::Context;
use super::failure::{EX_SOFTWARE, Failure};
use super::processing::Processing;
use super::provenance::Provenance;
use super::run_progress::RunProgress;
use super::submit_files::SubmitFiles;
use super::summary::{RunDocument, to_text};

/// Process the pending drafts, once.
///
/// The run recovers the drafts of dead runners, then claims the pending drafts one by one, in order
/// of submission. The program decides about each draft, and the run stores the decision. Drafts
/// that are submitted meanwhile are left for the next run. The exit code is 70 if there were errors
/// or deferrals.
#[derive(Debug, Args)]
#[command(override_usage = "draftq run [OPTIONS] (--defer | -- PROGRAM [ARG]…)")]
#[command(after_help = "\
Examples:
  draftq run --defer
  draftq run -- ./judge
  draftq run --jobs 4 --timeout-secs 120 -- ./ask-the-model --careful
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
    #[command(flatten)]
    processing: Processing,
    #[command(flatten)]
    provenance: Provenance,
}

impl Run {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let mut processors = self.processing.processors()?;
        if self.sweep.is_empty() && self.provenance.is_given() {
            return Err(Failure::usage(
                "flags such as --agent and --project describe the drafts of --sweep; give --sweep, or \
                 leave them out",
            ));
        }
        let files = match self.sweep.as_slice() {
            [] => None,
            paths => Some(SubmitFiles::new(paths, &self.provenance, context)?),
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
            .runner(&store, processors.name, &cancellation)
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
            output.json(&RunDocument { processor: processors.name, summary: &summary, sweep })?;
        } else {
            if let Some(swept) = &swept {
                output.text(&swept.to_text())?;
            }
            output.text(&to_text(&summary, begun.elapsed(), self.processing.stale_after()))?;
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
