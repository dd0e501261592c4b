//! The examples run, and do what their comments say.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use draftq::{DraftState, DraftStore};
use rusqlite::Connection;
use serde_json::Value;

use crate::harness::{Ran, assert_whole, draft, finish, store};

/// The built example. Cargo builds the examples before it runs the tests.
fn example(name: &str, path: &Path) -> Command {
    let directory = PathBuf::from(env!("CARGO_BIN_EXE_draftq"));
    let program = directory.parent().unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is not built: run `cargo build --examples`", program.display());
    let mut command = Command::new(program);
    command.arg(path);
    command
}

fn states(path: &Path) -> Vec<(String, i64)> {
    let connection = Connection::open(path).unwrap();
    let mut statement =
        connection.prepare("SELECT state, count(*) FROM drafts GROUP BY 1 ORDER BY 1").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

fn runners(path: &Path) -> i64 {
    let connection = Connection::open(path).unwrap();
    let ended = "SELECT count(*) FROM runners WHERE ended_at IS NOT NULL";
    connection.query_row(ended, [], |row| row.get(0)).unwrap()
}

#[test]
fn the_four_workers_example_processes_what_it_submitted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    let ran: Ran = finish(example("four_workers", &path), b"");
    let summary: Value = ran.expect(0).json();
    assert_eq!((&summary["accepted"], &summary["skipped"]), (&2.into(), &1.into()));
    assert_eq!(states(&path), [("accepted".to_owned(), 2), ("skipped".to_owned(), 1)]);
    let store = DraftStore::open(&path).unwrap();
    let skipped = store.list(DraftState::Skipped).unwrap();
    let (record, _) = store.record(skipped[0].id()).unwrap();
    assert_eq!(record.note.as_deref(), Some("1 word beginning with T is too little to keep"));
    assert_whole(&path);
}

#[test]
fn the_own_loop_example_works() {
    let (directory, store) = store();
    let path = directory.path().join("drafts.db");
    let drafts = ["keep", "later", "broken"].map(draft);
    store.submit_many(&drafts).unwrap();
    let mut child = example("own_loop", &path).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let [keep, later, broken] = drafts.map(|draft| draft.id());
    for expected in
        [format!("{keep} accepted"), format!("{later} pending"), format!("{broken} broken")]
    {
        assert_eq!(lines.next().unwrap().unwrap(), expected);
    }
    let (record, _) = store.record(later).unwrap();
    assert!(record.due_at_unix_ms.is_some());
    let (record, _) = store.record(broken).unwrap();
    assert_eq!((record.state, record.errors), (DraftState::Processing, 1));

    let stop = draft("stop");
    store.submit(&stop).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), format!("{} accepted", stop.id()));
    assert!(lines.next().is_none());
    assert!(child.wait().unwrap().success());
    assert_eq!(runners(&path), 1, "its registration has ended");
    assert_whole(&path);
}

#[test]
fn the_embedding_example_loses_no_draft() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    // Twice: the second time, all drafts are there already.
    let mut accepted = 0;
    for _ in 0..2 {
        let ran = finish(example("embed", &path), b"");
        let counts = states(&path);
        let count =
            |name: &str| counts.iter().find(|(state, _)| state == name).map_or(0, |it| it.1);
        assert_eq!(count("accepted") + count("pending"), 100, "{counts:?}");
        let printed =
            format!("accepted {}, pending {}\n", count("accepted") - accepted, count("pending"));
        assert_eq!(ran.expect(0).out(), printed);
        accepted = count("accepted");
    }
    assert_whole(&path);
}
