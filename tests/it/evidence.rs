//! Proofs for a queue: nothing is lost, processed twice without need, or left
//! behind when its processes are killed, stopped and crowded at random. The tests run the
//! built binary on one file and read the whole history afterwards.
//!
//! Each test has a short form among the ordinary tests, and a long form:
//!
//! ```text
//! cargo test --release --test it evidence -- --ignored --nocapture --test-threads=1
//! ```
//!
//! | variable | size of the long form | if not set |
//! |---|---|---|
//! | `DRAFTQ_TEST_KILLS` | SIGKILLs in the torture | 10000 |
//! | `DRAFTQ_TEST_QUICK_KILLS` | SIGKILLs of runners that batch | 600 |
//! | `DRAFTQ_TEST_STORM` | drafts for eight runners | 5000 |
//! | `DRAFTQ_TEST_FROZEN` | runners that come back late | 1000 |
//! | `DRAFTQ_TEST_DEATHS` | dead owners that a watch notices | 100 |
//! | `DRAFTQ_TEST_STARTS` | rounds of twenty first starts | 500 |
//! | `DRAFTQ_TEST_CROWD` | submits and watches at once, and half as many runs | 200 |
//! | `DRAFTQ_TEST_SEED` | the seed of every random choice | another each time |
//!
//! The torture counts as Jepsen's total-queue does. Each form prints one line of JSON with its
//! seed and its figures. Times are asserted only to detect a hang, and no test sleeps: it
//! waits for a process, a pipe or a FIFO.

#![allow(clippy::print_stdout, reason = "the figures are the point")]

mod alive;
mod audit;
mod batched;
mod blame;
mod crowd;
mod deaths;
mod frozen;
mod starts;
mod storm;
mod torture;
mod writes;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use draftq::{Draft, DraftStore};
use rusqlite::Connection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// A step that takes longer than this is treated as a hang.
const HANG: Duration = Duration::from_secs(120);

/// A directory with a database, and the built binary.
struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn db(&self) -> PathBuf {
        self.path("q/drafts.db")
    }

    fn locks(&self) -> PathBuf {
        self.path("q/drafts.db-runners")
    }

    fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        command_on(&self.db(), arguments)
    }

    /// Run the binary to its end.
    fn output<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn store(&self) -> DraftStore {
        DraftStore::open(self.db()).unwrap()
    }

    /// A connection like that of a SQL shell.
    fn sql(&self) -> Connection {
        let connection = Connection::open(self.db()).unwrap();
        connection.busy_timeout(HANG).unwrap();
        connection
    }

    fn fifo(&self, name: &str) -> Fifo {
        Fifo::new(&self.path(name))
    }
}

fn command_on<S: AsRef<OsStr>>(db: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_draftq"));
    command.arg("--db").arg(db).args(arguments);
    command.env_remove("RUST_LOG").env_remove("DRAFTQ_LOG").stdin(Stdio::null());
    command
}

/// A named pipe between a program and the test. The test has both ends open, so that no process
/// waits for the other to open it.
struct Fifo {
    path: PathBuf,
    file: File,
    unread: Vec<u8>,
}

impl Fifo {
    fn new(path: &Path) -> Self {
        mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let file = File::options().read(true).write(true).open(path).unwrap();
        Self { path: path.to_owned(), file, unread: Vec::new() }
    }

    /// The next line that a program wrote.
    fn line(&mut self) -> String {
        self.line_within(HANG)
            .unwrap_or_else(|| panic!("nothing came from {}", self.path.display()))
    }

    fn line_within(&mut self, limit: Duration) -> Option<String> {
        next_line(&mut self.file, &mut self.unread, limit)
    }

    fn say(&mut self, line: &str) {
        self.file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// The next line of a pipe; `None` if there is none in time.
fn next_line(
    pipe: &mut (impl Read + AsFd),
    unread: &mut Vec<u8>,
    limit: Duration,
) -> Option<String> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            return Some(String::from_utf8(line).unwrap().trim_end().to_owned());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if !readable(&pipe, left) {
            return None;
        }
        let mut buffer = [0; 4096];
        let count = pipe.read(&mut buffer).unwrap();
        if count == 0 {
            return None;
        }
        unread.extend_from_slice(&buffer[..count]);
    }
}

/// Whether there is something to read, or the end, within the limit.
fn readable(fd: &impl AsFd, limit: Duration) -> bool {
    let timeout = Timespec::try_from(limit).unwrap();
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    loop {
        match poll(&mut fds, Some(&timeout)) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// A process that the test started. It is killed when it is dropped.
struct Process {
    child: Option<Child>,
    pid: Pid,
    pidfd: OwnedFd,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        let child = command.spawn().unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        Self { child: Some(child), pid, pidfd }
    }

    /// The same, with both outputs collected.
    fn start_piped(command: &mut Command) -> Self {
        Self::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    fn child(&mut self) -> &mut Child {
        self.child.as_mut().unwrap()
    }

    fn ended_within(&self, limit: Duration) -> bool {
        readable(&self.pidfd, limit)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// SIGKILL it after this time, unless it ends before. Returns its output, and whether it
    /// was killed.
    fn kill_after(self, moment: Duration) -> (Output, bool) {
        if !self.ended_within(moment) {
            self.signal(Signal::KILL);
        }
        let output = self.output();
        let killed = killed_by(&output, Signal::KILL);
        (output, killed)
    }

    /// Wait for its end, and return its output.
    fn output(mut self) -> Output {
        let child = self.child.take().unwrap();
        let output = std::thread::spawn(move || child.wait_with_output().unwrap());
        assert!(readable(&self.pidfd, HANG), "process {:?} hangs", self.pid);
        output.join().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn killed_by(output: &Output, signal: Signal) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    output.status.signal() == Some(signal.as_raw())
}

/// SIGKILL the process group of a program whose runner is dead.
fn kill_group(pid: &str) {
    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
}

/// The single line of JSON that a command printed.
fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {output:?}");
    })
}

/// The draft that `submit --text` makes of a text.
fn draft(text: &str) -> Draft {
    crate::harness::draft(text)
}

/// The seed of this test: the one that is set, or a random one.
fn seed() -> u64 {
    std::env::var("DRAFTQ_TEST_SEED")
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap())
}

/// The size of a long form.
fn size(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |size| size.parse().unwrap())
}

/// The quantiles that are reported, in milliseconds.
fn quantiles(mut millis: Vec<f64>) -> serde_json::Value {
    millis.sort_by(f64::total_cmp);
    let at = |share: f64| -> Option<f64> {
        let last = millis.len().checked_sub(1)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let value = millis[(last as f64 * share).round() as usize];
        Some((value * 1000.0).round() / 1000.0)
    };
    serde_json::json!({ "n": millis.len(), "p50": at(0.5), "p99": at(0.99), "max": at(1.0) })
}
