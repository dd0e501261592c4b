//! The rows and lock files of runners.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, SystemTime};

use draftq::{Draft, DraftProcessingDecision, DraftStore, LibrarianError, Runner};
use rusqlite::Connection;

use crate::harness::{claim, draft, draftq, judged_by, store};

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

fn lock_files(store: &DraftStore) -> usize {
    let mut directory = store.path().as_os_str().to_owned();
    directory.push("-runners");
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".lock")).count()
}

/// A watch that finds the database busy tries to register again and again.
#[test]
fn a_runner_that_could_not_be_registered_leaves_no_lock_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    let store = DraftStore::options().busy_timeout(Duration::ZERO).open(&path).unwrap();
    let sql = Connection::open(&path).unwrap();
    sql.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(matches!(store.register_runner("test"), Err(LibrarianError::Busy { .. })));
    assert_eq!(lock_files(&store), 0);
    sql.execute_batch("ROLLBACK").unwrap();
    let _runner = store.register_runner("test").unwrap();
    assert_eq!(lock_files(&store), 1);
}

/// It died after its end was stored and before its lock file was removed. The next run removes the
/// file, though it has nothing to do and registers no runner.
#[test]
fn the_lock_file_of_a_runner_that_died_at_its_end_is_removed() {
    let (directory, store) = store();
    let runner = store.register_runner("test").unwrap();
    let sql = Connection::open(store.path()).unwrap();
    let name = "SELECT lock_file FROM runners";
    let name: String = sql.query_row(name, [], |row| row.get(0)).unwrap();
    drop(runner);
    assert_eq!(lock_files(&store), 0);
    let left = directory.path().join("drafts.db-runners").join(name);
    File::options().write(true).create_new(true).mode(0o600).open(left).unwrap();
    assert_eq!(lock_files(&store), 1);
    let ran = draftq(store.path()).args(["run", "--defer"]).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(lock_files(&store), 0);
}

/// Nobody would see its lock in the file that lies there now, so that others would take its claims.
#[test]
fn a_runner_whose_lock_file_was_replaced_registers_again() {
    let (directory, store) = store();
    let sql = Connection::open(store.path()).unwrap();
    let newest = || -> (i64, String) {
        let row = "SELECT id, lock_file FROM runners ORDER BY id DESC LIMIT 1";
        sql.query_row(row, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    let runner = Runner::new(&store, "test");
    let mut accepts = judged_by(|_: &Draft| Ok(DraftProcessingDecision::Accepted.into()));
    let mut run = |text: &str| {
        store.submit(&draft(text)).unwrap();
        runner.run_one(&mut accepts, SystemTime::now()).into_result().unwrap();
    };
    run("a");
    let (id, name) = newest();
    let path = directory.path().join("drafts.db-runners").join(name);
    // As a restored copy of the directory does it.
    fs::remove_file(&path).unwrap();
    File::options().write(true).create_new(true).mode(0o600).open(&path).unwrap();
    run("b");
    assert_eq!(newest().0, id + 1);
    run("c");
    assert_eq!(newest().0, id + 1, "and only then");
}
