//! `draftq resume`: end holds.

use std::process::ExitCode;

use clap::Args;
use draftq::{Hold, HoldKind};
use serde::Serialize;

use super::arguments::name;
use super::context::Context;
use super::failure::Failure;
use super::messages::message;
use super::pause::unknown_name;
use super::wording::hold_end;

/// Let runners claim drafts again.
///
/// Without --name, all holds end: those that `draftq pause` has set, those that a processor has
/// asked for (hold_secs), and those of the breaker. Waiting runners begin within a second. If there
/// is no hold, this says so, and the exit code is 0.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq resume
  draftq resume --name judge")]
pub struct Resume {
    /// End only the holds of the processor of this name. A hold for all processors stays.
    #[arg(long, value_name = "PROCESSOR", value_parser = name())]
    name: Option<String>,
}

/// The result as JSON.
#[derive(Serialize)]
struct Resumed {
    /// The holds that were ended.
    ended: Vec<Hold>,
    /// The holds that are still in force.
    in_force: Vec<Hold>,
}

impl Resume {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let store = context.store_to_change()?;
        let ended = store.end_holds(self.name.as_deref())?;
        let in_force = store.holds()?;
        if let Some(name) = self.name.as_ref().filter(|_| ended.is_empty()) {
            let known = store.processors()?;
            if !known.contains(name) {
                message(&format!("draftq: note: {}", unknown_name(name, &known)));
            }
        }
        let output = context.output();
        if output.is_json() {
            output.json(&Resumed { ended, in_force })?;
        } else {
            output.text(&self.to_text(&ended, &in_force))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn to_text(&self, ended: &[Hold], in_force: &[Hold]) -> String {
        let mut lines: Vec<String> = ended
            .iter()
            .map(|hold| format!("Ended: {} ({}).", describe(hold), hold_end(hold)))
            .collect();
        if ended.is_empty() {
            lines.push(match &self.name {
                Some(name) => format!("Processor {name} has no hold; nothing was changed."),
                None => "There is no hold; nothing was changed.".to_owned(),
            });
        }
        for hold in in_force {
            lines.push(format!("Still in force: {} ({}).", describe(hold), hold_end(hold)));
        }
        lines.join("\n")
    }
}

/// Who set a hold, for whom, and why.
fn describe(hold: &Hold) -> String {
    let who = match &hold.processor {
        Some(processor) => format!("the hold of processor {processor}"),
        None => "the hold of all processors".to_owned(),
    };
    let by = match hold.kind {
        HoldKind::Operator => format!(", set by {}", hold.set_by),
        _ => String::new(),
    };
    let reason = hold.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{who}{by}{reason}")
}
