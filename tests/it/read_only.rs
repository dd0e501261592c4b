//! Reading commands create and change nothing, and work where nothing can be written.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use draftq::ErrorKind;
use draftq::{DraftState, DraftStore, LibrarianError};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use crate::harness::{close, draft, draftq, have};

/// Every file and directory from here down: inode, mode, time, and bytes if it is a file.
fn tree(directory: &Path) -> BTreeMap<PathBuf, (u64, u32, i64, i64, Vec<u8>)> {
    let entries = walkdir::WalkDir::new(directory).into_iter().map(|entry| {
        let entry = entry.unwrap();
        let is = entry.metadata().unwrap();
        let bytes = if is.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
        (entry.into_path(), (is.ino(), is.mode(), is.mtime(), is.mtime_nsec(), bytes))
    });
    entries.collect()
}

/// A closed store with two drafts, in a directory that other users may enter.
fn closed_store() -> (tempfile::TempDir, PathBuf, String) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = directory.path().join("q/drafts.db");
    let store = DraftStore::open(&path).unwrap();
    let first = draft("the first");
    store.submit(&first).unwrap();
    store.submit(&draft("the second")).unwrap();
    close(store);
    fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    (directory, path, first.id().to_hex())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// As a killed process leaves it: the newest changes are only in the -wal.
fn leave_a_wal(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    let moved = connection.execute("UPDATE drafts SET state = 'processing', claimed_at = 1", []);
    assert!(moved.is_ok_and(|moved| moved >= 2));
    drop(connection);
    assert!(fs::metadata(beside(path, "-wal")).unwrap().len() > 0);
}

/// The reading commands, run by a wrapper.
fn look(wrapper: &[&str], path: &Path, id: &str) -> Vec<Output> {
    [&["stats", "--json"][..], &["list", "--json"], &["show", id, "--json"]]
        .iter()
        .map(|arguments| {
            let mut draftq = draftq(path);
            draftq.args(*arguments);
            let mut command = match wrapper {
                [] => draftq,
                [program, before @ ..] => {
                    let mut command = Command::new(program);
                    command.args(before).arg(draftq.get_program()).args(draftq.get_args());
                    command
                }
            };
            command.env_remove("DRAFTQ_DB").stdin(Stdio::null()).output().unwrap()
        })
        .collect()
}

#[track_caller]
fn assert_seen(outputs: &[Output], state: &str) {
    for output in outputs {
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{told}");
        let seen = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(seen.contains(state), "{seen}");
    }
    let stats: serde_json::Value = serde_json::from_slice(&outputs[0].stdout).unwrap();
    assert_eq!(stats["states"][state], 2, "{stats}");
}

#[track_caller]
fn assert_refused(outputs: &[Output], code: i32, words: &[&str]) {
    for output in outputs {
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(output.stdout.is_empty());
        for word in words {
            assert!(told.contains(word), "{word}: {told}");
        }
        assert!(!told.contains("immutable"), "{told}");
    }
}

/// A wrapper for another user than root; `None` if there is no way.
fn another_user() -> Option<&'static [&'static str]> {
    if fs::metadata("/proc/self").map_or(true, |is| is.uid() != 0) || !have("setpriv") {
        println!("skipped: this needs root and setpriv");
        return None;
    }
    let wrapper = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let binary = env!("CARGO_BIN_EXE_draftq");
    let mut test = Command::new(wrapper[0]);
    let reached = test.args(&wrapper[1..]).args(["test", "-x", binary]).status();
    if !reached.is_ok_and(|status| status.success()) {
        println!("skipped: another user cannot reach {binary}");
        return None;
    }
    Some(wrapper)
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_mistyped_path_creates_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/typo.db");
    assert_refused(&look(&[], &path, "00"), 66, &["typo.db", "--db"]);
    let requeue = draftq(&path).args(["requeue", "00"]).output().unwrap();
    assert_refused(&[requeue], 66, &["typo.db", "--db"]);
    assert_eq!(tree(directory.path()).len(), 1, "nothing was made");
    // An empty file is not a database yet.
    let path = directory.path().join("empty.db");
    fs::write(&path, "").unwrap();
    assert_refused(&look(&[], &path, "00"), 66, &["empty.db", "--db"]);
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    for options in [DraftStore::options().read_only(true), DraftStore::options().create(false)] {
        let error = options.open(directory.path().join("typo.db")).unwrap_err();
        assert!(matches!(error, LibrarianError::NoDatabase { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}

/// The process that made it was killed, or the power failed, before anything was stored. What looks
/// says that there is no database, and the next command that writes makes it.
#[test]
fn a_creation_that_was_cut_short_made_no_database() {
    let directory = tempfile::tempdir().unwrap();
    let work = directory.path().join("work.db");
    let making = Connection::open(&work).unwrap();
    making.execute_batch("PRAGMA cache_size = 2; PRAGMA cache_spill = 2; BEGIN").unwrap();
    making.execute_batch(include_str!("../../migrations/0002_drafts.sql")).unwrap();
    let journal = fs::read(beside(&work, "-journal")).unwrap();
    let file = fs::read(&work).unwrap();
    assert!(!journal.is_empty() && file.len() > 4_096, "some of it was written");
    for (name, file) in [
        ("written.db", &file[..]),
        ("first-page.db", &file[..4_096]),
        ("zeros.db", &[0; 8_192]),
        ("empty.db", &[]),
    ] {
        let place = directory.path().join(name);
        fs::create_dir(&place).unwrap();
        let path = place.join(name);
        fs::write(&path, file).unwrap();
        fs::write(beside(&path, "-journal"), &journal).unwrap();
        for path in [path.clone(), beside(&path, "-journal")] {
            chmod(&path, 0o600);
        }
        let before = tree(&place);
        assert_refused(&look(&[], &path, "00"), 66, &[name, "--db"]);
        assert!(tree(&place) == before, "{name} was changed");
        let submitted = draftq(&path).args(["submit", "--text", "one"]).output().unwrap();
        assert!(submitted.status.success(), "{name}: {submitted:?}");
        let stats = draftq(&path).args(["stats", "--json"]).output().unwrap();
        let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).unwrap();
        assert_eq!(stats["drafts"], 1, "{name}");
    }
}

#[test]
fn reading_commands_change_nothing() {
    let (_directory, path, id) = closed_store();
    let before = tree(path.parent().unwrap());
    assert_seen(&look(&[], &path, &id), "pending");
    assert!(tree(path.parent().unwrap()) == before, "a closed database was changed");
    leave_a_wal(&path);
    let before = tree(path.parent().unwrap());
    assert_seen(&look(&[], &path, &id), "processing");
    let mut after = tree(path.parent().unwrap());
    // The -shm is no content: it is built from the -wal.
    let shm = beside(&path, "-shm");
    after.insert(shm.clone(), before[&shm].clone());
    assert!(after == before, "a database with a -wal was changed");
}

/// A copy of a database, of its -wal and of its runners directory says which file the original was.
/// Nobody has that open here.
#[test]
fn a_copy_with_all_that_lies_beside_it_is_read_at_once() {
    let (directory, path, id) = closed_store();
    leave_a_wal(&path);
    let copy = directory.path().join("copy");
    let copied =
        Command::new("cp").arg("-rp").arg(path.parent().unwrap()).arg(&copy).status().unwrap();
    assert!(copied.success());
    let copy = copy.join("drafts.db");
    assert!(beside(&copy, "-runners").join("in-use").exists());
    assert_seen(&look(&[], &copy, &id), "processing");
}

#[test]
fn reading_commands_need_no_write_permission() {
    let Some(wrapper) = another_user() else { return };
    let (_directory, path, id) = closed_store();
    let kept = path.parent().unwrap();
    // Another user, who may read.
    chmod(&path, 0o644);
    assert_seen(&look(wrapper, &path, &id), "pending");
    chmod(&path, 0o444);
    chmod(kept, 0o555);
    assert_seen(&look(wrapper, &path, &id), "pending");
    // While a process that wrote has it open.
    let store = DraftStore::open(&path).unwrap();
    store.submit(&draft("the third")).unwrap();
    for suffix in ["-wal", "-shm"] {
        chmod(&beside(&path, suffix), 0o644);
    }
    let outputs = look(wrapper, &path, &id);
    let stats: serde_json::Value = serde_json::from_slice(&outputs[0].stdout).unwrap();
    assert_eq!(stats["drafts"], 3, "{outputs:?}");
    drop(store);
    // What cannot be read is named.
    leave_a_wal(&path);
    chmod(&beside(&path, "-wal"), 0o600);
    assert_refused(&look(wrapper, &path, &id), 74, &["drafts.db-wal", "ermission denied"]);
    chmod(&beside(&path, "-wal"), 0o644);
    fs::remove_file(beside(&path, "-shm")).unwrap();
    assert_refused(&look(wrapper, &path, &id), 74, &["drafts.db-wal", "-shm"]);
    chmod(&path, 0o600);
    assert_refused(&look(wrapper, &path, &id), 74, &["drafts.db", "ermission denied"]);
}

#[test]
fn reading_commands_work_on_a_read_only_file_system() {
    let (_directory, path, id) = closed_store();
    let kept = path.parent().unwrap().to_str().unwrap().to_owned();
    let script = r#"mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" || exit 99; exec "$@""#;
    let wrapper = ["unshare", "-m", "sh", "-c", script, &kept];
    let tried = have("unshare").then(|| {
        Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").stderr(Stdio::null()).status()
    });
    if !tried.is_some_and(|status| status.is_ok_and(|status| status.success())) {
        println!("skipped: this needs unshare and the right to mount");
        return;
    }
    assert_seen(&look(&wrapper, &path, &id), "pending");
    leave_a_wal(&path);
    assert_seen(&look(&wrapper, &path, &id), "processing");
    fs::remove_file(beside(&path, "-shm")).unwrap();
    assert_refused(&look(&wrapper, &path, &id), 74, &["drafts.db-wal", "-shm"]);
    // An empty -wal does not matter.
    fs::write(beside(&path, "-wal"), "").unwrap();
    assert_seen(&look(&wrapper, &path, &id), "pending");
}

#[test]
fn a_read_only_store_sees_all_commits_and_writes_nothing() {
    let (_directory, path, _) = closed_store();
    let reader = DraftStore::open_read_only(&path).unwrap();
    let seen = || reader.stats().unwrap().drafts;
    assert_eq!(seen(), 2);
    let number = |store: &DraftStore| store.list(DraftState::Pending).unwrap().len();
    for round in 3..6 {
        // In each round the writer closes the file before the read and opens it after.
        let store = DraftStore::open(&path).unwrap();
        let new = draft(&format!("number {round}"));
        store.submit(&new).unwrap();
        assert_eq!((seen(), number(&reader)), (round, round as usize));
        assert_eq!(reader.load(DraftState::Pending, new.id()).unwrap(), new);
        drop(store);
        assert_eq!((seen(), number(&reader)), (round, round as usize));
    }
    let id = reader.list(DraftState::Pending).unwrap()[0].id();
    let before = tree(path.parent().unwrap());
    let refused = |result: Result<(), LibrarianError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, LibrarianError::ReadOnlyStore { .. }), "{error:?}");
        assert!(error.to_string().contains("drafts.db"), "{error}");
    };
    refused(reader.submit(&draft("new")).map(drop));
    refused(reader.submit_many(&[draft("new")]).map(drop));
    refused(reader.requeue(&[id]).map(drop));
    refused(reader.recover(SystemTime::now()).map(drop));
    refused(reader.register_runner("test").map(drop));
    refused(reader.transition(id, DraftState::Pending, DraftState::Processing).map(drop));
    assert!(tree(path.parent().unwrap()) == before, "something was made");
}

#[test]
fn a_read_sees_the_state_of_one_moment() {
    let (_directory, path, _) = closed_store();
    let reader = DraftStore::open_read_only(&path).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..100 {
                // Each open and close creates and removes the -wal.
                let store = DraftStore::open(&path).unwrap();
                store.submit(&draft(&format!("{number}"))).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut last = 2;
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            let drafts = reader.stats().unwrap().drafts;
            assert!(drafts >= last, "{drafts} after {last}");
            last = drafts;
        }
    });
    assert_eq!(reader.stats().unwrap().drafts, 102);
}
