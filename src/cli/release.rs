//! `draftq release`: take drafts from a runner whose processor hangs.

use std::process::ExitCode;

use clap::Args;

use super::context::Context;
use super::failure::Failure;
use super::selection::find_draft;

/// Take drafts from live runners whose processor hangs, and put them back to pending.
///
/// Within a second or so, the runner notices it, kills the draft's program and goes on with other
/// drafts. A result that comes late is refused. No error is counted. The runner does not process the
/// draft again in the same run.
///
/// If one of the drafts is not held by a live runner, none is released, and the exit code is 65; use
/// `draftq requeue` for such drafts.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq list --state processing
  draftq release 5c1d06e9")]
pub struct Release {
    /// The drafts: ids, or the first digits of ids.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

impl Release {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let store = context.store_to_change()?;
        let ids =
            self.ids.iter().map(|id| find_draft(&store, id)).collect::<Result<Vec<_>, _>>()?;
        let released = store.release_held(&ids)?;
        let output = context.output();
        if output.is_json() {
            output.json_lines(&released)?;
        } else {
            let lines: Vec<String> = released
                .iter()
                .map(|draft| {
                    format!(
                        "Released draft {} from runner {} (processor {}, process {}); it is pending.",
                        draft.id, draft.runner, draft.processor, draft.pid
                    )
                })
                .collect();
            output.text(&lines.join("\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
