//! The effect of signals on a run, and of the file size limit on every command.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{Ran, Sandbox, finish};

/// Waits until `release` is opened, then accepts.
const WAITING: &str = r#"echo > started; cat < release; echo '{"decision":"accepted"}'"#;

/// A command that is processing the first of two drafts.
struct Underway {
    process: Child,
    stderr: BufReader<ChildStderr>,
    told: String,
}

impl Underway {
    fn start(sandbox: &Sandbox, mut command: Command) -> Self {
        for name in ["started", "release"] {
            let mode = Mode::from_raw_mode(0o600);
            mknodat(CWD, sandbox.path(name), FileType::Fifo, mode, 0).unwrap();
        }
        sandbox.submit("one");
        sandbox.submit("two");
        let mut process =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("draftq starts");
        let stderr = BufReader::new(process.stderr.take().unwrap());
        File::open(sandbox.path("started")).unwrap().read_to_end(&mut Vec::new()).unwrap();
        Self { process, stderr, told: String::new() }
    }

    fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Send the first signal, and wait for the answer to it.
    fn ask_to_finish(&mut self, signal: Signal) {
        self.signal(signal);
        while !self.told.contains("finishing the current drafts") {
            assert_ne!(self.stderr.read_line(&mut self.told).unwrap(), 0, "{}", self.told);
        }
    }

    fn end(mut self) -> Ran {
        let mut stdout = Vec::new();
        self.process.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        self.stderr.read_to_string(&mut self.told).unwrap();
        let code = self.process.wait().unwrap().code();
        Ran { code, stdout, stderr: std::mem::take(&mut self.told).into_bytes() }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        // Both fail if it is reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn release(sandbox: &Sandbox) {
    File::options().write(true).open(sandbox.path("release")).unwrap().write_all(b"").unwrap();
}

fn state(sandbox: &Sandbox, nth: usize) -> Value {
    let listed = sandbox.draftq(["list", "--json", "--oldest"]).expect(0).lines();
    listed[nth]["state"].clone()
}

const ENDING: [(Signal, i32); 4] =
    [(Signal::HUP, 129), (Signal::INT, 130), (Signal::QUIT, 131), (Signal::TERM, 143)];

#[test]
fn the_first_signal_lets_the_current_draft_finish() {
    for (command, expected) in [("run", 0), ("watch", 0)] {
        for (signal, _) in ENDING {
            let sandbox = Sandbox::new();
            let mut underway =
                Underway::start(&sandbox, sandbox.command([command, "--", "sh", "-c", WAITING]));
            underway.ask_to_finish(signal);
            release(&sandbox);
            let ran = underway.end();
            let document = &ran.expect(expected).lines()[0];
            assert_eq!(document["summary"]["accepted"], 1, "{document}");
            assert_eq!(state(&sandbox, 0), "accepted");
            assert_eq!(state(&sandbox, 1), "pending");
        }
    }
}

#[test]
fn the_second_signal_ends_at_once_with_its_own_code() {
    for (nth, (signal, code)) in ENDING.into_iter().enumerate() {
        let sandbox = Sandbox::new();
        let mut underway =
            Underway::start(&sandbox, sandbox.command(["run", "--", "sh", "-c", WAITING]));
        let (first, _) = ENDING[(nth + 1) % ENDING.len()];
        underway.ask_to_finish(first);
        underway.signal(signal);
        assert_eq!(underway.end().expect(code).out(), "");
        let ran = sandbox.draftq(["run", "--exit-code", "--", "true"]);
        let summary = &ran.expect(0).json()["summary"];
        assert_eq!(
            (&summary["recovered_processing"], &summary["accepted"]),
            (&json!(1), &json!(2))
        );
    }
}

#[test]
fn a_hangup_that_was_ignored_at_the_start_stays_ignored() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command_of("sh");
    let nohup = r#"trap '' HUP; exec "$0" run -- sh -c "$1""#;
    let program = r#"[ -e again ] || { touch again; echo > started; read -r line < release; }
        echo '{"decision":"accepted"}'"#;
    command.args(["-c", nohup, env!("CARGO_BIN_EXE_draftq"), program]);
    let mut underway = Underway::start(&sandbox, command);
    underway.signal(Signal::HUP);
    underway.signal(Signal::HUP);
    // Opened for reading and writing, so that the open does not block.
    let mut release = File::options().read(true).write(true).open(sandbox.path("release")).unwrap();
    release.write_all(b"\n").unwrap();
    let ran = underway.end();
    assert_eq!(ran.expect(0).json()["summary"]["accepted"], 2);
    assert!(!ran.err().contains("finishing"), "{}", ran.err());
}

/// Run this under a limit on the size of files, in KiB.
fn limited(sandbox: &Sandbox, kib: u32, args: &[&str], stdout: Option<File>) -> Ran {
    let mut command = sandbox.command_of("sh");
    // In POSIX the unit is 512 bytes.
    let script = format!(r#"ulimit -f {} && exec "$0" "$@""#, kib * 2);
    command.args(["-c", &script, env!("CARGO_BIN_EXE_draftq")]).args(args);
    match stdout {
        None => finish(command, b""),
        Some(file) => {
            let output = command.stdout(file).stderr(Stdio::piped()).output().unwrap();
            Ran { code: output.status.code(), stdout: Vec::new(), stderr: output.stderr }
        }
    }
}

#[test]
fn the_file_size_limit_is_an_error_and_kills_nothing() {
    let text = "x".repeat(100_000);
    // The first write of all, and those that come when the file is there.
    for kib in [0, 1, 4, 32, 64] {
        let sandbox = Sandbox::new();
        limited(&sandbox, kib, &["submit", "--text", &text], None).expect(74);
    }
    let sandbox = Sandbox::new();
    let id = sandbox.submit("one");
    let done = sandbox.submit("done");
    sandbox.draftq(["requeue", &done]).expect(0);
    sandbox.draftq(["run", "--limit=1", "--exit-code", "--", "true"]).expect(0);
    sandbox.submit("another");
    // 36 KiB are enough for the WAL's index but not for the text.
    for (kib, args) in [
        (4, &["submit", "--text", &text][..]),
        (36, &["submit", "--text", &text]),
        (4, &["run", "--exit-code", "--", "true"]),
        (4, &["run", "--defer"]),
        (4, &["watch", "--iterations=1", "--defer"]),
        (4, &["requeue", &id]),
    ] {
        let before = sandbox.draftq(["list", "--json"]).expect(0).out().to_owned();
        let ran = limited(&sandbox, kib, args, None);
        assert!(!ran.expect(74).err().is_empty(), "{args:?}");
        assert_eq!(sandbox.draftq(["list", "--json"]).expect(0).out(), before, "{args:?}");
    }
    // Standard output is a file as well. Reading needs to write nothing but an index of 32 KiB.
    fs::write(sandbox.path("out"), vec![b'x'; 100 * 1024]).unwrap();
    for args in [&["list"][..], &["show", &id], &["stats"], &["--help"]] {
        let out = File::options().append(true).open(sandbox.path("out")).unwrap();
        let ran = limited(&sandbox, 100, args, Some(out));
        assert!(ran.expect(74).err().contains("cannot write the output"), "{}", ran.err());
    }
}

#[test]
fn a_program_keeps_the_default_for_the_file_size_limit() {
    let sandbox = Sandbox::new();
    let id = sandbox.submit("one");
    let script = "ulimit -c 0; ulimit -f 1; exec head -c 100000 /dev/zero > big";
    sandbox.draftq(["run", "--", "sh", "-c", script]).expect(70);
    let error = sandbox.show(&id)["last_error"].as_str().unwrap().to_owned();
    assert!(error.contains("SIGXFSZ"), "{error}");
}
