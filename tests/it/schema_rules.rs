//! Each rule of the schema by itself. Most rules are behind others: a trigger refuses what a
//! CHECK would refuse as well. Here each is tested alone, so that none can be lost unnoticed.

use std::collections::BTreeSet;

use draftq::Claimed;
use draftq::{DraftProcessingDecision, DraftState, Outcome};
use rusqlite::Connection;

use crate::harness::{draft, store};

/// Values for `UPDATE drafts SET …` on a pending draft, by the CHECK that refuses them.
const DRAFTS: &[(&str, &[&str])] = &[
    ("seq is a positive number", &["seq = 0", "seq = 1000000000000001"]),
    (
        "id is 16 lower-case hexadecimal digits",
        &[
            "id = 'abc'",
            "id = '0123456789ABCDEF'",
            "id = '0123456789abcdeg'",
            "id = '0123456789abcdef' || char(0)",
            "id = '0123456789abcde' || char(0)",
        ],
    ),
    (
        "state is one of the six states",
        &["state = 'nonsense', decision = 'nonsense'", "state = '', decision = ''"],
    ),
    (
        "due_at is a time, and set for pending drafts only",
        &[
            "due_at = -1",
            "due_at = 253402300800000",
            "due_at = 5, state = 'accepted', decision = 'accepted'",
            "due_at = 5, state = 'processing', claimed_at = 1",
        ],
    ),
    (
        "claimed_at is a time, and set in processing and only there",
        &[
            "claimed_at = 1",
            "claimed_at = 1, state = 'accepted', decision = 'accepted'",
            "state = 'processing'",
            "state = 'processing', claimed_at = -1",
            "state = 'processing', claimed_at = 253402300800000",
        ],
    ),
    ("claim_token is set in processing only", &["claim_token = x'00'"]),
    ("owner needs a claim_token", &["state = 'processing', claimed_at = 1, owner = 1"]),
    ("claims is a count", &["claims = -1", "claims = 1000000001"]),
    ("errors is a count", &["errors = -1", "errors = 1000000001"]),
    ("crashes is a count", &["crashes = -1", "crashes = 1000000001"]),
    ("defers is a count", &["defers = -1", "defers = 1000000001"]),
    ("defers_in_a_row is a count", &["defers_in_a_row = -1", "defers_in_a_row = 1000000001"]),
    ("requeues is a count", &["requeues = -1", "requeues = 1000000001"]),
    ("suspect is 0 or 1", &["suspect = -1", "suspect = 2"]),
    ("updated_at is a time", &["updated_at = -1", "updated_at = 253402300800000"]),
    ("submitted_at is a time", &["submitted_at = -1", "submitted_at = 253402300800000"]),
    ("text_bytes is a length", &["text_bytes = -1", "text_bytes = 2147483648"]),
    ("source_surface is a known surface", &["source_surface = 'nowhere'", "source_surface = ''"]),
    (
        "context_tags is a JSON array",
        &[
            "context_tags = 'x'",
            "context_tags = '{}'",
            "context_tags = '\"a\"'",
            "context_tags = '[\"a\"]' || char(0)",
        ],
    ),
    ("imported_by is a name", &["imported_by = ''"]),
    (
        "supersedes is an id",
        &[
            "supersedes = 'abc'",
            "supersedes = '0123456789ABCDEF'",
            "supersedes = '0123456789abcdef' || char(0)",
        ],
    ),
    (
        "decision fits the state",
        &[
            "decision = 'accepted'",
            "decision = 'deferred', state = 'processing', claimed_at = 1",
            "decision = 'deferred', state = 'failed'",
            "decision = 'accepted', state = 'failed'",
            "decision = 'skipped', state = 'accepted'",
            "state = 'accepted'",
            "state = 'skipped'",
            "state = 'quarantined'",
        ],
    ),
    (
        "decided_by signs a decision",
        &[
            "decided_by = 'me'",
            "decided_by = 'me', state = 'processing', claimed_at = 1",
            "decided_by = '', state = 'accepted', decision = 'accepted'",
        ],
    ),
    ("output is JSON", &["output = '{'", "output = '{}' || char(0)"]),
    ("usage is a JSON object", &["usage = '{'", "usage = '[]'", "usage = '{}' || char(0)"]),
];

/// The same for `UPDATE runners SET …`.
const RUNNERS: &[(&str, &[&str])] = &[
    ("id is a positive number", &["id = 0", "id = 1000000000000001"]),
    ("pid is a process id", &["pid = -1", "pid = 4294967296"]),
    ("max_errors is a count", &["max_errors = -1", "max_errors = 4294967296"]),
];

/// And for `UPDATE history SET …`.
const HISTORY: &[(&str, &[&str])] = &[
    ("seq is a positive number", &["seq = 0", "seq = 1000000000000001"]),
    ("event is a known event", &["event = 'nonsense'", "event = ''"]),
];

fn names(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).unwrap();
    let names = statement.query_map([], |row| row.get(0)).unwrap();
    names.map(Result::unwrap).collect()
}

#[test]
fn each_check_refuses_by_itself() {
    let (_directory, store) = store();
    store.submit(&draft("a")).unwrap();
    let _runner = store.register_runner("test").unwrap();
    let connection = Connection::open(store.path()).unwrap();
    for trigger in names(&connection, "SELECT name FROM sqlite_schema WHERE type = 'trigger'") {
        connection.execute_batch(&format!("DROP TRIGGER {trigger}")).unwrap();
    }
    for (sql, refusal) in [
        (
            "INSERT INTO drafts (seq, id, submitted_at, updated_at, text_bytes, source_surface) \
             SELECT 2, id, 0, 0, 1, 'cli' FROM drafts",
            "UNIQUE constraint failed: drafts.id",
        ),
        ("UPDATE drafts SET note = x'00'", "cannot store BLOB value in TEXT column"),
        ("UPDATE draft_texts SET raw_text = x'00'", "cannot store BLOB value in TEXT column"),
        ("UPDATE runners SET started_at = 'x'", "cannot store TEXT value in INTEGER column"),
        ("UPDATE history SET at = 'x'", "cannot store TEXT value in INTEGER column"),
    ] {
        match connection.execute(sql, []) {
            Err(error) => assert!(error.to_string().contains(refusal), "{sql}: {error}"),
            Ok(_) => panic!("{sql}: was let through"),
        }
    }
    for (table, checks) in [("drafts", DRAFTS), ("runners", RUNNERS), ("history", HISTORY)] {
        for (check, sets) in checks {
            for set in *sets {
                let sql = format!("UPDATE {table} SET {set}");
                let error = match connection.execute(&sql, []) {
                    Err(error) => error.to_string(),
                    Ok(_) => panic!("{table}: {set} was let through"),
                };
                let expected = format!("CHECK constraint failed: {check}");
                assert_eq!(error, expected, "{table}: {set}");
            }
        }
        // There is no other CHECK.
        let sql = format!("SELECT sql FROM sqlite_schema WHERE name = '{table}'");
        let definition = names(&connection, &sql).remove(0);
        let named: BTreeSet<&str> = definition
            .split("CONSTRAINT \"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        let asked: BTreeSet<&str> = checks.iter().map(|(check, _)| *check).collect();
        assert_eq!(named, asked, "{table}");
        assert_eq!(definition.matches("CHECK").count(), checks.len(), "{table}: one has no name");
    }
}

/// Values that each CHECK must accept.
#[test]
fn the_ends_of_each_range_are_accepted() {
    let (_directory, store) = store();
    store.submit(&draft("a")).unwrap();
    let connection = Connection::open(store.path()).unwrap();
    connection.execute_batch("DROP TRIGGER drafts_identity_is_fixed").unwrap();
    for set in [
        "due_at = 253402300799999",
        "claims = 1000000000, errors = 1000000000, crashes = 1000000000, defers = 1000000000, \
             defers_in_a_row = 1000000000, requeues = 1000000000",
        "suspect = 1",
        "updated_at = 253402300799999",
        "submitted_at = 0",
        "text_bytes = 2147483647",
        "decision = 'deferred'",
        "supersedes = '0123456789abcdef'",
        "usage = '{}', output = '[]'",
    ] {
        let changed = connection.execute(&format!("UPDATE drafts SET {set}"), []);
        assert_eq!(changed, Ok(1), "{set}");
    }
}

/// Statements that the triggers refuse although every CHECK accepts them.
#[test]
fn each_condition_of_a_trigger_refuses_by_itself() {
    let (_directory, store) = store();
    let held = draft("held");
    store.submit(&held).unwrap();
    let runner = store.register_runner("test").unwrap();
    let mut snapshot = store.pending_snapshot().unwrap();
    assert!(store.claim_next(&runner, &mut snapshot).unwrap().is_some());
    let connection = Connection::open(store.path()).unwrap();
    let insert = |columns: &str, values: &str| {
        format!(
            "INSERT INTO drafts (seq, id, submitted_at, updated_at, text_bytes, source_surface, \
                 {columns}) VALUES (2, '00000000000000aa', 0, 0, 1, 'cli', {values})"
        )
    };
    let starts = "a draft starts as pending, due and unclaimed";
    for (sql, refusal) in [
        (insert("due_at", "5"), starts),
        (insert("claims", "1"), starts),
        (insert("state, claimed_at", "'processing', 1"), starts),
        (insert("state, decision", "'accepted', 'accepted'"), starts),
        (
            "UPDATE drafts SET state = 'accepted', decision = 'accepted', decided_by = 'me', \
                 claimed_at = NULL, claim_token = NULL, owner = NULL"
                .to_owned(),
            "while a runner holds the draft",
        ),
        (
            "UPDATE drafts SET state = 'pending', claimed_at = NULL, claim_token = NULL, \
                 owner = NULL, requeues = requeues + 1"
                .to_owned(),
            "processing to pending by a requeue while a runner holds the draft",
        ),
        ("UPDATE drafts SET supersedes = '0123456789abcdef'".to_owned(), "identity is fixed"),
    ] {
        match connection.execute(&sql, []) {
            Err(error) => assert!(error.to_string().contains(refusal), "{sql}: {error}"),
            Ok(_) => panic!("{sql}: was let through"),
        }
    }
}

/// Each event has the move's note, who decided, and the output that the move replaced.
#[test]
fn each_event_keeps_the_new_note_and_the_replaced_output() {
    let (_directory, store) = store();
    let draft = draft("a");
    store.submit(&draft).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    let runner = store.register_runner("test").unwrap();
    let claim = || {
        let mut snapshot = store.pending_snapshot().unwrap();
        match store.claim_next(&runner, &mut snapshot).unwrap() {
            Some(Claimed::Draft(claim)) => *claim,
            other => panic!("{other:?}"),
        }
    };
    let outcome = |decision, note: &str, output: i32| {
        Outcome::new(decision).with_note(note).with_output(&[output]).unwrap()
    };
    let first = claim();
    store.finish(first, &outcome(DraftProcessingDecision::Failed, "one", 1)).unwrap();
    sql.execute(
        "UPDATE drafts SET state = 'accepted', decision = 'accepted', decided_by = 'me', \
             note = 'two', output = '[2]'",
        [],
    )
    .unwrap();
    store.requeue(&[draft.id()]).unwrap();
    let second = claim();
    store.finish(second, &outcome(DraftProcessingDecision::Deferred, "three", 3)).unwrap();
    store.release(claim()).unwrap();
    // The usage of a processor, and an error that is not counted.
    sql.execute_batch(
        "UPDATE drafts SET state = 'processing', claimed_at = 1, decision = NULL, note = 'four', \
             last_error_class = 'old', last_error = 'old';
         UPDATE drafts SET state = 'pending', claimed_at = NULL, usage = '{\"tokens\":5}';
         UPDATE drafts SET state = 'processing', claimed_at = 1, usage = NULL;
         UPDATE drafts SET state = 'pending', claimed_at = NULL, crashes = crashes + 1, \
             last_error_class = 'crash';",
    )
    .unwrap();
    let mut statement = sql
        .prepare(
            "SELECT json_array(event, decision, decided_by, note, output, usage, error_class, \
                 runner) FROM history ORDER BY seq",
        )
        .unwrap();
    let events: Vec<String> =
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(
        events,
        [
            r#"["submitted",null,null,null,null,null,null,null]"#,
            r#"["claimed",null,null,null,null,null,null,1]"#,
            r#"["decided","failed",null,"one",null,null,null,1]"#,
            r#"["resolved","accepted","me","two","[1]",null,null,null]"#,
            r#"["requeued",null,null,null,"[2]",null,null,null]"#,
            r#"["claimed",null,null,null,null,null,null,1]"#,
            r#"["deferred","deferred",null,"three",null,null,null,1]"#,
            r#"["claimed",null,null,null,null,null,null,1]"#,
            r#"["released",null,null,null,null,null,null,1]"#,
            r#"["claimed",null,null,null,null,null,null,null]"#,
            r#"["recovered",null,null,null,null,"{\"tokens\":5}",null,null]"#,
            r#"["claimed",null,null,null,null,null,null,null]"#,
            r#"["recovered",null,null,null,null,null,"crash",null]"#,
        ]
    );
}

#[test]
fn a_deletion_leaves_the_events_of_other_drafts() {
    let (_directory, store) = store();
    let drafts = ["one", "two", "three"].map(draft);
    for draft in &drafts {
        store.submit(draft).unwrap();
        store.transition(draft.id(), DraftState::Pending, DraftState::Processing).unwrap();
        store.transition(draft.id(), DraftState::Processing, DraftState::Skipped).unwrap();
    }
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("DELETE FROM drafts WHERE seq = 2", []).unwrap();
    let events = names(&sql, "SELECT draft || ' ' || event FROM history ORDER BY draft, seq");
    let expected = [
        "1 submitted",
        "1 claimed",
        "1 decided",
        "2 deleted",
        "3 submitted",
        "3 claimed",
        "3 decided",
    ];
    assert_eq!(events, expected);
}

/// The same id is the same draft, however it is inserted, also if SQLite would replace the row,
/// which fires no trigger.
#[test]
fn inserting_an_existing_id_changes_nothing() {
    let (_directory, store) = store();
    let there = draft("there");
    store.submit(&there).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    for verb in ["INSERT", "INSERT OR IGNORE", "INSERT OR REPLACE"] {
        for (seq, value) in [("", ""), ("seq, ", "2, ")] {
            let statement = format!(
                "{verb} INTO drafts ({seq}id, submitted_at, updated_at, text_bytes, \
                     source_surface) VALUES ({value}?1, 0, 0, 1, 'cli')"
            );
            assert_eq!(sql.execute(&statement, [there.id().to_hex()]), Ok(0), "{statement}");
            assert_eq!(names(&sql, "SELECT seq || ' ' || state FROM drafts"), ["1 pending"]);
        }
    }
    assert_eq!(store.load(DraftState::Pending, there.id()).unwrap(), there);
}

#[test]
fn a_submission_by_hand_may_supersede_a_draft() {
    let (_directory, store) = store();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute(
        "INSERT INTO submissions (id, submitted_at, source_surface, supersedes, raw_text) \
         VALUES ('00000000000000aa', 0, 'cli', '00000000000000bb', 'é')",
        [],
    )
    .unwrap();
    let rows = "SELECT supersedes || ' ' || text_bytes || ' ' || context_tags FROM drafts";
    assert_eq!(names(&sql, rows), ["00000000000000bb 2 []"]);
}

/// The last event, and the event of the last draft, stay, because the next numbers follow from them.
#[test]
fn the_events_that_the_next_numbers_follow_from_stay() {
    let (_directory, store) = store();
    for text in ["one", "two"] {
        let draft = draft(text);
        store.submit(&draft).unwrap();
        store.transition(draft.id(), DraftState::Pending, DraftState::Processing).unwrap();
        store.transition(draft.id(), DraftState::Processing, DraftState::Skipped).unwrap();
    }
    let sql = Connection::open(store.path()).unwrap();
    let delete = |draft: i64| sql.execute("DELETE FROM history WHERE draft = ?1", [draft]);
    sql.execute("DELETE FROM drafts WHERE seq = 1", []).unwrap();
    delete(1).expect_err("it is the last event");
    sql.execute("DELETE FROM drafts WHERE seq = 2", []).unwrap();
    assert_eq!(delete(1), Ok(1), "by now it is not");
    store.submit(&draft("three")).unwrap();
    assert_eq!(names(&sql, "SELECT CAST(seq AS TEXT) FROM drafts"), ["3"]);
}

#[test]
fn the_event_of_the_last_draft_stays() {
    let (_directory, store) = store();
    let drafts = ["one", "two"].map(draft);
    for draft in &drafts {
        store.submit(draft).unwrap();
        store.transition(draft.id(), DraftState::Pending, DraftState::Processing).unwrap();
        store.transition(draft.id(), DraftState::Processing, DraftState::Skipped).unwrap();
    }
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("DELETE FROM drafts WHERE seq = 2", []).unwrap();
    store.requeue(&[drafts[0].id()]).unwrap();
    sql.execute("DELETE FROM history WHERE draft = 2", []).expect_err("it is of the last draft");
}

/// A sum of deferrals replaces the one that stands for one deferral fewer, and no other.
#[test]
fn a_sum_that_is_typed_by_hand_removes_no_deferrals() {
    let (_directory, store) = store();
    store.submit(&draft("a")).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    // The first 20 in a row have a row each.
    sql.execute("UPDATE drafts SET defers_in_a_row = 20", []).unwrap();
    let runner = store.register_runner("test").unwrap();
    let claim = match store.claim_next(&runner, &mut store.pending_snapshot().unwrap()).unwrap() {
        Some(Claimed::Draft(claim)) => *claim,
        other => panic!("{other:?}"),
    };
    store.finish(claim, &DraftProcessingDecision::Deferred.into()).unwrap();
    let events = || names(&sql, "SELECT event || ifnull(' ' || repeats, '') FROM history");
    let before = events();
    assert_eq!(before, ["submitted", "claimed", "deferred 1"]);
    let typed = sql.execute(
        "INSERT INTO history (draft, event, from_state, to_state, at, repeats, by_hand)
         VALUES (1, 'errored', 'pending', 'pending', 0, 3, 1)",
        [],
    );
    let error = typed.unwrap_err().to_string();
    assert!(error.contains("does not continue"), "{error}");
    assert_eq!(events(), before);
}
