//! A database, a directory or a file that another user owns or can write is refused, and nothing is
//! made, written or deleted elsewhere.
//!
//! The tests that need a second user or a mount need root; otherwise they print "skipped".

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, lchown, symlink};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::harness::{draft, finish, have, store};
use crate::users::{
    ALICE, COMMANDS, LIMIT, MALLORY, Process, assert_refused, behind, beside, can_be_others,
    directory_of, draftq, draftq_as, mode, open_directory, tree, user,
};

/// Those that write. A user may read another user's database.
const WRITING: &[&[&str]] = COMMANDS.split_at(3).0;

/// Run the commands between backquotes in the message.
fn do_as_told(message: &str) {
    let command = message.split('`').nth(1).unwrap_or_else(|| panic!("no command: {message}"));
    let command = command.strip_prefix("sudo ").unwrap_or(command);
    let done = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(done.success(), "{command}");
}

#[test]
fn a_mode_that_lets_others_write_is_refused_until_it_is_changed() {
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
        // Files in the runners directory matter to commands that use it.
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

#[test]
fn files_that_another_user_created_are_refused() {
    if !can_be_others() {
        return;
    }
    let root: Vec<String> = Vec::new();
    // For root, a user's inbox stays the user's, but an empty file is not an inbox yet.
    let place = open_directory();
    let db = directory_of(MALLORY, place.path(), "inbox").join("q.db");
    fs::write(&db, "").unwrap();
    chown(&db, Some(MALLORY), Some(MALLORY)).unwrap();
    assert_refused(&root, &db, &COMMANDS, place.path(), &db);
    for (victim, wrapper) in [(0, root), (ALICE, user(ALICE))] {
        // The directory, with every mode that lets the other user in.
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
        for name in ["wakeup", "0123456789abcdef.lock", "0123456789abcdef.waiting"] {
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

/// After the check of the file, and before SQLite has created the -wal.
#[test]
fn a_wal_that_another_user_creates_during_an_open_gets_no_text() {
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
fn a_sticky_directory_such_as_tmp_is_accepted() {
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
fn files_that_root_creates_belong_to_the_inbox_owner() {
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
    // Root runs, watches and lists first; a killed runner leaves its files.
    let waiting = Process::start(behind(&[], &db, &["watch", "--poll-secs", "3600", "--defer"]));
    waiting.line();
    everything_is_hers("while root watches");
    let names: Vec<_> = tree(&directory).into_keys().collect();
    assert!(names.len() >= 6, "database, -wal, -shm, runners, wakeup, a lock: {names:?}");
    // The user wakes root's watch, and runs a runner of her own.
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
    // Root cannot have a database of its own in her directory.
    assert_refused(&[], &directory.join("new.db"), &COMMANDS[..1], place.path(), &directory);
}

/// SQLite creates a -wal as root and then changes its owner.
#[test]
fn a_file_that_root_has_just_created_is_waited_for() {
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

/// In a user namespace user 0 is not root, and others have no number.
#[test]
fn in_a_user_namespace_only_own_files_are_used() {
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
