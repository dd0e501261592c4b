//! Three runners and two submitters on one file, killed at random moments and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Value, json};

use super::audit::{check_no_runner_left, read_back};
use super::{Bench, Process, draft, json, seed, size};

/// Records which draft it got, then gives a random answer.
const PROGRAM: &str = r#"
IFS= read -r line || exit 1 # its runner died before it had asked
id=${line#*'"id":"'}
echo "${id%%'"'*}" >> "$EXECUTED"
case $(( ($$ + $MOOD) % 40 )) in
    0) exit 75;;
    1) exit 3;;
    2) kill -9 $$;;
    3) echo '{"decision":"skipped"}';;
    4) echo '{"decision":"failed","note":"so it said"}';;
    5) echo '{"decision":"quarantined","output":{"why":["unsafe"]}}';;
    6) echo '{"decision":"deferred","retry_after_secs":1}';;
    7) echo '{"decision":';;
    *) echo '{"decision":"accepted","output":{"kept":true}}';;
esac
"#;

/// The same, until the queue is empty.
const ACCEPT: &str = r#"
IFS= read -r line || exit 1
id=${line#*'"id":"'}
echo "${id%%'"'*}" >> "$EXECUTED"
echo '{"decision":"accepted"}'
"#;

#[test]
fn torture_short() {
    torture(150);
}

#[test]
#[ignore = "minutes; DRAFTQ_TEST_KILLS"]
fn torture_long() {
    torture(size("DRAFTQ_TEST_KILLS", 10_000));
}

/// What the submitters have sent and received.
#[derive(Default)]
struct Submitted {
    /// Every text that was given to a submitter, by the id that it must get.
    attempted: BTreeMap<String, String>,
    /// The ids that a submitter printed.
    acknowledged: BTreeSet<String>,
    /// The ids of each call with several lines: all of them are stored, or none.
    batches: Vec<Vec<String>>,
    /// How often each id was submitted.
    calls: BTreeMap<String, usize>,
}

/// The state that all five share.
struct Round<'b> {
    bench: &'b Bench,
    kills: usize,
    killed: AtomicUsize,
    acknowledged: AtomicUsize,
}

impl Round<'_> {
    fn goes_on(&self) -> bool {
        self.killed.load(Ordering::Relaxed) < self.kills
    }

    fn count(&self, killed: bool) {
        self.killed.fetch_add(usize::from(killed), Ordering::Relaxed);
    }

    fn backlog(&self) -> usize {
        let executed = executed_path(self.bench).metadata().map_or(0, |it| it.len() / 17);
        let executed = usize::try_from(executed).unwrap();
        self.acknowledged.load(Ordering::Relaxed).saturating_sub(executed)
    }
}

fn executed_path(bench: &Bench) -> std::path::PathBuf {
    bench.path("executed")
}

fn torture(kills: usize) {
    let seed = seed();
    let mut rng = Rng::with_seed(seed);
    let begun = Instant::now();
    let bench = Bench::new();
    // The first start has tests of its own.
    drop(bench.store());
    let round = Round {
        bench: &bench,
        kills,
        killed: AtomicUsize::new(0),
        acknowledged: AtomicUsize::new(0),
    };
    let mut submitted = Submitted::default();
    let (mut runner_kills, mut submitter_kills) = (0, 0);
    std::thread::scope(|scope| {
        let round = &round;
        let runners: Vec<_> = (0..3)
            .map(|_| {
                let rng = rng.fork();
                scope.spawn(move || keep_running(round, rng))
            })
            .collect();
        let submitters: Vec<_> = (0..2)
            .map(|name| {
                let rng = rng.fork();
                scope.spawn(move || keep_submitting(round, name, rng))
            })
            .collect();
        for runner in runners {
            runner_kills += runner.join().unwrap();
        }
        for submitter in submitters {
            let (kills, theirs) = submitter.join().unwrap();
            submitter_kills += kills;
            submitted.attempted.extend(theirs.attempted);
            submitted.acknowledged.extend(theirs.acknowledged);
            submitted.batches.extend(theirs.batches);
            // Each submitter has texts of its own.
            submitted.calls.extend(theirs.calls);
        }
    });
    let tortured = begun.elapsed();
    let (drains, drained) = drain(&bench);
    let figures = account(&bench, &submitted);
    println!(
        "{}",
        json!({
            "evidence": "torture", "seed": seed, "kills": runner_kills + submitter_kills,
            "runner_kills": runner_kills, "submitter_kills": submitter_kills,
            "tortured_secs": tortured.as_secs(), "drain_runs": drains, "drained": drained,
            "counts": figures,
        })
    );
    for name in ["lost", "unexpected", "duplicated", "torn_batches", "refused", "unasked_answers"] {
        assert_eq!(figures[name], 0, "{name}: {figures}");
    }
    check_no_runner_left(&bench);
}

/// A runner, killed and started until there were enough kills.
fn keep_running(round: &Round<'_>, mut rng: Rng) -> usize {
    let mut kills = 0;
    while round.goes_on() {
        let jobs = if rng.u8(..4) == 0 { "2" } else { "1" };
        let mut command = round.bench.command([
            "run",
            "--json",
            "-q",
            "--stale-processing-secs",
            "1",
            "--max-errors",
            "0",
            "--jobs",
            jobs,
            "--",
            "sh",
            "-c",
            PROGRAM,
        ]);
        command
            .env("EXECUTED", executed_path(round.bench))
            .env("MOOD", rng.u16(..1000).to_string());
        let (output, killed) =
            Process::start_piped(&mut command).kill_after(moment(&mut rng, 80_000));
        if !killed {
            assert!(matches!(output.status.code(), Some(0 | 70)), "{output:?}");
            let told = String::from_utf8_lossy(&output.stderr);
            match output.status.code() {
                Some(0) => assert!(told.is_empty(), "{output:?}"),
                _ => assert!(told.starts_with("draftq: exit code 70: "), "{output:?}"),
            }
            assert_eq!(told.lines().count(), usize::from(!told.is_empty()), "{output:?}");
            assert_eq!(json(&output)["summary"]["lost_claims"], 0, "{output:?}");
        }
        kills += usize::from(killed);
        round.count(killed);
    }
    kills
}

/// A submitter of one draft or of several, killed and started until there were enough kills.
fn keep_submitting(round: &Round<'_>, name: u8, mut rng: Rng) -> (usize, Submitted) {
    let mut mine = Submitted::default();
    let mut kills = 0;
    let mut number = 0;
    let mut unanswered: Vec<String> = Vec::new();
    while round.goes_on() {
        let several = rng.bool();
        let lines = match (several, round.backlog()) {
            (false, _) => 1,
            (true, 0..500) => rng.usize(2..=20),
            (true, _) => 2,
        };
        let texts: Vec<String> = (0..lines)
            .map(|_| {
                // Texts without an answer are submitted again, and some with one as well.
                if !unanswered.is_empty() && rng.u8(..4) == 0 {
                    return unanswered.swap_remove(rng.usize(..unanswered.len()));
                }
                if number > 0 && (rng.u8(..10) == 0 || round.backlog() > 2_000) {
                    return format!("draft {} of submitter {name}", rng.u64(..number));
                }
                number += 1;
                format!("draft {} of submitter {name}", number - 1)
            })
            .collect();
        let ids: Vec<String> = texts.iter().map(|text| draft(text).id().to_hex()).collect();
        mine.attempted.extend(ids.iter().cloned().zip(texts.iter().cloned()));
        for id in &ids {
            *mine.calls.entry(id.clone()).or_default() += 1;
        }
        if several {
            mine.batches.push(ids.clone());
        }

        // A submitter runs only for a few milliseconds, so half of the kills are in that time.
        let moment = if rng.bool() { moment(&mut rng, 80_000) } else { moment(&mut rng, 8_000) };
        let (output, killed) = submit(round.bench, several, &texts).kill_after(moment);
        if !killed {
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            assert!(output.stderr.is_empty(), "{output:?}");
        }
        let mut answered = 0;
        for line in output.stdout.split_inclusive(|byte| *byte == b'\n') {
            if line.ends_with(b"\n") {
                let line: Value = serde_json::from_slice(line).unwrap();
                assert_eq!(line["id"], ids[answered], "{output:?}");
                if mine.acknowledged.insert(ids[answered].clone()) {
                    round.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                answered += 1;
            }
        }
        assert!(killed || answered == texts.len(), "{output:?}");
        unanswered.extend(texts.into_iter().skip(answered));
        kills += usize::from(killed);
        round.count(killed);
    }
    (kills, mine)
}

fn submit(bench: &Bench, several: bool, texts: &[String]) -> Process {
    if !several {
        return Process::start_piped(&mut bench.command(["submit", "--text", &texts[0], "--json"]));
    }
    let mut command = bench.command(["submit", "--jsonl", "-", "--json"]);
    let mut process = Process::start_piped(command.stdin(Stdio::piped()));
    let mut stdin = process.child().stdin.take().unwrap();
    for text in texts {
        writeln!(stdin, "{}", json!({ "raw_text": text })).unwrap();
    }
    process
}

fn moment(rng: &mut Rng, within_micros: u64) -> Duration {
    Duration::from_micros(rng.u64(..within_micros))
}

/// Run until no draft is left; delays are removed.
fn drain(bench: &Bench) -> (usize, usize) {
    let mut processed = 0;
    for runs in 1..=100 {
        bench.sql().execute("UPDATE drafts SET due_at = 0 WHERE due_at > 0", []).unwrap();
        let mut command = bench.command([
            "run",
            "--json",
            "-q",
            "--stale-processing-secs",
            "0",
            "--max-errors",
            "0",
            "--",
            "sh",
            "-c",
            ACCEPT,
        ]);
        command.env("EXECUTED", executed_path(bench));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{:?}", String::from_utf8_lossy(&output.stderr));
        processed += json(&output)["summary"]["accepted"].as_u64().unwrap();
        let left: i64 = bench
            .sql()
            .query_row(
                "SELECT count(*) FROM drafts WHERE state IN ('pending', 'processing')",
                [],
                |row| row.get(0),
            )
            .unwrap();
        if left == 0 {
            return (runs, usize::try_from(processed).unwrap());
        }
    }
    panic!("the queue does not drain");
}

/// Count as Jepsen's total-queue does.
fn account(bench: &Bench, submitted: &Submitted) -> Value {
    let rows = read_back(&bench.sql());
    let executions = executions(&executed_path(bench));
    let terminal = |id: &String| rows.get(id).is_some_and(super::audit::Row::is_terminal);

    let lost = submitted.acknowledged.iter().filter(|id| !terminal(id)).count();
    let unexpected =
        rows.values().filter(|row| submitted.attempted.get(&row.id) != Some(&row.text)).count();
    let duplicated: usize = rows.values().map(super::audit::Row::duplicates).sum();
    let recovered = submitted
        .attempted
        .keys()
        .filter(|id| !submitted.acknowledged.contains(*id) && terminal(id))
        .count();
    let torn_batches = submitted
        .batches
        .iter()
        .filter(|ids| {
            // Drafts that only this call submitted.
            let mut only = ids.iter().filter(|id| submitted.calls[*id] == 1).peekable();
            let first = only.peek().is_some_and(|id| rows.contains_key(*id));
            only.any(|id| rows.contains_key(id) != first)
        })
        .count();
    let (mut repeated, mut repetitions, mut unasked_answers) = (0, 0, 0);
    for row in rows.values() {
        let executed = executions.get(&row.id).copied().unwrap_or(0);
        let answers = row.count("decided") + row.count("deferred") + row.count("errored");
        // An answer that the program did not give.
        unasked_answers += usize::from(executed < answers);
        repeated += usize::from(executed > answers);
        repetitions += executed.saturating_sub(answers);
    }
    let total = |event: &str| rows.values().map(|row| row.count(event)).sum::<usize>();
    json!({
        "attempted": submitted.attempted.len(), "acknowledged": submitted.acknowledged.len(),
        "drafts": rows.len(), "lost": lost, "unexpected": unexpected, "duplicated": duplicated,
        "recovered": recovered, "torn_batches": torn_batches,
        "executed_more_than_once": repeated, "repeated_executions": repetitions,
        "unasked_answers": unasked_answers, "executions": executions.values().sum::<usize>(),
        "claims": total("claimed"), "decided": total("decided"), "deferred": total("deferred"),
        "errored": total("errored"), "taken_back": total("recovered"),
        "refused": total("refused"),
    })
}

/// How often the program got each draft.
fn executions(path: &Path) -> BTreeMap<String, usize> {
    let mut executions = BTreeMap::new();
    for id in std::fs::read_to_string(path).unwrap().lines() {
        assert_eq!(id.len(), 16, "{id:?}");
        *executions.entry(id.to_owned()).or_default() += 1;
    }
    executions
}
