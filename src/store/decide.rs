//! An operator's moves: signed decisions, corrected texts, and taking such a move back.

use std::collections::{HashMap, HashSet};

use rusqlite::{OptionalExtension as _, Row, named_params};
use serde::Serialize;

use super::DraftStore;
use super::columns::get;
use super::pages::{DraftPage, each_seq};
use super::query::DraftQuery;
use super::requeue::{Requeue, held_error};
use crate::database::TransactionError;
use crate::decision::{OperatorDecision, check_note, check_signature};
use crate::error::LibrarianError;
use crate::id::DraftId;
use crate::state::DraftState;

/// The most drafts that one transaction decides about, so that other processes can write in between.
const MAX_BATCH: usize = 500;

/// A draft as a person saw it: with its last event. A move of a `SeenDraft` fails with
/// [`LibrarianError::DraftChanged`] if anything happened to the draft since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenDraft {
    /// The draft.
    pub id: DraftId,
    /// The `seq` of the last event in its history ([`HistoryEvent::seq`](crate::HistoryEvent::seq)).
    pub last_event: i64,
}

/// An operator's move of a draft. It can be taken back with [`DraftStore::undo`] as long as nothing
/// else has happened to the draft.
#[derive(Clone)]
#[non_exhaustive]
pub struct OperatorMove {
    /// The draft.
    pub id: DraftId,
    /// The state it was in.
    pub from: DraftState,
    /// The state it is in.
    pub to: DraftState,
    /// The live runner that holds the draft. Then nothing was changed.
    pub held_by: Option<i64>,
    /// The `seq` of its last event: this move, and after an undo of a later move, that undo.
    pub last_event: i64,
    /// The new draft that replaces this one, and the `seq` of its last event.
    pub(super) successor: Option<(DraftId, i64)>,
    pub(super) before: Box<Before>,
}

/// What a move replaces in a row.
#[derive(Clone)]
pub(super) struct Before {
    decision: Option<String>,
    note: Option<String>,
    output: Option<String>,
    usage: Option<String>,
    due_at: i64,
    errors: i64,
    crashes: i64,
    defers_in_a_row: i64,
    suspect: i64,
    error_budget: Option<i64>,
    last_error_class: Option<String>,
    last_error: Option<String>,
}

impl Before {
    fn of(row: &Row<'_>) -> Result<Self, rusqlite::Error> {
        Ok(Self {
            decision: row.get("decision")?,
            note: row.get("note")?,
            output: row.get("output")?,
            usage: row.get("usage")?,
            due_at: row.get("due_at")?,
            errors: row.get("errors")?,
            crashes: row.get("crashes")?,
            defers_in_a_row: row.get("defers_in_a_row")?,
            suspect: row.get("suspect")?,
            error_budget: row.get("error_budget")?,
            last_error_class: row.get("last_error_class")?,
            last_error: row.get("last_error")?,
        })
    }
}

impl OperatorMove {
    /// The new draft that replaces this one, if the move was made by [`DraftStore::supersede`].
    #[must_use]
    pub fn successor(&self) -> Option<DraftId> {
        self.successor.map(|(id, _)| id)
    }
}

/// Shows no note, output or error.
impl std::fmt::Debug for OperatorMove {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OperatorMove")
            .field("id", &self.id)
            .field("from", &self.from)
            .field("to", &self.to)
            .field("held_by", &self.held_by)
            .field("last_event", &self.last_event)
            .field("successor", &self.successor())
            .finish_non_exhaustive()
    }
}

impl Serialize for OperatorMove {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let fields = if self.held_by.is_some() { 4 } else { 3 };
        let mut fields = serializer.serialize_struct("OperatorMove", fields)?;
        fields.serialize_field("id", &self.id.to_hex())?;
        fields.serialize_field("from", &self.from)?;
        fields.serialize_field("state", &self.to)?;
        if let Some(runner) = self.held_by {
            fields.serialize_field("held_by", &runner)?;
        }
        fields.end()
    }
}

/// The result of [`DraftStore::supersede`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Superseded {
    /// The new draft is pending, and the old one is skipped.
    Created(OperatorMove),
    /// A draft with this text is there already, in this state. Nothing was changed. A pruned draft
    /// is there too, in its last state.
    AlreadyThere {
        /// The draft.
        id: DraftId,
        /// Its state.
        state: DraftState,
    },
}

impl DraftStore {
    /// Decide about drafts as a person: pending, finished, or in processing and held by no live
    /// runner. Each moves to the state of the decision, with the event `resolved`. The output of an
    /// earlier decision stays in the history. A draft that is given twice is decided once. All in
    /// one transaction: on an error, none is moved.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::UnknownDraft`] for an unknown id; [`LibrarianError::DraftHeld`] for a
    /// draft that a live runner holds.
    pub fn decide(
        &self,
        ids: &[DraftId],
        decision: &OperatorDecision,
    ) -> Result<Vec<OperatorMove>, LibrarianError> {
        self.write("decide about drafts", |transaction| {
            let mut operator = Operator(Requeue::new(self, transaction));
            let mut decided = HashSet::new();
            ids.iter()
                .filter(|id| decided.insert(**id))
                .map(|id| operator.decide_unless_held(*id, decision))
                .collect()
        })
    }

    /// Decide about the drafts that the query asks for, as [`decide`](Self::decide) does. A draft
    /// that a live runner holds stays as it is; [`OperatorMove::held_by`] names the runner. A call
    /// does one page, at most 500 drafts, in one transaction; [`DraftPage::next`] says where the
    /// next page begins. A draft that another process moves meanwhile is decided about only if it
    /// still matches the query.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`]; then nothing of this page was
    /// changed.
    pub fn decide_matching(
        &self,
        query: &DraftQuery,
        decision: &OperatorDecision,
    ) -> Result<DraftPage<OperatorMove>, LibrarianError> {
        // The texts are read before, so that the write lock is not held for long.
        let page = self.page(
            &query.at_most(MAX_BATCH),
            "seq, id",
            |row| Ok((row.get::<_, i64>("seq")?, get(row, "id")?)),
            |_| 0,
        )?;
        let ids: HashMap<i64, DraftId> = page.rows.iter().copied().collect();
        let mut decided = Vec::new();
        if !ids.is_empty() {
            let again = query.again_for(ids.values().copied().collect());
            decided = self.write("decide about drafts", |transaction| {
                let mut found = Vec::new();
                each_seq(transaction, &again, ids.len(), |seq| {
                    found.extend(ids.get(&seq));
                    Ok(true)
                })?;
                let mut operator = Operator(Requeue::new(self, transaction));
                found.into_iter().map(|id| operator.decide(id, decision)).collect()
            })?;
        }
        Ok(DraftPage { rows: decided, unreadable: page.unreadable, next: page.next })
    }

    /// Decide about one draft, if nothing has happened to it since it was seen.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::DraftChanged`]; otherwise as for [`decide`](Self::decide).
    pub fn decide_seen(
        &self,
        seen: SeenDraft,
        decision: &OperatorDecision,
    ) -> Result<OperatorMove, LibrarianError> {
        self.write("decide about a draft", |transaction| {
            let mut operator = Operator(Requeue::new(self, transaction));
            operator.check_seen(seen)?;
            operator.decide_unless_held(seen.id, decision)
        })
    }

    /// Requeue one draft, if nothing has happened to it since it was seen. A pending draft cannot
    /// be signed, so the name is in the note of the event.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::DraftChanged`], [`LibrarianError::InvalidDecision`] for an impossible name
    /// or note; otherwise as for [`requeue`](Self::requeue).
    pub fn requeue_seen(
        &self,
        seen: SeenDraft,
        by: &str,
        note: Option<&str>,
    ) -> Result<OperatorMove, LibrarianError> {
        check_signature(by)?;
        check_note(note.unwrap_or_default())?;
        let note = match note {
            Some(note) => format!("requeued by {by}: {note}"),
            None => format!("requeued by {by}"),
        };
        let requeued = self.write("requeue a draft", |transaction| {
            let mut operator = Operator(Requeue::new(self, transaction));
            operator.check_seen(seen)?;
            let (from, before) = operator.before(seen.id)?;
            let requeued = operator.0.draft(seen.id, Some(&note))?;
            if let Some(runner) = requeued.held_by {
                return Err(held_error(transaction, seen.id, runner)?.into());
            }
            operator.moved(seen.id, from, DraftState::Pending, before)
        })?;
        self.notify(1);
        Ok(requeued)
    }

    /// Replace a draft, because a text is fixed: submit the corrected draft, which names the old one
    /// (`supersedes`), and resolve the old one as `skipped` with a note that names the new one. Both
    /// in one transaction. If a draft with the new id is there already, nothing is changed.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::DraftRejected`] if the text is blank or too long or the metadata is out of
    /// bounds; otherwise as for [`decide_seen`](Self::decide_seen).
    pub fn supersede(
        &self,
        seen: SeenDraft,
        corrected: &crate::draft::Draft,
        by: &str,
    ) -> Result<Superseded, LibrarianError> {
        corrected.check(self.max_text_bytes())?;
        let skipped = crate::state::DraftProcessingDecision::Skipped;
        let decision = OperatorDecision::new(skipped, by)?
            .with_note(format!("superseded by {}", corrected.id()))?;
        let superseded = self.write("replace a draft", |transaction| {
            let mut operator = Operator(Requeue::new(self, transaction));
            operator.check_seen(seen)?;
            if let Some(state) = super::insert::known_state_of(transaction, corrected.id())? {
                return Ok(Superseded::AlreadyThere { id: corrected.id(), state });
            }
            super::insert::insert_superseding(transaction, corrected, seen.id, operator.0.now)?;
            let mut moved = operator.decide_unless_held(seen.id, &decision)?;
            moved.successor = Some((corrected.id(), operator.last_event(corrected.id())?));
            Ok(Superseded::Created(moved))
        })?;
        if matches!(superseded, Superseded::Created(_)) {
            self.notify(1);
        }
        Ok(superseded)
    }

    /// Take back an operator's move: the draft returns to the state it was in, as a new event. A
    /// finished draft gets back its decision, note and output, and is signed with this name. A draft
    /// that was pending or in processing becomes pending; the name is in the note of the event. If
    /// the move replaced the draft, the new draft is skipped.
    ///
    /// The returned move can be taken back as well.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::DraftChanged`] if anything has happened since to the draft or to the draft
    /// that replaced it; then nothing is changed.
    pub fn undo(&self, made: &OperatorMove, by: &str) -> Result<OperatorMove, LibrarianError> {
        check_signature(by)?;
        let undone = self.write("undo a move", |transaction| {
            let mut operator = Operator(Requeue::new(self, transaction));
            operator.check_seen(SeenDraft { id: made.id, last_event: made.last_event })?;
            if let Some((id, last_event)) = made.successor {
                operator.check_seen(SeenDraft { id, last_event })?;
                let skipped = crate::state::DraftProcessingDecision::Skipped;
                let decision = OperatorDecision::new(skipped, by)?
                    .with_note(format!("undone: {} is back", made.id))?;
                operator.decide_unless_held(id, &decision)?;
            }
            operator.restore(made, by)
        })?;
        self.notify(usize::from(undone.to == DraftState::Pending));
        Ok(undone)
    }
}

/// The operator's moves of one transaction.
struct Operator<'a>(Requeue<'a>);

impl Operator<'_> {
    fn decide_unless_held(
        &mut self,
        id: DraftId,
        decision: &OperatorDecision,
    ) -> Result<OperatorMove, TransactionError> {
        let moved = self.decide(id, decision)?;
        match moved.held_by {
            None => Ok(moved),
            Some(runner) => Err(held_error(self.0.connection, id, runner)?.into()),
        }
    }

    fn decide(
        &mut self,
        id: DraftId,
        decision: &OperatorDecision,
    ) -> Result<OperatorMove, TransactionError> {
        let holder = self.0.holder(id)?;
        let (from, before) = self.before(id)?;
        if let Some(runner) = holder.live_owner() {
            let mut held = self.moved(id, from, from, before)?;
            held.held_by = Some(runner);
            return Ok(held);
        }
        self.0.free(id, &holder)?;
        // The trigger accepts a decision about a draft without an owner only.
        if from == DraftState::Processing {
            self.0.remove_owner(id)?;
        }
        self.0
            .connection
            .prepare_cached(
                "UPDATE drafts SET state = :state, decision = :state, decided_by = :by, \
                     note = :note, output = NULL, \
                     usage = CASE state WHEN 'processing' THEN NULL ELSE usage END, \
                     claimed_at = NULL, claim_booted_at = NULL, claim_token = NULL, owner = NULL, \
                     due_at = 0, suspect = 0, defers_in_a_row = 0, \
                     updated_at = :now, revision = (revision + 1) & 4294967295 \
                 WHERE id = :id",
            )?
            .execute(named_params! {
                ":id": id.to_hex(),
                ":state": decision.state().as_str(),
                ":by": decision.by(),
                ":note": decision.note(),
                ":now": self.0.now,
            })?;
        self.moved(id, from, decision.state(), before)
    }

    /// Put a draft back to where it was before this move.
    fn restore(&mut self, made: &OperatorMove, by: &str) -> Result<OperatorMove, TransactionError> {
        let (from, replaced) = self.before(made.id)?;
        let before = &made.before;
        let finished = made.from.is_terminal();
        let state = if finished { made.from } else { DraftState::Pending };
        let (decision, note, output, decided_by) = match finished {
            true => (before.decision.clone(), before.note.clone(), before.output.clone(), Some(by)),
            false => (None, Some(format!("undone by {by}")), None, None),
        };
        self.0
            .connection
            .prepare_cached(
                "UPDATE drafts SET state = :state, decision = :decision, decided_by = :by, \
                     note = :note, output = :output, usage = :usage, due_at = :due_at, \
                     errors = :errors, crashes = :crashes, defers_in_a_row = :defers_in_a_row, \
                     suspect = :suspect, error_budget = :error_budget, \
                     last_error_class = :last_error_class, last_error = :last_error, \
                     requeues = min(requeues, 999999999) + :requeues, \
                     updated_at = :now, revision = (revision + 1) & 4294967295 \
                 WHERE id = :id",
            )?
            .execute(named_params! {
                ":id": made.id.to_hex(),
                ":state": state.as_str(),
                ":decision": decision,
                ":by": decided_by,
                ":note": note,
                ":output": output,
                ":usage": before.usage,
                ":due_at": if finished { 0 } else { before.due_at },
                ":errors": before.errors,
                ":crashes": before.crashes,
                ":defers_in_a_row": before.defers_in_a_row,
                ":suspect": before.suspect,
                ":error_budget": before.error_budget,
                ":last_error_class": before.last_error_class,
                ":last_error": before.last_error,
                ":requeues": i64::from(!finished),
                ":now": self.0.now,
            })?;
        self.moved(made.id, from, state, replaced)
    }

    fn before(&self, id: DraftId) -> Result<(DraftState, Before), TransactionError> {
        Ok(self
            .0
            .connection
            .prepare_cached(
                "SELECT state, decision, note, output, usage, due_at, errors, crashes, \
                     defers_in_a_row, suspect, error_budget, last_error_class, last_error \
                 FROM drafts WHERE id = ?1",
            )?
            .query_row([id.to_hex()], |row| Ok((get(row, "state")?, Before::of(row)?)))
            .optional()?
            .ok_or(LibrarianError::UnknownDraft { id })?)
    }

    fn moved(
        &self,
        id: DraftId,
        from: DraftState,
        to: DraftState,
        before: Before,
    ) -> Result<OperatorMove, TransactionError> {
        Ok(OperatorMove {
            id,
            from,
            to,
            held_by: None,
            last_event: self.last_event(id)?,
            successor: None,
            before: Box::new(before),
        })
    }

    fn last_event(&self, id: DraftId) -> Result<i64, TransactionError> {
        Ok(self
            .0
            .connection
            .prepare_cached(
                "SELECT seq FROM history WHERE draft = (SELECT seq FROM drafts WHERE id = ?1) \
                 ORDER BY seq DESC LIMIT 1",
            )?
            .query_row([id.to_hex()], |row| row.get(0))
            .optional()?
            .ok_or(LibrarianError::UnknownDraft { id })?)
    }

    /// An error if anything has happened to the draft since it was seen.
    fn check_seen(&mut self, seen: SeenDraft) -> Result<(), TransactionError> {
        if self.last_event(seen.id)? == seen.last_event {
            return Ok(());
        }
        let holder = self.0.holder(seen.id)?;
        if let Some(runner) = holder.live_owner() {
            return Err(held_error(self.0.connection, seen.id, runner)?.into());
        }
        Err(LibrarianError::DraftChanged { id: seen.id, state: holder.state }.into())
    }
}
