//! `draftq show`: everything about one draft.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use draftq::{DraftRecord, DraftSourceSurface, DraftState, HistoryEvent, LibrarianError};
use serde::Serialize;

use super::context::Context;
use super::failure::Failure;
use super::selection::find_draft;
use super::table::Table;
use super::unreadable::{UNREADABLE, Unreadable};
use super::wording::{count, time};

/// Show one draft: its source, its history and its text.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq show 5c1d06e9
  draftq show 5c1d06e9 --raw > draft.md
  draftq show 5c1d06e9 --json | jq .history

Control characters in what came from the draft are shown escaped; only --raw
writes the text byte for byte.")]
pub struct Show {
    /// The draft's id, or the first digits of it if no other id begins with them.
    id: String,
    /// Write only the text, byte for byte.
    #[arg(long, conflicts_with_all = ["json", "format"])]
    raw: bool,
}

/// A draft as JSON: its record, its history and its text.
#[derive(Serialize)]
struct ShowDocument<'a> {
    #[serde(flatten)]
    record: &'a DraftRecord,
    history: &'a [HistoryEvent],
    /// `null` if it is damaged.
    raw_text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged: Option<String>,
}

impl Show {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let store = context.store_to_read()?;
        let id = find_draft(&store, &self.id)?;
        let (record, history, draft) = match store.inspect(id) {
            Ok((record, history, draft)) => (record, history, Ok(draft)),
            // Show the rest, except if only the text was asked for.
            Err(LibrarianError::DamagedDraft { id, damage }) if !self.raw => {
                let (record, history) = store.record(id)?;
                (record, history, Err(damage))
            }
            Err(error) => return Err(error.into()),
        };
        let output = context.output();
        let raw_text = draft.as_ref().ok().map(|draft| draft.raw_text());
        if self.raw {
            output.bytes(raw_text.unwrap_or_default().as_bytes())?;
        } else if output.is_json() {
            let damaged = draft.as_ref().err().map(ToString::to_string);
            output.json(&ShowDocument { record: &record, history: &history, raw_text, damaged })?;
        } else {
            output.text(&record_text(&record))?;
            output.text(&history_text(&history))?;
            if let Some(raw_text) = raw_text {
                output.text(raw_text)?;
            }
        }
        let of_history = history.iter().flat_map(|event| &event.unreadable);
        let of_history: Vec<String> = of_history.map(|name| format!("history.{name}")).collect();
        let of_history = of_history.iter().map(String::as_str);
        let columns: Vec<&str> = record.unreadable.iter().copied().chain(of_history).collect();
        let mut unreadable = Unreadable::default();
        unreadable.note(id, &columns);
        unreadable.report();
        match draft {
            Ok(_) => Ok(ExitCode::SUCCESS),
            Err(damage) => Err(LibrarianError::DamagedDraft { id, damage }.into()),
        }
    }
}

/// The fields of a draft, one per line.
fn record_text(record: &DraftRecord) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12}{}", draftq::escape_line(value));
    };
    line("draft", &record.id.to_hex());
    line("state", record.state.dir_name());
    let optional = [
        ("note", record.note.as_deref()),
        ("output", record.output.as_ref().map(|output| output.get())),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            line(name, value);
        }
    }
    line("submitted", &time(record.submitted_at_unix_ms));
    let optional = [("claimed", record.claimed_at_unix_ms), ("due", record.due_at_unix_ms)];
    for (name, value) in optional {
        if let Some(value) = value {
            line(name, &time(value));
        }
    }
    line(
        "attempts",
        &format!(
            "claims {}, errors {}, crashes {}, deferrals {}",
            record.claims, record.errors, record.crashes, record.defers
        ),
    );
    if let Some(error) = &record.last_error {
        let class = record.last_error_class.as_deref().unwrap_or("error");
        for (index, part) in error.lines().enumerate() {
            if index == 0 {
                line("last error", &format!("{class}: {part}"));
            } else {
                line("", part);
            }
        }
    }
    line("surface", record.source_surface.map_or(UNREADABLE, DraftSourceSurface::as_str));
    let optional = [
        ("agent", &record.source_agent),
        ("project", &record.source_project),
        ("operator", &record.operator),
        ("provenance", &record.provenance_uri),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            line(name, value);
        }
    }
    if !record.context_tags.is_empty() {
        line("tags", &record.context_tags.join(", "));
    }
    if !record.unreadable.is_empty() {
        line("unreadable", &record.unreadable.join(", "));
    }
    line("text", &count(usize::try_from(record.text_bytes).unwrap_or(usize::MAX), "byte"));
    text
}

fn history_text(history: &[HistoryEvent]) -> String {
    let mut table = Table::new(&["TIME", "EVENT", "STATE", "BY", "WHAT"], 4);
    for event in history {
        let by = match (event.by_hand, event.runner) {
            (true, _) => Cow::from("hand"),
            (false, Some(runner)) => Cow::from(format!("runner {runner}")),
            (false, None) => Cow::from(""),
        };
        // The runner of this event is the one that had held the draft.
        let by = if event.event == "requeued" && !event.by_hand { "operator".into() } else { by };
        let what = match (&event.error, &event.note, event.decision) {
            (Some(error), ..) => Cow::from(error.lines().next().unwrap_or_default()),
            (None, Some(note), _) => Cow::from(note.as_str()),
            (None, None, Some(decision)) => Cow::from(decision.as_str()),
            (None, None, None) => Cow::from(""),
        };
        table.row([
            Cow::from(time(event.at_unix_ms)),
            Cow::from(event.event.as_str()),
            Cow::from(event.to_state.map_or(UNREADABLE, DraftState::dir_name)),
            by,
            what,
        ]);
    }
    table.into_text() + "\n"
}
