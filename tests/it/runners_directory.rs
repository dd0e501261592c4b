//! The runners directory and the files in it, replaced by something else or by another user: they are
//! refused, no claim is recovered by mistake, and no other file is deleted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use draftq::{DraftState, DraftStore, ErrorKind, LibrarianError};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

use crate::harness::{draft, store};
use crate::users::{
    ALICE, COMMANDS, MALLORY, assert_refused, beside, can_be_others, directory_of, draftq,
    draftq_as, inbox, mode, open_directory, tree,
};

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// What the owner of the directory may put in place of a file of draftq.
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
fn a_wrong_kind_of_wakeup_or_lock_file_is_refused_and_unchanged() {
    for kind in KINDS {
        for name in ["wakeup", "0123456789abcdef.lock", "0123456789abcdef.waiting"] {
            let (place, db) = inbox();
            let victim = place.path().join("victim");
            fs::write(&victim, "not to be touched").unwrap();
            let directory = beside(&db, "-runners");
            put(kind, &directory.join(name), &victim);
            assert_refused(&[], &db, &COMMANDS[1..3], place.path(), &directory.join(name));
            // A submit does not wait for it and does not write to it.
            let before = tree(&directory);
            draftq(&db, &["submit", "--text", "two"]).expect(0);
            assert!(tree(&directory) == before, "{kind}: {name}");
            assert_eq!(fs::read(&victim).unwrap(), b"not to be touched");
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2, "nothing was made");
        }
    }
}

#[test]
fn a_wrong_kind_of_runners_directory_is_refused_and_unchanged() {
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
fn a_swapped_lock_file_recovers_no_claim_and_deletes_nothing() {
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
        // The end of the runner does not delete another file either.
        drop(runner);
        assert!(lock.symlink_metadata().is_ok(), "{kind}");
        assert_eq!(fs::read(&victim).unwrap(), b"not to be touched");
    }
}

/// A runners directory that is replaced by a link while the store is open.
#[test]
fn nothing_is_deleted_through_a_link_in_place_of_the_runners_directory() {
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

/// Another user, who cannot read the locks, and a run that cannot create its own.
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
    // A claim without an owner, old enough to be recovered.
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
    // A run of another user does not get that far either.
    draftq_as(MALLORY, &db, &args);
    assert_eq!(processing(), before);
    draftq_as(ALICE, &db, &args).expect(0);
    let after = store.recover_stale_processing(SystemTime::now()).unwrap();
    assert_eq!(after, [], "and the claim of the runner that lives is still its own");
    assert!(store.load(DraftState::Accepted, old).is_ok());
}
