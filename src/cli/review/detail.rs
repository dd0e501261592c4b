//! The open draft, as lines for the screen.

use draftq::{
    DraftId, DraftRecord, DraftSourceSurface, DraftState, DraftStore, HistoryEvent, LibrarianError,
    SeenDraft,
};

use super::super::unreadable::UNREADABLE;
use super::super::wording::{count, time};
use super::wrap::wrap;

/// At most this many bytes of a text are shown.
const MAX_SHOWN_BYTES: usize = 1024 * 1024;

/// What the lower part of the screen shows of the draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    Text,
    Details,
    History,
}

impl View {
    pub const ALL: [Self; 3] = [Self::Text, Self::Details, Self::History];

    pub fn title(self) -> &'static str {
        match self {
            Self::Text => "Text",
            Self::Details => "Details",
            Self::History => "History",
        }
    }
}

/// The open draft.
pub struct Detail {
    pub id: DraftId,
    pub state: DraftState,
    /// The last event that the person has seen.
    pub last_event: i64,
    /// It changed while it was open, and the person has not yet pressed a key since.
    pub has_changed: bool,
    /// The text of each view, escaped.
    texts: [String; 3],
    /// The lines of a view at a width.
    wrapped: Option<(View, usize, Vec<String>)>,
}

impl Detail {
    pub fn load(store: &DraftStore, id: DraftId) -> Result<Self, LibrarianError> {
        let (record, events, text) = match store.inspect(id) {
            Ok((record, events, draft)) => (record, events, shown_text(draft.raw_text())),
            Err(LibrarianError::DamagedDraft { damage, .. }) => {
                let (record, events) = store.record(id)?;
                (record, events, format!("(the draft is damaged: {damage})"))
            }
            Err(error) => return Err(error),
        };
        let why = why(&record);
        let text = if why.is_empty() { text } else { format!("{why}\n\n{text}") };
        Ok(Self {
            id,
            state: record.state,
            last_event: events.last().map_or(0, |event| event.seq),
            has_changed: false,
            texts: [text, details(&record), history(&events)],
            wrapped: None,
        })
    }

    pub fn seen(&self) -> SeenDraft {
        SeenDraft { id: self.id, last_event: self.last_event }
    }

    /// The lines of a view.
    pub fn lines(&mut self, view: View, width: usize) -> &[String] {
        let is_wrapped = matches!(self.wrapped, Some((v, w, _)) if (v, w) == (view, width));
        if !is_wrapped {
            let [text, details, history] = &self.texts;
            let text = match view {
                View::Text => text,
                View::Details => details,
                View::History => history,
            };
            self.wrapped = Some((view, width, wrap(text, width)));
        }
        self.wrapped.as_ref().map_or(&[], |(_, _, lines)| lines)
    }
}

fn shown_text(text: &str) -> String {
    let mut end = text.len().min(MAX_SHOWN_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut shown = draftq::escape_text(&text[..end]).into_owned();
    if end < text.len() {
        let more = count(text.len() - end, "more byte");
        shown.push_str(&format!("\n\n… {more}; draftq show --raw writes all of it."));
    }
    shown
}

/// The note or the error that a reviewer reads first.
fn why(record: &DraftRecord) -> String {
    let line = |text: &str| draftq::escape_line(text).into_owned();
    if let Some(note) = &record.note {
        return match &record.decided_by {
            Some(by) => format!("note of {}: {}", line(by), line(note)),
            None => format!("note: {}", line(note)),
        };
    }
    match &record.last_error {
        Some(error) if record.decision.is_none() => {
            let class = record.last_error_class.as_deref().unwrap_or("error");
            let first = error.lines().next().unwrap_or_default();
            format!("{} ({}x): {}", line(class), record.errors, line(first))
        }
        _ => String::new(),
    }
}

fn details(record: &DraftRecord) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut add = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            lines.push(format!("{name:<12}{}", draftq::escape_line(value)));
        }
    };
    add("draft", Some(&record.id.to_hex()));
    add("state", Some(record.state.as_str()));
    add("decided by", record.decided_by.as_deref());
    add("note", record.note.as_deref());
    add("output", record.output.as_ref().map(|output| output.get()));
    add("surface", Some(record.source_surface.map_or(UNREADABLE, DraftSourceSurface::as_str)));
    add("agent", record.source_agent.as_deref());
    add("project", record.source_project.as_deref());
    add("operator", record.operator.as_deref());
    add("provenance", record.provenance_uri.as_deref());
    let tags = record.context_tags.join(", ");
    add("tags", Some(tags.as_str()).filter(|tags| !tags.is_empty()));
    add("supersedes", record.supersedes.map(|id| id.to_hex()).as_deref());
    add("submitted", Some(&time(record.submitted_at_unix_ms)));
    add("claimed", record.claimed_at_unix_ms.map(time).as_deref());
    add("due", record.due_at_unix_ms.map(time).as_deref());
    let attempts = format!(
        "claims {}, errors {}, crashes {}, deferrals {}",
        record.claims, record.errors, record.crashes, record.defers
    );
    add("attempts", Some(&attempts));
    let bytes = usize::try_from(record.text_bytes).unwrap_or(usize::MAX);
    add("text", Some(&count(bytes, "byte")));
    if !record.unreadable.is_empty() {
        add("unreadable", Some(&record.unreadable.join(", ")));
    }
    if let Some(error) = &record.last_error {
        let class = record.last_error_class.as_deref().unwrap_or("error");
        add("last error", Some(class));
        lines.push(draftq::escape_text(error).into_owned());
    }
    lines.join("\n")
}

fn history(events: &[HistoryEvent]) -> String {
    let lines = events.iter().map(|event| {
        let mut line = format!("{} {:<10}", time(event.at_unix_ms), event.event);
        line.push_str(&match event.to_state {
            Some(state) => format!(" {state:<11}"),
            None => " ".to_owned(),
        });
        let by = match (event.by_hand, &event.decided_by, event.runner) {
            (true, ..) => "by hand".to_owned(),
            (_, Some(by), _) => format!("by {by}"),
            (_, None, Some(runner)) => format!("runner {runner}"),
            (_, None, None) => String::new(),
        };
        let error = event.error.as_deref().and_then(|error| error.lines().next());
        let what = [Some(by.as_str()), event.note.as_deref(), error];
        for part in what.into_iter().flatten().filter(|part| !part.is_empty()) {
            line.push_str("  ");
            line.push_str(part);
        }
        draftq::escape_line(line.trim_end()).into_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}
