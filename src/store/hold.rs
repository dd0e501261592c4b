//! Sets, ends and reads holds. While a hold is in force, no runner of its processor claims a draft.
//!
//! A hold ends by time: `until` is compared with the store's clock, and an expired row has no effect.

use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::DraftStore;
use super::columns::{Column, get, lossy_text};
use crate::clock::{MAX_UNIX_MS, duration_ms};
use crate::database::TransactionError;
use crate::error::LibrarianError;
use crate::hold::{Hold, HoldKind, NewHold};
use crate::outcome::{MAX_DELAY, Outcome};

/// The holds that are in force for a processor, the one that lasts longest first.
const IN_FORCE: &str = "SELECT processor, kind, set_by, set_at, until, reason FROM holds \
     WHERE processor IN ('', :processor) AND (until IS NULL OR until > :now) \
     ORDER BY until IS NOT NULL, until DESC LIMIT 1";

impl Column for HoldKind {
    fn from_value(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
        Self::parse(value.as_str()?).ok_or(rusqlite::types::FromSqlError::InvalidType)
    }
}

impl DraftStore {
    /// Set a hold: from the commit on, no runner of the processor claims a draft. What runners
    /// process already, they finish. Replaces a hold that a person has set for the same processor;
    /// holds of other kinds stay. When this returns, the hold survives power loss.
    ///
    /// Moves by [`transition`](Self::transition) have no processor and heed no hold.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::InvalidHold`] if a name or the reason is empty, longer than 4096 bytes, or
    /// contains a NUL; [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn hold(&self, hold: &NewHold) -> Result<Hold, LibrarianError> {
        hold.check()?;
        let now = self.now_ms();
        let until = hold.lasting.map(|time| now.saturating_add(duration_ms(time)).min(MAX_UNIX_MS));
        self.write("set a hold", |transaction| {
            delete_expired(transaction, now)?;
            let set = transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO holds (processor, kind, set_by, set_at, until, reason) \
                     VALUES (:processor, 'operator', :set_by, :now, :until, :reason) \
                     RETURNING processor, kind, set_by, set_at, until, reason",
                )?
                .query_row(
                    named_params! {
                        ":processor": hold.processor.as_deref().unwrap_or_default(),
                        ":set_by": hold.set_by,
                        ":now": now,
                        ":until": until,
                        ":reason": hold.reason,
                    },
                    hold_of,
                )?;
            Ok(set)
        })
    }

    /// End the holds of this processor, of every kind; `None` ends all holds. Returns those that were
    /// in force. Waiting runners notice it within a second.
    ///
    /// A hold for all processors is not a hold of one of them: only `None` ends it.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`]; then all holds are as before.
    pub fn end_holds(&self, processor: Option<&str>) -> Result<Vec<Hold>, LibrarianError> {
        let now = self.now_ms();
        self.write("end holds", |transaction| {
            delete_expired(transaction, now)?;
            let mut statement = transaction.prepare_cached(
                "DELETE FROM holds WHERE ?1 IS NULL OR processor = ?1 \
                 RETURNING processor, kind, set_by, set_at, until, reason",
            )?;
            let ended = statement.query_map([processor], hold_of)?;
            Ok(ended.collect::<Result<_, _>>()?)
        })
    }

    /// The holds that are in force, those for all processors first.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn holds(&self) -> Result<Vec<Hold>, LibrarianError> {
        let now = self.now_ms();
        self.database().statement("read the holds", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT processor, kind, set_by, set_at, until, reason FROM holds \
                 WHERE until IS NULL OR until > ?1 ORDER BY processor, kind",
            )?;
            let holds = statement.query_map([now], hold_of)?;
            Ok(holds.collect::<Result<_, _>>()?)
        })
    }

    /// The names of the processors whose runners are in the database, in order.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn processors(&self) -> Result<Vec<String>, LibrarianError> {
        self.database().statement("read the processors", |connection| {
            let mut statement = connection
                .prepare_cached("SELECT DISTINCT processor FROM runners ORDER BY processor")?;
            let names = statement.query_map([], |row| lossy_text(row, "processor"))?;
            Ok(names.collect::<Result<_, _>>()?)
        })
    }

    /// The hold that is in force for this processor; of several, the one that lasts longest.
    pub(crate) fn hold_in_force(&self, processor: &str) -> Result<Option<Hold>, LibrarianError> {
        let now = self.now_ms();
        self.database().statement("read the holds", |connection| {
            Ok(hold_in_force(connection, processor, now)?)
        })
    }
}

/// As [`DraftStore::hold_in_force`].
pub(super) fn hold_in_force(
    connection: &Connection,
    processor: &str,
    now: i64,
) -> Result<Option<Hold>, rusqlite::Error> {
    connection
        .prepare_cached(IN_FORCE)?
        .query_row(named_params! { ":processor": processor, ":now": now }, hold_of)
        .optional()
}

/// The hold that is in force for the processor of this runner.
pub(super) fn hold_of_runner(
    connection: &Connection,
    runner: i64,
    now: i64,
) -> Result<Option<Hold>, rusqlite::Error> {
    let processor: Option<String> = connection
        .prepare_cached("SELECT processor FROM runners WHERE id = ?1")?
        .query_row([runner], |row| lossy_text(row, "processor"))
        .optional()?;
    hold_in_force(connection, processor.as_deref().unwrap_or_default(), now)
}

/// Set the hold that a processor has asked for with its outcome. A hold that lasts longer stays.
/// The reason does not quote the processor, because its words may quote a draft.
pub(super) fn set_by_processor(
    connection: &Connection,
    runner: i64,
    outcome: &Outcome,
    now: i64,
) -> Result<(), TransactionError> {
    let Some(time) = outcome.hold().filter(|time| !time.is_zero()) else { return Ok(()) };
    // One millisecond more, because `now` was rounded down.
    let until = now.saturating_add(duration_ms(time.min(MAX_DELAY))).saturating_add(1);
    connection
        .prepare_cached(
            "INSERT INTO holds (processor, kind, set_by, set_at, until, reason) \
             SELECT processor, 'processor', processor, :now, :until, \
                    'the processor asked for it (hold_secs)' \
             FROM runners WHERE id = :runner AND processor <> '' \
             ON CONFLICT (processor, kind) DO UPDATE \
             SET set_by = excluded.set_by, set_at = excluded.set_at, until = excluded.until, \
                 reason = excluded.reason \
             WHERE until < excluded.until",
        )?
        .execute(named_params! {
            ":now": now,
            ":until": until.min(MAX_UNIX_MS),
            ":runner": runner,
        })?;
    Ok(())
}

/// Expired holds have no effect; they are deleted so that their number is bounded.
fn delete_expired(connection: &Connection, now: i64) -> Result<(), TransactionError> {
    connection.prepare_cached("DELETE FROM holds WHERE until <= ?1")?.execute([now])?;
    Ok(())
}

fn hold_of(row: &Row<'_>) -> Result<Hold, rusqlite::Error> {
    let reason = match row.get_ref("reason")? {
        rusqlite::types::ValueRef::Null => None,
        _ => Some(lossy_text(row, "reason")?),
    };
    Ok(Hold {
        processor: Some(lossy_text(row, "processor")?).filter(|name| !name.is_empty()),
        kind: get(row, "kind")?,
        set_by: lossy_text(row, "set_by")?,
        set_at_unix_ms: row.get("set_at")?,
        until_unix_ms: row.get("until")?,
        reason,
    })
}
