//! `submit`: accepted and refused input, and the second submit of a draft.

use std::fs;

use draftq::{Draft, DraftMetadata, DraftSourceSurface, DraftState};
use serde_json::{Value, json};

use crate::harness::{Ran, Sandbox, draft};

const LIMIT: usize = 8 * 1024 * 1024;

/// The ids of a submission's lines.
fn ids(ran: &Ran) -> Vec<String> {
    ran.lines().iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect()
}

fn total(sandbox: &Sandbox) -> u64 {
    if !sandbox.db().exists() {
        return 0;
    }
    sandbox.draftq(["stats", "--json"]).expect(0).json()["drafts"].as_u64().unwrap()
}

#[test]
fn every_way_to_submit_gives_the_same_id() {
    let sandbox = Sandbox::new();
    let id = draft("one text\n").id().to_hex();
    let path = sandbox.file("one.md", "one text\n");
    let path = path.to_str().unwrap();
    let fresh = json!({"id": id, "state": "pending", "created": true});
    let again = json!({"id": id, "state": "pending", "created": false});
    assert_eq!(sandbox.draftq(["submit", "--text", "one text\n"]).expect(0).json(), fresh);
    assert_eq!(sandbox.draftq(["submit", "--file", path]).expect(0).json(), again);
    assert_eq!(sandbox.draftq_reading(["submit"], b"one text\n").expect(0).json(), again);
    assert_eq!(sandbox.draftq_reading(["submit", "-"], b"one text\n").expect(0).json(), again);
    let stdin_as_file = sandbox.draftq_reading(["submit", "--file", "-"], b"one text\n");
    assert_eq!(stdin_as_file.expect(0).json(), again);
    assert_eq!(total(&sandbox), 1);
}

#[test]
fn metadata_flags_make_the_librarys_draft() {
    let sandbox = Sandbox::new();
    let ran = sandbox.draftq([
        "submit",
        "--text=Grüße, 世界 🌍\n",
        "--source-surface=claude-memory",
        "--agent=claude",
        "--project=buildepicshit/Mimir",
        "--operator=Zoë",
        "--provenance=file:///notes/héllo.md",
        "--tag=a",
        "--tag=b c",
    ]);
    // The vector of the file version.
    assert_eq!(ran.expect(0).json()["id"], "a43d364474ee7db3");
    let shown = sandbox.show("a43d");
    let fields = ["source_surface", "source_agent", "source_project", "operator", "provenance_uri"];
    assert_eq!(
        fields.map(|field| shown[field].as_str().unwrap()),
        ["claude_memory", "claude", "buildepicshit/Mimir", "Zoë", "file:///notes/héllo.md"]
    );
    assert_eq!(shown["context_tags"], json!(["a", "b c"]));
    assert_eq!(shown["raw_text"], "Grüße, 世界 🌍\n");
}

#[test]
fn a_draft_is_the_same_draft_in_every_state() {
    let sandbox = Sandbox::new();
    let store = sandbox.store();
    for state in DraftState::ALL {
        let text = format!("to be {state}");
        let id = sandbox.submit(&text).parse().unwrap();
        if state != DraftState::Pending {
            store.transition(id, DraftState::Pending, DraftState::Processing).unwrap();
        }
        if state.is_terminal() {
            store.transition(id, DraftState::Processing, state).unwrap();
        }
        let before = sandbox.show(&id.to_hex());
        let again = sandbox.draftq(["submit", "--text", &text, "--tag", "other"]);
        let expected = json!({"id": id.to_hex(), "state": state.dir_name(), "created": false});
        assert_eq!(again.expect(0).json(), expected);
        assert_eq!(sandbox.show(&id.to_hex()), before, "nothing has changed");

        let text = sandbox.draftq(["--format", "text", "submit", "--text", &text]);
        let text = text.expect(0).out();
        assert!(text.contains("was submitted before") && text.contains(state.dir_name()), "{text}");
    }
    assert_eq!(total(&sandbox), 6);
}

#[test]
fn bytes_are_kept() {
    let sandbox = Sandbox::new();
    for text in [
        "line\r\nline\r\n",
        "\u{feff}after a byte order mark",
        "NUL \0 and more \0\0",
        "\u{1b}]0;title\u{7}\u{9b}2J\u{202e}\u{7f}",
        "  white space around \n\n",
        "'; DROP TABLE drafts; --",
        "\u{0}a",
    ] {
        let id = sandbox.submit(text);
        assert_eq!(id, draft(text).id().to_hex());
        let raw = sandbox.draftq(["show", &id, "--raw"]);
        assert_eq!(raw.expect(0).stdout, text.as_bytes());
        assert_eq!(sandbox.show(&id)["raw_text"], text);
    }
}

#[test]
fn the_limit_is_exact() {
    let sandbox = Sandbox::new();
    let mut text = vec![b'x'; LIMIT];
    let ran = sandbox.draftq_reading(["submit"], &text);
    let id = ran.expect(0).json()["id"].as_str().unwrap().to_owned();
    assert_eq!(sandbox.draftq(["show", &id, "--raw"]).expect(0).stdout, text);

    text.push(b'x');
    let path = sandbox.file("long.md", &text);
    let ran = sandbox.draftq_reading(["submit"], &text);
    assert!(ran.expect(65).err().contains("8388608"), "{}", ran.err());
    let ran = sandbox.draftq(["submit".as_ref(), "--file".as_ref(), path.as_os_str()]);
    assert!(ran.expect(65).err().contains("long.md"), "{}", ran.err());
    let raised = ["submit", "--max-text-bytes", "8388609"];
    sandbox.draftq_reading(raised, &text).expect(0);
    // In characters it is short enough, in bytes it is not.
    let small = sandbox.draftq(["submit", "--max-text-bytes=5", "--text=äöü"]);
    assert!(small.expect(65).err().contains("6 bytes"), "{}", small.err());
}

#[test]
fn an_invalid_text_is_bad_data() {
    let sandbox = Sandbox::new();
    let latin = sandbox.file("latin.md", b"caf\xe9 canary");
    for ran in [
        sandbox.draftq_reading(["submit"], b"canary \xff\xfe"),
        sandbox.draftq(["submit".as_ref(), "--file".as_ref(), latin.as_os_str()]),
        sandbox.draftq(["submit".as_ref(), "--text".as_ref(), os(b"canary \xff")]),
    ] {
        assert!(ran.expect(65).err().contains("not UTF-8"), "{}", ran.err());
        assert!(!ran.err().contains("canary"), "{}", ran.err());
        assert_eq!(ran.out(), "");
    }
    for blank in ["", " \n\t\r\n", "\u{3000}\u{2028}"] {
        let ran = sandbox.draftq(["submit", "--text", blank]);
        assert!(ran.expect(65).err().contains("empty or blank"), "{}", ran.err());
        sandbox.draftq_reading(["submit"], blank.as_bytes()).expect(65);
    }
    let nul = br#"{"raw_text":"x","source_agent":"a\u0000b"}"#;
    let ran = sandbox.draftq_reading(["submit", "--jsonl", "-"], nul);
    assert!(ran.expect(65).err().contains("agent contains a NUL"), "{}", ran.err());
    let long = "a".repeat(4097);
    sandbox.draftq(["submit", "--text=x", "--agent", &long]).expect(65);
    assert_eq!(total(&sandbox), 0);
}

fn os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

#[test]
fn wrong_usage_and_missing_files_change_nothing() {
    let sandbox = Sandbox::new();
    for args in [
        &["submit", "--text"][..],
        &["submit", "--txt", "x"],
        &["submit", "--text=x", "--file=y"],
        &["submit", "--text=x", "-"],
        &["submit", "--text=x", "--skip-bad"],
        &["submit", "--skip-bad"],
        &["submit", "--text=x", "--source-surface=nowhere"],
        &["submit", "--text=x", "--max-text-bytes=many"],
        &["submit", "canary"],
        &["submit", "--text=x", "--db="],
        &["sbmit", "--text=x"],
        &[],
    ] {
        let ran = sandbox.draftq(args);
        assert_eq!(ran.expect(64).out(), "", "{args:?}");
        assert!(!ran.err().is_empty() && !ran.err().contains("canary"), "{args:?}: {}", ran.err());
    }
    for args in [["submit", "--file", "missing.md"], ["submit", "--jsonl", "missing.md"]] {
        let ran = sandbox.draftq(args);
        assert!(ran.expect(66).err().contains("missing.md"), "{}", ran.err());
    }
    assert!(!sandbox.db().exists(), "a refused command makes no database");
}

#[test]
fn an_empty_home_gets_a_private_database() {
    use std::os::unix::fs::PermissionsExt as _;
    let sandbox = Sandbox::new();
    sandbox.submit("first");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&sandbox.db()), 0o600);
    assert_eq!(mode(sandbox.db().parent().unwrap()), 0o700);
}

#[test]
fn flags_fill_in_what_an_envelope_leaves_out() {
    let sandbox = Sandbox::new();
    let lines = concat!(
        "{\"raw_text\":\"plain\"}\r\n",
        "\n",
        "  \t \r\n",
        "{\"raw_text\":\"own\",\"source_agent\":\"codex\",\"source_surface\":\"mcp\",",
        "\"context_tags\":[],\"submitted_at_unix_ms\":1700000000123}\n",
        "{\"raw_text\":\"null\",\"source_agent\":null}",
    );
    let path = sandbox.file("many.jsonl", lines);
    let flags = ["submit", "--agent=claude", "--project=p", "--tag=t", "--source-surface=mcp"];
    let from_file = [&flags[..], &["--jsonl", path.to_str().unwrap()]].concat();
    let ran = sandbox.draftq(&from_file);
    let given = DraftMetadata {
        source_agent: Some("claude".into()),
        source_project: Some("p".into()),
        ..DraftMetadata::new(DraftSourceSurface::Mcp, std::time::SystemTime::now())
    };
    let own = DraftMetadata { source_agent: Some("codex".into()), ..given.clone() };
    let expected = [("plain", &given), ("own", &own), ("null", &given)]
        .map(|(text, metadata)| Draft::with_metadata(text.into(), metadata.clone()).id().to_hex());
    assert_eq!(ids(ran.expect(0)), expected, "in the order of the lines");
    assert!(ran.lines().iter().all(|line| line["created"] == true));

    let shown = sandbox.show(&expected[1]);
    assert_eq!(shown["context_tags"], json!([]));
    assert_eq!(shown["submitted_at_unix_ms"], 1_700_000_000_123_i64);
    assert_eq!(sandbox.show(&expected[0])["context_tags"], json!(["t"]));

    let from_stdin = [&flags[..], &["--jsonl", "-"]].concat();
    let again = sandbox.draftq_reading(&from_stdin, lines.as_bytes());
    assert_eq!(ids(again.expect(0)), expected);
    assert!(again.lines().iter().all(|line| line["created"] == false));
}

#[test]
fn bad_lines_are_named_and_earlier_lines_are_stored() {
    let sandbox = Sandbox::new();
    let mut lines = Vec::new();
    lines.extend_from_slice(b"{\"raw_text\":\"good one\"}\n");
    lines.extend_from_slice(b"{\"raw_text\":\"canary");
    lines.extend_from_slice(b"\n\n");
    lines.extend_from_slice(b"{\"raw_tex\":\"canary\"}\r\n");
    lines.extend_from_slice(b"{\"raw_text\":\"canary\xff\"}\n");
    lines.extend_from_slice(b"{\"raw_text\":\"  \"}\n");
    lines.extend_from_slice(b"{\"raw_text\":\"canary\",\"id\":\"0000000000000000\"}\n");
    lines.extend_from_slice(b"{\"raw_text\":\"canary\",\"schema_version\":1}\n");
    lines.extend_from_slice(b"[\"canary\"]\n");
    lines.extend_from_slice(b"{\"raw_text\":\"good two\"}");

    let expected = ["good one", "good two"].map(|text| draft(text).id().to_hex());
    for (flag, taken) in [("--atomic", 0), ("--format=json", 1)] {
        let ran = sandbox.draftq_reading(["submit", "--jsonl", "-", flag], &lines);
        assert_eq!(ids(ran.expect(65)), expected[..taken]);
        let named: Vec<&str> = ran.err().lines().filter(|line| line.contains(", line ")).collect();
        assert_eq!(named.len(), 7, "{}", ran.err());
        for (line, number) in named.iter().zip([2, 4, 5, 6, 7, 8, 9]) {
            assert!(line.contains(&format!("standard input, line {number}: ")), "{line}");
        }
        let last = ran.err().lines().last().unwrap();
        let kept = match taken {
            0 => "nothing was stored",
            _ => "1 draft before that is stored; submit the file again",
        };
        for part in ["7 bad lines, the first is line 2", kept, "--skip-bad"] {
            assert!(last.contains(part), "{last}");
        }
        assert!(!ran.err().contains("canary"), "{}", ran.err());
        assert_eq!(total(&sandbox), taken as u64);
    }

    // Lines that were stored before are accepted again.
    let ran = sandbox.draftq_reading(["submit", "--jsonl", "-", "--skip-bad"], &lines);
    assert_eq!(ids(ran.expect(0)), expected);
    assert_eq!(
        ran.lines().iter().map(|it| it["created"] == true).collect::<Vec<_>>(),
        [false, true]
    );
    assert!(ran.err().contains("line 9"), "{}", ran.err());
    assert_eq!(total(&sandbox), 2);
    let ran = sandbox.draftq_reading(["submit", "--jsonl", "-", "--skip-bad", "--atomic"], &lines);
    assert_eq!(ids(ran.expect(0)), expected);
}

#[test]
fn the_first_of_many_bad_lines_are_named() {
    let sandbox = Sandbox::new();
    let ran =
        sandbox.draftq_reading(["submit", "--jsonl", "-"], "canary\n".repeat(5000).as_bytes());
    ran.expect(65);
    assert!(ran.err().lines().count() < 30, "{}", ran.err());
    assert!(ran.err().contains("5000 bad lines"), "{}", ran.err());
}

#[test]
fn a_line_that_is_too_long_does_not_affect_the_next() {
    let sandbox = Sandbox::new();
    // A line may have six bytes for each of the text's and 1 MiB for the rest.
    let most = 10 * 6 + 1024 * 1024;
    let long = format!("{{\"raw_text\":\"{}\"}}\n", "x".repeat(most));
    let over = format!("{{\"raw_text\":\"{}\"}}\n", "x".repeat(11));
    let full =
        "{\"raw_text\":\"\\u0041\\u0041\\u0041\\u0041\\u0041\\u0041\\u0041\\u0041\\u0041\\u0041\"}";
    let lines = [&long, &over, full].concat();
    let args = ["submit", "--jsonl", "-", "--skip-bad", "--max-text-bytes", "10"];
    let ran = sandbox.draftq_reading(args, lines.as_bytes());
    assert_eq!(ids(ran.expect(0)), [draft("AAAAAAAAAA").id().to_hex()]);
    assert!(ran.err().contains("line 1: it is longer than"), "{}", ran.err());
    assert!(ran.err().contains("line 2: its text has 11 bytes"), "{}", ran.err());
}

#[test]
fn an_empty_jsonl_file_is_nothing_to_do() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.draftq_reading(["submit", "--jsonl", "-"], b"").expect(0).out(), "");
    assert_eq!(sandbox.draftq_reading(["submit", "--jsonl", "-"], b"\n\r\n ").expect(0).out(), "");
}

#[test]
fn thousands_of_drafts_keep_their_order() {
    let sandbox = Sandbox::new();
    let lines: String =
        (0..2000).map(|number| format!("{{\"raw_text\":\"draft {number}\"}}\n")).collect();
    let ran = sandbox.draftq_reading(["submit", "--jsonl", "-"], lines.as_bytes());
    let expected: Vec<String> =
        (0..2000).map(|number| draft(&format!("draft {number}")).id().to_hex()).collect();
    assert_eq!(ids(ran.expect(0)), expected);
    let first: Vec<Value> =
        sandbox.draftq(["list", "--json", "--oldest", "--limit=3"]).expect(0).lines();
    assert!(first.iter().zip(&expected).all(|(record, id)| record["id"] == **id));
}
