//! What a store costs does not grow with what is in it. Counted in steps of SQLite's machine and
//! in rows, not in time.

use std::time::SystemTime;

use draftq::{
    Draft, DraftProcessingDecision, DraftProcessor, DraftState, DraftStore, LibrarianError, Runner,
};
use rusqlite::{Connection, StatementStatus, ToSql};

use crate::harness::{draft, rows, store};

/// Statements as they stand in the source, without the numbers of their lines.
fn assert_in_source(parts: &[&str]) {
    let source: String = include_str!("../../src/store/claim.rs")
        .split_whitespace()
        .filter(|word| *word != "\\")
        .collect::<Vec<_>>()
        .join(" ");
    for part in parts {
        assert!(source.contains(part), "the statements are others now: {part}");
    }
}

/// Where the claim looks, as it stands in its statements.
const CLAIMABLE: &str = "FROM drafts INDEXED BY drafts_ready LEFT JOIN draft_texts USING (seq) \
    WHERE state = 'pending' AND due_at = 0 AND drafts.seq > :after AND drafts.seq <= :until \
    ORDER BY drafts.seq LIMIT :want";
const CLAIMING: &str = "WHERE state = 'pending' AND due_at = 0 AND seq > :after AND seq <= :last \
    RETURNING seq, claim_token";

/// The first value that a query gives, and how many steps it took.
fn steps(connection: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> (Option<i64>, i32) {
    let mut statement = connection.prepare(sql).unwrap();
    let value = statement.query(parameters).unwrap().next().unwrap().map(|row| row.get(0).unwrap());
    (value, statement.get_status(StatementStatus::VmStep))
}

fn steps_of_a_claim(connection: &Connection) -> (Option<i64>, i32) {
    steps(connection, &format!("SELECT drafts.seq, raw_text {CLAIMABLE}"), &[&0, &i64::MAX, &1])
}

#[test]
fn a_claim_costs_the_same_whatever_waits_or_is_finished() {
    assert_in_source(&[CLAIMABLE, CLAIMING]);

    let (directory, store) = store();
    let path = directory.path().join("drafts.db");
    store.submit(&draft("last")).unwrap();
    let connection = Connection::open(&path).unwrap();
    let (_, alone) = steps_of_a_claim(&connection);

    // The one to claim comes behind 5,000 that wait, 1,000 in processing and 1,000 finished.
    let (other, crowded) = self::store();
    let path = other.path().join("drafts.db");
    let drafts: Vec<_> = (0..7_000).map(|number| draft(&format!("draft {number}"))).collect();
    crowded.submit_many(&drafts).unwrap();
    crowded.submit(&draft("last")).unwrap();
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "BEGIN;
             UPDATE drafts SET due_at = 253402300799999 - seq WHERE seq <= 5000;
             UPDATE drafts SET state = 'processing', claimed_at = 1 WHERE seq BETWEEN 5001 AND 7000;
             UPDATE drafts SET state = 'accepted', decision = 'accepted', claimed_at = NULL
             WHERE seq > 6000 AND state = 'processing';
             COMMIT;",
        )
        .unwrap();
    let (seq, among_others) = steps_of_a_claim(&connection);
    assert_eq!((seq, among_others), (Some(7_001), alone));
    let claiming = format!("UPDATE drafts INDEXED BY drafts_ready SET note = NULL {CLAIMING}");
    for statement in [format!("SELECT seq, raw_text {CLAIMABLE}"), claiming] {
        let mut literal = format!("EXPLAIN QUERY PLAN {statement}");
        for (parameter, value) in
            [(":after", "0"), (":until", "8000"), (":last", "8000"), (":want", "1")]
        {
            literal = literal.replace(parameter, value);
        }
        let plan = rows(&connection, &literal).unwrap();
        assert!(plan.contains("SEARCH drafts USING"), "{plan}");
        assert!(plan.contains("drafts_ready (due_at=? AND rowid>? AND rowid<?)"), "{plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    }
    println!(r#"{{"test":"claim_cost","vm_steps_alone":{alone},"among_7000":{among_others}}}"#);
}

/// The look for what is due, as it stands in its statement.
const DUE: &str = "SELECT due_at <= ?1 OR (SELECT due_at FROM drafts INDEXED BY drafts_delayed \
    WHERE state = 'pending' AND due_at > 0 ORDER BY due_at DESC LIMIT 1) > ?2 \
    FROM drafts INDEXED BY drafts_delayed \
    WHERE state = 'pending' AND due_at > 0 ORDER BY due_at LIMIT 1";

#[test]
fn a_look_for_what_is_due_costs_the_same_however_many_wait() {
    assert_in_source(&[DUE]);
    let costs = [1, 5_000].map(|waiting| {
        let (directory, store) = store();
        let drafts: Vec<_> = (0..waiting).map(|number| draft(&format!("{number}"))).collect();
        store.submit_many(&drafts).unwrap();
        let connection = Connection::open(directory.path().join("drafts.db")).unwrap();
        connection.execute("UPDATE drafts SET due_at = 1000 + seq", []).unwrap();
        let answers = [(500, 1_000_000), (1_001, 1_000_000), (500, 1_000)]
            .map(|(now, furthest)| steps(&connection, DUE, &[&now, &furthest]));
        assert_eq!(answers.map(|answer| answer.0), [Some(0), Some(1), Some(1)]);
        answers.map(|answer| answer.1)
    });
    assert_eq!(costs[0], costs[1]);
    println!(r#"{{"test":"due_cost","vm_steps":{:?}}}"#, costs[0]);
}

struct Accept;

impl DraftProcessor for Accept {
    fn process(&mut self, _draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        Ok(DraftProcessingDecision::Accepted)
    }
}

/// How many events a count has to read, on top of the tally.
fn behind(connection: &Connection) -> i64 {
    let sql = "SELECT (SELECT max(seq) FROM history) - counted_to FROM tally";
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_count_reads_no_more_than_what_happened_since_the_last() {
    const DRAFTS: usize = 3_000;
    /// What lies behind the tally is brought forward when it is so much, by the next to write.
    const MOST: i64 = 64;
    let (directory, store) = store();
    let connection = Connection::open(directory.path().join("drafts.db")).unwrap();
    let count = |store: &DraftStore, state: DraftState| {
        let states = store.stats().unwrap().states;
        states.into_iter().find(|(counted, _)| *counted == state).map(|(_, drafts)| drafts)
    };

    let drafts: Vec<_> = (0..DRAFTS).map(|number| draft(&format!("{number}"))).collect();
    store.submit_many(&drafts).unwrap();
    assert!(behind(&connection) < MOST);
    let report = Runner::new(&store, "test").run_one(&mut Accept, SystemTime::now());
    assert_eq!(report.into_result().unwrap().accepted, DRAFTS);
    assert!(behind(&connection) < MOST);
    assert_eq!(count(&store, DraftState::Accepted), Some(3_000));

    // Lone submits bring it forward too, one in 64 by chance: of a thousand some do.
    let before = behind(&connection);
    for number in 0..1_000 {
        store.submit(&draft(&format!("lone {number}"))).unwrap();
    }
    assert!(behind(&connection) < before + 1_000);
    assert_eq!(count(&store, DraftState::Pending), Some(1_000));

    // What is done by hand is counted when it is asked for.
    connection
        .execute_batch(
            "UPDATE drafts SET state = 'pending', decision = NULL WHERE state = 'accepted';
             UPDATE drafts SET due_at = 5 WHERE seq % 2;
             UPDATE drafts SET due_at = 0 WHERE seq % 4 = 1;",
        )
        .unwrap();
    let stats = store.stats().unwrap();
    assert_eq!(count(&store, DraftState::Pending), Some(4_000));
    let delayed = rows(&connection, "SELECT count(*) FROM drafts WHERE due_at > 0").unwrap();
    assert_eq!(stats.delayed.to_string(), delayed);
    let ready = rows(&connection, "SELECT count(*) FROM drafts WHERE due_at = 0").unwrap();
    assert_eq!(store.pending_snapshot().unwrap().pending_seen().to_string(), ready);
}
