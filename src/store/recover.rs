//! Recovers abandoned claims.
//!
//! A runner whose lock is free (`liveness.rs`) is dead, and its drafts are returned at once. While
//! the lock is held, no claim is recovered by age. Age decides only where there is no lock to test:
//! for claims without an owner, and if the lock file is missing.
//!
//! If a dead runner held one draft, that draft is to blame for the crash. Of several, each becomes
//! a suspect, which is then claimed only by a runner that holds nothing else (`claim.rs`).

use std::time::SystemTime;

use rusqlite::{Connection, OptionalExtension as _, named_params};
use serde::Serialize;

use super::columns::{get, lossy_text};
use super::liveness::{Liveness, RunnerLocks};
use super::registration::{end_idle, set_ended};
use super::{DraftStore, DraftTransition};
use crate::clock::{MAX_UNIX_MS, unix_ms};
use crate::database::{TransactionError, is_row_fault};
use crate::error::LibrarianError;
use crate::id::DraftId;
use crate::state::DraftState;

/// The result of a recovery.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Recovery {
    /// Drafts that returned to pending.
    pub to_pending: Vec<DraftTransition>,
    /// Drafts whose errors had reached the budget, and that went to `failed`.
    pub to_failed: Vec<DraftTransition>,
    /// How many drafts could not be moved, because their rows are damaged.
    pub damaged: usize,
}

/// A runner that owns claims.
struct Owner {
    id: i64,
    claims: i64,
    /// The runner's row; `None` if there is none.
    row: Option<OwnerRow>,
}

struct OwnerRow {
    lock_file: String,
    ended: bool,
    max_errors: i64,
}

/// Which of a dead runner's drafts are to blame.
#[derive(Debug, Clone, Copy)]
enum Blame {
    /// None: the runner ended normally and left its claims.
    None,
    /// One of several.
    Suspects,
    /// The only one, under this error budget.
    Crash { budget: i64 },
    /// No runner held them. Their errors are counted already.
    Errored,
}

/// When a claim without a live owner counts as abandoned.
#[derive(Debug, Clone, Copy)]
struct Cutoff {
    now: i64,
    booted_at: i64,
    stale_before: i64,
}

/// The condition for a stale claim. Its age is limited to the time that the machine has been
/// running since the claim, so that a clock that was set forward makes no claim stale; after a
/// reboot only the clock counts.
const IS_STALE: &str = "claimed_at <= :stale_before \
     AND (claim_booted_at IS NULL \
          OR :now - :booted_at < claimed_at - claim_booted_at \
          OR (:now - :booted_at) - (claimed_at - claim_booted_at) >= :now - :stale_before)";

impl DraftStore {
    /// Recover abandoned claims: every claim of a dead runner, and every claim that was made at or
    /// before `stale_before` and has no owner, or an owner without a lock file. A claim of a live
    /// runner is never recovered, however old it is.
    ///
    /// A draft returns to pending, or goes to `failed` if its errors and crashes have reached the
    /// budget of the runner under which it failed. The death of a runner counts as a crash if the
    /// draft was the only one that it held. After the first error, the draft is claimable at once;
    /// from the second on, it waits 10 s, 20 s, 40 s … up to an hour, give or take a quarter.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`]; nothing is moved then.
    pub fn recover(&self, stale_before: SystemTime) -> Result<Recovery, LibrarianError> {
        self.database().require_writable("recover claims")?;
        let cutoff = Cutoff {
            now: self.now_ms(),
            booted_at: self.clock().booted_at_ms(),
            stale_before: unix_ms(stale_before),
        };
        let (mut dead, mut untestable) = (Vec::new(), Vec::new());
        let owners = self.owners()?;
        let locks = self.locks_of(&owners);
        for owner in owners {
            match liveness(&owner, &locks) {
                Liveness::Alive => {}
                Liveness::Dead => dead.push(owner),
                Liveness::LockGone => untestable.push(owner),
            }
        }
        // Most often there is nothing to recover, and this read takes no lock.
        let any_stale = self
            .database()
            .read("find stale claims", |connection| any_stale(connection, &untestable, cutoff))?;
        let idle = self.idle_dead_runners_if_due()?;
        if dead.is_empty() && idle.is_empty() && !any_stale {
            return Ok(Recovery::default());
        }
        let recovery = self.write("recover claims", |transaction| {
            let mut recovery = Recovery::default();
            end_idle(transaction, &idle, cutoff.now)?;
            // After a clock was set back, claims may be in the future; their age counts from now.
            update_each(
                transaction,
                "SELECT seq FROM drafts INDEXED BY drafts_in_flight \
                 WHERE state = 'processing' AND claimed_at > ?1",
                &[&cutoff.now],
                |seq| {
                    transaction
                        .prepare_cached(
                            "UPDATE drafts SET claimed_at = ?1, claim_booted_at = ?2, \
                                 updated_at = ?1, revision = (revision + 1) & 4294967295 \
                             WHERE seq = ?3",
                        )?
                        .execute([cutoff.now, cutoff.booted_at, seq])
                        .map(drop)
                },
            )?;
            for owner in &dead {
                let blame = match &owner.row {
                    Some(row) if row.ended => Blame::None,
                    Some(row) if owner.claims == 1 => Blame::Crash { budget: row.max_errors },
                    _ => Blame::Suspects,
                };
                let everything = Cutoff { stale_before: i64::MAX, ..cutoff };
                recover_claims(transaction, Some(owner.id), everything, blame, &mut recovery)?;
                set_ended(transaction, owner.id, cutoff.now)?;
            }
            for owner in &untestable {
                recover_claims(
                    transaction,
                    Some(owner.id),
                    cutoff,
                    Blame::Suspects,
                    &mut recovery,
                )?;
            }
            recover_claims(transaction, None, cutoff, Blame::Errored, &mut recovery)?;
            Ok(recovery)
        })?;
        if recovery.damaged > 0 {
            tracing::warn!(
                target: "mimir.librarian.damaged",
                drafts = recovery.damaged,
                "drafts in processing could not be recovered: their rows are damaged"
            );
        }
        self.remove_free_lock_files();
        Ok(recovery)
    }

    /// As [`recover`](Self::recover), under the name and with the result of the file version:
    /// the drafts that went back to pending.
    ///
    /// # Errors
    ///
    /// As for [`recover`](Self::recover).
    pub fn recover_stale_processing(
        &self,
        stale_before: SystemTime,
    ) -> Result<Vec<DraftTransition>, LibrarianError> {
        self.recover(stale_before).map(|recovery| recovery.to_pending)
    }

    /// Whether there is a dead runner whose claims have not been recovered yet.
    pub(crate) fn has_dead_runner(&self) -> Result<bool, LibrarianError> {
        let owners = self.owners()?;
        let locks = self.locks_of(&owners);
        Ok(owners.iter().any(|owner| liveness(owner, &locks) == Liveness::Dead))
    }

    /// The runners that own claims.
    fn owners(&self) -> Result<Vec<Owner>, LibrarianError> {
        self.database().read("find dead runners", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT owner, claims, id, lock_file, ended_at, max_errors \
                 FROM (SELECT owner, count(*) AS claims FROM drafts INDEXED BY drafts_in_flight \
                       WHERE state = 'processing' AND owner IS NOT NULL GROUP BY owner) \
                 LEFT JOIN runners ON id = owner",
            )?;
            let owners = statement.query_map([], |row| {
                let row_of_owner = match row.get::<_, Option<i64>>("id")? {
                    None => None,
                    Some(_) => Some(OwnerRow {
                        lock_file: lossy_text(row, "lock_file")?,
                        ended: row.get::<_, Option<i64>>("ended_at")?.is_some(),
                        max_errors: row.get("max_errors")?,
                    }),
                };
                Ok(Owner { id: row.get("owner")?, claims: row.get("claims")?, row: row_of_owner })
            })?;
            Ok(owners.collect::<Result<_, _>>()?)
        })
    }

    /// The locks to test. If no runner owns a claim, the directory is not opened.
    fn locks_of(&self, owners: &[Owner]) -> RunnerLocks {
        if owners.is_empty() { RunnerLocks::None } else { self.runner_locks() }
    }
}

fn liveness(owner: &Owner, locks: &RunnerLocks) -> Liveness {
    match &owner.row {
        Some(OwnerRow { lock_file, ended: false, .. }) => locks.liveness(lock_file),
        Some(_) | None => Liveness::Dead,
    }
}

fn any_stale(
    connection: &Connection,
    untestable: &[Owner],
    cutoff: Cutoff,
) -> Result<bool, TransactionError> {
    for owner in untestable.iter().map(|owner| Some(owner.id)).chain([None]) {
        if !stale_claims(connection, owner, cutoff, 1)?.is_empty() {
            return Ok(true);
        }
    }
    let any_in_the_future = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM drafts INDEXED BY drafts_in_flight \
                            WHERE state = 'processing' AND claimed_at > ?1)",
        )?
        .query_row([cutoff.now], |row| row.get(0))?;
    Ok(any_in_the_future)
}

/// The `seq` of the claims of this owner (`None`: those without one) that were made before the
/// cutoff; at most `limit`.
fn stale_claims(
    connection: &Connection,
    owner: Option<i64>,
    cutoff: Cutoff,
    limit: i64,
) -> Result<Vec<i64>, TransactionError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT seq FROM drafts INDEXED BY drafts_in_flight \
         WHERE state = 'processing' AND owner IS :owner AND {IS_STALE} LIMIT :limit"
    ))?;
    let seqs = statement.query_map(
        named_params! {
            ":owner": owner,
            ":stale_before": cutoff.stale_before,
            ":now": cutoff.now,
            ":booted_at": cutoff.booted_at,
            ":limit": limit,
        },
        |row| row.get(0),
    )?;
    Ok(seqs.collect::<Result<_, _>>()?)
}

/// Recover the claims of this owner (`None`: those without one) that were made before the cutoff.
fn recover_claims(
    connection: &Connection,
    owner: Option<i64>,
    cutoff: Cutoff,
    blame: Blame,
    recovery: &mut Recovery,
) -> Result<(), TransactionError> {
    let mut claims = stale_claims(connection, owner, cutoff, i64::MAX)?;
    claims.sort_unstable();
    let (crashes, suspect, budget) = match blame {
        Blame::None => (0, None, Some(0)),
        Blame::Suspects => (0, Some(1), Some(0)),
        Blame::Crash { budget } => (1, Some(1), Some(budget)),
        // The budget is the one that was stored with the error.
        Blame::Errored => (0, None, None),
    };
    let waits = matches!(blame, Blame::Crash { .. } | Blame::Errored);
    for seq in claims {
        let moved = connection
            .prepare_cached(
                "UPDATE drafts SET \
                     state = CASE WHEN coalesce(:budget, error_budget, 0) > 0 \
                                       AND errors + crashes + :crashes \
                                           >= coalesce(:budget, error_budget) \
                                  THEN 'failed' ELSE 'pending' END, \
                     due_at = CASE WHEN NOT :waits OR errors + crashes + :crashes < 2 \
                                        OR (coalesce(:budget, error_budget, 0) > 0 \
                                            AND errors + crashes + :crashes \
                                                >= coalesce(:budget, error_budget)) THEN 0 \
                                   ELSE min(:end_of_time, :now \
                                        + min(3600000, \
                                              10000 << min(errors + crashes + :crashes - 2, 20)) \
                                          * (75 + abs(random() % 51)) / 100) END, \
                     crashes = min(crashes, 999999999) + :crashes, \
                     suspect = coalesce(:suspect, suspect), \
                     last_error_class = CASE WHEN :crashes > 0 THEN 'crash' \
                                             ELSE last_error_class END, \
                     last_error = CASE WHEN :crashes > 0 \
                                       THEN 'the runner died while it processed this draft alone' \
                                       ELSE last_error END, \
                     claimed_at = NULL, claim_booted_at = NULL, claim_token = NULL, owner = NULL, \
                     updated_at = :now, revision = (revision + 1) & 4294967295 \
                 WHERE seq = :seq \
                 RETURNING id, state",
            )?
            .query_row(
                named_params! {
                    ":budget": budget,
                    ":crashes": crashes,
                    ":suspect": suspect,
                    ":waits": waits,
                    ":now": cutoff.now,
                    ":end_of_time": MAX_UNIX_MS,
                    ":seq": seq,
                },
                |row| {
                    let to = get(row, "state")?;
                    let id = get(row, "id").unwrap_or(DraftId::NONE);
                    Ok(DraftTransition { id, from: DraftState::Processing, to })
                },
            )
            .optional();
        match moved {
            Ok(Some(transition)) if transition.to == DraftState::Failed => {
                recovery.to_failed.push(transition);
            }
            Ok(transition) => recovery.to_pending.extend(transition),
            Err(error) if is_row_fault(&error) => recovery.damaged += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Change each draft that the query finds. A row that cannot be changed is left as it is.
fn update_each(
    connection: &Connection,
    query: &str,
    parameters: &[&dyn rusqlite::ToSql],
    change: impl Fn(i64) -> Result<(), rusqlite::Error>,
) -> Result<(), TransactionError> {
    let mut statement = connection.prepare_cached(query)?;
    let seqs = statement.query_map(parameters, |row| row.get(0))?;
    for seq in seqs.collect::<Result<Vec<i64>, _>>()? {
        match change(seq) {
            Err(error) if !is_row_fault(&error) => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
