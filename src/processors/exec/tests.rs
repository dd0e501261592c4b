use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Instant, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::error::ProcessorError;
use crate::metadata::{DraftMetadata, DraftSourceSurface};

/// Far longer than any step here takes, also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn draft(text: impl Into<String>) -> Draft {
    let metadata = DraftMetadata::new(DraftSourceSurface::Cli, UNIX_EPOCH);
    Draft::with_metadata(text.into(), metadata)
}

fn sh(script: &str) -> CommandProcessor {
    CommandProcessor::new("sh".as_ref(), vec!["-c".into(), script.into()]).unwrap()
}

const ACCEPT: &str = r#"echo '{"decision":"accepted"}'"#;

fn ask(script: &str) -> Result<Outcome, ProcessorError> {
    ask_about(script, "text", SOON)
}

fn ask_about(script: &str, text: &str, limit: Duration) -> Result<Outcome, ProcessorError> {
    let start = Instant::now();
    let result = sh(script).with_timeout(limit).process_to_outcome(&draft(text));
    assert!(start.elapsed() < SOON, "{script}: {:?}", start.elapsed());
    result.map_err(|error| match error {
        LibrarianError::Processor(error) => error,
        other => panic!("{other}"),
    })
}

/// Run a script that never ends by itself, and return its standard error. On a busy
/// machine it may not write anything before its deadline; then it gets a later one.
#[track_caller]
fn time_out(script: &str) -> String {
    let mut limit = Duration::from_millis(200);
    loop {
        let error = ask_about(script, &"x".repeat(5_000_000), limit).unwrap_err();
        assert_eq!(error.class(), "timeout", "{error}");
        let message = format!("the program did not finish within {limit:?} and was killed");
        assert_eq!(error.to_string(), message);
        match error.detail() {
            Some(detail) => return detail.to_owned(),
            None => limit *= 3,
        }
    }
}

/// Wait until the processes of a group have ended: a signal takes its time, and a process without a
/// parent is a zombie until init reaps it.
#[track_caller]
fn assert_gone(group: &str) {
    let start = Instant::now();
    while is_there(group) {
        assert!(start.elapsed() < SOON, "group {group} is still there");
        thread::sleep(Duration::from_millis(5));
    }
}

fn is_there(group: &str) -> bool {
    assert!(group.parse::<u32>().is_ok_and(|group| group > 1), "{group}");
    fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        // pid (name) state ppid pgrp …
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { return false };
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        let state = fields.next().unwrap_or_default();
        fields.nth(1) == Some(group) && !matches!(state, "Z" | "X")
    })
}

#[test]
fn exit_code_0_without_an_answer_is_an_error_and_75_defers() {
    for code in 0..=255 {
        let result = ask(&format!("cat >/dev/null; echo done; echo oops >&2; exit {code}"));
        let error = match (code, result) {
            (75, result) => {
                assert_eq!(result.unwrap(), DraftProcessingDecision::Deferred.into());
                continue;
            }
            (_, result) => result.unwrap_err(),
        };
        assert_eq!(error.detail(), Some("oops"));
        let message = error.to_string();
        match code {
            0 => {
                assert_eq!(error.class(), "protocol");
                assert!(message.contains("exited with status 0"), "{message}");
                assert!(message.contains("is text") && message.contains("--exit-code"));
                assert!(message.contains(r#"such as {"decision":"accepted"}"#), "{message}");
            }
            69 => assert_eq!(error.class(), "unavailable"),
            _ => {
                assert_eq!(error.class(), "exit");
                assert_eq!(message, format!("the program exited with status {code}"));
            }
        }
        assert_eq!(error.is_charged(), code != 69);
    }
}

#[test]
fn the_exit_code_alone_can_decide() {
    let quarantined = r#"echo '{"decision":"quarantined"}'"#;
    for (script, expected) in [
        ("exit 0", Ok(DraftProcessingDecision::Accepted)),
        ("echo '{'; echo '{\"decison\"'", Ok(DraftProcessingDecision::Accepted)),
        (quarantined, Ok(DraftProcessingDecision::Accepted)),
        ("head -c 5000000 /dev/zero", Ok(DraftProcessingDecision::Accepted)),
        ("exit 75", Ok(DraftProcessingDecision::Deferred)),
        (&format!("{quarantined}; exit 75"), Ok(DraftProcessingDecision::Deferred)),
        ("exit 69", Err("unavailable")),
        (&format!("{quarantined}; exit 69"), Err("unavailable")),
        ("exit 1", Err("exit")),
        ("kill -9 $$", Err("signal")),
    ] {
        let mut processor = sh(script).decide_by_exit_code().with_timeout(SOON);
        match (processor.process(&draft("text")), expected) {
            (Ok(decision), expected) => assert_eq!(Ok(decision), expected, "{script}"),
            (Err(error), expected) => assert_eq!(Err(error.class()), expected, "{script}"),
        }
    }
}

#[test]
fn an_answer_must_agree_with_the_exit_code() {
    let print = |decision| format!(r#"echo '{{"decision":"{decision}","note":"n"}}'"#);
    for decision in DraftProcessingDecision::ALL {
        let answer = print(decision.as_str());
        let outcome = ask(&answer).unwrap();
        assert_eq!((outcome.decision(), outcome.note()), (decision, Some("n")));
        match ask(&format!("{answer}; exit 75")) {
            Ok(outcome) => {
                assert_eq!(decision, DraftProcessingDecision::Deferred);
                assert_eq!((outcome.decision(), outcome.note()), (decision, Some("n")));
            }
            Err(error) => {
                assert_ne!(decision, DraftProcessingDecision::Deferred);
                assert_eq!(error.class(), "protocol");
                assert!(error.to_string().contains("status 75"), "{error}");
            }
        }
        let error = ask(&format!("{answer}; exit 69")).unwrap_err();
        assert!(error.class() == "protocol" && error.to_string().contains("status 69"), "{error}");
        assert!(error.is_charged());
        assert_eq!(ask(&format!("{answer}; exit 1")).unwrap_err().class(), "exit");
        assert_eq!(ask(&format!("{answer}; kill -TERM $$")).unwrap_err().class(), "signal");
    }
    for code in [69, 75] {
        for broken in [r#"{"decison":"deferred"}"#, r#"{"decision":"deferred"}\nbye"#, "{"] {
            let error = ask(&format!("printf '{broken}\n'; exit {code}")).unwrap_err();
            assert_eq!(error.class(), "protocol", "{broken}");
        }
    }
}

#[test]
fn a_program_that_is_unavailable_is_no_fault_of_the_draft() {
    let answer = r#"echo '{"unavailable":"no \u001b key"}'; echo oops >&2"#;
    for script in [answer, &format!("{answer}; exit 69")] {
        let error = ask(script).unwrap_err();
        assert_eq!((error.class(), error.is_charged()), ("unavailable", false));
        assert!(!error.to_string().contains("key"), "{error}");
        assert_eq!(error.detail(), Some("no \\u{1b} key\noops"));
    }
    assert_eq!(ask(&format!("{answer}; exit 75")).unwrap_err().class(), "protocol");
    assert_eq!(ask(&format!("{answer}; exit 1")).unwrap_err().class(), "exit");
}

/// Outputs that may be meant as "quarantined" and are not a valid answer.
#[test]
fn an_invalid_answer_is_never_accepted() {
    let object = r#"{"decision":"quarantined"}"#;
    for (shape, printed, why) in [
        ("nothing", String::new(), "nothing was printed"),
        ("blank lines", "\n \r\n".into(), "nothing was printed"),
        ("misspelt key", r#"{"decison":"quarantined"}"#.into(), "unknown key"),
        ("another key", r#"{"decision":"accepted","risk":"high"}"#.into(), "unknown key"),
        ("key in capitals", r#"{"Decision":"quarantined"}"#.into(), "not in lower case"),
        ("value in capitals", r#"{"decision":"Quarantined"}"#.into(), "none of accepted"),
        ("array", format!("[{object}]"), "an array"),
        ("nested result", format!(r#"{{"result":{object}}}"#), "unknown key"),
        ("bare word", "quarantined".into(), "is text"),
        ("JSON string", "\"quarantined\"".into(), "no object"),
        ("prefix", format!("Decision: {object}"), "is text"),
        ("fenced block", format!("```json\n{object}\n```"), "line after the answer"),
        ("fenced pretty", "```\n{\n\"x\":\n1}\n```".into(), "fenced block"),
        ("pretty", "{\n  \"decision\": \"quarantined\"\n}".into(), "on one line"),
        ("line after", format!("{object}\nbye"), "line after the answer"),
        ("two decisions", format!("{object}\n{{\"decision\":\"accepted\"}}"), "two answers"),
        ("two on a line", format!("{object}{{\"decision\":\"accepted\"}}"), "same line"),
        ("byte order mark", format!("\u{feff}{object}"), "byte order mark"),
        ("trailing comma", r#"{"decision":"quarantined",}"#.into(), "comma"),
        ("single quotes", "{'decision':'quarantined'}".into(), "double quotes"),
        ("NaN", r#"{"decision":"quarantined","output":NaN}"#.into(), "NaN"),
        ("key twice", r#"{"decision":"quarantined","decision":"accepted"}"#.into(), "twice"),
        ("cut off", r#"{"decision":"quarantined""#.into(), "too early"),
        ("no decision", "{}".into(), "no decision"),
        ("null", r#"{"decision":null}"#.into(), "none of accepted"),
        ("other id", r#"{"id":"0123456789abcdef","decision":"accepted"}"#.into(), "its id"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("printed");
        fs::write(&file, format!("{printed}\n")).unwrap();
        let error = ask(&format!("cat '{}'", file.display())).expect_err(shape);
        assert_eq!((error.class(), error.is_charged()), ("protocol", true), "{shape}");
        let message = error.to_string();
        assert!(message.contains(why), "{shape}: {message}");
        assert!(
            message.contains("expected one JSON object as the last line"),
            "{shape}: {message}"
        );
        for content in ["quarantined", "decison", "bye", "risk", "high", "0123"] {
            let told = message.replace("failed, quarantined and", "");
            assert!(!told.contains(content), "{shape}: {message}");
        }
    }
    for fine in [format!("{object}\r"), format!("thinking\n{{\"n\":1}}\r\n\r\n {object}\r\n\n")] {
        let outcome = ask(&format!("printf '%s\n' '{fine}'")).unwrap();
        assert_eq!(outcome.decision(), DraftProcessingDecision::Quarantined, "{fine}");
    }
}

#[test]
fn the_error_names_the_signal() {
    for (name, number) in
        [("HUP", 1), ("INT", 2), ("ABRT", 6), ("KILL", 9), ("SEGV", 11), ("PIPE", 13), ("TERM", 15)]
    {
        let error = ask(&format!("ulimit -c 0; echo $$ >&2; kill -{name} $$")).unwrap_err();
        assert_eq!(error.class(), "signal");
        let message = format!("the program was killed by signal {number} (SIG{name})");
        assert_eq!(error.to_string(), message);
        assert_gone(error.detail().unwrap());
    }
}

#[test]
fn the_program_reads_the_envelope_and_then_the_end() {
    let text = "line\n\"quoted\" \u{1b} \u{2028} end";
    let script = r#"IFS= read -r line; rest=$(wc -c)
        printf '{"decision":"accepted","note":"%d","output":%s}\n' "$rest" "$line""#;
    let outcome = ask_about(script, text, SOON).unwrap();
    assert_eq!(outcome.output(), Some(draft(text).to_envelope().as_str()));
    assert_eq!(outcome.note(), Some("0"));
}

#[test]
fn the_text_is_on_standard_input_alone() {
    let script = r#"cat /proc/$$/cmdline /proc/$$/environ | grep -q 'can[a]ry' && exit 3
        grep -q 'can[a]ry' || exit 4
        echo '{"decision":"accepted"}'"#;
    assert_eq!(
        ask_about(script, "canary", SOON).unwrap(),
        Outcome::new(DraftProcessingDecision::Accepted)
    );
}

#[test]
fn arguments_are_passed_unchanged() {
    let args = ["-c", r#"[ "$0|$1|$2" = 'a b|$HOME;*|' ]"#, "a b", "$HOME;*", ""];
    let args = args.map(OsString::from).to_vec();
    let mut processor = CommandProcessor::new("sh".as_ref(), args).unwrap().decide_by_exit_code();
    processor.process(&draft("text")).unwrap();
}

#[test]
fn a_program_need_not_read_its_input() {
    let text = "x".repeat(5_000_000);
    for script in ["true", "exec <&-; sleep 0.05", "head -c 100 >/dev/null", "sleep 0.05"] {
        let script = format!("{script}; {ACCEPT}");
        let outcome = ask_about(&script, &text, SOON).unwrap();
        assert_eq!(outcome.decision(), DraftProcessingDecision::Accepted, "{script}");
    }
}

#[test]
fn a_program_may_answer_at_length_before_it_reads() {
    let script = r#"head -c 900000 /dev/zero | tr '\0' y; echo; head -c 900000 /dev/zero >&2
        [ "$(wc -c)" -gt 5000000 ] && echo '{"decision":"skipped"}'"#;
    let outcome = ask_about(script, &"x".repeat(5_000_000), SOON).unwrap();
    assert_eq!(outcome.decision(), DraftProcessingDecision::Skipped);
}

#[test]
fn the_output_has_a_limit() {
    let answer = "\n{\"decision\":\"accepted\"}\n";
    let print = |bytes| {
        let bytes = bytes - answer.len();
        format!("cat >/dev/null; head -c {bytes} /dev/zero; echo; {ACCEPT}")
    };
    assert!(ask(&print(MAX_OUTPUT_BYTES)).is_ok());
    let error = ask(&print(MAX_OUTPUT_BYTES + 1)).unwrap_err();
    assert_eq!(error.class(), "output_too_large");
}

#[test]
fn a_flood_is_stopped() {
    let error = ask("echo $$ >&2; exec yes").unwrap_err();
    assert_eq!(error.class(), "output_too_large");
    assert_gone(error.detail().unwrap());

    let tail = time_out("yes 'y\u{1b}' >&2");
    assert!(tail.len() <= STDERR_TAIL_BYTES && tail.ends_with("y\\u{1b}"), "{tail}");

    let error = ask("trap '' TERM; yes >&2 & yes & yes >&2").unwrap_err();
    assert_eq!(error.class(), "output_too_large");
}

#[test]
fn a_program_that_hangs_is_killed_with_its_group() {
    for script in [
        "echo $$ >&2; sleep 1000",
        "echo $$ >&2; exec sleep 1000",
        "echo $$ >&2; sleep 1000 | sleep 1000 & sleep 1000",
        "trap '' HUP INT QUIT TERM PIPE; echo $$ >&2; while :; do sleep 1000; done",
        "echo $$ >&2; exec 0<&- 1>&- 2>&-; sleep 1000",
        "echo $$ >&2; kill -STOP $$",
        "echo $$ >&2; echo '{\"decision\":\"accepted\"}'; sleep 1000",
    ] {
        assert_gone(&time_out(script));
    }
}

#[test]
fn a_time_limit_may_be_beyond_the_clock() {
    let mut processor = sh("true").decide_by_exit_code().with_timeout(Duration::MAX);
    assert!(processor.process(&draft("text")).is_ok());
    let mut processor = sh("true").decide_by_exit_code().with_timeout(None);
    assert!(processor.process(&draft("text")).is_ok());
}

#[test]
fn a_child_that_holds_the_pipes_does_not_block() {
    let start = Instant::now();
    let outcome = ask(r#"sleep 1000 & printf '{"decision":"skipped","note":"%d"}' $$"#).unwrap();
    assert!(start.elapsed() < SOON);
    assert_eq!(outcome.decision(), DraftProcessingDecision::Skipped);
    assert_gone(outcome.note().unwrap());

    let error = ask("yes >&2 & sleep 1000 & printf 'group %d\\n' $$; exit 3").unwrap_err();
    assert_eq!(error.class(), "exit");
    // How much the child writes in its grace time is not known.
    if let Err(error) = ask("yes & exit 0") {
        assert_eq!(error.class(), "output_too_large");
    }
}

#[test]
fn a_child_without_pipes_is_killed() {
    let script = r#"sleep 1000 >/dev/null 2>&1 & printf '{"decision":"skipped","note":"%d"}' $$"#;
    assert_gone(ask(script).unwrap().note().unwrap());
}

#[test]
fn a_child_in_another_group_does_not_block() {
    let script = r#"setsid sleep 300 & printf '{"decision":"skipped","note":"%d"}' $!"#;
    let outcome = ask(script).unwrap();
    let pid = outcome.note().unwrap().parse().ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn an_answer_that_breaks_the_rules_is_an_error_without_a_quote() {
    for answer in [r#"{"decision":"canary"}"#, r#"{"decision":"accepted","canary"#, "canary\n}"] {
        let error = ask(&format!("echo 'why' >&2; echo '{answer}'")).unwrap_err();
        assert_eq!(error.class(), "protocol");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
        assert_eq!(error.detail(), Some("why"));
    }
    assert_eq!(ask(r"printf '\377\376\n'").unwrap_err().class(), "protocol");
    assert!(ask(r#"printf '\377\n{"decision":"failed"}'"#).is_ok());
}

#[test]
fn a_program_is_found_when_the_processor_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    let kind = |program: &Path| match CommandProcessor::new(program.as_os_str(), Vec::new()) {
        Ok(_) => None,
        Err(LibrarianError::Io { doing: "run", source, .. }) => Some(source.kind()),
        Err(other) => panic!("{other}"),
    };
    assert_eq!(kind(&path), Some(io::ErrorKind::NotFound));
    fs::write(&path, "#!/bin/sh\necho '{\"decision\":\"failed\"}'\n").unwrap();
    assert_eq!(kind(&path), Some(io::ErrorKind::PermissionDenied));
    assert_eq!(kind(&path.join("below")), Some(io::ErrorKind::NotFound));
    assert_eq!(kind(dir.path()), Some(io::ErrorKind::PermissionDenied));
    assert_eq!(kind(Path::new("")), Some(io::ErrorKind::NotFound));
    assert_eq!(kind(Path::new("./no-such-program")), Some(io::ErrorKind::NotFound));
    assert_eq!(kind(Path::new("no-such-program-in-path")), Some(io::ErrorKind::NotFound));
    assert_eq!(kind(Path::new("sh")), None);

    fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    let mut processor = CommandProcessor::new(path.as_os_str(), Vec::new()).unwrap();
    let decision = processor.process(&draft("text")).unwrap();
    assert_eq!(decision, DraftProcessingDecision::Failed);
}

#[test]
fn a_program_that_cannot_be_started_is_no_fault_of_the_draft() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"#!/bin/sh\n").unwrap();
    file.set_permissions(Permissions::from_mode(0o700)).unwrap();
    let mut processor =
        CommandProcessor::new(path.as_os_str(), Vec::new()).unwrap().decide_by_exit_code();
    let mut refused = |word: &str| {
        let error = processor.process(&draft("text")).unwrap_err();
        assert_eq!((error.class(), error.is_charged()), ("spawn", false), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    // A program that is open for writing cannot be started; the start is retried for a while.
    let begun = Instant::now();
    refused("busy");
    assert!(begun.elapsed() >= Duration::from_millis(60), "{:?}", begun.elapsed());
    drop(file);
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    refused("ermission denied");
    fs::write(&path, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    refused("No such file");
    fs::write(&path, "#!/bin/sh\n").unwrap();
    assert!(processor.process(&draft("text")).is_ok());

    fs::remove_file(&path).unwrap();
    let error = processor.process(&draft("text")).unwrap_err();
    assert_eq!((error.class(), error.is_charged()), ("spawn", false), "{error}");
}

/// A registry as in a process of its own.
fn new_registry() -> &'static Registry {
    Box::leak(Box::new(Registry::new()))
}

#[test]
fn a_guard_that_does_not_read_is_replaced_and_kills_nothing() {
    let registry = new_registry();
    let dir = tempfile::tempdir().unwrap();
    let (started, release) = (dir.path().join("started"), dir.path().join("release"));
    for path in [&started, &release] {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
    }
    let script = format!("echo > '{}'; cat < '{}'; {ACCEPT}", started.display(), release.display());
    let mut long = sh(&script);
    long.registry = registry;
    let mut short = sh(ACCEPT);
    short.registry = registry;
    thread::scope(|scope| {
        let running = scope.spawn(move || long.process(&draft("long")).unwrap());
        fs::read(&started).unwrap();
        let first = registry.with_guard(|guard| {
            kill_process(guard.process(), Signal::STOP).unwrap();
            // More than a pipe holds, about a slot without a program.
            while guard.send(1, None).is_ok() {}
            guard.process()
        });
        let decision = short.process(&draft("short")).unwrap();
        assert_eq!(decision, DraftProcessingDecision::Accepted);
        assert_ne!(registry.with_guard(|guard| guard.process()), first);
        assert!(!Path::new(&format!("/proc/{first}")).exists(), "the first one is not reaped");
        // The running program is not killed, and the new guard has it in its list.
        assert_eq!(registry.len(), 1);
        fs::write(&release, "").unwrap();
        assert_eq!(running.join().unwrap(), DraftProcessingDecision::Accepted);
    });
    assert_eq!(registry.len(), 0);
}

#[test]
fn the_guard_is_informed_of_each_start_and_end() {
    let registry = new_registry();
    let mut processor = sh(r#"printf '{"decision":"accepted","note":"%d"}' $$"#);
    processor.registry = registry;
    processor.process(&draft("text")).unwrap();
    // From now on its lines stay in the pipe, for this test to read.
    let guard = registry.with_guard(|guard| {
        let flags = rustix::fs::fcntl_getfl(&*guard.pipe()).unwrap();
        assert!(flags.contains(rustix::fs::OFlags::NONBLOCK), "a stopped guard would stop us");
        kill_process(guard.process(), Signal::STOP).unwrap();
        guard.process()
    });
    let options = rustix::process::WaitIdOptions::STOPPED;
    rustix::process::waitid(rustix::process::WaitId::Pid(guard), options).unwrap();
    let mut expected = String::new();
    for _ in 0..2 {
        let outcome = processor.process_to_outcome(&draft("text")).unwrap();
        expected += &format!("0 {}\n0\n", outcome.note().unwrap());
    }
    let mut told = vec![0; 4096];
    let length = File::open(format!("/proc/{guard}/fd/0")).unwrap().read(&mut told).unwrap();
    let told = String::from_utf8_lossy(&told[..length]).into_owned();
    // Lines of the first program may come before, if the guard was stopped while it read them.
    assert!(told.ends_with(&expected), "{told:?} {expected:?}");
}

#[test]
fn a_program_may_kill_its_own_group_or_the_guard() {
    let registry = new_registry();
    let ask = |script: &str| {
        let mut processor = sh(script).with_timeout(SOON);
        processor.registry = registry;
        processor.process_to_outcome(&draft("text"))
    };
    let error = ask(&format!("{ACCEPT}; kill -9 0")).unwrap_err();
    assert_eq!(error.class(), "signal");
    for _ in 0..3 {
        let guard = registry.with_guard(|guard| guard.process());
        // It is replaced while the program runs, and reaped.
        let kill = format!("kill -9 {guard}; while [ -e /proc/{guard} ]; do :; done");
        let outcome = ask(&format!("{kill}; {ACCEPT}")).unwrap();
        assert_eq!(outcome.decision(), DraftProcessingDecision::Accepted);
        assert_ne!(registry.with_guard(|guard| guard.process()), guard);
    }
}

#[test]
fn all_programs_can_be_killed_at_once() {
    let registry = new_registry();
    let groups = tempfile::tempdir().unwrap();
    let script = format!("touch '{}'/$$; sleep 1000 & sleep 1000", groups.path().display());
    let mut processor = sh(&script);
    processor.registry = registry;
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let mut processor = processor.clone();
            thread::spawn(move || processor.process_to_outcome(&draft("text")).unwrap())
        })
        .collect();
    while registry.len() < workers.len() {
        thread::yield_now();
    }
    registry.stop();
    for worker in workers {
        let outcome = worker.join().unwrap();
        assert_eq!(outcome.decision(), DraftProcessingDecision::Deferred);
        assert!(outcome.note().unwrap().contains("stopped"));
    }
    assert_eq!(registry.len(), 0);
    // One may have been killed before it printed its group.
    for group in fs::read_dir(groups.path()).unwrap() {
        assert_gone(group.unwrap().file_name().to_str().unwrap());
    }
    // No more programs are started.
    assert_eq!(processor.process(&draft("text")).unwrap(), DraftProcessingDecision::Deferred);
}

#[test]
fn a_program_that_left_its_group_is_killed_with_all_others() {
    if !has_python() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let moved = place.path().join("moved");
    let processor = leaves_its_group(&format!("open('{}', 'w'); time.sleep(900)", moved.display()));
    let mut processor = processor.with_timeout(SOON * 2);
    let registry = processor.registry;
    let worker = thread::spawn(move || processor.process(&draft("text")).unwrap());
    while !moved.exists() {
        assert!(!worker.is_finished(), "it did not start");
        thread::yield_now();
    }
    let stopped = Instant::now();
    registry.stop();
    assert_eq!(worker.join().unwrap(), DraftProcessingDecision::Deferred);
    assert!(stopped.elapsed() < SOON, "{:?}", stopped.elapsed());
}

#[test]
fn a_program_that_left_its_group_is_killed_at_its_limit() {
    if !has_python() {
        return;
    }
    let mut processor = leaves_its_group("os.write(1, b'x' * 2000000)");
    let error = processor.process(&draft("text")).unwrap_err();
    assert_eq!(error.class(), "output_too_large", "{error}");
    assert_eq!(processor.registry.len(), 0, "it was killed and reaped");
}

#[allow(clippy::print_stdout, reason = "a test says what it skipped")]
fn has_python() -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok();
    if !found {
        println!("skipped: there is no python3 here");
    }
    found
}

/// A program that joins the group of a child of its own, so that its id is no longer that of a
/// group, and does this then.
fn leaves_its_group(then: &str) -> CommandProcessor {
    let program = format!(
        "
import os, sys, time
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    time.sleep(2)
    os._exit(0)
while True:
    try:
        os.setpgid(0, child)
        break
    except OSError:
        time.sleep(0.01)
{then}"
    );
    let args = vec!["-c".into(), program.into()];
    let mut processor = CommandProcessor::new("python3".as_ref(), args).unwrap();
    processor.registry = new_registry();
    processor
}

/// What it writes a while after the program's end does not count.
#[test]
fn a_child_that_keeps_the_pipes_has_little_time() {
    let outcome = ask(&format!("(sleep 3; echo late) & {ACCEPT}")).unwrap();
    assert_eq!(outcome.decision(), DraftProcessingDecision::Accepted);
}

#[test]
fn many_threads_can_run_programs_at_once() {
    thread::scope(|scope| {
        for n in 0..8 {
            scope.spawn(move || {
                for _ in 0..10 {
                    let script = format!(
                        r#"[ "$(wc -c)" -gt 100000 ] && echo '{{"decision":"skipped","note":"{n}"}}'"#
                    );
                    let outcome = ask_about(&script, &"x".repeat(100_000), SOON).unwrap();
                    assert_eq!(outcome.note(), Some(n.to_string().as_str()));
                }
            });
        }
    });
}
