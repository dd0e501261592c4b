//! Opening a file of another program, of another version, of an interrupted first start, or a damaged
//! one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use draftq::{
    Claimed, DraftProcessingDecision, DraftQuery, DraftState, DraftStore, ErrorKind, LibrarianError,
};
use rusqlite::Connection;

use crate::files::{beside, draftq_behind, tree};
use crate::harness::{assert_whole, close, draft, seed, setting, store};

/// The library and the command refuse the file, and nothing is changed or created.
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
        // The -shm holds no content, only SQLite's index and locks.
        if path.extension() != Some(OsStr::new("db-shm")) {
            assert!(after[path] == *contents, "{what}: {} was changed", path.display());
        }
    }
}

/// Copy a database as a crash leaves it: the file and all files beside it.
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
fn a_database_of_another_program_is_not_changed() {
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
    // Also if the file is shorter than its header says.
    let torn = fresh("torn");
    crash_copy(&path, &torn);
    let file = fs::OpenOptions::new().write(true).open(&torn).unwrap();
    file.set_len(8192).unwrap();
    assert_refused(&torn, "a torn foreign database with a hot journal");
    drop(connection);
    // It was a hot journal: SQLite itself rolls it back.
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

#[test]
fn a_database_of_another_version_is_not_changed() {
    for version in [-1, 0, 1, 3, 99, i32::MAX, i32::MIN] {
        let (directory, store) = store();
        let path = directory.path().join("drafts.db");
        store.submit(&draft("x")).unwrap();
        close(store);
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", version).unwrap();
        // Only in the WAL, as a killed newer draftq leaves it.
        let place = directory.path().join("crashed");
        fs::create_dir(&place).unwrap();
        crash_copy(&path, &place.join("drafts.db"));
        assert!(fs::metadata(place.join("drafts.db-wal")).unwrap().len() > 0);
        drop(connection);
        assert_refused(&place.join("drafts.db"), &format!("version {version} in the WAL"));
        fs::remove_dir_all(&place).unwrap();
        assert_refused(&path, &format!("version {version}"));
    }
    // And one of another program, with our version number.
    let (directory, store) = store();
    let path = directory.path().join("drafts.db");
    close(store);
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "application_id", 1).unwrap();
    drop(connection);
    assert_refused(&path, "another application_id");
}

#[test]
fn an_interrupted_first_start_is_repeated() {
    let directory = tempfile::tempdir().unwrap();
    // As SQLite leaves it: a half-written file, and a journal of an empty file.
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
        // Also through a link: the journal is beside the file, not beside the link.
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

/// Every call on a damaged store may fail, but must not panic.
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

    // In a thread of its own, so that a hang is noticed.
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
fn a_damaged_file_gives_an_error_or_a_store_long() {
    damage(setting("DRAFTQ_TEST_MUTANTS", 10_000));
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
