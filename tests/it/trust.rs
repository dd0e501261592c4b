//! A database with two names, of another owner, or in a directory that others arranged: refused by
//! name, and nothing made, written or deleted elsewhere.
//!
//! What needs a second user or a mount runs as root, and says "skipped" otherwise.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use draftq::ErrorKind;
use draftq::{DeferredDraftProcessor, DraftState, DraftStore, LibrarianError, Runner};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Ran, close, draft, finish, have, store};

/// Two users who are not root, and whom no file of this machine belongs to.
const ALICE: u32 = 54_321;
const MALLORY: u32 = 54_322;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(120);

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: this needs root");
    }
    root
}

/// Whether other users and mounts can be had.
fn can_be_others() -> bool {
    is_root() && have("setpriv") && have("unshare") && have("nsenter")
}

/// The binary where every user can run it.
fn binary() -> &'static Path {
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
fn behind<A: AsRef<OsStr>>(wrapper: &[String], db: &Path, args: &[A]) -> Command {
    let mut words = wrapper.iter().map(OsStr::new).chain([binary().as_os_str()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg("--db").arg(db).args(args);
    command.env_remove("DRAFTQ_DB").stdin(Stdio::null()).current_dir("/");
    command
}

fn draftq(db: &Path, args: &[&str]) -> Ran {
    finish(behind(&[], db, args), b"")
}

/// The wrapper that becomes this user.
fn user(uid: u32) -> Vec<String> {
    let uid = uid.to_string();
    ["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups", "--"].map(str::to_owned).into()
}

fn draftq_as(uid: u32, db: &Path, args: &[&str]) -> Ran {
    finish(behind(&user(uid), db, args), b"")
}

/// A directory that every user can reach.
fn open_directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    mode(directory.path(), 0o755);
    directory
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A new directory of this user in here.
fn directory_of(uid: u32, inside: &Path, name: &str) -> PathBuf {
    let path = inside.join(name);
    fs::create_dir(&path).unwrap();
    chown(&path, Some(uid), Some(uid)).unwrap();
    mode(&path, 0o700);
    path
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// Everything from here down: owner, mode, links, and what is in it.
fn tree(directory: &Path) -> BTreeMap<PathBuf, (u32, u32, u64, Vec<u8>)> {
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

/// Commands that write a draft, run, wait, and only look.
const COMMANDS: [&[&str]; 4] = [
    &["submit", "--text", "private"],
    &["run", "--exit-code", "--", "true"],
    &["watch", "--iterations", "1", "--exit-code", "--", "true"],
    &["stats"],
];

/// Those that write: whoever may read another user's database may look at it.
const WRITING: &[&[&str]] = COMMANDS.split_at(3).0;

/// These commands are refused with 78, which names the path and says what to do, and leave
/// everything as it was. Returns the last message.
#[track_caller]
fn assert_refused(
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
        // A run gives its summary all the same.
        let idle = ran.out().is_empty() || ran.out().contains("\"recovered_processing\":0");
        assert!(idle && !ran.out().contains("\"id\""), "{args:?}: {}", ran.out());
        let after = tree(place);
        assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "{args:?}");
        assert!(after == before, "{args:?} changed something");
    }
    message
}

/// Do what the message says between backquotes.
fn do_as_told(message: &str) {
    let command = message.split('`').nth(1).unwrap_or_else(|| panic!("no command: {message}"));
    let command = command.strip_prefix("sudo ").unwrap_or(command);
    let done = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(done.success(), "{command}");
}

/// A database with one draft, in a directory of its own.
fn inbox() -> (TempDir, PathBuf) {
    let directory = open_directory();
    let db = directory.path().join("a/q.db");
    draftq(&db, &["submit", "--text", "one"]).expect(0);
    (directory, db)
}

#[test]
fn a_second_link_is_refused_under_both_names() {
    let (place, db) = inbox();
    fs::create_dir(place.path().join("b")).unwrap();
    let other = place.path().join("b/q.db");
    fs::hard_link(&db, &other).unwrap();
    for path in [&db, &other] {
        let message = assert_refused(&[], path, &COMMANDS, place.path(), path);
        assert!(message.contains("2 links"), "{message}");
        let error = DraftStore::open(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ForeignDatabase, "{error}");
    }
    fs::remove_file(other).unwrap();
    draftq(&db, &["run", "--exit-code", "--", "true"]).expect(0);
}

#[test]
fn without_statx_the_link_count_tells() {
    if !have("strace") {
        return;
    }
    let (place, db) = inbox();
    let log = place.path().join("log");
    fs::write(&log, "").unwrap();
    let trace = ["strace", "-f", "-qq", "-o", log.to_str().unwrap(), "-e"];
    let mut wrapper: Vec<_> = trace.map(str::to_owned).into();
    wrapper.push("inject=statx:error=ENOSYS".to_owned());
    finish(behind(&wrapper, &db, COMMANDS[0]), b"").expect(0);
    assert!(fs::read_to_string(&log).unwrap().contains("ENOSYS"), "it was asked for");
    fs::hard_link(&db, place.path().join("other.db")).unwrap();
    let ran = finish(behind(&wrapper, &db, COMMANDS[0]), b"");
    assert!(ran.expect(78).err().contains("2 links"), "{}", ran.err());
}

#[test]
fn a_second_link_to_what_lies_beside_it_is_refused() {
    for suffix in ["-wal", "-shm", "-journal"] {
        let (place, store) = store();
        store.submit(&draft("one")).unwrap();
        let db = store.path().to_owned();
        if suffix == "-journal" {
            close(store);
            fs::write(beside(&db, suffix), "").unwrap();
            mode(&beside(&db, suffix), 0o600);
        } else {
            // A killed process leaves them.
            std::mem::forget(store);
        }
        fs::hard_link(beside(&db, suffix), place.path().join("elsewhere")).unwrap();
        assert_refused(&[], &db, &COMMANDS, place.path(), &beside(&db, suffix));
        fs::remove_file(place.path().join("elsewhere")).unwrap();
        draftq(&db, &["stats"]).expect(0);
    }
}

#[test]
fn a_link_that_is_made_later_ends_a_run_and_a_watch() {
    let (place, store) = store();
    store.submit(&draft("one")).unwrap();
    let runner = Runner::new(&store, "test");
    let run = || runner.run_one(&mut DeferredDraftProcessor, SystemTime::now()).into_result();
    assert_eq!(run().unwrap().deferred, 1);
    let args = ["watch", "--poll-secs", "3600", "--defer"];
    let mut watch = Process::start(behind(&[], store.path(), &args));
    watch.line();
    let other = place.path().join("other.db");
    fs::hard_link(store.path(), &other).unwrap();
    assert!(matches!(run(), Err(LibrarianError::Untrusted { .. })));
    assert_eq!(watch.ended(), Some(78));
    fs::remove_file(other).unwrap();
    run().unwrap();
}

#[test]
fn a_mounted_file_is_refused_and_a_mounted_directory_is_not() {
    if !can_be_others() {
        return;
    }
    let (place, db) = inbox();
    for name in ["b", "c"] {
        fs::create_dir(place.path().join(name)).unwrap();
    }
    let (mounted, by_directory) = (place.path().join("b/q.db"), place.path().join("c/q.db"));
    fs::write(&mounted, "").unwrap();
    mode(&mounted, 0o600);
    let script = format!(
        "cd {} && mount --bind a/q.db b/q.db && mount --bind a c && exec \"$@\"",
        place.path().display()
    );
    let mounts = ["unshare", "-m", "sh", "-c", &script, "sh"].map(str::to_owned);
    let message = assert_refused(&mounts, &mounted, &COMMANDS, place.path(), &mounted);
    assert!(message.contains("mount its directory"), "{message}");
    for (path, drafts) in [(&db, 2), (&by_directory, 3)] {
        finish(behind(&mounts, path, &["submit", "--text", &drafts.to_string()]), b"").expect(0);
        assert_eq!(draftq(&db, &["stats", "--json"]).json()["drafts"], drafts);
    }
}

/// A running command, and the lines that it prints.
struct Process {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Process {
    fn start(mut command: Command) -> Self {
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
    fn line(&self) -> String {
        self.lines.recv_timeout(LIMIT).expect("a line in time")
    }

    /// Its exit code, once it ends by itself.
    fn ended(&mut self) -> Option<i32> {
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

/// Evidence 19: a watch on each name, submits in turn on both. What was acknowledged is decided.
fn two_names(what: &str, wrapper: &[String], names: [&Path; 2]) {
    let (mut acknowledged, mut refused) = (Vec::new(), 0);
    let args = ["watch", "--poll-secs", "1", "--json", "--exit-code", "--", "true"];
    let watches = names.map(|name| Process::start(behind(wrapper, name, &args)));
    for number in 0..60_usize {
        let text = format!("{what} {number}");
        let ran = finish(behind(wrapper, names[number % 2], &["submit", "--text", &text]), b"");
        match ran.code {
            Some(0) => acknowledged.push(ran.json()["id"].as_str().unwrap().to_owned()),
            Some(78) => refused += 1,
            _ => panic!("{ran:?}"),
        }
    }
    drop(watches);
    finish(behind(wrapper, names[0], &["run", "--exit-code", "--", "true"]), b"");
    for id in &acknowledged {
        let shown = finish(behind(wrapper, names[0], &["show", id, "--json"]), b"");
        assert_eq!(shown.expect(0).json()["state"], "accepted");
    }
    println!(
        "{}",
        serde_json::json!({
            "evidence": "two names", "names": what, "submits": 60,
            "acknowledged": acknowledged.len(), "refused": refused, "missing": 0,
        })
    );
    assert!(acknowledged.len() + refused == 60 && (refused == 0 || refused >= 30), "{what}");
}

#[test]
fn two_names_lose_no_acknowledged_draft() {
    let fresh = |names: &str| {
        let (place, db) = inbox();
        draftq(&db, &["run", "--exit-code", "--", "true"]).expect(0);
        fs::remove_dir_all(db.parent().unwrap()).unwrap();
        fs::create_dir(place.path().join("a")).unwrap();
        fs::create_dir(place.path().join("b")).unwrap();
        draftq(&db, &["stats"]);
        draftq(&db, &["run", "--exit-code", "--", "true"]).expect(0);
        let other = place.path().join(names);
        (place, db, other)
    };
    let (_place, db, other) = fresh("b/q.db");
    fs::hard_link(&db, &other).unwrap();
    two_names("hard link", &[], [&db, &other]);
    let (_place, db, other) = fresh("b/q.db");
    symlink(&db, &other).unwrap();
    two_names("symbolic link", &[], [&db, &other]);
    assert!(!beside(&other, "-runners").exists() && !beside(&other, "-wal").exists());
    let (place, db, other) = fresh("c/q.db");
    symlink("a", place.path().join("c")).unwrap();
    two_names("symbolic link to the directory", &[], [&db, &other]);

    if !can_be_others() {
        return;
    }
    let (place, db, file) = fresh("b/q.db");
    let directory = place.path().join("c/q.db");
    fs::create_dir(place.path().join("c")).unwrap();
    fs::write(&file, "").unwrap();
    let script = format!(
        "cd {} && mount --bind a/q.db b/q.db && mount --bind a c && echo ready && read -r end",
        place.path().display()
    );
    let mut mounting = Command::new("unshare");
    mounting.args(["-m", "sh", "-c", &script]).stdin(Stdio::piped());
    let mut mounting = Process::start(mounting);
    assert_eq!(mounting.line(), "ready");
    let inside = ["nsenter", "-m", "-t", &mounting.child.id().to_string(), "--"].map(str::to_owned);
    two_names("mounted directory", &inside, [&db, &directory]);
    two_names("mounted file", &inside, [&db, &file]);
    drop(mounting.child.stdin.take());
    mounting.ended();
}

#[test]
fn a_wide_mode_is_refused_until_what_the_message_says_is_done() {
    for (suffix, wide, private) in [
        ("", 0o660, 0o640),
        ("", 0o602, 0o600),
        ("-wal", 0o666, 0o644),
        ("-shm", 0o620, 0o600),
        ("-runners", 0o770, 0o750),
        ("-runners", 0o707, 0o705),
        ("-runners/wakeup", 0o622, 0o600),
        ("-runners/0123456789abcdef.lock", 0o606, 0o604),
    ] {
        let (place, store) = store();
        store.submit(&draft("one")).unwrap();
        let db = store.path().to_owned();
        std::mem::forget(store);
        draftq(&db, &["watch", "--iterations", "1", "--exit-code", "--", "true"]).expect(0);
        let path = beside(&db, suffix);
        if suffix.ends_with(".lock") {
            fs::write(&path, "").unwrap();
        }
        mode(&path, wide);
        // What is in the runners directory matters to those who use it.
        let commands = if suffix.contains('/') { &COMMANDS[1..3] } else { &COMMANDS };
        let message = assert_refused(&[], &db, commands, place.path(), &path);
        do_as_told(&message);
        draftq(&db, &["run", "--defer"]).expect(0);
        if let Ok(metadata) = fs::metadata(&path) {
            assert_eq!(metadata.mode() & 0o777, private, "{suffix}");
        }
    }
}

#[test]
fn a_directory_that_others_can_write_is_refused_unless_it_is_sticky() {
    for (wide, refused) in [
        (0o777, true),
        (0o775, true),
        (0o770, true),
        (0o757, true),
        (0o755, false),
        (0o1777, false),
    ] {
        for exists in [true, false] {
            let place = open_directory();
            let directory = place.path().join("it's here");
            fs::create_dir(&directory).unwrap();
            let db = directory.join("q.db");
            if exists {
                draftq(&db, &["submit", "--text", "one"]).expect(0);
            }
            mode(&directory, wide);
            let own_group =
                rustix::process::getegid().as_raw() == fs::metadata(&directory).unwrap().uid();
            if wide & 0o002 == 0 && own_group && !rustix::process::geteuid().is_root() {
                continue;
            }
            if refused {
                let commands: &[&[&str]] = if exists { &COMMANDS } else { &COMMANDS[..1] };
                let message = assert_refused(&[], &db, commands, place.path(), &directory);
                do_as_told(&message);
            }
            draftq(&db, &["submit", "--text", "two"]).expect(0);
        }
    }
}

/// What may be at a path in place of a file of draftq's own, made by whoever owns the directory.
fn put(kind: &str, path: &Path, victim: &Path) {
    match kind {
        "a link to nothing" => symlink(victim.with_file_name("made through a link"), path).unwrap(),
        "a link to a file" => symlink(victim, path).unwrap(),
        "a hard link" => fs::hard_link(victim, path).unwrap(),
        "a FIFO" => fifo(path),
        "a directory" => fs::create_dir(path).unwrap(),
        other => panic!("{other}"),
    }
}

const KINDS: [&str; 5] =
    ["a link to nothing", "a link to a file", "a hard link", "a FIFO", "a directory"];

#[test]
fn a_wakeup_file_or_a_lock_that_is_something_else_is_refused_and_left_alone() {
    for kind in KINDS {
        for name in ["wakeup", "0123456789abcdef.lock"] {
            let (place, db) = inbox();
            let victim = place.path().join("victim");
            fs::write(&victim, "not to be touched").unwrap();
            let directory = beside(&db, "-runners");
            put(kind, &directory.join(name), &victim);
            assert_refused(&[], &db, &COMMANDS[1..3], place.path(), &directory.join(name));
            // Whoever submits does not wait for it, and does not write to it.
            let before = tree(&directory);
            draftq(&db, &["submit", "--text", "two"]).expect(0);
            assert!(tree(&directory) == before, "{kind}: {name}");
            assert_eq!(fs::read(&victim).unwrap(), b"not to be touched");
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2, "nothing was made");
        }
    }
}

#[test]
fn a_runners_directory_that_is_something_else_is_refused_and_left_alone() {
    for kind in ["a link to nothing", "a link to a file", "a link to a directory", "a FIFO"] {
        let (place, db) = inbox();
        let victim = place.path().join("victim");
        fs::write(&victim, "").unwrap();
        let directory = place.path().join("theirs");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("0123456789abcdef.lock"), "no lock").unwrap();
        fs::remove_dir_all(beside(&db, "-runners")).unwrap();
        match kind {
            "a link to a directory" => symlink(&directory, beside(&db, "-runners")).unwrap(),
            kind => put(kind, &beside(&db, "-runners"), &victim),
        }
        let path = beside(&db, "-runners");
        assert_refused(&[], &db, &COMMANDS, place.path(), &path);
        let before = tree(place.path());
        if let Ok(store) = DraftStore::open(&db) {
            panic!("{kind}: {store:?}");
        }
        assert!(tree(place.path()) == before);
    }
}

#[test]
fn a_lock_that_was_swapped_steals_no_claim_and_deletes_nothing() {
    for kind in KINDS {
        let (place, store) = store();
        store.submit(&draft("in hand")).unwrap();
        let runner = store.register_runner("test").unwrap();
        let mut snapshot = store.pending_snapshot().unwrap();
        let claim = store.claim_next(&runner, &mut snapshot).unwrap();
        assert!(claim.is_some());
        let victim = place.path().join("victim");
        fs::write(&victim, "not to be touched").unwrap();
        let directory = beside(store.path(), "-runners");
        let lock = fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
        fs::remove_file(&lock).unwrap();
        put(kind, &lock, &victim);
        let ahead = SystemTime::now() + Duration::from_secs(3_600);
        assert_eq!(store.recover_stale_processing(ahead).unwrap(), [], "{kind}");
        assert!(lock.symlink_metadata().is_ok(), "{kind}");
        // Nor does the runner's own end delete what is not its file.
        drop(runner);
        assert!(lock.symlink_metadata().is_ok(), "{kind}");
        assert_eq!(fs::read(&victim).unwrap(), b"not to be touched");
    }
}

/// A runners directory that turns into a link while the store is open.
#[test]
fn a_runners_directory_that_is_swapped_for_a_link_gets_nothing_deleted() {
    let (place, store) = store();
    store.submit(&draft("in hand")).unwrap();
    let runner = store.register_runner("test").unwrap();
    let mut snapshot = store.pending_snapshot().unwrap();
    assert!(store.claim_next(&runner, &mut snapshot).unwrap().is_some());
    let directory = beside(store.path(), "-runners");
    fs::rename(&directory, place.path().join("moved")).unwrap();
    let theirs = place.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    let foreign = theirs.join("0123456789abcdef.lock");
    fs::write(&foreign, "").unwrap();
    mode(&foreign, 0o600);
    symlink(&theirs, &directory).unwrap();
    let ahead = SystemTime::now() + Duration::from_secs(3_600);
    assert_eq!(store.recover_stale_processing(ahead).unwrap(), []);
    assert!(foreign.exists());
    assert_eq!(store.check_file().unwrap_err().kind(), ErrorKind::ForeignDatabase);
    let error = store.register_runner("another").unwrap_err();
    assert!(matches!(error, LibrarianError::Untrusted { .. }), "{error}");
    assert_eq!(fs::read_dir(&theirs).unwrap().count(), 1);
}

#[test]
fn what_another_user_made_first_is_refused() {
    if !can_be_others() {
        return;
    }
    let root: Vec<String> = Vec::new();
    // Root takes a user's inbox for the user's, but an empty file is no inbox yet.
    let place = open_directory();
    let db = directory_of(MALLORY, place.path(), "inbox").join("q.db");
    fs::write(&db, "").unwrap();
    chown(&db, Some(MALLORY), Some(MALLORY)).unwrap();
    assert_refused(&root, &db, &COMMANDS, place.path(), &db);
    for (victim, wrapper) in [(0, root), (ALICE, user(ALICE))] {
        // The directory, with every mode that lets the victim in.
        for wide in [0o755, 0o777, 0o1777] {
            let place = open_directory();
            let directory = directory_of(MALLORY, place.path(), "inbox");
            mode(&directory, wide);
            let db = directory.join("q.db");
            assert_refused(&wrapper, &db, &COMMANDS[..1], place.path(), &directory);
        }
        // In a directory such as /tmp: the file, empty or whole; what lies beside it.
        let sticky = |place: &TempDir| {
            let directory = place.path().join("tmp");
            fs::create_dir(&directory).unwrap();
            mode(&directory, 0o1777);
            directory.join("q.db")
        };
        for wide in [0o600, 0o644, 0o666] {
            let place = open_directory();
            let db = sticky(&place);
            fs::write(&db, "").unwrap();
            chown(&db, Some(MALLORY), Some(MALLORY)).unwrap();
            mode(&db, wide);
            assert_refused(&wrapper, &db, WRITING, place.path(), &db);
            let place = open_directory();
            let db = sticky(&place);
            draftq_as(MALLORY, &db, &["submit", "--text", "bait"]).expect(0);
            mode(&db, wide);
            assert_refused(&wrapper, &db, WRITING, place.path(), &db);
        }
        for suffix in ["-wal", "-shm", "-journal", "-runners"] {
            for exists in [false, true] {
                let place = open_directory();
                let db = sticky(&place);
                if exists {
                    finish(behind(&wrapper, &db, &["submit", "--text", "one"]), b"").expect(0);
                }
                let path = beside(&db, suffix);
                if suffix == "-runners" {
                    if exists {
                        fs::remove_dir_all(&path).unwrap();
                    }
                    fs::create_dir(&path).unwrap();
                    mode(&path, 0o777);
                } else {
                    fs::write(&path, "").unwrap();
                }
                chown(&path, Some(MALLORY), Some(MALLORY)).unwrap();
                let commands: &[&[&str]] = if exists { &COMMANDS } else { &COMMANDS[..1] };
                assert_refused(&wrapper, &db, commands, place.path(), &path);
            }
            let place = open_directory();
            let db = sticky(&place);
            finish(behind(&wrapper, &db, &["submit", "--text", "one"]), b"").expect(0);
            let elsewhere = place.path().join("elsewhere");
            if suffix == "-runners" {
                fs::remove_dir_all(beside(&db, suffix)).unwrap();
            }
            symlink(&elsewhere, beside(&db, suffix)).unwrap();
            lchown(beside(&db, suffix), Some(MALLORY), Some(MALLORY)).unwrap();
            assert_refused(&wrapper, &db, &COMMANDS, place.path(), &beside(&db, suffix));
        }
        // The wakeup file, or a lock, in a directory that is the victim's.
        for name in ["wakeup", "0123456789abcdef.lock"] {
            let place = open_directory();
            let db = directory_of(victim, place.path(), "inbox").join("q.db");
            finish(behind(&wrapper, &db, COMMANDS[1]), b"").expect(0);
            let path = beside(&db, "-runners").join(name);
            fs::write(&path, "").unwrap();
            mode(&path, 0o666);
            chown(&path, Some(MALLORY), Some(MALLORY)).unwrap();
            assert_refused(&wrapper, &db, &COMMANDS[1..3], place.path(), &path);
            finish(behind(&wrapper, &db, COMMANDS[0]), b"").expect(0);
            assert_eq!(fs::read(&path).unwrap(), b"");
        }
    }
}

/// After the file was checked, and before SQLite has made the -wal.
#[test]
fn a_wal_that_is_put_there_while_the_file_is_opened_gets_no_text() {
    if !can_be_others() || !have("strace") {
        return;
    }
    let place = open_directory();
    let directory = place.path().join("tmp");
    fs::create_dir(&directory).unwrap();
    mode(&directory, 0o1777);
    let db = directory.join("q.db");
    let log = place.path().join("log");
    fs::write(&log, "").unwrap();
    mode(&log, 0o666);
    let mut slow = user(ALICE);
    let trace = ["-f", "-qq", "-o", log.to_str().unwrap(), "-e"];
    slow.extend(["strace"].into_iter().chain(trace).map(str::to_owned));
    slow.push("inject=pwrite64:delay_enter=1000000:when=1".to_owned());
    let mut submit = Process::start(behind(&slow, &db, &["submit", "--text", "private"]));
    let begun = Instant::now();
    while !beside(&db, "-journal").exists() {
        assert!(begun.elapsed() < LIMIT && submit.child.try_wait().unwrap().is_none(), "not seen");
    }
    let wal = beside(&db, "-wal");
    fs::File::create_new(&wal).unwrap();
    mode(&wal, 0o666);
    chown(&wal, Some(MALLORY), Some(MALLORY)).unwrap();
    // Where the kernel protects such directories, SQLite cannot open it at all.
    assert!(matches!(submit.ended(), Some(78 | 74)));
    let bytes = fs::read(&wal).unwrap_or_default();
    assert!(!bytes.windows(7).any(|window| window == b"private"));
}

#[test]
fn a_directory_such_as_tmp_is_fine_by_itself() {
    if !can_be_others() {
        return;
    }
    let place = open_directory();
    let directory = place.path().join("tmp");
    fs::create_dir(&directory).unwrap();
    mode(&directory, 0o1777);
    for (name, uid) in [("root.db", 0), ("alice.db", ALICE)] {
        for args in COMMANDS {
            draftq_as(uid, &directory.join(name), args).expect(0);
        }
    }
    // A private group, as umask 002 goes with it.
    let own = directory_of(ALICE, place.path(), "own");
    mode(&own, 0o775);
    draftq_as(ALICE, &own.join("q.db"), COMMANDS[0]).expect(0);
    // And one that is shared.
    chown(&own, None, Some(MALLORY)).unwrap();
    assert_refused(&user(ALICE), &own.join("q.db"), &COMMANDS, place.path(), &own);
}

/// As with sudo: everything that root makes is the user's.
#[test]
fn root_on_a_users_inbox_leaves_all_of_it_to_the_user() {
    if !can_be_others() {
        return;
    }
    let place = open_directory();
    let directory = directory_of(ALICE, place.path(), "inbox");
    let db = directory.join("q.db");
    draftq_as(ALICE, &db, &["submit", "--text", "from alice"]).expect(0);
    let everything_is_hers = |when: &str| {
        for (path, (uid, mode, _, _)) in tree(&directory) {
            assert_eq!(uid, ALICE, "{when}: {}", path.display());
            assert_eq!(mode & 0o077, 0, "{when}: {}", path.display());
        }
    };
    // Root is the first who runs, waits and looks; a killed runner leaves everything.
    let waiting = Process::start(behind(&[], &db, &["watch", "--poll-secs", "3600", "--defer"]));
    waiting.line();
    everything_is_hers("while root watches");
    let names: Vec<_> = tree(&directory).into_keys().collect();
    assert!(names.len() >= 6, "database, -wal, -shm, runners, wakeup, a lock: {names:?}");
    // She wakes root's watch, and her own runner lives beside it.
    draftq_as(ALICE, &db, &["submit", "--text", "again"]).expect(0);
    waiting.line();
    draftq_as(ALICE, &db, &["run", "--exit-code", "--", "true"]).expect(0);
    let root_pid = Pid::from_child(&waiting.child);
    kill_process(root_pid, Signal::KILL).unwrap();
    drop(waiting);
    everything_is_hers("after root was killed");
    draftq(&db, &["submit", "--text", "from root"]).expect(0);
    draftq(&db, &["run", "--exit-code", "--", "true"]).expect(0);
    draftq(&db, &["stats"]).expect(0);
    everything_is_hers("after root's commands");
    let stats = draftq_as(ALICE, &db, &["stats", "--json"]).expect(0).json();
    assert_eq!(stats["drafts"], 3);
    draftq_as(ALICE, &db, &["watch", "--iterations", "1", "--defer"]).expect(0);
    // Her directory is not the place for a database of root's.
    assert_refused(&[], &directory.join("new.db"), &COMMANDS[..1], place.path(), &directory);
}

/// SQLite makes a -wal as root and changes its owner then.
#[test]
fn what_root_is_about_to_give_away_is_waited_for() {
    if !can_be_others() || !have("strace") {
        return;
    }
    let place = open_directory();
    let db = directory_of(ALICE, place.path(), "inbox").join("q.db");
    draftq_as(ALICE, &db, &["submit", "--text", "from alice"]).expect(0);
    let log = place.path().join("log");
    let trace =
        ["-f", "-qq", "-o", log.to_str().unwrap(), "-e", "inject=fchown:delay_enter=500000"];
    let strace: Vec<_> = ["strace"].into_iter().chain(trace).map(str::to_owned).collect();
    let mut root = Process::start(behind(&strace, &db, &["submit", "--text", "from root"]));
    let wal = beside(&db, "-wal");
    let begun = Instant::now();
    while !fs::metadata(&wal).is_ok_and(|metadata| metadata.uid() == 0) {
        assert!(begun.elapsed() < LIMIT && root.child.try_wait().unwrap().is_none(), "not seen");
    }
    draftq_as(ALICE, &db, &["submit", "--text", "at the same moment"]).expect(0);
    assert_eq!(root.ended(), Some(0));
    assert_eq!(draftq_as(ALICE, &db, &["stats", "--json"]).expect(0).json()["drafts"], 3);
}

/// What root cannot give to the user is not left there: each command of the user would refuse it.
#[test]
fn what_root_cannot_give_away_is_removed() {
    if !can_be_others() || !have("strace") {
        return;
    }
    let place = open_directory();
    let db = directory_of(ALICE, place.path(), "inbox").join("q.db");
    let args = ["watch", "--poll-secs", "3600", "--defer"];
    draftq_as(ALICE, &db, COMMANDS[0]).expect(0);
    // She has the database open, so that root makes nothing but a lock file.
    let watch = Process::start(behind(&user(ALICE), &db, &args));
    watch.line();
    let log = place.path().join("log");
    let trace = ["-f", "-qq", "-o", log.to_str().unwrap(), "-e", "inject=fchown:error=EPERM"];
    let strace: Vec<_> = ["strace"].into_iter().chain(trace).map(str::to_owned).collect();
    let ran = finish(behind(&strace, &db, COMMANDS[1]), b"");
    assert!(ran.expect(73).err().contains("-runners"), "{}", ran.err());
    draftq_as(ALICE, &db, COMMANDS[1]).expect(0);
}

/// Whoever may read another user's database may look at it, under its one name.
#[test]
fn another_users_database_is_read_and_not_under_a_second_name() {
    if !can_be_others() {
        return;
    }
    let place = open_directory();
    let directory = directory_of(ALICE, place.path(), "inbox");
    let db = directory.join("q.db");
    draftq_as(ALICE, &db, &["submit", "--text", "from alice"]).expect(0);
    mode(&directory, 0o755);
    mode(&db, 0o644);
    let stats = draftq_as(MALLORY, &db, &["stats", "--json"]);
    assert_eq!(stats.expect(0).json()["drafts"], 1);
    fs::hard_link(&db, directory.join("other.db")).unwrap();
    assert_refused(&user(MALLORY), &db, &[&["stats"]], place.path(), &db);
    // What one may not read is named as it was given.
    fs::remove_file(directory.join("other.db")).unwrap();
    mode(&db, 0);
    for args in [COMMANDS[0], &["stats"]] {
        let ran = draftq_as(ALICE, &db, args);
        assert!(ran.expect(74).err().contains(&*db.to_string_lossy()), "{}", ran.err());
        assert!(!ran.err().contains("immutable"), "{}", ran.err());
    }
}

/// What root keeps is not waited for any longer than root takes to change an owner.
#[test]
fn what_root_keeps_is_refused_in_the_end() {
    if !can_be_others() {
        return;
    }
    let place = open_directory();
    let db = directory_of(ALICE, place.path(), "inbox").join("q.db");
    draftq_as(ALICE, &db, &["submit", "--text", "from alice"]).expect(0);
    fs::write(beside(&db, "-wal"), "").unwrap();
    let begun = Instant::now();
    let ran = draftq_as(ALICE, &db, &["submit", "--text", "again"]);
    assert!(ran.expect(78).err().contains("belongs to user 0"), "{}", ran.err());
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

/// In a user namespace user 0 is not root, and others have no number.
#[test]
fn in_a_user_namespace_only_what_is_ones_own_is_used() {
    if !can_be_others() {
        return;
    }
    let mut namespace = user(ALICE);
    namespace.extend(["unshare", "-U", "-r", "--"].map(str::to_owned));
    let works = Command::new(&namespace[0]).args(&namespace[1..]).arg("true").status().unwrap();
    if !works.success() {
        println!("skipped: users may not make user namespaces here");
        return;
    }
    let place = open_directory();
    let sticky = place.path().join("tmp");
    fs::create_dir(&sticky).unwrap();
    mode(&sticky, 0o1777);
    let own = directory_of(ALICE, place.path(), "own");
    for directory in [&own, &sticky] {
        for args in COMMANDS {
            finish(behind(&namespace, &directory.join("q.db"), args), b"").expect(0);
        }
        for path in tree(directory).into_keys().filter(|path| path != &sticky) {
            assert_eq!(fs::metadata(&path).unwrap().uid(), ALICE, "{}", path.display());
        }
        draftq_as(ALICE, &directory.join("q.db"), &["run", "--exit-code", "--", "true"]).expect(0);
    }
    for uid in [0, MALLORY] {
        let db = sticky.join(format!("{uid}.db"));
        draftq_as(uid, &db, &["submit", "--text", "bait"]).expect(0);
        mode(&db, 0o644);
        assert_refused(&namespace, &db, WRITING, place.path(), &db);
        let directory = directory_of(uid, place.path(), &format!("of {uid}"));
        mode(&directory, 0o755);
        let moved = directory.join("q.db");
        fs::rename(&db, &moved).unwrap();
        assert_refused(&namespace, &moved, WRITING, place.path(), &moved);
    }
}

/// Evidence 21: another user, who cannot read the locks, and a run that cannot make its own.
#[test]
fn a_run_that_cannot_use_the_runners_directory_recovers_nothing() {
    if !can_be_others() {
        return;
    }
    let place = open_directory();
    let db = directory_of(ALICE, place.path(), "inbox").join("q.db");
    draftq_as(ALICE, &db, &["submit", "--text", "in hand"]).expect(0);
    let store = DraftStore::open(&db).unwrap();
    let runner = store.register_runner("test").unwrap();
    let mut snapshot = store.pending_snapshot().unwrap();
    assert!(store.claim_next(&runner, &mut snapshot).unwrap().is_some());
    // A claim without an owner, old enough for everybody.
    let old = store.submit(&draft("nobody's")).unwrap().id;
    store.transition(old, DraftState::Pending, DraftState::Processing).unwrap();
    let processing = || -> Value { draftq(&db, &["stats", "--json"]).json() };
    let before = processing();
    let directory = beside(&db, "-runners");
    let args = ["run", "--stale-processing-secs", "0", "--exit-code", "--", "true"];
    for (wide, code) in [(0o500, 73), (0o000, 73), (0o600, 73)] {
        mode(&directory, wide);
        let ran = draftq_as(ALICE, &db, &args);
        ran.expect(code);
        assert!(ran.err().contains(&*directory.to_string_lossy()), "{}", ran.err());
        assert_eq!(processing(), before, "mode {wide:o}");
    }
    mode(&directory, 0o700);
    // Nor does another user's run get that far.
    draftq_as(MALLORY, &db, &args);
    assert_eq!(processing(), before);
    draftq_as(ALICE, &db, &args).expect(0);
    let after = store.recover_stale_processing(SystemTime::now()).unwrap();
    assert_eq!(after, [], "and the claim of the runner that lives is still its own");
    assert!(store.load(DraftState::Accepted, old).is_ok());
}
