//! Moves that must tell waiting runners, and moves that blame a draft or spare it.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant, SystemTime};

use draftq::Cancellation;
use draftq::MAX_NOTE_BYTES;
use draftq::Waiter;
use draftq::{Claim, Claimed};
use draftq::{Clock, from_unix_ms};
use draftq::{
    Draft, DraftProcessingDecision, DraftProcessor, DraftState, DraftStore, LibrarianError,
    Outcome, ProcessorError, Runner,
};
use draftq::{RunnerInfo, RunnerRegistration};
use rusqlite::Connection;

use crate::harness::{draft, draftq, store};

/// A processor that is a function.
struct Judge<F>(F);

impl<F: FnMut(&Draft) -> Result<Outcome, LibrarianError>> DraftProcessor for Judge<F> {
    fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        self.process_to_outcome(draft).map(|outcome| outcome.decision())
    }

    fn process_to_outcome(&mut self, draft: &Draft) -> Result<Outcome, LibrarianError> {
        (self.0)(draft)
    }
}

/// The file that is written to when waiting runners are to be told.
struct Wakeup(PathBuf);

impl Wakeup {
    /// A waiting runner makes it.
    fn of(store: &DraftStore) -> Self {
        drop(Waiter::new(store).unwrap());
        let mut directory = store.path().as_os_str().to_owned();
        directory.push("-runners");
        Self(PathBuf::from(directory).join("wakeup"))
    }

    /// Whether it was written to since this was last asked.
    fn told(&self) -> bool {
        let told = fs::metadata(&self.0).unwrap().len() > 0;
        File::options().write(true).open(&self.0).unwrap().set_len(0).unwrap();
        told
    }
}

fn claim(store: &DraftStore, runner: &RunnerRegistration) -> Claim {
    let mut snapshot = store.pending_snapshot().unwrap();
    match store.claim_next(runner, &mut snapshot).unwrap() {
        Some(Claimed::Draft(claim)) => *claim,
        other => panic!("expected a draft, got {other:?}"),
    }
}

fn uncharged() -> LibrarianError {
    ProcessorError::new("spawn", "no process").uncharged().into()
}

#[test]
fn what_comes_in_is_told() {
    let (_directory, store) = store();
    let wakeup = Wakeup::of(&store);
    assert!(!wakeup.told());
    let first = draft("one");
    store.submit(&first).unwrap();
    assert!(wakeup.told(), "submit");
    store.submit(&first).unwrap();
    assert!(!wakeup.told(), "nothing new came in");
    store.submit_many(&[draft("two")]).unwrap();
    assert!(wakeup.told(), "submit_many");
    let read = [Ok::<_, LibrarianError>(draft("three"))];
    store.submit_while_reading(read).unwrap();
    assert!(wakeup.told(), "submit_while_reading");
    let mut batches = store.batched_submit();
    batches.push(draft("four")).unwrap();
    assert!(!wakeup.told(), "it is not stored yet");
    batches.finish().unwrap();
    assert!(wakeup.told(), "batched_submit");
    store.transition(first.id(), DraftState::Pending, DraftState::Processing).unwrap();
    store.transition(first.id(), DraftState::Processing, DraftState::Failed).unwrap();
    store.requeue(&[first.id()]).unwrap();
    assert!(wakeup.told(), "requeue");
}

#[test]
fn what_is_given_back_is_told() {
    let (_directory, store) = store();
    let wakeup = Wakeup::of(&store);
    store.submit(&draft("one")).unwrap();
    let runner = store.register_runner("test").unwrap();
    wakeup.told();
    store.release(claim(&store, &runner)).unwrap();
    assert!(wakeup.told(), "release");
    store.record_error(claim(&store, &runner), &uncharged()).unwrap();
    assert!(wakeup.told(), "an error that is not charged");
    // A runner does the same with many at a time. It was told to stop at the first error, so it
    // does not wait for the machine.
    let mut tries = 0;
    let mut judge = Judge(|_: &Draft| {
        tries += 1;
        Err(uncharged())
    });
    let report =
        Runner::new(&store, "test").stop_at_error(true).run_one(&mut judge, SystemTime::now());
    assert_eq!((report.summary.released, tries), (1, 1));
    assert!(report.stopped_by.is_some());
    assert!(wakeup.told(), "an error that is not charged, in a run");
    // One that is charged waits for recovery.
    let error = ProcessorError::new("exit", "exit status 1").into();
    store.record_error(claim(&store, &runner), &error).unwrap();
    assert!(!wakeup.told());
}

#[test]
fn what_was_claimed_ahead_and_is_given_back_is_told() {
    // A slow machine may claim nothing ahead; then another try is made.
    for _ in 0..20 {
        let (_directory, store) = store();
        let drafts: Vec<Draft> = (0..200).map(|number| draft(&number.to_string())).collect();
        store.submit_many(&drafts).unwrap();
        let wakeup = Wakeup::of(&store);
        let cancellation = Cancellation::default();
        let mut begun = 0;
        let report = Runner::new(&store, "test").cancellation(cancellation.clone()).run_one(
            &mut Judge(|_: &Draft| {
                begun += 1;
                if begun == 12 {
                    cancellation.cancel();
                }
                Ok(DraftProcessingDecision::Accepted.into())
            }),
            SystemTime::now(),
        );
        assert_eq!((report.summary.claimed, report.summary.accepted), (12, 12));
        let sql = Connection::open(store.path()).unwrap();
        let released = "SELECT count(*) FROM history WHERE event = 'released'";
        let released: i64 = sql.query_row(released, [], |row| row.get(0)).unwrap();
        assert_eq!(store.list(DraftState::Pending).unwrap().len(), 188);
        if released > 0 {
            assert!(wakeup.told());
            return;
        }
    }
    panic!("nothing was ever claimed ahead");
}

/// A runner whose lock is free died with the one draft that it held.
#[test]
fn a_death_is_charged_to_the_only_draft_and_makes_it_a_suspect() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual(from_unix_ms(3_600_000));
    let store = DraftStore::options()
        .clock(clock.clone())
        .open(directory.path().join("drafts.db"))
        .unwrap();
    store.submit(&draft("poison")).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    let lock = "0123456789abcdef.lock";
    for (before, waits) in
        [(0, 0..1), (1, 7_500..12_501), (2, 15_000..25_001), (30, 2_700_000..4_500_001)]
    {
        sql.execute("UPDATE drafts SET due_at = 0, suspect = 0, crashes = ?1", [before]).unwrap();
        let runner = store.register_runner(RunnerInfo::new("test").max_errors(0)).unwrap();
        let _held = claim(&store, &runner);
        let file = directory.path().join("drafts.db-runners").join(lock);
        File::options().write(true).create(true).truncate(true).mode(0o600).open(file).unwrap();
        sql.execute("UPDATE runners SET lock_file = ?1 WHERE id = ?2", (lock, runner.id()))
            .unwrap();
        let recovery = store.recover(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!((recovery.to_pending.len(), recovery.to_failed.len()), (1, 0));
        let row = "SELECT crashes, suspect, due_at FROM drafts";
        let (crashes, suspect, due_at): (i64, i64, i64) =
            sql.query_row(row, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        assert_eq!((crashes, suspect), (before + 1, 1));
        let waited = if due_at == 0 { 0 } else { due_at - clock.now_ms() };
        assert!(waits.contains(&waited), "after {crashes} crashes it waits {waited} ms");
    }
}

/// While the claims of one runner are returned, those of another whose lock file is gone are not,
/// unless they are old enough.
#[test]
fn a_claim_whose_lock_file_is_gone_waits_until_it_is_old() {
    let (directory, store) = store();
    store.submit_many(&[draft("a"), draft("b")]).unwrap();
    let (ended, lost) =
        (store.register_runner("ended").unwrap(), store.register_runner("lost").unwrap());
    let _held = [claim(&store, &ended), claim(&store, &lost)];
    drop(ended);
    for entry in fs::read_dir(directory.path().join("drafts.db-runners")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let recovery = store.recover(SystemTime::UNIX_EPOCH).unwrap();
    let returned: Vec<_> = recovery.to_pending.iter().map(|moved| moved.id).collect();
    assert_eq!(returned, [draft("a").id()]);
    let recovery = store.recover(SystemTime::now() + Duration::from_secs(1)).unwrap();
    let returned: Vec<_> = recovery.to_pending.iter().map(|moved| moved.id).collect();
    assert_eq!(returned, [draft("b").id()]);
}

/// Drafts that erred together are not all tried again at the same moment.
#[test]
fn retries_are_spread() {
    let (_directory, store) = store();
    let drafts: Vec<Draft> = (0..20).map(|number| draft(&number.to_string())).collect();
    store.submit_many(&drafts).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("UPDATE drafts SET state = 'processing', claimed_at = 1, errors = 2", []).unwrap();
    assert_eq!(store.recover(SystemTime::now()).unwrap().to_pending.len(), 20);
    let times = "SELECT count(DISTINCT due_at) FROM drafts WHERE due_at > 0";
    let times: i64 = sql.query_row(times, [], |row| row.get(0)).unwrap();
    assert!(times > 1);
}

/// A clock that was set back leaves claims in the future. One whose row cannot be changed stops no
/// other.
#[test]
fn claims_of_the_future_begin_to_age_now() {
    let (_directory, store) = store();
    store.submit_many(&[draft("a"), draft("b")]).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute_batch(
        "UPDATE drafts SET state = 'processing', claimed_at = 253402300799999;
         CREATE TRIGGER stays BEFORE UPDATE OF claimed_at ON drafts WHEN OLD.seq = 1
         BEGIN SELECT RAISE(ABORT, 'it stays'); END;",
    )
    .unwrap();
    store.recover(SystemTime::UNIX_EPOCH).unwrap();
    let future = "SELECT group_concat(seq) FROM drafts WHERE claimed_at = 253402300799999";
    let future: String = sql.query_row(future, [], |row| row.get(0)).unwrap();
    assert_eq!(future, "1");
}

/// The rows of runners that ended go in the end, but never the newest, from which the next id
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

/// A run that was asked to end while others hold the lock stores its result all the same.
#[test]
fn a_result_is_kept_by_a_run_that_was_asked_to_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    let store = DraftStore::options().busy_timeout(Duration::ZERO).open(&path).unwrap();
    let kept = draft("a");
    store.submit(&kept).unwrap();
    let cancellation = Cancellation::default();
    let mut holder = None;
    let mut judge = Judge(|_: &Draft| {
        let sql = Connection::open(&path).unwrap();
        sql.execute_batch("BEGIN IMMEDIATE").unwrap();
        cancellation.cancel();
        holder = Some(std::thread::spawn(move || {
            // For longer than the first tries take.
            std::thread::sleep(Duration::from_millis(200));
            sql.execute_batch("ROLLBACK").unwrap();
        }));
        Ok(DraftProcessingDecision::Accepted.into())
    });
    let runner = Runner::new(&store, "test").cancellation(cancellation.clone());
    let report = runner.run_one(&mut judge, SystemTime::now());
    holder.unwrap().join().unwrap();
    assert!(report.stopped_by.is_none(), "{:?}", report.stopped_by);
    assert!(store.load(DraftState::Accepted, kept.id()).is_ok());
}

/// A runner that could not say that it ended leaves the proof.
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
    // By its free lock, and not by age.
    let recovery = store.recover(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(recovery.to_pending.len(), 1);
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
    let mut accepts = Judge(|_: &Draft| Ok(DraftProcessingDecision::Accepted.into()));
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

#[test]
fn a_delay_is_one_however_short_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual(from_unix_ms(3_600_000));
    let store =
        DraftStore::options().clock(clock).open(directory.path().join("drafts.db")).unwrap();
    let later = draft("a");
    store.submit(&later).unwrap();
    let runner = store.register_runner("test").unwrap();
    let outcome =
        Outcome::new(DraftProcessingDecision::Deferred).with_retry_after(Duration::from_micros(1));
    store.finish(claim(&store, &runner), &outcome).unwrap();
    assert_eq!(store.record(later.id()).unwrap().0.due_at_unix_ms, Some(3_600_001));
}

/// Whoever tidies up leaves a lock that is held, also one of a runner that has no row yet, and the
/// free lock of a runner that still owns something: it is the proof that the runner is dead.
#[test]
fn tidying_up_leaves_held_locks_and_proofs() {
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

/// Claims that nobody holds go by their age: that of the clock, but no more than the machine ran.
#[test]
fn the_age_of_a_claim_is_no_more_than_the_machine_ran() {
    const NOW: i64 = 3_600_000;
    let directory = tempfile::tempdir().unwrap();
    // The machine has just booted.
    let clock = Clock::manual(from_unix_ms(NOW));
    let store =
        DraftStore::options().clock(clock).open(directory.path().join("drafts.db")).unwrap();
    store.submit(&draft("a")).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    for (claimed_at, booted_at, stale) in [
        // Not known when the machine had booted: the clock alone tells.
        (NOW - 60_000, None, true),
        (NOW - 59_999, None, false),
        // It has booted since.
        (NOW - 60_000, Some(0), true),
        (NOW - 59_999, Some(0), false),
        // It has not, and the clock was set forward.
        (NOW - 60_000, Some(NOW - 60_000), false),
    ] {
        sql.execute(
            "UPDATE drafts SET state = 'processing', claimed_at = ?1, claim_booted_at = ?2",
            (claimed_at, booted_at),
        )
        .unwrap();
        let recovery = store.recover(from_unix_ms(NOW - 60_000)).unwrap();
        assert_eq!(recovery.to_pending.len(), usize::from(stale), "{claimed_at} {booted_at:?}");
        sql.execute("UPDATE drafts SET state = 'pending', claimed_at = NULL", []).unwrap();
    }
}

/// What a draft did under an earlier runner is not held against it when others die or end.
#[test]
fn a_draft_is_not_failed_for_the_end_of_a_runner_that_it_is_not_to_blame_for() {
    for (end, suspect) in [
        // Nothing is known of the runner: one of the two may be to blame.
        ("DELETE FROM runners", 1),
        // It ended in good order.
        ("UPDATE runners SET ended_at = 1", 0),
    ] {
        let (_directory, store) = store();
        store.submit_many(&[draft("a"), draft("b")]).unwrap();
        let sql = Connection::open(store.path()).unwrap();
        // Its errors have reached the budget of the runner that it erred under last.
        sql.execute("UPDATE drafts SET errors = 3, error_budget = 1", []).unwrap();
        let runner = store.register_runner("test").unwrap();
        let _held = [claim(&store, &runner), claim(&store, &runner)];
        sql.execute(end, []).unwrap();
        let recovery = store.recover(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!((recovery.to_pending.len(), recovery.to_failed.len()), (2, 0), "{end}");
        let rows = "SELECT group_concat(suspect || ' ' || crashes || ' ' || errors || ' ' || due_at) \
                    FROM drafts";
        let rows: String = sql.query_row(rows, [], |row| row.get(0)).unwrap();
        assert_eq!(rows, format!("{suspect} 0 3 0,{suspect} 0 3 0"), "{end}");
    }
}

/// Several workers, and yet a suspect is in hand beside no other draft: neither those before it
/// nor those after it.
#[test]
fn a_suspect_is_processed_beside_no_other() {
    let (_directory, store) = store();
    let drafts = ["before", "suspect", "after", "last"].map(draft);
    store.submit_many(&drafts).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("UPDATE drafts SET suspect = 1 WHERE seq = 2", []).unwrap();
    let judge = || {
        let sql = Connection::open(store.path()).unwrap();
        Judge(move |draft: &Draft| {
            let begun = Instant::now();
            // For a while, in which the other workers would claim what they are allowed to.
            while ["before", "suspect"].contains(&draft.raw_text())
                && begun.elapsed() < Duration::from_millis(200)
            {
                let held = "SELECT count(*) FROM drafts WHERE state = 'processing'";
                let held: i64 = sql.query_row(held, [], |row| row.get(0)).unwrap();
                assert_eq!(held, 1, "beside {:?}", draft.raw_text());
            }
            Ok(DraftProcessingDecision::Accepted.into())
        })
    };
    let mut processors = [judge(), judge(), judge()];
    let report = Runner::new(&store, "test").run(&mut processors, SystemTime::now());
    assert_eq!(report.into_result().unwrap().accepted, 4);
}

/// Another takes a run for dead, and says so. It registers anew and goes on.
#[test]
fn a_run_whose_runner_was_ended_registers_again() {
    let (_directory, store) = store();
    store.submit_many(&["one", "two", "three"].map(draft)).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    let mut judge = Judge(|draft: &Draft| {
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

/// A draft takes long, and what was claimed behind it is left to others.
#[test]
fn what_was_claimed_ahead_is_given_back_while_a_draft_takes_long() {
    let (_directory, store) = store();
    let drafts: Vec<Draft> = (0..200).map(|number| draft(&number.to_string())).collect();
    store.submit_many(&drafts).unwrap();
    let other = store.register_runner("other").unwrap();
    let mut begun = 0;
    let mut judge = Judge(|_: &Draft| {
        begun += 1;
        if begun == 12 {
            let waiting = Instant::now();
            while store.load(DraftState::Pending, drafts[12].id()).is_err() {
                assert!(waiting.elapsed() < Duration::from_secs(10), "it is kept from others");
            }
            store.release(claim(&store, &other)).unwrap();
        }
        Ok(DraftProcessingDecision::Accepted.into())
    });
    let report = Runner::new(&store, "test").run_one(&mut judge, SystemTime::now());
    assert_eq!(report.into_result().unwrap().accepted, 200);
}

/// A suspicion ends when the draft has shown that it does not bring its runner down.
#[test]
fn a_suspicion_lasts_until_the_draft_was_processed() {
    let (_directory, store) = store();
    store.submit(&draft("suspect")).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("UPDATE drafts SET suspect = 1, defers_in_a_row = 3", []).unwrap();
    let row = || -> (i64, i64) {
        let row = "SELECT suspect, defers_in_a_row FROM drafts";
        sql.query_row(row, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    let runner = store.register_runner("test").unwrap();
    store.release(claim(&store, &runner)).unwrap();
    assert_eq!(row(), (1, 3), "it was not begun");
    store.record_error(claim(&store, &runner), &uncharged()).unwrap();
    assert_eq!(row(), (1, 3), "the machine failed it");
    let error = ProcessorError::new("exit", "exit status 1").into();
    store.record_error(claim(&store, &runner), &error).unwrap();
    assert_eq!(row(), (0, 0), "it erred, and that is no deferral");
    for (decision, deferrals) in
        [(DraftProcessingDecision::Skipped, 0), (DraftProcessingDecision::Deferred, 4)]
    {
        let other = draft(decision.as_str());
        store.submit(&other).unwrap();
        let only = format!("WHERE id = '{}'", other.id());
        sql.execute(&format!("UPDATE drafts SET suspect = 1, defers_in_a_row = 3 {only}"), [])
            .unwrap();
        store.finish(claim(&store, &runner), &decision.into()).unwrap();
        let row = format!("SELECT suspect, defers_in_a_row FROM drafts {only}");
        let row = sql.query_row(&row, [], |row| Ok((row.get(0)?, row.get(1)?)));
        assert_eq!(row, Ok((0, deferrals)), "{decision:?}");
    }
}

/// Also if it is ended under the file version's name for it.
#[test]
fn a_suspicion_ends_with_a_transition() {
    let (_directory, store) = store();
    let suspect = draft("suspect");
    store.submit(&suspect).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("UPDATE drafts SET suspect = 1, defers_in_a_row = 3", []).unwrap();
    store.transition(suspect.id(), DraftState::Pending, DraftState::Processing).unwrap();
    store.transition(suspect.id(), DraftState::Processing, DraftState::Pending).unwrap();
    let row = "SELECT suspect, defers_in_a_row FROM drafts";
    let row: (i64, i64) = sql.query_row(row, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(row, (0, 0));
}

/// A run that the store ended leaves its claims, and the next run of the same runner, in the same
/// process, gets them back: they do not look like those of a live runner.
#[test]
fn what_a_failed_run_left_behind_is_recovered_by_the_next_run_of_the_same_runner() {
    let (_directory, store) = store();
    for text in ["a", "b", "c"] {
        store.submit(&draft(text)).unwrap();
    }
    let sql = Connection::open(store.path()).unwrap();
    sql.busy_timeout(Duration::from_secs(60)).unwrap();
    let version: i64 = sql.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    let runner = Runner::new(&store, "test");
    let mut spoils = Judge(|_: &Draft| {
        sql.pragma_update(None, "user_version", 99).unwrap();
        Ok(DraftProcessingDecision::Accepted.into())
    });
    let report = runner.run_one(&mut spoils, SystemTime::now());
    let stopped_by = report.stopped_by;
    assert!(matches!(stopped_by, Some(LibrarianError::ForeignDatabase { .. })), "{stopped_by:?}");
    sql.pragma_update(None, "user_version", version).unwrap();
    let mut accepts = Judge(|_: &Draft| Ok(DraftProcessingDecision::Accepted.into()));
    let summary = runner.run_one(&mut accepts, SystemTime::now()).into_result().unwrap();
    assert_eq!(summary.accepted, 3);
}

/// Two workers err one after the other, and the first error is the one that is reported.
#[test]
fn a_run_is_ended_by_its_first_error() {
    let (_directory, store) = store();
    for text in ["first", "second"] {
        store.submit(&draft(text)).unwrap();
    }
    let (stored, first_is_stored) = std::sync::mpsc::channel();
    let runner = Runner::new(&store, "test").stop_at_error(true).observer(move |summary| {
        if summary.errors == 1 {
            let _ = stored.send(());
        }
    });
    let both_begun = Barrier::new(2);
    let first_is_stored = Mutex::new(first_is_stored);
    let judge = || {
        Judge(|draft: &Draft| {
            both_begun.wait();
            let class = match draft.raw_text() {
                "first" => "first",
                _ => {
                    first_is_stored.lock().unwrap().recv().unwrap();
                    "second"
                }
            };
            Err(ProcessorError::new(class, "it cannot").into())
        })
    };
    let report = runner.run(&mut [judge(), judge()], SystemTime::now());
    assert_eq!(report.summary.errors, 2);
    assert_eq!(report.stopped_by.unwrap().class(), "first");
}

#[test]
fn a_run_that_is_asked_to_end_asks_the_processor_no_more() {
    let (_directory, store) = store();
    store.submit(&draft("the machine fails it")).unwrap();
    let cancellation = Cancellation::default();
    let mut tries = 0;
    let mut judge = Judge(|_: &Draft| {
        tries += 1;
        cancellation.cancel();
        Err(uncharged())
    });
    let runner = Runner::new(&store, "test").cancellation(cancellation.clone());
    let report = runner.run_one(&mut judge, SystemTime::now());
    assert_eq!((report.summary.released, tries), (1, 1));
    assert!(report.stopped_by.is_none(), "{:?}", report.stopped_by);
    assert_eq!(store.list(DraftState::Pending).unwrap().len(), 1);
}

/// One worker that the machine fails does not end a run in which another comes to results, for
/// however long that is.
#[test]
fn a_run_in_which_somebody_comes_to_results_goes_on() {
    /// Longer than a run waits if nobody comes to a result.
    const FAILS_FOR: Duration = Duration::from_secs(11);
    let (_directory, store) = store();
    let mut drafts = vec![draft("the machine fails it")];
    drafts.extend((0..30).map(|number| draft(&format!("works {number}"))));
    store.submit_many(&drafts).unwrap();
    let begun = Instant::now();
    let judge = || {
        Judge(|draft: &Draft| {
            if draft.raw_text().starts_with("works") {
                // Slow work.
                std::thread::sleep(Duration::from_millis(450));
            } else if begun.elapsed() < FAILS_FOR {
                return Err(uncharged());
            }
            Ok(DraftProcessingDecision::Accepted.into())
        })
    };
    let mut processors = [judge(), judge()];
    let report = Runner::new(&store, "test").run(&mut processors, SystemTime::now());
    assert!(report.stopped_by.is_none(), "{:?}", report.stopped_by);
    assert_eq!(report.summary.accepted, drafts.len());
}

#[test]
fn a_requeue_begins_anew() {
    let (_directory, store) = store();
    let draft = draft("again");
    store.submit(&draft).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute_batch(
        "UPDATE drafts SET errors = 3, crashes = 2, defers_in_a_row = 4, suspect = 1, \
             error_budget = 5, last_error_class = 'exit', last_error = 'exit status 1'; \
         UPDATE drafts SET state = 'failed', decision = 'failed', decided_by = 'me', note = 'n', \
             output = '{}', usage = '{}';",
    )
    .unwrap();
    store.requeue(&[draft.id()]).unwrap();
    let left = "SELECT json_array(state, errors, crashes, defers_in_a_row, suspect, error_budget, \
                last_error_class, last_error, decision, decided_by, note, output, usage, due_at) \
                FROM drafts";
    let left: String = sql.query_row(left, [], |row| row.get(0)).unwrap();
    assert_eq!(left, r#"["pending",0,0,0,0,null,null,null,null,null,null,null,null,0]"#);
}

#[test]
fn a_damaged_draft_is_charged_and_let_go_by_its_runner() {
    for damage in [
        "DROP TRIGGER draft_texts_are_fixed; UPDATE draft_texts SET raw_text = 'x'",
        // No part of the id, but of what a processor is given.
        r#"DROP TRIGGER drafts_identity_is_fixed; UPDATE drafts SET context_tags = '["\ud800"]'"#,
    ] {
        let (_directory, store) = store();
        let damaged = draft("damaged");
        store.submit(&damaged).unwrap();
        let sql = Connection::open(store.path()).unwrap();
        sql.execute_batch(damage).unwrap();
        let runner = store.register_runner("test").unwrap();
        let mut snapshot = store.pending_snapshot().unwrap();
        let claimed = store.claim_next(&runner, &mut snapshot).unwrap();
        assert!(
            matches!(claimed, Some(Claimed::Unreadable { id, .. }) if id == damaged.id()),
            "{claimed:?}"
        );
        let row = "SELECT json_array(state, owner, claim_token IS NULL, errors, last_error_class) \
                   FROM drafts";
        let row: String = sql.query_row(row, [], |row| row.get(0)).unwrap();
        assert_eq!(row, r#"["processing",null,1,1,"damaged"]"#, "{damage}");
    }
}

#[test]
fn an_error_is_stored_up_to_a_length() {
    let (_directory, store) = store();
    let long = draft("long");
    store.submit(&long).unwrap();
    let runner = store.register_runner("test").unwrap();
    let error = ProcessorError::new("exit", "é".repeat(MAX_NOTE_BYTES));
    store.record_error(claim(&store, &runner), &error.into()).unwrap();
    let stored = store.record(long.id()).unwrap().0.last_error.unwrap();
    assert!((8 * 1024 - 1..=8 * 1024).contains(&stored.len()), "{}", stored.len());
}

#[test]
fn a_short_hold_does_not_end_a_longer_one() {
    const LONG: Duration = Duration::from_millis(300);
    let (_directory, store) = store();
    let drafts = [draft("long"), draft("short"), draft("last")];
    store.submit_many(&drafts).unwrap();
    let (long, reader) = (drafts[0].id(), store.clone());
    let short_begun = AtomicBool::new(false);
    let judge = || {
        let (reader, short_begun) = (reader.clone(), &short_begun);
        Judge(move |draft: &Draft| {
            let accepted = Outcome::new(DraftProcessingDecision::Accepted);
            let now = microseconds();
            Ok(match draft.raw_text() {
                "long" => {
                    while !short_begun.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                    accepted.with_hold(LONG).with_note(&now)
                }
                "short" => {
                    short_begun.store(true, Ordering::SeqCst);
                    // Not before the long hold is known.
                    while reader.load(DraftState::Accepted, long).is_err() {
                        std::thread::yield_now();
                    }
                    accepted.with_hold(Duration::ZERO)
                }
                _ => accepted.with_note(&now),
            })
        })
    };
    let mut processors = [judge(), judge()];
    let report = Runner::new(&store, "test").run(&mut processors, SystemTime::now());
    assert_eq!(report.summary.accepted, 3);
    let noted = |draft: &Draft| -> u128 {
        store.record(draft.id()).unwrap().0.note.unwrap().parse().unwrap()
    };
    let between = noted(&drafts[2]) - noted(&drafts[0]);
    assert!(between >= LONG.as_micros(), "{between} µs");
}

/// What was claimed ahead waits as well.
#[test]
fn a_hold_keeps_what_was_claimed_ahead() {
    const HOLD: Duration = Duration::from_millis(300);
    for _ in 0..20 {
        let (_directory, store) = store();
        let drafts: Vec<Draft> = (0..200).map(|number| draft(&number.to_string())).collect();
        store.submit_many(&drafts).unwrap();
        let sql = Connection::open(store.path()).unwrap();
        let (mut begun, mut held_since, mut ahead) = (0, None, 0);
        Runner::new(&store, "test")
            .limit(13)
            .run_one(
                &mut Judge(|_: &Draft| {
                    begun += 1;
                    let outcome = Outcome::new(DraftProcessingDecision::Accepted);
                    if begun == 12 {
                        let claimed = "SELECT count(*) FROM drafts WHERE state = 'processing' \
                                       AND seq > 12";
                        ahead = sql.query_row(claimed, [], |row| row.get(0)).unwrap();
                        held_since = Some(Instant::now());
                        return Ok(outcome.with_hold(HOLD));
                    }
                    if let Some(since) = held_since {
                        assert!(since.elapsed() >= HOLD, "{:?}", since.elapsed());
                    }
                    Ok(outcome)
                }),
                SystemTime::now(),
            )
            .into_result()
            .unwrap();
        assert_eq!(begun, 13);
        if ahead > 0 {
            return;
        }
    }
    panic!("nothing was ever claimed ahead");
}

/// Microseconds by a clock that never goes back.
fn microseconds() -> String {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed().as_micros().to_string()
}
