//! Registers runners, so that other processes can test whether they are alive.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rusqlite::{Connection, named_params, params};

use super::DraftStore;
use super::columns::lossy_text;
use super::liveness::{Host, Liveness, select_at_random};
use super::lock_file::LockFile;
use crate::database::TransactionError;
use crate::error::LibrarianError;

/// How many errors and crashes a draft may have under a runner if not set.
pub const DEFAULT_MAX_ERRORS: u32 = 5;

/// How many ended runners are checked, at each registration, for whether an event still refers to
/// them.
const MAX_RUNNERS_CHECKED: i64 = 16;

/// How often a process tests for dead runners that hold no claim.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// A runner with more events than this keeps its row, because reading them would hold the write
/// lock for too long.
const MAX_EVENTS_READ: i64 = 10_000;

/// The description of a runner in the `runners` table, and its error budget.
#[derive(Debug, Clone)]
#[must_use = "a description registers nothing by itself"]
pub struct RunnerInfo {
    processor: String,
    processor_version: Option<String>,
    max_errors: u32,
    backs_off: bool,
}

impl RunnerInfo {
    /// A runner whose processor has this name.
    pub fn new(processor: &str) -> Self {
        Self {
            processor: processor.to_owned(),
            processor_version: None,
            max_errors: DEFAULT_MAX_ERRORS,
            backs_off: false,
        }
    }

    /// The version of the processor.
    pub fn processor_version(self, version: impl Into<Option<String>>) -> Self {
        Self { processor_version: version.into(), ..self }
    }

    /// How many errors and crashes a draft may have under this runner before recovery moves it to
    /// `failed`; 5 if not set, 0 for no limit.
    pub fn max_errors(self, max_errors: u32) -> Self {
        Self { max_errors, ..self }
    }

    /// Whether a draft that is deferred repeatedly without a delay waits longer each time (30 s,
    /// doubling, up to an hour); it does not if not set.
    pub fn backs_off(self, backs_off: bool) -> Self {
        Self { backs_off, ..self }
    }
}

impl From<&str> for RunnerInfo {
    fn from(processor: &str) -> Self {
        Self::new(processor)
    }
}

/// A runner's row in the database, and the lock that shows that it is alive. Dropping it ends the
/// runner; the next run of any runner recovers its claims, and no draft is charged for them.
#[derive(Debug)]
#[must_use = "dropping the registration ends the runner"]
pub struct RunnerRegistration {
    store: DraftStore,
    id: i64,
    backs_off: bool,
    /// Held until the row shows the end of the runner.
    lock: LockFile,
}

impl RunnerRegistration {
    /// The runner's number: `runners.id`, and `drafts.owner` of its claims.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Whether others find this runner's lock where its row says. If not, it should register again
    /// before it claims anything: what it claims would look abandoned.
    pub(crate) fn is_in_place(&self) -> bool {
        match self.store.runners_directory() {
            Ok(Some(directory)) => self.lock.is_in_place(&directory),
            Ok(None) | Err(_) => false,
        }
    }

    pub(super) fn backs_off(&self) -> bool {
        self.backs_off
    }
}

impl Drop for RunnerRegistration {
    fn drop(&mut self) {
        // If this fails, the lock file must stay, because its free lock shows the next run that
        // this runner ended; unless the database with the row is gone.
        match self.store.end_runner(self.id) {
            Ok(()) | Err(LibrarianError::FileReplaced { .. }) => {
                // If this fails, the next registration of any runner removes it.
                let _ = self.lock.remove();
            }
            Err(_) => {}
        }
    }
}

impl DraftStore {
    /// Register a runner: take its lock, then insert its row.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::CannotCreate`] if the lock file cannot be created beside the database;
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn register_runner(
        &self,
        runner: impl Into<RunnerInfo>,
    ) -> Result<RunnerRegistration, LibrarianError> {
        let runner = runner.into();
        let lock = self.take_runner_lock()?;
        let now = self.now_ms();
        let here = Host::new();
        let dead = self.idle_dead_runners()?;
        let registered = self.write("register a runner", |transaction| {
            end_idle(transaction, &dead, now)?;
            delete_old_runners(transaction)?;
            // Ids that were typed by hand at the end of the range are ignored.
            let id: i64 = transaction.query_row(
                "SELECT ifnull(max(id), 0) + 1 FROM runners \
                 WHERE id BETWEEN 1 AND 999999999999999",
                [],
                |row| row.get(0),
            )?;
            transaction.execute(
                "INSERT INTO runners (id, pid, host, boot_id, program, processor, \
                     processor_version, max_errors, lock_file, started_at, first_event) \
                 VALUES (:id, :pid, :host, :boot_id, :program, :processor, :version, \
                     :max_errors, :lock_file, :now, \
                     ifnull((SELECT seq FROM history ORDER BY seq DESC LIMIT 1), 0))",
                named_params! {
                    ":id": id,
                    ":pid": std::process::id(),
                    ":host": here.host,
                    ":boot_id": here.boot_id,
                    ":program": program_name(),
                    ":processor": runner.processor,
                    ":version": runner.processor_version,
                    ":max_errors": runner.max_errors,
                    ":lock_file": lock.name(),
                    ":now": now,
                },
            )?;
            Ok(id)
        });
        match registered {
            Ok(id) => {
                self.remove_free_lock_files();
                Ok(RunnerRegistration {
                    store: self.clone(),
                    id,
                    backs_off: runner.backs_off,
                    lock,
                })
            }
            Err(error) => {
                let _ = lock.remove();
                Err(error)
            }
        }
    }

    fn end_runner(&self, id: i64) -> Result<(), LibrarianError> {
        let now = self.now_ms();
        self.write("end a runner", |transaction| {
            set_ended(transaction, id, now)?;
            Ok(())
        })
    }

    /// As [`idle_dead_runners`](Self::idle_dead_runners), but empty if this process tested a short
    /// while ago: many waiting runners would test each other's locks all the time.
    pub(super) fn idle_dead_runners_if_due(&self) -> Result<Vec<i64>, LibrarianError> {
        let mut checked = self.inner.idle_checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.is_some_and(|at| at.elapsed() < IDLE_CHECK_INTERVAL) {
            return Ok(Vec::new());
        }
        *checked = Some(Instant::now());
        drop(checked);
        // A runner may have died between its end and the removal of its file.
        self.remove_free_lock_files();
        self.idle_dead_runners()
    }

    /// Runners that hold no claim, are not recorded as ended, and are dead; of very many runners, a
    /// random selection is tested.
    fn idle_dead_runners(&self) -> Result<Vec<i64>, LibrarianError> {
        let mut runners = self.database().read("find dead runners", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, lock_file FROM runners WHERE ended_at IS NULL \
                     AND NOT EXISTS (SELECT 1 FROM drafts INDEXED BY drafts_in_flight \
                                     WHERE state = 'processing' AND owner = runners.id)",
            )?;
            let rows = statement
                .query_map([], |row| Ok((row.get("id")?, lossy_text(row, "lock_file")?)))?;
            Ok(rows.collect::<Result<Vec<(i64, String)>, _>>()?)
        })?;
        if runners.is_empty() {
            return Ok(Vec::new());
        }
        select_at_random(&mut runners);
        let locks = self.runner_locks();
        let dead = runners
            .into_iter()
            .filter(|(_, lock_file)| locks.liveness(lock_file) != Liveness::Alive);
        Ok(dead.map(|(id, _)| id).collect())
    }
}

/// Record the end of dead runners. A runner that is alive after all, and has claimed a draft by
/// now, is left alone; if it has claimed none, its next claim fails and it registers again.
pub(super) fn end_idle(
    connection: &Connection,
    runners: &[i64],
    now: i64,
) -> Result<(), TransactionError> {
    for runner in runners {
        let claims: bool = connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM drafts INDEXED BY drafts_in_flight \
                                WHERE state = 'processing' AND owner = ?1)",
            )?
            .query_row([runner], |row| row.get(0))?;
        if !claims {
            set_ended(connection, *runner, now)?;
        }
    }
    Ok(())
}

/// Record the end of a runner.
pub(super) fn set_ended(
    connection: &Connection,
    runner: i64,
    now: i64,
) -> Result<(), TransactionError> {
    connection
        .prepare_cached(
            "UPDATE runners SET ended_at = ?1, \
                 last_event = ifnull((SELECT seq FROM history ORDER BY seq DESC LIMIT 1), 0) \
             WHERE id = ?2 AND ended_at IS NULL",
        )?
        .execute(params![now, runner])?;
    Ok(())
}

/// Delete the rows of ended runners to which no event refers any more. Otherwise every run that
/// only deferred drafts would leave a row. The newest row stays, so that no id is used twice.
fn delete_old_runners(connection: &Connection) -> Result<(), TransactionError> {
    connection
        .prepare_cached(
            "DELETE FROM runners WHERE id IN ( \
                 SELECT id FROM runners AS ended \
                 WHERE ended_at IS NOT NULL AND last_event - first_event <= ?1 \
                     AND id < (SELECT max(id) FROM runners) \
                     AND NOT EXISTS (SELECT 1 FROM history \
                                     WHERE seq > ended.first_event AND seq <= ended.last_event \
                                         AND runner = ended.id) \
                     AND NOT EXISTS (SELECT 1 FROM drafts INDEXED BY drafts_in_flight \
                                     WHERE state = 'processing' AND owner = ended.id) \
                 ORDER BY id DESC LIMIT ?2)",
        )?
        .execute([MAX_EVENTS_READ, MAX_RUNNERS_CHECKED])?;
    Ok(())
}

/// The name of this program, without its directory.
fn program_name() -> String {
    std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::draft::Draft;
    use crate::metadata::{DraftMetadata, DraftSourceSurface};

    /// Between the test of its lock and the write, a runner may have claimed a draft.
    #[test]
    fn a_runner_that_has_claimed_something_is_not_ended_as_idle() {
        let directory = tempfile::tempdir().unwrap();
        let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
        let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
        store.submit(&Draft::with_metadata("text".to_owned(), metadata)).unwrap();
        let (idle, busy) =
            (store.register_runner("idle").unwrap(), store.register_runner("busy").unwrap());
        let mut snapshot = store.pending_snapshot().unwrap();
        assert!(store.claim_next(&busy, &mut snapshot).unwrap().is_some());
        let ended = store.write("end runners", |transaction| {
            end_idle(transaction, &[idle.id(), busy.id()], 5)?;
            let mut statement = transaction.prepare("SELECT id FROM runners WHERE ended_at = 5")?;
            let ended = statement.query_map([], |row| row.get(0))?;
            Ok(ended.collect::<Result<Vec<i64>, _>>()?)
        });
        assert_eq!(ended.unwrap(), [idle.id()]);
    }
}
