//! `sweep` through the binary: hostile trees, and the output.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use draftq::{Draft, DraftMetadata, DraftSourceSurface};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::harness::{Sandbox, finish};

/// `nobody` on most systems. Any user but root will do.
const STRANGER: u32 = 65534;

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// The reasons of a summary by file name.
fn reasons(summary: &Value) -> Vec<(String, String)> {
    let of = |file: &Value| {
        let path = Path::new(file["path"].as_str().unwrap());
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, file["reason"].as_str().unwrap().to_owned())
    };
    let mut reasons: Vec<_> = summary["skipped"].as_array().unwrap().iter().map(of).collect();
    reasons.sort();
    reasons
}

#[test]
fn the_summary_has_the_file_versions_names_and_more() {
    let sandbox = Sandbox::new();
    let kept = sandbox.file("notes/kept.md", "worth keeping");
    sandbox.file("notes/deep/er/also.TXT", "also kept");
    sandbox.file("notes/empty.markdown", " \n");
    sandbox.file("notes/.git/hidden.md", "in a hidden directory");
    sandbox.file("notes/program.rs", "another kind of file");
    let summary = sandbox.draftq(["sweep", "notes", "--tag", "t"]).expect(0).json();
    assert_eq!(
        (&summary["submitted"], &summary["skipped_empty"], &summary["already_present"]),
        (&json!(2), &json!(1), &json!(0))
    );
    let drafts = summary["drafts"].as_array().unwrap();
    assert_eq!(drafts.len(), 2);
    // Absolute although it was named relatively, and the id follows from it.
    let uri = format!("file://{}", kept.canonicalize().unwrap().display());
    let metadata = DraftMetadata {
        provenance_uri: Some(uri.clone()),
        ..DraftMetadata::new(DraftSourceSurface::Directory, std::time::SystemTime::now())
    };
    let id = Draft::with_metadata("worth keeping".into(), metadata).id().to_hex();
    let expected = json!({"id": id, "state": "pending", "created": true, "provenance_uri": uri});
    assert_eq!(drafts[1], expected, "sorted by name: deep comes before kept");
    assert_eq!(reasons(&summary), [("empty.markdown".to_owned(), "empty".to_owned())]);
    assert_eq!(sandbox.show(&id)["context_tags"], json!(["t"]));

    let again = sandbox.draftq(["sweep", "--path", "notes"]).expect(0).json();
    assert_eq!((&again["submitted"], &again["already_present"]), (&json!(0), &json!(2)), "{again}");
    assert!(again["drafts"].as_array().unwrap().iter().all(|draft| draft["created"] == false));

    // A changed file is another draft; the old one stays.
    fs::write(&kept, "worth keeping, and more").unwrap();
    let third = sandbox.draftq(["sweep", "notes"]).expect(0).json();
    assert_eq!((&third["submitted"], &third["already_present"]), (&json!(1), &json!(1)));
}

#[test]
fn a_hostile_tree_is_reported_and_does_not_block_the_sweep() {
    let sandbox = Sandbox::new();
    let canary = sandbox.file("outside/canary.md", "CANARY outside of the tree");
    sandbox.file("tree/good.md", "good");
    sandbox.file("tree/latin.txt", b"caf\xe9");
    sandbox.file("tree/huge.md", "x".repeat(2000));
    sandbox.file("tree/blank.md", "\u{feff} \n");
    sandbox.file("tree/bad\u{1b}[31m\u{202e}.md", "a name full of escapes");
    let strange = sandbox.path("tree").join(std::ffi::OsStr::from_bytes(b"strange\xff.md"));
    fs::write(strange, "a name that is not UTF-8").unwrap();
    fifo(&sandbox.path("tree/fifo.md"));
    let _socket = UnixListener::bind(sandbox.path("tree/socket.txt")).unwrap();
    symlink(&canary, sandbox.path("tree/link.md")).unwrap();
    symlink(sandbox.path("outside"), sandbox.path("tree/outside")).unwrap();
    symlink(".", sandbox.path("tree/loop")).unwrap();
    symlink("circle.md", sandbox.path("tree/circle.md")).unwrap();
    symlink("/dev/zero", sandbox.path("tree/zero.txt")).unwrap();

    let ran = sandbox.draftq(["sweep", "tree", "--max-text-bytes", "1000"]);
    let summary = ran.expect(0).json();
    assert_eq!(summary["submitted"], 2, "{summary}");
    let expected = [
        ("blank.md", "empty"),
        ("circle.md", "symlink"),
        ("fifo.md", "not_regular"),
        ("huge.md", "too_large"),
        ("latin.txt", "not_utf8"),
        ("link.md", "symlink"),
        ("loop", "symlink"),
        ("outside", "symlink"),
        ("socket.txt", "not_regular"),
        ("strange\u{fffd}.md", "non_utf8_name"),
        ("zero.txt", "symlink"),
    ];
    let expected = expected.map(|(name, reason)| (name.to_owned(), reason.to_owned()));
    assert_eq!(reasons(&summary), expected);
    let listed = sandbox.draftq(["list", "--json"]).expect(0).lines();
    assert_eq!(listed.len(), 2);
    for record in listed {
        let raw = sandbox.draftq(["show", record["id"].as_str().unwrap(), "--raw"]);
        assert!(!raw.out().contains("CANARY"));
    }

    let text = sandbox.draftq(["--format", "text", "sweep", "tree", "--max-text-bytes", "1000"]);
    assert!(text.expect(0).out().starts_with("0 drafts submitted, 2 already present, 11 files"));
    for shown in [&ran, &text] {
        let all = [shown.out(), shown.err()].concat();
        assert!(!all.contains(|c: char| c.is_control() && c != '\n'), "{all:?}");
        assert!(!all.contains(['\u{202e}', '\u{9b}']), "{all:?}");
    }
}

#[test]
fn a_named_path_is_taken_whatever_its_name() {
    let sandbox = Sandbox::new();
    sandbox.file("elsewhere/a.md", "through a link");
    sandbox.file("plain.log", "any name will do");
    symlink("elsewhere", sandbox.path("link")).unwrap();
    let summary = sandbox.draftq(["sweep", "link", "--path", "plain.log"]).expect(0).json();
    assert_eq!(summary["submitted"], 2, "{summary}");
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that is skipped is to say so")]
fn an_unreadable_file_is_skipped_and_the_others_are_submitted() {
    let sandbox = Sandbox::new();
    sandbox.file("tree/good.md", "good");
    let closed = sandbox.file("tree/closed.md", "not for everyone");
    let shut = sandbox.file("tree/shut/inside.md", "behind a closed door");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o0)).unwrap();
    fs::set_permissions(shut.parent().unwrap(), fs::Permissions::from_mode(0o0)).unwrap();

    let mut command = sandbox.command(["sweep", "tree"]);
    if rustix::process::geteuid().is_root() {
        // Root ignores modes, so the test becomes another user.
        for path in [sandbox.home(), sandbox.path("")] {
            fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o711)).unwrap();
            chown(path, Some(STRANGER), Some(STRANGER)).unwrap();
        }
        let as_stranger = |args: &[&str]| {
            let mut command = sandbox.command_of("setpriv");
            let ids = [format!("--reuid={STRANGER}"), format!("--regid={STRANGER}")];
            command.args(ids).arg("--clear-groups").arg(env!("CARGO_BIN_EXE_draftq")).args(args);
            command
        };
        if !as_stranger(&["--version"]).output().is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: this is root, and nobody else can be had or reaches the binary");
            return;
        }
        command = as_stranger(&["sweep", "tree"]);
    }
    let ran = finish(command, b"");
    fs::set_permissions(shut.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
    let summary = ran.expect(0).json();
    assert_eq!(summary["submitted"], 1, "{summary}");
    let expected = [("closed.md", "unreadable"), ("shut", "unreadable")];
    assert_eq!(reasons(&summary), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert!(summary["skipped"][0]["detail"].as_str().unwrap().contains("Permission denied"));
}

#[test]
fn some_surfaces_have_a_default_agent() {
    for (surface, agent) in [
        ("claude-memory", json!("claude")),
        ("codex_memory", json!("codex")),
        ("directory", Value::Null),
        ("repo-handoff", Value::Null),
        ("agent_export", Value::Null),
    ] {
        let sandbox = Sandbox::new();
        sandbox.file("a.md", "text");
        sandbox.draftq(["sweep", ".", "--source-surface", surface]).expect(0);
        let listed = sandbox.draftq(["list", "--json"]).expect(0).lines();
        assert_eq!(listed[0]["source_agent"], agent);
        assert_eq!(listed[0]["source_surface"], surface.replace('-', "_"));

        let sweep = ["sweep", ".", "--source-surface", surface, "--agent", "other"];
        assert_eq!(sandbox.draftq(sweep).expect(0).json()["submitted"], 1, "another source");
    }
}

#[test]
fn wrong_paths_and_surfaces_change_nothing() {
    let sandbox = Sandbox::new();
    sandbox.file("there/a.md", "text");
    let ran = sandbox.draftq(["sweep", "there", "missing"]);
    assert!(ran.expect(66).err().contains("missing"), "{}", ran.err());
    sandbox.draftq(["sweep"]).expect(64);
    let ran = sandbox.draftq(["sweep", "there", "--source-surface", "cli"]);
    assert!(ran.expect(64).err().contains("claude_memory"), "{}", ran.err());
    let ran = sandbox.draftq(["run", "--sweep", "missing", "--defer"]);
    assert!(ran.expect(66).err().contains("missing"), "{}", ran.err());
    assert!(!sandbox.db().exists());
}

#[test]
fn a_sweep_of_an_empty_directory_succeeds() {
    let sandbox = Sandbox::new();
    let summary = sandbox.draftq(["sweep", "."]).expect(0).json();
    let nothing = json!({"submitted": 0, "skipped_empty": 0, "already_present": 0,
        "drafts": [], "skipped": []});
    assert_eq!(summary, nothing);
}
