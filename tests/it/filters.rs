//! `run` and `watch` with filters: several processors share one inbox.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, SystemTime};

use draftq::{
    Draft, DraftFilter, DraftMetadata, DraftSourceSurface, DraftState, DraftStore, Runner,
};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Sandbox, accept, judged_by, store};

const LIMIT: Duration = Duration::from_secs(60);

/// A draft of this agent and project, with this tag.
fn draft_from(text: &str, agent: &str, project: &str, tag: &str) -> Draft {
    let metadata = DraftMetadata {
        source_agent: Some(agent.to_owned()),
        source_project: Some(project.to_owned()),
        context_tags: vec!["other".to_owned(), tag.to_owned()],
        ..DraftMetadata::new(DraftSourceSurface::Mcp, SystemTime::now())
    };
    Draft::with_metadata(text.to_owned(), metadata)
}

fn run<'a>(options: &[&'a str]) -> Vec<&'a str> {
    [&["run"], options, &["--exit-code", "--", "true"]].concat()
}

#[test]
fn a_run_claims_only_the_drafts_that_pass_its_filters() {
    let sandbox = Sandbox::new();
    sandbox.submit("of nobody");
    let store = sandbox.store();
    let mut drafts = Vec::new();
    for number in 0..30 {
        let (agent, project) =
            (["claude", "codex"][number % 2], ["billing", "web"][number / 2 % 2]);
        let tag = ["handoff", "note", "naïve"][number % 3];
        drafts.push(draft_from(&number.to_string(), agent, project, tag));
    }
    store.submit_many(&drafts).unwrap();
    let accepted = |options: &[&str]| -> (u64, u64) {
        let summary = sandbox.draftq(run(options)).expect(0).json()["summary"].take();
        assert_eq!(summary["claim_misses"], 0);
        let number = |name: &str| summary[name].as_u64().unwrap();
        (number("pending_seen"), number("accepted"))
    };
    assert_eq!(accepted(&["--project", "nothing"]), (0, 0));
    assert_eq!(accepted(&["--agent", "claude", "--project", "web", "--limit", "2"]), (7, 2));
    assert_eq!(accepted(&["--agent", "claude", "--project", "web"]), (5, 5));
    assert_eq!(accepted(&["--tag", "naïve", "--surface", "mcp"]), (7, 7));
    assert_eq!(accepted(&["--source-surface", "cli"]), (1, 1));
    for (place, draft) in drafts.iter().enumerate() {
        let done = place % 4 == 2 || place % 3 == 2;
        let state = if done { DraftState::Accepted } else { DraftState::Pending };
        assert!(store.load(state, draft.id()).is_ok(), "{place}");
    }
    assert_eq!(accepted(&[]), (16, 16));
}

#[test]
fn filters_that_make_no_sense_are_refused() {
    let sandbox = Sandbox::new();
    for wrong in
        [&["--surface", "nowhere"][..], &["--tag", "a", "--tag", "b"], &["--operator", "me"]]
    {
        sandbox.draftq(run(wrong)).expect(64);
    }
    sandbox.draftq(["watch", "--surface", "nowhere", "--defer"]).expect(64);
    assert!(!sandbox.db().exists());
}

/// Several workers, and texts that are not claimed together.
#[test]
fn a_filtered_run_of_a_fast_processor_takes_each_draft_once_and_in_order() {
    let (_directory, store) = store();
    let drafts: Vec<Draft> = (0..3_000)
        .map(|number| {
            let project = if number % 7 == 3 { "billing" } else { "web" };
            draft_from(&number.to_string(), "claude", project, "t")
        })
        .collect();
    store.submit_many(&drafts).unwrap();
    let filter = DraftFilter::default().source_project("billing");
    let mut seen: Vec<u64> = Vec::new();
    let mut judge = judged_by(|draft: &Draft| {
        seen.push(draft.raw_text().parse().unwrap());
        accept(draft)
    });
    let runner = Runner::new(&store, "test").filter(filter);
    let summary = runner.run_one(&mut judge, SystemTime::now()).into_result().unwrap();
    assert_eq!((summary.pending_seen, summary.accepted), (429, 429));
    assert_eq!(seen, (0..3_000).filter(|number| number % 7 == 3).collect::<Vec<_>>());
    assert_eq!(store.list(DraftState::Pending).unwrap().len(), 3_000 - 429);
}

#[test]
fn two_filtered_runners_that_compete_share_the_drafts() {
    let (_directory, store) = store();
    let drafts: Vec<Draft> = (0..2_000)
        .map(|number| draft_from(&number.to_string(), "claude", ["a", "b"][number % 2], "t"))
        .collect();
    store.submit_many(&drafts).unwrap();
    let filter = DraftFilter::default().source_project("a");
    let accepted: usize = thread::scope(|scope| {
        let runs: Vec<_> = (0..3)
            .map(|_| {
                let (path, filter) = (store.path(), filter.clone());
                scope.spawn(move || {
                    let store = DraftStore::open(path).unwrap();
                    let runner = Runner::new(&store, "test").filter(filter);
                    let report = runner.run_one(&mut judged_by(accept), SystemTime::now());
                    report.into_result().unwrap().accepted
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).sum()
    });
    assert_eq!(accepted, 1_000);
    assert_eq!(store.list(DraftState::Pending).unwrap().len(), 1_000);
}

#[test]
fn due_drafts_of_others_are_left_alone() {
    let (_directory, store) = store();
    store.submit_many(&[draft_from("1", "x", "a", "t"), draft_from("2", "x", "b", "t")]).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("UPDATE drafts SET due_at = 1000", []).unwrap();
    let filter = DraftFilter::default().source_project("b");
    assert_eq!(store.release_due_of(&filter).unwrap(), 1);
    assert_eq!(store.filtered_snapshot(&filter).unwrap().pending_seen(), 1);
    let due: i64 =
        sql.query_row("SELECT due_at FROM drafts WHERE seq = 1", [], |row| row.get(0)).unwrap();
    assert_eq!(due, 1_000);
    assert_eq!(store.release_due().unwrap(), 1);
}

/// A `watch` with a filter, and the lines that it prints.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(sandbox: &Sandbox, options: &[&str], script: &str) -> Self {
        let (every, program) = (["--poll-secs", "3600", "--json"], ["--", "sh", "-c", script]);
        let mut command = sandbox.command([&["watch"], options, &every, &program].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    #[track_caller]
    fn summary(&self) -> Value {
        let line = self.lines.recv_timeout(LIMIT).expect("a line in time");
        serde_json::from_str::<Value>(&line).unwrap()["summary"].take()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn two_watches_share_an_inbox_and_each_is_woken_for_its_drafts() {
    let sandbox = Sandbox::new();
    let accept = r#"echo '{"decision":"accepted"}'"#;
    let later = r#"test -e later && echo '{"decision":"skipped"}' ||
        { touch later; echo '{"decision":"deferred","retry_after_secs":0.5}'; }"#;
    sandbox.submit("for nobody");
    let submit = |text: &str, project: &str| {
        let ran = sandbox.draftq(["submit", "--text", text, "--project", project]);
        ran.expect(0).json()["id"].clone()
    };
    let billing = Watch::start(&sandbox, &["--project", "billing"], accept);
    let web = Watch::start(&sandbox, &["--project", "web"], later);
    for round in 0..3 {
        let id = submit(&format!("bill {round}"), "billing");
        assert_eq!(
            billing.summary()["items"],
            json!([{"id": id, "decision": "accepted",
                                                       "final_state": "accepted"}])
        );
    }
    let id = submit("page", "web");
    let deferred = web.summary();
    assert_eq!((&deferred["items"][0]["id"], &deferred["deferred"]), (&id, &json!(1)));
    assert_eq!(web.summary()["skipped"], 1, "it is woken when its draft is due");
    // A requeued draft and one that was moved by hand wake the one whose it is.
    sandbox.draftq(["requeue", id.as_str().unwrap()]).expect(0);
    assert_eq!(web.summary()["skipped"], 1);
    let sql = Connection::open(sandbox.db()).unwrap();
    let by_hand =
        "UPDATE drafts SET state = 'pending', decision = NULL WHERE source_project = 'web'";
    sql.execute(by_hand, []).unwrap();
    assert_eq!(web.summary()["skipped"], 1);
    assert!(billing.lines.try_recv().is_err());
    assert_eq!(sandbox.store().list(DraftState::Pending).unwrap().len(), 1);
}

/// The filter's values are not in the names of the files.
#[test]
fn a_runner_with_a_filter_waits_at_a_file_of_its_own() {
    let (_directory, store) = store();
    let filter = DraftFilter::default().tag("canary");
    let mut waiter = draftq::Waiter::new(&store).unwrap().filter(filter);
    let soon = std::time::Instant::now() + Duration::from_millis(50);
    let directory = format!("{}-runners", store.path().display());
    thread::scope(|scope| {
        let watched = scope.spawn(move || {
            let mut names = Vec::new();
            while std::time::Instant::now() < soon {
                let entries = std::fs::read_dir(&directory).unwrap().flatten();
                names.extend(entries.map(|entry| entry.file_name().into_string().unwrap()));
            }
            names
        });
        waiter.wait(soon, &draftq::Cancellation::default()).unwrap();
        let names = watched.join().unwrap();
        assert!(names.iter().any(|name| name.ends_with(".waiting") && name.contains('-')));
        assert!(!names.iter().any(|name| name.contains("canary")));
    });
}
