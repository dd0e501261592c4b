//! Opening a new path: the file is private, and many processes may open it at once.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Barrier;

use draftq::DraftStore;
use rusqlite::Connection;

use crate::files::{beside, draftq_behind, tree};
use crate::harness::{assert_whole, close, draft, setting};

/// A run, which makes the database if there is none.
fn run_behind(wrapper: &[&str], path: &Path) -> Command {
    draftq_behind(wrapper, path, &["run", "--defer", "--json"])
}

fn assert_nothing_to_run(output: &Output) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {told}", output.status);
    let ran: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ran["summary"]["pending_seen"], 0, "{ran}");
}

#[test]
fn a_new_file_is_private_whatever_the_umask() {
    for umask in ["000", "022", "077"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("some/where/drafts.db");
        let script = format!("umask {umask}; exec \"$@\"");
        assert_nothing_to_run(&run_behind(&["sh", "-c", &script, "sh"], &path).output().unwrap());
        let mut modes = tree(directory.path());
        // A process may end before a thread of it has checked the WAL in.
        for suffix in ["-wal", "-shm"] {
            assert!(modes.remove(&beside(&path, suffix)).is_none_or(|(mode, _)| mode == 0o600));
        }
        let modes: Vec<_> = modes.into_iter().map(|(path, (mode, _))| (path, mode)).collect();
        let expected = [
            (directory.path().join("some"), 0o700),
            (directory.path().join("some/where"), 0o700),
            (path.clone(), 0o600),
            (beside(&path, "-runners"), 0o700),
            (beside(&path, "-runners").join("in-use"), 0o600),
        ];
        assert_eq!(modes, expected, "umask {umask}");
    }
}

#[test]
fn all_files_of_an_open_store_are_private() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data/drafts.db");
    let store = DraftStore::open(&path).unwrap();
    store.submit(&draft("x")).unwrap();
    let runner = store.register_runner("test").unwrap();
    let mut snapshot = store.pending_snapshot().unwrap();
    assert!(store.claim_next(&runner, &mut snapshot).unwrap().is_some());
    let tree = tree(directory.path());
    assert!(tree.len() >= 6, "directory, file, -wal, -shm, -runners and a lock: {:?}", tree.keys());
    for (path, (mode, _)) in tree {
        let private = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, private, "{}", path.display());
    }
}

#[test]
fn an_empty_file_becomes_a_private_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let store = DraftStore::open(&path).unwrap();
    store.submit(&draft("x")).unwrap();
    for (path, (mode, _)) in tree(directory.path()) {
        let private = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, private, "{}", path.display());
    }
    close(store);
    assert_whole(&path);
}

/// There is exactly one schema.
fn assert_one_schema(path: &Path, drafts: i64) {
    let expected: i64 = {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../migrations/0002_drafts.sql")).unwrap();
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap()
    };
    let connection = Connection::open(path).unwrap();
    let found: (i64, i64, i64, i64, String) = connection
        .query_row(
            "SELECT (SELECT count(*) FROM sqlite_schema), (SELECT count(*) FROM drafts),
                    user_version, application_id, journal_mode
             FROM pragma_user_version, pragma_application_id, pragma_journal_mode",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
        )
        .unwrap();
    assert_eq!(found, (expected, drafts, 2, 0x6472_6671, "wal".to_owned()));
    drop(connection);
    assert_whole(path);
}

fn twenty_threads(rounds: u64) {
    for round in 0..rounds {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/drafts.db");
        let barrier = Barrier::new(20);
        std::thread::scope(|scope| {
            for thread in 0..20 {
                let (path, barrier) = (&path, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let store = DraftStore::open(path)
                        .unwrap_or_else(|error| panic!("round {round}: {error:?}"));
                    store.submit(&draft(&format!("from {thread}"))).unwrap();
                });
            }
        });
        assert_one_schema(&path, 20);
    }
}

fn twenty_processes(rounds: u64) {
    for _ in 0..rounds {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/drafts.db");
        // All processes wait for the end of their input, which comes at the same time.
        let wrapper = ["sh", "-c", "read -r line; exec \"$@\"", "sh"];
        let mut children: Vec<Child> = (0..20)
            .map(|_| {
                let mut command = run_behind(&wrapper, &path);
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        drop(children.iter_mut().map(|child| child.stdin.take()).collect::<Vec<_>>());
        for child in children {
            assert_nothing_to_run(&child.wait_with_output().unwrap());
        }
        assert_one_schema(&path, 0);
    }
}

#[test]
fn twenty_threads_may_open_a_new_path_at_once() {
    twenty_threads(setting("DRAFTQ_TEST_ROUNDS", 3));
}

#[test]
fn twenty_processes_may_open_a_new_path_at_once() {
    twenty_processes(setting("DRAFTQ_TEST_ROUNDS", 3));
}

#[test]
#[ignore = "long; DRAFTQ_TEST_ROUNDS sets how long"]
fn a_new_path_may_be_opened_by_many_at_once_long() {
    let rounds = setting("DRAFTQ_TEST_ROUNDS", 500);
    twenty_threads(rounds);
    twenty_processes(rounds);
    println!(r#"{{"test":"first_start","rounds":{rounds},"of":[20,20],"errors":0}}"#);
}
