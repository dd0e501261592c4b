//! Runs that end early: by cancellation, a panic or an error.

use std::panic::AssertUnwindSafe;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, SystemTime};

use draftq::{
    Cancellation, Draft, DraftProcessingDecision, DraftState, DraftStore, LibrarianError,
    ProcessorError, Runner,
};
use rusqlite::Connection;

use crate::harness::{accept, draft, err, judged_by, store, timed_store, uncharged};

/// A run that is cancelled while another process holds the lock still stores its result.
#[test]
fn a_cancelled_run_stores_its_result_when_the_lock_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    let store = DraftStore::options().busy_timeout(Duration::ZERO).open(&path).unwrap();
    let kept = draft("a");
    store.submit(&kept).unwrap();
    let cancellation = Cancellation::default();
    let mut holder = None;
    let mut judge = judged_by(|_: &Draft| {
        let sql = Connection::open(&path).unwrap();
        sql.execute_batch("BEGIN IMMEDIATE").unwrap();
        cancellation.cancel();
        holder = Some(std::thread::spawn(move || {
            // Longer than the first tries take.
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

#[test]
fn a_cancelled_run_does_not_call_the_processor_again() {
    let (_directory, store) = store();
    store.submit(&draft("the machine fails it")).unwrap();
    let cancellation = Cancellation::default();
    let mut tries = 0;
    let mut judge = judged_by(|_: &Draft| {
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

#[test]
fn a_panic_ends_the_run_and_its_claims_are_recovered() {
    let timed = timed_store();
    let texts: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let drafts = timed.submit(&texts);
    let judge = || {
        judged_by(|draft: &Draft| {
            assert_ne!(draft.raw_text(), "20", "the processor's own fault");
            std::thread::sleep(Duration::from_micros(200));
            accept(draft)
        })
    };
    let runner = timed.runner();
    for workers in [1, 3] {
        let mut judges: Vec<_> = (0..workers).map(|_| judge()).collect();
        let run = || runner.run(&mut judges, timed.clock.now());
        std::panic::catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        let in_hand = timed.store.list(DraftState::Processing).unwrap();
        assert_eq!(in_hand, std::slice::from_ref(&drafts[20]));
        assert!(!timed.store.list(DraftState::Pending).unwrap().is_empty());
        // The panic is the error of this draft alone.
        let (record, ..) = timed.store.inspect(drafts[20].id()).unwrap();
        assert_eq!(record.last_error_class.as_deref(), Some("panic"));
        assert_eq!(record.owner, None);
        timed.pass(Duration::from_secs(60));
        let recovery = timed.store.recover(timed.clock.now() - Duration::from_secs(60)).unwrap();
        assert_eq!(recovery.to_pending.len(), 1);
        timed.pass(Duration::from_secs(3600));
    }
    assert!(runner.run_one(&mut judged_by(accept), timed.clock.now()).stopped_by.is_none());
    assert_eq!(timed.store.list(DraftState::Accepted).unwrap().len(), 500);
}

#[test]
fn a_panic_of_the_observer_ends_the_run() {
    let timed = timed_store();
    timed.submit(&["1", "2", "3"]);
    let runner = timed.runner().observer(|summary| assert_eq!(summary.done(), 0));
    let mut judges = [judged_by(accept), judged_by(accept)];
    let run = || runner.run(&mut judges, timed.clock.now());
    std::panic::catch_unwind(AssertUnwindSafe(run)).unwrap_err();
    // The claims are recovered, and the other drafts are still pending.
    timed.run(&mut judged_by(accept));
    assert_eq!(timed.store.list(DraftState::Accepted).unwrap().len(), 3);
}

#[test]
fn an_error_after_a_lost_claim_ends_run_once() {
    let timed = timed_store();
    let drafts = timed.submit(&["taken away", "pending"]);
    let outside = rusqlite::Connection::open(timed.store.path()).unwrap();
    let mut judge = judged_by(|draft: &Draft| {
        // An operator moves it back by hand.
        let sql = "UPDATE drafts SET state = 'pending', claimed_at = NULL, claim_token = NULL, \
                       owner = NULL WHERE id = ?1";
        outside.execute(sql, [draft.id().to_hex()]).unwrap();
        err(draft)
    });
    let runner = timed.runner().stop_at_error(true);
    let report = runner.run_one(&mut judge, timed.clock.now());
    assert_eq!((report.summary.lost_claims, report.summary.errors), (1, 0));
    assert!(matches!(report.stopped_by, Some(LibrarianError::LlmInvocationFailed { .. })));
    assert_eq!(timed.state(&drafts[0]), DraftState::Pending);
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
        judged_by(|draft: &Draft| {
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
