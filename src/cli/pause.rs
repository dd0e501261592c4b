//! `draftq pause`: set a hold.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use draftq::{Hold, NewHold};

use super::arguments::{length_of_time, name};
use super::context::Context;
use super::failure::Failure;
use super::messages::message;
use super::signature::Signature;
use super::wording::{hold_end, plural};

/// Let runners claim no drafts for a while.
///
/// Runners finish the drafts in hand and claim no others: those that run now, and those that are
/// started later. The pause ends after --for, or with `draftq resume`. A pause for the same
/// processor replaces an earlier one.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq pause --for 1h --reason 'the model is being replaced'
  draftq pause --name judge
  draftq resume")]
pub struct Pause {
    /// End the pause after this time, such as 90s, 15min, 2h or 1day [default: it lasts until
    /// `draftq resume`].
    #[arg(long = "for", value_name = "TIME", value_parser = length_of_time)]
    lasting: Option<Duration>,
    /// Pause only the processor of this name (--name of run and watch) [default: all].
    #[arg(long, value_name = "PROCESSOR", value_parser = name())]
    name: Option<String>,
    /// Why, for other people.
    #[arg(long, value_name = "TEXT", value_parser = name())]
    reason: Option<String>,
    #[command(flatten)]
    signature: Signature,
}

impl Pause {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let store = context.store_to_change()?;
        let mut hold = NewHold::new(self.signature.name());
        if let Some(time) = self.lasting {
            hold = hold.lasting(time);
        }
        if let Some(reason) = &self.reason {
            hold = hold.reason(reason);
        }
        if let Some(name) = &self.name {
            hold = hold.processor(name);
            let known = store.processors()?;
            if !known.contains(name) {
                message(&format!("draftq: note: {}", unknown_name(name, &known)));
            }
        }
        let hold = store.hold(&hold)?;
        let output = context.output();
        match output.is_json() {
            true => output.json(&hold)?,
            false => output.text(&to_text(&hold))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn to_text(hold: &Hold) -> String {
    let who = match &hold.processor {
        Some(processor) => format!("processor {processor}"),
        None => "all processors".to_owned(),
    };
    let end = match &hold.processor {
        Some(processor) => format!("`draftq resume --name {processor}` ends the pause"),
        None => "`draftq resume` ends the pause".to_owned(),
    };
    format!(
        "Paused {who} {}. Runners finish the drafts in hand and claim no others; {end}.",
        hold_end(hold)
    )
}

/// The note for a name that no runner in the database has.
pub fn unknown_name(name: &str, known: &[String]) -> String {
    let known = match known {
        [] => "no runner was ever started".to_owned(),
        known => format!(
            "the {} {}",
            plural(known.len(), "processor is", "processors are"),
            known.join(", ")
        ),
    };
    format!("no runner of a processor named {name} is known; {known}")
}
