//! The output of `list`, `show`, `stats` and `requeue`: names, order, width, escapes.

use std::process::Stdio;

use draftq::{Claimed, DraftProcessingDecision, DraftQuery, DraftState, MAX_NOTE_BYTES, Outcome};
use serde_json::{Value, json};

use crate::harness::{Sandbox, draft, finish, have, store};

fn listed(sandbox: &Sandbox, args: &[&str]) -> Vec<String> {
    let args = [&["list", "--json"], args].concat();
    let records = sandbox.draftq(&args).expect(0).lines();
    records.iter().map(|record| record["id"].as_str().unwrap().to_owned()).collect()
}

/// Two ids of drafts `number 0`, `number 1`, … that begin with the same digit, and that digit.
fn siblings(ids: &[String]) -> (String, Vec<String>) {
    let digit = |id: &String| id[..1].to_owned();
    let (_, first) = ids
        .iter()
        .enumerate()
        .find(|(index, id)| ids[..*index].iter().any(|other| digit(other) == digit(id)))
        .expect("of seventeen ids two share a digit");
    let digit = digit(first);
    (digit.clone(), ids.iter().filter(|id| id.starts_with(&digit)).cloned().collect())
}

#[test]
fn filters_select_and_the_newest_comes_first() {
    let sandbox = Sandbox::new();
    let lines = [
        r#"{"raw_text":"1","source_agent":"claude","source_project":"p","context_tags":["a","b"]}"#,
        r#"{"raw_text":"2","source_agent":"codex","source_surface":"mcp","context_tags":["b"]}"#,
        r#"{"raw_text":"3","source_agent":"claude","source_surface":"mcp","context_tags":["B"]}"#,
        r#"{"raw_text":"4","source_project":"p","submitted_at_unix_ms":1000}"#,
    ];
    let ran = sandbox.draftq_reading(["submit", "--jsonl", "-"], lines.join("\n").as_bytes());
    let ids: Vec<String> =
        ran.expect(0).lines().iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect();
    let pick = |numbers: &[usize]| -> Vec<String> {
        numbers.iter().map(|number| ids[number - 1].clone()).collect()
    };
    sandbox.draftq(["run", "--limit=1", "--exit-code", "--", "true"]).expect(0);

    for (args, expected) in [
        (&[][..], &[4, 3, 2, 1][..]),
        (&["--oldest"], &[1, 2, 3, 4]),
        (&["--limit=2"], &[4, 3]),
        (&["--oldest", "--limit=1"], &[1]),
        (&["--limit=0"], &[4, 3, 2, 1]),
        (&["--state=accepted"], &[1]),
        (&["--state=pending"], &[4, 3, 2]),
        (&["--state=accepted", "--state=pending"], &[4, 3, 2, 1]),
        (&["--state=failed"], &[]),
        (&["--agent=claude"], &[3, 1]),
        (&["--agent=Claude"], &[]),
        (&["--surface=mcp"], &[3, 2]),
        (&["--source-surface=cli"], &[4, 1]),
        (&["--project=p"], &[4, 1]),
        (&["--tag=b"], &[2, 1]),
        (&["--tag=B"], &[3]),
        (&["--tag=%"], &[]),
        (&["--agent=claude", "--tag=a"], &[1]),
        (&["--agent=codex", "--tag=a"], &[]),
        (&["--since=1h"], &[3, 2, 1]),
        (&["--since=2020-01-01"], &[3, 2, 1]),
        (&["--since=1970-01-01"], &[4, 3, 2, 1]),
        (&["--since=1970-01-01T00:00:01Z"], &[4, 3, 2, 1]),
        (&["--since=1970-01-01T00:00:02Z"], &[3, 2, 1]),
        (&["--since=1970-01-01T01:00:01+01:00"], &[4, 3, 2, 1]),
        (&["--since=2999-01-01"], &[]),
    ] {
        assert_eq!(listed(&sandbox, args), pick(expected), "{args:?}");
    }
    for args in [
        ["list", "--state=done"],
        ["list", "--since=yesterday"],
        ["list", "--since=2026-02-30"],
        ["list", "--limit=some"],
        ["list", "--surface=paper"],
        ["list", "--format=xml"],
    ] {
        assert_eq!(sandbox.draftq(args).expect(64).out(), "", "{args:?}");
    }
}

#[test]
fn a_list_says_when_it_is_cut_off() {
    let sandbox = Sandbox::new();
    let lines: String = (0..2500).map(|n| format!("{{\"raw_text\":\"number {n}\"}}\n")).collect();
    sandbox.draftq_reading(["submit", "--jsonl", "-"], lines.as_bytes()).expect(0);
    let ids: Vec<String> = (0..2500).map(|n| draft(&format!("number {n}")).id().to_hex()).collect();
    assert_eq!(listed(&sandbox, &["--limit=0", "--oldest"]), ids);
    assert_eq!(listed(&sandbox, &["--limit=1500", "--oldest"]), ids[..1500]);
    assert_eq!(listed(&sandbox, &[]).len(), 50);

    let text = sandbox.draftq(["list"]);
    assert!(text.expect(0).out().contains("and more"), "{}", text.out());
    let all = sandbox.draftq(["list", "--limit=2500"]);
    assert!(!all.expect(0).out().contains("and more"));

    // A reader that closes the pipe is no error.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let head = sandbox.command(["list", "--limit=0"]).stdout(writer).output().unwrap();
    assert_eq!((head.status.code(), head.stderr), (Some(0), Vec::new()));
}

#[test]
fn a_draft_is_found_by_the_first_digits_of_its_id() {
    let sandbox = Sandbox::new();
    let ids: Vec<String> = (0..17).map(|n| sandbox.submit(&format!("number {n}"))).collect();
    let (digit, same) = siblings(&ids);
    let other = &same[0];
    for id in [other.clone(), other.to_uppercase(), other[..15].to_owned()] {
        assert_eq!(sandbox.show(&id)["id"], **other);
    }

    for command in ["show", "requeue"] {
        let ran = sandbox.draftq([command, &digit]);
        assert_eq!(ran.expect(65).out(), "");
        assert!(same.iter().all(|id| ran.err().contains(id.as_str())), "{}", ran.err());
        let foreign = ids.iter().filter(|id| !id.starts_with(&digit));
        assert!(foreign.clone().all(|id| !ran.err().contains(id.as_str())), "{}", ran.err());

        let missing = format!("{other}0");
        for id in ["", "zz", "*", "%", &missing, "\u{1b}[2J", "z\ndraftq: forged"] {
            let ran = sandbox.draftq([command, id]);
            assert!(!ran.expect(66).err().contains('\u{1b}'), "{}", ran.err());
            assert_eq!(ran.err().lines().count(), 1, "{}", ran.err());
        }
        sandbox.draftq([command]).expect(64);
    }
    let unknown = sandbox.draftq(["show", "0123456789abcdef"]);
    assert!(unknown.expect(66).err().contains("0123456789abcdef"), "{}", unknown.err());
}

#[test]
fn an_ambiguous_id_names_the_first_candidates() {
    let sandbox = Sandbox::new();
    let lines: String = (0..600).map(|n| format!("{{\"raw_text\":\"number {n}\"}}\n")).collect();
    sandbox.draftq_reading(["submit", "--jsonl", "-"], lines.as_bytes()).expect(0);
    let ran = sandbox.draftq(["show", "a"]);
    assert!(ran.expect(65).err().ends_with(", …\n"), "{}", ran.err());
    assert_eq!(ran.err().split(", ").count(), 9, "eight ids and the ellipsis: {}", ran.err());
}

#[test]
fn json_names_are_stable() {
    let sandbox = Sandbox::new();
    let id = sandbox.submit("x");
    sandbox.draftq(["run", "--exit-code", "--", "true"]).expect(0);
    let record = [
        "seq",
        "id",
        "state",
        "source_surface",
        "source_agent",
        "source_project",
        "operator",
        "provenance_uri",
        "context_tags",
        "submitted_at_unix_ms",
        "text_bytes",
        "claimed_at_unix_ms",
        "owner",
        "due_at_unix_ms",
        "claims",
        "errors",
        "defers",
        "decision",
        "note",
        "output",
        "last_error_class",
        "last_error",
        "updated_at_unix_ms",
    ];
    let listed = sandbox.draftq(["list", "--json"]).expect(0).json();
    let shown = sandbox.show(&id);
    for name in record {
        assert!(listed.get(name).is_some(), "{name} in {listed}");
        assert_eq!(listed[name], shown[name]);
    }
    assert_eq!(shown["raw_text"], "x");
    let event = &shown["history"][2];
    for name in ["event", "from_state", "to_state", "at_unix_ms", "runner", "pid", "decision"] {
        assert!(!event[name].is_null(), "{name} in {event}");
    }
    for name in ["note", "output", "error_class", "error", "by_hand"] {
        assert!(event.get(name).is_some(), "{name} in {event}");
    }
    // --format json is the same.
    assert_eq!(sandbox.draftq(["--format=json", "list"]).expect(0).json(), listed);
    sandbox.draftq(["--format=text", "--json", "list"]).expect(64);
}

#[test]
fn stats_count_states_in_their_order() {
    let sandbox = Sandbox::new();
    drop(sandbox.store());
    let empty = sandbox.draftq(["stats", "--json"]).expect(0).json();
    assert_eq!((&empty["drafts"], &empty["oldest_ready_unix_ms"]), (&json!(0), &Value::Null));
    for text in ["one", "two", "three"] {
        sandbox.submit(text);
    }
    sandbox.draftq(["run", "--limit=1", "--exit-code", "--", "true"]).expect(0);
    let later = r#"echo '{"decision":"deferred","retry_after_secs":3600}'"#;
    sandbox.draftq(["run", "--limit=1", "--", "sh", "-c", later]).expect(70);
    let ran = sandbox.draftq(["stats", "--json"]);
    let stats = ran.expect(0).json();
    let states = json!({"pending": 2, "processing": 0, "accepted": 1, "skipped": 0, "failed": 0,
        "quarantined": 0});
    assert_eq!(stats["states"], states);
    assert_eq!(
        (&stats["drafts"], &stats["delayed"], stats["database_bytes"].as_u64().unwrap() % 4096),
        (&json!(3), &json!(1), 0)
    );
    assert!(stats["next_due_unix_ms"].is_i64() && stats["oldest_ready_unix_ms"].is_i64());

    let text = sandbox.draftq(["stats"]);
    for shown in [ran.out(), text.expect(0).out()] {
        let places: Vec<_> = DraftState::ALL.map(|state| shown.find(state.dir_name())).into();
        assert!(places.is_sorted() && places[0].is_some(), "{shown}");
    }
}

#[test]
fn requeue_moves_all_named_drafts_or_none() {
    let sandbox = Sandbox::new();
    let ids = ["one", "two", "three"].map(|text| sandbox.submit(text));
    sandbox.draftq(["run", "--limit=2", "--exit-code", "--", "true"]).expect(0);
    let ran = sandbox.draftq(["requeue", &ids[0], "--json"]);
    let moved = ran.expect(0).json();
    assert_eq!(
        (&moved["id"], &moved["from"], &moved["state"]),
        (&json!(ids[0]), &json!("accepted"), &json!("pending"))
    );
    let shown = sandbox.show(&ids[0]);
    assert_eq!((&shown["state"], &shown["decision"]), (&json!("pending"), &Value::Null));
    assert_eq!(shown["history"][3]["event"], "requeued");

    // It keeps its place, and is processed before the draft that was never processed.
    let document =
        sandbox.draftq(["run", "--limit=1", "--exit-code", "--", "true"]).expect(0).json();
    assert_eq!(document["summary"]["items"][0]["id"], ids[0]);

    let text = sandbox.draftq(["requeue", &ids[0], &ids[1], &ids[2]]);
    assert_eq!(text.expect(0).out(), "Requeued 2 drafts; 1 was pending already.\n");
    sandbox.draftq(["run", "--exit-code", "--", "true"]).expect(0);
    // If one cannot be requeued, none is.
    sandbox.draftq(["requeue", &ids[1], "0123456789abcdef"]).expect(66);
    assert_eq!(sandbox.show(&ids[1])["state"], "accepted");
}

/// Every character that a terminal might obey, or that reorders the text.
fn hostile() -> String {
    let controls = (1..0xa0).filter_map(char::from_u32).filter(|c| c.is_control());
    let bidi = "\u{61c}\u{200e}\u{200f}\u{202a}\u{202e}\u{2066}\u{2069}";
    let invisible = "\u{ad}\u{180e}\u{200b}\u{2028}\u{2029}\u{2060}\u{3164}\u{feff}\u{e0041}";
    controls.chain(bidi.chars()).chain(invisible.chars()).collect::<String>()
        + "\u{1b}]0;title\u{7}\u{1b}[2J'\"\\"
}

#[test]
fn everything_from_a_draft_is_escaped() {
    let sandbox = Sandbox::new();
    let hostile = hostile();
    let id = sandbox
        .draftq([
            "submit",
            "--text",
            &hostile,
            "--agent",
            &hostile,
            "--project",
            &hostile,
            "--operator",
            &hostile,
            "--tag",
            &hostile,
            "--provenance",
            &hostile,
        ])
        .expect(0)
        .json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(sandbox.draftq(["show", &id, "--raw"]).expect(0).out(), hostile);
    let shown = sandbox.show(&id);
    for name in ["raw_text", "source_agent", "source_project", "operator", "provenance_uri"] {
        assert_eq!(shown[name], hostile, "JSON carries it whole");
    }

    let db = format!("/etc/passwd/{hostile}");
    for args in [
        &["list"][..],
        &["list", "--json"],
        &["list", "--agent", &hostile],
        &["show", &id],
        &["show", &id, "--json"],
        &["stats"],
        &["submit", "--text", &hostile],
        // Arguments that an error repeats.
        &[&hostile],
        &["list", &hostile],
        &["list", "--state", &hostile],
        &["list", "--since", &hostile],
        &["list", "--limit", &hostile],
        &["submit", "--source-surface", &hostile, "--text=x"],
        &[&format!("--{hostile}")],
        &["list", &format!("--sta{hostile}")],
        &["completions", &hostile],
        &["show", &hostile],
        &["requeue", &hostile],
        &["submit", "--file", &hostile],
        &["submit", "--jsonl", &hostile],
        &["sweep", &hostile],
        &["sweep", "--source-surface", &hostile],
        &["run", "--", &hostile],
        &["run", "--", &format!("./{hostile}")],
        &["--db", &db, "list"],
    ] {
        let ran = sandbox.draftq(args);
        for shown in [ran.out(), ran.err()] {
            let raw = shown.find(draftq::is_unsafe_to_show);
            assert_eq!(raw, None, "{args:?}: {shown:?}");
        }
    }
}

#[test]
fn tables_fit_into_eighty_columns() {
    let sandbox = Sandbox::new();
    let long = "a-rather-long-name/".repeat(20);
    let wide = "名前".repeat(60);
    for (text, name) in [("one", &long), ("two", &wide)] {
        sandbox.draftq(["submit", "--text", text, "--agent", name, "--project", name]).expect(0);
    }
    let note = format!(r#"echo '{{"decision":"quarantined","note":"{wide} {long}"}}'"#);
    sandbox.draftq(["run", "--limit=1", "--", "sh", "-c", &note]).expect(0);
    sandbox.draftq(["run", "--", "sh", "-c", &format!("echo '{long}' >&2; exit 1")]).expect(70);
    let id = listed(&sandbox, &["--oldest", "--limit=1"]).remove(0);
    let history = sandbox.draftq(["show", &id]);
    let (_, history) = history.expect(0).out().split_once("\nTIME ").unwrap();
    let tables = [
        sandbox.draftq(["list"]).expect(0).out().to_owned(),
        format!("TIME {history}"),
        sandbox.draftq(["stats"]).expect(0).out().to_owned(),
    ];
    for table in tables {
        for line in table.lines() {
            // A wide character takes two columns.
            let width: usize = line.chars().map(|c| if c >= '\u{1100}' { 2 } else { 1 }).sum();
            assert!(width <= 80, "{width}: {line}");
            assert_eq!(line.trim_end(), line);
        }
    }
    for command in
        ["submit", "sweep", "run", "watch", "list", "show", "stats", "review", "decide", "requeue"]
    {
        let mut help = sandbox.command([command, "--help"]);
        help.env("COLUMNS", "80").stdout(Stdio::piped());
        let help = finish(help, b"");
        let lines = help.expect(0).out().lines();
        assert!(lines.clone().all(|line| line.chars().count() <= 80), "{}", help.out());
        assert!(lines.clone().any(|line| line.starts_with("Example")), "{}", help.out());
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let sandbox = Sandbox::new();
    for args in [&["--help"][..], &["help", "run"], &["--version"], &["completions", "bash"]] {
        let ran = sandbox.draftq(args);
        assert!(!ran.expect(0).out().is_empty() && ran.err().is_empty(), "{args:?}");
        assert!(!ran.out().contains('\u{1b}'), "{args:?}");
    }
    assert!(!sandbox.db().exists());
}

/// A program that asks the library for more than a page gets a page, and where the next one begins.
#[test]
fn a_page_has_at_most_a_thousand_drafts() {
    let (_directory, store) = store();
    let drafts: Vec<_> = (0..1_001).map(|n| draft(&format!("number {n}"))).collect();
    store.submit_many(&drafts).unwrap();
    let query = DraftQuery::default().limit(5_000);
    assert_eq!(store.query(&query).unwrap().rows.len(), 1_000);
    let page = store.summaries(&query).unwrap();
    assert_eq!(page.rows.len(), 1_000);
    let rest = store.summaries(&query.after_seq(page.next.unwrap())).unwrap();
    assert_eq!((rest.rows.len(), rest.next), (1, None));
}

/// A page of summaries is small, whatever the processors wrote.
#[test]
fn a_summary_has_the_beginning_of_a_note() {
    let (_directory, store) = store();
    store.submit(&draft("one")).unwrap();
    let runner = store.register_runner("test").unwrap();
    let claim = match store.claim_next(&runner, &mut store.pending_snapshot().unwrap()).unwrap() {
        Some(Claimed::Draft(claim)) => *claim,
        other => panic!("{other:?}"),
    };
    let note = "0123456789abcdef".repeat(MAX_NOTE_BYTES / 16);
    store
        .finish(claim, &Outcome::new(DraftProcessingDecision::Accepted).with_note(note.as_str()))
        .unwrap();
    let summary = store.summaries(&DraftQuery::default()).unwrap().rows.remove(0);
    assert_eq!(summary.note, Some(format!("{}…", &note[..2_048])));
}

/// Nobody who sets `NO_COLOR`, and no terminal that is `dumb`, gets an escape sequence.
#[test]
fn colour_is_for_terminals_that_want_it() {
    if !have("script") {
        return;
    }
    let sandbox = Sandbox::new();
    let binary = env!("CARGO_BIN_EXE_draftq");
    for arguments in ["--help", "list --nonsense"] {
        for (no_colour, terminal, coloured) in
            [("", "xterm", true), ("1", "xterm", false), ("", "dumb", false)]
        {
            let mut script = sandbox.command_of("script");
            script.args(["-qec", &format!("{binary} {arguments}"), "/dev/null"]);
            script.env("NO_COLOR", no_colour).env("TERM", terminal);
            let shown = finish(script, b"");
            assert!(shown.out().contains("Usage"), "{}", shown.out());
            assert_eq!(shown.out().contains('\u{1b}'), coloured, "{arguments}: {}", shown.out());
        }
    }
}
