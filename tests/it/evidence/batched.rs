//! Runners whose processor takes no time, so that they claim hundreds of drafts ahead and let
//! results share a commit, killed at random moments.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use draftq::{Draft, DraftProcessingDecision, DraftProcessor, DraftStore, LibrarianError, Runner};
use fastrand::Rng;
use serde_json::json;

use super::audit::{Row, check_no_runner_left, read_back};
use super::{Bench, Process, draft, quantiles, seed, size};

/// The environment variable with the database of the process that runs [`child`].
const DATABASE: &str = "DRAFTQ_TEST_BATCHED_DB";

/// How many drafts each round begins with: more than its runners process before they are killed.
const A_ROUND: usize = 1_500;

fn nanos() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()
}

/// Accepts, and records what it accepted, its process and the time.
struct Quick(File);

impl Quick {
    fn new(log: &Path) -> Self {
        Self(File::options().create(true).append(true).open(log).unwrap())
    }
}

impl DraftProcessor for Quick {
    fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        // One write, so that a kill leaves whole lines.
        let line = format!("{} {} {}\n", draft.id(), std::process::id(), nanos());
        self.0.write_all(line.as_bytes())?;
        Ok(DraftProcessingDecision::Accepted)
    }
}

fn drain(store: &DraftStore, log: &Path) {
    let runner = Runner::new(store, "test").max_items(0);
    let report = runner.run_one(&mut Quick::new(log), SystemTime::now());
    assert!(report.stopped_by.is_none(), "{report:?}");
}

#[test]
#[ignore = "a process of the test below"]
fn child() {
    let Some(database) = std::env::var_os(DATABASE) else { return };
    let database = Path::new(&database);
    drain(&DraftStore::open(database).unwrap(), &database.with_file_name("executed"));
}

#[test]
fn batched() {
    kill_quick_runners(12);
}

#[test]
#[ignore = "long; DRAFTQ_TEST_QUICK_KILLS sets how long"]
fn batched_long() {
    kill_quick_runners(size("DRAFTQ_TEST_QUICK_KILLS", 600));
}

fn kill_quick_runners(enough: usize) {
    let seed = seed();
    let mut rng = Rng::with_seed(seed);
    let bench = Bench::new();
    let store = bench.store();
    let log = bench.db().with_file_name("executed");
    let (mut submitted, mut kills) = (0, Vec::new());
    while kills.len() < enough {
        let drafts: Vec<Draft> =
            (submitted..submitted + A_ROUND).map(|number| draft(&number.to_string())).collect();
        submitted += A_ROUND;
        store.submit_many(&drafts).unwrap();
        let moments: Vec<_> = (0..3).map(|_| Duration::from_micros(rng.u64(..80_000))).collect();
        std::thread::scope(|scope| {
            let runners: Vec<_> = moments
                .into_iter()
                .map(|moment| {
                    let mut command = Command::new(std::env::current_exe().unwrap());
                    command
                        .args(["--exact", "evidence::batched::child", "--ignored"])
                        .env(DATABASE, bench.db());
                    scope.spawn(move || {
                        let mut process = Process::start_piped(&mut command);
                        let pid = process.child().id();
                        let (output, killed) = process.kill_after(moment);
                        assert!(killed || output.status.success(), "{output:?}");
                        killed.then(|| (pid, nanos()))
                    })
                })
                .collect();
            kills.extend(runners.into_iter().filter_map(|runner| runner.join().unwrap()));
        });
    }
    // Drafts that were recovered more than once are delayed; here the delay is removed.
    while bench.sql().query_row(LEFT, [], |row| row.get::<_, i64>(0)).unwrap() > 0 {
        bench.sql().execute("UPDATE drafts SET due_at = 0 WHERE due_at > 0", []).unwrap();
        drain(&store, &log);
    }

    let rows = read_back(&bench.sql());
    let mut decided = HashSet::new();
    let sql = bench.sql();
    let mut statement =
        sql.prepare("SELECT id, pid FROM draft_history WHERE event = 'decided'").unwrap();
    let mut deciders = statement.query([]).unwrap();
    while let Some(row) = deciders.next().unwrap() {
        decided.insert((row.get::<_, String>(0).unwrap(), row.get::<_, u32>(1).unwrap()));
    }
    // How long before its runner's death a draft was processed whose result was lost.
    let (mut executed, mut in_vain) = (HashSet::new(), Vec::new());
    for line in std::fs::read_to_string(&log).unwrap().lines() {
        let [id, pid, at] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
        let (pid, at): (u32, u128) = (pid.parse().unwrap(), at.parse().unwrap());
        executed.insert(id.to_owned());
        if !decided.contains(&(id.to_owned(), pid)) {
            let death = kills.iter().find(|(killed, death)| *killed == pid && *death >= at);
            let (_, death) = death.expect("nobody else's finish is lost");
            in_vain.push(Duration::from_nanos(u64::try_from(death - at).unwrap()));
        }
    }
    let figures = json!({
        "evidence": "batched", "seed": seed, "kills": kills.len(), "drafts": submitted,
        "lost": submitted - rows.values().filter(|row| row.is_terminal()).count(),
        "duplicated": rows.values().map(Row::duplicates).sum::<usize>(),
        "never_executed": rows.keys().filter(|id| !executed.contains(*id)).count(),
        "executed_in_vain": in_vain.len(),
        "most_claimed_by_one": most_by_one(&bench),
        "done_before_the_death_ms":
            quantiles(in_vain.iter().map(|it| it.as_secs_f64() * 1e3).collect()),
    });
    println!("{figures}");
    for name in ["lost", "duplicated", "never_executed"] {
        assert_eq!(figures[name], 0, "{name}: {figures}");
    }
    assert_eq!(rows.len(), submitted);
    check_no_runner_left(&bench);
}

/// Drafts that are not finished.
const LEFT: &str = "SELECT count(*) FROM drafts WHERE state IN ('pending', 'processing')";

fn most_by_one(bench: &Bench) -> i64 {
    let sql = "SELECT max(claimed) FROM (SELECT count(*) AS claimed FROM history \
               WHERE event = 'claimed' GROUP BY runner, at)";
    bench.sql().query_row(sql, [], |row| row.get(0)).unwrap()
}
