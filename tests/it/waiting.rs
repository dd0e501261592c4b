//! How long a call waits for the locks of others.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
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

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

/// The file whose lock is the turn among writers that wait.
fn turn_file(store: &DraftStore) -> PathBuf {
    let mut directory = store.path().as_os_str().to_owned();
    directory.push("-runners");
    PathBuf::from(directory).join("writer.turn")
}

/// Another process has the turn, for as long as the file is open.
fn hold_turn(store: &DraftStore) -> File {
    let path = turn_file(store);
    let turn = File::options().write(true).create_new(true).mode(0o600).open(path).unwrap();
    turn.lock().unwrap();
    turn
}

/// How often this process has the file open.
fn times_open(path: &Path) -> usize {
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let link = fs::read_link(entry.ok()?.path()).ok()?;
        (link == path).then_some(())
    });
    open.count()
}

#[track_caller]
fn until(mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "it does not come about");
        thread::yield_now();
    }
}

/// Otherwise the writers behind it would take it for stopped.
#[test]
fn a_writer_that_has_the_turn_shows_that_it_is_alive() {
    let (_directory, first) = store();
    let store = reopened(&first, LIMIT);
    let holder = hold(&first);
    thread::scope(|scope| {
        let waits = scope.spawn(|| store.submit(&draft("waits")));
        let mut times = BTreeSet::new();
        until(|| {
            times.extend(fs::metadata(turn_file(&first)).and_then(|it| it.modified()));
            times.len() >= 3
        });
        holder.execute_batch("COMMIT").unwrap();
        assert!(waits.join().unwrap().unwrap().created);
    });
}

/// Otherwise each writer after it would wait for a while, in vain.
#[test]
fn the_turn_of_a_stopped_process_is_replaced() {
    let (_directory, first) = store();
    let store = reopened(&first, LIMIT);
    let (holder, stopped) = (hold(&first), hold_turn(&first));
    let old = stopped.metadata().unwrap().ino();
    thread::scope(|scope| {
        let waits = scope.spawn(|| store.submit(&draft("waits")));
        until(|| fs::metadata(turn_file(&first)).is_ok_and(|it| it.ino() != old));
        holder.execute_batch("COMMIT").unwrap();
        assert!(waits.join().unwrap().unwrap().created);
    });
}

/// Who waits for the turn looks, from time to time, whether the file is still the one at the path.
#[test]
fn a_writer_that_waits_for_a_turn_that_was_replaced_waits_for_the_new_one() {
    let (_directory, first) = store();
    let store = reopened(&first, LIMIT);
    let (holder, turn) = (hold(&first), hold_turn(&first));
    let begun = Instant::now();
    thread::scope(|scope| {
        let waits = scope.spawn(|| store.submit(&draft("waits")));
        until(|| times_open(&turn_file(&first)) == 2);
        fs::remove_file(turn_file(&first)).unwrap();
        holder.execute_batch("COMMIT").unwrap();
        assert!(waits.join().unwrap().unwrap().created);
    });
    assert!(begun.elapsed() < LIMIT / 2, "{:?}", begun.elapsed());
    drop(turn);
}

/// The process that has the turn need not be the one that has the lock, and may not need it.
#[test]
fn a_writer_that_never_gets_the_turn_tries_a_last_time() {
    let (_directory, first) = store();
    let store = reopened(&first, Duration::from_secs(1));
    let (holder, turn) = (hold(&first), hold_turn(&first));
    thread::scope(|scope| {
        let waits = scope.spawn(|| store.submit(&draft("waits")));
        until(|| times_open(&turn_file(&first)) == 2);
        holder.execute_batch("COMMIT").unwrap();
        // Whoever has it goes on polling.
        until(|| turn.set_modified(SystemTime::now()).is_err() || waits.is_finished());
        assert!(waits.join().unwrap().unwrap().created);
    });
}

/// Where there can be no file for the turn, a writer polls.
#[test]
fn a_writer_waits_where_there_can_be_no_turn() {
    for refused in ["the directory", "the file"] {
        let (_directory, first) = store();
        let store = reopened(&first, LIMIT);
        let holder = hold(&first);
        let turn = turn_file(&first);
        match refused {
            "the file" => fs::create_dir(turn).unwrap(),
            _ => {
                fs::set_permissions(turn.parent().unwrap(), Permissions::from_mode(0o777)).unwrap()
            }
        }
        thread::scope(|scope| {
            let begun = Instant::now();
            let waits = scope.spawn(|| store.submit(&draft("waits")));
            // Not to synchronise: this is how long the lock is held.
            until(|| waits.is_finished() || begun.elapsed() > Duration::from_millis(300));
            holder.execute_batch("COMMIT").unwrap();
            assert!(waits.join().unwrap().unwrap().created, "{refused}");
        });
    }
}
