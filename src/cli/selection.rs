//! Selects drafts: the same options for every command that works on several drafts.

use std::time::SystemTime;

use clap::{ArgGroup, Args, ValueEnum};
use draftq::{
    DraftId, DraftPage, DraftProcessingDecision, DraftQuery, DraftSourceSurface, DraftState,
    DraftStore, DraftSummary, LibrarianError,
};
use regex::Regex;

use super::arguments::{surface, time_or_age, utf8_argument, zero_or_more};
use super::failure::Failure;
use super::unreadable::Unreadable;

/// The most ids that an error about an ambiguous id lists.
const MAX_CANDIDATES: usize = 8;

/// Drafts by id and by filters. A draft is selected if it has one of the ids, if any are given,
/// and passes every filter.
#[derive(Debug, Args)]
#[command(next_help_heading = "Selection")]
#[command(group(ArgGroup::new("since_or_until").args(["since", "until"]).multiple(true)))]
pub struct Selection {
    /// Only these drafts: ids, or the first digits of ids.
    #[arg(value_name = "ID", help_heading = None::<&str>)]
    ids: Vec<String>,
    /// Only in these states, separated by commas.
    #[arg(long = "state", value_name = "STATE", value_delimiter = ',')]
    states: Vec<DraftState>,
    /// Only of this agent.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    agent: Option<String>,
    /// Only of this project.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    project: Option<String>,
    /// Only from this surface.
    #[arg(long, value_name = "SURFACE", alias = "source-surface", value_parser = surface)]
    surface: Option<DraftSourceSurface>,
    /// Only with this tag.
    #[arg(long, value_name = "TAG", allow_hyphen_values = true, value_parser = utf8_argument())]
    tag: Option<String>,
    /// Only drafts submitted at this time or later (with --of updated: last changed). An age such
    /// as 90s, 2h or 7d, or a time such as 2026-11-20 or 2026-11-20T08:30:00Z (UTC if it has no
    /// offset).
    #[arg(long, value_name = "WHEN", value_parser = time_or_age)]
    since: Option<SystemTime>,
    /// Only drafts submitted before this time (with --of updated: last changed).
    #[arg(long, value_name = "WHEN", value_parser = time_or_age)]
    until: Option<SystemTime>,
    /// The time that --since and --until compare: of the submission, or of the last change
    /// [default: submitted].
    #[arg(long, value_name = "TIME", requires = "since_or_until")]
    of: Option<TimeOf>,
    /// Only with a last error of this class, such as exit, timeout or protocol.
    #[arg(long, value_name = "CLASS", allow_hyphen_values = true, value_parser = utf8_argument())]
    error_class: Option<String>,
    /// Only with this text in the last error; case matters.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = utf8_argument())]
    error: Option<String>,
    /// Only with this last decision.
    #[arg(long, value_name = "DECISION", value_parser = decision)]
    decision: Option<DraftProcessingDecision>,
    /// Only if this processor made the last attempt, in any version or in this one.
    #[arg(long, value_name = "NAME[@VERSION]", value_parser = utf8_argument())]
    processor: Option<String>,
    /// Only with a match of this regular expression in the text.
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true, value_parser = regex)]
    grep: Option<Regex>,
    /// At most this many drafts; 0 means all [default: 50 for list and review --editor,
    /// otherwise all].
    #[arg(long, value_name = "N", value_parser = zero_or_more::<usize>)]
    #[arg(allow_negative_numbers = true)]
    limit: Option<usize>,
    /// Oldest first, which is the order of processing [default: newest first].
    #[arg(long)]
    oldest: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TimeOf {
    Submitted,
    Updated,
}

impl Selection {
    pub fn has_ids(&self) -> bool {
        !self.ids.is_empty()
    }

    /// Remove those of the ids that are another kind of word, and return them.
    pub fn take_words(&mut self, is_word: impl Fn(&str) -> bool) -> Vec<String> {
        self.ids.extract_if(.., |id| is_word(id)).collect()
    }

    /// Whether any filter was given.
    pub fn has_filters(&self) -> bool {
        !self.states.is_empty()
            || self.agent.is_some()
            || self.project.is_some()
            || self.surface.is_some()
            || self.tag.is_some()
            || self.since.is_some()
            || self.until.is_some()
            || self.error_class.is_some()
            || self.error.is_some()
            || self.decision.is_some()
            || self.processor.is_some()
            || self.grep.is_some()
    }

    /// Whether drafts are selected by their texts, which takes longer.
    pub fn reads_texts(&self) -> bool {
        self.grep.is_some()
    }

    /// The states that were given; empty for all.
    pub fn states(&self) -> &[DraftState] {
        &self.states
    }

    /// At most this many drafts; `None` for all.
    pub fn limit(&self, default: Option<usize>) -> Option<usize> {
        match self.limit {
            None => default,
            Some(0) => None,
            limit => limit,
        }
    }

    /// The ids that were given, in full.
    pub fn named(&self, store: &DraftStore) -> Result<Vec<DraftId>, Failure> {
        self.ids.iter().map(|id| find_draft(store, id)).collect()
    }

    /// The query for the selected drafts.
    pub fn query(&self, store: &DraftStore) -> Result<DraftQuery, Failure> {
        let mut query = DraftQuery::default().newest_first(!self.oldest);
        if self.has_ids() {
            query = query.ids(self.named(store)?);
        }
        if !self.states.is_empty() {
            query = query.states(self.states.iter().copied());
        }
        if let Some(agent) = &self.agent {
            query = query.source_agent(agent);
        }
        if let Some(project) = &self.project {
            query = query.source_project(project);
        }
        if let Some(surface) = self.surface {
            query = query.source_surface(surface);
        }
        if let Some(tag) = &self.tag {
            query = query.tag(tag);
        }
        let updated = self.of == Some(TimeOf::Updated);
        if let Some(since) = self.since {
            query = if updated { query.updated_since(since) } else { query.submitted_since(since) };
        }
        if let Some(until) = self.until {
            query =
                if updated { query.updated_before(until) } else { query.submitted_before(until) };
        }
        if let Some(class) = &self.error_class {
            query = query.error_class(class);
        }
        if let Some(text) = &self.error {
            query = query.error_containing(text);
        }
        if let Some(decision) = self.decision {
            query = query.decision(decision);
        }
        if let Some(processor) = &self.processor {
            query = match processor.rsplit_once('@') {
                Some((name, version)) if !name.is_empty() => {
                    query.processor(name, Some(version.to_owned()))
                }
                _ => query.processor(processor, None),
            };
        }
        if let Some(pattern) = self.grep.clone() {
            query = query.text_matching(move |text| pattern.is_match(text));
        }
        Ok(query)
    }
}

/// How many drafts were visited, and whether there may be more.
#[derive(Default)]
pub struct Visited {
    pub drafts: usize,
    pub more: bool,
}

/// Read page after page, each in a short transaction, up to the limit.
pub fn for_each_page<R>(
    query: DraftQuery,
    limit: Option<usize>,
    page: impl Fn(&DraftQuery) -> Result<DraftPage<R>, LibrarianError>,
    unreadable: &mut Unreadable,
    mut visit: impl FnMut(&[R], &mut Unreadable) -> Result<(), Failure>,
) -> Result<Visited, Failure> {
    let mut visited = Visited::default();
    let mut left = limit.unwrap_or(usize::MAX);
    let mut query = query;
    while left > 0 {
        query = query.limit(left);
        let page = page(&query)?;
        visited.drafts += page.rows.len();
        visited.more = page.next.is_some();
        left = left.saturating_sub(page.rows.len() + page.unreadable.len());
        unreadable.note_rows(&page.unreadable);
        if !page.rows.is_empty() {
            visit(&page.rows, unreadable)?;
        }
        match page.next {
            Some(next) => query = query.after_seq(next),
            None => break,
        }
    }
    Ok(visited)
}

/// Read the summaries of the selected drafts, page by page; returns how many there are.
pub fn visit(
    store: &DraftStore,
    query: &DraftQuery,
    limit: Option<usize>,
    mut body: impl FnMut(&[DraftSummary]) -> Result<(), Failure>,
) -> Result<usize, Failure> {
    let mut unreadable = Unreadable::default();
    let page = |query: &_| store.summaries(query);
    let visited =
        for_each_page(query.clone(), limit, page, &mut unreadable, |drafts, _| body(drafts))?;
    unreadable.report();
    Ok(visited.drafts)
}

fn decision(text: &str) -> Result<DraftProcessingDecision, String> {
    DraftProcessingDecision::parse(text).ok_or_else(|| {
        "expected one of accepted, skipped, failed, quarantined, deferred".to_owned()
    })
}

/// A regular expression. The error does not repeat it, because it may quote a draft.
fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| {
        let error = error.to_string();
        let reason = error.lines().rev().find_map(|line| line.strip_prefix("error: "));
        reason.unwrap_or("expected a regular expression of a reasonable size").to_owned()
    })
}

/// The draft with this id, or the only draft whose id begins with these digits.
pub fn find_draft(store: &DraftStore, text: &str) -> Result<DraftId, Failure> {
    let prefix = text.to_ascii_lowercase();
    let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_hexdigit());
    if !digits || prefix.len() > 16 {
        return Err(Failure::not_found(format!(
            "no draft \"{text}\": expected an id of 16 hexadecimal digits, or the first few of them"
        )));
    }
    let ids = store.ids_with_prefix(&prefix, MAX_CANDIDATES + 1)?;
    match ids.as_slice() {
        [] => Err(Failure::not_found(format!(
            "no draft's id begins with {text} (database {})",
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
                "several ids begin with {text}; give more digits: {}",
                names.join(", ")
            )))
        }
    }
}
