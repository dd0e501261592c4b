//! `run` through the binary: decisions of programs, their failures, and their end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{Sandbox, finish};

/// The counters of a summary that are not zero.
fn counts(document: &Value) -> BTreeMap<&str, u64> {
    let summary = document["summary"].as_object().unwrap();
    let counts = summary.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_u64()?)));
    counts.filter(|(_, count)| *count > 0).collect()
}

fn sh<'a>(options: &[&'a str], script: &'a str) -> Vec<&'a str> {
    [&["run"], options, &["--", "sh", "-c", script]].concat()
}

/// The same with a script whose exit code is the answer.
fn by_exit_code<'a>(options: &[&'a str], script: &'a str) -> Vec<&'a str> {
    sh(&[options, &["--exit-code"]].concat(), script)
}

fn fifo(path: PathBuf) -> PathBuf {
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    path
}

fn states(sandbox: &Sandbox) -> BTreeMap<String, u64> {
    let stats = sandbox.draftq(["stats", "--json"]).expect(0).json();
    let states = stats["states"].as_object().unwrap().iter();
    let states = states.map(|(state, count)| (state.clone(), count.as_u64().unwrap()));
    states.filter(|(_, count)| *count > 0).collect()
}

/// The number of drafts in each state that has any.
fn of<const N: usize>(states: [(&str, u64); N]) -> BTreeMap<String, u64> {
    states.map(|(state, count)| (state.to_owned(), count)).into()
}

#[test]
fn a_run_with_defer_defers_all() {
    let sandbox = Sandbox::new();
    let id = sandbox.submit("one");
    let ran = sandbox.draftq(["run", "--defer"]);
    let document = ran.expect(70).json();
    assert_eq!(document["processor"], "deferred");
    let names = document["summary"].as_object().unwrap();
    for name in [
        "recovered_processing",
        "pending_seen",
        "claimed",
        "accepted",
        "skipped",
        "failed",
        "quarantined",
        "deferred",
        "claim_misses",
        "errors",
        "lost_claims",
    ] {
        assert!(names[name].is_u64(), "{name} in {document}");
    }
    let item = json!([{"id": id, "decision": "deferred", "final_state": "pending"}]);
    assert_eq!(document["summary"]["items"], item);
    assert_eq!(
        counts(&document),
        BTreeMap::from([("pending_seen", 1), ("claimed", 1), ("deferred", 1)])
    );
    assert_eq!(states(&sandbox), of([("pending", 1)]));

    let text = sandbox.draftq(["run", "--defer", "--format", "text"]);
    assert!(text.expect(70).out().contains("1 deferred"), "{}", text.out());
}

#[test]
fn a_run_without_drafts_succeeds() {
    let sandbox = Sandbox::new();
    let document = sandbox.draftq(["run", "--", "false"]).expect(0).json();
    assert_eq!(document["processor"], "exec");
    assert_eq!(document["summary"]["items"], json!([]));
    assert_eq!(counts(&document), BTreeMap::new());
}

/// Answers with the decision that the text asks for.
const AS_ASKED: &str = r#"
    for decision in accepted skipped failed quarantined deferred; do
        case "$draft" in *"please $decision"*)
            printf 'a word before\n{"decision":"%s","note":"as asked: %s","output":{"n":[1,2.50,"%s"]}}\n' \
                $decision $decision $decision
        esac
    done"#;

#[test]
fn each_decision_is_stored_with_note_and_output() {
    let sandbox = Sandbox::new();
    let decisions = ["accepted", "skipped", "failed", "quarantined", "deferred"];
    let ids = decisions.map(|decision| sandbox.submit(&format!("please {decision}")));
    let script = format!("draft=$(cat); {AS_ASKED}");
    let document = sandbox.draftq(sh(&[], &script)).expect(70).json();
    let mut expected = BTreeMap::from(decisions.map(|decision| (decision, 1)));
    expected.extend([("pending_seen", 5), ("claimed", 5)]);
    assert_eq!(counts(&document), expected);

    for (id, decision) in ids.iter().zip(decisions) {
        let shown = sandbox.show(id);
        let state = if decision == "deferred" { "pending" } else { decision };
        assert_eq!((&shown["state"], &shown["decision"]), (&json!(state), &json!(decision)));
        assert_eq!(shown["note"], format!("as asked: {decision}"));
        assert_eq!(shown["output"], json!({"n": [1, 2.5, decision]}));
        let raw = sandbox.draftq(["show", id, "--json"]);
        assert!(raw.out().contains("[1,2.50,"), "kept as it was written: {}", raw.out());
        let events: Vec<&str> = shown["history"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["event"].as_str().unwrap())
            .collect();
        let last = if decision == "deferred" { "deferred" } else { "decided" };
        assert_eq!(events, ["submitted", "claimed", last]);
        let text = sandbox.draftq(["show", id]);
        assert!(text.expect(0).out().contains(&format!("as asked: {decision}")));
    }
}

#[test]
fn only_an_answer_accepts_unless_the_exit_code_decides() {
    const SKIPPED: &str = r#"echo '{"decision":"skipped"}'"#;
    let skipped_and = |end: &str| format!("{SKIPPED}; exit {end}");
    for (script, (code, state), (code_alone, state_alone)) in [
        (r#"echo '{"decision":"accepted"}'"#, (0, "accepted"), (0, "accepted")),
        (SKIPPED, (0, "skipped"), (0, "accepted")),
        ("exit 0", (70, "processing"), (0, "accepted")),
        ("echo done", (70, "processing"), (0, "accepted")),
        ("exit 75", (70, "pending"), (70, "pending")),
        (&skipped_and("75"), (70, "processing"), (70, "pending")),
        (&skipped_and("1"), (70, "processing"), (70, "processing")),
        ("echo '{\"decision\":\"sideways\"}'", (70, "processing"), (0, "accepted")),
        ("kill -9 $$", (70, "processing"), (70, "processing")),
        ("exit 1", (70, "processing"), (70, "processing")),
    ] {
        let sandbox = Sandbox::new();
        sandbox.submit("x");
        sandbox.draftq(sh(&[], script)).expect(code);
        assert_eq!(states(&sandbox), of([(state, 1)]), "{script}");

        let sandbox = Sandbox::new();
        sandbox.submit("x");
        sandbox.draftq(by_exit_code(&[], script)).expect(code_alone);
        assert_eq!(states(&sandbox), of([(state_alone, 1)]), "{script}");
    }
}

#[test]
fn an_invalid_answer_is_recorded_without_its_content() {
    let sandbox = Sandbox::new();
    let id = sandbox.submit("x");
    let ran = sandbox.draftq(sh(&[], r#"echo '{"decison":"quarantined","canary":"canary"}'"#));
    assert_eq!(counts(&ran.expect(70).json())["errors"], 1);
    let shown = sandbox.show(&id);
    assert_eq!((&shown["state"], &shown["errors"]), (&json!("processing"), &json!(1)));
    assert_eq!(shown["last_error_class"], "protocol");
    let error = shown["last_error"].as_str().unwrap();
    assert!(error.contains("unknown key") && error.contains("expected one JSON object"), "{error}");
    assert!(!error.contains("canary") && !error.contains("decison"), "{error}");
}

#[test]
fn a_run_continues_after_an_error() {
    let sandbox = Sandbox::new();
    let good = sandbox.submit("good");
    let bad = sandbox.submit("please break");
    let late = sandbox.submit("good as well");
    let script = r#"case "$(cat)" in *break*)
        printf 'why: \033[31m\342\200\256\302\233 it broke\n' >&2; exit 3; esac"#;
    let ran = sandbox.draftq(by_exit_code(&[], script));
    let document = ran.expect(70).json();
    assert_eq!(
        counts(&document),
        BTreeMap::from([("pending_seen", 3), ("claimed", 3), ("accepted", 2), ("errors", 1)])
    );
    assert!(ran.err().contains(&bad) && !ran.err().contains("it broke"), "{}", ran.err());

    let shown = sandbox.show(&bad);
    assert_eq!((&shown["state"], &shown["errors"]), (&json!("processing"), &json!(1)));
    assert_eq!((&shown["last_error_class"], &shown["owner"]), (&json!("exit"), &Value::Null));
    let error = shown["last_error"].as_str().unwrap();
    assert!(error.contains("status 3") && error.contains("it broke"), "{error}");
    assert!(error.contains("\\u{1b}[31m\\u{202e}\\u{9b}"), "escaped where it is kept: {error}");
    for id in [good, late] {
        assert_eq!(sandbox.show(&id)["state"], "accepted");
    }

    // No runner holds it: with a stale time of 0 it is recovered at once.
    let again = sandbox.draftq(by_exit_code(&["--stale-processing-secs", "0"], "exit 0"));
    let document = again.expect(0).json();
    assert_eq!(
        counts(&document),
        BTreeMap::from([
            ("recovered_processing", 1),
            ("pending_seen", 1),
            ("claimed", 1),
            ("accepted", 1)
        ])
    );
}

#[test]
fn the_summary_lists_each_error_in_order() {
    let sandbox = Sandbox::new();
    let ids = ["good", "bad", "ugly", "good too"].map(|text| sandbox.submit(text));
    let script = "case $(cat) in *ugly*) kill -9 $$;; *bad*) exit 3;; esac";
    let document = sandbox.draftq(by_exit_code(&[], script)).expect(70).json();
    assert_eq!(
        document["summary"]["items"],
        json!([
            {"id": ids[0], "decision": "accepted", "final_state": "accepted"},
            {"id": ids[1], "error": "exit", "final_state": "processing"},
            {"id": ids[2], "error": "signal", "final_state": "processing"},
            {"id": ids[3], "decision": "accepted", "final_state": "accepted"},
        ])
    );
    assert_eq!(document["summary"]["errors"], 2);
    assert_eq!(document["summary"]["items_left_out"], 0);
    assert!(document["summary"].get("error_items").is_none(), "{document}");
}

#[test]
fn the_error_budget_ends_in_failed() {
    let sandbox = Sandbox::new();
    let id = sandbox.submit("poison");
    let options = ["--stale-processing-secs", "0", "--max-errors", "2"];
    sandbox.draftq(by_exit_code(&options, "exit 1")).expect(70);
    sandbox.draftq(by_exit_code(&options, "exit 1")).expect(70);
    let last = sandbox.draftq(by_exit_code(&options, "exit 0")).expect(0).json();
    assert_eq!(counts(&last), BTreeMap::from([("exhausted", 1)]));
    let shown = sandbox.show(&id);
    assert_eq!((&shown["state"], &shown["decision"]), (&json!("failed"), &Value::Null));
    assert_eq!(shown["last_error_class"], "exit");
}

#[test]
fn fail_fast_stops_at_the_first_error() {
    let sandbox = Sandbox::new();
    for text in ["one", "two", "three"] {
        sandbox.submit(text);
    }
    let ran = sandbox.draftq(by_exit_code(&["--fail-fast"], "exit 9"));
    let document = ran.expect(70).json();
    assert_eq!(
        counts(&document),
        BTreeMap::from([("pending_seen", 3), ("claimed", 1), ("errors", 1)])
    );
    assert!(ran.err().contains("status 9"), "{}", ran.err());
    assert_eq!(states(&sandbox), of([("pending", 2), ("processing", 1)]));
}

#[test]
fn a_limit_takes_the_oldest_drafts() {
    let sandbox = Sandbox::new();
    let ids = ["one", "two", "three"].map(|text| sandbox.submit(text));
    let document = sandbox.draftq(by_exit_code(&["--limit", "2"], "exit 0")).expect(0).json();
    let items: Vec<&str> = document["summary"]["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["id"].as_str().unwrap())
        .collect();
    assert_eq!(items, ids[..2]);
    assert_eq!(states(&sandbox), of([("accepted", 2), ("pending", 1)]));

    let text = sandbox.draftq(["run", "--limit=1", "--format=text", "--exit-code", "--", "true"]);
    assert!(!text.expect(0).out().contains("still pending"), "{}", text.out());
    sandbox.submit("four");
    sandbox.submit("five");
    let text = sandbox.draftq(["run", "--limit=1", "--format=text", "--exit-code", "--", "true"]);
    assert!(text.expect(0).out().contains("1 draft still pending"), "{}", text.out());
}

#[test]
fn jobs_run_at_the_same_time() {
    let sandbox = Sandbox::new();
    sandbox.submit("the writer");
    sandbox.submit("the reader");
    fifo(sandbox.path("meeting"));
    // Each program waits for the other, so they must run at the same time.
    let script = r#"case "$(cat)" in
        *writer*) echo hello > meeting ;;
        *) read -r word < meeting; test "$word" = hello ;;
    esac"#;
    let ran = sandbox.draftq(by_exit_code(&["--jobs", "2", "--timeout-secs", "20"], script));
    assert_eq!(counts(&ran.expect(0).json())["accepted"], 2);
}

#[test]
fn a_worker_that_cannot_be_started_ends_the_run() {
    let sandbox = Sandbox::new();
    sandbox.submit("one");
    let mut command = sandbox.command_of("sh");
    // Memory for the stacks of some threads, but not of all.
    let script = r#"ulimit -v 400000 && exec "$0" run --jobs 1000 --defer"#;
    command.args(["-c", script, env!("CARGO_BIN_EXE_draftq")]);
    let ran = crate::harness::finish(command, b"");
    assert!(ran.expect(74).err().contains("cannot start a worker"), "{}", ran.err());
    assert_eq!(counts(&ran.json())["pending_seen"], 1);
    assert_eq!(states(&sandbox), of([("pending", 1)]));
}

#[test]
fn programs_are_killed_after_the_grace_period() {
    let sandbox = Sandbox::new();
    for text in ["one", "two", "three"] {
        sandbox.submit(text);
    }
    let started = fifo(sandbox.path("started"));
    let script = "trap '' TERM INT; echo x > started; sleep 90";
    let mut command = sandbox.command(sh(&["--jobs", "2", "--grace-secs", "1"], script));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // The line of each program, in one opening or two.
    let mut lines = 0;
    while lines < 2 {
        let mut told = String::new();
        File::open(&started).unwrap().read_to_string(&mut told).unwrap();
        lines += told.lines().count();
    }
    let begun = Instant::now();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(70));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        counts(&document),
        BTreeMap::from([("pending_seen", 3), ("claimed", 2), ("deferred", 2)])
    );
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    // The drafts are not to blame: they are pending again, without an error.
    assert_eq!(states(&sandbox), of([("pending", 3)]));
    let listed = sandbox.draftq(["list", "--json"]).expect(0).lines();
    assert!(listed.iter().all(|record| record["errors"] == 0), "{listed:?}");
}

#[test]
fn a_timeout_kills_the_program_and_its_children() {
    let sandbox = Sandbox::new();
    let id = sandbox.submit("slow");
    let alive = fifo(sandbox.path("alive"));
    let begun = Instant::now();
    // The FIFO ends when no process has it open.
    let all_dead = thread::spawn(move || File::open(alive).unwrap().read_to_end(&mut Vec::new()));
    let script = "trap '' TERM INT HUP; exec 3>alive; sleep 90 & (sleep 90 &) ; sleep 90";
    let ran = sandbox.draftq(sh(&["--timeout-secs", "1"], script));
    assert_eq!(counts(&ran.expect(70).json())["errors"], 1);
    all_dead.join().unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(sandbox.show(&id)["last_error_class"], "timeout");
}

#[test]
fn run_with_sweep_submits_and_processes() {
    let sandbox = Sandbox::new();
    sandbox.file("notes/a.md", "please accepted");
    sandbox.file("notes/b.md", "please skipped");
    sandbox.file("notes/empty.md", "");
    let script = format!("draft=$(cat); {AS_ASKED}");
    let options = ["--sweep", "notes", "--agent", "claude"];
    let document = sandbox.draftq(sh(&options, &script)).expect(0).json();
    assert_eq!(document["sweep"]["submitted"], 2);
    assert_eq!(document["sweep"]["skipped_empty"], 1);
    assert_eq!(states(&sandbox), of([("accepted", 1), ("skipped", 1)]));
    assert_eq!(sandbox.draftq(["list", "--json", "--agent=claude"]).expect(0).lines().len(), 2);
    // Processed drafts are not processed again.
    let again = sandbox.draftq(by_exit_code(&options, "exit 1")).expect(0).json();
    assert_eq!(again["sweep"]["already_present"], 2);
}

#[test]
fn a_missing_program_is_reported_before_any_claim() {
    let sandbox = Sandbox::new();
    sandbox.file("not-executable", "#!/bin/sh\n");
    sandbox.file("notes/a.md", "not to be swept");
    let programs = ["no-such-program-anywhere", "./missing", "./not-executable", "./notes", ""];
    for program in programs {
        let ran = sandbox.draftq(["run", "--sweep", "notes", "--", program]);
        assert_eq!(ran.expect(66).out(), "");
        assert!(ran.err().contains(program), "{}", ran.err());
    }
    assert!(!sandbox.db().exists());

    // In PATH, too, a file that cannot be executed is another mistake than none.
    for (program, why) in
        [("not-executable", "Permission denied"), ("no-such-program", "no such program in PATH")]
    {
        let mut run = sandbox.command(["run", "--", program]);
        run.env("PATH", sandbox.path(""));
        let ran = finish(run, b"");
        assert!(ran.expect(66).err().contains(why), "{}", ran.err());
    }

    let id = sandbox.submit("one");
    let before = (sandbox.show(&id), fs::read(sandbox.db()).unwrap());
    for program in programs {
        sandbox.draftq(["run", "--", program]).expect(66);
    }
    assert_eq!((sandbox.show(&id), fs::read(sandbox.db()).unwrap()), before);
}

#[test]
fn wrong_usage_changes_nothing() {
    let sandbox = Sandbox::new();
    for args in [
        &["run"][..],
        &["run", "--"],
        &["run", "true"],
        &["run", "--defer", "--exit-code", "--", "true"],
        &["run", "--jobs=0", "--exit-code", "--", "true"],
        &["run", "--jobs=100000", "--exit-code", "--", "true"],
        &["run", "--limit=0", "--exit-code", "--", "true"],
        &["run", "--timeout-secs=0", "--exit-code", "--", "true"],
        &["run", "--timeout-secs=1", "--defer"],
        &["run", "--exit-code", "--defer"],
        &["run", "--max-errors=-1", "--exit-code", "--", "true"],
        &["run", "--operator=x", "--defer"],
    ] {
        assert_eq!(sandbox.draftq(args).expect(64).out(), "", "{args:?}");
    }
    assert!(!sandbox.db().exists());
}

#[test]
fn the_text_is_in_no_arguments_and_no_environment() {
    let sandbox = Sandbox::new();
    let id = sandbox.submit("CANARY-in-the-text");
    let script =
        "cat /proc/$$/cmdline /proc/$$/environ /proc/$PPID/cmdline /proc/$PPID/environ > seen
        cat > envelope";
    sandbox.draftq(by_exit_code(&[], script)).expect(0);
    let seen = fs::read(sandbox.path("seen")).unwrap();
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains("PATH=") && seen.contains("run"), "{seen}");
    assert!(!seen.contains("CANARY"), "{seen}");

    // It is on standard input, as the file version's envelope: one line, every key.
    let envelope = fs::read_to_string(sandbox.path("envelope")).unwrap();
    assert!(envelope.ends_with('\n') && envelope.lines().count() == 1, "{envelope}");
    let mut envelope: Value = serde_json::from_str(&envelope).unwrap();
    assert!(envelope["submitted_at_unix_ms"].take().as_i64().unwrap() > 1_600_000_000_000);
    let expected = json!({"schema_version": 2, "id": id, "source_surface": "cli",
        "source_agent": null, "source_project": null, "operator": null, "provenance_uri": null,
        "context_tags": [], "submitted_at_unix_ms": null, "raw_text": "CANARY-in-the-text"});
    assert_eq!(envelope, expected);
}

#[test]
fn a_program_that_writes_hostile_json_is_still_shown_as_json() {
    let sandbox = Sandbox::new();
    let id = sandbox.submit("x");
    // White space that JSON allows between tokens, and characters that it leaves raw in strings.
    let script = r#"printf '{"decision":"accepted","note":"\\u001b[2J\342\200\256\302\233\177\\u0000","output":{"a":\r[1,\t"\302\233\342\200\256\177"],\r"\342\201\246":"\\u001b"}}\n'"#;
    sandbox.draftq(sh(&[], script)).expect(0);
    for args in [&["show", &id, "--json"][..], &["list", "--json"]] {
        let ran = sandbox.draftq(args);
        let shown = ran.expect(0).json();
        assert_eq!(shown["note"], "\u{1b}[2J\u{202e}\u{9b}\u{7f}\0");
        assert_eq!(
            shown["output"],
            json!({"a": [1, "\u{9b}\u{202e}\u{7f}"], "\u{2066}": "\u{1b}"})
        );
        assert_eq!(ran.out().lines().count(), 1);
    }
    for args in [&["show", &id, "--json"][..], &["list", "--json"], &["show", &id], &["list"]] {
        let ran = sandbox.draftq(args);
        let raw = ran
            .expect(0)
            .out()
            .find(|c: char| (c.is_control() && c != '\n') || ['\u{202e}', '\u{2066}'].contains(&c));
        assert_eq!(raw, None, "{args:?}: {:?}", ran.out());
    }
}

#[test]
fn a_failing_standard_output_loses_no_decision() {
    let sandbox = Sandbox::new();
    let id = sandbox.submit("full");
    let mut command = sandbox.command(["run", "--exit-code", "--", "true"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = command.stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(74));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write the output"));
    assert_eq!(sandbox.show(&id)["state"], "accepted");

    let id = sandbox.submit("closed");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = sandbox
        .command(["-q", "run", "--exit-code", "--", "true"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
    assert_eq!(sandbox.show(&id)["state"], "accepted");
}

#[test]
fn a_failing_log_does_not_end_a_run() {
    let sandbox = Sandbox::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    for stderr in [Stdio::from(full), Stdio::from(closed)] {
        for text in ["one", "two"] {
            let id = sandbox.submit(text);
            sandbox.draftq(["requeue", &id]).expect(0);
        }
        let mut command = sandbox.command(["run", "--exit-code", "--", "true"]);
        let output = command.env("RUST_LOG", "trace").stderr(stderr).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(counts(&document)["accepted"], 2);
    }
}

#[test]
fn the_example_judge_decides_about_the_example_drafts() {
    let judge = Path::new(env!("CARGO_BIN_EXE_draftq")).with_file_name("examples").join("judge");
    assert!(judge.exists(), "{} is not built: cargo build --examples", judge.display());
    let drafts = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let sandbox = Sandbox::new();
    let mut run = sandbox.command(["run", "--sweep"]);
    run.arg(&drafts).arg("--").arg(judge);
    let ran = finish(run, b"");
    assert_eq!(ran.expect(70).json()["summary"]["deferred"], 1);

    let prefix = format!("file://{}/", drafts.display());
    let mut decided = BTreeMap::new();
    for record in sandbox.draftq(["list", "--json", "--limit=0"]).expect(0).lines() {
        let uri = record["provenance_uri"].as_str().unwrap();
        let decision = record["decision"].as_str().unwrap().to_owned();
        assert!(record["output"]["rule"].is_string(), "{record}");
        assert_eq!(record["due_at_unix_ms"].is_i64(), decision == "deferred", "{record}");
        decided.insert(uri.strip_prefix(&prefix).unwrap().to_owned(), decision);
    }
    let expected = [
        ("drafts/api-rate-limits.md", "accepted"),
        ("drafts/clipped-pricing-page.md", "quarantined"),
        ("drafts/flaky-clock-test.md", "accepted"),
        ("drafts/handoffs/billing-export.md", "accepted"),
        ("drafts/handoffs/mobile-login.md", "failed"),
        ("drafts/haus/bibliothek-umzug.md", "accepted"),
        ("drafts/onboarding.md", "skipped"),
        ("drafts/postgres-timezones.md", "accepted"),
        ("drafts/queue-lag-incident.md", "accepted"),
        ("drafts/release-order.md", "accepted"),
        ("drafts/session-notes.md", "skipped"),
        ("drafts/small-commits.md", "accepted"),
        ("drafts/soil-sensors.txt", "accepted"),
        ("drafts/thanks.txt", "skipped"),
        ("drafts/vendor-call.txt", "accepted"),
        ("unfinished/search-index.md", "deferred"),
    ];
    assert_eq!(decided, expected.map(|(name, it)| (name.to_owned(), it.to_owned())).into());
}
