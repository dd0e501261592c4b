//! `submit --jsonl`: batches in bounded memory, which leave room for others and are answered when
//! they are durable.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use draftq::DraftState;
use rusqlite::Connection;
use serde_json::Value;

use crate::harness::{Sandbox, assert_whole, draft, setting};
use crate::output::peak_mib;

fn started(sandbox: &Sandbox, args: &[&str]) -> (Child, ChildStdin, BufReader<ChildStdout>) {
    let mut command = sandbox.command([&["submit", "--jsonl", "-"], args].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    (child, stdin, BufReader::new(stdout))
}

/// The answers, read while the input is written. Otherwise the two pipes could wait for each other.
fn answers(stdout: BufReader<ChildStdout>) -> Receiver<String> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                break;
            }
        }
    });
    told
}

fn next(answers: &Receiver<String>) -> String {
    id(&answers.recv_timeout(Duration::from_secs(120)).expect("an answer"))
}

fn line(number: u64, bytes: usize) -> String {
    format!("{{\"raw_text\":\"draft {number} {}\"}}\n", "x".repeat(bytes))
}

fn id(answer: &str) -> String {
    serde_json::from_str::<Value>(answer).unwrap()["id"].as_str().unwrap().to_owned()
}

#[test]
fn others_can_write_while_a_file_is_read() {
    let sandbox = Sandbox::new();
    let (mut child, mut stdin, stdout) = started(&sandbox, &[]);
    let answers = answers(stdout);
    let mut answered = HashSet::new();
    for round in 0..3 {
        for number in 0..5000 {
            stdin.write_all(line(round * 5000 + number, 100).as_bytes()).unwrap();
        }
        // The input has not ended, and the first batches are stored.
        answered.extend((0..1000).map(|_| next(&answers)));
        sandbox.submit(&format!("another's {round}"));
    }
    let store = sandbox.store();
    let stored: HashSet<String> =
        store.list(DraftState::Pending).unwrap().iter().map(|it| it.id().to_hex()).collect();
    assert!(stored.is_superset(&answered), "what is answered is stored");
    drop(stdin);
    answered.extend(answers.iter().map(|answer| id(&answer)));
    assert!(child.wait().unwrap().success());
    assert_eq!(answered.len(), 15_000);
    assert_eq!(store.stats().unwrap().drafts, 15_003);
    assert_whole(&sandbox.db());
}

#[test]
fn atomic_is_one_transaction() {
    let sandbox = Sandbox::new();
    let drafts = || sandbox.store().stats().unwrap().drafts;
    sandbox.submit("there before");
    let lines: String = (0..2000).map(|number| line(number, 10)).collect();
    for (last, code, expected) in [("{}\n", 65, 1), ("", 0, 2001)] {
        let (child, mut stdin, stdout) = started(&sandbox, &["--atomic"]);
        stdin.write_all(lines.as_bytes()).unwrap();
        assert_eq!(drafts(), 1, "nothing is there before all is");
        stdin.write_all(last.as_bytes()).unwrap();
        drop(stdin);
        let answers = stdout.lines().count();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert_eq!((answers, drafts()), (if code == 0 { 2000 } else { 0 }, expected));
    }
    // The library refuses this line, not the envelope parser.
    let long = sandbox.draftq_reading(
        ["submit", "--jsonl=-", "--atomic", "--max-text-bytes=12"],
        lines.as_bytes(),
    );
    assert!(long.expect(65).err().contains("nothing was stored"), "{}", long.err());
    assert_whole(&sandbox.db());
}

#[test]
fn an_answer_is_printed_after_its_draft_is_stored() {
    let sandbox = Sandbox::new();
    sandbox.submit("there before");
    let holder = Connection::open(sandbox.db()).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    for more in [&[][..], &["--atomic"]] {
        let (child, mut stdin, stdout) = started(&sandbox, more);
        // It may end before it has read all of its input.
        let lines: String = (0..500).map(|number| line(number, 10)).collect();
        let _ = stdin.write_all(lines.as_bytes());
        drop(stdin);
        assert_eq!(stdout.lines().count(), 0);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(75), "{said}");
        let kept =
            if more.is_empty() { "0 drafts before that are stored" } else { "nothing was stored" };
        assert!(said.contains(kept), "{said}");
    }
    holder.execute_batch("ROLLBACK").unwrap();

    // Killed at any moment, whatever it has answered is there; and the rest comes when it is
    // submitted again.
    let lines: String = (0..4000).map(|number| line(number, 10)).collect();
    let (mut child, mut stdin, stdout) = started(&sandbox, &[]);
    let answers = answers(stdout);
    stdin.write_all(lines.as_bytes()).unwrap();
    let mut answered: Vec<String> = (0..700).map(|_| next(&answers)).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    answered.extend(answers.iter().filter(|it| it.ends_with('}')).map(|it| id(&it)));
    let stored: HashSet<String> = sandbox
        .store()
        .list(DraftState::Pending)
        .unwrap()
        .iter()
        .map(|draft| draft.id().to_hex())
        .collect();
    assert!(answered.len() >= 700 && answered.iter().all(|id| stored.contains(id)));
    let again = sandbox.draftq_reading(["submit", "--jsonl", "-"], lines.as_bytes());
    let present = again.expect(0).lines().iter().filter(|it| it["created"] == false).count();
    assert_eq!(present, stored.len() - 1);
    assert_eq!(sandbox.store().stats().unwrap().drafts, 4001);
}

/// Feed it so many MiB, and look at its memory before it sees the end; meanwhile another writes.
/// Returns its peak in MiB, and for how long each of the other's submits took.
fn feed(mib: u64, text: usize, more: &[&str]) -> (u64, Vec<Duration>) {
    let sandbox = Sandbox::new();
    let store = sandbox.store();
    let (mut child, mut stdin, stdout) = started(&sandbox, more);
    let reader = std::thread::spawn(move || stdout.lines().count());
    let fed = AtomicBool::new(false);
    let lines = mib * 1024 * 1024 / u64::try_from(text).unwrap();
    let (peak, waits) = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut waits = Vec::new();
            while more.is_empty() && !fed.load(Ordering::Relaxed) {
                let begun = Instant::now();
                store.submit(&draft(&format!("other {}", waits.len()))).unwrap();
                waits.push(begun.elapsed());
            }
            waits
        });
        for number in 0..lines {
            stdin.write_all(line(number, text).as_bytes()).unwrap();
        }
        let peak = peak_mib(&child);
        fed.store(true, Ordering::Relaxed);
        (peak, other.join().unwrap())
    });
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert_eq!(reader.join().unwrap() as u64, lines);
    assert_eq!(store.stats().unwrap().drafts, lines + waits.len() as u64);
    let mut waits = waits;
    waits.sort();
    let ms = |share: usize| waits.get(waits.len() * share / 100).map_or(0, |wait| wait.as_millis());
    println!(
        "{{\"test\":\"jsonl\",\"mib\":{mib},\"text\":{text},\"flags\":{more:?},\"peak_mib\":{peak},\
         \"others\":{},\"wait_p50_ms\":{},\"wait_p99_ms\":{},\"wait_max_ms\":{}}}",
        waits.len(),
        ms(50),
        ms(99),
        waits.last().map_or(0, Duration::as_millis)
    );
    (peak, waits)
}

#[test]
fn a_long_file_needs_little_memory() {
    for (mib, text, more) in
        [(24, 1000, &[][..]), (48, 1_000_000, &[]), (64, 8_000_000, &[]), (48, 1000, &["--atomic"])]
    {
        let (peak, _) = feed(mib, text, more);
        assert!(peak < 64, "{peak} MiB for {mib} MiB of texts of {text} bytes {more:?}");
    }
}

/// `DRAFTQ_TEST_JSONL_MIB=2048 cargo test --release -- --ignored jsonl`
#[test]
#[ignore = "takes minutes and gigabytes; its size is set by DRAFTQ_TEST_JSONL_MIB"]
fn jsonl_of_any_length_needs_64_mib() {
    let mib = setting("DRAFTQ_TEST_JSONL_MIB", 2048);
    for (text, more) in [(1000, &[][..]), (100_000, &[]), (1000, &["--atomic"])] {
        let (peak, waits) = feed(mib, text, more);
        assert!(peak < 64, "{peak} MiB for {mib} MiB of texts of {text} bytes {more:?}");
        let long = waits.iter().filter(|wait| **wait > Duration::from_millis(100)).count();
        assert!(long * 100 <= waits.len(), "{long} of {} waited over 100 ms", waits.len());
    }
}
