//! A directory with a store in it, and the built binary.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use draftq::clock::{from_unix_ms, unix_ms};
use draftq::{Draft, DraftMetadata, DraftSourceSurface, DraftStore};
use rusqlite::Connection;

/// A draft of this text, from the command line, of this moment: in whole milliseconds, so that
/// what comes back is equal to it.
pub fn draft(text: &str) -> Draft {
    let now = from_unix_ms(unix_ms(SystemTime::now()));
    Draft::with_metadata(text.to_owned(), DraftMetadata::new(DraftSourceSurface::Cli, now))
}

/// A store in a directory that goes away with the first of the two.
pub fn store() -> (tempfile::TempDir, DraftStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
    (directory, store)
}

/// Close a store. A thread of its pool may be the last to let go of the connections, and only
/// then is the WAL checked in and gone.
pub fn close(store: DraftStore) {
    let mut wal = store.path().as_os_str().to_owned();
    drop(store);
    wal.push("-wal");
    let begun = Instant::now();
    while Path::new(&wal).exists() {
        assert!(begun.elapsed() < Duration::from_secs(30), "somebody else has the store open");
        std::thread::yield_now();
    }
}

/// The built binary with `--db PATH`.
pub fn draftq(path: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_draftq"));
    command.env_remove("DRAFTQ_DB").arg("--db").arg(path).stdin(Stdio::null());
    command
}

/// Whether a program can be started; if not, the test says that it does without.
pub fn have(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        println!("skipped: there is no {program} here");
    }
    found
}

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// The seed to repeat a random test with: from `DRAFTQ_TEST_SEED`, or a new one.
pub fn seed() -> u64 {
    setting("DRAFTQ_TEST_SEED", fastrand::u64(..1 << 48))
}

/// Every draft's history leads without a gap from its submission to the state it is in, and the
/// file is sound.
pub fn assert_whole(path: &Path) {
    let connection = Connection::open(path).unwrap();
    let check: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    let broken: i64 = connection
        .query_row(
            "WITH steps AS (
                 SELECT draft, event, from_state, to_state,
                        lag(to_state) OVER w AS before, lead(seq) OVER w AS next
                 FROM history WINDOW w AS (PARTITION BY draft ORDER BY seq))
             SELECT (SELECT count(*) FROM steps WHERE from_state IS NOT before)
                  + (SELECT count(*) FROM steps
                     WHERE (from_state IS to_state) <> (event IN ('errored', 'refused')))
                  + (SELECT count(*) FROM drafts LEFT JOIN steps
                         ON steps.draft = drafts.seq AND next IS NULL
                     WHERE to_state IS NOT state)
                  + (SELECT count(*) FROM drafts LEFT JOIN draft_texts USING (seq)
                     WHERE length(CAST(raw_text AS BLOB)) IS NOT text_bytes)
                  + (SELECT count(*) FROM draft_texts WHERE seq NOT IN (SELECT seq FROM drafts))
                  + (SELECT count(*) FROM history WHERE draft NOT IN (SELECT seq FROM drafts))",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(broken, 0, "rows whose history does not lead to where they are");
}
