//! The file is removed, replaced or upgraded while it is open: no process writes to the wrong one,
//! and no acknowledged draft is lost.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use draftq::ErrorKind;
use draftq::{Cancellation, WatchEvent};
use draftq::{DeferredDraftProcessor, Draft, DraftState, DraftStore, LibrarianError, Runner};
use rusqlite::Connection;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{assert_whole, close, draft, draftq, store};

/// Longer than any step here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// How soon a watch must notice. The promise is a second, but the machine may be busy.
const NOTICE: Duration = Duration::from_secs(5);

/// A running `watch`, and the lines of its two outputs.
struct Watch {
    child: Child,
    lines: Receiver<String>,
    told: Receiver<String>,
    seen: String,
}

impl Watch {
    fn start(path: &Path) -> Self {
        let mut command = draftq(path);
        command.args(["watch", "--poll-secs", "3600", "--json", "--", "echo"]);
        command.arg(r#"{"decision":"accepted"}"#);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        let told = lines_of(child.stderr.take().unwrap());
        Self { child, lines, told, seen: String::new() }
    }

    /// Wait for a line on standard error that contains this; returns how long it took.
    #[track_caller]
    fn tells(&self, words: &str) -> Duration {
        let begun = Instant::now();
        loop {
            let line = self.told.recv_timeout(LIMIT).expect(words);
            if line.contains(words) {
                return begun.elapsed();
            }
        }
    }

    /// Wait until it has accepted the draft with this id.
    #[track_caller]
    fn accepts(&mut self, id: &str) {
        while !self.seen.contains(id) {
            self.seen += &self.lines.recv_timeout(LIMIT).expect(id);
        }
    }

    fn end(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        lines.map(|line| sender.send(line)).take_while(Result::is_ok).count()
    });
    lines
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Submit on the command line; its exit code.
fn submit(path: &Path, text: &str) -> Option<i32> {
    let output = draftq(path).args(["submit", "--text", text]).output().unwrap();
    output.status.code()
}

/// The id of a text that is submitted in that way.
fn id(text: &str) -> String {
    draft(text).id().to_hex()
}

/// A closed store with these drafts, at a path of its own.
fn backup(directory: &Path, name: &str, texts: &[&str]) -> (PathBuf, Vec<Draft>) {
    let path = directory.join(name);
    let store = DraftStore::open(&path).unwrap();
    let drafts: Vec<_> = texts.iter().map(|text| draft(text)).collect();
    store.submit_many(&drafts).unwrap();
    close(store);
    (path, drafts)
}

fn replaced<T: std::fmt::Debug>(result: Result<T, LibrarianError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, LibrarianError::FileReplaced { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Storage);
}

#[test]
fn a_watch_continues_with_the_new_file() {
    let (directory, store) = store();
    let path = store.path().to_owned();
    // So many that the old file's -wal covers every page of the new file.
    let old: Vec<_> = (0..50).map(|number| draft(&format!("old {number}"))).collect();
    close(store);
    let (new, drafts) = backup(directory.path(), "backup.db", &["kept 1", "kept 2"]);
    let mut watch = Watch::start(&path);
    for draft in &old {
        assert_eq!(submit(&path, draft.raw_text()), Some(0));
    }
    assert!(fs::metadata(beside(&path, "-wal")).unwrap().len() > 0, "there is an old -wal");
    fs::rename(&new, &path).unwrap();
    assert!(watch.tells("was removed or replaced") < NOTICE);
    watch.tells("opened the new database");
    for draft in &drafts {
        watch.accepts(&draft.id().to_hex());
    }
    assert_eq!(submit(&path, "afterwards"), Some(0));
    watch.accepts(&id("afterwards"));
    watch.end();
    let store = DraftStore::open(&path).unwrap();
    assert_eq!(store.stats().unwrap().drafts, 3, "the backup's, the new one, none of the old");
    close(store);
    assert_whole(&path);
    let left: Vec<_> = fs::read_dir(beside(&path, "-runners"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".lock"))
        .collect();
    assert_eq!(left, Vec::<String>::new(), "the lock of the old file's runner");
}

#[test]
fn a_watch_waits_for_a_removed_file_and_creates_none() {
    let (_directory, store) = store();
    let path = store.path().to_owned();
    close(store);
    let mut watch = Watch::start(&path);
    assert_eq!(submit(&path, "of the old file"), Some(0));
    watch.accepts(&id("of the old file"));
    fs::remove_file(&path).unwrap();
    assert!(watch.tells("was removed or replaced") < NOTICE);
    assert!(!path.exists(), "it was made anew");
    assert_eq!(submit(&path, "of the new file"), Some(0));
    watch.tells("opened the new database");
    watch.accepts(&id("of the new file"));
    // Again, with the old -wal and -shm left in place and no time to notice.
    fs::remove_file(&path).unwrap();
    assert_eq!(submit(&path, "at once"), Some(0));
    watch.tells("opened the new database");
    watch.accepts(&id("at once"));
    // A file of another program is reported once, and the watch waits.
    fs::remove_file(&path).unwrap();
    watch.tells("was removed or replaced");
    fs::write(&path, "no database\n").unwrap();
    watch.tells("not a database this draftq can use");
    fs::remove_file(&path).unwrap();
    assert_eq!(submit(&path, "the last"), Some(0));
    watch.tells("opened the new database");
    watch.end();
    assert_whole(&path);
}

#[test]
fn a_moved_file_has_all_acknowledged_drafts() {
    let (directory, store) = store();
    let path = store.path().to_owned();
    let drafts: Vec<_> = (0..20).map(|number| draft(&format!("{number}"))).collect();
    for draft in &drafts {
        store.submit(draft).unwrap();
    }
    assert!(fs::metadata(beside(&path, "-wal")).unwrap().len() > 0, "not checked in");
    let moved = directory.path().join("moved.db");
    fs::rename(&path, &moved).unwrap();
    replaced(store.submit(&draft("late")));
    drop(store);
    let store = DraftStore::open(&moved).unwrap();
    assert_eq!(store.list(DraftState::Pending).unwrap(), drafts);
    close(store);
    assert_whole(&moved);
}

#[test]
fn a_store_does_not_write_to_a_removed_file() {
    let (directory, store) = store();
    let path = store.path().to_owned();
    let kept = draft("kept");
    store.submit(&kept).unwrap();
    let runner = store.register_runner("test").unwrap();
    let aside = directory.path().join("aside.db");
    fs::hard_link(&path, &aside).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!store.is_current());
    replaced(store.submit(&draft("one")));
    replaced(store.submit_many(&[draft("two")]));
    replaced(store.requeue(&[kept.id()]));
    replaced(store.transition(kept.id(), DraftState::Pending, DraftState::Processing));
    replaced(store.register_runner("test"));
    assert!(matches!(store.reopen(), Err(LibrarianError::NoDatabase { .. })));
    // A process that opens the file now waits for this store, and says so.
    let other = DraftStore::options().busy_timeout(Duration::from_millis(50));
    let error = other.clone().open(&path).unwrap_err();
    assert!(matches!(error, LibrarianError::ReplacedFileInUse { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(!path.exists());
    drop((runner, store));
    let new = other.open(&path).unwrap();
    new.submit(&draft("new")).unwrap();
    assert_eq!(new.stats().unwrap().drafts, 1);
    close(new);
    assert_whole(&path);
    // The removed file has the acknowledged drafts, and no more.
    let drafts: i64 = Connection::open(&aside)
        .unwrap()
        .query_row("SELECT count(*) FROM drafts", [], |row| row.get(0))
        .unwrap();
    assert_eq!(drafts, 1);
}

/// A backup is at the path already, and beside it the -wal of the file that a process has open.
#[test]
fn a_file_in_the_place_of_one_in_use_is_not_opened_before_that_is_closed() {
    let (directory, store) = store();
    let path = store.path().to_owned();
    store.submit(&draft("of the old file")).unwrap();
    let (new, drafts) = backup(directory.path(), "backup.db", &["kept"]);
    fs::rename(&new, &path).unwrap();
    let options = DraftStore::options().busy_timeout(Duration::from_millis(50));
    for options in [options.clone(), options.clone().read_only(true)] {
        let error = options.open(&path).unwrap_err();
        assert!(matches!(error, LibrarianError::ReplacedFileInUse { .. }), "{error:?}");
    }
    drop(store);
    let store = options.clone().open(&path).unwrap();
    assert_eq!(store.list(DraftState::Pending).unwrap(), drafts);
    close(store);
    // Nor is any file opened while another process is about to replace the entry.
    let in_use = fs::File::open(beside(&path, "-runners").join("in-use")).unwrap();
    in_use.lock().unwrap();
    let error = options.clone().open(&path).unwrap_err();
    assert!(matches!(error, LibrarianError::ReplacedFileInUse { .. }), "{error:?}");
    in_use.unlock().unwrap();
    close(options.open(&path).unwrap());
}

#[test]
fn a_store_that_reads_notices_that_the_file_is_gone() {
    let (_directory, store) = store();
    store.submit(&draft("one")).unwrap();
    let reader = DraftStore::options().read_only(true).open(store.path()).unwrap();
    assert_eq!(reader.stats().unwrap().drafts, 1);
    assert!(reader.is_current());
    fs::remove_file(store.path()).unwrap();
    assert!(!reader.is_current());
    let stats = reader.stats();
    assert!(matches!(stats, Err(LibrarianError::NoDatabase { .. })), "{stats:?}");
}

#[test]
fn a_new_file_is_not_opened_with_the_old_wal() {
    let (_directory, store) = store();
    let path = store.path().to_owned();
    close(store);
    let shell = Connection::open(&path).unwrap();
    // A change that is in the -wal, and in the -shm that this connection holds.
    shell.pragma_update(None, "user_version", 1).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(submit(&path, "new"), Some(0));
    assert_eq!(submit(&path, "newer"), Some(0));
    drop(shell);
    let store = DraftStore::open(&path).unwrap();
    assert_eq!(store.stats().unwrap().drafts, 2);
    close(store);
    assert_whole(&path);
}

#[test]
fn another_schema_version_is_noticed_before_the_next_write() {
    let (_directory, store) = store();
    let path = store.path().to_owned();
    let kept = draft("kept");
    store.submit(&kept).unwrap();
    let mut watch = Watch::start(&path);
    watch.accepts(&kept.id().to_hex());
    let other = Connection::open(&path).unwrap();
    other.pragma_update(None, "user_version", 3).unwrap();
    let count = || -> (i64, i64) {
        let sql = "SELECT (SELECT count(*) FROM drafts), (SELECT count(*) FROM history)";
        other.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    let before = count();
    let refused = |result: Result<(), LibrarianError>| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ForeignDatabase, "{error:?}");
        assert!(error.to_string().contains("version 3"), "{error}");
    };
    refused(store.submit(&draft("one")).map(drop));
    refused(store.submit_many(&[draft("two"), draft("three")]).map(drop));
    refused(store.requeue(&[kept.id()]).map(drop));
    refused(store.register_runner("test").map(drop));
    assert_eq!(count(), before);
    // There is a draft to process, and the watch must not process it.
    other
        .execute("UPDATE drafts SET state = 'pending', decision = NULL", [])
        .expect("a move by hand");
    let moved = count();
    watch.tells("version 3");
    assert_eq!(count(), moved);
}

#[test]
fn the_librarys_watch_reports_a_replaced_file() {
    let (directory, store) = store();
    let path = store.path().to_owned();
    let (new, drafts) = backup(directory.path(), "backup.db", &["kept"]);
    let cancellation = Cancellation::default();
    let runner = Runner::new(&store, "test").cancellation(cancellation.clone());
    drop(store);
    let (mut told, mut new) = (Vec::new(), Some(new));
    let watched = runner.watch(&mut [DeferredDraftProcessor], LIMIT, None, |event| {
        match event {
            WatchEvent::Ran { report, .. } => {
                if let Some(new) = new.take() {
                    fs::rename(new, &path).unwrap();
                } else {
                    assert_eq!(report.summary.items[0].id, drafts[0].id().to_hex());
                    cancellation.cancel();
                }
            }
            WatchEvent::Replaced { path } => told.push(("replaced", path.to_owned())),
            WatchEvent::Reopened { path } => told.push(("reopened", path.to_owned())),
            other => panic!("{other:?}"),
        }
        Ok::<(), LibrarianError>(())
    });
    assert!(watched.is_ok(), "{watched:?}");
    assert_eq!(told, [("replaced", path.clone()), ("reopened", path.clone())]);
}

/// Submitters never stop while the file is removed and replaced under a watch. What was acknowledged
/// by a file is in it: in the one that is at the path, or in the one that was moved away.
#[test]
fn nothing_acknowledged_is_lost_while_the_file_is_replaced_fifty_times() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q.db");
    close(DraftStore::open(&path).unwrap());
    let watch = Watch::start(&path);
    let done = AtomicBool::new(false);
    let next = AtomicU64::new(0);
    let acknowledged: Mutex<Vec<String>> = Mutex::default();
    let refused = AtomicU64::new(0);
    let mut files = Vec::new();
    thread::scope(|scope| {
        for command in [true, true, false, false] {
            let (path, done, next, acknowledged, refused) =
                (&path, &done, &next, &acknowledged, &refused);
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    let text = format!("draft {}", next.fetch_add(1, Ordering::Relaxed));
                    let new = draft(&text);
                    let taken = if command {
                        match submit(path, &text) {
                            Some(0) => true,
                            Some(73..=75) => false,
                            code => panic!("{code:?}"),
                        }
                    } else {
                        DraftStore::open(path).and_then(|store| store.submit(&new)).is_ok()
                    };
                    if taken {
                        acknowledged.lock().unwrap().push(text);
                    } else {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for number in 1..=50 {
            // Some are acknowledged in each round.
            let enough = acknowledged.lock().unwrap().len() + 4;
            let begun = Instant::now();
            while acknowledged.lock().unwrap().len() < enough {
                assert!(begun.elapsed() < LIMIT, "no submit gets through in round {number}");
                thread::yield_now();
            }
            if number % 10 == 0 {
                watch.tells("opened the new database");
            }
            // SQLite leaves the -wal behind of a file that is moved in the very moment in which the
            // last process closes it. So one has it open.
            let holder = DraftStore::open(&path).unwrap();
            let away = directory.path().join(format!("away-{number}.db"));
            // The old file is kept under another name, to count its drafts.
            fs::rename(&path, &away).unwrap();
            drop(holder);
            files.push(away);
            if number % 2 == 0 {
                let restored = format!("restored-{number}");
                let other = tempfile::tempdir_in(directory.path()).unwrap();
                let (new, _) = backup(other.path(), "backup.db", &[&restored]);
                // Unless a submit was quicker.
                if renameat_with(CWD, &new, CWD, &path, RenameFlags::NOREPLACE).is_ok() {
                    acknowledged.lock().unwrap().push(restored);
                }
            }
        }
        done.store(true, Ordering::Release);
    });
    watch.end();
    files.push(path);
    let mut found = std::collections::HashSet::new();
    for file in &files {
        let sql = "SELECT raw_text FROM draft_texts";
        let connection = Connection::open(file).unwrap();
        let verdict: String =
            connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok", "{}", file.display());
        let tables: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .unwrap();
        if tables == 0 {
            // It was moved away while it was being created.
            continue;
        }
        let mut texts = connection.prepare(sql).unwrap();
        let texts = texts.query_map([], |row| row.get::<_, String>(0)).unwrap();
        found.extend(texts.map(Result::unwrap));
    }
    let acknowledged = acknowledged.into_inner().unwrap();
    let lost: Vec<_> = acknowledged.iter().filter(|text| !found.contains(*text)).collect();
    println!(
        "{}",
        serde_json::json!({
            "test": "replaced", "replacements": 50, "acknowledged": acknowledged.len(),
            "refused": refused.load(Ordering::Relaxed), "lost": lost.len(),
        })
    );
    assert!(lost.is_empty(), "{lost:?}");
}
