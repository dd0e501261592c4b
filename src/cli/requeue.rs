//! `draftq requeue`: finished drafts back to pending.

use std::process::ExitCode;

use clap::Args;
use draftq::DraftState;

use super::context::Context;
use super::failure::Failure;
use super::selection::find_draft;
use super::wording::{count, was_or_were};

/// Put finished drafts back to pending, to be processed again.
///
/// A requeued draft keeps its place in the order of submission, and its error count starts anew.
/// Its history stays. If one of the drafts cannot be requeued, none is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq requeue 5c1d06e9
  draftq list --state failed --json | jq -r .id | xargs draftq requeue")]
pub struct Requeue {
    /// The drafts' ids, or unique beginnings of them.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

impl Requeue {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let store = context.store_to_change()?;
        let ids: Vec<_> =
            self.ids.iter().map(|id| find_draft(&store, id)).collect::<Result<_, _>>()?;
        let requeued = store.requeue(&ids)?;
        let output = context.output();
        let moved_anyway =
            |failure: Failure| failure.although("the drafts are requeued all the same");
        if output.is_json() {
            output.json_lines(&requeued).map_err(moved_anyway)?;
            return Ok(ExitCode::SUCCESS);
        }
        let idle = requeued.iter().filter(|draft| draft.from == DraftState::Pending).count();
        let moved = count(requeued.len() - idle, "draft");
        output
            .text(&match idle {
                0 => format!("Requeued {moved}."),
                idle => {
                    format!("Requeued {moved}; {idle} {} pending already.", was_or_were(idle))
                }
            })
            .map_err(moved_anyway)?;
        Ok(ExitCode::SUCCESS)
    }
}
