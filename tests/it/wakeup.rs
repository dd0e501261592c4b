//! Moves that make a draft claimable wake one waiting runner for each draft.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use draftq::{
    Cancellation, Draft, DraftProcessingDecision, DraftState, DraftStore, LibrarianError,
    ProcessorError, Runner, Waiter,
};
use rusqlite::Connection;

use crate::harness::{claim, draft, judged_by, store, uncharged};

/// The files of four waiting runners.
struct Waiting {
    directory: PathBuf,
    files: Vec<(PathBuf, File)>,
}

impl Waiting {
    fn beside(store: &DraftStore) -> Self {
        // The first waiting runner creates the marker that others may wait.
        drop(Waiter::new(store).unwrap());
        let mut directory = store.path().as_os_str().to_owned();
        directory.push("-runners");
        let mut waiting = Self { directory: PathBuf::from(directory), files: Vec::new() };
        waiting.woken();
        waiting
    }

    /// How many were woken since the last call. They wait again.
    fn woken(&mut self) -> usize {
        let before = self.files.len();
        self.files.retain(|(path, _)| path.exists());
        let woken = before - self.files.len();
        while self.files.len() < 4 {
            let path = self.directory.join(format!("{:016x}.waiting", fastrand::u64(..)));
            let mut create = File::options();
            let file = create.write(true).create_new(true).mode(0o600).open(&path).unwrap();
            file.lock().unwrap();
            self.files.push((path, file));
        }
        woken
    }
}

#[test]
fn each_new_draft_wakes_one_waiting_runner() {
    let (_directory, store) = store();
    let mut waiting = Waiting::beside(&store);
    assert_eq!(waiting.woken(), 0);
    let first = draft("one");
    store.submit(&first).unwrap();
    assert_eq!(waiting.woken(), 1, "submit");
    store.submit(&first).unwrap();
    assert_eq!(waiting.woken(), 0, "nothing new came in");
    store.submit_many(&[draft("two")]).unwrap();
    assert_eq!(waiting.woken(), 1, "submit_many");
    let read = [Ok::<_, LibrarianError>(draft("three"))];
    store.submit_while_reading(read).unwrap();
    assert_eq!(waiting.woken(), 1, "submit_while_reading");
    let mut batches = store.batched_submit();
    batches.push(draft("four")).unwrap();
    assert_eq!(waiting.woken(), 0, "it is not stored yet");
    batches.finish().unwrap();
    assert_eq!(waiting.woken(), 1, "batched_submit");
    store.transition(first.id(), DraftState::Pending, DraftState::Processing).unwrap();
    store.transition(first.id(), DraftState::Processing, DraftState::Failed).unwrap();
    store.requeue(&[first.id()]).unwrap();
    assert_eq!(waiting.woken(), 1, "requeue");
}

#[test]
fn a_release_wakes_one_waiting_runner() {
    let (_directory, store) = store();
    let mut waiting = Waiting::beside(&store);
    store.submit(&draft("one")).unwrap();
    let runner = store.register_runner("test").unwrap();
    waiting.woken();
    store.release(claim(&store, &runner)).unwrap();
    assert_eq!(waiting.woken(), 1, "release");
    store.record_error(claim(&store, &runner), &uncharged()).unwrap();
    assert_eq!(waiting.woken(), 1, "an error that is not charged");
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
    assert_eq!(waiting.woken(), 1, "an error that is not charged, in a run");
    // A draft whose error is charged waits for recovery.
    let error = ProcessorError::new("exit", "exit status 1").into();
    store.record_error(claim(&store, &runner), &error).unwrap();
    assert_eq!(waiting.woken(), 0);
}

#[test]
fn a_release_of_drafts_claimed_ahead_wakes_waiting_runners() {
    // On a slow machine nothing may be claimed ahead; then try again.
    for _ in 0..20 {
        let (_directory, store) = store();
        let drafts: Vec<Draft> = (0..200).map(|number| draft(&number.to_string())).collect();
        store.submit_many(&drafts).unwrap();
        let mut waiting = Waiting::beside(&store);
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
            let released = usize::try_from(released).unwrap();
            assert_eq!(waiting.woken(), released.min(4));
            return;
        }
    }
    panic!("nothing was ever claimed ahead");
}
