//! A draft's text is in the database and in output that was asked for, and nowhere else.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::harness::{Ran, Sandbox, finish};

/// A word that no other test and no other run of this one has.
fn canary(what: &str) -> String {
    format!("canary-{what}-{:016x}", fastrand::u64(..))
}

fn contains(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

/// Every regular file below here.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.extend(self::files(&entry.path()));
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files
}

/// The names of the files below this path that contain the word.
fn files_with(directory: &Path, word: &str) -> BTreeSet<String> {
    let files = files(directory).into_iter();
    let found = files.filter(|path| contains(&fs::read(path).unwrap_or_default(), word));
    found.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

/// The processes whose arguments, name or environment contain the word.
fn processes_with(word: &str) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let of = ["cmdline", "environ", "comm"];
    processes
        .flat_map(|process| of.map(|name| process.join(name)))
        .filter(|path| contains(&fs::read(path).unwrap_or_default(), word))
        .collect()
}

/// With the most verbose log, and temporary files where they can be read.
fn loud(sandbox: &Sandbox, args: &[&str]) -> std::process::Command {
    let temporary = sandbox.path("tmp");
    fs::create_dir_all(&temporary).unwrap();
    let mut command = sandbox.command(args);
    command.env("RUST_LOG", "trace").env("TMPDIR", temporary);
    command
}

fn says_nothing_of(ran: &Ran, word: &str) {
    assert!(!contains(&ran.stdout, word), "{}", ran.out());
    assert!(!contains(&ran.stderr, word), "{}", ran.err());
}

#[test]
fn a_text_is_only_in_the_database() {
    let sandbox = Sandbox::new();
    let text = canary("text");
    let noise = canary("stderr");
    let mut submit = loud(&sandbox, &["submit"]);
    submit.stdin(Stdio::piped());
    let ran = finish(submit, format!("{text} and more").as_bytes());
    says_nothing_of(ran.expect(0), &text);
    let id = ran.json()["id"].as_str().unwrap().to_owned();

    for name in ["started", "release"] {
        mknodat(CWD, sandbox.path(name), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    }
    sandbox.file("noise", &noise);
    // It reads the text, writes to standard error, and waits until everything was checked.
    let script = "read -r draft; cat noise >&2; echo > started; cat < release; exit 3";
    let mut run = loud(&sandbox, &["run", "--", "sh", "-c", script]);
    let child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    File::open(sandbox.path("started")).unwrap().read_to_end(&mut Vec::new()).unwrap();
    let during = (processes_with(&text), files_with(&sandbox.root(), &text));
    File::options().write(true).open(sandbox.path("release")).unwrap().write_all(b"").unwrap();
    let output = child.wait_with_output().unwrap();
    let ran = Ran { code: output.status.code(), stdout: output.stdout, stderr: output.stderr };

    assert_eq!(during.0, Vec::<PathBuf>::new());
    let of_the_database = ["drafts.db".to_owned(), "drafts.db-wal".to_owned()];
    assert!(!during.1.is_empty(), "the search finds nothing at all");
    assert!(during.1.iter().all(|name| of_the_database.contains(name)), "{:?}", during.1);
    assert_eq!(files_with(&sandbox.root(), &text), BTreeSet::from(["drafts.db".to_owned()]));
    assert_eq!(files(&sandbox.path("tmp")), Vec::<PathBuf>::new());

    ran.expect(70);
    assert!(ran.err().contains("draft_error"), "the log is on: {}", ran.err());
    for word in [&text, &noise] {
        says_nothing_of(&ran, word);
    }
    let expected = ["drafts.db".to_owned(), "noise".to_owned()];
    assert_eq!(files_with(&sandbox.root(), &noise), BTreeSet::from(expected));

    // Only commands that show the text print it.
    for args in [&["show", &id][..], &["show", &id, "--json"], &["show", &id, "--raw"]] {
        assert!(contains(&finish(loud(&sandbox, args), b"").expect(0).stdout, &text), "{args:?}");
    }
    let shown = finish(loud(&sandbox, &["show", &id]), b"");
    assert!(contains(&shown.stdout, &noise) && !contains(&shown.stderr, &noise));
    for args in [
        &["list"][..],
        &["list", "--json"],
        &["stats"],
        &["stats", "--json"],
        &["run", "--defer"],
        &["run", "--fail-fast", "--stale-processing-secs=0", "--", "sh", "-c", "cat >&2; exit 1"],
        &["run", "--stale-processing-secs=0", "--", "sh", "-c", "cat; exit 0"],
        &["requeue", &id],
    ] {
        says_nothing_of(&finish(loud(&sandbox, args), b""), &text);
    }
}

#[test]
fn a_refused_text_is_not_repeated() {
    let sandbox = Sandbox::new();
    let text = canary("refused");
    let envelope = format!("{{\"raw_text\":\"{text}\",\"{text}\":1}}\n{text}\n");
    for (args, input) in [
        (&["submit", "--max-text-bytes=5"][..], text.clone()),
        (&["submit", "--jsonl=-"], envelope.clone()),
        (&["submit", "--jsonl=-", "--skip-bad"], envelope),
        (&["submit", "--jsonl=-", "--max-text-bytes=5"], format!("{{\"raw_text\":\"{text}\"}}")),
        (&["submit", "--max-text-bytes=5", "--text", &text], String::new()),
        (&["submit", &text], String::new()),
    ] {
        let mut command = loud(&sandbox, args);
        command.stdin(Stdio::piped());
        says_nothing_of(&finish(command, input.as_bytes()), &text);
    }
    sandbox.file("tree/big.md", &text);
    let ran = finish(loud(&sandbox, &["sweep", "tree", "--max-text-bytes=5"]), b"");
    says_nothing_of(ran.expect(0), &text);
    assert_eq!(ran.json()["skipped"][0]["reason"], "too_large");
}

#[test]
fn files_are_private_whatever_the_umask() {
    for umask in ["000", "022", "077"] {
        let sandbox = Sandbox::new();
        let started = sandbox.path("started");
        for path in [&started, &sandbox.path("release")] {
            mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        }
        let under = |args: &[&str]| {
            let mut command = sandbox.command_of("sh");
            let script = format!("umask {umask}; exec \"$0\" \"$@\"");
            command.args(["-c", &script, env!("CARGO_BIN_EXE_draftq")]).args(args);
            command
        };
        finish(under(&["submit", "--text", "x"]), b"").expect(0);
        // During a run there are more files: the WAL, its index, the runner's lock.
        let program = ["run", "--", "sh", "-c", "echo > started; cat < release"];
        let mut child =
            under(&program).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        File::open(&started).unwrap().read_to_end(&mut Vec::new()).unwrap();
        let directory = sandbox.db().parent().unwrap().to_owned();
        let mut paths = files(&directory);
        let modes: Vec<_> = paths.iter().map(|path| mode(path)).collect();
        let directories: Vec<_> = paths.iter().map(|path| mode(path.parent().unwrap())).collect();
        File::options().write(true).open(sandbox.path("release")).unwrap().write_all(b"").unwrap();
        child.wait().unwrap();

        assert!(modes.len() >= 4, "{paths:?}");
        assert!(modes.iter().all(|mode| mode == "600"), "umask {umask}: {modes:?} {paths:?}");
        assert!(directories.iter().all(|mode| mode == "700"), "umask {umask}: {directories:?}");
        paths.retain(|path| path.ends_with("drafts.db"));
        assert_eq!(paths.len(), 1);
    }
}

fn mode(path: &Path) -> String {
    format!("{:o}", fs::metadata(path).unwrap().permissions().mode() & 0o7777)
}
