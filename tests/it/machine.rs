//! A fault of the machine is not the draft's: the draft is released, a result is kept, and
//! no error is counted.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use draftq::{
    Cancellation, Draft, DraftProcessingDecision, DraftProcessor, DraftState, DraftStore,
    LibrarianError, ProcessorError, Runner,
};
use rusqlite::Connection;

use crate::harness::{Sandbox, draft, finish, have, judged_by, store, uncharged};

/// Fails this many times as if no process could be started, then accepts.
struct Starved {
    times: usize,
    tried: Arc<AtomicUsize>,
}

impl DraftProcessor for Starved {
    fn process(&mut self, _draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        if self.tried.fetch_add(1, Ordering::SeqCst) < self.times {
            return Err(ProcessorError::new("spawn", "no process to spare").uncharged().into());
        }
        Ok(DraftProcessingDecision::Accepted)
    }
}

fn starved(times: usize) -> (Starved, Arc<AtomicUsize>) {
    let tried = Arc::new(AtomicUsize::new(0));
    (Starved { times, tried: Arc::clone(&tried) }, tried)
}

fn charged(store: &DraftStore) -> (u64, u64, u64) {
    let draft = store.query(&draftq::DraftQuery::default().limit(1));
    let record = draft.unwrap().rows.remove(0);
    (record.claims, record.errors, record.crashes)
}

#[test]
fn a_run_waits_for_the_machine_and_charges_no_draft() {
    let (_directory, store) = store();
    store.submit(&draft("a")).unwrap();
    let (mut processor, tried) = starved(3);
    let report = Runner::new(&store, "test").run_one(&mut processor, SystemTime::now());
    let summary = report.into_result().unwrap();
    assert_eq!((summary.claimed, summary.accepted, summary.errors), (1, 1, 0));
    assert_eq!(tried.load(Ordering::SeqCst), 4);
    assert_eq!(charged(&store), (1, 0, 0));
}

#[test]
fn a_run_cancelled_while_it_waits_releases_the_draft() {
    let (_directory, store) = store();
    store.submit(&draft("a")).unwrap();
    let cancellation = Cancellation::default();
    let (mut processor, tried) = starved(usize::MAX);
    let runner = Runner::new(&store, "test").cancellation(cancellation.clone());
    let report = std::thread::scope(|scope| {
        scope.spawn(move || {
            while tried.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            cancellation.cancel();
        });
        runner.run_one(&mut processor, SystemTime::now())
    });
    assert!(report.stopped_by.is_none(), "{:?}", report.stopped_by);
    assert_eq!((report.summary.claimed, report.summary.released), (1, 1));
    assert_eq!(report.summary.done(), 1);
    assert_eq!(charged(&store), (0, 0, 0));
    assert_eq!(store.list(DraftState::Pending).unwrap().len(), 1);
}

#[test]
fn a_run_ends_if_the_machine_stays_unusable() {
    let (_directory, store) = store();
    for text in ["a", "b", "c"] {
        store.submit(&draft(text)).unwrap();
    }
    let begun = Instant::now();
    let mut processors = [starved(usize::MAX).0, starved(usize::MAX).0];
    let report = Runner::new(&store, "test").run(&mut processors, SystemTime::now());
    let error = report.stopped_by.unwrap();
    assert!(!error.is_charged(), "{error:?}");
    assert!(begun.elapsed() > Duration::from_secs(9), "it gave up after {:?}", begun.elapsed());
    assert_eq!(report.summary.errors, 0);
    assert_eq!(store.list(DraftState::Pending).unwrap().len(), 3);
    assert_eq!(charged(&store), (0, 0, 0));
}

/// Accepts, but another writer takes the lock before the result can be stored.
struct Locks {
    path: std::path::PathBuf,
    writer: Arc<Mutex<Option<Connection>>>,
}

impl DraftProcessor for Locks {
    fn process(&mut self, _draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        let writer = Connection::open(&self.path).unwrap();
        writer.busy_timeout(Duration::from_secs(20)).unwrap();
        writer.execute_batch("BEGIN IMMEDIATE").unwrap();
        *self.writer.lock().unwrap() = Some(writer);
        Ok(DraftProcessingDecision::Accepted)
    }
}

/// With a busy time-out of zero, twelve tries were used up in a moment, and the result
/// was lost.
#[test]
fn a_result_is_kept_while_another_process_holds_the_lock() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    for busy_timeout in [Duration::ZERO, Duration::from_millis(20)] {
        let store = DraftStore::options().busy_timeout(busy_timeout).open(&path).unwrap();
        let id = draft(&format!("{busy_timeout:?}"));
        store.submit(&id).unwrap();
        let writer = Arc::new(Mutex::new(None));
        let mut processor = Locks { path: path.clone(), writer: Arc::clone(&writer) };
        let begun = Instant::now();
        let report = std::thread::scope(|scope| {
            scope.spawn(|| {
                // Not to synchronise: this is how long the lock is held.
                let held = Duration::from_secs(3);
                loop {
                    if begun.elapsed() > held && writer.lock().unwrap().take().is_some() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            Runner::new(&store, "test").run_one(&mut processor, SystemTime::now())
        });
        let summary = report.into_result().unwrap();
        assert_eq!((summary.accepted, summary.lost_claims), (1, 0));
        let (record, history, _) = store.inspect(id.id()).unwrap();
        assert_eq!((record.claims, record.crashes), (1, 0));
        let events: Vec<_> = history.iter().map(|event| event.event.as_str()).collect();
        assert_eq!(events, ["submitted", "claimed", "decided"]);
    }
}

/// More programs than there are descriptors for.
#[test]
fn too_few_descriptors_charge_no_draft() {
    let sandbox = Sandbox::new();
    let drafts: Vec<_> = (0..80).map(|number| draft(&format!("draft {number}"))).collect();
    sandbox.store().submit_many(&drafts).unwrap();
    // Each program takes some four descriptors of the runner's, and works long enough for others to
    // start beside it on a busy machine.
    let script = format!(
        r#"ulimit -n 100; exec {} run --json --jobs 60 -- sh -c 'read -r line; sleep 0.5; echo "{{\"decision\":\"accepted\"}}"'"#,
        env!("CARGO_BIN_EXE_draftq")
    );
    let mut command = sandbox.command_of("sh");
    command.args(["-c", &script]);
    let ran = finish(command, b"");
    let summary = &ran.expect(0).json()["summary"];
    assert_eq!((&summary["accepted"], &summary["errors"]), (&80.into(), &0.into()), "{summary}");
    let sql = Connection::open(sandbox.db()).unwrap();
    let charged: i64 = sql
        .query_row("SELECT sum(errors) + sum(crashes) + sum(claims <> 1) FROM drafts", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(charged, 0);
    // The log shows that the limit was reached.
    assert!(ran.err().contains("a processor cannot work at the moment"), "{}", ran.err());
}

/// The program runs already when there is no descriptor to watch it with. It has not been given the
/// draft yet, waits for it, and is killed.
#[test]
fn a_program_that_cannot_be_watched_is_killed_and_charges_no_draft() {
    if !have("strace") {
        return;
    }
    let sandbox = Sandbox::new();
    let id = sandbox.submit("one");
    let log = sandbox.path("log");
    let mut command = sandbox.command_of("strace");
    command.args(["-f", "-qq", "-o", log.to_str().unwrap(), "-e", "trace=pidfd_open", "-e"]);
    // The first one of each thread.
    command.args(["inject=pidfd_open:error=EMFILE:when=1", env!("CARGO_BIN_EXE_draftq"), "run"]);
    command.args(["--", "sh", "-c", r#"cat >/dev/null; echo '{"decision":"accepted"}'"#]);
    finish(command, b"").expect(0);
    assert!(std::fs::read_to_string(log).unwrap().contains("EMFILE"), "it was asked for");
    let shown = sandbox.show(&id);
    assert_eq!((&shown["state"], &shown["errors"]), (&"accepted".into(), &0.into()), "{shown}");
}

/// The disk is full when a result is stored: it is kept until there is space.
#[test]
fn a_result_is_kept_while_the_disk_is_full() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};

    let sandbox = Sandbox::new();
    let id = sandbox.submit("paid for");
    let (have, leave) = (sandbox.path("have"), sandbox.path("leave"));
    for fifo in [&have, &leave] {
        let made = std::process::Command::new("mkfifo").arg(fifo).status().unwrap();
        assert!(made.success());
    }
    let script = r#"echo have > "$HAVE"; read -r leave < "$LEAVE"; echo '{"decision":"accepted"}'"#;
    let mut command = sandbox.command(["run", "--json", "--", "sh", "-c", script]);
    command.env("HAVE", &have).env("LEAVE", &leave);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_child(&child);
    std::fs::read(&have).unwrap();
    // None of the runner's files may grow beyond its first byte.
    let old = prlimit(Some(pid), Resource::Fsize, Rlimit { current: Some(1), maximum: None });
    let old = old.unwrap();
    std::fs::write(&leave, "leave\n").unwrap();
    // It logs that the result could not be stored, and tries again.
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("could not be stored yet") {
        line.clear();
        assert_ne!(errors.read_line(&mut line).unwrap(), 0, "it ended");
    }
    prlimit(Some(pid), Resource::Fsize, old).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let shown = sandbox.show(&id);
    assert_eq!((&shown["state"], &shown["claims"]), (&"accepted".into(), &1.into()));
    assert_eq!((&shown["errors"], &shown["crashes"]), (&0.into(), &0.into()));
}

/// A worker that fails because of the machine does not end a run in which another gets results, for
/// however long that is.
#[test]
fn a_run_continues_while_one_worker_gets_results() {
    /// Longer than a run waits without any result.
    const FAILS_FOR: Duration = Duration::from_secs(11);
    let (_directory, store) = store();
    let mut drafts = vec![draft("the machine fails it")];
    drafts.extend((0..30).map(|number| draft(&format!("works {number}"))));
    store.submit_many(&drafts).unwrap();
    let begun = Instant::now();
    let judge = || {
        judged_by(|draft: &Draft| {
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
