//! What a reviewer does with a draft: decisions, requeues, edits, undos.

use draftq::{
    Draft, DraftId, DraftMetadata, DraftProcessingDecision, DraftState, DraftStore, LibrarianError,
    OperatorDecision, OperatorMove, SeenDraft, Superseded,
};

use super::super::wording::count;
use super::app::{App, Done, Prompt};

/// What a reviewer says about a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Decide(DraftProcessingDecision),
    Requeue,
}

impl Verdict {
    /// The verdict of this word: `accept`, `accepted` and so on, or `requeue`.
    pub fn parse(word: &str) -> Option<Self> {
        Some(Self::Decide(match word {
            "accept" | "accepted" => DraftProcessingDecision::Accepted,
            "skip" | "skipped" => DraftProcessingDecision::Skipped,
            "fail" | "failed" => DraftProcessingDecision::Failed,
            "quarantine" | "quarantined" => DraftProcessingDecision::Quarantined,
            "requeue" | "requeued" => return Some(Self::Requeue),
            _ => return None,
        }))
    }

    /// The verb, for a question about the note.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Decide(DraftProcessingDecision::Accepted) => "accept",
            Self::Decide(DraftProcessingDecision::Skipped) => "skip",
            Self::Decide(DraftProcessingDecision::Quarantined) => "quarantine",
            Self::Decide(_) => "fail",
            Self::Requeue => "requeue",
        }
    }

    /// What has been done.
    pub fn done(self) -> &'static str {
        match self {
            Self::Decide(decision) => decision.as_str(),
            Self::Requeue => "requeued",
        }
    }

    /// Move the draft, if nothing has happened to it since it was seen.
    pub fn carry_out(
        self,
        store: &DraftStore,
        seen: SeenDraft,
        by: &str,
        note: Option<&str>,
    ) -> Result<OperatorMove, LibrarianError> {
        match self {
            Self::Decide(decision) => {
                let decision = OperatorDecision::new(decision, by)?;
                let decision = match note {
                    Some(note) => decision.with_note(note)?,
                    None => decision,
                };
                store.decide_seen(seen, &decision)
            }
            Self::Requeue => store.requeue_seen(seen, by, note),
        }
    }
}

impl App {
    pub fn decide_or_ask(&mut self, verdict: Verdict, with_note: bool) {
        if !self.is_still_as_seen() {
            return;
        }
        let Some(seen) = self.detail.as_ref().map(|detail| detail.seen()) else { return };
        match with_note {
            true => self.prompt = Some((Prompt::Note { verdict, seen }, String::new())),
            false => self.decide(verdict, seen, None),
        }
    }

    pub fn decide(&mut self, verdict: Verdict, seen: SeenDraft, note: Option<&str>) {
        match verdict.carry_out(&self.store, seen, &self.by, note) {
            Ok(made) if made.from == DraftState::Pending && verdict == Verdict::Requeue => {
                self.message = format!("{} is pending already", made.id);
            }
            Ok(made) => {
                self.message = format!("{} {}", verdict.done(), made.id);
                self.finish(made, Some(verdict), note.unwrap_or_default());
            }
            Err(error) => self.refused(seen.id, &error),
        }
    }

    /// Note a move, and go to the next draft.
    fn finish(&mut self, made: OperatorMove, verdict: Option<Verdict>, note: &str) {
        if let Some(entry) = self.entries.position(made.id).and_then(|at| self.entries.at(at)) {
            entry.state = made.to;
            entry.decide(note);
        }
        self.update_done(made.id, made.last_event);
        self.done.push(Done { made, verdict });
        self.go_to_next_open();
    }

    /// Earlier moves of this draft can be undone after this one.
    fn update_done(&mut self, id: DraftId, last_event: i64) {
        for done in self.done.iter_mut().filter(|done| done.made.id == id) {
            done.made.last_event = last_event;
        }
    }

    fn refused(&mut self, id: DraftId, error: &LibrarianError) {
        match error {
            LibrarianError::DraftChanged { .. } => self.reopen_changed(id),
            LibrarianError::DraftHeld { .. } => {
                self.reopen_changed(id);
                self.message = error.to_string();
            }
            _ => self.message = error.to_string(),
        }
    }

    /// Take back the last move of this review.
    pub fn undo(&mut self) {
        let Some(Done { made, .. }) = self.done.pop() else {
            self.message = "there is nothing to undo in this review".to_owned();
            return;
        };
        match self.store.undo(&made, &self.by) {
            Ok(undone) => {
                self.update_done(made.id, undone.last_event);
                let is_done = self.done.iter().any(|done| done.made.id == made.id);
                if let Some(at) = self.entries.position(made.id) {
                    if let Some(entry) = self.entries.at(at) {
                        entry.state = undone.to;
                        if !is_done {
                            entry.undecide();
                        }
                    }
                    self.cursor = at;
                }
                self.open();
                self.message = format!("undone: {} is {} again", made.id, undone.to);
            }
            Err(LibrarianError::DraftChanged { id, state }) => {
                self.message = format!(
                    "{id} changed after your decision: it is {state} now; nothing was undone"
                );
            }
            Err(error) => {
                // It can be tried again, except if the draft is gone.
                if !matches!(error, LibrarianError::UnknownDraft { .. }) {
                    self.done.push(Done { made, verdict: None });
                }
                self.message = error.to_string();
            }
        }
    }

    /// The text to open in the editor: of the open draft, or an edit of it that was not accepted.
    pub fn text_to_edit(&self) -> Result<Option<(SeenDraft, Draft, String)>, LibrarianError> {
        let Some(detail) = &self.detail else { return Ok(None) };
        let (_, _, draft) = self.store.inspect(detail.id)?;
        let text = match &self.kept_edit {
            Some((id, text)) if *id == detail.id => text.clone(),
            _ => draft.raw_text().to_owned(),
        };
        Ok(Some((detail.seen(), draft, text)))
    }

    /// Submit a corrected text as a new draft that replaces this one.
    pub fn replace(&mut self, seen: SeenDraft, old: &Draft, text: String) {
        let text = without_added_line_break(old.raw_text(), text);
        if text == old.raw_text() {
            self.kept_edit = None;
            self.message = "the text is as it was; nothing was made".to_owned();
            return;
        }
        let submitted_at = self.store.clock().now();
        let metadata = DraftMetadata { submitted_at, ..old.metadata().clone() };
        let corrected = Draft::with_metadata(text, metadata);
        match self.store.supersede(seen, &corrected, &self.by) {
            Ok(Superseded::Created(made)) => {
                self.kept_edit = None;
                self.message = format!("{} is replaced by {}", made.id, corrected.id());
                self.finish(made, None, &format!("superseded by {}", corrected.id()));
            }
            Ok(Superseded::AlreadyThere { id, state }) => {
                self.kept_edit = None;
                self.message =
                    format!("draft {id} has this text and is there, {state}; nothing was made");
            }
            Ok(_) => {}
            Err(error) => {
                self.kept_edit = Some((seen.id, corrected.raw_text().to_owned()));
                self.refused(seen.id, &error);
                self.message.push_str("; your text is kept, press e to go on with it");
            }
        }
    }

    /// What was done in this review, as a sentence.
    pub fn summary(&self) -> String {
        if self.done.is_empty() {
            return "Nothing was decided.".to_owned();
        }
        let verdicts = ["accepted", "skipped", "failed", "quarantined", "requeued"];
        let mut parts: Vec<String> = verdicts
            .iter()
            .map(|name| (name, self.done.iter().filter(|it| it.name() == *name).count()))
            .filter(|(_, number)| *number > 0)
            .map(|(name, number)| format!("{number} {name}"))
            .collect();
        let replaced = self.done.iter().filter(|done| done.made.successor().is_some()).count();
        if replaced > 0 {
            parts.push(format!("{replaced} replaced"));
        }
        format!("{}: {}.", count(self.done.len(), "move"), parts.join(", "))
    }
}

impl Done {
    fn name(&self) -> &'static str {
        match (self.made.successor(), self.verdict) {
            (Some(_), _) => "replaced",
            (None, Some(verdict)) => verdict.done(),
            (None, None) if self.made.to == DraftState::Pending => "requeued",
            (None, None) => self.made.to.as_str(),
        }
    }
}

/// Most editors end a file with a line break. One that the text did not have before is no
/// correction.
fn without_added_line_break(before: &str, mut after: String) -> String {
    if !before.ends_with('\n') && after.ends_with('\n') {
        after.pop();
    }
    after
}
