//! Makes drafts claimable when their delay is over.

use rusqlite::{ToSql, params};

use super::DraftStore;
use super::filter::{conditions, parameters};
use crate::database::is_row_fault;
use crate::error::LibrarianError;
use crate::filter::DraftFilter;

/// The most drafts that one transaction makes claimable, so that other writers need not wait long.
const MAX_RELEASED: usize = 5_000;

macro_rules! due_after {
    () => {
        "SELECT due_at, seq FROM drafts INDEXED BY drafts_delayed \
         WHERE state = 'pending' AND due_at > 0 AND due_at <= :now \
             AND (due_at, seq) > (:after_due, :after)"
    };
}

macro_rules! in_order {
    () => {
        " ORDER BY due_at, seq LIMIT :most"
    };
}

/// Finds delayed drafts that are due, after the last one that was found.
pub(super) const FIND_DUE: &str = concat!(due_after!(), in_order!());

impl DraftStore {
    /// Make delayed drafts claimable that are due. Returns how many.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn release_due(&self) -> Result<usize, LibrarianError> {
        self.release_due_of(&DraftFilter::default())
    }

    /// As [`release_due`](Self::release_due), but only the drafts that pass the filter.
    ///
    /// # Errors
    ///
    /// As for [`release_due`](Self::release_due).
    pub fn release_due_of(&self, filter: &DraftFilter) -> Result<usize, LibrarianError> {
        let now = self.now_ms();
        let most = i64::try_from(MAX_RELEASED).unwrap_or(i64::MAX);
        let (condition, values) = conditions(filter);
        let find = match filter.is_empty() {
            true => FIND_DUE.to_owned(),
            false => format!(concat!(due_after!(), "{}", in_order!()), condition),
        };
        let mut released = 0;
        // A draft whose row cannot be changed is left as it is.
        let mut after: (i64, i64) = (0, 0);
        loop {
            // Most often nothing is due, and this read takes no lock.
            let due = self.database().statement("find due drafts", |connection| {
                let mut statement = connection.prepare_cached(&find)?;
                let mut parameters = parameters(&values);
                parameters.extend([
                    (":now", &now as &dyn ToSql),
                    (":after_due", &after.0),
                    (":after", &after.1),
                    (":most", &most),
                ]);
                let due = statement
                    .query_map(parameters.as_slice(), |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(due.collect::<Result<Vec<(i64, i64)>, _>>()?)
            })?;
            let Some(last) = due.last() else { return Ok(released) };
            after = *last;
            released += self.write("release due drafts", |transaction| {
                let mut statement = transaction.prepare_cached(
                    "UPDATE drafts SET due_at = 0, updated_at = ?1, \
                         revision = (revision + 1) & 4294967295 \
                     WHERE seq = ?2 AND state = 'pending' AND due_at > 0 AND due_at <= ?1",
                )?;
                let mut released = 0;
                for (_, seq) in &due {
                    match statement.execute(params![now, seq]) {
                        Ok(changed) => released += changed,
                        Err(error) if is_row_fault(&error) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(released)
            })?;
            if due.len() < MAX_RELEASED {
                return Ok(released);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rusqlite::Connection;

    use super::*;
    use crate::draft::Draft;
    use crate::metadata::{DraftMetadata, DraftSourceSurface};

    /// More drafts are due at once than one transaction releases, and most of their rows cannot be
    /// changed.
    #[test]
    fn due_drafts_are_released_and_damaged_ones_are_left() {
        let directory = tempfile::tempdir().unwrap();
        let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
        let drafts: Vec<Draft> = (0..=MAX_RELEASED)
            .map(|number| {
                let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
                Draft::with_metadata(number.to_string(), metadata)
            })
            .collect();
        store.submit_many(&drafts).unwrap();
        let sql = Connection::open(store.path()).unwrap();
        sql.execute_batch(&format!(
            "UPDATE drafts SET due_at = 1;
             CREATE TRIGGER stays BEFORE UPDATE OF due_at ON drafts WHEN OLD.seq <= {MAX_RELEASED}
             BEGIN SELECT RAISE(ABORT, 'it stays'); END;"
        ))
        .unwrap();
        assert_eq!(store.release_due().unwrap(), 1, "the last one");
        sql.execute_batch("DROP TRIGGER stays; UPDATE drafts SET due_at = 1").unwrap();
        assert_eq!(store.release_due().unwrap(), MAX_RELEASED + 1);
    }
}
