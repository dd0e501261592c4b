//! Rows that cannot be read in full: what stands in their place, and the messages about them.

use draftq::DraftId;

use super::messages::message;
use super::wording::count;

/// In place of a value that cannot be read.
pub const UNREADABLE: &str = "(unreadable)";

/// The most drafts that are named one by one.
const MAX_NAMED: usize = 5;

/// Drafts with columns that cannot be read, and rows that cannot be read at all.
#[derive(Default)]
pub struct Unreadable {
    columns: Vec<(DraftId, String)>,
    drafts: usize,
    rows: Vec<i64>,
}

impl Unreadable {
    /// Note the columns of a draft that cannot be read, if any.
    pub fn note(&mut self, id: DraftId, columns: &[&str]) {
        if columns.is_empty() {
            return;
        }
        if self.columns.len() < MAX_NAMED {
            self.columns.push((id, columns.join(", ")));
        }
        self.drafts += 1;
    }

    /// Note drafts whose id or state cannot be read, by their `seq`.
    pub fn note_rows(&mut self, seqs: &[i64]) {
        self.rows.extend(seqs);
    }

    /// Whether there are drafts whose id or state cannot be read.
    pub fn has_rows(&self) -> bool {
        !self.rows.is_empty()
    }

    /// Name on standard error what cannot be read.
    pub fn report(&self) {
        for seq in self.rows.iter().take(MAX_NAMED) {
            message(&format!(
                "draftq: the draft with seq {seq} is left out: its id or its state cannot be read"
            ));
        }
        and_more(self.rows.len());
        for (id, columns) in &self.columns {
            message(&format!("draftq: draft {id} cannot be read in full: {columns}"));
        }
        and_more(self.drafts);
    }
}

fn and_more(drafts: usize) {
    if drafts > MAX_NAMED {
        message(&format!("draftq: … and {}", count(drafts - MAX_NAMED, "more draft")));
    }
}
