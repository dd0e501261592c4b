use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Instant, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::draft::{DraftMetadata, DraftSourceSurface};

/// Far longer than anything here takes, for a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(20);

fn draft(text: impl Into<String>) -> Draft {
    let metadata = DraftMetadata::new(DraftSourceSurface::Cli, UNIX_EPOCH);
    Draft::with_metadata(text.into(), metadata)
}

fn sh(script: &str) -> CommandProcessor {
    CommandProcessor::new("sh".as_ref(), vec!["-c".into(), script.into()]).unwrap()
}

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

/// Run a script that never ends by itself, and give what it wrote to its standard error. On a busy
/// machine it may not come to write before its deadline; it then gets a later one.
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

/// Wait for the processes of a group to be gone: a signal takes its time, and what has lost its
/// parent is a zombie until init looks.
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
fn the_exit_code_decides_when_there_is_no_answer() {
    for code in 0..=255 {
        let result = ask(&format!("cat >/dev/null; echo done; echo oops >&2; exit {code}"));
        match code {
            0 => assert_eq!(result.unwrap(), DraftProcessingDecision::Accepted.into()),
            75 => assert_eq!(result.unwrap(), DraftProcessingDecision::Deferred.into()),
            _ => {
                let error = result.unwrap_err();
                assert_eq!(error.class(), "exit");
                assert_eq!(error.to_string(), format!("the program exited with status {code}"));
                assert_eq!(error.detail(), Some("oops"));
            }
        }
    }
}

#[test]
fn an_answer_decides_when_the_program_ended_well() {
    let answer = r#"echo '{"decision":"quarantined","note":"n"}'"#;
    for code in [0, 75] {
        let outcome = ask(&format!("{answer}; exit {code}")).unwrap();
        assert_eq!(outcome.decision(), DraftProcessingDecision::Quarantined);
        assert_eq!(outcome.note(), Some("n"));
    }
    assert_eq!(ask(&format!("{answer}; exit 1")).unwrap_err().class(), "exit");
    assert_eq!(ask(&format!("{answer}; kill -TERM $$")).unwrap_err().class(), "signal");
    let decision = sh(answer).process(&draft("text")).unwrap();
    assert_eq!(decision, DraftProcessingDecision::Quarantined);
}

#[test]
fn signals_are_told_by_number_and_name() {
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
        grep -q 'can[a]ry' || exit 4"#;
    assert_eq!(
        ask_about(script, "canary", SOON).unwrap(),
        Outcome::new(DraftProcessingDecision::Accepted)
    );
}

#[test]
fn arguments_go_as_they_are() {
    let args = ["-c", r#"[ "$0|$1|$2" = 'a b|$HOME;*|' ]"#, "a b", "$HOME;*", ""];
    let args = args.map(OsString::from).to_vec();
    let mut processor = CommandProcessor::new("sh".as_ref(), args).unwrap();
    processor.process(&draft("text")).unwrap();
}

#[test]
fn a_program_need_not_read() {
    let text = "x".repeat(5_000_000);
    for script in ["true", "exec <&-; sleep 0.05", "head -c 100 >/dev/null", "sleep 0.05"] {
        let outcome = ask_about(script, &text, SOON).unwrap();
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
fn output_has_a_cap() {
    let print = |bytes| format!("cat >/dev/null; head -c {bytes} /dev/zero");
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
    let mut processor = sh("true").with_timeout(Duration::MAX);
    assert!(processor.process(&draft("text")).is_ok());
    let mut processor = sh("true").with_timeout(None);
    assert!(processor.process(&draft("text")).is_ok());
}

#[test]
fn a_child_that_keeps_the_pipes_is_not_waited_for() {
    let start = Instant::now();
    let outcome = ask(r#"sleep 1000 & printf '{"decision":"skipped","note":"%d"}' $$"#).unwrap();
    assert!(start.elapsed() < SOON);
    assert_eq!(outcome.decision(), DraftProcessingDecision::Skipped);
    assert_gone(outcome.note().unwrap());

    let error = ask("yes >&2 & sleep 1000 & printf 'group %d\\n' $$; exit 3").unwrap_err();
    assert_eq!(error.class(), "exit");
    // How much the child can write in its time of grace is a matter of luck.
    if let Err(error) = ask("yes & exit 0") {
        assert_eq!(error.class(), "output_too_large");
    }
}

#[test]
fn a_child_that_keeps_no_pipe_is_killed_too() {
    let script = r#"sleep 1000 >/dev/null 2>&1 & printf '{"decision":"skipped","note":"%d"}' $$"#;
    assert_gone(ask(script).unwrap().note().unwrap());
}

#[test]
fn a_child_in_another_group_holds_nothing_up() {
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
    assert!(ask(r"printf '\377\376\n'").is_ok());
    assert!(ask(r#"printf '\377\n{"decision":"failed"}'"#).is_ok());
}

#[test]
fn a_program_is_looked_up_at_once() {
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
fn a_program_that_cannot_be_started_is_an_error_of_the_draft() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"#!/bin/sh\n").unwrap();
    file.set_permissions(Permissions::from_mode(0o700)).unwrap();
    let mut processor = CommandProcessor::new(path.as_os_str(), Vec::new()).unwrap();
    // A program cannot be started while it is open for writing; one tries for a while.
    let error = processor.process(&draft("text")).unwrap_err();
    assert_eq!(error.class(), "spawn");
    assert!(error.to_string().contains("busy"), "{error}");
    drop(file);
    assert!(processor.process(&draft("text")).is_ok());

    fs::remove_file(&path).unwrap();
    let error = processor.process(&draft("text")).unwrap_err();
    assert_eq!(error.class(), "spawn");
}

#[test]
fn all_programs_can_be_killed_at_once() {
    let registry: &'static Registry = Box::leak(Box::new(Registry::new()));
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
    // One may have been killed before it could tell its group.
    for group in fs::read_dir(groups.path()).unwrap() {
        assert_gone(group.unwrap().file_name().to_str().unwrap());
    }
    // And none is started any more.
    assert_eq!(processor.process(&draft("text")).unwrap(), DraftProcessingDecision::Deferred);
}

#[test]
fn many_threads_can_ask_at_once() {
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
