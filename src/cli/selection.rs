//! Which drafts a command is about.

use draftq::{DraftId, DraftStore};

use super::failure::Failure;

/// At most this many of the ids that begin alike are named.
const MAX_CANDIDATES: usize = 8;

/// The draft that an argument means: by its id, or by the first digits of it.
pub fn find_draft(store: &DraftStore, text: &str) -> Result<DraftId, Failure> {
    let prefix = text.to_ascii_lowercase();
    let shown = draftq::escape_line(text);
    let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_hexdigit());
    if !digits || prefix.len() > 16 {
        return Err(Failure::not_found(format!(
            "no draft \"{shown}\": expected an id of 16 hexadecimal digits, or the first few of them"
        )));
    }
    let ids = store.ids_with_prefix(&prefix, MAX_CANDIDATES + 1)?;
    match ids.as_slice() {
        [] => Err(Failure::not_found(format!(
            "no draft's id begins with {shown} (database {})",
            store.path().display()
        ))),
        [id] => Ok(*id),
        ids => {
            let mut names: Vec<String> =
                ids.iter().take(MAX_CANDIDATES).map(DraftId::to_hex).collect();
            if ids.len() > MAX_CANDIDATES {
                names.push("…".to_owned());
            }
            Err(Failure::bad_input(format!(
                "several ids begin with {shown}; give more digits: {}",
                names.join(", ")
            )))
        }
    }
}
