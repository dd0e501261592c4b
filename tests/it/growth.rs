//! What a store costs does not grow with what is in it. Counted in steps of SQLite's machine and
//! in rows, not in time.

use rusqlite::{Connection, StatementStatus, ToSql};

use crate::harness::{draft, rows, store};

/// Statements as they stand in the source, without the numbers of their lines.
fn assert_in_source(parts: &[&str]) {
    let source = [include_str!("../../src/store/claim.rs"), include_str!("../../src/store/due.rs")];
    let source: String = source
        .concat()
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
const CLAIMING: &str = "WHERE state = 'pending' AND due_at = 0 AND seq >= :first AND seq <= :last \
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
             UPDATE drafts SET state = 'accepted', decision = 'accepted', claimed_at = NULL,
                 decided_by = 'me' WHERE seq > 6000 AND state = 'processing';
             COMMIT;",
        )
        .unwrap();
    let (seq, among_others) = steps_of_a_claim(&connection);
    assert_eq!((seq, among_others), (Some(7_001), alone));
    let claiming = format!("UPDATE drafts INDEXED BY drafts_ready SET note = NULL {CLAIMING}");
    for statement in [format!("SELECT seq, raw_text {CLAIMABLE}"), claiming] {
        let mut literal = format!("EXPLAIN QUERY PLAN {statement}");
        for (parameter, value) in [
            (":after", "0"),
            (":first", "1"),
            (":until", "8000"),
            (":last", "8000"),
            (":want", "1"),
        ] {
            literal = literal.replace(parameter, value);
        }
        let plan = rows(&connection, &literal).unwrap();
        assert!(plan.contains("SEARCH drafts USING"), "{plan}");
        assert!(plan.contains("drafts_ready (due_at=? AND rowid>? AND rowid<?)"), "{plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    }
    println!(r#"{{"test":"claim_cost","vm_steps_alone":{alone},"among_7000":{among_others}}}"#);
}

/// The query for what is due, as it is in its statement.
const DUE: &str = "SELECT due_at, seq FROM drafts INDEXED BY drafts_delayed \
    WHERE state = 'pending' AND due_at > 0 AND due_at <= ?1 AND (due_at, seq) > (?2, ?3) \
    ORDER BY due_at, seq LIMIT ?4";

#[test]
fn a_look_for_what_is_due_costs_the_same_however_many_wait() {
    assert_in_source(&[DUE]);
    let costs = [1, 5_000].map(|waiting| {
        let (directory, store) = store();
        let drafts: Vec<_> = (0..waiting).map(|number| draft(&format!("{number}"))).collect();
        store.submit_many(&drafts).unwrap();
        let connection = Connection::open(directory.path().join("drafts.db")).unwrap();
        connection.execute("UPDATE drafts SET due_at = 1000 + seq", []).unwrap();
        let answers = [500, 1_001].map(|now| steps(&connection, DUE, &[&now, &0, &0, &10]));
        assert_eq!(answers.map(|answer| answer.0), [None, Some(1_001)]);
        answers.map(|answer| answer.1)
    });
    assert_eq!(costs[0], costs[1]);
    println!(r#"{{"test":"due_cost","vm_steps":{:?}}}"#, costs[0]);
}

#[test]
fn counts_are_read_from_the_indexes_alone() {
    let source = include_str!("../../src/store/counts.rs");
    let (directory, store) = store();
    let connection = Connection::open(directory.path().join("drafts.db")).unwrap();
    drop(store);
    let mut counted = 0;
    for part in source.split("SELECT count(*)").skip(1) {
        let sql = part.split('"').next().unwrap().replace("\\\n", " ").replace("{state}", "failed");
        let plan = rows(&connection, &format!("EXPLAIN QUERY PLAN SELECT count(*) {sql}")).unwrap();
        assert!(plan.contains("USING COVERING INDEX"), "{plan}");
        counted += 1;
    }
    assert_eq!(counted, 4);
}
