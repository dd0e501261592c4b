//! Lists of drafts, page by page.

use rusqlite::{Connection, Row, ToSql};
use serde::Serialize;

use super::DraftStore;
use super::columns::lossy_text;
use super::query::DraftQuery;
use super::record::{
    DraftRecord, DraftSummary, RECORD_COLUMNS, SUMMARY_COLUMNS, record_bytes, record_of, summary_of,
};
use crate::clock::unix_ms;
use crate::database::TransactionError;
use crate::error::LibrarianError;
use crate::state::DraftState;

/// The most drafts in one page of a list.
const MAX_PAGE: usize = 1_000;

/// A page of records ends when its records take this many bytes or more.
const PAGE_BYTES: usize = 1024 * 1024;

/// If the drafts are selected by their texts, a page ends when this many bytes of text have been
/// read, so that no read transaction takes long.
const PAGE_TEXT_BYTES: usize = 16 * 1024 * 1024;

/// The most entries of an index that are sorted for a page. If an index that is not in the order of
/// `seq` has more, the table is read instead, in its order.
const MAX_SORTED: usize = 10_000;

/// One page of a list.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DraftPage<R> {
    /// The drafts, in the order of the query.
    pub rows: Vec<R>,
    /// The `seq` of each draft that matches the query but whose id or state cannot be read.
    pub unreadable: Vec<i64>,
    /// Where the next page begins ([`DraftQuery::after_seq`]); `None` if this is the last page. If
    /// the query is by text, a page may have no rows although it is not the last.
    pub next: Option<i64>,
}

impl DraftStore {
    /// One page of the records that match the query: at most 1,000 records, and little more than
    /// 1 MiB.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::Busy`] and [`LibrarianError::Database`].
    pub fn query(&self, query: &DraftQuery) -> Result<DraftPage<DraftRecord>, LibrarianError> {
        self.page(query, RECORD_COLUMNS, record_of, record_bytes)
    }

    /// As [`query`](Self::query), but with only the few columns of each draft that a list shows.
    ///
    /// # Errors
    ///
    /// As for [`query`](Self::query).
    pub fn summaries(&self, query: &DraftQuery) -> Result<DraftPage<DraftSummary>, LibrarianError> {
        self.page(query, SUMMARY_COLUMNS, summary_of, |_| 0)
    }

    /// One page of rows with these columns. One statement finds the seqs, and another reads each
    /// row, so that a sort, if one is needed, sorts numbers and not whole rows.
    pub(super) fn page<R>(
        &self,
        query: &DraftQuery,
        columns: &str,
        row_of: impl Fn(&Row<'_>) -> Result<R, rusqlite::Error>,
        bytes_of: impl Fn(&R) -> usize,
    ) -> Result<DraftPage<R>, LibrarianError> {
        let limit = query.limit.unwrap_or(MAX_PAGE).min(MAX_PAGE);
        // With a condition on the text, more drafts are read than the page holds.
        let max_read = if query.text_matching.is_some() { MAX_PAGE } else { limit };
        self.database().read("list drafts", |connection| {
            let mut page = DraftPage { rows: Vec::new(), unreadable: Vec::new(), next: None };
            let mut by_seq = connection
                .prepare_cached(&format!("SELECT {columns} FROM drafts WHERE seq = ?1"))?;
            let mut last = query.after_seq;
            let (mut read, mut bytes, mut text_bytes) = (0, 0, 0);
            each_seq(connection, query, max_read + 1, |seq| {
                if read == max_read
                    || page.rows.len() + page.unreadable.len() == limit
                    || bytes >= PAGE_BYTES
                    || text_bytes >= PAGE_TEXT_BYTES
                {
                    page.next = last;
                    return Ok(false);
                }
                (last, read) = (Some(seq), read + 1);
                if let Some(accepts) = &query.text_matching {
                    let text = text_of(connection, seq)?;
                    text_bytes += text.as_ref().map_or(0, String::len);
                    if !text.is_some_and(|text| accepts(&text)) {
                        return Ok(true);
                    }
                }
                let mut rows = by_seq.query([seq])?;
                if let Some(row) = rows.next()? {
                    match row_of(row) {
                        Ok(row) => {
                            bytes += bytes_of(&row);
                            page.rows.push(row);
                        }
                        Err(_) => page.unreadable.push(seq),
                    }
                }
                Ok(true)
            })?;
            Ok(page)
        })
    }
}

/// The text of a draft, with U+FFFD in place of invalid bytes.
fn text_of(connection: &Connection, seq: i64) -> Result<Option<String>, TransactionError> {
    let mut statement =
        connection.prepare_cached("SELECT raw_text FROM draft_texts WHERE seq = ?1")?;
    let mut rows = statement.query([seq])?;
    Ok(match rows.next()? {
        Some(row) => Some(lossy_text(row, "raw_text")?),
        None => None,
    })
}

/// Call `body` with the `seq` of each draft that matches the query, in its order, for at most `limit`
/// drafts or until `body` returns false. The condition on the text is ignored.
pub(super) fn each_seq(
    connection: &Connection,
    query: &DraftQuery,
    limit: usize,
    mut body: impl FnMut(i64) -> Result<bool, TransactionError>,
) -> Result<(), TransactionError> {
    let (sql, values) = statement(connection, query, limit)?;
    let mut statement = connection.prepare_cached(&sql)?;
    let values: Vec<(&str, &dyn ToSql)> =
        values.iter().map(|(name, value)| (*name, value.as_ref())).collect();
    let mut rows = statement.query(values.as_slice())?;
    while let Some(row) = rows.next()? {
        if !body(row.get(0)?)? {
            break;
        }
    }
    Ok(())
}

/// The statement for [`each_seq`], and its values.
fn statement(
    connection: &Connection,
    query: &DraftQuery,
    limit: usize,
) -> Result<(String, Values), TransactionError> {
    let order = if query.newest_first { "DESC" } else { "ASC" };
    let (conditions, values) = conditions(query);
    let sql = match &query.states {
        // This includes drafts whose state is not one of the six.
        None => {
            format!("SELECT seq FROM drafts WHERE {conditions} ORDER BY seq {order} LIMIT {limit}")
        }
        Some(states) => match indexes(connection, query, states)? {
            Some(indexes) => {
                // Each index is read in the order of seq, as far as the limit.
                let parts: Vec<String> = indexes
                    .iter()
                    .map(|(index, rows)| {
                        format!(
                            "SELECT seq FROM (SELECT seq FROM drafts INDEXED BY {index} \
                             WHERE {rows} AND {conditions} ORDER BY seq {order} LIMIT {limit})"
                        )
                    })
                    .collect();
                format!("{} ORDER BY seq {order} LIMIT {limit}", parts.join(" UNION ALL "))
            }
            None => {
                let names: Vec<String> =
                    states.iter().map(|state| format!("'{}'", state.dir_name())).collect();
                format!(
                    "SELECT seq FROM drafts WHERE state IN ({}) AND {conditions} \
                     ORDER BY seq {order} LIMIT {limit}",
                    names.join(", ")
                )
            }
        },
    };
    Ok((sql, values))
}

const READY: (&str, &str) = ("drafts_ready", "state = 'pending' AND due_at = 0");
const DELAYED: (&str, &str) = ("drafts_delayed", "state = 'pending' AND due_at > 0");
const IN_FLIGHT: (&str, &str) = ("drafts_in_flight", "state = 'processing'");

/// The partial indexes that hold the drafts in these states, each with the condition that selects
/// them there. `None` if it is better to read the table in its order: if the query names ids, or if
/// too many entries would have to be sorted.
fn indexes(
    connection: &Connection,
    query: &DraftQuery,
    states: &[DraftState],
) -> Result<Option<Vec<(&'static str, String)>>, TransactionError> {
    if query.ids.is_some() || states.is_empty() {
        return Ok(None);
    }
    let mut indexes = Vec::new();
    let mut add = |(index, rows): (&'static str, &str)| indexes.push((index, rows.to_owned()));
    for state in states {
        let sorted = match state {
            DraftState::Pending => {
                add(READY);
                add(DELAYED);
                DELAYED
            }
            DraftState::Processing => {
                add(IN_FLIGHT);
                IN_FLIGHT
            }
            // The planner uses a partial index only if its condition is repeated word for word.
            state => {
                add((
                    "drafts_finished",
                    &format!(
                        "state = '{}' AND state <> 'pending' AND state <> 'processing'",
                        state.dir_name()
                    ),
                ));
                continue;
            }
        };
        let (index, rows) = sorted;
        let has_many = connection
            .prepare_cached(&format!(
                "SELECT 1 FROM drafts INDEXED BY {index} WHERE {rows} LIMIT 1 OFFSET {MAX_SORTED}"
            ))?
            .exists([])?;
        if has_many {
            return Ok(None);
        }
    }
    Ok(Some(indexes))
}

type Values = Vec<(&'static str, Box<dyn ToSql>)>;

/// The conditions on a row, except those on its state and its text, and their values.
fn conditions(query: &DraftQuery) -> (String, Values) {
    let mut conditions: Vec<&'static str> = Vec::new();
    let mut values: Values = Vec::new();
    // This bound is always set, because SQLite starts to read at it. A bound that may be NULL would
    // only be a filter, and each page would read all pages before it.
    conditions.push(if query.newest_first { "seq < :after" } else { "seq > :after" });
    let start = if query.newest_first { i64::MAX } else { 0 };
    values.push((":after", Box::new(query.after_seq.unwrap_or(start))));
    let mut add = |condition: &'static str, name: &'static str, value: Box<dyn ToSql>| {
        conditions.push(condition);
        values.push((name, value));
    };
    if let Some(ids) = &query.ids {
        // An id is hexadecimal digits, so it needs no escapes.
        let ids: Vec<String> = ids.iter().map(|id| format!("\"{id}\"")).collect();
        let ids = format!("[{}]", ids.join(","));
        add(
            "seq IN (SELECT seq FROM drafts WHERE id IN (SELECT value FROM json_each(:ids)))",
            ":ids",
            Box::new(ids),
        );
    }
    if let Some(surface) = query.source_surface {
        add("source_surface = :surface", ":surface", Box::new(surface.as_str()));
    }
    let texts = [
        ("source_agent = :agent", ":agent", &query.source_agent),
        ("source_project = :project", ":project", &query.source_project),
        (
            "CASE WHEN json_valid(context_tags) THEN EXISTS \
             (SELECT 1 FROM json_each(context_tags) WHERE value = :tag) END",
            ":tag",
            &query.tag,
        ),
        ("last_error_class = :error_class", ":error_class", &query.error_class),
        ("instr(last_error, :error) > 0", ":error", &query.error_containing),
    ];
    for (condition, name, value) in texts {
        if let Some(value) = value {
            add(condition, name, Box::new(value.clone()));
        }
    }
    let times = [
        ("submitted_at >= :submitted_since", ":submitted_since", query.submitted_since),
        ("submitted_at < :submitted_before", ":submitted_before", query.submitted_before),
        ("updated_at >= :updated_since", ":updated_since", query.updated_since),
        ("updated_at < :updated_before", ":updated_before", query.updated_before),
    ];
    for (condition, name, time) in times {
        if let Some(time) = time {
            add(condition, name, Box::new(unix_ms(time)));
        }
    }
    if let Some(decision) = query.decision {
        add("decision = :decision", ":decision", Box::new(decision.as_str()));
    }
    if let Some((name, version)) = &query.processor {
        // A released claim is not an attempt. The claim of a draft in processing is the current
        // attempt.
        add(
            "EXISTS (SELECT 1 FROM runners WHERE processor = :processor AND id = \
                 (SELECT runner FROM history WHERE draft = drafts.seq AND runner IS NOT NULL \
                      AND (event IN ('decided', 'deferred', 'errored', 'recovered', 'exhausted') \
                           OR (event = 'claimed' AND drafts.state = 'processing')) \
                  ORDER BY history.seq DESC LIMIT 1) \
                 AND (:processor_version IS NULL OR processor_version = :processor_version))",
            ":processor",
            Box::new(name.clone()),
        );
        values.push((":processor_version", Box::new(version.clone())));
    }
    (conditions.join(" AND "), values)
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    /// The query plan of `statement`, one step per line.
    fn plan(connection: &Connection, query: &DraftQuery) -> String {
        let (sql, values) = statement(connection, query, 51).unwrap();
        let values: Vec<(&str, &dyn ToSql)> =
            values.iter().map(|(name, value)| (*name, value.as_ref())).collect();
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps = statement.query_map(values.as_slice(), |row| row.get("detail")).unwrap();
        steps.collect::<Result<Vec<String>, _>>().unwrap().join("\n")
    }

    #[test]
    fn a_list_by_state_reads_the_indexes_of_these_states() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drafts.db");
        let _store = DraftStore::open(&path).unwrap();
        let connection = Connection::open(&path).unwrap();
        for newest_first in [false, true] {
            let all = DraftQuery::default().newest_first(newest_first);
            for (states, indexes) in [
                (&[DraftState::Pending][..], &["ready", "delayed"][..]),
                (&[DraftState::Processing], &["in_flight"]),
                (&[DraftState::Failed], &["finished"]),
                (&[DraftState::Failed, DraftState::Accepted], &["finished"]),
                (&DraftState::ALL, &["ready", "delayed", "in_flight", "finished"]),
            ] {
                let query = all.clone().states(states.iter().copied()).source_agent("claude");
                let plan = plan(&connection, &query);
                for index in ["ready", "delayed", "in_flight", "finished"] {
                    let name = format!("INDEX drafts_{index}");
                    assert_eq!(plan.contains(&name), indexes.contains(&index), "{name}: {plan}");
                }
                for step in plan.lines().filter(|step| step.contains(" drafts ")) {
                    assert!(step.contains("INDEX"), "{plan}");
                }
            }
            let id = "0123456789abcdef".parse().unwrap();
            let plan = plan(&connection, &all.states([DraftState::Failed]).ids([id]));
            assert!(plan.contains("SEARCH drafts USING INTEGER PRIMARY KEY (rowid=?)"), "{plan}");
        }
    }

    #[test]
    fn a_page_does_not_sort_many_delayed_drafts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drafts.db");
        let store = DraftStore::open(&path).unwrap();
        let connection = Connection::open(&path).unwrap();
        let many = MAX_SORTED + 1;
        let insert = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {many}) \
             INSERT INTO submissions (id, submitted_at, source_surface, raw_text) \
             SELECT printf('%016x', i), 0, 'cli', 'x' FROM n"
        );
        connection.execute_batch(&insert).unwrap();
        connection.execute_batch("UPDATE drafts SET due_at = 200000000000000 - seq").unwrap();
        let query = DraftQuery::default().states([DraftState::Pending]);
        assert!(!plan(&connection, &query).contains("B-TREE"), "a page sorts them all");
        let page = store.summaries(&query.clone().after_seq(9_000)).unwrap();
        assert_eq!((page.rows.len(), page.rows[0].seq, page.next), (1_000, 9_001, Some(10_000)));

        connection.execute_batch("UPDATE drafts SET due_at = 0 WHERE seq % 2").unwrap();
        assert!(plan(&connection, &query).contains("drafts_delayed"));
        let page = store.summaries(&query.after_seq(9_000)).unwrap();
        let seqs: Vec<i64> = page.rows.iter().map(|row| row.seq).collect();
        assert_eq!(seqs, (9_001..=10_000).collect::<Vec<_>>());
        assert_eq!(page.next, Some(10_000));
    }
}
