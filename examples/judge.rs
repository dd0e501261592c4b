//! An example processor: a program that reads drafts and decides by a few plain rules.
//!
//! ```text
//! cargo build --examples
//! draftq run -- target/debug/examples/judge
//! ```
//!
//! It reads one draft per line from standard input, as a JSON envelope, and writes one line with
//! the decision to standard output for each. That is the whole protocol.
//!
//! The rules are an example; replace them by your own, or by a model. In particular, a list of
//! phrases does not protect against a text that tries to mislead its reader.

use std::error::Error;
use std::io::{self, Write};
use std::time::UNIX_EPOCH;

use draftq::DraftProcessingDecision;
use draftq::{Draft, DraftMetadata, DraftSourceSurface};
use serde::Serialize;

/// The line that answers a draft. Note and output are stored with the draft.
#[derive(Serialize)]
struct Answer {
    /// Identifies the draft for people who read several answers.
    id: String,
    decision: DraftProcessingDecision,
    note: &'static str,
    output: Output,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_secs: Option<u64>,
}

/// Data for later programs, without the text itself.
#[derive(Serialize)]
struct Output {
    rule: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    words: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    // An envelope from draftq has all fields; these defaults are for one that was written by hand.
    let defaults = DraftMetadata::new(DraftSourceSurface::Cli, UNIX_EPOCH);
    for line in io::stdin().lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let draft = Draft::from_envelope(&line, &defaults)?;
        let answer = serde_json::to_string(&judge(&draft))?;
        // The reader waits for this answer.
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{answer}")?;
        stdout.flush()?;
    }
    Ok(())
}

/// The rules, in order of precedence. The check for dangerous texts is first.
fn judge(draft: &Draft) -> Answer {
    use DraftProcessingDecision::{Accepted, Deferred, Failed, Quarantined, Skipped};

    let (front_matter, body) = split_front_matter(draft.prose());
    let (decision, rule, note) = if gives_orders(draft.prose()) {
        (Quarantined, "orders", "it gives orders to its reader; a person should look at it")
    } else if is_unfinished(front_matter, body) {
        (Deferred, "unfinished", "its author is not done with it")
    } else if is_cut_off(body) {
        (Failed, "cut_off", "a code block is never closed: the end seems to be missing")
    } else if content_words(body) < 15 {
        (Skipped, "too_little", "there is nothing in it to keep")
    } else {
        (Accepted, "kept", "worth keeping")
    };
    Answer {
        id: draft.id().to_hex(),
        decision,
        note,
        output: Output {
            rule,
            // Nothing of a quarantined text is passed on, not even its title.
            title: (decision == Accepted).then(|| title(body)),
            words: body.split_whitespace().count(),
        },
        retry_after_secs: (decision == Deferred).then_some(3600),
    }
}

/// The lines between two `---` at the very beginning, and the rest.
fn split_front_matter(text: &str) -> (&str, &str) {
    text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n")).unwrap_or(("", text))
}

fn gives_orders(text: &str) -> bool {
    // Line breaks and capitals must not hide a phrase.
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    [
        "ignore all previous instructions",
        "ignore your previous instructions",
        "disregard all previous instructions",
        "do not mention this to the user",
    ]
    .iter()
    .any(|phrase| text.contains(phrase))
}

fn is_unfinished(front_matter: &str, body: &str) -> bool {
    front_matter.lines().any(|line| line.trim() == "status: draft-in-progress")
        || body.lines().any(|line| line.to_lowercase().starts_with("waiting for "))
}

fn is_cut_off(body: &str) -> bool {
    body.lines().filter(|line| line.starts_with("```")).count() % 2 == 1
}

/// Words outside of headings and of reminders to write something.
fn content_words(body: &str) -> usize {
    body.lines()
        .filter(|line| !line.starts_with('#') && !line.trim_start().starts_with("TODO"))
        .map(|line| line.split_whitespace().count())
        .sum()
}

/// The first line that is not blank, without heading marks, at most 80 characters.
fn title(body: &str) -> String {
    let line = body.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.trim_start_matches('#').trim_start().chars().take(80).collect()
}
