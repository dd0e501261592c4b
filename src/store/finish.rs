//! Finishes claimed drafts: stores a decision, a deferral or an error, or releases the claim. Each
//! move is guarded by the claim's token.

use std::collections::HashSet;
use std::time::Duration;

use rusqlite::{Connection, ToSql, named_params};

use super::DraftStore;
use super::claimed::{Claim, ClaimKey};
use super::hold::set_by_processor;
use crate::clock::{MAX_UNIX_MS, duration_ms};
use crate::database::{TransactionError, is_row_fault};
use crate::error::{DraftDamage, LibrarianError};
use crate::id::DraftId;
use crate::outcome::{MAX_DELAY, Outcome};
use crate::state::{DraftProcessingDecision, DraftState};

/// The most bytes of an error that are stored with a draft.
const MAX_ERROR_BYTES: usize = 8 * 1024;

/// How many drafts one UPDATE moves out of `processing`. For each statement SQLite saves the pages
/// that it may have to undo, which costs more than a move.
const CHUNKS: [usize; 3] = [128, 16, 1];

/// What was done with the result of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// It is stored, and the draft was moved.
    Moved,
    /// The claim was lost: the draft was not moved, and the result is kept as an event.
    ClaimLost,
    /// The draft's row was damaged from outside and cannot be changed.
    Damaged,
}

impl DraftStore {
    /// Move a claimed draft to the outcome's state, and store the outcome with it, in one
    /// transaction; if the outcome asks for a hold, that is set for the runner's processor. When this
    /// returns, all survive power loss. Returns the state.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::LostClaim`] if the claim is no longer the holder's: nothing is changed,
    /// and the late outcome is kept as a `refused` event of the draft's history.
    /// [`LibrarianError::DamagedDraft`] if the draft's row was damaged from outside.
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`]: the draft stays claimed.
    pub fn finish(&self, claim: Claim, outcome: &Outcome) -> Result<DraftState, LibrarianError> {
        let now = self.now_ms();
        let stored = self.write("finish a draft", |transaction| {
            finish(transaction, &[(&claim.key, outcome)], false, now)
        })?;
        let id = claim.key.id;
        match stored.as_slice() {
            [Stored::Moved] => Ok(outcome.decision().target_state()),
            [Stored::Damaged] => Err(damaged_row_error(id)),
            _ => Err(LibrarianError::LostClaim { id }),
        }
    }

    /// Record that the processor reached no decision. The draft stays in `processing` without an
    /// owner, its error counted, until it is stale. Recovery then returns it to pending or, when
    /// its errors have reached the runner's budget, moves it to `failed`.
    ///
    /// An error that is not charged ([`LibrarianError::is_charged`]) releases the draft at once.
    ///
    /// # Errors
    ///
    /// As for [`finish`](Self::finish).
    pub fn record_error(&self, claim: Claim, error: &LibrarianError) -> Result<(), LibrarianError> {
        let now = self.now_ms();
        let stored = self.write("record an error", |transaction| {
            record_error(transaction, &claim.key, error, now)
        })?;
        let id = claim.key.id;
        match stored {
            Stored::Moved => {
                if !error.is_charged() {
                    self.notify(1);
                }
                Ok(())
            }
            Stored::Damaged => Err(damaged_row_error(id)),
            Stored::ClaimLost => Err(LibrarianError::LostClaim { id }),
        }
    }

    /// Return a claimed draft to pending, as if it had not been claimed. If the claim was lost,
    /// this does nothing.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`]: the draft stays claimed.
    pub fn release(&self, claim: Claim) -> Result<(), LibrarianError> {
        let now = self.now_ms();
        self.write("release a draft", |transaction| release(transaction, &claim.key, now))?;
        self.notify(1);
        Ok(())
    }
}

/// The error for a draft whose row cannot be changed.
fn damaged_row_error(id: DraftId) -> LibrarianError {
    LibrarianError::DamagedDraft { id, damage: DraftDamage::Row }
}

/// Move drafts out of `processing`, each guarded by its token. Returns what was done with each.
/// With `back_off`, a deferral without a delay gets one that grows with each deferral in a row.
pub(super) fn finish(
    connection: &Connection,
    finished: &[(&ClaimKey, &Outcome)],
    back_off: bool,
    now: i64,
) -> Result<Vec<Stored>, TransactionError> {
    let drafts: HashSet<i64> = finished.iter().map(|(key, _)| key.seq).collect();
    if drafts.len() < finished.len() {
        // An old and a newer claim of the same draft: one by one, so that each gets its answer.
        let one_by_one = finished.iter().map(|one| finish(connection, &[*one], back_off, now));
        return Ok(one_by_one.collect::<Result<Vec<_>, _>>()?.concat());
    }
    let (mut moved, mut damaged) = (HashSet::with_capacity(finished.len()), HashSet::new());
    let mut rest = finished;
    for size in CHUNKS {
        while let Some((chunk, others)) = rest.split_at_checked(size) {
            match finish_chunk(connection, chunk, back_off, now) {
                Ok(seqs) => moved.extend(seqs),
                // One of the rows cannot be changed: finish the others without it.
                Err(TransactionError::Sqlite(error)) if is_row_fault(&error) => {
                    for one in chunk {
                        match finish_chunk(connection, &[*one], back_off, now) {
                            Ok(seqs) => moved.extend(seqs),
                            Err(TransactionError::Sqlite(error)) if is_row_fault(&error) => {
                                damaged.insert(one.0.seq);
                            }
                            Err(error) => return Err(error),
                        }
                    }
                }
                Err(error) => return Err(error),
            }
            rest = others;
        }
    }
    finished
        .iter()
        .map(|(key, outcome)| {
            if moved.contains(&key.seq) {
                set_by_processor(connection, key.runner, outcome, now)?;
                return Ok(Stored::Moved);
            }
            if damaged.contains(&key.seq) {
                record_damage(connection, key, now)?;
                return Ok(Stored::Damaged);
            }
            refuse(connection, key, Ok(outcome), now)?;
            Ok(Stored::ClaimLost)
        })
        .collect()
}

fn finish_chunk(
    connection: &Connection,
    chunk: &[(&ClaimKey, &Outcome)],
    back_off: bool,
    now: i64,
) -> Result<Vec<i64>, TransactionError> {
    let rows = vec!["(?, ?, ?, ?, ?, ?, ?)"; chunk.len()].join(", ");
    let due_at = if back_off {
        "CASE WHEN column3 = 'deferred' AND column7 = 0 \
              THEN min(253402300799999, ?1 + min(3600000, 30000 << min(defers_in_a_row, 7))) \
              ELSE column7 END"
    } else {
        "column7"
    };
    let mut statement = connection.prepare_cached(&format!(
        "UPDATE drafts SET state = CASE column3 WHEN 'deferred' THEN 'pending' ELSE column3 END, \
             decision = column3, note = column4, output = column5, usage = column6, \
             due_at = {due_at}, \
             defers = min(defers, 999999999) + (column3 = 'deferred'), \
             defers_in_a_row = CASE column3 WHEN 'deferred' \
                                    THEN min(defers_in_a_row, 999999999) + 1 ELSE 0 END, \
             suspect = 0, claimed_at = NULL, claim_booted_at = NULL, claim_token = NULL, \
             owner = NULL, updated_at = ?1, revision = (revision + 1) & 4294967295 \
         FROM (VALUES {rows}) \
         WHERE drafts.seq = column1 AND drafts.claim_token = column2 \
         RETURNING seq"
    ))?;
    statement.raw_bind_parameter(1, now)?;
    let mut parameters = 2..;
    for (key, outcome) in chunk {
        let due_at = delay_of(outcome)
            .map_or(0, |delay| (now + duration_ms(delay.min(MAX_DELAY)).max(1)).min(MAX_UNIX_MS));
        let values: [&dyn ToSql; 7] = [
            &key.seq,
            &key.token,
            &outcome.decision().as_str(),
            &outcome.note(),
            &outcome.output(),
            &outcome.usage(),
            &due_at,
        ];
        for (value, parameter) in values.into_iter().zip(parameters.by_ref()) {
            statement.raw_bind_parameter(parameter, value)?;
        }
    }
    let (mut moved, mut rows) = (Vec::with_capacity(chunk.len()), statement.raw_query());
    while let Some(row) = rows.next()? {
        moved.push(row.get(0)?);
    }
    Ok(moved)
}

/// The delay of a deferral, if it has one.
fn delay_of(outcome: &Outcome) -> Option<Duration> {
    let deferred = outcome.decision() == DraftProcessingDecision::Deferred;
    outcome.retry_after().filter(|delay| deferred && !delay.is_zero())
}

/// Store a late result, which changed nothing, as an event.
fn refuse(
    connection: &Connection,
    key: &ClaimKey,
    result: Result<&Outcome, &LibrarianError>,
    now: i64,
) -> Result<(), TransactionError> {
    let outcome = result.ok();
    let error = result.err();
    connection
        .prepare_cached(
            "INSERT INTO history (draft, event, from_state, to_state, at, runner, decision, \
                 note, output, error_class, error, by_hand) \
             SELECT seq, 'refused', state, state, :now, :runner, :decision, :note, :output, \
                 :class, :error, 0 \
             FROM drafts WHERE seq = :seq",
        )?
        .execute(named_params! {
            ":now": now,
            ":runner": key.runner,
            ":decision": outcome.map(|outcome| outcome.decision().as_str()),
            ":note": outcome.and_then(Outcome::note),
            ":output": outcome.and_then(Outcome::output),
            ":class": error.map(LibrarianError::class),
            ":error": error.map(stored_text),
            ":seq": key.seq,
        })?;
    Ok(())
}

/// Record an error with a claimed draft, or release the draft if the error is not charged.
pub(super) fn record_error(
    connection: &Connection,
    key: &ClaimKey,
    error: &LibrarianError,
    now: i64,
) -> Result<Stored, TransactionError> {
    if !error.is_charged() {
        return release(connection, key, now);
    }
    let recorded = connection
        .prepare_cached(
            "UPDATE drafts SET claim_token = NULL, owner = NULL, \
                 errors = min(errors, 999999999) + 1, defers_in_a_row = 0, suspect = 0, \
                 error_budget = (SELECT max_errors FROM runners WHERE id = :runner), \
                 last_error_class = :class, last_error = :error, \
                 updated_at = :now, revision = (revision + 1) & 4294967295 \
             WHERE seq = :seq AND claim_token = :token",
        )?
        .execute(named_params! {
            ":runner": key.runner,
            ":class": error.class(),
            ":error": stored_text(error),
            ":now": now,
            ":seq": key.seq,
            ":token": key.token,
        });
    match recorded {
        Ok(0) => {
            refuse(connection, key, Err(error), now)?;
            Ok(Stored::ClaimLost)
        }
        Ok(_) => Ok(Stored::Moved),
        Err(error) if is_row_fault(&error) => Ok(Stored::Damaged),
        Err(error) => Err(error.into()),
    }
}

/// Record that a draft's row cannot be changed as its result requires. If even that fails, end the
/// claim, so that no live runner seems to hold the draft.
fn record_damage(
    connection: &Connection,
    key: &ClaimKey,
    now: i64,
) -> Result<(), TransactionError> {
    let error = damaged_row_error(key.id);
    if record_error(connection, key, &error, now)? != Stored::Damaged {
        return Ok(());
    }
    let ended = connection
        .prepare_cached(
            "UPDATE drafts SET claim_token = NULL, owner = NULL \
             WHERE seq = :seq AND claim_token = :token",
        )?
        .execute(named_params! { ":seq": key.seq, ":token": key.token });
    match ended {
        Err(error) if !is_row_fault(&error) => Err(error.into()),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Return a draft to pending, as if it had not been claimed, because no worker took it, or because
/// of a failure of the machine.
pub(super) fn release(
    connection: &Connection,
    key: &ClaimKey,
    now: i64,
) -> Result<Stored, TransactionError> {
    let released = connection
        .prepare_cached(
            "UPDATE drafts SET state = 'pending', claims = max(claims - 1, 0), \
                 claimed_at = NULL, claim_booted_at = NULL, claim_token = NULL, owner = NULL, \
                 updated_at = :now, revision = (revision + 1) & 4294967295 \
             WHERE seq = :seq AND claim_token = :token",
        )?
        .execute(named_params! { ":now": now, ":seq": key.seq, ":token": key.token });
    match released {
        Ok(0) => Ok(Stored::ClaimLost),
        Ok(_) => Ok(Stored::Moved),
        Err(error) if is_row_fault(&error) => Ok(Stored::Damaged),
        Err(error) => Err(error.into()),
    }
}

/// The stored text of an error: its message, then its detail.
fn stored_text(error: &LibrarianError) -> String {
    let mut text = error.to_string();
    if let LibrarianError::Processor(error) = error
        && let Some(detail) = error.detail()
    {
        text.push('\n');
        text.push_str(detail);
    }
    text.truncate(text.floor_char_boundary(MAX_ERROR_BYTES));
    text
}
