//! The list of drafts to review, loaded page by page.

use draftq::{DraftId, DraftQuery, DraftState, DraftStore, DraftSummary, LibrarianError};

use super::super::draft_table::{remark, source};

/// How many drafts are loaded before the screen opens.
pub const FIRST_PAGE: usize = 200;

/// How many more are loaded when the cursor comes near the end of the list.
const PAGE: usize = 1_000;

/// The next page is loaded when the cursor is this near to the end.
const NEAR: usize = 100;

/// At most this many characters of the reason are kept for the list.
const WHY_CHARACTERS: usize = 200;

/// A draft in the list, escaped.
pub struct Entry {
    pub id: DraftId,
    pub state: DraftState,
    pub submitted_at_unix_ms: i64,
    pub from: String,
    why: String,
    /// The note of its decision in this review, escaped; `None` if it was not decided.
    decided: Option<String>,
}

impl Entry {
    fn of(draft: &DraftSummary) -> Self {
        Self {
            id: draft.id,
            state: draft.state,
            submitted_at_unix_ms: draft.submitted_at_unix_ms,
            from: short(&source(draft)),
            why: short(&remark(draft)),
            decided: None,
        }
    }

    /// Note that it was decided in this review.
    pub fn decide(&mut self, note: &str) {
        self.decided = Some(short(note));
    }

    pub fn is_decided(&self) -> bool {
        self.decided.is_some()
    }

    /// Note that its decision in this review was taken back.
    pub fn undecide(&mut self) {
        self.decided = None;
    }

    /// What the list says about it.
    pub fn reason(&self) -> &str {
        self.decided.as_deref().unwrap_or(&self.why)
    }

    /// Whether the search finds this draft; `text` is in lower case.
    pub fn contains(&self, text: &str) -> bool {
        self.id.to_hex().contains(text)
            || self.state.as_str().contains(text)
            || self.from.to_lowercase().contains(text)
            || self.reason().to_lowercase().contains(text)
    }
}

/// The beginning of a text, escaped to one line.
fn short(text: &str) -> String {
    let text: String = text.chars().take(WHY_CHARACTERS).collect();
    draftq::escape_line(&text).into_owned()
}

/// The drafts that are loaded, and where the next page begins.
pub struct Entries {
    rows: Vec<Entry>,
    /// `None` if there are no more.
    next: Option<DraftQuery>,
    /// How many more may be loaded.
    left: usize,
}

impl Entries {
    pub fn new(query: DraftQuery, limit: Option<usize>) -> Self {
        Self { rows: Vec::new(), next: Some(query), left: limit.unwrap_or(usize::MAX) }
    }

    /// Load one page. With a search in the texts, a page may be empty although there are more.
    pub fn load(&mut self, store: &DraftStore, drafts: usize) -> Result<(), LibrarianError> {
        let Some(query) = self.next.take() else { return Ok(()) };
        if self.left == 0 {
            return Ok(());
        }
        let before = self.rows.len();
        let mut query = query;
        loop {
            let page = store.summaries(&query.clone().limit(drafts.min(self.left)))?;
            self.left -= page.rows.len();
            self.rows.extend(page.rows.iter().map(Entry::of));
            match page.next {
                Some(next) if self.left > 0 => query = query.after_seq(next),
                _ => return Ok(()),
            }
            if self.rows.len() > before {
                self.next = Some(query);
                return Ok(());
            }
        }
    }

    /// Load the next page if the cursor is near the end.
    pub fn load_near(&mut self, store: &DraftStore, cursor: usize) -> Result<(), LibrarianError> {
        match cursor + NEAR >= self.rows.len() {
            true => self.load(store, PAGE),
            false => Ok(()),
        }
    }

    /// Load a page of those that are left.
    pub fn load_more(&mut self, store: &DraftStore) -> Result<(), LibrarianError> {
        self.load(store, PAGE)
    }

    pub fn has_more(&self) -> bool {
        self.next.is_some()
    }

    pub fn rows(&self) -> &[Entry] {
        &self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn at(&mut self, index: usize) -> Option<&mut Entry> {
        self.rows.get_mut(index)
    }

    pub fn position(&self, id: DraftId) -> Option<usize> {
        self.rows.iter().position(|entry| entry.id == id)
    }
}
