//! `draftq decide`: a person's signed decision about drafts.

use std::process::ExitCode;

use clap::Args;
use draftq::{
    DraftProcessingDecision, DraftQuery, DraftState, DraftStore, DraftSummary, LibrarianError,
    OperatorDecision, OperatorMove,
};
use serde::Serialize;

use super::arguments::utf8_argument;
use super::confirm::asked;
use super::context::Context;
use super::draft_table::draft_table;
use super::failure::Failure;
use super::messages::message;
use super::output::Output;
use super::selection::{Selection, for_each_page, visit};
use super::signature::Signature;
use super::terminal::{stderr_is_terminal, stdin_is_terminal};
use super::unreadable::Unreadable;
use super::wording::{and_held, count, was_or_were};

/// Decide about drafts as a person, with your signature.
///
/// A draft that is pending, finished, or in processing without a live runner moves to the state
/// accepted, skipped, failed or quarantined. The history keeps the earlier decision.
///
/// If only ids are given, all drafts are decided or none: one that a live runner holds is refused,
/// and the message names the runner. Filters without ids select quarantined and failed drafts
/// unless --state says otherwise, and ask for confirmation on a terminal; elsewhere they need
/// --yes. They are decided in batches, and drafts that a live runner holds are left alone.
#[derive(Debug, Args)]
#[command(override_usage = "draftq decide [OPTIONS] [ID]... <accepted|skipped|failed|quarantined>")]
#[command(after_help = "\
Examples:
  draftq decide 5c1d06e9 accepted --note 'read it, the numbers are right'
  draftq decide 5c1d06e9 77a9860a skipped --by anna
  draftq decide --state quarantined --project billing skipped --dry-run
  draftq decide --error-class timeout --since 2h --of updated failed --yes

To look at each draft first, use draftq review. To put drafts back to pending, use draftq requeue.")]
pub struct Decide {
    /// A note for people, stored with the draft and in its history.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = utf8_argument())]
    note: Option<String>,
    #[command(flatten)]
    signature: Signature,
    /// List and count the drafts, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation.
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    selection: Selection,
}

/// A draft that would be decided, as JSON.
#[derive(Serialize)]
struct WouldDecide {
    id: String,
    from: DraftState,
    state: DraftState,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_by: Option<i64>,
    dry_run: bool,
}

impl Decide {
    pub fn run(mut self, context: &Context) -> Result<ExitCode, Failure> {
        let decision = self.decision()?;
        let selection = &self.selection;
        if !selection.has_ids() && !selection.has_filters() {
            return Err(Failure::usage(
                "no drafts are selected; give ids, or filters such as --state quarantined",
            ));
        }
        let output = context.output();
        if self.dry_run {
            self.list(&context.store_to_read()?, decision.state(), output)?;
            return Ok(ExitCode::SUCCESS);
        }
        let confirm = !selection.has_ids() && !self.yes;
        if confirm && !(stdin_is_terminal() && stderr_is_terminal()) {
            return Err(Failure::usage(
                "filters may select many drafts; see them with --dry-run, then give --yes",
            ));
        }
        let store = context.store_to_change()?;
        let mut printed = Printed::new(output, decision.state());
        if !selection.has_filters() && selection.limit(None).is_none() {
            printed.add(&store.decide(&selection.named(&store)?, &decision)?);
            return printed.end();
        }
        let query = self.query(&store)?;
        let mut limit = selection.limit(None);
        if confirm {
            let drafts = visit(&store, &query, limit, |_| Ok(()))?;
            let question = format!("Move {} to {}?", count(drafts, "draft"), decision.state());
            if drafts > 0 && !asked(&question)? {
                message("draftq: nothing was decided");
                return Ok(ExitCode::SUCCESS);
            }
            // At most as many as the user confirmed.
            limit = Some(drafts);
        }
        let mut unreadable = Unreadable::default();
        let page = |query: &_| store.decide_matching(query, &decision);
        let result = for_each_page(query, limit, page, &mut unreadable, |decided, _| {
            printed.add(decided);
            Ok(())
        });
        unreadable.report();
        match result {
            Ok(_) => printed.end(),
            Err(failure) => Err(failure.although(&printed.so_far())),
        }
    }

    /// The decision among the words that are not options, removed from them.
    fn decision(&mut self) -> Result<OperatorDecision, Failure> {
        let is_decision = |word: &str| DraftProcessingDecision::parse(word).is_some();
        let words = self.selection.take_words(is_decision);
        let decision = match words.as_slice() {
            [word] => DraftProcessingDecision::parse(word)
                .filter(|decision| *decision != DraftProcessingDecision::Deferred),
            _ => None,
        };
        let Some(decision) = decision else {
            return Err(Failure::usage(
                "give ids and one decision: accepted, skipped, failed or quarantined",
            ));
        };
        let decision = OperatorDecision::new(decision, self.signature.name())?;
        Ok(match self.note.take() {
            Some(note) => decision.with_note(note)?,
            None => decision,
        })
    }

    /// The drafts to decide about.
    fn query(&self, store: &DraftStore) -> Result<DraftQuery, Failure> {
        let query = self.selection.query(store)?;
        Ok(match self.selection.states() {
            [] if !self.selection.has_ids() => {
                query.states([DraftState::Failed, DraftState::Quarantined])
            }
            _ => query,
        })
    }

    /// List what would be decided.
    fn list(&self, store: &DraftStore, to: DraftState, output: Output) -> Result<(), Failure> {
        let query = self.query(store)?;
        let mut held = 0;
        let drafts = visit(store, &query, self.selection.limit(None), |drafts| {
            let mut lines = Vec::new();
            for draft in drafts {
                let held_by = self.held_by(store, draft)?;
                held += usize::from(held_by.is_some());
                let state = if held_by.is_some() { draft.state } else { to };
                let (id, from) = (draft.id.to_hex(), draft.state);
                lines.push(WouldDecide { id, from, state, held_by, dry_run: true });
            }
            if output.is_json() {
                return output.json_lines(&lines);
            }
            output.text(&draft_table(drafts))
        })?;
        if !output.is_json() {
            let would = count(drafts - held, "draft");
            let held = and_held(held);
            output.text(&format!("Would move {would} to {to}{held}; nothing was changed."))?;
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
    to: DraftState,
    moved: usize,
    held: usize,
    /// Why results can no longer be printed. The drafts are decided nevertheless.
    failure: Option<Failure>,
}

impl Printed {
    fn new(output: Output, to: DraftState) -> Self {
        Self { output, to, moved: 0, held: 0, failure: None }
    }

    fn add(&mut self, decided: &[OperatorMove]) {
        let held = decided.iter().filter(|draft| draft.held_by.is_some()).count();
        self.held += held;
        self.moved += decided.len() - held;
        // After a failure nothing more is printed, because a gap would not be noticed.
        if self.output.is_json() && self.failure.is_none() {
            self.failure = self.output.json_lines(decided).err();
        }
    }

    fn so_far(&self) -> String {
        match self.moved {
            0 => "nothing was decided".to_owned(),
            moved => {
                let to = self.to;
                format!("but {} {} moved to {to}", count(moved, "draft"), was_or_were(moved))
            }
        }
    }

    fn end(mut self) -> Result<ExitCode, Failure> {
        if !self.output.is_json() {
            let moved = count(self.moved, "draft");
            let text = format!("Moved {moved} to {}{}.", self.to, and_held(self.held));
            self.failure = self.output.text(&text).err();
        }
        match self.failure.take() {
            None => Ok(ExitCode::SUCCESS),
            Some(failure) => Err(failure.although(&self.so_far())),
        }
    }
}
