//! Values in the database that should not be there: the rest of the row is shown, and
//! other rows are not affected.

use std::path::Path;

use draftq::DraftDamage;
use draftq::{DraftState, LibrarianError};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Sandbox, draft};

/// The database without its triggers and checks, so that any value can be written.
fn unguarded(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    let triggers: Vec<String> = connection
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for trigger in triggers {
        connection.execute_batch(&format!("DROP TRIGGER \"{trigger}\"")).unwrap();
    }
    connection.pragma_update(None, "ignore_check_constraints", true).unwrap();
    connection
}

/// A column, an invalid value for it, and the result of `show`: the exit code, and the
/// value in JSON.
fn hostile() -> Vec<(&'static str, &'static str, i32, Value)> {
    // Bytes that are no UTF-8 between two letters.
    let bytes = "CAST(x'41ff1b42' AS TEXT)";
    let shown = json!("A\u{fffd}\u{1b}B");
    vec![
        ("context_tags", r#"'["\ud800"]'"#, 0, json!([])),
        ("context_tags", "'[]' || char(0)", 0, json!([])),
        ("context_tags", "'[1]'", 0, json!([])),
        ("context_tags", "'not JSON'", 0, json!([])),
        ("context_tags", "CAST(x'ff' AS TEXT)", 0, json!([])),
        ("output", "'{}' || char(0)", 0, Value::Null),
        ("output", "'not JSON'", 0, Value::Null),
        ("output", bytes, 0, Value::Null),
        ("note", bytes, 0, shown.clone()),
        ("last_error", bytes, 0, shown.clone()),
        ("last_error_class", bytes, 0, shown.clone()),
        ("source_surface", "'nowhere'", 74, Value::Null),
        ("source_agent", bytes, 74, shown.clone()),
        ("source_project", bytes, 74, shown.clone()),
        ("operator", bytes, 74, shown.clone()),
        ("provenance_uri", bytes, 74, shown),
        ("decision", "'maybe'", 0, Value::Null),
        ("text_bytes", "-1", 0, json!(0)),
        ("claims", "-9223372036854775808", 0, json!(0)),
        ("errors", "-1", 0, json!(0)),
        ("defers", "-1", 0, json!(0)),
    ]
}

/// The largest and smallest numbers can be read.
const ENDS: [&str; 7] =
    ["submitted_at", "updated_at", "due_at", "claims", "errors", "defers", "revision"];

#[test]
fn an_unreadable_row_hides_no_other() {
    let sandbox = Sandbox::new();
    let whole = sandbox.submit("whole");
    let before = sandbox.draftq(["list", "--json"]).expect(0).json();
    let hostile = hostile();
    let ids: Vec<String> =
        (0..hostile.len()).map(|place| sandbox.submit(&format!("hostile {place}"))).collect();
    let ends: Vec<String> = ENDS.iter().map(|column| sandbox.submit(column)).collect();
    let lost = ["lost id", "lost state"].map(|text| sandbox.submit(text));
    let connection = unguarded(&sandbox.db());
    for (id, (column, value, ..)) in ids.iter().zip(&hostile) {
        let sql = format!("UPDATE drafts SET {column} = {value} WHERE id = ?1");
        connection.execute(&sql, [id]).unwrap();
    }
    for (place, (id, column)) in ends.iter().zip(ENDS).enumerate() {
        let value = if place % 2 == 0 { i64::MAX } else { i64::MAX - 1 };
        let sql = format!("UPDATE drafts SET {column} = ?2 WHERE id = ?1");
        connection.execute(&sql, rusqlite::params![id, value]).unwrap();
    }
    connection
        .execute("UPDATE drafts SET submitted_at = ?2 WHERE id = ?1", (&ends[1], i64::MIN))
        .unwrap();
    let seq = |id: &String| -> i64 {
        connection
            .query_row("SELECT seq FROM drafts WHERE id = ?1", [id], |row| row.get(0))
            .unwrap()
    };
    let lost_seqs = [seq(&lost[0]), seq(&lost[1])];
    connection
        .execute("UPDATE drafts SET id = CAST(x'ff1b0a' AS TEXT) WHERE id = ?1", [&lost[0]])
        .unwrap();
    connection.execute("UPDATE drafts SET state = 'limbo' WHERE id = ?1", [&lost[1]]).unwrap();

    let ran = sandbox.draftq(["list", "--json", "--oldest", "--limit=0"]);
    let records = ran.expect(0).lines();
    assert_eq!(records.len(), 1 + hostile.len() + ENDS.len());
    assert_eq!(records[0], before, "the others are what they were");
    for ((record, id), (column, value, _, shown)) in records[1..].iter().zip(&ids).zip(&hostile) {
        assert_eq!(record["id"], **id, "{column} = {value}");
        assert_eq!(record["unreadable"], json!([column]), "{column} = {value}: {record}");
        assert_eq!(&record[column], shown, "{column} = {value}");
    }
    for (record, id) in records[1 + hostile.len()..].iter().zip(&ends) {
        assert_eq!((&record["id"], record.get("unreadable")), (&json!(id), None), "{record}");
    }
    // The first are named, the others counted.
    let named = |id: &&String| ran.err().contains(&format!("draft {id} cannot be read in full"));
    assert_eq!(ids.iter().filter(named).count(), 5, "{}", ran.err());
    assert!(ran.err().contains("and 16 more drafts"), "{}", ran.err());
    for seq in lost_seqs {
        assert!(ran.err().contains(&format!("draft with seq {seq} is left out")), "{}", ran.err());
    }

    let text = sandbox.draftq(["list", "--limit=0"]);
    assert_eq!(text.expect(0).out().lines().count(), 2 + hostile.len() + ENDS.len());
    assert!(text.out().contains("(unreadable)"), "{}", text.out());
    assert!(text.err().contains("cannot be read in full"), "{}", text.err());
    assert!(!text.out().contains('\u{1b}') && !text.err().contains('\u{1b}'));
    for args in [
        &["stats"][..],
        &["stats", "--json"],
        &["list", "--tag=x"],
        &["list", "--agent=x"],
        &["list", "--since=1h"],
        &["list", "--state=pending", "--state=failed"],
    ] {
        sandbox.draftq(args).expect(0);
    }

    for (id, (column, value, code, shown)) in ids.iter().zip(&hostile) {
        let record = sandbox.draftq(["show", id, "--json"]);
        let record = record.expect(*code).json();
        assert_eq!((&record["unreadable"], &record[column]), (&json!([column]), shown), "{value}");
        let person = sandbox.draftq(["show", id]);
        let marked = person.expect(*code).out().lines().find(|it| it.starts_with("unreadable"));
        assert!(marked.is_some_and(|line| line.ends_with(column)), "{}", person.out());
        assert!(person.err().contains(id.as_str()), "{}", person.err());
        let raw = sandbox.draftq(["show", id, "--raw"]);
        assert_eq!(raw.expect(*code).out().is_empty(), *code != 0, "{column} = {value}");
    }
    for id in ends.iter().chain([&whole]) {
        sandbox.draftq(["show", id]).expect(0);
        sandbox.draftq(["show", id, "--json"]).expect(0);
    }
    sandbox.draftq(["show", &lost[0]]).expect(66);
    let limbo = sandbox.draftq(["show", &lost[1]]);
    assert!(limbo.expect(74).err().contains("column state cannot be read"), "{}", limbo.err());
}

#[test]
fn an_unreadable_event_hides_no_other() {
    let sandbox = Sandbox::new();
    let id = sandbox.submit("x");
    sandbox.draftq(["run", "--exit-code", "--", "true"]).expect(0);
    let connection = unguarded(&sandbox.db());
    for (pid, expected) in [
        ("4294967296", json!(4_294_967_296_i64)),
        ("-9223372036854775808", json!(i64::MIN)),
        ("9223372036854775807", json!(i64::MAX)),
    ] {
        connection.execute(&format!("UPDATE runners SET pid = {pid}"), []).unwrap();
        assert_eq!(sandbox.show(&id)["history"][2]["pid"], expected);
        sandbox.draftq(["show", &id]).expect(0);
    }
    connection
        .execute_batch(
            "UPDATE history SET event = CAST(x'ff1b' AS TEXT), to_state = 'limbo',
                 from_state = 'limbo', output = '{', note = CAST(x'ff' AS TEXT), by_hand = 2,
                 at = 9223372036854775807, decision = 'maybe', runner = -1",
        )
        .unwrap();
    let event = &sandbox.show(&id)["history"][2];
    let unreadable = ["event", "from_state", "to_state", "decision", "note", "output"];
    for column in unreadable {
        let named = event["unreadable"].as_array().unwrap();
        assert!(named.contains(&json!(column)), "{column}: {event}");
    }
    let text = sandbox.draftq(["show", &id]);
    assert!(text.expect(0).err().contains("history.output"), "{}", text.err());
    assert!(!text.out().contains('\u{1b}'));
}

#[test]
fn an_altered_draft_does_not_affect_others() {
    let sandbox = Sandbox::new();
    let store = sandbox.store();
    let texts = ["one", "two", "three", "four", "five"];
    let ids = texts.map(|text| sandbox.submit(text));
    let connection = unguarded(&sandbox.db());
    connection
        .execute_batch(
            "UPDATE draft_texts SET raw_text = 'canary' WHERE seq = 1;
             UPDATE drafts SET source_agent = 'mallory' WHERE seq = 2;
             DELETE FROM draft_texts WHERE seq = 3;
             UPDATE draft_texts SET raw_text = CAST(x'ff' AS TEXT) WHERE seq = 4;",
        )
        .unwrap();
    let damage = [
        DraftDamage::Altered,
        DraftDamage::Altered,
        DraftDamage::NoText,
        DraftDamage::Unreadable { column: "raw_text" },
    ];
    for (id, damage) in ids.iter().zip(damage) {
        let raw = sandbox.draftq(["show", id, "--raw"]);
        assert_eq!(raw.expect(74).out(), "");
        assert_eq!(raw.err(), format!("draftq: draft {id} is damaged: {damage}\n"));
        for args in [&["show", id][..], &["show", id, "--json"]] {
            let ran = sandbox.draftq(args);
            assert!(ran.expect(74).out().contains(id.as_str()), "the record is shown");
            assert!(!ran.out().contains("canary") && !ran.err().contains("canary"));
        }
        let document = sandbox.draftq(["show", id, "--json"]).json();
        assert_eq!(document["damaged"], damage.to_string());
        assert_eq!((&document["raw_text"], &document["state"]), (&Value::Null, &json!("pending")));

        let loaded = store.load(DraftState::Pending, id.parse().unwrap()).unwrap_err();
        assert_eq!(loaded.class(), "damaged");
        let LibrarianError::DamagedDraft { damage: found, .. } = loaded else { panic!("{loaded}") };
        assert_eq!(found, damage);
    }
    sandbox.draftq(["list"]).expect(0);
    let whole = store.list(DraftState::Pending).unwrap();
    assert_eq!(whole.iter().map(|draft| draft.id()).collect::<Vec<_>>(), [draft("five").id()]);
    assert_eq!(sandbox.draftq(["show", &ids[4], "--raw"]).expect(0).out(), "five");

    // The program gets the undamaged draft, and its answer is stored.
    let script = "cat >> seen; echo '{\"decision\":\"accepted\"}'";
    let summary = sandbox.draftq(["run", "--", "sh", "-c", script]).expect(70).json();
    let summary = &summary["summary"];
    assert_eq!((&summary["accepted"], &summary["errors"]), (&json!(1), &json!(4)), "{summary}");
    let seen = std::fs::read_to_string(sandbox.path("seen")).unwrap();
    assert_eq!(seen.lines().count(), 1);
    assert!(seen.contains("\"raw_text\":\"five\""), "{seen}");
    for (record, damage) in
        sandbox.draftq(["list", "--json", "--oldest"]).expect(0).lines().iter().zip(damage)
    {
        assert_eq!(record["last_error_class"], "damaged");
        let error = record["last_error"].as_str().unwrap();
        assert!(error.contains(&damage.to_string()), "{error}");
    }
}
