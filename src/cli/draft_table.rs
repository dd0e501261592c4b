//! A table of drafts, one line per draft.

use std::borrow::Cow;

use draftq::{DraftSourceSurface, DraftState, DraftSummary};

use super::table::Table;
use super::unreadable::UNREADABLE;
use super::wording::minute;

pub fn draft_table(drafts: &[DraftSummary]) -> String {
    let mut table = Table::new(&["ID", "STATE", "SUBMITTED (UTC)", "FROM", "NOTE"], 3);
    for draft in drafts {
        let submitted = match draft.unreadable.contains(&"submitted_at") {
            true => UNREADABLE.to_owned(),
            false => minute(draft.submitted_at_unix_ms),
        };
        table.row([
            Cow::from(draft.id.to_hex()),
            Cow::from(draft.state.dir_name()),
            Cow::from(submitted),
            Cow::from(source(draft)),
            remark(draft),
        ]);
    }
    table.into_text()
}

/// Where a draft came from, in short: the agent, or else the surface.
pub fn source(draft: &DraftSummary) -> String {
    let surface = draft.source_surface.map_or(UNREADABLE, DraftSourceSurface::as_str);
    let from = draft.source_agent.as_deref().unwrap_or(surface);
    match &draft.source_project {
        Some(project) => format!("{from} in {project}"),
        None => from.to_owned(),
    }
}

/// The processor's note, or the last error of a draft that has no decision.
pub fn remark(draft: &DraftSummary) -> Cow<'_, str> {
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
