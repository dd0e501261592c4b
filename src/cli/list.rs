//! `draftq list`: drafts in a table, or as JSON Lines.

use std::borrow::Cow;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use draftq::{DraftPage, DraftQuery, DraftSourceSurface, DraftState, DraftSummary, LibrarianError};

use super::arguments::{surface, time_or_age, zero_or_more};
use super::context::Context;
use super::failure::Failure;
use super::table::Table;
use super::unreadable::{UNREADABLE, Unreadable};
use super::wording::minute;

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
    #[arg(long, value_name = "SURFACE", alias = "source-surface", value_parser = surface)]
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
    #[arg(long, value_name = "WHEN", value_parser = time_or_age)]
    since: Option<SystemTime>,
    /// At most this many; 0 is all.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = zero_or_more::<usize>)]
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
            pages(query, page, &mut unreadable, |records, unreadable| {
                output.json_lines(records)?;
                for record in records {
                    unreadable.note(record.id, &record.unreadable);
                }
                Ok(())
            })?;
            unreadable.report();
            return Ok(ExitCode::SUCCESS);
        }
        let page = |query: &_| store.summaries(query);
        let listed = pages(query, page, &mut unreadable, |drafts, unreadable| {
            output.text(&table(drafts))?;
            for draft in drafts {
                unreadable.note(draft.id, &draft.unreadable);
            }
            Ok(())
        })?;
        if listed.drafts == 0 && !unreadable.has_rows() {
            // Which database that is: the path may be mistyped.
            let path = store.path().display().to_string();
            output.text(&format!("No such drafts in {}.", draftq::escape_line(&path)))?;
        } else if listed.more {
            output
                .text(&format!("… and more; these are {}, --limit 0 lists all.", listed.drafts))?;
        }
        unreadable.report();
        Ok(ExitCode::SUCCESS)
    }
}

/// How many drafts were listed, and whether there are more.
#[derive(Default)]
struct Listed {
    drafts: usize,
    more: bool,
}

/// Read page after page, each a short read, until there are as many drafts as were asked for.
fn pages<R>(
    mut query: DraftQuery,
    page: impl Fn(&DraftQuery) -> Result<DraftPage<R>, LibrarianError>,
    unreadable: &mut Unreadable,
    mut print: impl FnMut(&[R], &mut Unreadable) -> Result<(), Failure>,
) -> Result<Listed, Failure> {
    let mut listed = Listed::default();
    while query.limit > 0 {
        let page = page(&query)?;
        if !page.rows.is_empty() {
            print(&page.rows, unreadable)?;
        }
        let read = page.rows.len() + page.passed_over.len();
        query.limit = query.limit.saturating_sub(read);
        query.after_seq = page.next;
        listed.drafts += page.rows.len();
        unreadable.note_rows(&page.passed_over);
        listed.more = page.next.is_some();
        if !listed.more {
            break;
        }
    }
    Ok(listed)
}

fn table(drafts: &[DraftSummary]) -> String {
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
fn source(draft: &DraftSummary) -> String {
    let surface = draft.source_surface.map_or(UNREADABLE, DraftSourceSurface::as_str);
    let from = draft.source_agent.as_deref().unwrap_or(surface);
    match &draft.source_project {
        Some(project) => format!("{from} in {project}"),
        None => from.to_owned(),
    }
}

/// The processor's note, or the last error of a draft that has no decision.
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
