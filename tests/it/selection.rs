//! The filters of `list` and `requeue`, and which drafts a requeue does not change.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use draftq::{
    Claimed, Draft, DraftProcessingDecision, DraftProcessor, DraftQuery, DraftState,
    LibrarianError, Runner, unix_ms,
};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Sandbox, draft, finish, have, setting};
use crate::output::peak_mib_unless_ended;

fn ids(sandbox: &Sandbox, args: &[&str]) -> Vec<String> {
    let args = [&["list", "--json", "--oldest"], args].concat();
    let records = sandbox.draftq(&args).expect(0).lines();
    records.iter().map(|record| record["id"].as_str().unwrap().to_owned()).collect()
}

/// The JSON of every draft.
fn all(sandbox: &Sandbox) -> Vec<Value> {
    sandbox.draftq(["list", "--json", "--oldest", "--limit=0"]).expect(0).lines()
}

/// A draft that has failed because its errors, from this shell line, reached the budget.
fn exhausted(sandbox: &Sandbox, text: &str, shell: &str) -> String {
    let id = sandbox.submit(text);
    sandbox.draftq(["run", "--max-errors=1", "--", "sh", "-c", shell]).expect(70);
    sandbox.draftq(["run", "--stale-processing-secs=0", "--defer"]).expect(0);
    assert_eq!(sandbox.show(&id)["state"], "failed");
    id
}

fn decided(sandbox: &Sandbox, line: &str, decision: &str) -> String {
    let ran = sandbox.draftq_reading(["submit", "--jsonl", "-"], line.as_bytes());
    let id = ran.expect(0).json()["id"].as_str().unwrap().to_owned();
    let shell = format!("echo '{{\"decision\":\"{decision}\"}}'");
    let code = if decision == "deferred" { 70 } else { 0 };
    sandbox.draftq(["run", "--", "sh", "-c", &shell]).expect(code);
    id
}

struct Skips;

impl DraftProcessor for Skips {
    fn process(&mut self, _: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        Ok(DraftProcessingDecision::Skipped)
    }
}

#[test]
fn every_filter_selects() {
    let sandbox = Sandbox::new();
    let failed = exhausted(&sandbox, "one\nthe Staging port", "echo boom 100% >&2; exit 3");
    let protocol = exhausted(&sandbox, "two", "echo prose");
    let old = r#"{"raw_text":"three","source_agent":"claude","source_project":"-p","context_tags":["a","b"],"submitted_at_unix_ms":1000}"#;
    let old = decided(&sandbox, old, "accepted");
    let handoff = r#"{"raw_text":"staging","source_surface":"repo_handoff"}"#;
    let handoff = decided(&sandbox, handoff, "quarantined");
    let skipped = sandbox.submit("five");
    let store = sandbox.store();
    Runner::new(&store, "judge").run_one(&mut Skips, SystemTime::now()).into_result().unwrap();
    let connection = Connection::open(sandbox.db()).unwrap();
    let versioned = connection
        .execute("UPDATE runners SET processor_version = '2' WHERE processor = 'judge'", []);
    assert_eq!(versioned, Ok(1));
    let later = r#"echo '{"decision":"deferred","retry_after_secs":3600}'"#;
    let deferred = sandbox.submit("six");
    sandbox.draftq(["run", "--", "sh", "-c", later]).expect(70);
    let pending = sandbox.submit("seven");
    let held = sandbox.submit("eight");
    let holder = store.register_runner("holder").unwrap();
    let mut snapshot = store.pending_snapshot().unwrap();
    let mut claim = || match store.claim_next(&holder, &mut snapshot).unwrap() {
        Some(Claimed::Draft(claim)) => *claim,
        _ => panic!("nothing was claimed"),
    };
    // A released claim is not an attempt.
    store.release(claim()).unwrap();
    let _claim = claim();
    let everything = [&failed, &protocol, &old, &handoff, &skipped, &deferred, &pending, &held]
        .map(String::as_str);
    assert_eq!(ids(&sandbox, &[]), everything);

    let prefix = &failed[..12];
    for (args, expected) in [
        (&["--state=failed,accepted"][..], &[&failed, &protocol, &old][..]),
        (&["--state=failed", "--state=accepted"], &[&failed, &protocol, &old]),
        (&["--state=pending"], &[&deferred, &pending]),
        (&["--state=pending,processing,skipped"], &[&skipped, &deferred, &pending, &held]),
        (&["--state=processing"], &[&held]),
        (&["--agent=claude"], &[&old]),
        (&["--project=-p"], &[&old]),
        (&["--surface=repo-handoff"], &[&handoff]),
        (&["--tag=b"], &[&old]),
        (&["--until=1970-01-02"], &[&old]),
        (&["--until=1h"], &[&old]),
        (&["--since=1h", "--state=accepted"], &[]),
        (&["--since=1h", "--state=accepted", "--of=updated"], &[&old]),
        (&["--since=1h", "--state=accepted", "--of=submitted"], &[]),
        (&["--until=1970-01-02", "--of=updated"], &[]),
        (&["--until=1970-01-01T00:00:01Z"], &[]),
        (&["--error-class=exit"], &[&failed]),
        (&["--error-class=protocol"], &[&protocol]),
        (&["--error-class=%"], &[]),
        (&["--error=boom 100%"], &[&failed]),
        (&["--error=Boom"], &[]),
        (&["--decision=accepted"], &[&old]),
        (&["--decision=deferred"], &[&deferred]),
        (&["--decision=failed"], &[]),
        (&["--processor=sh"], &[&failed, &protocol, &old, &handoff, &deferred]),
        (&["--processor=holder"], &[&held]),
        (&["--processor=judge"], &[&skipped]),
        (&["--processor=judge@2"], &[&skipped]),
        (&["--processor=judge@1"], &[]),
        (&["--processor=sh@2"], &[]),
        (&["--grep=staging"], &[&handoff]),
        (&["--grep=(?i)staging"], &[&failed, &handoff]),
        (&["--grep=^(two|five)$"], &[&protocol, &skipped]),
        (&["--grep=-"], &[]),
        (&["--grep=(?i)staging", "--limit=1"], &[&failed]),
        (&["--limit=2"], &[&failed, &protocol]),
        (&[prefix], &[&failed]),
        (&[&pending, prefix, &failed], &[&failed, &pending]),
        (&[&pending, prefix, "--state=pending"], &[&pending]),
        (&[prefix, "--error-class=protocol"], &[]),
    ] {
        let expected: Vec<&str> = expected.iter().map(|id| id.as_str()).collect();
        assert_eq!(ids(&sandbox, args), expected, "{args:?}");
        let mut reversed = sandbox.draftq([&["list", "--json"], args].concat()).expect(0).lines();
        if !args.iter().any(|arg| arg.starts_with("--limit")) {
            reversed.reverse();
            let reversed: Vec<_> = reversed.iter().map(|it| it["id"].as_str().unwrap()).collect();
            assert_eq!(reversed, expected, "newest first: {args:?}");
        }
    }
    let text = sandbox.draftq(["list", "--grep=(?i)staging", "--limit=1", "--oldest"]);
    assert!(text.expect(0).out().contains("perhaps more"), "{}", text.out());

    for (args, said) in [
        (&["--state=failed,done"][..], "done"),
        (&["--decision=done"], "expected one of accepted"),
        (&["--of=updated"], "--since"),
        (&["--of=claimed", "--since=1h"], "updated"),
        (&["--until=soon"], "expected an age"),
        // The pattern may quote a draft.
        (&["--grep=secret("], "unclosed group"),
        (&["--grep=secret{99999}{99999}"], "reasonable size"),
    ] {
        for command in [&["list"][..], &["requeue", "--yes"]] {
            let ran = sandbox.draftq([command, args].concat());
            assert!(ran.expect(64).err().contains(said), "{}", ran.err());
            assert!(!ran.err().contains("secret"), "{}", ran.err());
        }
    }
}

/// A requeue without ids needs a filter, and each filter is one.
#[test]
fn each_filter_alone_selects_for_a_requeue() {
    let sandbox = Sandbox::new();
    let line = r#"{"raw_text":"one","source_agent":"claude","source_project":"p","context_tags":["a"],"submitted_at_unix_ms":1000}"#;
    let id = decided(&sandbox, line, "accepted");
    let filters = [
        "--state=accepted",
        "--agent=claude",
        "--project=p",
        "--surface=cli",
        "--tag=a",
        "--since=1970-01-01",
        "--until=1h",
        "--decision=accepted",
        "--processor=sh",
        "--grep=one",
    ];
    for filter in filters {
        let ran = sandbox.draftq(["requeue", "--dry-run", "--json", filter]);
        let selected = ran.expect(0).lines();
        assert_eq!(selected.len(), 1, "{filter}");
        assert_eq!(selected[0]["id"], *id, "{filter}");
    }
    let id = exhausted(&sandbox, "two", "echo boom >&2; exit 3");
    for filter in ["--error-class=exit", "--error=boom"] {
        let ran = sandbox.draftq(["requeue", "--dry-run", "--json", filter]);
        let selected = ran.expect(0).lines();
        assert_eq!(selected.len(), 1, "{filter}");
        assert_eq!(selected[0]["id"], *id, "{filter}");
    }
    sandbox.draftq(["requeue", "--dry-run", "--limit=1"]).expect(64);
}

/// Names of processors are the caller's, and may begin like a version.
#[test]
fn a_processor_whose_name_begins_with_an_at_sign_is_selected() {
    let sandbox = Sandbox::new();
    let id = sandbox.submit("one");
    let runner = Runner::new(&sandbox.store(), "@judge");
    runner.run_one(&mut Skips, SystemTime::now()).into_result().unwrap();
    assert_eq!(ids(&sandbox, &["--processor=@judge"]), [id]);
}

#[test]
fn a_requeue_by_filters_changes_only_selected_drafts() {
    let sandbox = Sandbox::new();
    let outage = exhausted(&sandbox, "outage", "exit 3");
    let also = exhausted(&sandbox, "outage as well", "exit 4");
    exhausted(&sandbox, "protocol", "echo prose");
    let earlier = r#"{"raw_text":"earlier","submitted_at_unix_ms":1000}"#;
    sandbox.draftq_reading(["submit", "--jsonl", "-"], earlier.as_bytes()).expect(0);
    sandbox.draftq(["run", "--max-errors=1", "--", "sh", "-c", "exit 3"]).expect(70);
    sandbox.draftq(["run", "--stale-processing-secs=0", "--defer"]).expect(0);
    decided(&sandbox, r#"{"raw_text":"by decision"}"#, "failed");
    decided(&sandbox, r#"{"raw_text":"accepted"}"#, "accepted");
    let store = sandbox.store();
    let processing = sandbox.submit("processing");
    sandbox.draftq(["run", "--", "sh", "-c", "exit 3"]).expect(70);
    assert_eq!(sandbox.show(&processing)["last_error_class"], "exit");
    let pending = sandbox.submit("pending");
    let before = all(&sandbox);

    let outage_only = ["--state=failed", "--error-class=exit", "--since=2h"];
    let requeue = |more: &[&str]| sandbox.draftq([&["requeue"], &outage_only[..], more].concat());
    let refused = requeue(&[]);
    assert_eq!(refused.expect(64).out(), "");
    assert!(refused.err().contains("--dry-run") && refused.err().contains("--yes"));

    let dry = requeue(&["--dry-run"]);
    let text = dry.expect(0).out();
    assert!(text.ends_with("Would requeue 2 drafts; nothing was changed.\n"), "{text}");
    assert!(text.contains(&outage) && text.contains(&also), "{text}");
    let dry = requeue(&["--dry-run", "--json", "--oldest"]).expect(0).lines();
    let expected =
        |id: &str| json!({"id": id, "from": "failed", "state": "pending", "dry_run": true});
    assert_eq!(dry, [expected(&outage), expected(&also)]);
    assert_eq!(all(&sandbox), before, "a dry run changes nothing");

    let one = requeue(&["--yes", "--limit=1", "--oldest", "--json"]).expect(0).lines();
    assert_eq!(one, [json!({"id": outage, "from": "failed", "state": "pending"})]);
    assert_eq!(requeue(&["--yes"]).expect(0).out(), "Requeued 1 draft.\n");
    assert_eq!(requeue(&["--yes"]).expect(0).out(), "Requeued 0 drafts.\n");
    let after = all(&sandbox);
    for (before, after) in before.iter().zip(&after) {
        let id = &before["id"];
        if *id == *outage || *id == *also {
            assert_eq!((&after["state"], &after["errors"]), (&json!("pending"), &json!(0)));
        } else {
            assert_eq!(before, after);
        }
    }

    // Without --state, unfinished drafts are not changed.
    let finished = sandbox.draftq(["requeue", "--since=1970-01-01", "--yes"]);
    assert_eq!(finished.expect(0).out(), "Requeued 4 drafts.\n");
    assert_eq!(sandbox.show(&processing)["state"], "processing");
    assert_eq!(sandbox.show(&pending)["history"].as_array().unwrap().len(), 1);
    let asked = sandbox.draftq(["requeue", "--state=pending", "--yes"]);
    assert!(asked.expect(0).out().starts_with("Requeued 0 drafts; 7 were pending already."));

    // With ids, filters narrow the selection, and --yes is not needed.
    for decision in [r#"{"raw_text":"x"}"#, r#"{"raw_text":"y"}"#] {
        decided(&sandbox, decision, "skipped");
    }
    let skipped = ids(&sandbox, &["--state=skipped"]);
    assert_eq!(skipped.len(), 9);
    let narrowed = sandbox.draftq(["requeue", &skipped[0], &processing, "--state=skipped"]);
    assert_eq!(narrowed.expect(0).out(), "Requeued 1 draft.\n");
    let narrowed = sandbox.draftq(["requeue", &skipped[0], &processing, "--agent=nobody"]);
    assert_eq!(narrowed.expect(0).out(), "Requeued 0 drafts.\n");
    assert_eq!(sandbox.draftq(["requeue", "--limit=3", "--yes"]).expect(64).out(), "");
    drop(store);
}

#[test]
fn a_requeue_by_filters_asks_on_a_terminal() {
    if !have("script") {
        return;
    }
    let sandbox = Sandbox::new();
    for text in ["one", "two"] {
        sandbox.submit(text);
    }
    sandbox.draftq(["run", "--exit-code", "--", "true"]).expect(0);
    let line = format!("{} requeue --state accepted", env!("CARGO_BIN_EXE_draftq"));
    for (answer, asked, moved) in [
        ("n\n", "Requeue 2 drafts? [y/N]", 0),
        ("\n", "Requeue 2 drafts? [y/N]", 0),
        ("y\n", "Requeue 2 drafts? [y/N]", 2),
        ("", "Requeued 0 drafts.", 2),
    ] {
        let mut script = sandbox.command_of("script");
        script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped());
        let ran = finish(script, answer.as_bytes());
        assert!(ran.expect(0).out().contains(asked), "{answer:?}: {}", ran.out());
        let stats = sandbox.draftq(["stats", "--json"]).expect(0).json();
        assert_eq!(stats["states"]["pending"], moved, "{answer:?}: {}", ran.out());
    }
}

#[test]
fn a_draft_that_moves_meanwhile_is_requeued_only_if_it_still_matches() {
    let sandbox = Sandbox::new();
    for text in ["moved", "not moved"] {
        sandbox.submit(text);
    }
    let connection = Connection::open(sandbox.db()).unwrap();
    let decide = |decision: &str, rows: &str| {
        let by_hand = format!(
            "UPDATE drafts SET state = '{decision}', decision = '{decision}', decided_by = 'me' \
             WHERE {rows}"
        );
        connection.execute(&by_hand, []).unwrap();
    };
    decide("failed", "true");
    let (asked, answer) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let (ask, wait) = (asked.0, std::sync::Mutex::new(answer.1));
    let query = DraftQuery::default().states([DraftState::Failed]).text_matching(move |text| {
        if text == "moved" {
            ask.send(()).unwrap();
            wait.lock().unwrap().recv().unwrap();
        }
        true
    });
    let store = sandbox.store();
    let page = std::thread::scope(|scope| {
        let requeue = scope.spawn(|| store.requeue_matching(&query).unwrap());
        asked.1.recv_timeout(Duration::from_secs(60)).unwrap();
        decide("accepted", "seq = 1");
        answer.0.send(()).unwrap();
        requeue.join().unwrap()
    });
    assert_eq!(
        page.rows.iter().map(|draft| draft.id).collect::<Vec<_>>(),
        [draft("not moved").id()]
    );
    assert_eq!(sandbox.show(&draft("moved").id().to_hex())["state"], "accepted");
}

#[test]
fn a_requeue_completes_although_its_output_is_closed() {
    let sandbox = Sandbox::new();
    let lines: String = (0..1_200).map(|n| format!("{{\"raw_text\":\"{n}\"}}\n")).collect();
    sandbox.draftq_reading(["submit", "--jsonl", "-"], lines.as_bytes()).expect(0);
    let requeue = ["requeue", "--state=accepted", "--yes", "--json"];
    let connection = Connection::open(sandbox.db()).unwrap();
    let accept = "UPDATE drafts SET state = 'accepted', decision = 'accepted', decided_by = 'me'";
    for (full, code) in [(false, 0), (true, 74)] {
        connection.execute(accept, []).unwrap();
        let mut command = sandbox.command(requeue);
        if full {
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            command.stdout(full);
        } else {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            command.stdout(writer);
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.contains("but 1200 drafts were requeued"), full, "{said}");
        assert_eq!(sandbox.store().stats().unwrap().states[0].1, 1_200);
    }
}

/// Run this, and return how many lines it printed and its peak of memory in MiB.
fn peak_over(sandbox: &Sandbox, args: &[&str]) -> (usize, u64) {
    let mut child = sandbox.command(args).stdout(Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let (mut lines, mut peak) = (0, 0);
    for line in BufReader::new(stdout).lines() {
        line.unwrap();
        lines += 1;
        // The last lines may still be in the pipe when it has ended.
        if lines % 100 == 1
            && let Some(mib) = peak_mib_unless_ended(&child)
        {
            peak = peak.max(mib);
        }
    }
    assert!(child.wait().unwrap().success());
    (lines, peak)
}

/// List and requeue this many drafts of 10 KiB.
fn little_memory(drafts: usize) {
    let sandbox = Sandbox::new();
    let store = sandbox.store();
    let mut batches = store.batched_submit();
    let filler = "x".repeat(10 * 1024);
    for number in 0..drafts {
        batches.push(draft(&format!("{number} {filler}"))).unwrap();
    }
    batches.finish().unwrap();
    let now = unix_ms(SystemTime::now());
    let connection = Connection::open(sandbox.db()).unwrap();
    connection.busy_timeout(Duration::from_secs(60)).unwrap();
    connection
        .execute(
            "UPDATE drafts SET state = 'failed', decision = 'failed', decided_by = 'me', \
                 last_error_class = 'exit', last_error = 'out of tokens', updated_at = ?1 \
             WHERE seq % 10",
            [now],
        )
        .unwrap();
    drop(connection);
    let failed = drafts - drafts / 10;
    let some = ["--state=failed", "--error-class=exit", "--grep=^[0-9]*7 x"];
    let matching = (0..drafts).filter(|n| (n + 1) % 10 != 0 && n % 10 == 7).count();
    for (args, expected) in [
        (&["list", "--json", "--limit=0"][..], drafts),
        (&[&["list", "--json", "--limit=0"], &some[..]].concat(), matching),
        (&[&["requeue", "--json", "--dry-run"], &some[..]].concat(), matching),
        (&[&["requeue", "--json", "--yes"], &some[..]].concat(), matching),
        (&["requeue", "--json", "--yes", "--state=failed"], failed - matching),
    ] {
        let (lines, peak) = peak_over(&sandbox, args);
        println!(
            "{{\"test\":\"selection\",\"args\":{args:?},\"lines\":{lines},\"peak_mib\":{peak}}}"
        );
        assert_eq!(lines, expected, "{args:?}");
        assert!(peak > 0 && peak < 32, "{peak} MiB: {args:?}");
    }
    assert_eq!(store.stats().unwrap().states[0], (DraftState::Pending, drafts as u64));
}

#[test]
fn listing_and_requeueing_many_drafts_needs_little_memory() {
    little_memory(5_000);
}

/// `cargo test --release --test it -- --ignored selection`
#[test]
#[ignore = "takes a minute and a gigabyte; its size is set by DRAFTQ_TEST_SELECTION"]
fn listing_and_requeueing_many_drafts_needs_little_memory_long() {
    little_memory(usize::try_from(setting("DRAFTQ_TEST_SELECTION", 100_000)).unwrap());
}
