//! `draftq requeue`: drafts back to pending.

use std::process::ExitCode;

use clap::Args;
use draftq::{DraftQuery, DraftState, DraftStore, DraftSummary, LibrarianError, Requeued};
use serde::Serialize;

use super::confirm::asked;
use super::context::Context;
use super::draft_table::draft_table;
use super::failure::Failure;
use super::messages::message;
use super::output::Output;
use super::selection::{Selection, for_each_page, visit};
use super::terminal::{stderr_is_terminal, stdin_is_terminal};
use super::unreadable::Unreadable;
use super::wording::{and_held, count, was_or_were};

/// Put drafts back to pending, to be processed again.
///
/// A requeued draft keeps its history and its place in the order of submission. Its error count
/// starts anew.
///
/// A draft in processing can be requeued unless a live runner holds it. So a draft whose processor
/// failed need not wait until it is tried again.
///
/// If only ids are given and one of the drafts cannot be requeued, none is. Filters select finished
/// drafts unless --state says otherwise; the drafts are requeued in batches, and those that a live
/// runner holds are left alone. Filters without ids ask for confirmation on a terminal; elsewhere
/// they need --yes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq requeue 5c1d06e9
  draftq requeue --state failed --error-class exit --since 2h --of updated
  draftq requeue --state failed --processor judge@1 --dry-run
  draftq requeue --state processing --error-class exit --yes
  draftq requeue --state skipped --project billing --yes")]
pub struct Requeue {
    /// List and count the drafts, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation.
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    selection: Selection,
}

/// A draft that would be requeued, as JSON.
#[derive(Serialize)]
struct WouldRequeue {
    id: String,
    from: DraftState,
    state: DraftState,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_by: Option<i64>,
    dry_run: bool,
}

impl Requeue {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let selection = &self.selection;
        if !selection.has_ids() && !selection.has_filters() {
            return Err(Failure::usage(
                "no drafts are selected; give ids, or filters such as --state failed",
            ));
        }
        let output = context.output();
        if self.dry_run {
            self.list(&context.store_to_read()?, output)?;
            return Ok(ExitCode::SUCCESS);
        }
        let confirm = !selection.has_ids() && !self.yes;
        if confirm && !(stdin_is_terminal() && stderr_is_terminal()) {
            return Err(Failure::usage(
                "filters may select many drafts; see them with --dry-run, then give --yes",
            ));
        }
        let store = context.store_to_change()?;
        if !selection.has_filters() && selection.limit(None).is_none() {
            let requeued = store.requeue(&selection.named(&store)?)?;
            let mut printed = Printed::new(output);
            printed.add(&requeued);
            return printed.end();
        }
        let query = self.query(&store)?;
        let mut limit = selection.limit(None);
        if confirm {
            let drafts = visit(&store, &query, limit, |_| Ok(()))?;
            if drafts > 0 && !asked(&format!("Requeue {}?", count(drafts, "draft")))? {
                message("draftq: nothing was requeued");
                return Ok(ExitCode::SUCCESS);
            }
            // At most as many as the user confirmed.
            limit = Some(drafts);
        }
        let mut printed = Printed::new(output);
        let mut unreadable = Unreadable::default();
        let page = |query: &_| store.requeue_matching(query);
        let result = for_each_page(query, limit, page, &mut unreadable, |requeued, _| {
            printed.add(requeued);
            Ok(())
        });
        unreadable.report();
        match result {
            Ok(_) => printed.end(),
            Err(failure) => Err(failure.although(&printed.so_far())),
        }
    }

    /// The drafts to requeue.
    fn query(&self, store: &DraftStore) -> Result<DraftQuery, Failure> {
        let query = self.selection.query(store)?;
        Ok(match self.selection.states() {
            [] if self.selection.has_filters() => {
                query.states(DraftState::ALL.into_iter().filter(|state| state.is_terminal()))
            }
            _ => query,
        })
    }

    /// List what would be requeued.
    fn list(&self, store: &DraftStore, output: Output) -> Result<(), Failure> {
        let query = self.query(store)?;
        let mut held = 0;
        let drafts = visit(store, &query, self.selection.limit(None), |drafts| {
            let mut lines = Vec::new();
            for draft in drafts {
                let held_by = self.held_by(store, draft)?;
                held += usize::from(held_by.is_some());
                let state = if held_by.is_some() { draft.state } else { DraftState::Pending };
                let (id, from) = (draft.id.to_hex(), draft.state);
                lines.push(WouldRequeue { id, from, state, held_by, dry_run: true });
            }
            if output.is_json() {
                return output.json_lines(&lines);
            }
            output.text(&draft_table(drafts))
        })?;
        if !output.is_json() {
            let would = count(drafts - held, "draft");
            output
                .text(&format!("Would requeue {would}{}; nothing was changed.", and_held(held)))?;
        }
        Ok(())
    }

    /// The live runner that holds the draft. If only ids were given, that is an error, as it is
    /// without --dry-run.
    fn held_by(&self, store: &DraftStore, draft: &DraftSummary) -> Result<Option<i64>, Failure> {
        if draft.state != DraftState::Processing {
            return Ok(None);
        }
        match store.check_requeue(draft.id) {
            Ok(()) => Ok(None),
            Err(LibrarianError::DraftHeld { runner, .. }) if self.selection.has_filters() => {
                Ok(Some(runner))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Prints the results, and counts them.
struct Printed {
    output: Output,
    moved: usize,
    pending: usize,
    held: usize,
    /// Why results can no longer be printed. The drafts are requeued nevertheless.
    failure: Option<Failure>,
}

impl Printed {
    fn new(output: Output) -> Self {
        Self { output, moved: 0, pending: 0, held: 0, failure: None }
    }

    fn add(&mut self, requeued: &[Requeued]) {
        let pending = requeued.iter().filter(|draft| draft.from == DraftState::Pending).count();
        let held = requeued.iter().filter(|draft| draft.held_by.is_some()).count();
        self.pending += pending;
        self.held += held;
        self.moved += requeued.len() - pending - held;
        // After a failure nothing more is printed, because a gap would not be noticed.
        if self.output.is_json() && self.failure.is_none() {
            self.failure = self.output.json_lines(requeued).err();
        }
    }

    fn so_far(&self) -> String {
        match self.moved {
            0 => "nothing was requeued".to_owned(),
            moved => format!("but {} {} requeued", count(moved, "draft"), was_or_were(moved)),
        }
    }

    fn end(mut self) -> Result<ExitCode, Failure> {
        if !self.output.is_json() {
            let moved = count(self.moved, "draft");
            let pending = match self.pending {
                0 => String::new(),
                pending => format!("; {pending} {} pending already", was_or_were(pending)),
            };
            let text = format!("Requeued {moved}{pending}{}.", and_held(self.held));
            self.failure = self.output.text(&text).err();
        }
        match self.failure.take() {
            None => Ok(ExitCode::SUCCESS),
            Some(failure) => Err(failure.although(&self.so_far())),
        }
    }
}
