//! A populated file is brought to a made-up next version, and killed on the way at each write.

#![allow(clippy::print_stdout, reason = "a test says its figures and what it skipped")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rusqlite::Connection;

use super::super::connection::{configure, connect};
use super::*;
use crate::draft::Draft;
use crate::metadata::{DraftMetadata, DraftSourceSurface};
use crate::outcome::Outcome;
use crate::state::{DraftProcessingDecision, DraftState};
use crate::store::DraftStore;
use crate::store::claimed::Claimed;

/// What a next version may need: a column, one more enum value, another trigger, a table that is
/// built anew although triggers and views name it.
const NEXT: &str = r#"
ALTER TABLE drafts ADD COLUMN reviewed_at INTEGER
    CONSTRAINT "reviewed_at is a time" CHECK (reviewed_at IS NULL OR reviewed_at >= 0);

ALTER TABLE history DROP CONSTRAINT "event is a known event";
ALTER TABLE history ADD CONSTRAINT "event is a known event"
    CHECK (event IN ('submitted', 'imported', 'claimed', 'decided', 'deferred', 'released',
                     'recovered', 'exhausted', 'requeued', 'resolved', 'errored', 'refused',
                     'deleted', 'archived'));

DROP TRIGGER history_is_fixed;
CREATE TRIGGER history_is_fixed BEFORE UPDATE ON history
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal edit: the history of version 3 is only appended to');
END;

DROP VIEW in_flight;
DROP VIEW draft_history;
DROP TRIGGER drafts_held_are_not_requeued;
CREATE TABLE runners_of_3 (
    id         INTEGER PRIMARY KEY,
    pid        INTEGER NOT NULL,
    where_at   TEXT NOT NULL,
    processor  TEXT NOT NULL,
    processor_version TEXT,
    max_errors INTEGER NOT NULL,
    lock_file  TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at   INTEGER,
    first_event INTEGER NOT NULL,
    last_event INTEGER
) STRICT;
INSERT INTO runners_of_3
SELECT id, pid, host || ' ' || boot_id, processor, processor_version, max_errors, lock_file,
       started_at, ended_at, first_event, last_event FROM runners;
DROP TABLE runners;
ALTER TABLE runners_of_3 RENAME TO runners;
CREATE INDEX runners_not_ended ON runners (id) WHERE ended_at IS NULL;
CREATE TRIGGER drafts_held_are_not_requeued BEFORE UPDATE OF requeues ON drafts
WHEN NEW.requeues > OLD.requeues
 AND EXISTS (SELECT 1 FROM runners WHERE id = OLD.owner AND ended_at IS NULL)
BEGIN
    SELECT RAISE(ABORT, 'draftq: illegal move: a runner holds the draft');
END;
CREATE VIEW in_flight AS
SELECT d.id, r.pid, r.where_at FROM drafts d LEFT JOIN runners r ON r.id = d.owner
WHERE d.state = 'processing';
CREATE VIEW draft_history AS
SELECT h.seq, d.id, h.event, h.to_state, r.where_at
FROM history h JOIN drafts d ON d.seq = h.draft LEFT JOIN runners r ON r.id = h.runner;
"#;

const LADDER: [&str; 2] = [MIGRATIONS[0], NEXT];

/// Where the child process of a test finds the file.
const CHILD: &str = "DRAFTQ_TEST_UPGRADE_CHILD";

/// A file of the current version with drafts in every state, a history and runners.
fn populated() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    let store = DraftStore::open(&path).unwrap();
    for number in 0..200 {
        let metadata =
            DraftMetadata::new(DraftSourceSurface::Cli, std::time::SystemTime::UNIX_EPOCH);
        let text = format!("draft {number} {}", "x".repeat(number * 7));
        store.submit(&Draft::with_metadata(text, metadata)).unwrap();
    }
    let runner = store.register_runner("test").unwrap();
    let mut snapshot = store.pending_snapshot().unwrap();
    for number in 0..150 {
        let Some(Claimed::Draft(claim)) = store.claim_next(&runner, &mut snapshot).unwrap() else {
            panic!("nothing to claim")
        };
        let decision = DraftProcessingDecision::ALL[number % 5];
        let outcome = Outcome::new(decision).with_note("a note").with_output(&[number]).unwrap();
        store.finish(*claim, &outcome).unwrap();
    }
    let id = store.list(DraftState::Pending).unwrap()[0].id();
    store.transition(id, DraftState::Pending, DraftState::Processing).unwrap();
    drop(runner);
    drop(store);
    // A thread of its pool may be the last to close it.
    let wal = path.with_file_name("drafts.db-wal");
    let begun = std::time::Instant::now();
    while wal.exists() && begun.elapsed() < std::time::Duration::from_secs(20) {
        std::thread::yield_now();
    }
    (directory, path)
}

/// Everything that both versions have.
fn contents(connection: &Connection) -> Vec<String> {
    let tables = [
        "SELECT quote(seq) || quote(id) || quote(state) || quote(due_at) || quote(claimed_at) \
             || quote(claim_token) || quote(claims) || quote(note) || quote(output) FROM drafts",
        "SELECT quote(seq) || quote(raw_text) FROM draft_texts",
        "SELECT quote(seq) || quote(draft) || quote(event) || quote(from_state) \
             || quote(to_state) || quote(at) || quote(runner) || quote(note) FROM history",
        "SELECT quote(id) || quote(pid) || quote(processor) || quote(lock_file) FROM runners",
    ];
    let mut rows = Vec::new();
    for sql in tables {
        let mut statement = connection.prepare(&format!("{sql} ORDER BY 1")).unwrap();
        let found = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.extend(found.map(Result::unwrap));
    }
    rows
}

fn version(connection: &Connection) -> i64 {
    pragma(connection, "user_version").unwrap()
}

fn refusal(connection: &Connection, sql: &str) -> String {
    connection.execute(sql, []).unwrap_err().to_string()
}

/// The file is of the next version, whole, and its rules hold.
fn assert_upgraded(connection: &Connection, before: &[String]) {
    assert_eq!(version(connection), 3);
    assert_eq!(contents(connection), before);
    let check: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    // The new column and its rule, the new event, the changed trigger, the table built anew.
    connection.execute("UPDATE drafts SET reviewed_at = 5 WHERE seq = 1", []).unwrap();
    let column = refusal(connection, "UPDATE drafts SET reviewed_at = -5 WHERE seq = 1");
    assert!(column.contains("reviewed_at is a time"), "{column}");
    let fixed = refusal(connection, "UPDATE history SET at = 0");
    assert!(fixed.contains("version 3"), "{fixed}");
    let event = "INSERT INTO history (draft, event, from_state, to_state, at, by_hand) \
                 SELECT seq, 'nonsense', state, state, 0, 0 FROM drafts WHERE seq = 1";
    // The rule that a row continues its history comes first, whatever the event.
    assert!(refusal(connection, event).contains("draftq: illegal insert"));
    let known: String = connection
        .query_row("SELECT sql FROM sqlite_schema WHERE name = 'history'", [], |row| row.get(0))
        .unwrap();
    assert!(known.contains("'archived'") && known.matches("event is a known event").count() == 1);
    let in_flight: i64 =
        connection.query_row("SELECT count(*) FROM in_flight", [], |row| row.get(0)).unwrap();
    assert_eq!(in_flight, 1);
    let events: i64 = connection
        .query_row("SELECT count(*) FROM draft_history WHERE where_at IS NOT NULL", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert!(events >= 300, "{events} events with a runner");
    // The rules that were not touched.
    let text = refusal(connection, "UPDATE draft_texts SET raw_text = 'x'");
    assert!(text.contains("a draft's text is fixed"), "{text}");
    let moved = refusal(
        connection,
        "UPDATE drafts SET state = 'accepted', decision = 'accepted' WHERE state = 'pending'",
    );
    assert!(moved.contains("without a signature"), "{moved}");
}

#[test]
fn a_populated_file_is_brought_to_the_next_version() {
    let (_directory, path) = populated();
    let mut connection = connect(&path).unwrap();
    let before = contents(&connection);
    assert_eq!(version(&connection), 2);
    migrate_with(&mut connection, &path, &LADDER).unwrap();
    assert_upgraded(&connection, &before);
    // Again is no harm, and an older draftq refuses it.
    migrate_with(&mut connection, &path, &LADDER).unwrap();
    let refused = migrate(&mut connection, &path).unwrap_err();
    assert!(format!("{refused:?}").contains("use a newer draftq"), "{refused:?}");
    assert_upgraded(&connection, &before);
}

#[test]
fn a_new_file_gets_all_versions_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    std::fs::write(&path, "").unwrap();
    let mut connection = connect(&path).unwrap();
    migrate_with(&mut connection, &path, &LADDER).unwrap();
    assert_eq!(version(&connection), 3);
}

#[test]
fn version_1_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("CREATE TABLE drafts (id TEXT)").unwrap();
    connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    drop(connection);
    let before = std::fs::read(&path).unwrap();
    let error = DraftStore::open(&path).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("version 1, of a draftq that was never released"), "{message}");
    assert_eq!(std::fs::read(&path).unwrap(), before, "it is left as it is");
}

/// A migration that a write error ends leaves the old version.
#[test]
fn a_migration_that_fails_leaves_the_version_before_it() {
    let (_directory, path) = populated();
    let mut connection = connect(&path).unwrap();
    let before = contents(&connection);
    let broken = format!("{NEXT}; SELECT nonsense FROM nowhere;");
    migrate_with(&mut connection, &path, &[MIGRATIONS[0], &broken]).unwrap_err();
    assert_eq!(version(&connection), 2);
    assert_eq!(contents(&connection), before);
    migrate_with(&mut connection, &path, &LADDER).unwrap();
    assert_upgraded(&connection, &before);
}

/// Not a test: the child process that is killed.
#[test]
fn upgrade_child() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let path = PathBuf::from(path);
    let mut connection = connect(&path).unwrap();
    configure(&connection, &path, std::time::Duration::from_secs(5)).unwrap();
    migrate_with(&mut connection, &path, &LADDER).unwrap();
}

/// Run the migration in a child that is killed at its N-th write. Whether it was killed.
fn upgrade_killed_at(path: &Path, write: usize) -> bool {
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("inject=pwrite64:signal=SIGKILL:when={write}"))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "database::schema::upgrade_tests::upgrade_child", "--test-threads=1"])
        .env(CHILD, path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    !status.success()
}

fn killed_upgrades(step: usize) {
    let can_trace = Command::new("strace")
        .args(["-qq", "-e", "inject=pwrite64:signal=SIGKILL:when=60000", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !can_trace.is_ok_and(|status| status.success()) {
        println!("skipped: there is no strace here that may trace");
        return;
    }
    let (_directory, path) = populated();
    let work = tempfile::tempdir().unwrap();
    let before = contents(&Connection::open(&path).unwrap());
    let (mut write, mut killed, mut old) = (1, 0, 0);
    loop {
        let copy = work.path().join(format!("{write}.db"));
        std::fs::copy(&path, &copy).unwrap();
        if !upgrade_killed_at(&copy, write) {
            break;
        }
        killed += 1;
        let mut connection = connect(&copy).unwrap();
        let version = version(&connection);
        assert!(version == 2 || version == 3, "killed at write {write}: version {version}");
        old += usize::from(version == 2);
        assert_eq!(contents(&connection), before, "killed at write {write}");
        migrate_with(&mut connection, &copy, &LADDER).unwrap();
        assert_upgraded(&connection, &before);
        write += step;
    }
    assert!(killed > 0, "no write was met");
    println!(
        r#"{{"test":"upgrade_killed","kills":{killed},"left_old":{old},"left_new":{}}}"#,
        killed - old
    );
}

#[test]
fn an_upgrade_that_is_killed_leaves_the_old_or_the_new_version() {
    killed_upgrades(9);
}

#[test]
#[ignore = "a minute: each write"]
fn an_upgrade_that_is_killed_at_each_write_long() {
    killed_upgrades(1);
}
