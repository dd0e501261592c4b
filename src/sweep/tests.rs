use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use tempfile::TempDir;

use super::read::{file_uri, has_changed, read_capped};
use super::walk::absolute;
use super::*;
use crate::error::LibrarianError;
use crate::metadata::{DraftMetadata, DraftSourceSurface, MAX_METADATA_BYTES};

const CANARY: &str = "canary: outside of the tree";

fn options() -> SweepOptions {
    SweepOptions::new(DraftMetadata::new(DraftSourceSurface::Directory, UNIX_EPOCH))
}

fn tree() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let outside = temp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret.md"), CANARY).unwrap();
    let tree = temp.path().join("tree");
    fs::create_dir(&tree).unwrap();
    (temp, tree)
}

fn write(path: PathBuf, content: impl AsRef<[u8]>) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path
}

fn fifo(path: &Path) {
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap();
}

/// Texts and reasons, each by path below the tree.
type TextsAndReasons = (BTreeMap<String, String>, BTreeMap<String, SkipReason>);

fn read(found: &SweepFiles, options: &SweepOptions, tree: &Path) -> TextsAndReasons {
    let below = |path: &Path| {
        path.strip_prefix(tree).map_or(path, |below| below).to_string_lossy().into_owned()
    };
    let mut result = TextsAndReasons::default();
    for swept in found.drafts(options) {
        let double = match swept {
            Swept::Draft(draft) => {
                assert!(!draft.raw_text().contains(CANARY), "read outside of the tree");
                let uri = draft.metadata().provenance_uri.clone().unwrap();
                let path = below(Path::new(uri.strip_prefix("file://").unwrap()));
                result.0.insert(path, draft.raw_text().to_owned()).is_some()
            }
            Swept::Skipped(file) => result.1.insert(below(&file.path), file.reason).is_some(),
        };
        assert!(!double, "a file came up twice");
    }
    assert_eq!(found.len(), result.0.len() + result.1.len());
    result
}

fn sweep(paths: &[&Path], tree: &Path) -> TextsAndReasons {
    read(&find(paths).unwrap(), &options(), tree)
}

fn names<T>(map: &BTreeMap<String, T>) -> Vec<&str> {
    map.keys().map(String::as_str).collect()
}

fn reasons(map: &BTreeMap<String, SkipReason>) -> Vec<(&str, SkipReason)> {
    map.iter().map(|(path, reason)| (path.as_str(), *reason)).collect()
}

#[test]
fn files_with_the_right_names_become_drafts_in_order() {
    let (_temp, tree) = tree();
    for name in ["b.md", "a.MD", "c.Markdown", "d.tXt", "sub.md/deep.md", ".hidden.md"] {
        write(tree.join(name), name);
    }
    for name in ["e.rs", "md", ".md", "f.md~", ".git/g.md", "sub.md/.h/i.md", "j.md.swp"] {
        write(tree.join(name), name);
    }
    let found = find(&[&tree]).unwrap();
    let options = options();
    let drafts = found.drafts(&options);
    assert_eq!(drafts.len(), 6);
    let texts: Vec<String> = drafts
        .map(|swept| match swept {
            Swept::Draft(draft) => draft.raw_text().to_owned(),
            Swept::Skipped(file) => panic!("{file:?}"),
        })
        .collect();
    let expected = [".hidden.md", "a.MD", "b.md", "c.Markdown", "d.tXt", "sub.md/deep.md"];
    assert_eq!(texts, expected);
}

#[test]
fn provenance_and_agent_are_those_of_the_file_version() {
    let (_temp, tree) = tree();
    let path = write(tree.join("a b%20ü.md"), "text");
    let found = find(&[tree.join(".")]).unwrap();
    let metadata = DraftMetadata::new(DraftSourceSurface::ClaudeMemory, UNIX_EPOCH);
    let options = SweepOptions::new(metadata);
    let Some(Swept::Draft(draft)) = found.drafts(&options).next() else { panic!("skipped") };
    assert_eq!(draft.metadata().provenance_uri, Some(format!("file://{}", path.to_str().unwrap())));
    assert_eq!(draft.metadata().source_agent.as_deref(), Some("claude"));
}

#[test]
fn content_is_kept_byte_for_byte_or_refused() {
    let (_temp, tree) = tree();
    let kept = ["\u{feff}mark", "a\r\nb\r\n", "a\0b", "\u{1b}[2J\u{202e}", " x "];
    for (i, text) in kept.iter().enumerate() {
        write(tree.join(format!("kept-{i}.md")), text);
    }
    for (name, bytes) in [
        ("0.md", &b""[..]),
        ("blank.md", b" \r\n\t\xc2\xa0"),
        ("mark.md", b"\xef\xbb\xbf\n"),
        ("latin1.md", b"caf\xe9"),
        ("utf16.md", b"\xff\xfeh\0i\0"),
        ("cut.md", b"abc\xe2\x82"),
    ] {
        write(tree.join(name), bytes);
    }
    let (drafts, skipped) = sweep(&[&tree], &tree);
    assert_eq!(drafts.into_values().collect::<Vec<_>>(), kept);
    assert_eq!(
        reasons(&skipped),
        [
            ("0.md", SkipReason::Empty),
            ("blank.md", SkipReason::Empty),
            ("cut.md", SkipReason::NotUtf8),
            ("latin1.md", SkipReason::NotUtf8),
            ("mark.md", SkipReason::Empty),
            ("utf16.md", SkipReason::NotUtf8),
        ]
    );
}

#[test]
fn the_limit_is_exact() {
    let (_temp, tree) = tree();
    write(tree.join("fits.md"), "x".repeat(1000));
    write(tree.join("over.md"), "x".repeat(1001));
    let sparse = File::create(tree.join("sparse.md")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let options = SweepOptions { max_text_bytes: 1000, ..options() };
    let (drafts, skipped) = read(&find(&[&tree]).unwrap(), &options, &tree);
    assert_eq!(names(&drafts), ["fits.md"]);
    let over = SkipReason::TooLarge;
    assert_eq!(reasons(&skipped), [("over.md", over), ("sparse.md", over)]);
}

#[test]
fn a_file_that_claims_no_size_is_read_up_to_the_limit() {
    let status = Path::new("/proc/self/status");
    assert_eq!(fs::metadata(status).unwrap().len(), 0);
    let found = find(&[status]).unwrap();
    let (drafts, _) = read(&found, &options(), Path::new("/proc"));
    assert_eq!(names(&drafts), ["self/status"]);
    let options = SweepOptions { max_text_bytes: 16, ..options() };
    let (_, skipped) = read(&found, &options, Path::new("/proc"));
    assert_eq!(reasons(&skipped), [("self/status", SkipReason::TooLarge)]);
}

#[test]
fn a_file_that_never_ends_costs_one_byte_more_than_the_limit() {
    struct Endless(usize);
    impl Read for &mut Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer.fill(b'x');
            self.0 += buffer.len();
            Ok(buffer.len())
        }
    }
    let mut endless = Endless(0);
    let skip = read_capped(&mut endless, 10, 5000).unwrap_err();
    assert_eq!(skip.reason, SkipReason::TooLarge);
    assert_eq!(endless.0, 5001);
}

#[test]
fn a_file_that_is_being_written_is_noticed() {
    let (_temp, tree) = tree();
    let path = write(tree.join("a.md"), "first half");
    let before = rustix::fs::stat(&path).unwrap();
    assert!(!has_changed(&before, &rustix::fs::stat(&path).unwrap()));
    fs::write(&path, "first half, second half").unwrap();
    assert!(has_changed(&before, &rustix::fs::stat(&path).unwrap()));
}

#[test]
fn links_are_not_followed() {
    let (temp, tree) = tree();
    let outside = temp.path().join("outside");
    write(tree.join("here/a.md"), "a");
    symlink("..", tree.join("here/loop")).unwrap();
    symlink(&tree, tree.join("loop.md")).unwrap();
    symlink("self.md", tree.join("self.md")).unwrap();
    symlink("gone.md", tree.join("dangling.md")).unwrap();
    symlink("here/a.md", tree.join("inside.md")).unwrap();
    symlink(&outside, tree.join("out")).unwrap();
    symlink(outside.join("secret.md"), tree.join("out.md")).unwrap();
    symlink("/dev/zero", tree.join("zero.txt")).unwrap();
    // Ignored without a report: a link to a file with another ending, a hidden directory.
    symlink("/dev/zero", tree.join("zero")).unwrap();
    symlink(&outside, tree.join(".out")).unwrap();
    let (drafts, skipped) = sweep(&[&tree], &tree);
    assert_eq!(names(&drafts), ["here/a.md"]);
    assert!(skipped.values().all(|reason| *reason == SkipReason::Symlink), "{skipped:?}");
    assert_eq!(
        names(&skipped),
        [
            "dangling.md",
            "here/loop",
            "inside.md",
            "loop.md",
            "out",
            "out.md",
            "self.md",
            "zero.txt"
        ]
    );
}

#[test]
fn special_files_are_not_opened() {
    let (_temp, tree) = tree();
    write(tree.join("a.md"), "a");
    fifo(&tree.join("fifo.md"));
    fifo(&tree.join("fifo"));
    let _socket = UnixListener::bind(tree.join("socket.md")).unwrap();
    let (drafts, skipped) = sweep(&[&tree], &tree);
    assert_eq!(names(&drafts), ["a.md"]);
    let special = SkipReason::NotRegular;
    assert_eq!(reasons(&skipped), [("fifo.md", special), ("socket.md", special)]);
    let (fifo, zero) = (tree.join("fifo"), Path::new("/dev/zero"));
    let (drafts, skipped) = sweep(&[&fifo, zero], &tree);
    assert!(drafts.is_empty());
    assert_eq!(reasons(&skipped), [("/dev/zero", special), ("fifo", special)]);
}

#[test]
fn a_tree_that_changes_after_the_walk_leads_nowhere() {
    let (temp, tree) = tree();
    let outside = temp.path().join("outside");
    for name in ["dir/secret.md", "fifo.md", "gone.md", "link.md", "saved.md", "socket.md"] {
        write(tree.join(name), "harmless");
    }
    let found = find(&[&tree]).unwrap();
    fs::rename(tree.join("dir"), tree.join("moved")).unwrap();
    symlink(&outside, tree.join("dir")).unwrap();
    for name in ["fifo.md", "gone.md", "link.md", "socket.md"] {
        fs::remove_file(tree.join(name)).unwrap();
    }
    fifo(&tree.join("fifo.md"));
    symlink(outside.join("secret.md"), tree.join("link.md")).unwrap();
    let _socket = UnixListener::bind(tree.join("socket.md")).unwrap();
    // Editors save by renaming: that is a new file, and the one to read.
    fs::rename(write(tree.join("tmp"), "new"), tree.join("saved.md")).unwrap();
    let (drafts, skipped) = read(&found, &options(), &tree);
    assert_eq!(drafts.into_iter().collect::<Vec<_>>(), [("saved.md".into(), "new".into())]);
    assert_eq!(
        reasons(&skipped),
        [
            ("dir/secret.md", SkipReason::Changed),
            ("fifo.md", SkipReason::NotRegular),
            ("gone.md", SkipReason::Changed),
            ("link.md", SkipReason::Symlink),
            ("socket.md", SkipReason::NotRegular),
        ]
    );
}

#[test]
fn a_tree_that_changes_all_the_time_leads_nowhere() {
    let (temp, tree) = tree();
    let outside = temp.path().join("outside");
    let traps = temp.path().join("traps");
    for name in ["dir/secret.md", "fifo.md", "link.md", "steady.md"] {
        write(tree.join(name), "harmless");
    }
    fs::create_dir(&traps).unwrap();
    symlink(&outside, traps.join("dir")).unwrap();
    symlink(outside.join("secret.md"), traps.join("link.md")).unwrap();
    fifo(&traps.join("fifo.md"));
    let exchange = || {
        for name in ["dir", "link.md", "fifo.md"] {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            let (here, there) = (tree.join(name), traps.join(name));
            rustix::fs::renameat_with(CWD, here, CWD, there, flags).unwrap();
        }
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                exchange();
            }
        });
        // The other thread must be stopped even if the sweep panics, or it would never end.
        let swept = std::panic::catch_unwind(|| {
            for _ in 0..300 {
                let (drafts, _) = sweep(&[&tree], &tree);
                assert!(drafts.contains_key("steady.md"));
            }
        });
        done.store(true, Ordering::Relaxed);
        swept.unwrap();
    });
}

#[test]
fn a_named_path_that_leads_elsewhere_after_the_walk_is_not_read() {
    let (temp, tree) = tree();
    let outside = temp.path().join("outside");
    let file = write(temp.path().join("file.md"), "harmless");
    write(tree.join("secret.md"), "harmless");
    let found = find(&[&tree, &file]).unwrap();
    fs::rename(&tree, temp.path().join("moved")).unwrap();
    symlink(&outside, &tree).unwrap();
    fs::remove_file(&file).unwrap();
    symlink(outside.join("secret.md"), &file).unwrap();
    let (drafts, skipped) = read(&found, &options(), temp.path());
    assert!(drafts.is_empty());
    let changed = SkipReason::Changed;
    assert_eq!(reasons(&skipped), [("file.md", changed), ("tree/secret.md", changed)]);
}

#[test]
fn a_named_path_is_taken_at_its_word() {
    let (temp, tree) = tree();
    write(tree.join(".hidden/a.md"), "a");
    let file = write(tree.join("notes"), "no extension");
    symlink(tree.join(".hidden"), temp.path().join("link")).unwrap();
    symlink(&file, temp.path().join("link.md")).unwrap();
    let (drafts, _) = sweep(&[&tree.join(".hidden"), &file], &tree);
    assert_eq!(names(&drafts), [".hidden/a.md", "notes"]);
    let links = [temp.path().join("link"), temp.path().join("link.md")];
    let (drafts, _) = sweep(&[&links[0], &links[1]], temp.path());
    assert_eq!(names(&drafts), ["link.md", "link/a.md"], "links in it are not resolved");
}

#[test]
fn a_file_reached_in_two_ways_is_taken_once() {
    let (temp, tree) = tree();
    let file = write(tree.join("dir/a.md"), "a");
    write(tree.join("dir/.hidden/b.md"), "b");
    symlink("a.md", tree.join("dir/link.md")).unwrap();
    symlink(&tree, temp.path().join("tree-link")).unwrap();
    let (drafts, skipped) = sweep(
        &[
            &tree.join("dir"),
            &tree.join("."),
            &file,
            &temp.path().join("tree-link"),
            &tree.join("dir/link.md"),
            &tree.join("dir/.hidden"),
            &temp.path().join("outside/../tree"),
        ],
        &tree,
    );
    assert_eq!(names(&drafts), ["dir/.hidden/b.md", "dir/a.md"]);
    assert!(skipped.is_empty(), "{skipped:?}");
    // Named first, a link to a file lends it its name.
    let (drafts, _) = sweep(&[&tree.join("dir/link.md"), &tree], &tree);
    assert_eq!(names(&drafts), ["dir/link.md"]);
    // Hard links are two files.
    fs::hard_link(&file, tree.join("dir/hard.md")).unwrap();
    let (drafts, _) = sweep(&[&tree, &tree], &tree);
    assert_eq!(names(&drafts), ["dir/a.md", "dir/hard.md"]);
}

#[test]
fn a_path_that_is_not_there_stops_the_sweep_before_it_begins() {
    let (_temp, tree) = tree();
    let missing = tree.join("missing");
    let dangling = tree.join("dangling");
    symlink("gone", &dangling).unwrap();
    for path in [missing.as_path(), &dangling, Path::new("")] {
        let error = find(&[tree.as_path(), path]).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::NotFound, "{error}");
        let LibrarianError::Io { doing: "sweep", path: named, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(named, path);
    }
    assert!(find::<PathBuf>(&[]).unwrap().is_empty());
}

#[test]
fn names_that_no_uri_can_hold_are_skipped() {
    let (_temp, tree) = tree();
    write(tree.join(OsStr::from_bytes(b"caf\xe9.md")), "file");
    write(tree.join(OsStr::from_bytes(b"dir\xff")).join("a.md"), "directory");
    write(tree.join("new\nline\u{1b}.md"), "odd, but UTF-8");
    let (drafts, skipped) = sweep(&[&tree], &tree);
    assert_eq!(names(&drafts), ["new\nline\u{1b}.md"]);
    let reason = SkipReason::NonUtf8Name;
    assert_eq!(reasons(&skipped), [("caf\u{fffd}.md", reason), ("dir\u{fffd}/a.md", reason)]);
    let path = Path::new("/").join("x".repeat(MAX_METADATA_BYTES - "file:///".len()));
    assert_eq!(file_uri(&path).unwrap().len(), MAX_METADATA_BYTES);
    let path = path.with_added_extension("x");
    assert_eq!(file_uri(&path).unwrap_err().reason, SkipReason::NameTooLong);
}

#[test]
fn deep_trees_are_swept_as_far_as_paths_reach() {
    let (_temp, tree) = tree();
    let deep = "d/".repeat(500);
    write(tree.join(&deep).join("a.md"), "deep");
    // Longer than any path may be: made step by step, found to be unreadable.
    let name = "n".repeat(255);
    let mut handle = rustix::fs::open(&tree, OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..20 {
        rustix::fs::mkdirat(&handle, &name, Mode::from_raw_mode(0o700)).unwrap();
        handle = rustix::fs::openat(&handle, &name, OFlags::PATH, Mode::empty()).unwrap();
    }
    let (drafts, skipped) = sweep(&[&tree], &tree);
    assert_eq!(names(&drafts), [format!("{deep}a.md")]);
    assert_eq!(skipped.into_values().collect::<Vec<_>>(), [SkipReason::Unreadable]);
}

#[test]
fn what_may_not_be_read_is_skipped_and_the_rest_goes_in() {
    // Modes mean nothing to root.
    if rustix::process::geteuid().is_root() {
        return;
    }
    let (_temp, tree) = tree();
    write(tree.join("a.md"), "a");
    let file = write(tree.join("file.md"), CANARY);
    let locked = [file, tree.join("list"), tree.join("search")];
    write(tree.join("list/b.md"), CANARY);
    write(tree.join("search/c.md"), CANARY);
    for (path, mode) in locked.iter().zip([0o000, 0o300, 0o600]) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let found = find(&[&tree]).unwrap();
    let (drafts, skipped) = read(&found, &options(), &tree);
    let options = options();
    let details = found.drafts(&options).filter_map(|swept| match swept {
        Swept::Skipped(file) => file.detail,
        Swept::Draft(_) => None,
    });
    let denied = "Permission denied (os error 13)";
    assert_eq!(details.collect::<Vec<_>>(), [denied; 3]);
    let (_, named) = sweep(&[&tree.join("list")], &tree);
    assert_eq!(reasons(&named), [("list", SkipReason::Unreadable)]);
    for path in &locked {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    assert_eq!(names(&drafts), ["a.md"]);
    let reason = SkipReason::Unreadable;
    assert_eq!(reasons(&skipped), [("file.md", reason), ("list", reason), ("search/c.md", reason)]);
}

#[test]
fn a_relative_path_that_climbs_is_resolved() {
    let here = std::env::current_dir().unwrap();
    let name = here.file_name().unwrap();
    assert_eq!(absolute(&Path::new("..").join(name).join("x")).unwrap(), here.join("x"));
    assert_eq!(absolute(Path::new("./x/.")).unwrap(), here.join("x"));
    assert_eq!(absolute(Path::new("/a/../b")).unwrap(), Path::new("/a/../b"));
}

#[test]
fn reasons_and_skipped_files_have_stable_names() {
    for reason in SkipReason::ALL {
        let json = serde_json::to_string(&reason).unwrap();
        assert_eq!(json, format!("\"{}\"", reason.as_str()));
    }
    let file = SkippedFile {
        path: PathBuf::from(OsStr::from_bytes(b"/caf\xe9.md")),
        reason: SkipReason::NonUtf8Name,
        detail: None,
    };
    assert_eq!(
        serde_json::to_string(&file).unwrap(),
        "{\"path\":\"/caf\u{fffd}.md\",\"reason\":\"non_utf8_name\",\"detail\":null}"
    );
}
