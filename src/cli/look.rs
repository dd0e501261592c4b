//! Drafts are looked at: `list`, `show` and `stats`.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use draftq::clock::{from_unix_ms, unix_ms};
use draftq::store::view::{DraftQuery, DraftRecord, HistoryEvent, StoreStats};
use draftq::{DraftId, DraftSourceSurface, DraftState, DraftStore, escape};
use serde::Serialize;
use time::format_description::well_known::Iso8601;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime};

use super::failure::Failure;
use super::intake::parse_surface;
use super::render::{Output, Sheet, count, duration, minute, time};
use super::{Context, from_zero};

/// A list is read in pages of this many drafts, each a short read.
const PAGE: usize = 1000;

/// List drafts, the last submitted first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq list --state failed --state quarantined
  draftq list --agent claude --since 2h --limit 20
  draftq list --json | jq -r 'select(.errors > 0) | .id'")]
pub struct List {
    /// Only in this state; may be given several times.
    #[arg(long = "state", value_name = "STATE")]
    states: Vec<DraftState>,
    /// Only from this surface.
    #[arg(long, value_name = "SURFACE", alias = "source-surface", value_parser = parse_surface)]
    surface: Option<DraftSourceSurface>,
    /// Only of this agent.
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// Only of this project.
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Only with this tag.
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Only submitted since: an age such as 90s, 2h or 7d, or a time such as 2026-11-20 or
    /// 2026-11-20T08:30:00Z (UTC where no offset is given).
    #[arg(long, value_name = "WHEN", value_parser = parse_since)]
    since: Option<SystemTime>,
    /// At most this many; 0 is all.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = from_zero::<usize>)]
    limit: usize,
    /// The first submitted first: the order in which they are processed.
    #[arg(long)]
    oldest: bool,
}

impl List {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let store = context.store_to_read()?;
        let output = context.output();
        let mut left = if self.limit == 0 { usize::MAX } else { self.limit };
        let mut query = DraftQuery {
            states: self.states,
            source_surface: self.surface,
            source_agent: self.agent,
            source_project: self.project,
            tag: self.tag,
            since: self.since,
            newest_first: !self.oldest,
            ..DraftQuery::default()
        };
        let mut listed = 0;
        while left > 0 {
            query.limit = left.min(PAGE);
            let page = store.query(&query)?;
            listed += page.len();
            left = if page.len() < query.limit { 0 } else { left - page.len() };
            query.after_seq = page.last().map(|record| record.seq);
            print_page(output, &page)?;
        }
        if listed == 0 && !output.is_json() {
            output.text(&format!("No such drafts in {}.", store.path().display()))?;
        } else if listed == self.limit && !output.is_json() {
            query.limit = 1;
            if !store.query(&query)?.is_empty() {
                output.text(&format!("… and more; these are {listed}, --limit 0 lists all."))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_page(output: Output, page: &[DraftRecord]) -> Result<(), Failure> {
    if output.is_json() {
        return page.iter().try_for_each(|record| output.json(record));
    }
    if page.is_empty() {
        return Ok(());
    }
    let mut sheet = Sheet::new(&["ID", "STATE", "SUBMITTED (UTC)", "FROM", "NOTE"], 3);
    for record in page {
        sheet.row([
            Cow::from(record.id.to_hex()),
            Cow::from(record.state.dir_name()),
            Cow::from(minute(unix_ms(record.metadata.submitted_at))),
            Cow::from(source(record)),
            remark(record),
        ]);
    }
    output.text(&sheet.into_text())
}

/// Where a draft came from, in a few words: who, or else what.
fn source(record: &DraftRecord) -> String {
    let metadata = &record.metadata;
    let who = metadata.source_agent.as_deref().unwrap_or(metadata.source_surface.as_str());
    match &metadata.source_project {
        Some(project) => format!("{who} in {project}"),
        None => who.to_owned(),
    }
}

/// What there is to say about a draft: its processor's note, or the error that it is stuck with.
fn remark(record: &DraftRecord) -> Cow<'_, str> {
    let error = record.last_error.as_deref().filter(|_| match record.state {
        DraftState::Processing | DraftState::Pending => true,
        DraftState::Failed => record.decision.is_none(),
        _ => false,
    });
    if let Some(error) = error.filter(|_| record.note.is_none()) {
        let class = record.last_error_class.as_deref().unwrap_or("error");
        let first = error.lines().next().unwrap_or_default();
        return Cow::from(format!("{class} ({}x): {first}", record.errors));
    }
    record.note.as_deref().unwrap_or_default().into()
}

fn parse_since(text: &str) -> Result<SystemTime, String> {
    if let Ok(age) = humantime::parse_duration(text) {
        return Ok(SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH));
    }
    let day = Date::parse(text, format_description!("[year]-[month]-[day]"))
        .map(|day| day.midnight().assume_utc());
    let moment = || OffsetDateTime::parse(text, &Iso8601::DEFAULT);
    let local =
        || PrimitiveDateTime::parse(text, &Iso8601::DEFAULT).map(PrimitiveDateTime::assume_utc);
    day.or_else(|_| moment())
        .or_else(|_| local())
        .map(SystemTime::from)
        .map_err(|_| "neither an age such as 2h or 7d nor a time such as 2026-11-20".to_owned())
}

/// Show one draft: where it came from, what became of it, and its text.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq show 5c1d06e9
  draftq show 5c1d06e9 --raw > draft.md
  draftq show 5c1d06e9 --json | jq .history

Control characters in what came from the draft are shown escaped; --raw alone
writes the text byte for byte.")]
pub struct Show {
    /// The draft's id, or a unique beginning of it.
    id: String,
    /// Write the text alone, byte for byte.
    #[arg(long, conflicts_with_all = ["json", "format"])]
    raw: bool,
}

/// A draft as JSON: its record, its history and its text.
#[derive(Serialize)]
struct ShowDocument<'a> {
    #[serde(flatten)]
    record: &'a DraftRecord,
    history: &'a [HistoryEvent],
    raw_text: &'a str,
}

impl Show {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let store = context.store_to_read()?;
        let (record, history, draft) = store.inspect(resolve(&store, &self.id)?)?;
        let output = context.output();
        if self.raw {
            output.bytes(draft.raw_text().as_bytes())?;
        } else if output.is_json() {
            let raw_text = draft.raw_text();
            output.json(&ShowDocument { record: &record, history: &history, raw_text })?;
        } else {
            output.text(&describe(&record))?;
            output.text(&recount(&history))?;
            output.text(draft.raw_text())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What is known of a draft, a line each.
fn describe(record: &DraftRecord) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12}{}", escape::line(value));
    };
    let metadata = &record.metadata;
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
    line("submitted", &time(unix_ms(metadata.submitted_at)));
    let optional = [("claimed", record.claimed_at_unix_ms), ("due", record.due_at_unix_ms)];
    for (name, value) in optional {
        if let Some(value) = value {
            line(name, &time(value));
        }
    }
    line(
        "attempts",
        &format!("{} claimed, {} erred, {} deferred", record.claims, record.errors, record.defers),
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
    line("surface", metadata.source_surface.as_str());
    let optional = [
        ("agent", &metadata.source_agent),
        ("project", &metadata.source_project),
        ("operator", &metadata.operator),
        ("provenance", &metadata.provenance_uri),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            line(name, value);
        }
    }
    if !metadata.context_tags.is_empty() {
        line("tags", &metadata.context_tags.join(", "));
    }
    line("text", &count(usize::try_from(record.text_bytes).unwrap_or(usize::MAX), "byte"));
    text
}

fn recount(history: &[HistoryEvent]) -> String {
    let mut sheet = Sheet::new(&["TIME", "EVENT", "STATE", "BY", "WHAT"], 4);
    for event in history {
        let by = match (event.by_hand, event.runner) {
            (true, _) => Cow::from("hand"),
            (false, Some(runner)) => Cow::from(format!("runner {runner}")),
            (false, None) => Cow::from(""),
        };
        let what = match (&event.error, &event.note, event.decision) {
            (Some(error), ..) => Cow::from(error.lines().next().unwrap_or_default()),
            (None, Some(note), _) => Cow::from(note.as_str()),
            (None, None, Some(decision)) => Cow::from(decision.as_str()),
            (None, None, None) => Cow::from(""),
        };
        sheet.row([
            Cow::from(time(event.at_unix_ms)),
            Cow::from(event.event.as_str()),
            Cow::from(event.to_state.dir_name()),
            by,
            what,
        ]);
    }
    sheet.into_text() + "\n"
}

/// Count drafts: how many are in each state, and what waits.
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
            false => output.text(&count_up(&store, &stats))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn count_up(store: &DraftStore, stats: &StoreStats) -> String {
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
        let _ =
            writeln!(text, "Waiting for a time: {}, the first until {}.", stats.delayed, time(due));
    }
    text.trim_end().to_owned()
}

/// The draft that an argument means: an id, or the beginning of just one.
pub fn resolve(store: &DraftStore, text: &str) -> Result<DraftId, Failure> {
    let prefix = text.to_ascii_lowercase();
    let shown = escape::line(text);
    let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_hexdigit());
    if !digits || prefix.len() > 16 {
        return Err(Failure::not_found(format!(
            "there is no draft \"{shown}\": an id is 16 hexadecimal digits, or the first few of them"
        )));
    }
    const CANDIDATES: usize = 8;
    let ids = store.ids_with_prefix(&prefix, CANDIDATES + 1)?;
    match ids.as_slice() {
        [] => Err(Failure::not_found(format!(
            "there is no draft whose id begins with {shown} (in {})",
            store.path().display()
        ))),
        [id] => Ok(*id),
        ids => {
            let mut names: Vec<String> = ids.iter().take(CANDIDATES).map(DraftId::to_hex).collect();
            if ids.len() > CANDIDATES {
                names.push("…".to_owned());
            }
            Err(Failure::bad_input(format!(
                "{shown} is the beginning of more than one id: {}",
                names.join(", ")
            )))
        }
    }
}
