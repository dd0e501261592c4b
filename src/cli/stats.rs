//! `draftq stats`: counts of the whole store.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use draftq::{DraftStore, StoreStats, from_unix_ms};

use super::context::Context;
use super::failure::Failure;
use super::wording::{duration, time};

/// Count drafts by state, and show how long they have waited.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq stats
  draftq stats --json | jq .states.pending")]
pub struct Stats {}

impl Stats {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let store = context.store_to_read()?;
        let stats = store.stats()?;
        let output = context.output();
        match output.is_json() {
            true => output.json(&stats)?,
            false => output.text(&to_text(&store, &stats))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn to_text(store: &DraftStore, stats: &StoreStats) -> String {
    let mut text = String::new();
    for (state, drafts) in &stats.states {
        let _ = writeln!(text, "{:<13}{drafts:>9}", state.dir_name());
    }
    let _ = writeln!(text, "{:<13}{:>9}\n", "all", stats.drafts);
    let age = |unix_ms: i64| {
        let age = store.clock().now().duration_since(from_unix_ms(unix_ms));
        duration(age.unwrap_or(Duration::ZERO))
    };
    if let Some(submitted) = stats.oldest_ready_unix_ms {
        let _ = writeln!(text, "Next to be processed: submitted {} ago.", age(submitted));
    }
    if let Some(claimed) = stats.oldest_claim_unix_ms {
        let _ = writeln!(text, "Longest in processing: claimed {} ago.", age(claimed));
    }
    if let Some(due) = stats.next_due_unix_ms {
        let _ = writeln!(text, "Delayed: {}; the first is due at {}.", stats.delayed, time(due));
    }
    text.trim_end().to_owned()
}
