//! Programs do not outlive their runner, however it dies, because its guard kills them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use draftq::CommandProcessor;
use draftq::{DraftProcessingDecision, DraftProcessor as _};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getrlimit, kill_process, kill_process_group, setrlimit,
};
use serde_json::json;

use crate::harness::{Sandbox, draft, finish, have};

/// Longer than any step here takes, and shorter than the programs sleep.
const LIMIT: Duration = Duration::from_secs(60);

/// Starts a child in its group, holds a FIFO open as long as it lives, and prints that it has begun.
///
/// It reads the draft first, because it gets the draft only after the guard knows the program.
const PROGRAM: &str = "cat >/dev/null; exec 3>alive; echo begun >&3; sleep 900 & exec sleep 900";

/// A runner with running programs.
struct Runner {
    process: Child,
    /// Of all programs of all runners of this sandbox.
    alive: BufReader<File>,
}

impl Runner {
    fn start(sandbox: &Sandbox, jobs: usize, program: &str) -> Self {
        for n in 0..jobs {
            sandbox.store().submit(&draft(&format!("draft {n}"))).unwrap();
        }
        let jobs = jobs.to_string();
        let command = sandbox.command(["run", "--jobs", &jobs, "--", "sh", "-c", program]);
        Self::start_command(sandbox, command, jobs.parse().unwrap())
    }

    /// Start it, and wait until this many programs have begun.
    fn start_command(sandbox: &Sandbox, mut command: Command, programs: usize) -> Self {
        let alive = fifo(sandbox.path("alive"));
        let process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // Opening waits for the first program.
        let mut alive = BufReader::new(File::open(alive).unwrap());
        for _ in 0..programs {
            let mut line = String::new();
            alive.read_line(&mut line).unwrap();
            assert_eq!(line, "begun\n");
        }
        Self { process, alive }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// The guard of this runner; there is one at most.
    fn guard(&self) -> Option<Pid> {
        let guards: Vec<_> =
            children(self.pid()).into_iter().filter(|pid| is_guard(*pid)).collect();
        assert!(guards.len() <= 1, "{guards:?}");
        guards.first().copied()
    }

    /// Kill it, and wait for the end of its programs and its guard.
    fn die(mut self) {
        let guard = self.guard().expect("it has a guard");
        let killed = Instant::now();
        self.process.kill().unwrap();
        let mut alive = self.alive.get_ref().try_clone().unwrap();
        within_limit("its programs live on", move || alive.read_to_end(&mut Vec::new()).unwrap());
        let took = killed.elapsed();
        self.process.wait().unwrap();
        until("the guard lives on", || !is_there(guard));
        println!("{}", json!({"evidence": "killed runner", "programs_gone_ms": took.as_millis()}));
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // Both fail if it is reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn fifo(path: PathBuf) -> PathBuf {
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    path
}

/// Call the function, and fail if it takes too long.
#[track_caller]
fn within_limit<T: Send + 'static>(otherwise: &str, wait: impl FnOnce() -> T + Send + 'static) {
    let (done, waited) = mpsc::channel();
    thread::spawn(move || done.send(wait()));
    assert!(waited.recv_timeout(LIMIT).is_ok(), "{otherwise}");
}

#[track_caller]
fn until(otherwise: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "{otherwise}");
        thread::yield_now();
    }
}

/// A field of `/proc/PID/stat` by its number there, which is 3 or more.
fn stat(pid: Pid, field: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // pid (name) state ppid pgrp …
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(field - 3).map(str::to_owned)
}

fn is_there(pid: Pid) -> bool {
    stat(pid, 3).is_some_and(|state| state != "Z" && state != "X")
}

fn children(parent: Pid) -> Vec<Pid> {
    let parent = parent.to_string();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .filter(|pid| stat(*pid, 4).as_deref() == Some(&parent))
        .collect()
}

fn is_guard(pid: Pid) -> bool {
    let Ok(arguments) = fs::read_to_string(format!("/proc/{pid}/cmdline")) else { return false };
    is_there(pid) && arguments.contains("draftq: kills the programs")
}

/// What a process has open: the descriptors' numbers, and what they lead to.
fn open_files(pid: Pid) -> BTreeMap<u32, PathBuf> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    descriptors
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?))
        })
        .collect()
}

#[test]
fn the_programs_of_a_killed_runner_are_killed() {
    for jobs in [1, 4] {
        let sandbox = Sandbox::new();
        Runner::start(&sandbox, jobs, PROGRAM).die();
        // The next run processes its drafts.
        let ran = sandbox.draftq(["run", "--exit-code", "--", "true"]);
        assert_eq!(ran.expect(0).json()["summary"]["accepted"], jobs);
    }
}

#[test]
fn the_programs_of_a_killed_runner_with_200_jobs_are_killed() {
    let sandbox = Sandbox::new();
    Runner::start(&sandbox, 200, "cat >/dev/null; exec 3>alive; echo begun >&3; exec sleep 900")
        .die();
}

#[test]
fn a_program_that_left_its_group_is_killed() {
    if !have("python3") {
        return;
    }
    // It joins the group of a child of its own.
    let program = "cat >/dev/null; exec 3>alive; echo begun >&3; exec python3 -c '
import os, time
child = os.fork()
if child == 0:
    os.close(3)
    os.setpgid(0, 0)
    time.sleep(2)
    os._exit(0)
while True:
    try:
        os.setpgid(0, child)
        break
    except OSError:
        time.sleep(0.01)
print(\"moved\", file=open(\"alive\", \"w\"), flush=True)
time.sleep(900)'";
    let sandbox = Sandbox::new();
    let mut runner = Runner::start(&sandbox, 1, program);
    let mut line = String::new();
    runner.alive.read_line(&mut line).unwrap();
    assert_eq!(line, "moved\n");
    runner.die();
}

#[test]
fn the_programs_of_a_killed_library_user_are_killed() {
    const ROLE: &str = "DRAFTQ_TEST_LIBRARY_USER";
    if std::env::var_os(ROLE).is_some() {
        let args = vec!["-c".into(), PROGRAM.into()];
        let mut processor = CommandProcessor::new("sh".as_ref(), args).unwrap();
        let result = processor.process(&draft("text"));
        panic!("it was not killed: {result:?}");
    }
    let sandbox = Sandbox::new();
    let myself = std::env::current_exe().unwrap();
    let mut command = sandbox.command_of(myself.to_str().unwrap());
    command
        .env(ROLE, "")
        .args(["--exact", "guard::the_programs_of_a_killed_library_user_are_killed"]);
    Runner::start_command(&sandbox, command, 1).die();
}

/// As in a container that has a program and nothing else.
#[test]
fn without_a_shell_programs_run_unguarded() {
    if !rustix::process::geteuid().is_root() || !have("unshare") {
        println!("skipped: this needs root and unshare");
        return;
    }
    let sandbox = Sandbox::new();
    sandbox.submit("one");
    let script = format!(
        "mount --bind /dev/null \"$(readlink -f /bin/sh)\" && exec '{}' run --exit-code -- true",
        env!("CARGO_BIN_EXE_draftq")
    );
    let mut command = sandbox.command_of("unshare");
    command.args(["-m", "sh", "-c", &script]);
    let ran = finish(command, b"");
    assert!(ran.expect(0).err().contains("/bin/sh cannot be run"), "{}", ran.err());
    assert_eq!(ran.json()["summary"]["accepted"], 1);
}

/// Waits until `release` is opened, then accepts.
const WAITING: &str =
    r#"cat >/dev/null; exec 3>alive; echo begun >&3; cat <release; echo '{"decision":"accepted"}'"#;

fn release(sandbox: &Sandbox) {
    File::options().write(true).open(sandbox.path("release")).unwrap().write_all(b"").unwrap();
}

#[track_caller]
fn accepts(mut runner: Runner) {
    let mut stdout = String::new();
    runner.process.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert_eq!(runner.process.wait().unwrap().code(), Some(0));
    let document: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(document["summary"]["accepted"], 1, "{document}");
}

#[test]
fn a_guard_ends_with_its_runner() {
    let sandbox = Sandbox::new();
    fifo(sandbox.path("release"));
    let runner = Runner::start(&sandbox, 1, WAITING);
    let guard = runner.guard().unwrap();
    release(&sandbox);
    accepts(runner);
    until("the guard lingers", || !is_there(guard));
}

#[test]
fn a_guard_inherits_no_files_and_no_environment() {
    let sandbox = Sandbox::new();
    sandbox.submit("one");
    fifo(sandbox.path("release"));
    let mut command = sandbox.command_of("sh");
    command
        .env("SECRET", "canary")
        .args(["-c", r#"exec 5>mine; exec "$0" "$@""#, env!("CARGO_BIN_EXE_draftq")])
        .args(["run", "--", "sh", "-c", WAITING]);
    let runner = Runner::start_command(&sandbox, command, 1);
    let of_the_runner = open_files(runner.pid());
    assert_eq!(of_the_runner[&5], sandbox.path("mine").canonicalize().unwrap());
    assert!(of_the_runner.values().any(|file| file.ends_with("drafts.db")), "{of_the_runner:?}");
    let guard = runner.guard().unwrap();
    // All processes inherit the descriptors of the test, and a shell cannot close those above 9.
    let inherited = |number: &u32| *number > 9 && of_the_runner.contains_key(number);
    // It may not have reached its second line yet.
    until("it keeps files open", || {
        let mut files = open_files(guard);
        files.retain(|number, file| !inherited(number) || file.starts_with(sandbox.root()));
        let null = Path::new("/dev/null");
        files.keys().copied().eq([0, 1, 2]) && files[&1] == null && files[&2] == null
    });
    let of = |name: &str| format!("/proc/{guard}/{name}");
    assert_eq!(fs::read_link(of("cwd")).unwrap(), Path::new("/"));
    let environment = fs::read(of("environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("canary"));
    release(&sandbox);
    accepts(runner);
}

#[test]
fn signals_do_not_end_a_guard() {
    let sandbox = Sandbox::new();
    let runner = Runner::start(&sandbox, 1, PROGRAM);
    let guard = runner.guard().unwrap();
    assert_eq!(stat(guard, 5), Some(guard.to_string()), "a group of its own");
    // It first says which signals it ignores.
    until("it ignores too few signals", || {
        let status = fs::read_to_string(format!("/proc/{guard}/status")).unwrap();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
        [1, 2, 3, 10, 12, 13, 14, 15, 20].iter().all(|signal| ignored & 1 << (signal - 1) != 0)
    });
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::TSTP] {
        kill_process_group(guard, signal).unwrap();
    }
    runner.die();
}

#[test]
fn a_guard_that_is_killed_is_replaced_while_the_program_runs() {
    let sandbox = Sandbox::new();
    let runner = Runner::start(&sandbox, 2, PROGRAM);
    for _ in 0..3 {
        let first = runner.guard().unwrap();
        kill_process(first, Signal::KILL).unwrap();
        until("there is no new guard", || runner.guard().is_some_and(|guard| guard != first));
    }
    runner.die();

    let sandbox = Sandbox::new();
    fifo(sandbox.path("release"));
    let runner = Runner::start(&sandbox, 1, WAITING);
    kill_process(runner.guard().unwrap(), Signal::KILL).unwrap();
    release(&sandbox);
    accepts(runner);
}

/// Not about the guard, but about other resources that a program needs.
#[test]
fn a_lack_of_descriptors_charges_no_draft() {
    const ROLE: &str = "DRAFTQ_TEST_NO_DESCRIPTORS";
    if std::env::var_os(ROLE).is_none() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "guard::a_lack_of_descriptors_charges_no_draft";
        let output = command.env(ROLE, "").args(["--exact", name]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let accept = r#"echo '{"decision":"accepted"}'"#;
    let mut processor =
        CommandProcessor::new("sh".as_ref(), vec!["-c".into(), accept.into()]).unwrap();
    let old = getrlimit(Resource::Nofile);
    let first_free = u64::try_from(File::open("/dev/null").unwrap().as_raw_fd()).unwrap();
    let mut classes = BTreeSet::new();
    for free in 0..20 {
        let new = Rlimit { current: Some(first_free + free), ..old };
        setrlimit(Resource::Nofile, new).unwrap();
        let result = processor.process(&draft("text"));
        setrlimit(Resource::Nofile, old).unwrap();
        match result {
            Ok(decision) => {
                assert_eq!(decision, DraftProcessingDecision::Accepted);
                classes.insert("none".to_owned());
            }
            Err(error) => {
                assert!(!error.is_charged(), "with {free}: {error}");
                classes.insert(error.class().to_owned());
            }
        }
    }
    // Watching needs fewer descriptors than starting, so it fails only if several start at once.
    classes.remove("io");
    assert_eq!(classes, BTreeSet::from(["none", "spawn"].map(str::to_owned)));
}
