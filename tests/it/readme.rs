//! What the README and the pages in docs/ show is run, and does what they say.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use draftq::{Draft, DraftMetadata, DraftSourceSurface, DraftState, DraftStore};
use rusqlite::Connection;

use crate::harness::{assert_whole, draftq, finish};

const README: &str = include_str!("../../README.md");
const PROCESSORS: &str = include_str!("../../docs/processors.md");
const OPERATIONS: &str = include_str!("../../docs/operations.md");
const REVIEW: &str = include_str!("../../docs/review.md");
const SQL: &str = include_str!("../../docs/sql.md");

/// The code blocks of a page in this language, in order.
fn blocks(page: &'static str, language: &str) -> Vec<&'static str> {
    let open = format!("```{language}\n");
    page.split(&open)
        .skip(1)
        .map(|rest| rest.split_once("```").expect("a block that is closed").0)
        .collect()
}

/// A directory with the files that a page's commands name.
struct Workplace {
    directory: tempfile::TempDir,
}

/// A command, its exit code, standard output and standard error.
type Ran = (String, Option<i32>, String, String);

impl Workplace {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let binary = Path::new(env!("CARGO_BIN_EXE_draftq"));
        let judge = binary.with_file_name("examples").join("judge");
        assert!(judge.exists(), "{} is not built; `cargo test` builds it", judge.display());
        fs::create_dir_all(root.join("target/release/examples")).unwrap();
        symlink(binary, root.join("target/release/draftq")).unwrap();
        symlink(judge, root.join("target/release/examples/judge")).unwrap();
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        symlink(examples, root.join("examples")).unwrap();
        Self { directory }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    fn run(&self, command: &str) -> Ran {
        let root = self.root();
        let path = std::env::var("PATH").unwrap();
        let output = Command::new("sh")
            .args(["-c", command])
            .current_dir(&root)
            .env_clear()
            .env("HOME", &root)
            .env("PATH", format!("{}:{path}", root.join("target/release").display()))
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (command.to_owned(), output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// Run the commands of a page's `sh` blocks, one after the other; each succeeds.
    fn run_all(&self, page: &'static str) -> Vec<Ran> {
        let mut all = Vec::new();
        for command in blocks(page, "sh").into_iter().flat_map(str::lines) {
            // Cargo built what is under test, and is running this.
            let command = match command.strip_prefix("cargo ") {
                Some(build) => match build.split_once(" && ") {
                    Some((_, command)) => command,
                    None => continue,
                },
                None => command,
            };
            let ran = self.run(command);
            assert_eq!(ran.1, Some(0), "{command}\n{}\n{}", ran.2, ran.3);
            all.push(ran);
        }
        all
    }
}

#[test]
fn the_commands_of_the_readme_run() {
    let place = Workplace::new();
    let ran = place.run_all(README);
    assert!(ran.len() >= 8, "{ran:#?}");
    let summary: serde_json::Value = serde_json::from_str(&ran[0].2).unwrap();
    for (name, drafts) in
        [("accepted", 10), ("skipped", 3), ("failed", 1), ("quarantined", 1), ("deferred", 0)]
    {
        assert_eq!(summary["summary"][name], drafts, "{summary:#}");
    }
    let shown = &ran.last().unwrap().2;
    assert!(shown.contains("accepted"), "{shown}");

    // A command with what it prints.
    let [block] = blocks(README, "console").try_into().expect("one block");
    let (command, printed) = block.strip_prefix("$ ").unwrap().split_once('\n').unwrap();
    let (_, _, stdout, stderr) = place.run(command);
    assert_eq!(stdout, printed, "{stderr}");
}

#[test]
fn the_commands_of_the_other_pages_run() {
    assert_eq!(Workplace::new().run_all(PROCESSORS).len(), 4);
    assert_eq!(Workplace::new().run_all(OPERATIONS).len(), 11);
    assert_eq!(Workplace::new().run_all(REVIEW).len(), 3);
}

#[test]
fn the_pages_link_to_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md"), root.join("benches/README.md")];
    pages.extend(fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut links = 0;
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            let target = link.0.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = page.parent().unwrap().join(target);
            assert!(path.exists(), "{} links to {target}", page.display());
            links += 1;
        }
    }
    assert!(links >= 10, "{links} links");
    let lines = README.lines().count();
    assert!(lines <= 200, "the README has {lines} lines");
}

fn hello() -> Draft {
    let metadata = DraftMetadata::new(DraftSourceSurface::Cli, std::time::SystemTime::now());
    Draft::with_metadata("hello".to_owned(), metadata)
}

#[test]
fn the_envelope_is_the_one_shown() {
    let shown: serde_json::Value = serde_json::from_str(blocks(PROCESSORS, "json")[0]).unwrap();
    let mut real: serde_json::Value = serde_json::from_str(&hello().to_envelope()).unwrap();
    real["submitted_at_unix_ms"] = shown["submitted_at_unix_ms"].clone();
    assert_eq!(shown, real);
}

#[test]
fn the_answer_shown_is_valid() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    DraftStore::open(&path).unwrap().submit(&hello()).unwrap();
    let mut run = draftq(&path);
    run.args(["run", "--", "printf", "%s", blocks(PROCESSORS, "json")[1]]);
    let ran = finish(run, b"");
    assert_eq!(ran.expect(70).json()["summary"]["deferred"], 1, "{}", ran.err());
}

#[test]
fn the_sql_works() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    let store = DraftStore::open(&path).unwrap();
    let id = hello().id();
    store.submit(&hello()).unwrap();
    store.transition(id, DraftState::Pending, DraftState::Processing).unwrap();
    store.transition(id, DraftState::Processing, DraftState::Skipped).unwrap();
    let [queries, moves, deletes] = blocks(SQL, "sql").try_into().expect("three blocks of SQL");

    let reader =
        Connection::open_with_flags(&path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    for query in queries.split(';').map(str::trim).filter(|query| !query.is_empty()) {
        let mut statement =
            reader.prepare(query).unwrap_or_else(|error| panic!("{query}: {error}"));
        let mut rows = statement.query([]).unwrap();
        while rows.next().unwrap().is_some() {}
    }

    let by_hand = Connection::open(&path).unwrap();
    by_hand.execute_batch(moves).unwrap();
    let (record, history, _) = store.inspect(id).unwrap();
    assert_eq!(record.state, DraftState::Accepted);
    assert_eq!(record.note.as_deref(), Some("read it myself"));
    let events: Vec<_> =
        history.iter().filter(|event| event.by_hand).map(|event| event.event.as_str()).collect();
    assert_eq!(events, ["requeued", "resolved"]);

    // Older than what is deleted there.
    by_hand.execute("UPDATE drafts SET updated_at = 5", []).unwrap();
    by_hand.execute_batch(deletes).unwrap();
    assert_eq!(store.stats().unwrap().drafts, 0);
    let again = store.submit(&hello()).unwrap();
    assert_eq!((again.state, again.created), (DraftState::Accepted, false));
    assert_whole(&path);
}

#[test]
fn every_table_and_view_is_documented() {
    let (_directory, store) = crate::harness::store();
    let connection = Connection::open(store.path()).unwrap();
    let mut statement = connection
        .prepare("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') ORDER BY name")
        .unwrap();
    let names = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    for name in names.map(Result::unwrap) {
        assert!(SQL.contains(&format!("`{name}`")), "{name} in docs/sql.md");
    }
}

#[test]
fn every_command_has_an_example_in_its_help() {
    let help = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_draftq")).args(arguments).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let commands = [
        "submit",
        "sweep",
        "run",
        "watch",
        "list",
        "show",
        "stats",
        "review",
        "decide",
        "requeue",
        "completions",
    ];
    let overview = help(&["--help"]);
    assert!(overview.contains("Examples:\n  draftq "), "{overview}");
    for command in commands {
        assert!(overview.contains(&format!("\n  {command}")), "{command} in {overview}");
        let text = help(&[command, "--help"]);
        assert!(text.contains(&format!("  draftq {command}")), "{text}");
        assert!(text.contains("Example"), "{text}");
    }
}

#[test]
fn the_exit_codes_are_those_of_the_help() {
    let output = Command::new(env!("CARGO_BIN_EXE_draftq")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for code in ["0", "64", "65", "66", "70", "73", "74", "75", "78", "129, 130, 131, 143"] {
        assert!(OPERATIONS.contains(&format!("\n| {code} | ")), "{code} in docs/operations.md");
        assert!(help.contains(&format!("{code} ")), "{code} in the help");
    }
}
