//! `draftq requeue`: finished drafts back to pending.

use std::io;
use std::process::ExitCode;

use clap::Args;
use draftq::{DraftQuery, DraftState, DraftStore, DraftSummary, LibrarianError, Requeued};
use serde::Serialize;

use super::context::Context;
use super::draft_table::draft_table;
use super::failure::Failure;
use super::input::cannot_read;
use super::messages::{message, write_to_stderr};
use super::output::Output;
use super::selection::{Selection, for_each_page};
use super::terminal::{stderr_is_terminal, stdin_is_terminal};
use super::unreadable::Unreadable;
use super::wording::{count, was_or_were};

/// Put finished drafts back to pending, to be processed again.
///
/// A requeued draft keeps its place in the order of submission and its history, and its error count
/// starts anew.
///
/// If only ids are given and one of the drafts cannot be requeued, none is. With filters, finished
/// drafts are selected unless --state says otherwise; they are requeued in batches. Drafts in
/// processing are never requeued. Filters without ids ask for confirmation on a terminal; elsewhere
/// they need --yes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq requeue 5c1d06e9
  draftq requeue --state failed --error-class exit --since 2h --of updated
  draftq requeue --state failed --processor judge@1 --dry-run
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
        if selection.states().contains(&DraftState::Processing) {
            return Err(Failure::usage(
                "drafts in processing cannot be requeued; wait until their run ends, or until \
                 they are recovered",
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
            // Not more than the answer was about.
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

    /// The drafts that a requeue of this selection is about.
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
        let drafts = visit(store, &query, self.selection.limit(None), |drafts| {
            let processing = drafts.iter().find(|draft| draft.state == DraftState::Processing);
            if let Some(draft) = processing {
                return Err(LibrarianError::DraftInProcessing { id: draft.id }.into());
            }
            if !output.is_json() {
                return output.text(&draft_table(drafts));
            }
            let lines: Vec<WouldRequeue> = drafts
                .iter()
                .map(|draft| WouldRequeue {
                    id: draft.id.to_hex(),
                    from: draft.state,
                    state: DraftState::Pending,
                    dry_run: true,
                })
                .collect();
            output.json_lines(&lines)
        })?;
        if !output.is_json() {
            output
                .text(&format!("Would requeue {}; nothing was changed.", count(drafts, "draft")))?;
        }
        Ok(())
    }
}

/// Read the summaries of the selected drafts, page by page; returns how many there are.
fn visit(
    store: &DraftStore,
    query: &DraftQuery,
    limit: Option<usize>,
    mut body: impl FnMut(&[DraftSummary]) -> Result<(), Failure>,
) -> Result<usize, Failure> {
    let mut unreadable = Unreadable::default();
    let page = |query: &_| store.summaries(query);
    let visited =
        for_each_page(query.clone(), limit, page, &mut unreadable, |drafts, _| body(drafts))?;
    unreadable.report();
    Ok(visited.drafts)
}

/// Ask on the terminal; anything but yes is no.
fn asked(question: &str) -> Result<bool, Failure> {
    write_to_stderr(&format!("{question} [y/N] "));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| cannot_read("the answer", error))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// The answers about requeued drafts.
struct Printed {
    output: Output,
    moved: usize,
    pending: usize,
    /// Why answers can no longer be printed. Drafts are requeued all the same.
    failure: Option<Failure>,
}

impl Printed {
    fn new(output: Output) -> Self {
        Self { output, moved: 0, pending: 0, failure: None }
    }

    fn add(&mut self, requeued: &[Requeued]) {
        let pending = requeued.iter().filter(|draft| draft.from == DraftState::Pending).count();
        self.pending += pending;
        self.moved += requeued.len() - pending;
        // After a failure nothing more is printed: a gap in the answers would not be noticed.
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
            let text = match self.pending {
                0 => format!("Requeued {moved}."),
                pending => {
                    format!("Requeued {moved}; {pending} {} pending already.", was_or_were(pending))
                }
            };
            self.failure = self.output.text(&text).err();
        }
        match self.failure.take() {
            None => Ok(ExitCode::SUCCESS),
            Some(failure) => Err(failure.although(&self.so_far())),
        }
    }
}
