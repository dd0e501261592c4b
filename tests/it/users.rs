//! Helpers for tests with other users, modes, mounts and links.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::harness::{Ran, finish, have};

/// Two users who are not root and own no file of this machine.
pub const ALICE: u32 = 54_321;

pub const MALLORY: u32 = 54_322;

/// Longer than any step here takes.
pub const LIMIT: Duration = Duration::from_secs(120);

pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: this needs root");
    }
    root
}

/// Whether the test can become another user and mount files.
pub fn can_be_others() -> bool {
    is_root() && have("setpriv") && have("unshare") && have("nsenter")
}

/// The binary where every user can run it.
pub fn binary() -> &'static Path {
    static COPY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = COPY.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        mode(directory.path(), 0o755);
        let path = directory.path().join("draftq");
        fs::copy(env!("CARGO_BIN_EXE_draftq"), &path).unwrap();
        (directory, path)
    });
    path
}

/// `draftq --db PATH …`, behind a wrapper such as `setpriv`.
pub fn behind<A: AsRef<OsStr>>(wrapper: &[String], db: &Path, args: &[A]) -> Command {
    let mut words = wrapper.iter().map(OsStr::new).chain([binary().as_os_str()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg("--db").arg(db).args(args);
    command.env_remove("DRAFTQ_DB").stdin(Stdio::null()).current_dir("/");
    command
}

pub fn draftq(db: &Path, args: &[&str]) -> Ran {
    finish(behind(&[], db, args), b"")
}

/// The wrapper that runs a command as this user.
pub fn user(uid: u32) -> Vec<String> {
    let uid = uid.to_string();
    ["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups", "--"].map(str::to_owned).into()
}

pub fn draftq_as(uid: u32, db: &Path, args: &[&str]) -> Ran {
    finish(behind(&user(uid), db, args), b"")
}

/// A directory that every user can reach.
pub fn open_directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    mode(directory.path(), 0o755);
    directory
}

pub fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A new directory of this user in this directory.
pub fn directory_of(uid: u32, inside: &Path, name: &str) -> PathBuf {
    let path = inside.join(name);
    fs::create_dir(&path).unwrap();
    chown(&path, Some(uid), Some(uid)).unwrap();
    mode(&path, 0o700);
    path
}

pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Everything below this path: owner, mode, links, and content.
pub fn tree(directory: &Path) -> BTreeMap<PathBuf, (u32, u32, u64, Vec<u8>)> {
    let entries = walkdir::WalkDir::new(directory).into_iter().map(Result::unwrap);
    entries
        .map(|entry| {
            let metadata = entry.path().symlink_metadata().unwrap();
            let content = match metadata.file_type() {
                kind if kind.is_symlink() => {
                    fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes()
                }
                // The -shm holds SQLite's locks and nothing else.
                kind if kind.is_file() && !entry.path().to_string_lossy().ends_with("-shm") => {
                    fs::read(entry.path()).unwrap()
                }
                _ => Vec::new(),
            };
            let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
            (entry.path().to_owned(), (metadata.uid(), metadata.mode(), links, content))
        })
        .collect()
}

/// Commands that submit, run, watch and list.
pub const COMMANDS: [&[&str]; 4] = [
    &["submit", "--text", "private"],
    &["run", "--exit-code", "--", "true"],
    &["watch", "--iterations", "1", "--exit-code", "--", "true"],
    &["stats"],
];

/// These commands are refused with 78 and a message with the path and what to do, and leave
/// everything as it was. Returns the last message.
#[track_caller]
pub fn assert_refused(
    wrapper: &[String],
    db: &Path,
    commands: &[&[&str]],
    place: &Path,
    named: &Path,
) -> String {
    let before = tree(place);
    let mut message = String::new();
    for args in commands {
        let ran = finish(behind(wrapper, db, args), b"");
        ran.expect(78);
        message = ran.err().to_owned();
        assert!(message.contains(&*named.to_string_lossy()), "{args:?}: {message}");
        // A run still prints its summary.
        let idle = ran.out().is_empty() || ran.out().contains("\"recovered_processing\":0");
        assert!(idle && !ran.out().contains("\"id\""), "{args:?}: {}", ran.out());
        let after = tree(place);
        assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "{args:?}");
        assert!(after == before, "{args:?} changed something");
    }
    message
}

/// A database with one draft, in a directory of its own.
pub fn inbox() -> (TempDir, PathBuf) {
    let directory = open_directory();
    let db = directory.path().join("a/q.db");
    draftq(&db, &["submit", "--text", "one"]).expect(0);
    (directory, db)
}

/// A running command, and the lines that it prints.
pub struct Process {
    pub child: Child,
    pub lines: std::sync::mpsc::Receiver<String>,
}

impl Process {
    pub fn start(mut command: Command) -> Self {
        use std::io::{BufRead as _, BufReader};
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    #[track_caller]
    pub fn line(&self) -> String {
        self.lines.recv_timeout(LIMIT).expect("a line in time")
    }

    /// Its exit code, once it ends by itself.
    pub fn ended(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < LIMIT, "it does not end");
            std::thread::yield_now();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}
