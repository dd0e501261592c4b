//! Drafts are looked at: `list`, `show` and `stats`.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use draftq::from_unix_ms;
use draftq::{DraftId, DraftSourceSurface, DraftState, DraftStore, LibrarianError};
use draftq::{DraftPage, DraftQuery, DraftRecord, DraftSummary, HistoryEvent, StoreStats};
use serde::Serialize;
use time::format_description::well_known::Iso8601;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime};

use super::failure::{Failure, say};
use super::intake::parse_surface;
use super::render::{Sheet, count, duration, minute, time};
use super::{Context, from_zero};

/// At most this many drafts that cannot be read in full are named one by one.
const NAMED_UNREADABLE: usize = 5;

/// In place of a value that cannot be read.
const UNREADABLE: &str = "(unreadable)";

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
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    agent: Option<String>,
    /// Only of this project.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    project: Option<String>,
    /// Only with this tag.
    #[arg(long, value_name = "TAG", allow_hyphen_values = true)]
    tag: Option<String>,
    /// Only submitted since: an age such as 90s, 2h or 7d, or a time such as 2026-11-20 or
    /// 2026-11-20T08:30:00Z (UTC where no offset is given).
    #[arg(long, value_name = "WHEN", value_parser = parse_since)]
    since: Option<SystemTime>,
    /// At most this many; 0 is all.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = from_zero::<usize>)]
    #[arg(allow_negative_numbers = true)]
    limit: usize,
    /// The first submitted first: the order in which they are processed.
    #[arg(long)]
    oldest: bool,
}

impl List {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let store = context.store_to_read()?;
        let output = context.output();
        let query = DraftQuery {
            states: self.states,
            source_surface: self.surface,
            source_agent: self.agent,
            source_project: self.project,
            tag: self.tag,
            since: self.since,
            newest_first: !self.oldest,
            limit: if self.limit == 0 { usize::MAX } else { self.limit },
            ..DraftQuery::default()
        };
        let mut unreadable = Unreadable::default();
        if output.is_json() {
            let page = |query: &_| store.query(query);
            pages(query, page, |records| {
                output.json_lines(records)?;
                for record in records {
                    unreadable.note(record.id, &record.unreadable);
                }
                Ok(())
            })?
            .tell(unreadable);
            return Ok(ExitCode::SUCCESS);
        }
        let page = |query: &_| store.summaries(query);
        let listed = pages(query, page, |drafts| {
            output.text(&table(drafts))?;
            for draft in drafts {
                unreadable.note(draft.id, &draft.unreadable);
            }
            Ok(())
        })?;
        if listed.drafts == 0 && listed.passed_over.is_empty() {
            // Which database that is: the path may be mistyped.
            let path = store.path().display().to_string();
            output.text(&format!("No such drafts in {}.", draftq::escape_line(&path)))?;
        } else if listed.more {
            output
                .text(&format!("… and more; these are {}, --limit 0 lists all.", listed.drafts))?;
        }
        listed.tell(unreadable);
        Ok(ExitCode::SUCCESS)
    }
}

/// What was listed.
#[derive(Default)]
struct Listed {
    drafts: usize,
    passed_over: Vec<i64>,
    more: bool,
}

/// Read page after page, each a short read, until there are as many drafts as were asked for.
fn pages<R>(
    mut query: DraftQuery,
    page: impl Fn(&DraftQuery) -> Result<DraftPage<R>, LibrarianError>,
    mut print: impl FnMut(&[R]) -> Result<(), Failure>,
) -> Result<Listed, Failure> {
    let mut listed = Listed::default();
    while query.limit > 0 {
        let page = page(&query)?;
        if !page.rows.is_empty() {
            print(&page.rows)?;
        }
        let read = page.rows.len() + page.passed_over.len();
        query.limit = query.limit.saturating_sub(read);
        query.after_seq = page.next;
        listed.drafts += page.rows.len();
        listed.passed_over.extend(page.passed_over);
        listed.more = page.next.is_some();
        if !listed.more {
            break;
        }
    }
    Ok(listed)
}

impl Listed {
    /// Name on standard error what could not be read.
    fn tell(&self, unreadable: Unreadable) {
        for seq in self.passed_over.iter().take(NAMED_UNREADABLE) {
            say(&format!(
                "draftq: the draft with seq {seq} is not listed: its id or its state cannot be read"
            ));
        }
        if let Some(more) = self.passed_over.len().checked_sub(NAMED_UNREADABLE + 1) {
            say(&format!("draftq: … nor {}", count(more + 1, "other draft")));
        }
        unreadable.tell();
    }
}

/// Drafts with columns that cannot be read.
#[derive(Default)]
struct Unreadable {
    first: Vec<(DraftId, String)>,
    drafts: usize,
}

impl Unreadable {
    fn note(&mut self, id: DraftId, columns: &[&str]) {
        if columns.is_empty() {
            return;
        }
        if self.first.len() < NAMED_UNREADABLE {
            self.first.push((id, columns.join(", ")));
        }
        self.drafts += 1;
    }

    fn tell(&self) {
        for (id, columns) in &self.first {
            say(&format!("draftq: draft {id} cannot be read in full: {columns}"));
        }
        if self.drafts > self.first.len() {
            say(&format!("draftq: … nor {}", count(self.drafts - self.first.len(), "other draft")));
        }
    }
}

fn table(drafts: &[DraftSummary]) -> String {
    let mut sheet = Sheet::new(&["ID", "STATE", "SUBMITTED (UTC)", "FROM", "NOTE"], 3);
    for draft in drafts {
        let submitted = match draft.unreadable.contains(&"submitted_at") {
            true => UNREADABLE.to_owned(),
            false => minute(draft.submitted_at_unix_ms),
        };
        sheet.row([
            Cow::from(draft.id.to_hex()),
            Cow::from(draft.state.dir_name()),
            Cow::from(submitted),
            Cow::from(source(draft)),
            remark(draft),
        ]);
    }
    sheet.into_text()
}

/// Where a draft came from, in a few words: who, or else what.
fn source(draft: &DraftSummary) -> String {
    let surface = draft.source_surface.map_or(UNREADABLE, DraftSourceSurface::as_str);
    let who = draft.source_agent.as_deref().unwrap_or(surface);
    match &draft.source_project {
        Some(project) => format!("{who} in {project}"),
        None => who.to_owned(),
    }
}

/// What there is to say about a draft: its processor's note, or the error that it is stuck with.
fn remark(draft: &DraftSummary) -> Cow<'_, str> {
    let error = draft.last_error.as_deref().filter(|_| match draft.state {
        DraftState::Processing | DraftState::Pending => true,
        DraftState::Failed => draft.decision.is_none(),
        _ => false,
    });
    if let Some(error) = error.filter(|_| draft.note.is_none()) {
        let class = draft.last_error_class.as_deref().unwrap_or("error");
        let first = error.lines().next().unwrap_or_default();
        return Cow::from(format!("{class} ({}x): {first}", draft.errors));
    }
    draft.note.as_deref().unwrap_or_default().into()
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
        .map_err(|_| "expected an age such as 2h or 7d, or a time such as 2026-11-20".to_owned())
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
    /// `null` if it is damaged.
    raw_text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged: Option<String>,
}

impl Show {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let store = context.store_to_read()?;
        let id = resolve(&store, &self.id)?;
        let (record, history, draft) = match store.inspect(id) {
            Ok((record, history, draft)) => (record, history, Ok(draft)),
            // What is known of it is shown all the same; --raw asks for the text alone.
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
            output.text(&describe(&record))?;
            output.text(&recount(&history))?;
            if let Some(raw_text) = raw_text {
                output.text(raw_text)?;
            }
        }
        let mut unreadable = Unreadable::default();
        let of_history = history.iter().flat_map(|event| &event.unreadable);
        let of_history: Vec<String> = of_history.map(|name| format!("history.{name}")).collect();
        let of_history = of_history.iter().map(String::as_str);
        let columns: Vec<&str> = record.unreadable.iter().copied().chain(of_history).collect();
        unreadable.note(id, &columns);
        unreadable.tell();
        match draft {
            Ok(_) => Ok(ExitCode::SUCCESS),
            Err(damage) => Err(LibrarianError::DamagedDraft { id, damage }.into()),
        }
    }
}

/// What is known of a draft, a line each.
fn describe(record: &DraftRecord) -> String {
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
            Cow::from(event.to_state.map_or(UNREADABLE, DraftState::dir_name)),
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
    let shown = draftq::escape_line(text);
    let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_hexdigit());
    if !digits || prefix.len() > 16 {
        return Err(Failure::not_found(format!(
            "no draft \"{shown}\": expected an id of 16 hexadecimal digits, or the first few of them"
        )));
    }
    const CANDIDATES: usize = 8;
    let ids = store.ids_with_prefix(&prefix, CANDIDATES + 1)?;
    match ids.as_slice() {
        [] => Err(Failure::not_found(format!(
            "no draft's id begins with {shown} (database {})",
            store.path().display()
        ))),
        [id] => Ok(*id),
        ids => {
            let mut names: Vec<String> = ids.iter().take(CANDIDATES).map(DraftId::to_hex).collect();
            if ids.len() > CANDIDATES {
                names.push("…".to_owned());
            }
            Err(Failure::bad_input(format!(
                "id {shown} is ambiguous; give more digits of the one you mean: {}",
                names.join(", ")
            )))
        }
    }
}
