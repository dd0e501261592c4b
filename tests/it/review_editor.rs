//! `draftq review --editor` and `--apply`, and `draftq decide`.

use std::path::PathBuf;

use draftq::RunnerInfo;
use serde_json::{Value, json};

use crate::harness::{Ran, Sandbox, assert_whole, claim, finish};

/// Quarantined drafts; their ids.
fn quarantined(sandbox: &Sandbox, texts: &[&str]) -> Vec<String> {
    let ids: Vec<String> = texts.iter().map(|text| sandbox.submit(text)).collect();
    let answer = r#"echo '{"decision":"quarantined","note":"doubtful"}'"#;
    sandbox.draftq(["run", "--", "sh", "-c", answer]).expect(0);
    ids
}

/// `review --editor` with this shell script as the editor; `$1` is the file.
fn edit(sandbox: &Sandbox, script: &str, arguments: &[&str]) -> Ran {
    let path = sandbox.file("editor.sh", script);
    let mut command = sandbox.command(["review", "--editor", "--by=anna"]);
    command.args(arguments).env("EDITOR", format!("sh {}", path.display()));
    command.env("TMPDIR", sandbox.path(""));
    finish(command, b"")
}

/// The private directories that are left.
fn left(sandbox: &Sandbox) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(sandbox.path("")).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("draftq-"))
        .collect()
}

fn last_event(sandbox: &Sandbox, id: &str) -> Value {
    let shown = sandbox.show(id);
    let event = shown["history"].as_array().unwrap().last().unwrap().clone();
    json!([event["event"], event["to_state"], event["decided_by"], event["note"]])
}

#[test]
fn verdicts_of_the_file_are_shown_and_done() {
    let sandbox = Sandbox::new();
    // The second text looks like the file itself.
    let hostile = "verdict: accept\nnote: sent by the draft\n==== draft 0123456789abcdef event 1\n\
                   verdict: accept\r\nverdict: accept";
    let ids = quarantined(&sandbox, &["first", hostile, "third"]);
    let third = format!("/{}/,/^note:/{{s/^verdict:.*/verdict: requeue/}}", ids[2]);
    let first = format!(
        "/{}/,/^note:/{{s/^verdict:.*/verdict: Accepted/;s/^note:.*/note: read it/}}",
        ids[0]
    );
    let ran = edit(&sandbox, &format!("sed -i -e '{first}' -e '{third}' \"$1\""), &[]);
    let expected =
        format!("{}  quarantined to accepted\n{}  quarantined to pending\n", ids[0], ids[2]);
    assert_eq!(ran.expect(0).out(), expected);
    assert_eq!(ran.err(), format!("{}  accept  read it\n{}  requeue\n", ids[0], ids[2]));
    assert_eq!(last_event(&sandbox, &ids[0]), json!(["resolved", "accepted", "anna", "read it"]));
    assert_eq!(sandbox.show(&ids[1])["state"], "quarantined");
    assert_eq!(
        last_event(&sandbox, &ids[2]),
        json!(["requeued", "pending", null, "requeued by anna"])
    );
    assert!(left(&sandbox).is_empty());

    let ran = edit(&sandbox, "true", &[]);
    assert_eq!(ran.expect(0).out(), "No verdict was written; nothing was decided.\n");
    let ran = edit(&sandbox, "sed -i 's/^verdict:.*/verdict: fail/' \"$1\"", &["--json"]);
    assert_eq!(
        ran.expect(0).lines(),
        [json!({"id": ids[1], "from": "quarantined", "state": "failed"})]
    );
    let ran = edit(&sandbox, "true", &["--state=skipped"]);
    assert!(ran.expect(0).out().starts_with("No such drafts in "));
    assert!(left(&sandbox).is_empty());
    assert_whole(&sandbox.db());
}

#[test]
fn a_malformed_file_is_kept_and_can_be_applied_later() {
    let sandbox = Sandbox::new();
    let ids = quarantined(&sandbox, &["first", "second"]);
    let script = "sed -i -e 's/^verdict:.*/verdict: approve/' \"$1\"";
    let ran = edit(&sandbox, script, &[]);
    let [directory] = left(&sandbox).try_into().unwrap();
    let file = directory.join("review.txt");
    let said = format!(
        "draftq: line 6: expected accept, skip, fail, quarantine or requeue; the file is kept: correct it, then run draftq review --apply {}\n",
        file.display()
    );
    assert_eq!(ran.expect(65).err(), said);
    assert_eq!(sandbox.show(&ids[0])["state"], "quarantined");
    let path = file.to_str().unwrap();
    let refused = sandbox.draftq(["review", "--apply", path]);
    assert!(refused.expect(65).err().contains("line 6: expected accept"), "{}", refused.err());
    let corrected = std::fs::read_to_string(&file).unwrap().replace("approve", "skip");
    std::fs::write(&file, &corrected).unwrap();
    sandbox.draftq(["decide", &ids[0], "accepted", "--by=ben"]).expect(0);
    // A draft that changed since the file was written is left alone.
    let ran = sandbox.draftq(["review", "--apply", path, "--by=anna"]);
    assert_eq!(ran.expect(65).out(), format!("{}  quarantined to skipped\n", ids[1]));
    assert!(
        ran.err()
            .contains(&format!("draft {} was changed in the meantime: it is accepted now", ids[0]))
    );
    assert!(ran.err().ends_with("draftq: 1 move is not done, 1 is done\n"), "{}", ran.err());
    assert_eq!(last_event(&sandbox, &ids[0]), json!(["resolved", "accepted", "ben", null]));
    sandbox.draftq(["review", "--apply", "nowhere"]).expect(66);
    sandbox.draftq(["review", "--apply", path, "--state=failed"]).expect(64);
}

#[test]
fn an_editor_that_fails_loses_nothing() {
    let sandbox = Sandbox::new();
    quarantined(&sandbox, &["first"]);
    let ran = edit(&sandbox, "exit 1", &[]);
    assert_eq!(
        ran.expect(65).err(),
        "draftq: the editor ended with exit status 1; nothing was decided\n"
    );
    assert!(left(&sandbox).is_empty());
    let ran = edit(&sandbox, "sed -i 's/^verdict:/verdict: accept/' \"$1\"; exit 1", &[]);
    assert!(ran.expect(65).err().contains("the file is kept: "), "{}", ran.err());
    assert_eq!(left(&sandbox).len(), 1);
}

#[test]
fn decide_moves_several_drafts_or_none() {
    let sandbox = Sandbox::new();
    let ids = quarantined(&sandbox, &["first", "second"]);
    let pending = sandbox.submit("pending");
    let both = ["decide", &ids[0][..10], &ids[1], "accepted", "--note=read it", "--by=anna"];
    let dry = sandbox.draftq([&both[..], &["--dry-run"]].concat());
    assert!(
        dry.expect(0).out().ends_with("Would move 2 drafts to accepted; nothing was changed.\n")
    );
    let done = sandbox.draftq([&both[..], &["--json"]].concat()).expect(0).lines();
    let moved = |id: &str| json!({"id": id, "from": "quarantined", "state": "accepted"});
    assert_eq!(done, [moved(&ids[0]), moved(&ids[1])]);
    assert_eq!(last_event(&sandbox, &ids[0]), json!(["resolved", "accepted", "anna", "read it"]));

    let store = sandbox.store();
    let runner = store.register_runner(RunnerInfo::new("judge")).unwrap();
    let _held = claim(&store, &runner);
    for more in [&[][..], &["--dry-run"]] {
        let refused = sandbox.draftq([&["decide", &ids[0], &pending, "failed"], more].concat());
        let said = format!(
            "draft {pending} is held by runner {} (processor judge, process {})",
            runner.id(),
            std::process::id()
        );
        assert!(refused.expect(65).err().contains(&said), "{}", refused.err());
    }
    assert_eq!(sandbox.show(&ids[0])["state"], "accepted", "all or none");

    // By filters: in batches, quarantined and failed unless --state says otherwise.
    let third = sandbox.submit("third");
    let answer = r#"echo '{"decision":"failed"}'"#;
    sandbox.draftq(["run", "--", "sh", "-c", answer]).expect(0);
    let refused = sandbox.draftq(["decide", "--agent=nobody", "skipped"]);
    assert!(refused.expect(64).err().contains("then give --yes"), "{}", refused.err());
    let done = sandbox.draftq(["decide", "--grep=t", "skipped", "--yes", "--by=anna"]);
    assert_eq!(done.expect(0).out(), "Moved 1 draft to skipped.\n");
    assert_eq!(sandbox.show(&third)["state"], "skipped");
    let done = sandbox.draftq(["decide", "--state=processing", "skipped", "--yes"]);
    assert_eq!(done.expect(0).out(), "Moved 0 drafts to skipped; 1 is held by a live runner.\n");
    // Without --by, the user's name signs.
    sandbox.draftq(["decide", &third, "accepted"]).expect(0);
    let name = finish(sandbox.command_of("id"), b"");
    let by = last_event(&sandbox, &third)[2].as_str().unwrap().to_owned();
    assert!(name.out().contains(&format!("({by})")), "{by}, {}", name.out());
    assert_whole(&sandbox.db());
}

#[test]
fn decide_refuses_what_it_cannot_understand() {
    let sandbox = Sandbox::new();
    let id = quarantined(&sandbox, &["first"]).remove(0);
    let long = "x".repeat(65_537);
    for (arguments, code, said) in [
        (
            &["decide", id.as_str()][..],
            64,
            "give ids and one decision: accepted, skipped, failed or quarantined",
        ),
        (&["decide", &id, "deferred"], 64, "give ids and one decision"),
        (&["decide", &id, "accepted", "failed"], 64, "give ids and one decision"),
        (&["decide", &id, "approved"], 64, "give ids and one decision"),
        (&["decide", "accepted"], 64, "no drafts are selected"),
        (&["decide", "ffffffffffffffff", "accepted"], 66, "no draft's id begins with"),
        (&["decide", &id, "accepted", "--by", " "], 65, "needs the name of the person"),
        (&["decide", &id, "accepted", "--note", &long], 65, "the note is longer than 65536 bytes"),
    ] {
        let ran = sandbox.draftq(arguments);
        assert!(ran.expect(code).err().contains(said), "{}", ran.err());
    }
    assert_eq!(sandbox.show(&id)["state"], "quarantined");
}
