//! `pause` and `resume`: holds that an operator sets.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, thread};

use draftq::{
    Cancellation, Draft, DraftState, DraftStore, ErrorKind, HoldKind, LibrarianError, NewHold,
    Outcome, Runner, Waiter, Wake,
};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Sandbox, accept, draft, judged_by, store};

const LIMIT: Duration = Duration::from_secs(60);

/// `run` with these options, without a wait for the end of a hold.
fn run<'a>(options: &[&'a str]) -> Vec<&'a str> {
    let program = ["--hold-wait-secs", "0", "--exit-code", "--", "true"];
    [&["run"], options, &program].concat()
}

#[test]
fn a_run_at_a_hold_says_until_when_and_why() {
    let sandbox = Sandbox::new();
    sandbox.submit("one");
    sandbox.submit("two");
    let paused = sandbox.draftq([
        "pause",
        "--for",
        "1h",
        "--reason",
        "new model",
        "--by",
        "jo\u{202e}",
        "--json",
    ]);
    let hold = paused.expect(0).json();
    assert_eq!((&hold["processor"], &hold["kind"]), (&Value::Null, &json!("operator")));
    assert_eq!((&hold["set_by"], &hold["reason"]), (&json!("jo\u{202e}"), &json!("new model")));
    let lasts = hold["until_unix_ms"].as_i64().unwrap() - hold["set_at_unix_ms"].as_i64().unwrap();
    assert_eq!(lasts, 3_600_000);
    let ran = sandbox.draftq(run(&[]));
    let summary = &ran.expect(70).json()["summary"];
    assert_eq!((&summary["pending_seen"], &summary["claimed"]), (&json!(2), &json!(0)));
    assert_eq!(summary["hold"], hold);
    let told = ran.err();
    assert!(told.contains("exit code 70: all processors are on hold, set by jo"), "{told}");
    assert!(told.contains("new model; it lasts until 20"), "{told}");
    assert!(told.contains("2 drafts not begun") && !told.contains('\u{202e}'), "{told}");

    let resumed = sandbox.draftq(["resume"]);
    assert!(resumed.expect(0).out().starts_with("Ended: the hold of all processors, set by jo"));
    let summary = sandbox.draftq(run(&[])).expect(0).json()["summary"].take();
    assert_eq!((&summary["accepted"], &summary["hold"]), (&json!(2), &Value::Null));
}

#[test]
fn a_pause_by_name_stops_the_processors_of_this_name() {
    let sandbox = Sandbox::new();
    sandbox.submit("one");
    sandbox.submit("two");
    let ran = sandbox.draftq(["pause", "--name", "judge"]);
    assert!(
        ran.expect(0).out().contains("Paused processor judge without an end."),
        "{}",
        ran.out()
    );
    assert!(ran.err().contains("no runner of a processor named judge is known"), "{}", ran.err());
    let ran = sandbox.draftq(run(&["--name", "judge"]));
    assert!(ran.expect(70).err().contains("processor judge is on hold"), "{}", ran.err());
    // The name of a program is that of its file.
    let judge = sandbox.file("judge", "#!/bin/sh\necho '{\"decision\":\"accepted\"}'\n");
    fs::set_permissions(&judge, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    sandbox.draftq(["run", "--hold-wait-secs", "0", "--", "./judge"]).expect(70);
    sandbox.draftq(["run", "--hold-wait-secs", "0", "--", "sh", "judge"]).expect(70);
    // Another one goes on, also with a pause of its own that replaces nothing.
    sandbox.draftq(run(&["--limit", "1"])).expect(0);
    sandbox.draftq(["pause"]).expect(0);
    sandbox.draftq(run(&[])).expect(70);
    let ran = sandbox.draftq(["resume", "--name", "judge", "--json"]);
    assert_eq!(ran.expect(0).json()["ended"][0]["processor"], "judge");
    assert_eq!(ran.json()["in_force"][0]["processor"], Value::Null);
    let ran = sandbox.draftq(["resume", "--name", "judge"]);
    assert!(ran.expect(0).out().contains("Processor judge has no hold"), "{}", ran.out());
    assert!(ran.out().contains("Still in force: the hold of all processors"), "{}", ran.out());
    sandbox.draftq(["resume"]).expect(0);
    let ran = sandbox.draftq(["resume"]);
    assert_eq!(ran.expect(0).out(), "There is no hold; nothing was changed.\n");
    sandbox.draftq(["run", "--", "./judge"]).expect(0);
}

#[test]
fn a_run_waits_for_a_hold_that_ends_soon() {
    let sandbox = Sandbox::new();
    sandbox.submit("one");
    sandbox.draftq(["pause", "--for", "1s"]).expect(0);
    let ran = sandbox.draftq(["run", "--exit-code", "--", "true"]);
    assert_eq!(ran.expect(0).json()["summary"]["accepted"], 1);
    let sql = Connection::open(sandbox.db()).unwrap();
    let too_early: bool = sql
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM history, holds WHERE event = 'claimed' AND at < until)",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert!(!too_early);
    // With nothing to do, a run does not wait.
    sandbox.draftq(["pause"]).expect(0);
    sandbox.draftq(run(&[])).expect(0);
}

#[test]
fn wrong_usage_is_refused() {
    let sandbox = Sandbox::new();
    let long = "r".repeat(4097);
    sandbox.draftq(["pause"]).expect(66);
    sandbox.draftq(["resume"]).expect(66);
    sandbox.submit("one");
    for wrong in [
        &["pause", "--for", "0s"][..],
        &["pause", "--for", "soon"],
        &["pause", "--for", "-1h"],
        &["pause", "--name", " "],
        &["pause", "--reason", "a\nb"],
        &["pause", "--reason", &long],
        &["resume", "--name", ""],
        &["run", "--hold-wait-secs", "x", "--defer"],
    ] {
        sandbox.draftq(wrong).expect(64);
    }
    let ran = sandbox.draftq(["pause", "--for", "soon"]);
    assert!(ran.err().contains("expected a length of time such as 90s"), "{}", ran.err());
    assert_eq!(sandbox.store().holds().unwrap(), []);
    // A time beyond the range of the database is its last one.
    sandbox.draftq(["pause", "--for", "20000years"]).expect(0);
    sandbox.draftq(run(&[])).expect(70);
}

#[test]
fn what_is_in_hand_at_a_pause_is_finished_and_no_more_is_begun() {
    let sandbox = Sandbox::new();
    sandbox.submit("one");
    sandbox.submit("two");
    let script = "echo begun >> begun; until test -e go; do sleep 0.01; done";
    let run = ["run", "--hold-wait-secs", "0", "--exit-code", "--", "sh", "-c", script];
    let child = sandbox.command(run).stdout(Stdio::piped()).spawn().unwrap();
    wait_for(|| sandbox.path("begun").exists());
    sandbox.draftq(["pause", "--name", "sh"]).expect(0);
    sandbox.file("go", "");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(70));
    let summary = serde_json::from_slice::<Value>(&output.stdout).unwrap()["summary"].take();
    assert_eq!((&summary["claimed"], &summary["accepted"]), (&json!(1), &json!(1)));
    assert_eq!(summary["hold"]["processor"], "sh");
    assert_eq!(fs::read_to_string(sandbox.path("begun")).unwrap(), "begun\n");
}

/// A `watch` that accepts everything, and the lines that it prints.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(sandbox: &Sandbox) -> Self {
        let options = ["watch", "--poll-secs", "3600", "--json", "--exit-code", "--", "true"];
        let mut command = sandbox.command(options);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    #[track_caller]
    fn accepted(&self) -> u64 {
        let line = self.lines.recv_timeout(LIMIT).expect("a line in time");
        serde_json::from_str::<Value>(&line).unwrap()["summary"]["accepted"].as_u64().unwrap()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_waiting_watch_heeds_a_pause_and_begins_at_its_end() {
    let sandbox = Sandbox::new();
    sandbox.submit("first");
    let watch = Watch::start(&sandbox);
    assert_eq!(watch.accepted(), 1);
    sandbox.draftq(["pause"]).expect(0);
    sandbox.submit("second");
    sandbox.submit("third");
    // Longer than it takes to be woken, and than a poll.
    assert!(watch.lines.recv_timeout(Duration::from_millis(700)).is_err(), "nothing is claimed");
    assert_eq!(sandbox.store().list(DraftState::Pending).unwrap().len(), 2);
    let resumed = Instant::now();
    sandbox.draftq(["resume"]).expect(0);
    assert_eq!(watch.accepted(), 2);
    println!(r#"{{"test":"resume_of_a_watch","ms":{}}}"#, resumed.elapsed().as_millis());
    sandbox.draftq(["pause", "--for", "1s"]).expect(0);
    sandbox.submit("fourth");
    assert_eq!(watch.accepted(), 1);
    let sql = Connection::open(sandbox.db()).unwrap();
    let late: i64 = sql
        .query_row(
            "SELECT max(at) - until FROM history, holds WHERE event = 'claimed'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    println!(r#"{{"test":"end_of_a_hold","ms":{late}}}"#);
    assert!(late >= 0, "{late}");
    // One that is started during a hold waits too.
    drop(watch);
    sandbox.draftq(["pause"]).expect(0);
    sandbox.submit("fifth");
    let watch = Watch::start(&sandbox);
    assert!(watch.lines.recv_timeout(Duration::from_millis(700)).is_err());
    sandbox.draftq(["resume"]).expect(0);
    assert_eq!(watch.accepted(), 1);
}

#[test]
fn a_hold_that_a_processor_asks_for_holds_all_runners_of_its_name() {
    let sandbox = Sandbox::new();
    for text in ["one", "two", "three"] {
        sandbox.submit(text);
    }
    let answer = r#"echo '{"decision":"accepted","hold_secs":3600}'"#;
    let judge = |name| ["run", "--hold-wait-secs", "0", "--name", name, "--", "sh", "-c", answer];
    let ran = sandbox.draftq(judge("model"));
    let summary = &ran.expect(70).json()["summary"];
    assert_eq!((&summary["accepted"], &summary["hold"]["kind"]), (&json!(1), &json!("processor")));
    assert!(ran.err().contains("processor model is on hold: the processor asked"), "{}", ran.err());
    // Another process, later.
    assert_eq!(sandbox.draftq(judge("model")).expect(70).json()["summary"]["claimed"], 0);
    assert_eq!(sandbox.draftq(judge("other")).expect(70).json()["summary"]["accepted"], 1);
    let holds = sandbox.store().holds().unwrap();
    let names: Vec<_> = holds.iter().map(|hold| hold.processor.as_deref()).collect();
    assert_eq!(names, [Some("model"), Some("other")]);
    assert!(holds.iter().all(|hold| hold.kind == HoldKind::Processor));
    sandbox.draftq(["resume"]).expect(0);
    assert_eq!(sandbox.draftq(judge("model")).expect(0).json()["summary"]["accepted"], 1);
}

/// A hold is checked in the transaction that claims.
#[test]
fn no_claim_comes_after_the_commit_of_a_hold() {
    let (_directory, store) = store();
    let drafts: Vec<Draft> = (0..20_000).map(|number| draft(&number.to_string())).collect();
    store.submit_many(&drafts).unwrap();
    let begun = AtomicUsize::new(0);
    thread::scope(|scope| {
        let runners: Vec<_> = (0..4)
            .map(|_| {
                let (path, begun) = (store.path(), &begun);
                scope.spawn(move || {
                    let store = DraftStore::open(path).unwrap();
                    let mut judge = judged_by(|draft: &Draft| {
                        begun.fetch_add(1, Ordering::Relaxed);
                        accept(draft)
                    });
                    let runner = Runner::new(&store, "test").hold_wait(Duration::ZERO);
                    runner.run_one(&mut judge, SystemTime::now()).into_result().unwrap()
                })
            })
            .collect();
        wait_for(|| begun.load(Ordering::Relaxed) > 500);
        store.hold(&NewHold::new("jo")).unwrap();
        let sql = Connection::open(store.path()).unwrap();
        let claims = || -> i64 {
            let count = "SELECT count(*) FROM history WHERE event = 'claimed'";
            sql.query_row(count, [], |row| row.get(0)).unwrap()
        };
        let before = claims();
        let summaries: Vec<_> = runners.into_iter().map(|runner| runner.join().unwrap()).collect();
        assert_eq!(claims(), before);
        assert!(before < 20_000, "the hold came too late to show anything");
        assert!(summaries.iter().any(|summary| summary.hold.is_some()));
    });
    // What was claimed ahead was given back.
    assert_eq!(store.list(DraftState::Processing).unwrap(), []);
    let pending = store.list(DraftState::Pending).unwrap().len();
    assert_eq!(pending + store.list(DraftState::Accepted).unwrap().len(), 20_000);
}

#[test]
fn a_loop_of_ones_own_learns_of_a_hold() {
    let (_directory, store) = store();
    store.submit(&draft("one")).unwrap();
    let runner = store.register_runner("judge").unwrap();
    store.hold(&NewHold::new("jo").processor("judge")).unwrap();
    let mut snapshot = store.pending_snapshot().unwrap();
    let error = store.claim_next(&runner, &mut snapshot).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OnHold);
    assert_eq!(error.to_string(), "nothing was claimed: processor judge is on hold, set by jo");
    store.end_holds(Some("another")).unwrap();
    assert!(matches!(
        store.claim_next(&runner, &mut snapshot).unwrap_err(),
        LibrarianError::OnHold { hold } if hold.processor.as_deref() == Some("judge")
    ));
    assert_eq!(store.end_holds(None).unwrap().len(), 1);
    let claimed = store.claim_next(&runner, &mut snapshot).unwrap();
    let Some(draftq::Claimed::Draft(claim)) = claimed else { panic!("{claimed:?}") };
    // Its outcome sets a hold.
    let outcome = Outcome::new(draftq::DraftProcessingDecision::Accepted).with_hold(LIMIT);
    store.finish(*claim, &outcome).unwrap();
    assert_eq!(store.holds().unwrap()[0].kind, HoldKind::Processor);
}

/// Otherwise a watch would begin run after run while a hold is in force.
#[test]
fn a_waiter_finds_no_work_while_a_hold_is_in_force() {
    let (_directory, store) = store();
    let wait = |waiter: &mut Waiter, time: u64| {
        let deadline = Instant::now() + Duration::from_millis(time);
        waiter.wait(deadline, &Cancellation::default()).unwrap()
    };
    store.hold(&NewHold::new("jo").processor("judge")).unwrap();
    let mut waiter = Waiter::new(&store).unwrap().processor("judge");
    let mut other = Waiter::new(&store).unwrap().processor("other");
    store.submit(&draft("one")).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("UPDATE drafts SET due_at = 1", []).unwrap();
    store.submit(&draft("two")).unwrap();
    for _ in 0..2 {
        assert_eq!(wait(&mut waiter, 400), Wake::Deadline);
    }
    assert_eq!(wait(&mut other, 60_000), Wake::Work);
    store.end_holds(None).unwrap();
    assert_eq!(wait(&mut waiter, 60_000), Wake::Work);
    // At the end of a hold, also a waiter that marked what came before begins.
    store.hold(&NewHold::new("jo").lasting(Duration::from_millis(300))).unwrap();
    waiter.mark().unwrap();
    assert_eq!(wait(&mut waiter, 60_000), Wake::Work);
    assert_eq!(store.holds().unwrap(), []);
}

#[test]
fn a_hold_typed_by_hand_is_heeded() {
    let sandbox = Sandbox::new();
    sandbox.submit("one");
    let sql = Connection::open(sandbox.db()).unwrap();
    sql.execute(
        "INSERT INTO holds (processor, kind, set_by, set_at) \
         VALUES ('', 'operator', 'me', unixepoch() * 1000)",
        [],
    )
    .unwrap();
    sandbox.draftq(run(&[])).expect(70);
    sql.execute("DELETE FROM holds", []).unwrap();
    sandbox.draftq(run(&[])).expect(0);
}

#[track_caller]
fn wait_for(mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LIMIT, "it does not come about");
        thread::sleep(Duration::from_millis(2));
    }
}
