//! Which drafts to list, and in which order.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::id::DraftId;
use crate::metadata::DraftSourceSurface;
use crate::state::{DraftProcessingDecision, DraftState};

type TextPredicate = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Which drafts to list, and in which order. The default lists all, in the order of submission.
///
/// ```
/// use draftq::{DraftQuery, DraftState};
///
/// let failed = DraftQuery::default()
///     .states([DraftState::Failed])
///     .error_class("exit")
///     .newest_first(true)
///     .limit(20);
/// ```
#[derive(Clone, Default)]
pub struct DraftQuery {
    pub(super) ids: Option<Vec<DraftId>>,
    pub(super) states: Option<Vec<DraftState>>,
    pub(super) source_surface: Option<DraftSourceSurface>,
    pub(super) source_agent: Option<String>,
    pub(super) source_project: Option<String>,
    pub(super) tag: Option<String>,
    pub(super) submitted_since: Option<SystemTime>,
    pub(super) submitted_before: Option<SystemTime>,
    pub(super) updated_since: Option<SystemTime>,
    pub(super) updated_before: Option<SystemTime>,
    pub(super) error_class: Option<String>,
    pub(super) error_containing: Option<String>,
    pub(super) decision: Option<DraftProcessingDecision>,
    pub(super) processor: Option<(String, Option<String>)>,
    pub(super) text_matching: Option<TextPredicate>,
    pub(super) newest_first: bool,
    pub(super) limit: Option<usize>,
    pub(super) after_seq: Option<i64>,
}

impl fmt::Debug for DraftQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DraftQuery")
            .field("ids", &self.ids)
            .field("states", &self.states)
            .field("source_surface", &self.source_surface)
            .field("newest_first", &self.newest_first)
            .field("limit", &self.limit)
            .field("after_seq", &self.after_seq)
            .finish_non_exhaustive()
    }
}

impl DraftQuery {
    /// Only the drafts with these ids. Ids that no draft has are ignored.
    #[must_use]
    pub fn ids(mut self, ids: impl IntoIterator<Item = DraftId>) -> Self {
        self.ids = Some(ids.into_iter().collect());
        self
    }

    /// Only drafts in these states.
    #[must_use]
    pub fn states(mut self, states: impl IntoIterator<Item = DraftState>) -> Self {
        let mut states: Vec<_> = states.into_iter().collect();
        states.sort_by_key(|state| state.dir_name());
        states.dedup();
        self.states = Some(states);
        self
    }

    /// Only drafts from this surface.
    #[must_use]
    pub fn source_surface(mut self, surface: DraftSourceSurface) -> Self {
        self.source_surface = Some(surface);
        self
    }

    /// Only drafts that this agent wrote.
    #[must_use]
    pub fn source_agent(mut self, agent: impl Into<String>) -> Self {
        self.source_agent = Some(agent.into());
        self
    }

    /// Only drafts of this project.
    #[must_use]
    pub fn source_project(mut self, project: impl Into<String>) -> Self {
        self.source_project = Some(project.into());
        self
    }

    /// Only drafts with this tag.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = Some(tag.into());
        self
    }

    /// Only drafts that were submitted at this time or later.
    #[must_use]
    pub fn submitted_since(mut self, time: SystemTime) -> Self {
        self.submitted_since = Some(time);
        self
    }

    /// Only drafts that were submitted before this time.
    #[must_use]
    pub fn submitted_before(mut self, time: SystemTime) -> Self {
        self.submitted_before = Some(time);
        self
    }

    /// Only drafts whose row draftq last changed at this time or later.
    #[must_use]
    pub fn updated_since(mut self, time: SystemTime) -> Self {
        self.updated_since = Some(time);
        self
    }

    /// Only drafts whose row draftq last changed before this time.
    #[must_use]
    pub fn updated_before(mut self, time: SystemTime) -> Self {
        self.updated_before = Some(time);
        self
    }

    /// Only drafts whose last error is of this class.
    #[must_use]
    pub fn error_class(mut self, class: impl Into<String>) -> Self {
        self.error_class = Some(class.into());
        self
    }

    /// Only drafts whose last error contains this text; case matters.
    #[must_use]
    pub fn error_containing(mut self, text: impl Into<String>) -> Self {
        self.error_containing = Some(text.into());
        self
    }

    /// Only drafts whose last decision is this one.
    #[must_use]
    pub fn decision(mut self, decision: DraftProcessingDecision) -> Self {
        self.decision = Some(decision);
        self
    }

    /// Only drafts whose last attempt was made by this processor, in this version or in any.
    #[must_use]
    pub fn processor(mut self, name: impl Into<String>, version: Option<String>) -> Self {
        self.processor = Some((name.into(), version));
        self
    }

    /// Only drafts whose text the function accepts. The function is called after all other
    /// conditions are met, with one text at a time, within a read transaction. It must be quick and
    /// must not use the store.
    #[must_use]
    pub fn text_matching(mut self, accepts: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.text_matching = Some(Arc::new(accepts));
        self
    }

    /// Whether the draft that was submitted last comes first.
    #[must_use]
    pub fn newest_first(mut self, newest_first: bool) -> Self {
        self.newest_first = newest_first;
        self
    }

    /// At most this many drafts. A page may be shorter; [`DraftPage::next`](crate::DraftPage::next)
    /// says whether there are more.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Start after the draft with this `seq`, in the order of the query. Use
    /// [`DraftPage::next`](crate::DraftPage::next) of the page before.
    #[must_use]
    pub fn after_seq(mut self, seq: i64) -> Self {
        self.after_seq = Some(seq);
        self
    }

    /// The same query, limited to these ids, and without the text condition (a text cannot change),
    /// the limit and the start.
    pub(super) fn again_for(&self, ids: Vec<DraftId>) -> Self {
        Self { ids: Some(ids), text_matching: None, limit: None, after_seq: None, ..self.clone() }
    }

    /// The same query with at most this many drafts.
    pub(super) fn at_most(&self, limit: usize) -> Self {
        Self { limit: Some(self.limit.map_or(limit, |it| it.min(limit))), ..self.clone() }
    }
}
