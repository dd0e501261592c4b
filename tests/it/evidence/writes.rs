//! Each write of each command in turn: the process is killed there, or the write fails there.
//!
//! strace does this. It counts the calls of each thread separately, and a run writes from two
//! threads: the first opens and closes the database, the writer thread moves the drafts. So the
//! same calls are counted in several ways, so that each is met in one of them. If there is no
//! strace, or it may not trace, the tests print that they are skipped.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::audit::{check_no_runner_left, read_back};
use super::{Bench, Process, command_on, draft, killed_by};

/// Calls that change a file or make a change last, and which of them are counted.
#[derive(Clone, Copy)]
struct Target {
    call: &'static str,
    among: Among,
}

#[derive(Clone, Copy)]
enum Among {
    /// Those of each thread.
    Threads,
    /// Those of the first thread.
    FirstThread,
    /// Those of each thread on the write-ahead log.
    Wal,
}

/// The first three are enough for the short form.
const TARGETS: [Target; 13] = {
    const fn target(call: &'static str, among: Among) -> Target {
        Target { call, among }
    }
    [
        target("pwrite64", Among::Threads),
        target("pwrite64", Among::Wal),
        target("fsync", Among::Threads),
        target("pwrite64", Among::FirstThread),
        target("fsync", Among::FirstThread),
        target("fsync", Among::Wal),
        target("fdatasync", Among::Threads),
        target("fdatasync", Among::FirstThread),
        target("ftruncate", Among::Threads),
        target("unlink", Among::Threads),
        target("mkdir", Among::Threads),
        target("openat", Among::Threads),
        target("openat", Among::FirstThread),
    ]
};

#[test]
fn killed_at_a_write_short() {
    killed_at_a_write(&TARGETS[..3], 31);
}

#[test]
#[ignore = "minutes"]
fn killed_at_a_write_long() {
    killed_at_a_write(&TARGETS, 1);
}

/// A command that is killed has done all or nothing, what it printed is true, and
/// another try finishes it.
fn killed_at_a_write(targets: &[Target], step: usize) {
    if !strace_works() {
        return;
    }
    let mut kills = BTreeMap::new();
    for scene in &SCENES {
        let met = scene.at_each_call("signal=SIGKILL", targets, step, |trial| {
            let killed = killed_by(&trial.output, Signal::KILL);
            if !killed {
                let code = trial.output.status.code().unwrap();
                assert!(scene.done.contains(&code), "{}: {:?}", trial.context, trial.output);
            }
            killed
        });
        kills.insert(scene.name, met);
    }
    println!("{}", json!({ "evidence": "killed at a write", "step": step, "kills": kills }));
}

#[test]
fn a_failing_write_short() {
    a_failing_write(&TARGETS[..3], 37);
}

#[test]
#[ignore = "minutes"]
fn a_failing_write_long() {
    a_failing_write(&TARGETS, 1);
}

/// The same with a failing call, which the command must report.
fn a_failing_write(targets: &[Target], step: usize) {
    if !strace_works() {
        return;
    }
    let mut failures = BTreeMap::new();
    for scene in &SCENES {
        for error in ["EIO", "ENOSPC"] {
            let mut codes: BTreeMap<String, usize> = BTreeMap::new();
            scene.at_each_call(&format!("error={error}"), targets, step, |trial| {
                let code = trial.output.status.code().unwrap();
                let creates = ["mkdir", "openat", "pwrite64"].contains(&trial.target.call);
                let legal = match code {
                    73 => creates,
                    // The program's own files, or those of the program that it started.
                    127 => trial.target.call == "openat",
                    70 => scene.runs,
                    0 | 74 => true,
                    _ => false,
                };
                assert!(legal, "{}: {:?}", trial.context, trial.output);
                assert!(
                    code == 0
                        || !trial.output.stderr.is_empty()
                        || scene.done.contains(&code)
                        || code == 70,
                    "{}: {:?}",
                    trial.context,
                    trial.output
                );
                if trial.injected {
                    *codes.entry(format!("exit {code}")).or_default() += 1;
                }
                trial.injected
            });
            failures.insert(format!("{}, {error}", scene.name), codes);
        }
    }
    println!("{}", json!({ "evidence": "failing writes", "step": step, "failures": failures }));
}

/// A command under test, and its database.
struct Scene {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Prepares a new database for the command; `None` for no database.
    before: Option<fn(&Bench)>,
    /// The exit codes of a command that succeeded.
    done: &'static [i32],
    /// Whether it moves drafts one by one, and not all at once.
    runs: bool,
}

/// The result of one command.
struct Trial {
    context: String,
    target: Target,
    output: Output,
    /// Whether strace reached the call.
    injected: bool,
}

const SCENES: [Scene; 6] = [
    Scene {
        name: "first open",
        arguments: &["submit", "--json", "--text", "new"],
        before: None,
        done: &[0],
        runs: false,
    },
    Scene {
        name: "submit",
        arguments: &["submit", "--json", "--text", "new"],
        before: Some(three_drafts),
        done: &[0],
        runs: false,
    },
    Scene {
        name: "run",
        arguments: &["run", "--json", "-q", "--exit-code", "--", "true"],
        before: Some(three_drafts),
        done: &[0],
        runs: true,
    },
    Scene {
        name: "run --defer",
        arguments: &["run", "--json", "-q", "--defer"],
        before: Some(three_drafts),
        done: &[70],
        runs: true,
    },
    Scene {
        name: "run with errors",
        arguments: &["run", "--json", "-q", "--max-errors", "2", "--exit-code", "--", "false"],
        before: Some(a_dead_runner),
        done: &[70],
        runs: true,
    },
    Scene {
        name: "requeue",
        arguments: &["requeue", "--json", TO_REQUEUE],
        before: Some(one_accepted),
        done: &[0],
        runs: false,
    },
];

/// The id of the draft "draft 0".
const TO_REQUEUE: &str = "09e235d73be62af0";

fn three_drafts(bench: &Bench) {
    let store = bench.store();
    for n in 0..3 {
        store.submit(&draft(&format!("draft {n}"))).unwrap();
    }
}

fn one_accepted(bench: &Bench) {
    assert_eq!(draft("draft 0").id().to_hex(), TO_REQUEUE);
    three_drafts(bench);
    let output = bench.output(["run", "--json", "-q", "--limit", "1", "--exit-code", "--", "true"]);
    assert!(output.status.success(), "{output:?}");
}

fn a_dead_runner(bench: &Bench) {
    three_drafts(bench);
    let suicide = ["run", "--json", "-q", "--", "sh", "-c", "kill -9 $PPID"];
    assert!(killed_by(&bench.output(suicide), Signal::KILL));
}

/// The visible content of a database: each draft's state and the length of its history.
type Sight = BTreeMap<String, (String, usize)>;

fn sight(bench: &Bench) -> Sight {
    let rows = read_back(&bench.sql());
    rows.into_iter().map(|(id, row)| (id, (row.state, row.events.len()))).collect()
}

impl Scene {
    fn begin(&self, template: &Bench) -> Bench {
        let bench = Bench::new();
        if self.before.is_some() {
            copy(&template.path("q"), &bench.path("q"));
        }
        bench
    }

    /// The command once for each n-th of each call, with this done to it there, until no n-th
    /// call is met any more: which `check` says. How often it was met.
    fn at_each_call(
        &self,
        inject: &str,
        targets: &[Target],
        step: usize,
        mut check: impl FnMut(&Trial) -> bool,
    ) -> usize {
        let template = Bench::new();
        if let Some(before) = self.before {
            before(&template);
        }
        let before = match self.before {
            Some(_) => sight(&self.begin(&template)),
            None => Sight::new(),
        };
        let bench = self.begin(&template);
        let output = bench.output(self.arguments);
        assert!(self.done.contains(&output.status.code().unwrap()), "{output:?}");
        let after = sight(&bench);

        let mut met = 0;
        for &target in targets {
            for n in (1..).step_by(step) {
                let bench = self.begin(&template);
                let trial = self.with_strace(&bench, inject, target, n);
                let panicked = contains(&trial.output.stderr, "panicked");
                assert!(!panicked, "{}: {:?}", trial.context, trial.output);
                let go_on = check(&trial);
                self.check_what_is_left(&bench, &trial, &before, &after);
                if !go_on {
                    break;
                }
                met += 1;
            }
        }
        met
    }

    fn with_strace(&self, bench: &Bench, inject: &str, target: Target, n: usize) -> Trial {
        let Target { call, among } = target;
        let plain = command_on(&bench.db(), self.arguments);
        let trace = bench.path("trace");
        let mut command = Command::new("strace");
        command
            .args(["-qq", "-e", "signal=none", "-e", &format!("trace={call}")])
            .args(["-e", &format!("inject={call}:{inject}:when={n}"), "-o"])
            .arg(&trace);
        let what = match among {
            Among::Threads => "",
            Among::FirstThread => " of the first thread",
            Among::Wal => " on the WAL",
        };
        if !matches!(among, Among::FirstThread) {
            command.arg("-f");
        }
        if matches!(among, Among::Wal) {
            command.arg("-P").arg(bench.path("q/drafts.db-wal"));
        }
        command.arg("--").arg(plain.get_program()).args(plain.get_args()).env_remove("RUST_LOG");
        let output = Process::start_piped(&mut command).output();
        let injected = contains(&std::fs::read(trace).unwrap(), "(INJECTED)");
        let context = format!("{}, {inject} at {call} {n}{what}", self.name);
        Trial { context, target, output, injected }
    }

    /// Another process finds the database undamaged, with all acknowledged drafts, and the command
    /// can be given again.
    fn check_what_is_left(&self, bench: &Bench, trial: &Trial, before: &Sight, after: &Sight) {
        let Trial { context, output: tried, .. } = trial;
        let list = bench.output(["list", "--json", "--limit", "100"]);
        let left = match list.status.code() {
            // The command was killed before it created the file.
            Some(66) if self.before.is_none() => Sight::new(),
            code => {
                assert_eq!(code, Some(0), "{context}: {tried:?}, then {list:?}");
                sight(bench)
            }
        };
        if !self.runs {
            assert!(left == *before || left == *after, "{context}: {left:?}");
            if tried.stdout.ends_with(b"\n") {
                assert_eq!(left, *after, "{context}: {tried:?}");
            }
        }
        if let Ok(run) = serde_json::from_slice::<Value>(&tried.stdout)
            && let Some(items) = run["summary"]["items"].as_array()
        {
            for item in items {
                let state = &left[item["id"].as_str().unwrap()].0;
                assert_eq!(item["final_state"], **state, "{context}: {tried:?}");
            }
        }

        let again = bench.output(self.arguments);
        let code = again.status.code().unwrap();
        assert!(self.done.contains(&code) || code == 0, "{context}: {tried:?}, then {again:?}");
        let left = sight(bench);
        if self.runs {
            let states = |sight: &Sight| -> Vec<String> {
                sight.values().map(|(state, _)| state.clone()).collect()
            };
            // Errors of the first try may count towards the budget.
            if self.done == [0] {
                assert_eq!(states(&left), states(after), "{context}: {again:?}");
            }
            check_no_runner_left(bench);
        } else {
            assert_eq!(left, *after, "{context}: {again:?}");
        }
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Whether there is an strace that may trace here. One that fails for another reason fails the test:
/// a probe with a mistake in it would leave the test out everywhere.
fn strace_works() -> bool {
    let probe = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=getcwd"])
        .args(["-e", "inject=getcwd:error=EIO:when=100", "--", "true"])
        .output();
    match probe {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(errors.contains("not permitted"), "{errors}");
            println!("skipped: strace may not trace here: {errors}");
            false
        }
        Err(error) => {
            println!("skipped: strace cannot be started: {error}");
            false
        }
    }
}
