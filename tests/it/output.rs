//! The cost of output, and its safety: long cells, long columns, line breaks in
//! names, values of private flags, and a standard output that cannot be written.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::harness::{Sandbox, draft, finish, setting};

/// The most memory that a process has had so far, in MiB.
pub fn peak_mib(child: &Child) -> u64 {
    peak_mib_unless_ended(child).unwrap()
}

/// The same, or `None` of a process that has ended and was not waited for.
pub fn peak_mib_unless_ended(child: &Child) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    Some(kib / 1024)
}

/// This many drafts, each with these SQL expressions as its note and its output. A note can
/// be changed in place by hand.
fn drafts_with(sandbox: &Sandbox, drafts: u64, note: &str, output: &str) {
    let lines: String = (0..drafts).map(|n| format!("{{\"raw_text\":\"{n}\"}}\n")).collect();
    sandbox.draftq_reading(["submit", "--jsonl", "-"], lines.as_bytes()).expect(0);
    let connection = Connection::open(sandbox.db()).unwrap();
    let changed = connection
        .execute(&format!("UPDATE drafts SET note = {note}, output = {output}"), [])
        .unwrap();
    assert_eq!(u64::try_from(changed).unwrap(), drafts);
}

/// A text of 64 KiB that is this character over and over, as a SQL expression.
fn long(c: char) -> String {
    format!("replace(hex(zeroblob(32768)), '0', '{c}')")
}

#[test]
fn the_time_of_a_list_is_linear_in_its_length() {
    for c in ['\u{1b}', '\u{200b}', '\u{301}', '\u{200d}', '名', '👩', 'x'] {
        let sandbox = Sandbox::new();
        drafts_with(&sandbox, setting("DRAFTQ_TEST_LIST_ROWS", 60), &long(c), "NULL");
        let begun = Instant::now();
        let ran = sandbox.draftq(["list", "--limit=0"]);
        let took = begun.elapsed();
        for line in ran.expect(0).out().lines().skip(1) {
            assert!(line.ends_with('…'), "U+{:04X}: {line}", u32::from(c));
            assert!(line.len() < 1024, "U+{:04X}: {} bytes", u32::from(c), line.len());
        }
        println!(
            "{{\"test\":\"list\",\"char\":\"U+{:04X}\",\"ms\":{}}}",
            c as u32,
            took.as_millis()
        );
        // One such cell took 24 s when it was laid out before it was cut.
        assert!(took < Duration::from_secs(20), "U+{:04X}: {took:?}", u32::from(c));
    }
}

#[test]
fn a_line_break_in_a_cell_is_escaped() {
    let sandbox = Sandbox::new();
    drafts_with(&sandbox, 1, "'one' || char(10) || 'two' || char(9) || 'three'", "NULL");
    let ran = sandbox.draftq(["list"]);
    assert!(ran.expect(0).out().contains(r"one\ntwo\tthree"), "{}", ran.out());
    assert_eq!(ran.out().lines().count(), 2, "{}", ran.out());
}

#[test]
fn a_list_needs_little_memory() {
    let sandbox = Sandbox::new();
    let drafts = setting("DRAFTQ_TEST_LIST_ROWS", 400);
    // 150,002 bytes of JSON.
    let output = "'\"' || hex(zeroblob(75000)) || '\"'";
    drafts_with(&sandbox, drafts, "'short'", output);
    for args in [&["list", "--limit=0"][..], &["list", "--limit=0", "--json"]] {
        let mut child = sandbox.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        // It cannot end before its output is read, so its peak can be read.
        rustix::pipe::fcntl_setpipe_size(&stdout, 4096).unwrap();
        let all = if args.len() == 3 { drafts * 150_000 } else { drafts * 40 };
        let mut read = vec![0; usize::try_from(all * 9 / 10).unwrap()];
        stdout.read_exact(&mut read).unwrap();
        let peak = peak_mib(&child);
        std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
        assert!(child.wait().unwrap().success());
        println!("{{\"test\":\"list memory\",\"drafts\":{drafts},\"peak_mib\":{peak}}}");
        assert!(peak < 32, "{args:?}: {peak} MiB for a list of {drafts}");
    }
}

#[test]
fn line_breaks_in_names_are_escaped() {
    let sandbox = Sandbox::new();
    sandbox.submit("x");
    let forged = "a\ndraftq: all drafts were lost\r\u{2028}\u{85}b";
    let directory = sandbox.path(forged);
    std::fs::create_dir_all(&directory).unwrap();
    for args in [
        &["submit", "--file", forged][..],
        &["submit", "--file", &format!("{forged}/none")],
        &["submit", "--jsonl", &format!("{forged}/none")],
        &["sweep", &format!("{forged}/none")],
        &["run", "--", forged],
        &["run", "--", &format!("./{forged}/none")],
        &["show", forged],
        &["requeue", forged],
        &["--db", forged, "stats"],
        &["--db", &format!("/dev/null/{forged}/q.db"), "submit", "--text=x"],
    ] {
        let ran = sandbox.draftq(args);
        assert!(!ran.err().is_empty(), "{args:?}");
        assert_eq!(ran.err().matches('\n').count(), 1, "{args:?}: {}", ran.err());
        assert!(ran.err().ends_with('\n'));
    }
    let empty = sandbox.draftq(["--db", &format!("{forged}/q.db"), "submit", "--text=x"]);
    empty.expect(0);
    let none = sandbox.draftq(["--db", &format!("{forged}/q.db"), "list", "--agent=nobody"]);
    assert_eq!(none.expect(0).out().lines().count(), 1, "{}", none.out());
    // A file that cannot be submitted is named on a line of its own.
    sandbox.file(&format!("{forged}/e\nmpty.md"), "");
    let swept = sandbox.draftq(["--format=text", "sweep", forged]);
    assert_eq!(swept.expect(0).out().lines().count(), 2, "{}", swept.out());
}

#[test]
fn a_value_may_begin_with_a_hyphen() {
    let sandbox = Sandbox::new();
    for text in ["---\ntitle: x\n", "- item", "--foo", "-", "--", "-q", "--text=x", "--help", "-1"]
    {
        for args in [&["submit", "--text", text][..], &["submit", &format!("--text={text}")]] {
            let ran = sandbox.draftq(args);
            assert_eq!(ran.expect(0).json()["id"], draft(text).id().to_hex(), "{args:?}");
        }
        let flags = ["--agent", "--project", "--operator", "--provenance", "--tag"];
        let names = ["source_agent", "source_project", "operator", "provenance_uri"];
        let apart = flags.iter().flat_map(|flag| [(*flag).to_owned(), text.to_owned()]);
        let joined = flags.iter().map(|flag| format!("{flag}={text}"));
        for values in [apart.collect::<Vec<_>>(), joined.collect()] {
            let ran = sandbox.draftq(
                ["submit", "--text=x"].into_iter().chain(values.iter().map(String::as_str)),
            );
            let id = ran.expect(0).json()["id"].as_str().unwrap().to_owned();
            let shown = sandbox.show(&id);
            assert!(names.iter().all(|name| shown[name] == text), "{values:?}: {shown}");
            assert_eq!(shown["context_tags"], serde_json::json!([text]));
        }
        for (flag, filter) in [("--agent", text), ("--project", text), ("--tag", text)] {
            assert_eq!(sandbox.draftq(["list", "--json", flag, filter]).expect(0).lines().len(), 1);
        }
    }
}

#[test]
fn no_usage_error_repeats_a_text() {
    let sandbox = Sandbox::new();
    sandbox.file("file", "x");
    let flags = ["--text", "--agent", "--project", "--operator", "--provenance", "--tag"];
    let canaries: [&[u8]; 6] =
        [b"canary", b"---\ncanary", b"- canary", b"--canary", b"canary\xff", b"--canary=canary"];
    let mut errors = 0;
    for (flag, canary) in flags.iter().flat_map(|flag| canaries.map(|canary| (flag, canary))) {
        let canary = OsStr::from_bytes(canary);
        let joined = [OsStr::new(flag), OsStr::new("="), canary].join(OsStr::new(""));
        let word = |word: &str| OsString::from(word);
        let misspelt = [OsStr::new(flag), OsStr::new("x="), canary].join(OsStr::new(""));
        for given in [vec![word(flag), canary.to_owned()], vec![joined]] {
            let with = |others: &[&OsStr]| {
                let others = others.iter().map(|it| (*it).to_owned());
                [word("submit")].into_iter().chain(given.clone()).chain(others).collect::<Vec<_>>()
            };
            let lines = [
                // An unknown flag after it, misspelt ones, words that follow.
                with(&["--nonsense".as_ref()]),
                with(&[&misspelt]),
                with(&[canary]),
                with(&[canary, canary]),
                with(&["--".as_ref(), canary, canary]),
                // A missing value, one that is none, a conflict, a flag given twice.
                with(&["--file".as_ref()]),
                with(&["--tag".as_ref()]),
                with(&["--source-surface=nowhere".as_ref()]),
                with(&["--max-text-bytes=-1".as_ref()]),
                with(&["--skip-bad".as_ref()]),
                with(&["--file=file".as_ref(), "--jsonl=file".as_ref()]),
                with(&["--json".as_ref(), "--format=text".as_ref(), "--json".as_ref()]),
                [with(&[]), given.clone(), with(&["--nonsense".as_ref()])[1..].to_vec()].concat(),
                // The flag before the command, and the text without its flag.
                [given.clone(), vec![word("submit")]].concat(),
                vec![word("submit"), canary.to_owned(), canary.to_owned()],
            ];
            for line in lines {
                let ran = sandbox.draftq(&line);
                assert!(ran.code != Some(0) || ran.err().is_empty(), "{line:?}");
                errors += usize::from(ran.code == Some(64));
                // A word that looks like a flag is one, unless it is the value of a flag.
                let unknown = "unexpected argument '--canary' found";
                let values = line.windows(2).filter(|pair| flags.iter().any(|it| pair[0] == **it));
                let hyphen = |it: &&OsString| it.as_bytes().starts_with(b"--canary");
                let of_flags = values.filter(|pair| hyphen(&&pair[1])).count();
                if line.iter().filter(hyphen).count() > of_flags && ran.err().contains(unknown) {
                    continue;
                }
                assert!(!ran.err().contains("canary"), "{line:?}: {}", ran.err());
                assert!(!ran.out().contains("canary"), "{line:?}: {}", ran.out());
            }
        }
    }
    assert!(errors > 400, "of the lines that are to be wrong only {errors} were");
}

#[test]
fn a_failed_print_still_says_what_was_stored() {
    if !std::path::Path::new("/dev/full").exists() {
        println!("skipped: there is no /dev/full here");
        return;
    }
    let sandbox = Sandbox::new();
    let full = |args: &[&str], input: &str| {
        let mut command = sandbox.command(args);
        command.stdin(Stdio::piped()).stdout(File::create("/dev/full").unwrap());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(74), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for (format, text) in [("--json", "one"), ("--format=text", "two")] {
        let said = full(&["submit", format, "--text", text], "");
        let id = draft(text).id().to_hex();
        assert!(said.contains(&format!("but draft {id} is stored")), "{said}");
        assert_eq!(sandbox.show(&id)["raw_text"], text);
    }
    let lines: String = (0..3000).map(|n| format!("{{\"raw_text\":\"{n}\"}}\n")).collect();
    for format in ["--json", "--format=text"] {
        for more in [&[][..], &["--atomic"]] {
            let said = full(&[&["submit", format, "--jsonl=-"][..], more].concat(), &lines);
            assert!(said.contains("but 3000 drafts are stored"), "{said}");
        }
    }
    assert_eq!(sandbox.draftq(["stats", "--json"]).json()["drafts"], 3002);
    sandbox.file("notes/a.md", "a note");
    let said = full(&["sweep", "notes"], "");
    assert!(said.contains("but 1 draft is stored"), "{said}");
    let id = draft("one").id().to_hex();
    sandbox.draftq(["run", "--limit=1", "--exit-code", "--", "true"]).expect(0);
    assert!(full(&["requeue", &id], "").contains("but 1 draft was requeued"));
    assert!(full(&["requeue", &id], "").contains("nothing was requeued"));

    // The reader may close the pipe: all drafts are stored, and there is no error.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let lines: String = (0..3000).map(|n| format!("{{\"raw_text\":\"piped {n}\"}}\n")).collect();
    let mut child = sandbox
        .command(["submit", "--jsonl=-"])
        .stdin(Stdio::piped())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
    assert_eq!(sandbox.draftq(["stats", "--json"]).json()["drafts"], 6003);
    finish(sandbox.command(["list", "--limit=1"]), b"").expect(0);
}
