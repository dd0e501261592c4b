//! What the README shows is run, and does what it says.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use draftq::{Draft, DraftMetadata, DraftSourceSurface, DraftState, DraftStore};
use rusqlite::Connection;

const README: &str = include_str!("../../README.md");

/// The README's code blocks in this language, in order.
fn blocks(language: &str) -> Vec<&'static str> {
    let open = format!("```{language}\n");
    README
        .split(&open)
        .skip(1)
        .map(|rest| rest.split_once("```").expect("a block that is closed").0)
        .collect()
}

/// A directory in which the README's commands find what they name.
fn workplace() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_path_buf();
    let binary = Path::new(env!("CARGO_BIN_EXE_draftq"));
    let judge = binary.with_file_name("examples").join("judge");
    assert!(judge.exists(), "{} is not built; `cargo test` builds it", judge.display());
    fs::create_dir_all(root.join("target/release/examples")).unwrap();
    symlink(binary, root.join("target/release/draftq")).unwrap();
    symlink(judge, root.join("target/release/examples/judge")).unwrap();
    symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"), root.join("examples")).unwrap();
    (directory, root)
}

#[test]
fn the_commands_run() {
    let (_directory, root) = workplace();
    let path = std::env::var("PATH").unwrap();
    let mut ran = Vec::new();
    for command in blocks("sh").into_iter().flat_map(str::lines) {
        // Cargo built what is under test, and is running this.
        let command = match command.strip_prefix("cargo ") {
            Some(build) => match build.split_once(" && ") {
                Some((_, command)) => command,
                None => continue,
            },
            None => command,
        };
        let output = Command::new("sh")
            .args(["-c", command])
            .current_dir(&root)
            .env_clear()
            .env("HOME", &root)
            .env("PATH", format!("{}:{path}", root.join("target/release").display()))
            .output()
            .unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        ran.push((command, output.status.code(), stdout, stderr));
    }
    assert!(ran.len() >= 5, "{ran:#?}");
    for (index, (command, code, _, stderr)) in ran.iter().enumerate() {
        // The main job defers one draft.
        let expected = if index == 0 { 70 } else { 0 };
        assert_eq!(*code, Some(expected), "{command}\n{stderr}");
    }

    let summary: serde_json::Value = serde_json::from_str(&ran[0].2).unwrap();
    for (name, drafts) in
        [("accepted", 10), ("skipped", 3), ("failed", 1), ("quarantined", 1), ("deferred", 1)]
    {
        assert_eq!(summary["summary"][name], drafts, "{summary:#}");
    }
    assert_eq!(ran[1].2.lines().count(), 17, "a title and 16 drafts: {}", ran[1].2);
    let quarantined: serde_json::Value = serde_json::from_str(&ran[2].2).unwrap();
    assert_eq!(quarantined["state"], "quarantined");
}

fn hello() -> Draft {
    let metadata = DraftMetadata::new(DraftSourceSurface::Cli, std::time::SystemTime::now());
    Draft::with_metadata("hello".to_owned(), metadata)
}

#[test]
fn the_envelope_is_the_one_shown() {
    let shown: serde_json::Value = serde_json::from_str(blocks("json")[0]).unwrap();
    let mut real: serde_json::Value = serde_json::from_str(&hello().to_envelope()).unwrap();
    real["submitted_at_unix_ms"] = shown["submitted_at_unix_ms"].clone();
    assert_eq!(shown, real);
}

#[test]
fn the_answer_shown_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    DraftStore::open(&path).unwrap().submit(&hello()).unwrap();
    let mut run = crate::harness::draftq(&path);
    run.args(["run", "--", "printf", "%s", blocks("json")[1]]);
    let ran = crate::harness::finish(run, b"");
    assert_eq!(ran.expect(70).json()["summary"]["deferred"], 1, "{}", ran.err());
}

#[test]
fn the_sql_works() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    let store = DraftStore::open(&path).unwrap();
    let id = hello().id();
    store.submit(&hello()).unwrap();
    store.transition(id, DraftState::Pending, DraftState::Processing).unwrap();
    store.transition(id, DraftState::Processing, DraftState::Skipped).unwrap();
    let [queries, moves] = blocks("sql").try_into().expect("two blocks of SQL");

    let reader =
        Connection::open_with_flags(&path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    for query in queries.split(';').map(str::trim).filter(|query| !query.is_empty()) {
        let mut statement =
            reader.prepare(query).unwrap_or_else(|error| panic!("{query}: {error}"));
        let mut rows = statement.query([]).unwrap();
        while rows.next().unwrap().is_some() {}
    }

    Connection::open(&path).unwrap().execute_batch(moves).unwrap();
    let (record, history, _) = store.inspect(id).unwrap();
    assert_eq!(record.state, DraftState::Accepted);
    assert_eq!(record.note.as_deref(), Some("read it myself"));
    let by_hand: Vec<_> =
        history.iter().filter(|event| event.by_hand).map(|event| event.event.as_str()).collect();
    assert_eq!(by_hand, ["requeued", "resolved"]);
}

#[test]
fn every_command_has_an_example_in_its_help() {
    let help = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_draftq")).args(arguments).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let commands =
        ["submit", "sweep", "run", "watch", "list", "show", "stats", "requeue", "completions"];
    let overview = help(&["--help"]);
    assert!(overview.contains("Examples:\n  draftq "), "{overview}");
    for command in commands {
        assert!(overview.contains(&format!("\n  {command}")), "{command} in {overview}");
        let text = help(&[command, "--help"]);
        assert!(text.contains(&format!("  draftq {command}")), "{text}");
        assert!(text.contains("Example"), "{text}");
    }
}

#[test]
fn the_exit_codes_are_those_of_the_help() {
    let output = Command::new(env!("CARGO_BIN_EXE_draftq")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for code in ["0", "64", "65", "66", "70", "73", "74", "75", "78", "129, 130, 131, 143"] {
        assert!(README.contains(&format!("\n| {code} | ")), "{code} in the README");
        assert!(help.contains(&format!("{code} ")), "{code} in the help");
    }
}
