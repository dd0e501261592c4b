//! The query by which a waiting runner finds new work.

use rusqlite::{Connection, OptionalExtension as _, ToSql};

use super::DraftStore;
use super::filter::{Values, conditions, parameters};
use super::hold::hold_in_force;
use crate::database::TransactionError;
use crate::error::LibrarianError;
use crate::filter::DraftFilter;
use crate::hold::Hold;

/// For whom to look for new work.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seeker {
    /// The name of the processor; empty: only holds for all processors are heeded.
    pub processor: String,
    /// Which drafts the runner claims.
    pub filter: DraftFilter,
}

/// The result of a poll for new work.
#[derive(Debug)]
pub(crate) struct NewWork {
    /// The seq of the history's last event.
    pub last_event: i64,
    /// The drafts that can be claimed, if any have become claimable since the given event.
    pub claimable: Option<Claimable>,
    /// When the next delayed draft is due, in milliseconds since the epoch. With a filter: of the
    /// drafts that have moved since the given event.
    pub next_due_ms: Option<i64>,
    /// The hold that is in force.
    pub hold: Option<Hold>,
}

/// The first and the last draft that can be claimed, by their seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claimable {
    pub first: i64,
    pub last: i64,
}

impl DraftStore {
    /// New work since this event. Reads only the events since then, however long the queue and the
    /// history are.
    pub(crate) fn new_work(&self, seeker: &Seeker, since: i64) -> Result<NewWork, LibrarianError> {
        let now = self.now_ms();
        self.database().read("find new work", |connection| {
            let last_event = last_event(connection)?;
            let hold = hold_in_force(connection, &seeker.processor, now)?;
            if !seeker.filter.is_empty() {
                let (claimable, next_due_ms) = match last_event > since {
                    true => filtered_work(connection, &seeker.filter, since)?,
                    false => (None, None),
                };
                return Ok(NewWork { last_event, claimable, next_due_ms, hold });
            }
            let claimable = match last_event > since && became_claimable(connection, since)? {
                true => claimable(connection)?,
                false => None,
            };
            let next_due_ms = connection
                .prepare_cached(
                    "SELECT min(due_at) FROM drafts INDEXED BY drafts_delayed \
                     WHERE state = 'pending' AND due_at > 0",
                )?
                .query_row([], |row| row.get(0))?;
            Ok(NewWork { last_event, claimable, next_due_ms, hold })
        })
    }

    /// When the next delayed draft that passes the filter is due. Many other drafts may be read for
    /// it, so a waiting runner asks for it once per wait.
    pub(crate) fn next_due_ms(&self, filter: &DraftFilter) -> Result<Option<i64>, LibrarianError> {
        let (condition, values) = conditions(filter);
        self.database().statement("find the next due draft", |connection| {
            Ok(connection
                .prepare_cached(&format!(
                    "SELECT due_at FROM drafts INDEXED BY drafts_delayed \
                     WHERE state = 'pending' AND due_at > 0{condition} ORDER BY due_at LIMIT 1"
                ))?
                .query_row(parameters(&values).as_slice(), |row| row.get(0))
                .optional()?)
        })
    }
}

/// The drafts that pass the filter, have become claimable since this event and still are, and when
/// the first of those is due that have been delayed since. Only the drafts of the events since
/// then are read, because most drafts may be those of other runners.
fn filtered_work(
    connection: &Connection,
    filter: &DraftFilter,
    since: i64,
) -> Result<(Option<Claimable>, Option<i64>), TransactionError> {
    let (sql, values) = filtered_statement(filter);
    let mut parameters: Vec<(&str, &dyn ToSql)> = parameters(&values);
    parameters.push((":since", &since));
    let (first, last, due) = connection
        .prepare_cached(&sql)?
        .query_row(parameters.as_slice(), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let first: Option<i64> = first;
    Ok((first.zip(last).map(|(first, last)| Claimable { first, last }), due))
}

/// Of an event beside its draft: it made the draft claimable, and the draft still is.
const CLAIMABLE: &str =
    "due_at = 0 AND event IN ('submitted', 'requeued', 'recovered', 'released')";

/// The statement for [`filtered_work`], and its values but `:since`.
pub(super) fn filtered_statement(filter: &DraftFilter) -> (String, Values) {
    let (condition, values) = conditions(filter);
    let sql = format!(
        "SELECT min(drafts.seq) FILTER (WHERE {CLAIMABLE}), \
                max(drafts.seq) FILTER (WHERE {CLAIMABLE}), min(nullif(due_at, 0)) \
         FROM history CROSS JOIN drafts ON drafts.seq = history.draft \
         WHERE history.seq > :since AND drafts.state = 'pending'{condition}"
    );
    (sql, values)
}

fn became_claimable(connection: &Connection, since: i64) -> Result<bool, TransactionError> {
    let mut statement = connection.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM history WHERE seq > ?1 \
             AND event IN ('submitted', 'requeued', 'recovered', 'released'))",
    )?;
    Ok(statement.query_row([since], |row| row.get(0))?)
}

fn claimable(connection: &Connection) -> Result<Option<Claimable>, TransactionError> {
    let mut statement = connection.prepare_cached(
        "SELECT (SELECT seq FROM drafts INDEXED BY drafts_ready \
                 WHERE state = 'pending' AND due_at = 0 ORDER BY seq LIMIT 1) AS first, \
                (SELECT seq FROM drafts INDEXED BY drafts_ready \
                 WHERE state = 'pending' AND due_at = 0 ORDER BY seq DESC LIMIT 1) AS last",
    )?;
    let (first, last) = statement
        .query_row([], |row| Ok((row.get::<_, Option<i64>>("first")?, row.get("last")?)))?;
    Ok(first.zip(last).map(|(first, last)| Claimable { first, last }))
}

/// The `seq` of the history's last event; 0 if there is none.
fn last_event(connection: &Connection) -> Result<i64, TransactionError> {
    let mut statement =
        connection.prepare_cached("SELECT seq FROM history ORDER BY seq DESC LIMIT 1")?;
    Ok(statement.query_row([], |row| row.get(0)).optional()?.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rusqlite::Connection;

    use super::*;
    use crate::state::DraftState;
    use crate::{Draft, DraftMetadata, DraftSourceSurface};

    #[test]
    fn new_work_is_what_became_claimable_since_and_still_is() {
        let directory = tempfile::tempdir().unwrap();
        let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
        let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
        let draft = Draft::with_metadata("text".to_owned(), metadata);
        let sql = Connection::open(store.path()).unwrap();
        let all = Seeker::default();
        let mut seen = store.new_work(&all, 0).unwrap().last_event;
        let mut now = || {
            let found = store.new_work(&all, seen).unwrap();
            seen = found.last_event;
            (found.claimable.is_some(), store.new_work(&all, seen).unwrap().claimable.is_some())
        };
        let hold = || {
            store.transition(draft.id(), DraftState::Pending, DraftState::Processing).unwrap();
        };
        let leave = |set: &str| {
            let sets = "state = 'pending', claimed_at = NULL, claim_token = NULL";
            sql.execute(&format!("UPDATE drafts SET {sets}, {set}"), []).unwrap();
        };
        store.submit(&draft).unwrap();
        assert_eq!(now(), (true, false), "submitted");
        hold();
        assert_eq!(now(), (false, false));
        leave("suspect = 0");
        assert_eq!(now(), (true, false), "recovered");
        hold();
        leave("claims = claims - 1");
        assert_eq!(now(), (true, false), "released");
        hold();
        leave("decision = 'deferred'");
        assert_eq!(now(), (false, false), "a deferral is no work: it would be met for ever");
        hold();
        store.transition(draft.id(), DraftState::Processing, DraftState::Failed).unwrap();
        store.requeue(&[draft.id()]).unwrap();
        assert_eq!(now(), (true, false), "requeued");
        leave("due_at = 1");
        assert_eq!(store.new_work(&all, 0).unwrap().next_due_ms, Some(1));
        assert_eq!(store.new_work(&all, 0).unwrap().claimable, None, "nothing can be claimed now");
        leave("due_at = 0");
        let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
        let others = ["b", "c"].map(|text| Draft::with_metadata(text.into(), metadata.clone()));
        store.submit_many(&others).unwrap();
        let claimable = store.new_work(&all, 0).unwrap().claimable;
        assert_eq!(claimable, Some(Claimable { first: 1, last: 3 }));
    }
}
