//! The cost of a claim, of a search for due drafts and of a count does not grow with the number of
//! other drafts. It is measured in steps of SQLite's virtual machine, not in time.

#![allow(clippy::print_stdout, reason = "a test prints its figures")]

use std::time::SystemTime;

use rusqlite::{Connection, StatementStatus, ToSql};
use tempfile::TempDir;

use super::DraftStore;
use super::claim::{CLAIM, CLAIM_AMONG, NEXT_READY, READY_AMONG};
use super::counts::{COUNT_DELAYED, COUNT_PROCESSING, COUNT_READY, count_finished};
use super::due::FIND_DUE;
use crate::draft::Draft;
use crate::metadata::{DraftMetadata, DraftSourceSurface};
use crate::state::DraftState;

/// A database with this many drafts.
fn database(drafts: usize) -> (TempDir, Connection) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
    let drafts: Vec<Draft> = (0..drafts)
        .map(|number| Draft::with_metadata(format!("draft {number}"), metadata.clone()))
        .collect();
    DraftStore::open(&path).unwrap().submit_many(&drafts).unwrap();
    (directory, Connection::open(&path).unwrap())
}

/// The `seq` in the first row of the result, and the number of steps up to there.
fn steps(connection: &Connection, sql: &str, values: &[(&str, &dyn ToSql)]) -> (Option<i64>, i32) {
    let mut statement = connection.prepare(sql).unwrap();
    let row = statement.query(values).unwrap().next().unwrap().map(|row| row.get("seq").unwrap());
    (row, statement.get_status(StatementStatus::VmStep))
}

/// The query plan of a statement, one step per line.
fn plan(connection: &Connection, sql: &str) -> String {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let mut rows = statement.raw_query();
    let mut plan = String::new();
    while let Some(row) = rows.next().unwrap() {
        plan.push_str(&row.get::<_, String>("detail").unwrap());
        plan.push('\n');
    }
    plan
}

#[test]
fn a_claim_costs_the_same_whatever_other_drafts_there_are() {
    let next_ready = |connection: &Connection| {
        steps(connection, NEXT_READY, &[(":after", &0), (":until", &i64::MAX), (":want", &1)])
    };
    let (_directory, connection) = database(1);
    let (seq, alone) = next_ready(&connection);
    assert_eq!(seq, Some(1));

    // Before the draft to claim there are 5,000 delayed, 1,000 in processing and 1,000 finished.
    let (_directory, connection) = database(7_001);
    connection
        .execute_batch(
            "BEGIN;
             UPDATE drafts SET due_at = 253402300799999 - seq WHERE seq <= 5000;
             UPDATE drafts SET state = 'processing', claimed_at = 1 WHERE seq BETWEEN 5001 AND 6000;
             UPDATE drafts SET state = 'accepted', decision = 'accepted', decided_by = 'me'
             WHERE seq BETWEEN 6001 AND 7000;
             COMMIT;",
        )
        .unwrap();
    let (seq, among_others) = next_ready(&connection);
    assert_eq!((seq, among_others), (Some(7_001), alone));
    for sql in [NEXT_READY, CLAIM] {
        let plan = plan(&connection, sql);
        assert!(plan.contains("SEARCH drafts USING"), "{plan}");
        assert!(plan.contains("drafts_ready (due_at=? AND rowid>? AND rowid<?)"), "{plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    }
    println!(r#"{{"test":"claim_cost","vm_steps_alone":{alone},"among_7000":{among_others}}}"#);
}

#[test]
fn a_search_for_due_drafts_costs_the_same_however_many_are_delayed() {
    let costs = [1, 5_000].map(|delayed| {
        let (_directory, connection) = database(delayed);
        connection.execute("UPDATE drafts SET due_at = 1000 + seq", []).unwrap();
        let answers = [500, 1_001].map(|now: i64| {
            steps(
                &connection,
                FIND_DUE,
                &[(":now", &now), (":after_due", &0), (":after", &0), (":most", &10)],
            )
        });
        assert_eq!(answers.map(|answer| answer.0), [None, Some(1)]);
        answers.map(|answer| answer.1)
    });
    assert_eq!(costs[0], costs[1]);
    println!(r#"{{"test":"due_cost","vm_steps":{:?}}}"#, costs[0]);
}

#[test]
fn counts_read_only_indexes() {
    let (_directory, connection) = database(1);
    for sql in [COUNT_READY, COUNT_DELAYED, COUNT_PROCESSING, &count_finished(DraftState::Failed)] {
        let plan = plan(&connection, sql);
        assert!(plan.contains("USING COVERING INDEX"), "{plan}");
    }
}

#[test]
fn a_claim_with_a_filter_reads_its_candidates_alone() {
    let (_directory, connection) = database(1);
    for sql in [READY_AMONG, CLAIM_AMONG] {
        let plan = plan(&connection, sql);
        assert!(plan.contains("SEARCH drafts USING") && plan.contains("rowid=?"), "{plan}");
        assert!(!plan.contains("SCAN drafts"), "{plan}");
    }
}

/// Under the filter of a waiting runner, a poll reads only the drafts that have moved.
#[test]
fn a_poll_with_a_filter_costs_the_same_whatever_other_drafts_there_are() {
    let costs = [10, 5_000].map(|others| {
        let (_directory, connection) = database(others);
        let since = i64::try_from(others).unwrap() - 3;
        let filter = crate::filter::DraftFilter::default().source_project("p");
        let (sql, values) = super::new_work::filtered_statement(&filter);
        let mut parameters = super::filter::parameters(&values);
        parameters.push((":since", &since));
        let mut statement = connection.prepare(&sql).unwrap();
        let first: Option<i64> =
            statement.query_row(parameters.as_slice(), |row| row.get(0)).unwrap();
        assert_eq!(first, None);
        statement.get_status(StatementStatus::VmStep)
    });
    assert_eq!(costs[0], costs[1]);
}
