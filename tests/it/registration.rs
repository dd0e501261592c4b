//! The rows and lock files of runners.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, SystemTime};

use draftq::{Draft, DraftProcessingDecision, DraftStore, Runner};
use rusqlite::Connection;

use crate::harness::{claim, draft, judged_by, store};

/// The rows of ended runners are deleted, but never the newest, from which the next id
/// follows, and never one that an event names.
#[test]
fn a_runner_that_an_event_names_keeps_its_row_and_its_id() {
    let (_directory, store) = store();
    for id in 1..=3 {
        assert_eq!(store.register_runner("idle").unwrap().id(), id);
    }
    store.submit(&draft("a")).unwrap();
    let runner = store.register_runner("claims").unwrap();
    let named = runner.id();
    let _held = claim(&store, &runner);
    drop(runner);
    store.recover(SystemTime::UNIX_EPOCH).unwrap();
    for _ in 0..3 {
        drop(store.register_runner("idle").unwrap());
    }
    let sql = Connection::open(store.path()).unwrap();
    let count = "SELECT count(*) FROM runners WHERE id = ?1";
    let count: i64 = sql.query_row(count, [named], |row| row.get(0)).unwrap();
    assert_eq!(count, 1);
}

#[test]
fn a_runner_ends_once() {
    let (_directory, store) = store();
    let runner = store.register_runner("test").unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("UPDATE runners SET ended_at = 1", []).unwrap();
    drop(runner);
    let ended: i64 = sql.query_row("SELECT ended_at FROM runners", [], |row| row.get(0)).unwrap();
    assert_eq!(ended, 1);
}

/// A runner that could not record its end leaves its lock file.
#[test]
fn a_lock_file_stays_until_the_end_is_stored() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    let store = DraftStore::options().busy_timeout(Duration::ZERO).open(&path).unwrap();
    store.submit(&draft("a")).unwrap();
    let runner = store.register_runner("test").unwrap();
    let _held = claim(&store, &runner);
    let sql = Connection::open(&path).unwrap();
    sql.execute_batch("BEGIN IMMEDIATE").unwrap();
    drop(runner);
    sql.execute_batch("ROLLBACK").unwrap();
    // Because its lock is free, not because of its age.
    let recovery = store.recover(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(recovery.to_pending.len(), 1);
}

/// Cleanup keeps a lock file that is locked, also of a runner that has no row yet, and the
/// free lock file of a runner that still owns a claim, which shows that the runner is dead.
#[test]
fn cleanup_keeps_held_locks_and_needed_lock_files() {
    let (directory, store) = store();
    store.submit(&draft("a")).unwrap();
    let dead = store.register_runner("dead").unwrap();
    let _held = claim(&store, &dead);
    let file = |name: &str| {
        let path = directory.path().join("drafts.db-runners").join(name);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        (path, file)
    };
    let (proof, _) = file("0123456789abcdef.lock");
    let (unregistered, lock) = file("fedcba9876543210.lock");
    lock.lock().unwrap();
    let (left_over, _) = file("00000000000000aa.lock");
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("UPDATE runners SET lock_file = '0123456789abcdef.lock'", []).unwrap();
    let _other = store.register_runner("other").unwrap();
    assert_eq!([&proof, &unregistered, &left_over].map(|path| path.exists()), [true, true, false]);
    assert_eq!(store.recover(SystemTime::UNIX_EPOCH).unwrap().to_pending.len(), 1);
    assert_eq!([&proof, &unregistered].map(|path| path.exists()), [false, true]);
}

/// Another process records the end of a live runner. The runner registers again and continues.
#[test]
fn a_run_whose_runner_was_ended_registers_again() {
    let (_directory, store) = store();
    store.submit_many(&["one", "two", "three"].map(draft)).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    let mut judge = judged_by(|draft: &Draft| {
        if draft.raw_text() == "one" {
            sql.execute("UPDATE runners SET ended_at = 1", []).unwrap();
        }
        Ok(DraftProcessingDecision::Accepted.into())
    });
    let report = Runner::new(&store, "test").run_one(&mut judge, SystemTime::now());
    assert_eq!(report.into_result().unwrap().accepted, 3);
    let runners: i64 = sql.query_row("SELECT count(*) FROM runners", [], |row| row.get(0)).unwrap();
    assert_eq!(runners, 2);
}
