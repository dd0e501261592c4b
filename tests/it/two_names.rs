//! A database with two names (a hard link, a mount) is refused under each of them, and symbolic
//! links and mounted directories are not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use draftq::{DeferredDraftProcessor, DraftStore, ErrorKind, LibrarianError, Runner};

use crate::harness::{close, draft, finish, have, store};
use crate::users::{
    COMMANDS, Process, assert_refused, behind, beside, can_be_others, draftq, inbox, mode,
};

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
fn a_second_link_is_refused_without_statx() {
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
fn a_second_link_to_a_file_beside_it_is_refused() {
    for suffix in ["-wal", "-shm", "-journal"] {
        let (place, store) = store();
        store.submit(&draft("one")).unwrap();
        let db = store.path().to_owned();
        if suffix == "-journal" {
            close(store);
            fs::write(beside(&db, suffix), "").unwrap();
            mode(&beside(&db, suffix), 0o600);
        } else {
            // Files that a killed process leaves.
            std::mem::forget(store);
        }
        fs::hard_link(beside(&db, suffix), place.path().join("elsewhere")).unwrap();
        assert_refused(&[], &db, &COMMANDS, place.path(), &beside(&db, suffix));
        fs::remove_file(place.path().join("elsewhere")).unwrap();
        draftq(&db, &["stats"]).expect(0);
    }
}

#[test]
fn a_link_that_is_created_later_ends_a_run_and_a_watch() {
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

/// A watch on each name, and submits on both in turn. Every acknowledged draft is decided.
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
