//! What opening a path does: to a new one, to a file of somebody else, to a damaged one, and
//! when many do it at once.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Barrier, mpsc};
use std::time::{Duration, SystemTime};

use draftq::Claimed;
use draftq::DraftQuery;
use draftq::ErrorKind;
use draftq::{DraftProcessingDecision, DraftState, DraftStore, LibrarianError};
use rusqlite::Connection;

use crate::harness::{assert_whole, close, draft, draftq, have, seed, setting, store};

/// `draftq --db PATH …`, behind a wrapper such as `sh -c`.
fn draftq_behind(wrapper: &[&str], path: &Path, arguments: &[&str]) -> Command {
    let mut draftq = draftq(path);
    draftq.args(arguments);
    let [program, before @ ..] = wrapper else { return draftq };
    let mut command = Command::new(program);
    command.args(before).arg(draftq.get_program()).args(draftq.get_args());
    command.env_remove("DRAFTQ_DB").stdin(Stdio::null());
    command
}

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

/// Every file and directory from here down: mode, and bytes if it is a file.
fn tree(directory: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(directory).min_depth(1) {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        let bytes = if metadata.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
        found.insert(entry.path().to_owned(), (metadata.mode() & 0o7777, bytes));
    }
    found
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
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
fn everything_that_an_open_store_makes_is_private() {
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

/// The file is refused, by the library and by the command, and nothing is changed, made or left.
fn assert_refused(path: &Path, what: &str) {
    let directory = path.parent().unwrap();
    let before = tree(directory);
    match DraftStore::open(path) {
        Err(error @ LibrarianError::ForeignDatabase { .. }) => {
            assert_eq!(error.kind(), ErrorKind::ForeignDatabase);
            let message = error.to_string();
            assert!(message.contains(&*path.to_string_lossy()), "{what}: {message}");
        }
        other => panic!("{what}: {other:?}"),
    }
    assert_unchanged(directory, &before, what);
    for arguments in [&["run", "--defer"][..], &["requeue", "00"], &["stats"], &["list"]] {
        let output = draftq_behind(&[], path, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{what}: {arguments:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{what}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(&*path.to_string_lossy()), "{what}: {told}");
        assert!(!told.contains("immutable"), "{what}: {told}");
        assert_unchanged(directory, &before, what);
    }
}

fn assert_unchanged(directory: &Path, before: &BTreeMap<PathBuf, (u32, Vec<u8>)>, what: &str) {
    let after = tree(directory);
    let names = |tree: &BTreeMap<PathBuf, _>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(before), "{what}: litter, or a file gone");
    for (path, contents) in before {
        // The -shm is no content: SQLite keeps its locks' shadows there.
        if path.extension() != Some(OsStr::new("db-shm")) {
            assert!(after[path] == *contents, "{what}: {} was changed", path.display());
        }
    }
}

/// Copy a database as a crash would leave it: the file and all that lies beside it.
fn crash_copy(from: &Path, to: &Path) {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        if beside(from, suffix).exists() {
            fs::copy(beside(from, suffix), beside(to, suffix)).unwrap();
        }
    }
}

/// A database of another program, with this journal mode and enough rows to spill.
fn foreign(path: &Path, journal_mode: &str) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = {journal_mode};
             CREATE TABLE theirs (id INTEGER PRIMARY KEY, value TEXT);
             INSERT INTO theirs (value)
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
             SELECT 'row ' || i FROM n;"
        ))
        .unwrap();
    connection
}

#[test]
fn a_database_of_another_program_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let fresh = |name: &str| {
        let place = directory.path().join(name);
        fs::create_dir(&place).unwrap();
        place.join("drafts.db")
    };

    let path = fresh("rollback");
    drop(foreign(&path, "DELETE"));
    assert_refused(&path, "a foreign database");

    let path = fresh("wal-checked-in");
    drop(foreign(&path, "WAL"));
    assert_refused(&path, "a foreign database in WAL mode");

    // Nothing but the mode is in the file; all else is in the -wal.
    let (work, path) = (fresh("wal-work"), fresh("wal"));
    let connection = foreign(&work, "WAL");
    crash_copy(&work, &path);
    assert!(fs::metadata(beside(&path, "-wal")).unwrap().len() > 0);
    assert_refused(&path, "a foreign database with a WAL");
    drop(connection);
    let path_without_shm = fresh("wal-without-shm");
    crash_copy(&path, &path_without_shm);
    fs::remove_file(beside(&path_without_shm, "-shm")).unwrap();
    assert_refused(&path_without_shm, "a foreign database with a WAL and no -shm");

    // A transaction that spilled into the file and did not end: a hot journal.
    let (work, path) = (fresh("hot-work"), fresh("hot"));
    let connection = foreign(&work, "DELETE");
    connection
        .execute_batch(
            "PRAGMA cache_size = 2; PRAGMA cache_spill = 2; BEGIN;
             UPDATE theirs SET value = value || ' changed';
             INSERT INTO theirs (value) SELECT value FROM theirs;",
        )
        .unwrap();
    crash_copy(&work, &path);
    assert!(fs::metadata(beside(&path, "-journal")).unwrap().len() > 0);
    assert_refused(&path, "a foreign database with a hot journal");
    // As well where the file was not yet as long as its header says.
    let torn = fresh("torn");
    crash_copy(&path, &torn);
    let file = fs::OpenOptions::new().write(true).open(&torn).unwrap();
    file.set_len(8192).unwrap();
    assert_refused(&torn, "a torn foreign database with a hot journal");
    drop(connection);
    // The journal was hot indeed: SQLite itself takes it back.
    let connection = Connection::open(&path).unwrap();
    let rows: i64 =
        connection.query_row("SELECT count(*) FROM theirs", [], |row| row.get(0)).unwrap();
    assert_eq!((rows, beside(&path, "-journal").exists()), (2000, false));

    let path = fresh("text");
    fs::write(&path, "Dear diary,\nthis is no database.\n").unwrap();
    assert_refused(&path, "a text file");
    fs::write(beside(&path, "-journal"), "Dear journal,\nyou are not SQLite's.\n").unwrap();
    assert_refused(&path, "a text file with a journal");
    let path = fresh("one-byte");
    fs::write(&path, "S").unwrap();
    assert_refused(&path, "a file of one byte");
    let path = fresh("random");
    let mut random = fastrand::Rng::with_seed(7);
    fs::write(&path, std::iter::repeat_with(|| random.u8(..)).take(9_000).collect::<Vec<_>>())
        .unwrap();
    assert_refused(&path, "a file of random bytes");
}

/// A file that is not SQLite's, or is encrypted, and a journal that is not that of a first start.
#[test]
fn a_foreign_journal_is_neither_rolled_back_nor_removed() {
    let directory = tempfile::tempdir().unwrap();
    // Magic number, number of records, nonce; the number of pages before, of sectors, of bytes.
    let mut journal = vec![0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7, 0, 0, 0, 1, 0, 0, 0, 7];
    journal.extend([0, 0, 0, 2, 0, 0, 2, 0, 0, 0, 16, 0]);
    journal.resize(8_192, 0);
    let mut notes = journal.clone();
    notes[..8].copy_from_slice(b"my notes");
    notes[16..20].fill(0);
    for (name, journal) in [("encrypted.db", journal), ("diary.db", notes)] {
        let place = directory.path().join(name);
        fs::create_dir(&place).unwrap();
        let path = place.join(name);
        let bytes: Vec<u8> = (0..8_192_u32).map(|n| (n * 7 % 251) as u8).collect();
        fs::write(&path, bytes).unwrap();
        fs::write(beside(&path, "-journal"), journal).unwrap();
        for path in [&path, &beside(&path, "-journal")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        assert_refused(&path, name);
    }
}

/// SQLite syncs the directory of the file, and not those above it that are new, too.
#[test]
fn new_directories_are_on_the_disk_before_a_draft_is_acknowledged() {
    if !have("strace") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    let path = root.join("new/deeper/drafts.db");
    let log = root.join("log");
    let trace = ["strace", "-f", "-qq", "-y", "-e", "trace=fsync", "-o", log.to_str().unwrap()];
    let submitted = draftq_behind(&trace, &path, &["submit", "--text", "one"]).output().unwrap();
    assert!(submitted.status.success(), "{submitted:?}");
    let log = fs::read_to_string(log).unwrap();
    for synced in [&root, &root.join("new"), &root.join("new/deeper")] {
        assert!(log.contains(&format!("<{}>", synced.display())), "{}: {log}", synced.display());
    }
}

#[test]
fn another_version_is_left_as_it_is() {
    for version in [-1, 0, 1, 3, 99, i32::MAX, i32::MIN] {
        let (directory, store) = store();
        let path = directory.path().join("drafts.db");
        store.submit(&draft("x")).unwrap();
        close(store);
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", version).unwrap();
        // In the WAL alone, as a newer draftq that was killed would leave it.
        let place = directory.path().join("crashed");
        fs::create_dir(&place).unwrap();
        crash_copy(&path, &place.join("drafts.db"));
        assert!(fs::metadata(place.join("drafts.db-wal")).unwrap().len() > 0);
        drop(connection);
        assert_refused(&place.join("drafts.db"), &format!("version {version} in the WAL"));
        fs::remove_dir_all(&place).unwrap();
        assert_refused(&path, &format!("version {version}"));
    }
    // And one that is ours, by its number, of a program that is not.
    let (directory, store) = store();
    let path = directory.path().join("drafts.db");
    close(store);
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "application_id", 1).unwrap();
    drop(connection);
    assert_refused(&path, "another application_id");
}

#[test]
fn a_first_start_that_was_cut_off_is_begun_again() {
    let directory = tempfile::tempdir().unwrap();
    // As SQLite leaves it: the file half written, and a journal that says it was empty before.
    let work = directory.path().join("work.db");
    let connection = Connection::open(&work).unwrap();
    connection.execute_batch("PRAGMA cache_size = 2; PRAGMA cache_spill = 2; BEGIN;").unwrap();
    connection.pragma_update(None, "application_id", 0x6472_6671).unwrap();
    connection.execute_batch(include_str!("../../migrations/0002_drafts.sql")).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    for (name, length) in [("whole.db", None), ("short.db", Some(4096)), ("shorter.db", Some(512))]
    {
        let path = directory.path().join(name);
        crash_copy(&work, &path);
        assert!(fs::metadata(beside(&path, "-journal")).unwrap().len() > 0);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        match length {
            Some(length) => file.set_len(length).unwrap(),
            None => assert!(file.metadata().unwrap().len() > 4096, "it has spilled"),
        }
        drop(file);
        // Through a link from elsewhere, too: the journal is beside the file, not the link.
        let elsewhere = directory.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&path, elsewhere.join("link.db")).unwrap();
        let store = DraftStore::open(elsewhere.join("link.db")).unwrap();
        store.submit(&draft("x")).unwrap();
        close(store);
        assert_whole(&path);
        fs::remove_dir_all(elsewhere).unwrap();
    }
    // After a power failure the pages may be zeros.
    let path = directory.path().join("zeros.db");
    crash_copy(&work, &path);
    fs::write(&path, [0; 16_384]).unwrap();
    let store = DraftStore::open(&path).unwrap();
    store.submit(&draft("x")).unwrap();
    close(store);
    assert_whole(&path);
}

/// What one may ask of a store that is damaged: anything but a panic.
fn use_damaged(path: &Path) -> Result<(), LibrarianError> {
    let store = DraftStore::open(path)?;
    let mut first = Ok(());
    let mut note = |result: Result<(), LibrarianError>| {
        if first.is_ok() {
            first = result;
        }
    };
    note(store.stats().map(|_| ()));
    for state in DraftState::ALL {
        note(store.list(state).map(|_| ()));
    }
    let all = DraftQuery::default().limit(1_000);
    match store.query(&all) {
        Ok(records) => {
            for record in records.rows.iter().take(20) {
                note(store.inspect(record.id).map(|_| ()));
            }
        }
        Err(error) => note(Err(error)),
    }
    note(store.submit(&draft("after the damage")).map(|_| ()));
    note(store.recover(SystemTime::now()).map(|_| ()));
    note(store.release_due().map(|_| ()));
    match (store.register_runner("test"), store.pending_snapshot()) {
        (Ok(runner), Ok(mut snapshot)) => {
            for _ in 0..6 {
                match store.claim_next(&runner, &mut snapshot) {
                    Ok(Some(Claimed::Draft(claim))) => {
                        let outcome = DraftProcessingDecision::Accepted.into();
                        note(store.finish(*claim, &outcome).map(|_| ()));
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        note(Err(error));
                        break;
                    }
                }
            }
        }
        (runner, snapshot) => {
            note(runner.map(|_| ()));
            note(snapshot.map(|_| ()));
        }
    }
    first
}

fn damage(mutants: u64) {
    let seed = seed();
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (directory, store) = store();
    for number in 0..60 {
        let text = format!("draft {number} ").repeat(random.usize(1..800));
        store.submit(&draft(&text)).unwrap();
    }
    for (place, draft) in store.list(DraftState::Pending).unwrap().iter().enumerate().take(40) {
        store.transition(draft.id(), DraftState::Pending, DraftState::Processing).unwrap();
        let to = DraftState::ALL[place % 6];
        if to != DraftState::Processing {
            store.transition(draft.id(), DraftState::Processing, to).unwrap();
        }
    }
    close(store);
    let sound = fs::read(directory.path().join("drafts.db")).unwrap();

    // In a thread of its own, so that one that hangs is told from one that is slow.
    let (tell, told) = mpsc::channel();
    let bytes = sound.len();
    let worker = std::thread::spawn(move || {
        for mutant in 0..mutants {
            let mut bytes = sound.clone();
            if random.u32(..4) == 0 {
                bytes.truncate(random.usize(..bytes.len()));
            }
            for _ in 0..random.usize(..12) {
                if bytes.is_empty() {
                    break;
                }
                // Half of them where the schema and the roots of the tables are.
                let head = bytes.len().min(16 * 4096);
                let within = if random.bool() { head } else { bytes.len() };
                let at = random.usize(..within);
                match random.u32(..3) {
                    0 => bytes[at] ^= 1 << random.u32(..8),
                    1 => bytes[at] = random.u8(..),
                    _ => {
                        let end = (at + random.usize(1..600)).min(bytes.len());
                        bytes[at..end].fill(random.u8(..));
                    }
                }
            }
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("drafts.db");
            fs::write(&path, &bytes).unwrap();
            let outcome = use_damaged(&path);
            if let Err(error) = &outcome {
                let message = error.to_string();
                let named = message.contains(&*path.to_string_lossy())
                    || matches!(error, LibrarianError::DamagedDraft { .. })
                    || matches!(error.kind(), ErrorKind::NotFound | ErrorKind::LostClaim);
                assert!(named, "seed {seed}, mutant {mutant}: {message}");
            }
            tell.send((mutant, outcome.err().map(|error| error.kind()))).unwrap();
        }
    });
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for mutant in 0..mutants {
        match told.recv_timeout(Duration::from_secs(60)) {
            Ok((_, kind)) => {
                let name = kind.map_or_else(|| "Works".to_owned(), |kind| format!("{kind:?}"));
                *counts.entry(name).or_default() += 1;
            }
            Err(fault) => {
                assert!(!worker.is_finished(), "{:?}", worker.join());
                panic!("seed {seed}, mutant {mutant}: {fault}");
            }
        }
    }
    worker.join().unwrap();
    println!(
        "{}",
        serde_json::json!({
            "test": "damage", "seed": seed, "mutants": mutants, "file_bytes": bytes,
            "panics": 0, "hangs": 0, "outcomes": counts,
        })
    );
}

#[test]
fn a_damaged_file_gives_an_error_or_a_store() {
    damage(100);
}

#[test]
#[ignore = "long; DRAFTQ_TEST_MUTANTS sets how long"]
fn a_damaged_file_gives_an_error_or_a_store_every_time() {
    damage(setting("DRAFTQ_TEST_MUTANTS", 10_000));
}

/// One schema, and nothing of a second attempt at it.
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
        // Each waits for the end of its input, and all get it at once.
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
fn a_new_path_may_be_opened_by_many_at_once_every_time() {
    let rounds = setting("DRAFTQ_TEST_ROUNDS", 500);
    twenty_threads(rounds);
    twenty_processes(rounds);
    println!(r#"{{"test":"first_start","rounds":{rounds},"of":[20,20],"errors":0}}"#);
}

#[test]
fn a_path_is_a_path_whatever_is_in_it() {
    for name in [
        &b"a?b.db"[..],
        b"a?mode=memory",
        b"a#b",
        b"a%20b%00",
        b"with a space",
        b" ",
        b"file:x",
        b"file:y?mode=ro&immutable=1",
        b":memory:",
        b"-",
        b"--help",
        b"quote's \"and\" \\",
        b"new\nline\x1b[31m",
        b"non-utf8 \xff\xfe",
        "Grüße 世界".as_bytes(),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let name = OsString::from(OsStr::from_bytes(name));
        let path = directory.path().join(&name);
        let draft = draft("x");
        let store = DraftStore::open(&path).unwrap();
        store.submit(&draft).unwrap();
        assert_eq!(store.path(), path);
        close(store);
        let left: Vec<_> = tree(directory.path()).into_keys().collect();
        let runners = beside(&path, "-runners");
        let expected = [path.clone(), runners.clone(), runners.join("in-use")];
        assert_eq!(left, expected, "that file, its runners, and no other");
        // Given as it is, the current directory being the file's.
        let mut relative = draftq(Path::new(&name));
        // What begins with a dash is an option's value all the same where it is joined to it.
        if name.as_bytes().starts_with(b"-") {
            let mut joined = OsString::from("--db=");
            joined.push(&name);
            relative = Command::new(relative.get_program());
            relative.env_remove("DRAFTQ_DB").arg(joined);
        }
        let output =
            relative.args(["stats", "--json"]).current_dir(directory.path()).output().unwrap();
        assert!(output.status.success(), "{name:?}: {output:?}");
        let counts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(counts["drafts"], 1, "{name:?}");
        let store = DraftStore::open(&path).unwrap();
        assert_eq!(store.load(DraftState::Pending, draft.id()).unwrap(), draft);
        let (files, beside) = (tree(directory.path()), ["-wal", "-shm", "-runners"]);
        assert_eq!(files.len(), 5, "{name:?}: {beside:?} {:?}", files.keys());
    }
}

#[test]
fn a_relative_path_means_what_it_meant_when_it_was_opened() {
    let directory = tempfile::tempdir().unwrap();
    let here = std::env::current_dir().unwrap();
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    let inside = directory.path().strip_prefix("/").unwrap();
    let store = DraftStore::open(up.join(inside).join("drafts.db")).unwrap();
    assert!(store.path().is_absolute());
    store.submit(&draft("x")).unwrap();
    assert_eq!(
        DraftStore::open(directory.path().join("drafts.db")).unwrap().stats().unwrap().drafts,
        1
    );
}

#[test]
fn a_link_leads_to_one_store_with_one_set_of_locks() {
    let directory = tempfile::tempdir().unwrap();
    let (here, there) = (directory.path().join("here"), directory.path().join("there"));
    fs::create_dir(&here).unwrap();
    fs::create_dir(&there).unwrap();
    let (link, path) = (here.join("link.db"), there.join("drafts.db"));
    let direct = DraftStore::open(&path).unwrap();
    symlink("../there/drafts.db", &link).unwrap();
    let linked = DraftStore::open(&link).unwrap();
    let draft = draft("x");
    linked.submit(&draft).unwrap();
    assert_eq!(direct.load(DraftState::Pending, draft.id()).unwrap(), draft);

    // A runner that lives is seen to live from both sides; one that ended, too.
    for (claims, recovers) in [(&direct, &linked), (&linked, &direct)] {
        let runner = claims.register_runner("test").unwrap();
        let mut snapshot = claims.pending_snapshot().unwrap();
        assert!(claims.claim_next(&runner, &mut snapshot).unwrap().is_some());
        let ahead = SystemTime::now() + Duration::from_secs(3_600);
        assert_eq!(recovers.recover_stale_processing(ahead).unwrap(), []);
        drop(runner);
        assert_eq!(recovers.recover_stale_processing(SystemTime::UNIX_EPOCH).unwrap().len(), 1);
        recovers.requeue(&[draft.id()]).unwrap();
        // The second crash delays it.
        let sql = "UPDATE drafts SET due_at = 0, errors = 0";
        Connection::open(&path).unwrap().execute(sql, []).unwrap();
    }
    assert_eq!(tree(&here).into_keys().collect::<Vec<_>>(), [link], "nothing beside the link");
}

#[test]
fn what_cannot_be_opened_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let named = |path: &Path, kind: ErrorKind| {
        let error = DraftStore::open(path).unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
    };
    named(directory.path(), ErrorKind::ForeignDatabase);
    named(Path::new("/dev/null"), ErrorKind::ForeignDatabase);
    let dangling = directory.path().join("dangling.db");
    symlink("/nonexistent/drafts.db", &dangling).unwrap();
    let error = DraftStore::open(&dangling).unwrap_err();
    assert!(error.to_string().contains("dangling.db"), "{error}");
    assert!(matches!(error, LibrarianError::CannotCreate { .. }), "{error:?}");
    assert!(fs::symlink_metadata(&dangling).unwrap().is_symlink());
    let slash = directory.path().join("new.db/");
    let error = DraftStore::open(&slash).unwrap_err();
    assert!(matches!(error, LibrarianError::CannotCreate { .. }), "{error:?}");
    assert!(!directory.path().join("new.db").exists(), "a directory was asked for");
    let file = directory.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = DraftStore::open(file.join("drafts.db")).unwrap_err();
    assert!(error.to_string().contains(&*file.to_string_lossy()), "{error}");
    assert!(DraftStore::open("").is_err());
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let kept = directory.path().join("kept");
    let store = DraftStore::open(kept.join("drafts.db")).unwrap();
    store.submit(&draft("x")).unwrap();
    close(store);
    // Another user may look, not write; root, who may all, has to become one.
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(directory.path(), 0o755);
    mode(&kept.join("drafts.db"), 0o444);
    mode(&kept, 0o555);
    let mut wrapper: &[&str] = &[];
    // Without root there is one user, whose own file it is, and the WAL cannot be made.
    let mut existing = 74;
    if fs::metadata(&kept).unwrap().uid() == 0 {
        if !have("setpriv") {
            return;
        }
        existing = 78;
        wrapper = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
        let binary = env!("CARGO_BIN_EXE_draftq");
        let reached = Command::new(wrapper[0])
            .args(&wrapper[1..])
            .args(["test", "-x", binary])
            .status()
            .is_ok_and(|status| status.success());
        if !reached {
            println!("skipped: another user cannot reach {binary}");
            return;
        }
    }
    let (new, deeper) = (kept.join("new.db"), kept.join("deeper/new.db"));
    for (path, arguments, code) in [
        (&new, &["run", "--defer"][..], Some(73)),
        (&deeper, &["run", "--defer"], Some(73)),
        (&new, &["stats"], Some(66)),
        (&new, &["requeue", "00"], Some(66)),
        (&kept.join("drafts.db"), &["run", "--defer"], Some(existing)),
    ] {
        let output = draftq_behind(wrapper, path, arguments).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), code, "{}: {told}", path.display());
        assert!(told.contains(&*kept.to_string_lossy()), "{told}");
    }
    mode(&kept, 0o755);
    assert_eq!(tree(&kept).len(), 3, "nothing was left there");
}
