//! Eight runners at once on one queue.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::json;

use super::audit::{check_no_runner_left, read_back};
use super::{Bench, Process, draft, quantiles, seed, size};

const RUNNERS: usize = 8;

/// Records which draft it got, and when.
const PROGRAM: &str = r#"
IFS= read -r line
id=${line#*'"id":"'}
echo "${id%%'"'*} $(date +%s%N)" >> "$STARTED"
"#;

#[test]
fn storm_short() {
    storm(800, false);
}

#[test]
#[ignore = "a minute; DRAFTQ_TEST_STORM"]
fn storm_long() {
    storm(size("DRAFTQ_TEST_STORM", 5_000), true);
}

fn storm(drafts: usize, fair: bool) {
    let seed = seed();
    let bench = Bench::new();
    let texts: Vec<_> = (0..drafts).map(|n| draft(&format!("storm {seed}, draft {n}"))).collect();
    bench.store().submit_many(&texts).unwrap();

    let started = bench.path("started");
    let begun = Instant::now();
    let runners: Vec<_> = (0..RUNNERS)
        .map(|_| {
            let mut command =
                bench.command(["run", "--json", "-q", "--exit-code", "--", "sh", "-c", PROGRAM]);

            Process::start(
                command
                    .env("STARTED", &started)
                    // A file, because a summary with every draft in it fills a pipe.
                    .stdout(tempfile::tempfile_in(bench.directory.path()).unwrap())
                    .stderr(std::process::Stdio::piped()),
            )
        })
        .collect();
    for runner in runners {
        let output = runner.output();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
    let took = begun.elapsed();

    let sql = bench.sql();
    let rows = read_back(&sql);
    assert_eq!(rows.len(), drafts);
    let mut shares: BTreeMap<i64, usize> = BTreeMap::new();
    let mut released = 0;
    for row in rows.values() {
        // A runner that a slow machine holds up gives back what it claimed ahead and did not begin.
        let (mut events, mut runner): (Vec<&str>, _) = (Vec::new(), None);
        for event in &row.events {
            if event.event == "released" {
                assert_eq!(events.pop(), Some("claimed"), "{row:?}");
                released += 1;
            } else {
                events.push(&event.event);
                runner = event.runner;
            }
        }
        assert_eq!(events, ["submitted", "claimed", "decided"], "{row:?}");
        assert_eq!(row.state, "accepted");
        *shares.entry(runner.unwrap()).or_default() += 1;
    }
    check_no_runner_left(&bench);

    // The time of a claim is that of the request.
    let asked: BTreeMap<String, i64> = sql
        .prepare("SELECT id, h.at FROM drafts d JOIN history h ON h.draft = d.seq WHERE event = 'claimed' ORDER BY h.seq")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let mut waits = Vec::new();
    for line in std::fs::read_to_string(started).unwrap().lines() {
        let (id, nanos) = line.split_once(' ').unwrap();
        let nanos: i64 = nanos.parse().unwrap();
        #[expect(clippy::cast_precision_loss, reason = "seconds")]
        waits.push((nanos / 1_000 - asked[id] * 1_000) as f64 / 1_000.0);
    }
    assert_eq!(waits.len(), drafts, "each program was asked once");
    let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
    println!(
        "{}",
        json!({
            "evidence": "storm", "seed": seed, "drafts": drafts, "runners": shares.len(),
            "secs": took.as_secs_f64(), "released": released,
            "shares": shares.values().collect::<Vec<_>>(),
            "claim_to_program_ms": quantiles(waits),
            "measured": "from the claim being asked for (history.at) to the program's own clock \
                         (date, after sh and date have started); a draft that is claimed with \
                         others waits for those before it",
        })
    );
    if fair {
        assert_eq!(shares.len(), RUNNERS);
        assert!(*most <= 2 * *least, "shares {shares:?}");
    }
}
