//! A directory with a store in it, and the built binary.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use draftq::{
    Claim, Claimed, Clock, Draft, DraftMetadata, DraftProcessingDecision, DraftProcessor,
    DraftQuery, DraftSourceSurface, DraftState, DraftStore, FromFn, LibrarianError, Outcome,
    ProcessorError, Runner, RunnerRegistration, from_fn, from_unix_ms, unix_ms,
};
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde_json::Value;
use tempfile::TempDir;

/// A draft of this text, from the command line, of this moment: in whole milliseconds, so that
/// what comes back is equal to it.
pub fn draft(text: &str) -> Draft {
    let now = from_unix_ms(unix_ms(SystemTime::now()));
    Draft::with_metadata(text.to_owned(), DraftMetadata::new(DraftSourceSurface::Cli, now))
}

/// A store in a temporary directory, which is removed when the first value is dropped.
pub fn store() -> (tempfile::TempDir, DraftStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
    (directory, store)
}

/// A processor that calls this function.
pub fn judged_by<F>(function: F) -> FromFn<F>
where
    F: FnMut(&Draft) -> Result<Outcome, LibrarianError>,
{
    from_fn(function)
}

/// Claim the next draft.
pub fn claim(store: &DraftStore, runner: &RunnerRegistration) -> Claim {
    let mut snapshot = store.pending_snapshot().unwrap();
    match store.claim_next(runner, &mut snapshot).unwrap() {
        Some(Claimed::Draft(claim)) => *claim,
        other => panic!("expected a draft, got {other:?}"),
    }
}

/// Close a store. A thread of its pool may drop the last connection, and only then is the WAL
/// checkpointed and removed.
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

/// Whether a program can be started. If not, prints that the test is skipped.
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

/// The rows of a query, one per line, with values separated by `|`.
pub fn rows(connection: &Connection, sql: &str) -> Result<String, rusqlite::Error> {
    let mut statement = connection.prepare(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        let values = (0..columns).map(|column| {
            Ok(match row.get_ref(column)? {
                ValueRef::Null => String::new(),
                ValueRef::Integer(value) => value.to_string(),
                ValueRef::Real(value) => value.to_string(),
                ValueRef::Text(value) => String::from_utf8_lossy(value).into_owned(),
                ValueRef::Blob(value) => format!("{value:x?}"),
            })
        });
        lines.push(values.collect::<Result<Vec<_>, rusqlite::Error>>()?.join("|"));
    }
    Ok(lines.join("\n"))
}

/// Every draft's history leads without a gap from its submission to the state it is in, and the
/// file is sound.
pub fn assert_whole(path: &Path) {
    let connection = Connection::open(path).unwrap();
    let check: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    // The history keeps one event of a deleted draft.
    let broken: i64 = connection
        .query_row(
            "WITH steps AS (
                 SELECT draft, event, from_state, to_state,
                        lag(to_state) OVER w AS before, lead(seq) OVER w AS next
                 FROM history WHERE event <> 'deleted'
                 WINDOW w AS (PARTITION BY draft ORDER BY seq))
             SELECT (SELECT count(*) FROM steps WHERE from_state IS NOT before)
                  + (SELECT count(*) FROM steps
                     WHERE (from_state IS to_state) AND event NOT IN ('errored', 'refused', 'resolved'))
                  + (SELECT count(*) FROM drafts LEFT JOIN steps
                         ON steps.draft = drafts.seq AND next IS NULL
                     WHERE to_state IS NOT state)
                  + (SELECT count(*) FROM drafts LEFT JOIN draft_texts USING (seq)
                     WHERE length(CAST(raw_text AS BLOB)) IS NOT text_bytes)
                  + (SELECT count(*) FROM draft_texts WHERE seq NOT IN (SELECT seq FROM drafts))
                  + (SELECT count(*) FROM steps WHERE draft NOT IN (SELECT seq FROM drafts))
                  + (SELECT count(*) FROM drafts
                     WHERE seq NOT IN (SELECT draft FROM history
                                       WHERE event IN ('submitted', 'imported')))",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(broken, 0, "rows whose history does not lead to where they are");
}

/// An empty home and a working directory.
pub struct Sandbox {
    directory: TempDir,
}

/// The result of a finished `draftq`.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; `None` if it was killed by a signal.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Sandbox {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("home")).unwrap();
        fs::create_dir(directory.path().join("work")).unwrap();
        Self { directory }
    }

    /// A path in the working directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join("work").join(name)
    }

    /// A new file in the working directory.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Home, working directory and all.
    pub fn root(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    pub fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// The default path of the database.
    pub fn db(&self) -> PathBuf {
        self.home().join(".local/share/draftq/drafts.db")
    }

    /// The same database through the library.
    pub fn store(&self) -> DraftStore {
        DraftStore::open(self.db()).unwrap()
    }

    /// `draftq`, not started yet, with nothing in its environment but `PATH` and `HOME`.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.command_of(env!("CARGO_BIN_EXE_draftq"));
        command.args(args);
        command
    }

    /// Any program in the same surroundings.
    pub fn command_of(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.path(""))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home())
            .stdin(Stdio::null());
        command
    }

    /// Run it to its end with empty standard input.
    pub fn draftq<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ran {
        finish(self.command(args), b"")
    }

    /// Run it to its end, with this on standard input.
    pub fn draftq_reading<A: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
        input: &[u8],
    ) -> Ran {
        let mut command = self.command(args);
        command.stdin(Stdio::piped());
        finish(command, input)
    }

    /// Submit a text; its id.
    pub fn submit(&self, text: &str) -> String {
        let ran = self.draftq_reading(["submit"], text.as_bytes());
        ran.expect(0).json()["id"].as_str().unwrap().to_owned()
    }

    /// `show --json` of this draft.
    pub fn show(&self, id: &str) -> Value {
        self.draftq(["show", id, "--json"]).expect(0).json()
    }
}

/// Run this to its end, with this on standard input if that is a pipe.
pub fn finish(mut command: Command, input: &[u8]) -> Ran {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("draftq starts");
    let stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        // It need not read all of it, or any.
        scope.spawn(|| stdin.map(|mut stdin| stdin.write_all(input)));
        child.wait_with_output().unwrap()
    });
    Ran { code: output.status.code(), stdout: output.stdout, stderr: output.stderr }
}

impl Ran {
    /// The same, if it ended with this exit code.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.out(), self.err());
        self
    }

    /// Standard output, which is always UTF-8 (`show --raw` apart).
    pub fn out(&self) -> &str {
        str::from_utf8(&self.stdout).expect("standard output is UTF-8")
    }

    /// Standard error, which is always UTF-8.
    pub fn err(&self) -> &str {
        str::from_utf8(&self.stderr).expect("standard error is UTF-8")
    }

    /// Standard output as one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(self.out())
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.out(), self.err()))
    }

    /// Standard output as JSON Lines.
    #[track_caller]
    pub fn lines(&self) -> Vec<Value> {
        self.out().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

pub fn uncharged() -> LibrarianError {
    ProcessorError::new("spawn", "no process").uncharged().into()
}

pub fn accept(_draft: &Draft) -> Result<Outcome, LibrarianError> {
    Ok(DraftProcessingDecision::Accepted.into())
}

pub fn err(_draft: &Draft) -> Result<Outcome, LibrarianError> {
    Err(LibrarianError::LlmInvocationFailed { message: "no model".to_owned() })
}

/// A store with a manual clock, which starts an hour after the epoch.
pub struct TimedStore {
    pub _directory: tempfile::TempDir,
    pub clock: Clock,
    pub store: DraftStore,
}

pub fn timed_store() -> TimedStore {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual(from_unix_ms(3_600_000));
    let store = DraftStore::options()
        .clock(clock.clone())
        .open(directory.path().join("drafts.db"))
        .unwrap();
    TimedStore { _directory: directory, clock, store }
}

impl TimedStore {
    pub fn submit(&self, texts: &[&str]) -> Vec<Draft> {
        let drafts: Vec<Draft> = texts.iter().map(|text| draft(text)).collect();
        self.store.submit_many(&drafts).unwrap();
        drafts
    }

    pub fn pass(&self, time: Duration) {
        self.clock.set(self.clock.now() + time);
    }

    pub fn runner(&self) -> Runner {
        Runner::new(&self.store, "test").stale_after(Duration::from_secs(60)).max_errors(3)
    }

    pub fn run(&self, processor: &mut impl DraftProcessor) -> draftq::DraftRunSummary {
        self.runner().run_one(processor, self.clock.now()).into_result().unwrap()
    }

    pub fn state(&self, draft: &Draft) -> DraftState {
        let query = DraftQuery::default();
        let records = self.store.query(&query).unwrap();
        records.rows.iter().find(|record| record.id == draft.id()).unwrap().state
    }
}
