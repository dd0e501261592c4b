//! Which file a path means, and how paths that cannot be opened are reported.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use draftq::{DraftState, DraftStore, ErrorKind, LibrarianError};
use rusqlite::Connection;

use crate::files::{beside, draftq_behind, tree};
use crate::harness::{close, draft, draftq, have};

#[test]
fn a_path_may_contain_any_character() {
    for name in [
        &b"a?b.db"[..],
        b"a?mode=memory",
        b"a#b",
        b"a%20b%00",
        b"with a space",
        b" ",
        b"file:x",
        b"file:y?mode=ro&immutable=1",
        b":memory:",
        b"-",
        b"--help",
        b"quote's \"and\" \\",
        b"new\nline\x1b[31m",
        b"non-utf8 \xff\xfe",
        "Grüße 世界".as_bytes(),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let name = OsString::from(OsStr::from_bytes(name));
        let path = directory.path().join(&name);
        let draft = draft("x");
        let store = DraftStore::open(&path).unwrap();
        store.submit(&draft).unwrap();
        assert_eq!(store.path(), path);
        close(store);
        let left: Vec<_> = tree(directory.path()).into_keys().collect();
        let runners = beside(&path, "-runners");
        let expected = [path.clone(), runners.clone(), runners.join("in-use")];
        assert_eq!(left, expected, "that file, its runners, and no other");
        // Given as it is, the current directory being the file's.
        let mut relative = draftq(Path::new(&name));
        // A value that begins with a hyphen is accepted after `=`.
        if name.as_bytes().starts_with(b"-") {
            let mut joined = OsString::from("--db=");
            joined.push(&name);
            relative = Command::new(relative.get_program());
            relative.env_remove("DRAFTQ_DB").arg(joined);
        }
        let output =
            relative.args(["stats", "--json"]).current_dir(directory.path()).output().unwrap();
        assert!(output.status.success(), "{name:?}: {output:?}");
        let counts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(counts["drafts"], 1, "{name:?}");
        let store = DraftStore::open(&path).unwrap();
        assert_eq!(store.load(DraftState::Pending, draft.id()).unwrap(), draft);
        let (files, beside) = (tree(directory.path()), ["-wal", "-shm", "-runners"]);
        assert_eq!(files.len(), 5, "{name:?}: {beside:?} {:?}", files.keys());
    }
}

#[test]
fn a_relative_path_is_resolved_at_open() {
    let directory = tempfile::tempdir().unwrap();
    let here = std::env::current_dir().unwrap();
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    let inside = directory.path().strip_prefix("/").unwrap();
    let store = DraftStore::open(up.join(inside).join("drafts.db")).unwrap();
    assert!(store.path().is_absolute());
    store.submit(&draft("x")).unwrap();
    assert_eq!(
        DraftStore::open(directory.path().join("drafts.db")).unwrap().stats().unwrap().drafts,
        1
    );
}

#[test]
fn a_symbolic_link_leads_to_the_same_store_and_locks() {
    let directory = tempfile::tempdir().unwrap();
    let (here, there) = (directory.path().join("here"), directory.path().join("there"));
    fs::create_dir(&here).unwrap();
    fs::create_dir(&there).unwrap();
    let (link, path) = (here.join("link.db"), there.join("drafts.db"));
    let direct = DraftStore::open(&path).unwrap();
    symlink("../there/drafts.db", &link).unwrap();
    let linked = DraftStore::open(&link).unwrap();
    let draft = draft("x");
    linked.submit(&draft).unwrap();
    assert_eq!(direct.load(DraftState::Pending, draft.id()).unwrap(), draft);

    // A live runner is seen as live under both paths, and an ended one as ended.
    for (claims, recovers) in [(&direct, &linked), (&linked, &direct)] {
        let runner = claims.register_runner("test").unwrap();
        let mut snapshot = claims.pending_snapshot().unwrap();
        assert!(claims.claim_next(&runner, &mut snapshot).unwrap().is_some());
        let ahead = SystemTime::now() + Duration::from_secs(3_600);
        assert_eq!(recovers.recover_stale_processing(ahead).unwrap(), []);
        drop(runner);
        assert_eq!(recovers.recover_stale_processing(SystemTime::UNIX_EPOCH).unwrap().len(), 1);
        recovers.requeue(&[draft.id()]).unwrap();
        // The second crash delays it.
        let sql = "UPDATE drafts SET due_at = 0, errors = 0";
        Connection::open(&path).unwrap().execute(sql, []).unwrap();
    }
    assert_eq!(tree(&here).into_keys().collect::<Vec<_>>(), [link], "nothing beside the link");
}

#[test]
fn the_error_names_what_cannot_be_opened() {
    let directory = tempfile::tempdir().unwrap();
    let named = |path: &Path, kind: ErrorKind| {
        let error = DraftStore::open(path).unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
    };
    named(directory.path(), ErrorKind::ForeignDatabase);
    named(Path::new("/dev/null"), ErrorKind::ForeignDatabase);
    let dangling = directory.path().join("dangling.db");
    symlink("/nonexistent/drafts.db", &dangling).unwrap();
    let error = DraftStore::open(&dangling).unwrap_err();
    assert!(error.to_string().contains("dangling.db"), "{error}");
    assert!(matches!(error, LibrarianError::CannotCreate { .. }), "{error:?}");
    assert!(fs::symlink_metadata(&dangling).unwrap().is_symlink());
    let slash = directory.path().join("new.db/");
    let error = DraftStore::open(&slash).unwrap_err();
    assert!(matches!(error, LibrarianError::CannotCreate { .. }), "{error:?}");
    assert!(!directory.path().join("new.db").exists(), "a directory was asked for");
    let file = directory.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = DraftStore::open(file.join("drafts.db")).unwrap_err();
    assert!(error.to_string().contains(&*file.to_string_lossy()), "{error}");
    assert!(DraftStore::open("").is_err());
}

#[test]
fn the_error_names_a_directory_that_cannot_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let kept = directory.path().join("kept");
    let store = DraftStore::open(kept.join("drafts.db")).unwrap();
    store.submit(&draft("x")).unwrap();
    close(store);
    // Another user may read but not write. Root may do everything, so it becomes another user.
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(directory.path(), 0o755);
    mode(&kept.join("drafts.db"), 0o444);
    mode(&kept, 0o555);
    let mut wrapper: &[&str] = &[];
    // Without root there is one user, whose own file it is, and the WAL cannot be made.
    let mut existing = 74;
    if fs::metadata(&kept).unwrap().uid() == 0 {
        if !have("setpriv") {
            return;
        }
        existing = 78;
        wrapper = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
        let binary = env!("CARGO_BIN_EXE_draftq");
        let reached = Command::new(wrapper[0])
            .args(&wrapper[1..])
            .args(["test", "-x", binary])
            .status()
            .is_ok_and(|status| status.success());
        if !reached {
            println!("skipped: another user cannot reach {binary}");
            return;
        }
    }
    let (new, deeper) = (kept.join("new.db"), kept.join("deeper/new.db"));
    for (path, arguments, code) in [
        (&new, &["run", "--defer"][..], Some(73)),
        (&deeper, &["run", "--defer"], Some(73)),
        (&new, &["stats"], Some(66)),
        (&new, &["requeue", "00"], Some(66)),
        (&kept.join("drafts.db"), &["run", "--defer"], Some(existing)),
    ] {
        let output = draftq_behind(wrapper, path, arguments).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), code, "{}: {told}", path.display());
        assert!(told.contains(&*kept.to_string_lossy()), "{told}");
    }
    mode(&kept, 0o755);
    assert_eq!(tree(&kept).len(), 3, "nothing was left there");
}

/// SQLite syncs the directory of the file, and not those above it that are new, too.
#[test]
fn new_directories_are_on_the_disk_before_a_draft_is_acknowledged() {
    if !have("strace") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    let path = root.join("new/deeper/drafts.db");
    let log = root.join("log");
    let trace = ["strace", "-f", "-qq", "-y", "-e", "trace=fsync", "-o", log.to_str().unwrap()];
    let submitted = draftq_behind(&trace, &path, &["submit", "--text", "one"]).output().unwrap();
    assert!(submitted.status.success(), "{submitted:?}");
    let log = fs::read_to_string(log).unwrap();
    for synced in [&root, &root.join("new"), &root.join("new/deeper")] {
        assert!(log.contains(&format!("<{}>", synced.display())), "{}: {log}", synced.display());
    }
}
