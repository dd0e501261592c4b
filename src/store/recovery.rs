//! A runner registers; when it is dead, its drafts go back.
//!
//! Whoever finds the lock of a runner free (`liveness.rs`) knows that it is dead and returns its
//! drafts at once; while the lock is held, a claim is never taken by age. Age decides only where
//! there is no lock to test: for claims without an owner, and where the lock file is gone.

use std::time::SystemTime;

use rusqlite::{Connection, named_params, params};

use super::liveness::{Here, Liveness, RunnerLock, RunnerLocks};
use super::{DraftStore, DraftTransition};
use crate::clock::{MAX_UNIX_MS, unix_ms};
use crate::database::TransactionError;
use crate::error::LibrarianError;
use crate::state::DraftState;

/// What one look for abandoned claims did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Drafts that went back to pending.
    pub to_pending: Vec<DraftTransition>,
    /// Drafts whose errors had reached the budget, and that went to `failed`.
    pub to_failed: Vec<DraftTransition>,
}

/// A runner's entry in the database and its lock: the proof of life. Dropping it says that the
/// runner ended; what it still has claimed is then taken back by the next run of anyone.
#[derive(Debug)]
pub struct RunnerRegistration {
    store: DraftStore,
    id: i64,
    /// Held until the entry says that the runner ended.
    lock: RunnerLock,
}

impl RunnerRegistration {
    /// The runner's number: `runners.id`, and `owner` of what it claims.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.id
    }
}

impl Drop for RunnerRegistration {
    fn drop(&mut self) {
        // If this fails, the freed lock says the same to whoever looks next, and is left for that;
        // unless the database with the entry is gone.
        match self.store.end_runner(self.id) {
            Ok(()) | Err(LibrarianError::FileReplaced { .. }) => self.lock.remove(),
            Err(_) => {}
        }
    }
}

struct RunnerRow {
    id: i64,
    lock_file: String,
    ended: bool,
    has_claims: bool,
}

impl RunnerRow {
    fn liveness(&self, locks: &RunnerLocks) -> Liveness {
        if self.ended { Liveness::Dead } else { locks.liveness(&self.lock_file) }
    }
}

impl DraftStore {
    /// Register a runner: take its lock, then enter it. `processor` is a word for what it runs.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::CannotCreate`] if the lock file cannot be made beside the database;
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn register_runner(&self, processor: &str) -> Result<RunnerRegistration, LibrarianError> {
        let lock = self.take_runner_lock()?;
        let now = self.now_ms();
        let here = Here::new();
        let entered = self.write("register a runner", |transaction| {
            transaction.execute(
                "INSERT INTO runners (pid, host, boot_id, program, processor, lock_file, started_at) \
                 VALUES (:pid, :host, :boot_id, :program, :processor, :lock_file, :now)",
                named_params! {
                    ":pid": std::process::id(),
                    ":host": here.host,
                    ":boot_id": here.boot_id,
                    ":program": program_name(),
                    ":processor": processor,
                    ":lock_file": lock.name(),
                    ":now": now,
                },
            )?;
            Ok(transaction.last_insert_rowid())
        });
        match entered {
            Ok(id) => Ok(RunnerRegistration { store: self.clone(), id, lock }),
            Err(error) => {
                lock.remove();
                Err(error)
            }
        }
    }

    fn end_runner(&self, id: i64) -> Result<(), LibrarianError> {
        let now = self.now_ms();
        self.write("end a runner", |transaction| {
            transaction
                .prepare_cached("UPDATE runners SET ended_at = ?1 WHERE id = ?2")?
                .execute(params![now, id])?;
            Ok(())
        })
    }

    /// Take back what nobody works on any more: every claim of a dead runner, and every claim
    /// that was made at or before `stale_before` and has no owner, or one whose lock file is
    /// gone. A claim of a runner that lives is never taken, however old it is.
    ///
    /// A draft goes back to pending, or to `failed` if its errors have reached the store's
    /// budget; the death of its runner counts as one. The first error costs no time; from the
    /// second on, the draft waits 10 s, 20 s, 40 s … up to an hour, give or take a quarter.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`]; nothing is moved then.
    pub fn recover(&self, stale_before: SystemTime) -> Result<Recovery, LibrarianError> {
        self.database().require_writable("recover claims")?;
        let now = self.now_ms();
        let stale_before = unix_ms(stale_before);
        let (mut dead, mut gone, mut by_age) = (Vec::new(), Vec::new(), Vec::new());
        let locks = self.runner_locks();
        for runner in self.runners_to_ask_after()? {
            match runner.liveness(&locks) {
                Liveness::Alive => {}
                Liveness::Dead => dead.push(runner.id),
                Liveness::LockGone if !runner.has_claims => gone.push(runner.id),
                Liveness::LockGone => by_age.push(runner.id),
            }
        }
        // Most often nothing is to be done, and a look takes no lock.
        let any_stale = self.database().read("look for stale claims", |connection| {
            any_stale(connection, &by_age, stale_before, now)
        })?;
        if dead.is_empty() && gone.is_empty() && !any_stale {
            self.tidy_lock_files();
            return Ok(Recovery::default());
        }
        let recovery = self.write("recover claims", |transaction| {
            // A clock that was set back leaves claims in the future; they begin to age now.
            transaction
                .prepare_cached(
                    "UPDATE drafts SET claimed_at = ?1, updated_at = ?1, revision = revision + 1 \
                     WHERE state = 'processing' AND claimed_at > ?1",
                )?
                .execute([now])?;
            let mut recovery = Recovery::default();
            let max_errors = self.max_errors();
            for runner in &dead {
                take_back(transaction, Some(*runner), i64::MAX, 1, max_errors, now, &mut recovery)?;
                transaction
                    .prepare_cached(
                        "UPDATE runners SET ended_at = ?1 WHERE id = ?2 AND ended_at IS NULL",
                    )?
                    .execute(params![now, runner])?;
            }
            for runner in &gone {
                // If it lives after all and has claimed something by now, it is left alone; if it
                // has not, its next claim tells it to register again.
                transaction
                    .prepare_cached(
                        "UPDATE runners SET ended_at = ?1 WHERE id = ?2 AND ended_at IS NULL \
                             AND NOT EXISTS (SELECT 1 FROM drafts INDEXED BY drafts_in_flight \
                                             WHERE state = 'processing' AND owner = runners.id)",
                    )?
                    .execute(params![now, runner])?;
            }
            for owner in by_age.iter().copied().map(Some).chain([None]) {
                take_back(transaction, owner, stale_before, 0, max_errors, now, &mut recovery)?;
            }
            Ok(recovery)
        })?;
        self.tidy_lock_files();
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

    /// Whether a runner is dead whose claims nobody has taken back yet.
    pub(crate) fn has_dead_runner(&self) -> Result<bool, LibrarianError> {
        let runners = self.runners_to_ask_after()?;
        let locks = self.runner_locks();
        Ok(runners.iter().any(|runner| runner.liveness(&locks) == Liveness::Dead))
    }

    /// Runners that have not said that they ended, and those that own a claim all the same.
    fn runners_to_ask_after(&self) -> Result<Vec<RunnerRow>, LibrarianError> {
        self.database().read("look for dead runners", |connection| {
            let mut statement = connection.prepare_cached(
                "WITH owners AS (SELECT DISTINCT owner FROM drafts INDEXED BY drafts_in_flight \
                                 WHERE state = 'processing' AND owner IS NOT NULL) \
                 SELECT id, lock_file, 0 AS ended, \
                        id IN (SELECT owner FROM owners) AS has_claims \
                 FROM runners WHERE ended_at IS NULL \
                 UNION ALL \
                 SELECT owner, coalesce(lock_file, ''), ended_at IS NOT NULL, 1 \
                 FROM owners LEFT JOIN runners ON id = owner \
                 WHERE id IS NULL OR ended_at IS NOT NULL",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(RunnerRow {
                    id: row.get("id")?,
                    lock_file: row.get("lock_file")?,
                    ended: row.get("ended")?,
                    has_claims: row.get("has_claims")?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

/// One UPDATE: what this owner (`None`: nobody) claimed at or before `stale_before` goes back,
/// with `crashes` more errors.
fn take_back(
    connection: &Connection,
    owner: Option<i64>,
    stale_before: i64,
    crashes: i64,
    max_errors: u32,
    now: i64,
    recovery: &mut Recovery,
) -> Result<(), TransactionError> {
    let mut statement = connection.prepare_cached(
        "UPDATE drafts INDEXED BY drafts_in_flight SET \
             state = CASE WHEN :max > 0 AND errors + :crashes >= :max \
                          THEN 'failed' ELSE 'pending' END, \
             due_at = CASE WHEN errors + :crashes < 2 \
                             OR (:max > 0 AND errors + :crashes >= :max) THEN 0 \
                           ELSE min(:end_of_time, \
                                :now + min(3600000, 10000 << min(errors + :crashes - 2, 20)) \
                                * (75 + abs(random() % 51)) / 100) END, \
             errors = errors + :crashes, \
             last_error_class = CASE WHEN :crashes > 0 THEN 'crash' ELSE last_error_class END, \
             last_error = CASE WHEN :crashes > 0 \
                               THEN 'the runner ended while the draft was being processed' \
                               ELSE last_error END, \
             claimed_at = NULL, claim_token = NULL, owner = NULL, \
             updated_at = :now, revision = revision + 1 \
         WHERE state = 'processing' AND owner IS :owner AND claimed_at <= :stale_before \
         RETURNING id, state",
    )?;
    let rows = statement.query_map(
        named_params! {
            ":max": max_errors,
            ":crashes": crashes,
            ":now": now,
            ":end_of_time": MAX_UNIX_MS,
            ":owner": owner,
            ":stale_before": stale_before,
        },
        |row| {
            let to = row.get("state")?;
            Ok(DraftTransition { id: row.get("id")?, from: DraftState::Processing, to })
        },
    )?;
    for transition in rows {
        let transition = transition?;
        match transition.to {
            DraftState::Failed => recovery.to_failed.push(transition),
            _ => recovery.to_pending.push(transition),
        }
    }
    Ok(())
}

fn any_stale(
    connection: &Connection,
    by_age: &[i64],
    stale_before: i64,
    now: i64,
) -> Result<bool, TransactionError> {
    let mut statement = connection.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM drafts INDEXED BY drafts_in_flight \
                        WHERE state = 'processing' AND owner IS ?1 AND claimed_at <= ?2) \
             OR EXISTS (SELECT 1 FROM drafts INDEXED BY drafts_in_flight \
                        WHERE state = 'processing' AND claimed_at > ?3)",
    )?;
    for owner in by_age.iter().copied().map(Some).chain([None]) {
        if statement.query_row(params![owner, stale_before, now], |row| row.get(0))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The name of this program, without its directory.
fn program_name() -> String {
    std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_default()
}
