//! How many drafts there are, without going through them.
//!
//! A count over a million rows takes a tenth of a second, and a counter that each move changes
//! costs each commit a page. But the history is a log of all moves: the `tally` row holds the counts
//! up to one of its rows, and what has happened since is added when it is asked for. Each writer
//! brings the row forward when that has become some dozens of rows, in the transaction that it has
//! open anyway. (Databases keep a materialised view up to date so, from its log.)

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::database::TransactionError;
use crate::state::DraftState;

/// How many events may lie behind the tally before it is brought forward.
const MOST_BEHIND: i64 = 64;

/// What a tally counts, and up to where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    counted_to: i64,
    /// In the order of [`DraftState::ALL`].
    states: [i64; DraftState::ALL.len()],
    text_bytes: i64,
    delayed: i64,
}

/// A row of the table: what counts all drafts anew gives the same columns.
const COUNTED_ANEW: &str = "SELECT ifnull((SELECT seq FROM history ORDER BY seq DESC LIMIT 1), 0) \
         AS counted_to, \
     count(*) FILTER (WHERE state = 'pending') AS pending, \
     count(*) FILTER (WHERE state = 'processing') AS processing, \
     count(*) FILTER (WHERE state = 'accepted') AS accepted, \
     count(*) FILTER (WHERE state = 'skipped') AS skipped, \
     count(*) FILTER (WHERE state = 'failed') AS failed, \
     count(*) FILTER (WHERE state = 'quarantined') AS quarantined, \
     ifnull(sum(text_bytes), 0) AS text_bytes, \
     count(*) FILTER (WHERE due_at > 0) AS delayed \
     FROM drafts";

impl Tally {
    /// The counts of this moment. To be called in a transaction, which makes it one moment.
    pub(super) fn now(connection: &Connection) -> Result<Self, TransactionError> {
        match Self::stored(connection, last_event(connection)?)? {
            Some(mut tally) => {
                tally.add_what_followed(connection)?;
                Ok(tally)
            }
            None => Ok(connection.prepare_cached(COUNTED_ANEW)?.query_row([], Self::of)?),
        }
    }

    /// How many drafts are in this state.
    pub(super) fn drafts(&self, state: DraftState) -> u64 {
        number(self.states[state as usize])
    }

    /// Bytes of all texts.
    pub(super) fn text_bytes(&self) -> u64 {
        number(self.text_bytes)
    }

    /// Pending drafts that wait for a time.
    pub(super) fn delayed(&self) -> u64 {
        number(self.delayed)
    }

    /// The stored one, if it is there and is of no event that is still to come.
    fn stored(connection: &Connection, last: i64) -> Result<Option<Self>, TransactionError> {
        let mut statement = connection.prepare_cached("SELECT * FROM tally")?;
        let stored = statement.query_row([], Self::of).optional()?;
        Ok(stored.filter(|tally| tally.counted_to <= last))
    }

    fn of(row: &Row<'_>) -> Result<Self, rusqlite::Error> {
        let mut states = [0; DraftState::ALL.len()];
        for (count, state) in states.iter_mut().zip(DraftState::ALL) {
            *count = row.get(state.dir_name())?;
        }
        Ok(Self {
            counted_to: row.get("counted_to")?,
            states,
            text_bytes: row.get("text_bytes")?,
            delayed: row.get("delayed")?,
        })
    }

    fn add_what_followed(&mut self, connection: &Connection) -> Result<(), TransactionError> {
        let since = self.counted_to;
        let mut statement = connection
            .prepare_cached("SELECT seq, from_state, to_state FROM history WHERE seq > ?1")?;
        let mut rows = statement.query([since])?;
        while let Some(row) = rows.next()? {
            self.counted_to = row.get(0)?;
            let (from, to) = (row.get_ref(1)?, row.get_ref(2)?);
            if from == to {
                continue;
            }
            for (count, state) in self.states.iter_mut().zip(DraftState::ALL) {
                let name = state.dir_name().as_bytes();
                let left = from.as_bytes().is_ok_and(|from| from == name);
                let came = to.as_bytes().is_ok_and(|to| to == name);
                *count = count.saturating_add(i64::from(came) - i64::from(left));
            }
        }
        let bytes = connection
            .prepare_cached("SELECT ifnull(sum(text_bytes), 0) FROM drafts WHERE seq > ?1")?
            .query_row([since], |row| row.get(0))?;
        self.text_bytes = self.text_bytes.saturating_add(bytes);
        Ok(())
    }
}

/// Bring the stored tally forward if it lies far behind. To be called at the end of a transaction
/// that writes.
pub(super) fn keep_up(connection: &Connection) -> Result<(), TransactionError> {
    let last = last_event(connection)?;
    let Some(mut tally) = Tally::stored(connection, last)? else {
        // A draft was deleted, which leaves it to us to count.
        connection.execute("DELETE FROM tally", [])?;
        connection.execute(&format!("INSERT INTO tally {COUNTED_ANEW}"), [])?;
        return Ok(());
    };
    if last.saturating_sub(tally.counted_to) < MOST_BEHIND {
        return Ok(());
    }
    tally.add_what_followed(connection)?;
    let [pending, processing, accepted, skipped, failed, quarantined] = tally.states;
    connection
        .prepare_cached(
            "UPDATE tally SET counted_to = ?1, pending = ?2, processing = ?3, accepted = ?4, \
                 skipped = ?5, failed = ?6, quarantined = ?7, text_bytes = ?8",
        )?
        .execute(params![
            tally.counted_to,
            pending,
            processing,
            accepted,
            skipped,
            failed,
            quarantined,
            tally.text_bytes,
        ])?;
    Ok(())
}

/// The seq of the history's last event; 0 if there is none.
pub(super) fn last_event(connection: &Connection) -> Result<i64, TransactionError> {
    let mut statement =
        connection.prepare_cached("SELECT seq FROM history ORDER BY seq DESC LIMIT 1")?;
    Ok(statement.query_row([], |row| row.get(0)).optional()?.unwrap_or(0))
}

fn number(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}
