//! `release`: drafts are taken from a live runner whose processor hangs.

use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};
use std::{fs, thread};

use draftq::{Draft, DraftProcessingDecision, DraftState, ErrorKind, Runner, StopSignal};
use draftq::{DraftProcessor, LibrarianError, Outcome};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Sandbox, assert_whole, claim, draft, judged_by, rows, store};

const LIMIT: Duration = Duration::from_secs(60);

/// Its program hangs on the draft "hangs", with a child of its own.
const SCRIPT: &str = r#"if grep -q '"raw_text":"hangs"'; then
    echo $$ > pid.new; mv pid.new pid; sleep 600 & sleep 600; fi; echo '{"decision":"accepted"}'"#;

#[track_caller]
fn wait_for(mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LIMIT, "it does not come about");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A run whose program hangs on the first of two drafts.
fn hanging(sandbox: &Sandbox, options: &[&str]) -> (String, Child) {
    let id = sandbox.submit("hangs");
    sandbox.submit("goes well");
    let args = [&["run"], options, &["--", "sh", "-c", SCRIPT]].concat();
    let mut command = sandbox.command(args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(|| sandbox.path("pid").exists());
    (id, child)
}

#[test]
fn a_released_draft_is_pending_its_program_is_killed_and_the_run_goes_on() {
    // With --fail-fast, a draft that was taken away is no error of the processor.
    for options in [&[][..], &["--fail-fast"]] {
        let sandbox = Sandbox::new();
        let (id, child) = hanging(&sandbox, options);
        let group = fs::read_to_string(sandbox.path("pid")).unwrap();
        let ran = sandbox.draftq(["release", &id[..6], "--json"]);
        let released = Instant::now();
        let line = &ran.expect(0).lines()[0];
        assert_eq!((&line["id"], &line["processor"]), (&json!(id), &json!("sh")));
        assert_eq!(line["pid"], child.id());
        let output = child.wait_with_output().unwrap();
        println!(r#"{{"test":"release","ms":{}}}"#, released.elapsed().as_millis());
        assert_eq!(output.status.code(), Some(70));
        let summary = serde_json::from_slice::<Value>(&output.stdout).unwrap()["summary"].take();
        let counts = ["claimed", "accepted", "errors", "lost_claims"].map(|name| &summary[name]);
        assert_eq!(counts, [&json!(2), &json!(1), &json!(0), &json!(1)]);
        assert!(!group_is_there(group.trim()), "the program and its child are killed");
        let shown = sandbox.show(&id);
        assert_eq!((&shown["state"], &shown["errors"]), (&json!("pending"), &json!(0)));
        let sql = Connection::open(sandbox.db()).unwrap();
        let events = "SELECT event, error_class FROM history WHERE draft = 1 ORDER BY seq";
        let events = rows(&sql, events).unwrap();
        assert_eq!(events, "submitted|\nclaimed|\nreleased|\nrefused|stopped");
        assert_whole(&sandbox.db());
    }
}

fn group_is_there(group: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { return false };
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        fields.next() != Some("Z") && fields.nth(1) == Some(group)
    })
}

#[test]
fn a_draft_that_no_live_runner_holds_is_not_released() {
    let sandbox = Sandbox::new();
    let (held, mut child) = hanging(&sandbox, &["--jobs", "2"]);
    let pending = sandbox.submit("pending");
    let ran = sandbox.draftq(["release", &held, &pending]);
    let told = ran.expect(65).err();
    assert!(told.contains(&format!("draft {pending} is pending, and no live runner")), "{told}");
    assert!(told.contains("requeue"), "{told}");
    assert_eq!(sandbox.show(&held)["state"], "processing", "all or none");
    let accepted = draft_of(&sandbox, "goes well");
    wait_for(|| sandbox.show(&accepted)["state"] == "accepted");
    let ran = sandbox.draftq(["release", &accepted]);
    assert!(ran.expect(65).err().contains("is accepted, and no live"), "{}", ran.err());
    sandbox.draftq(["release", "ffffffffffffffff"]).expect(66);
    sandbox.draftq(["release", "nonsense"]).expect(66);
    sandbox.draftq(["release"]).expect(64);
    // Named twice, it is released once.
    assert_eq!(sandbox.draftq(["release", &held, &held]).expect(0).out().lines().count(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    // Of a dead runner.
    let (_directory, store) = store();
    store.submit(&draft("one")).unwrap();
    let runner = store.register_runner("test").unwrap();
    let id = claim(&store, &runner).draft().id();
    drop(runner);
    let error = store.release_held(&[id]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert!(error.to_string().contains("is processing, and no live runner"), "{error}");
}

fn draft_of(sandbox: &Sandbox, text: &str) -> String {
    let listed = sandbox.draftq(["list", "--json", "--grep", text]).expect(0).lines();
    listed[0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_late_decision_is_refused_and_the_run_goes_on() {
    let (_directory, store) = store();
    let drafts = [draft("slow"), draft("fast")];
    store.submit_many(&drafts).unwrap();
    let operator = store.clone();
    let mut judge = judged_by(move |it: &Draft| {
        if it.raw_text() == "slow" {
            let released = operator.release_held(&[it.id()]).unwrap();
            assert_eq!((released[0].id, released[0].processor.as_str()), (it.id(), "test"));
        }
        Ok(Outcome::new(DraftProcessingDecision::Accepted).with_note("late"))
    });
    let report = Runner::new(&store, "test").run_one(&mut judge, SystemTime::now());
    assert_eq!((report.summary.accepted, report.summary.lost_claims), (1, 1));
    assert!(store.load(DraftState::Pending, drafts[0].id()).is_ok());
    let (_, events) = store.record(drafts[0].id()).unwrap();
    let last = events.last().unwrap();
    assert_eq!((last.event.as_str(), last.note.as_deref()), ("refused", Some("late")));
    assert_whole(store.path());
}

/// Works until it is told to stop.
struct UntilStopped(mpsc::Sender<()>);

impl DraftProcessor for UntilStopped {
    fn process(&mut self, _: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        unreachable!("a run calls process_until");
    }

    fn process_until(&mut self, _: &Draft, stop: &StopSignal) -> Result<Outcome, LibrarianError> {
        let (sender, stopped) = mpsc::channel();
        let _action = stop.on_stop(move || sender.send(()).unwrap());
        self.0.send(()).unwrap();
        stopped.recv_timeout(LIMIT).expect("the signal comes");
        Ok(DraftProcessingDecision::Accepted.into())
    }
}

#[test]
fn a_processor_in_rust_learns_that_its_draft_was_released() {
    let (_directory, store) = store();
    let drafts = [draft("one"), draft("two")];
    store.submit_many(&drafts).unwrap();
    let (sender, begun) = mpsc::channel();
    thread::scope(|scope| {
        let store = &store;
        let run = scope.spawn(move || {
            let mut processor: Box<dyn DraftProcessor + Send> = Box::new(UntilStopped(sender));
            Runner::new(store, "test").run_one(&mut processor, SystemTime::now())
        });
        for draft in &drafts {
            begun.recv_timeout(LIMIT).unwrap();
            store.release_held(&[draft.id()]).unwrap();
        }
        let report = run.join().unwrap();
        assert_eq!((report.summary.claimed, report.summary.lost_claims), (2, 2));
    });
}
