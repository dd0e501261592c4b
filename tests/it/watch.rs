//! `watch`: its wakeups, its output, its end, and its errors.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use draftq::DraftStore;
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Sandbox, draft};

/// Longer than any step here takes, and shorter than the hour after which an iteration starts.
const LIMIT: Duration = Duration::from_secs(60);

/// A running `watch`, and the lines that it prints.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("draftq starts");
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// The next line's summary.
    #[track_caller]
    fn summary(&self) -> Value {
        let line = self.lines.recv_timeout(LIMIT).expect("a line in time");
        serde_json::from_str::<Value>(&line).unwrap()["summary"].take()
    }

    fn end(mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        assert_eq!(self.lines.iter().collect::<Vec<_>>(), Vec::<String>::new());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn watch(sandbox: &Sandbox, script: &str) -> Watch {
    Watch::start(sandbox.command(["watch", "--poll-secs", "3600", "--", "sh", "-c", script]))
}

#[test]
fn a_new_draft_wakes_the_watch() {
    let sandbox = Sandbox::new();
    let first = sandbox.submit("before it begins");
    let watch = watch(&sandbox, r#"echo '{"decision":"accepted"}'"#);
    assert_eq!(watch.summary()["items"][0]["id"], *first);
    let second = sandbox.submit("while it waits");
    assert_eq!(watch.summary()["items"][0]["id"], *second);
    sandbox.draftq(["requeue", &first]).expect(0);
    assert_eq!(watch.summary()["items"][0]["id"], *first);
    // A SQL shell does not notify.
    let moved = Connection::open(sandbox.db())
        .unwrap()
        .execute("UPDATE drafts SET state = 'pending', decision = NULL WHERE id = ?1", [&second]);
    assert_eq!(moved, Ok(1));
    assert_eq!(watch.summary()["items"][0]["id"], *second);
    watch.end(Signal::TERM);
}

#[test]
fn a_delayed_draft_is_processed_when_it_is_due() {
    let sandbox = Sandbox::new();
    sandbox.submit("not now");
    let script = r#"test -e later && echo '{"decision":"accepted"}' || { touch later
        echo '{"decision":"deferred","retry_after_secs":1}'; }"#;
    let begun = Instant::now();
    let watch = watch(&sandbox, script);
    assert_eq!(watch.summary()["deferred"], 1);
    assert_eq!(watch.summary()["accepted"], 1);
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    watch.end(Signal::INT);
}

#[test]
fn iterations_are_counted_and_idle_ones_are_not_printed() {
    let sandbox = Sandbox::new();
    sandbox.submit("one");
    let options = ["watch", "--iterations", "3", "--poll-secs", "1", "--exit-code", "--", "true"];
    let ran = sandbox.draftq(options);
    let lines = ran.expect(0).lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["processor"], "exec");
    assert_eq!(lines[0]["summary"]["accepted"], 1);
}

#[test]
fn a_line_lists_a_thousand_drafts_and_counts_the_rest() {
    let sandbox = Sandbox::new();
    let drafts: Vec<_> = (0..1_001).map(|number| draft(&format!("{number}"))).collect();
    DraftStore::open(sandbox.db()).unwrap().submit_many(&drafts).unwrap();
    let ran = sandbox.draftq(["watch", "--iterations", "1", "--defer"]);
    let summary = &ran.expect(0).lines()[0]["summary"];
    assert_eq!(summary["deferred"], 1_001);
    assert_eq!(summary["items"].as_array().map(Vec::len), Some(1_000));
    assert_eq!(summary["items_left_out"], 1);
    // A run lists them all. The watch has given each a delay.
    Connection::open(sandbox.db()).unwrap().execute("UPDATE drafts SET due_at = 0", []).unwrap();
    let ran = sandbox.draftq(["run", "--defer"]);
    let summary = &ran.expect(70).lines()[0]["summary"];
    assert_eq!(summary["items"].as_array().map(Vec::len), Some(1_001));
    assert_eq!(summary["items_left_out"], 0);
}

#[test]
fn after_an_error_the_watch_waits() {
    let sandbox = Sandbox::new();
    sandbox.submit("due");
    let script = r#"echo '{"decision":"deferred","retry_after_secs":0.001}'"#;
    sandbox.draftq(["run", "--", "sh", "-c", script]).expect(70);
    // As if the disk were full, but only for this one statement.
    Connection::open(sandbox.db())
        .unwrap()
        .execute_batch(
            "CREATE TRIGGER full BEFORE INSERT ON runners
             BEGIN SELECT RAISE(ABORT, 'no room'); END",
        )
        .unwrap();
    let begun = Instant::now();
    let ran = sandbox.draftq([
        "watch",
        "--iterations",
        "2",
        "--poll-secs",
        "60",
        "--exit-code",
        "--",
        "true",
    ]);
    assert_eq!(ran.expect(0).out(), "");
    assert_eq!(ran.err().matches("no room; the watch continues").count(), 2, "{}", ran.err());
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn a_wait_may_be_very_long() {
    let sandbox = Sandbox::new();
    let most = u64::MAX.to_string();
    let options = ["watch", "--poll-secs", &most, "--grace-secs", &most, "--defer"];
    let watch = Watch::start(sandbox.command(options));
    sandbox.submit("it looks round");
    assert_eq!(watch.summary()["deferred"], 1);
    watch.end(Signal::INT);
}

/// Otherwise a watch would call a processor that is never ready all the time.
#[test]
fn repeated_deferrals_wait_longer_each_time() {
    let sandbox = Sandbox::new();
    let id = sandbox.submit("never ready");
    let sql = Connection::open(sandbox.db()).unwrap();
    for wait in [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600] {
        sandbox.draftq(["watch", "--iterations", "1", "--defer"]).expect(0);
        let shown = sandbox.show(&id);
        let due = shown["due_at_unix_ms"].as_i64().unwrap();
        assert_eq!(due - shown["updated_at_unix_ms"].as_i64().unwrap(), wait * 1_000);
        sql.execute("UPDATE drafts SET due_at = 1", []).unwrap();
    }
    // A plain run adds no delay of its own.
    sandbox.draftq(["run", "--defer"]).expect(70);
    assert_eq!(sandbox.show(&id)["due_at_unix_ms"], serde_json::Value::Null);
}
