//! Moves that make a draft claimable notify waiting runners.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::SystemTime;

use draftq::{
    Cancellation, Draft, DraftProcessingDecision, DraftState, DraftStore, LibrarianError,
    ProcessorError, Runner, Waiter,
};
use rusqlite::Connection;

use crate::harness::{claim, draft, judged_by, store, uncharged};

/// The wakeup file, to which each notification is written.
struct Wakeup(PathBuf);

impl Wakeup {
    /// A waiting runner creates it.
    fn of(store: &DraftStore) -> Self {
        drop(Waiter::new(store).unwrap());
        let mut directory = store.path().as_os_str().to_owned();
        directory.push("-runners");
        Self(PathBuf::from(directory).join("wakeup"))
    }

    /// Whether it was written to since the last call.
    fn told(&self) -> bool {
        let told = fs::metadata(&self.0).unwrap().len() > 0;
        File::options().write(true).open(&self.0).unwrap().set_len(0).unwrap();
        told
    }
}

#[test]
fn a_submit_notifies_waiting_runners() {
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
fn a_release_notifies_waiting_runners() {
    let (_directory, store) = store();
    let wakeup = Wakeup::of(&store);
    store.submit(&draft("one")).unwrap();
    let runner = store.register_runner("test").unwrap();
    wakeup.told();
    store.release(claim(&store, &runner)).unwrap();
    assert!(wakeup.told(), "release");
    store.record_error(claim(&store, &runner), &uncharged()).unwrap();
    assert!(wakeup.told(), "an error that is not charged");
    // A runner does the same with many at a time. It stops at the first error, so it
    // does not wait for the machine.
    let mut tries = 0;
    let mut judge = judged_by(|_: &Draft| {
        tries += 1;
        Err(uncharged())
    });
    let report =
        Runner::new(&store, "test").stop_at_error(true).run_one(&mut judge, SystemTime::now());
    assert_eq!((report.summary.released, tries), (1, 1));
    assert!(report.stopped_by.is_some());
    assert!(wakeup.told(), "an error that is not charged, in a run");
    // A draft whose error is charged waits for recovery.
    let error = ProcessorError::new("exit", "exit status 1").into();
    store.record_error(claim(&store, &runner), &error).unwrap();
    assert!(!wakeup.told());
}

#[test]
fn a_release_of_drafts_claimed_ahead_notifies_waiting_runners() {
    // On a slow machine nothing may be claimed ahead; then try again.
    for _ in 0..20 {
        let (_directory, store) = store();
        let drafts: Vec<Draft> = (0..200).map(|number| draft(&number.to_string())).collect();
        store.submit_many(&drafts).unwrap();
        let wakeup = Wakeup::of(&store);
        let cancellation = Cancellation::default();
        let mut begun = 0;
        let report = Runner::new(&store, "test").cancellation(cancellation.clone()).run_one(
            &mut judged_by(|_: &Draft| {
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
