//! How long a call waits for the locks of others.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use draftq::{
    Draft, DraftProcessingDecision, DraftProcessor, DraftState, DraftStore, LibrarianError, Runner,
};
use rusqlite::Connection;

use crate::harness::{draft, store};

/// A writer that is not draftq holds the write lock.
fn hold(store: &DraftStore) -> Connection {
    let holder = Connection::open(store.path()).unwrap();
    holder.busy_timeout(Duration::from_secs(60)).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    holder
}

fn reopened(store: &DraftStore, busy_timeout: Duration) -> DraftStore {
    DraftStore::options().busy_timeout(busy_timeout).open(store.path()).unwrap()
}

#[test]
fn a_group_of_threads_fails_within_one_timeout() {
    let (_directory, first) = store();
    let timeout = Duration::from_secs(1);
    let store = reopened(&first, timeout);
    let holder = hold(&first);
    let begun = Instant::now();
    thread::scope(|scope| {
        for n in 0..8 {
            let store = &store;
            scope.spawn(move || {
                let begun = Instant::now();
                match store.submit(&draft(&format!("draft {n}"))) {
                    Err(LibrarianError::Busy { waited, .. }) => assert!(waited >= timeout),
                    other => panic!("{other:?}"),
                }
                assert!(begun.elapsed() >= timeout, "{:?}", begun.elapsed());
            });
        }
    });
    // One after the other would take eight seconds.
    assert!(begun.elapsed() < timeout * 4, "{:?}", begun.elapsed());
    drop(holder);
    assert!(store.submit(&draft("draft 0")).unwrap().created);
}

#[test]
fn a_late_follower_has_its_own_timeout() {
    let (_directory, first) = store();
    let store = reopened(&first, Duration::from_secs(3));
    let holder = hold(&first);
    thread::scope(|scope| {
        let leader = scope.spawn(|| store.submit(&draft("leader")));
        // The follower arrives later, so its time-out ends later.
        thread::sleep(Duration::from_millis(1_500));
        let follower = scope.spawn(|| store.submit(&draft("follower")));
        assert!(matches!(leader.join().unwrap(), Err(LibrarianError::Busy { .. })));
        holder.execute_batch("COMMIT").unwrap();
        assert!(follower.join().unwrap().unwrap().created);
    });
}

#[test]
fn a_wait_continues_while_others_make_progress() {
    let (_directory, first) = store();
    let store = reopened(&first, Duration::from_millis(1_500));
    let holder = hold(&first);
    let begun = Instant::now();
    thread::scope(|scope| {
        let waits = scope.spawn(|| store.submit(&draft("waits")));
        // Each commit is progress. The lock is free in between for a moment only, which the
        // waiting thread may get; then it did not have to wait longer.
        while begun.elapsed() < Duration::from_secs(5) && !waits.is_finished() {
            holder
                .execute_batch(
                    "CREATE TABLE another_program (x); DROP TABLE another_program; \
                     COMMIT; BEGIN IMMEDIATE",
                )
                .unwrap();
            thread::sleep(Duration::from_millis(100));
        }
        holder.execute_batch("COMMIT").unwrap();
        assert!(waits.join().unwrap().unwrap().created);
    });
}

#[test]
fn a_timeout_of_zero_fails_at_once_if_the_lock_is_held() {
    let (_directory, first) = store();
    let store = reopened(&first, Duration::ZERO);
    assert!(store.submit(&draft("alone")).unwrap().created);
    let holder = hold(&first);
    let begun = Instant::now();
    for _ in 0..5 {
        assert!(matches!(store.submit(&draft("busy")), Err(LibrarianError::Busy { .. })));
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    drop(holder);
    assert!(store.submit(&draft("busy")).unwrap().created);
}

/// Takes the write lock while its decision is stored.
struct Locks(DraftStore);

impl DraftProcessor for Locks {
    fn process(&mut self, _: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        let (has, waits) = mpsc::channel();
        let store = self.0.clone();
        thread::spawn(move || {
            let holder = hold(&store);
            has.send(()).unwrap();
            thread::sleep(Duration::from_millis(400));
            holder.execute_batch("COMMIT").unwrap();
        });
        waits.recv().unwrap();
        Ok(DraftProcessingDecision::Accepted)
    }
}

#[test]
fn a_decision_is_kept_while_the_database_is_busy() {
    let (_directory, first) = store();
    let id = first.submit(&draft("decided")).unwrap().id;
    let store = reopened(&first, Duration::ZERO);
    let report = Runner::new(&store, "test").run_one(&mut Locks(first.clone()), SystemTime::now());
    assert!(report.stopped_by.is_none(), "{:?}", report.stopped_by);
    assert_eq!(report.summary.accepted, 1);
    assert!(first.load(DraftState::Accepted, id).is_ok());
}

#[test]
fn threads_of_one_process_wait_in_turn() {
    let (_directory, first) = store();
    let store = DraftStore::options().connections(8).open(first.path()).unwrap();
    let holder = hold(&first);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..32)
            .map(|n| {
                let store = &store;
                scope.spawn(move || store.submit_many([&draft(&format!("draft {n}"))]))
            })
            .collect();
        thread::sleep(Duration::from_millis(300));
        holder.execute_batch("COMMIT").unwrap();
        for writer in writers {
            assert!(writer.join().unwrap().unwrap()[0].created);
        }
    });
}
