//! `draftq list`: drafts in a table, or as JSON Lines.

use std::process::ExitCode;

use clap::Args;

use super::context::Context;
use super::draft_table::draft_table;
use super::failure::Failure;
use super::selection::{Selection, for_each_page};
use super::unreadable::Unreadable;

/// The most drafts that are listed without --limit.
const DEFAULT_LIMIT: usize = 50;

/// List drafts, newest first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq list --state failed,quarantined
  draftq list --agent claude --since 2h --limit 20
  draftq list --state failed --error-class timeout --since 1d --of updated
  draftq list --grep '(?i)staging' --limit 0
  draftq list --limit 0 --json | jq -r 'select(.errors > 0) | .id'")]
pub struct List {
    #[command(flatten)]
    selection: Selection,
}

impl List {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let store = context.store_to_read()?;
        let output = context.output();
        let query = self.selection.query(&store)?;
        let limit = self.selection.limit(Some(DEFAULT_LIMIT));
        let mut unreadable = Unreadable::default();
        if output.is_json() {
            let page = |query: &_| store.query(query);
            for_each_page(query, limit, page, &mut unreadable, |records, unreadable| {
                output.json_lines(records)?;
                for record in records {
                    unreadable.note(record.id, &record.unreadable);
                }
                Ok(())
            })?;
            unreadable.report();
            return Ok(ExitCode::SUCCESS);
        }
        let page = |query: &_| store.summaries(query);
        let listed = for_each_page(query, limit, page, &mut unreadable, |drafts, unreadable| {
            output.text(&draft_table(drafts))?;
            for draft in drafts {
                unreadable.note(draft.id, &draft.unreadable);
            }
            Ok(())
        })?;
        if listed.drafts == 0 && !unreadable.has_rows() {
            // The path may be mistyped, so it is shown.
            let path = store.path().display().to_string();
            output.text(&format!("No such drafts in {}.", draftq::escape_line(&path)))?;
        } else if listed.more {
            let more = match self.selection.reads_texts() {
                true => "perhaps more",
                false => "more",
            };
            output.text(&format!(
                "… and {more}; these are {}, --limit 0 lists all.",
                listed.drafts
            ))?;
        }
        unreadable.report();
        Ok(ExitCode::SUCCESS)
    }
}
