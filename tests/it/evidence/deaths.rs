//! A runner dies while it holds a draft: how its death is noticed, and what it costs.

use std::time::{Duration, Instant, SystemTime};

use draftq::DraftStore;
use fastrand::Rng;
use rustix::process::Signal;
use serde_json::json;

use super::audit::{check_no_runner_left, read_back};
use super::{Bench, Fifo, HANG, Process, draft, json, kill_group, killed_by, next_line, quantiles};
use super::{seed, size};

/// Reports its process, then waits for the permission to end.
const PROGRAM: &str = r#"echo $$ > "$HAVE"; read -r leave < "$LEAVE""#;

/// The longest time that a watch may need to notice a death.
const NOTICE: Duration = Duration::from_secs(20);

/// A runner that holds a draft.
pub(super) struct Owner {
    process: Process,
    program: String,
}

pub(super) struct Scene {
    pub(super) bench: Bench,
    store: DraftStore,
    have: Fifo,
    leave: Fifo,
}

impl Scene {
    pub(super) fn new() -> Self {
        let bench = Bench::new();
        let (have, leave) = (bench.fifo("have"), bench.fifo("leave"));
        Self { store: bench.store(), bench, have, leave }
    }

    /// A draft that a live runner holds, and no other draft.
    pub(super) fn owned(&mut self, text: &str) -> Owner {
        self.store.submit(&draft(text)).unwrap();
        let mut command =
            self.bench.command(["run", "--json", "-q", "--exit-code", "--", "sh", "-c", PROGRAM]);
        command.env("HAVE", &self.have.path).env("LEAVE", &self.leave.path);
        let process = Process::start_piped(&mut command);
        Owner { process, program: self.have.line() }
    }

    /// A draft that a dead runner holds.
    fn orphaned(&mut self, text: &str) {
        self.owned(text).die();
    }

    pub(super) fn sql(&self, statement: &str) {
        assert_eq!(self.bench.sql().execute(statement, []).unwrap(), 1, "{statement}");
    }

    /// The number of claims of this age (or of any age) that are recovered.
    pub(super) fn recovered(&self, age: Option<Duration>) -> usize {
        let before = match age {
            Some(age) => SystemTime::now() - age,
            None => SystemTime::now() + Duration::from_secs(3_600),
        };
        self.store.recover(before).unwrap().to_pending.len()
    }
}

impl Owner {
    pub(super) fn die(self) {
        self.process.signal(Signal::KILL);
        let output = self.process.output();
        assert!(killed_by(&output, Signal::KILL), "{output:?}");
        // The program outlives its runner.
        kill_group(&self.program);
    }
}

/// The default stale time.
pub(super) const WINDOW: Option<Duration> = Some(Duration::from_secs(900));

#[test]
fn the_next_run_takes_a_dead_owners_draft_at_once() {
    let mut scene = Scene::new();
    scene.orphaned("in hand");
    let output = scene.bench.output(["run", "--json", "-q", "--exit-code", "--", "true"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let summary = &json(&output)["summary"];
    assert_eq!((&summary["recovered_processing"], &summary["accepted"]), (&json!(1), &json!(1)));
    let rows = read_back(&scene.bench.sql());
    let events: Vec<_> = rows.values().flat_map(|row| &row.events).collect();
    let names: Vec<_> = events.iter().map(|event| event.event.as_str()).collect();
    assert_eq!(names, ["submitted", "claimed", "recovered", "claimed", "decided"]);
    assert_eq!(events[2].error_class.as_deref(), Some("crash"));
    check_no_runner_left(&scene.bench);
}

#[test]
fn without_its_lock_file_age_decides() {
    // A live runner.
    let mut scene = Scene::new();
    let owner = scene.owned("alive");
    assert_eq!(scene.recovered(None), 0, "age means nothing while the lock is held");
    std::fs::remove_dir_all(scene.bench.locks()).unwrap();
    assert_eq!(scene.recovered(WINDOW), 0, "a fresh claim of an unknown owner stays");
    assert_eq!(scene.recovered(None), 1);
    scene.leave.say("");
    let output = owner.process.output();
    assert_eq!(json(&output)["summary"]["lost_claims"], 1, "{output:?}");

    // A dead runner.
    let mut scene = Scene::new();
    scene.orphaned("dead");
    std::fs::remove_dir_all(scene.bench.locks()).unwrap();
    assert_eq!(scene.recovered(WINDOW), 0);
    let output = scene.bench.output(["run", "--json", "-q", "--exit-code", "--", "true"]);
    assert_eq!(json(&output)["summary"]["claimed"], 0, "{output:?}");
    let now = ["run", "--json", "-q", "--stale-processing-secs", "0", "--exit-code", "--", "true"];
    let output = scene.bench.output(now);
    let summary = &json(&output)["summary"];
    assert_eq!((&summary["recovered_processing"], &summary["accepted"]), (&json!(1), &json!(1)));
}

/// A runner whose lock file is deleted while it waits registers again before it claims.
#[test]
fn a_waiting_runner_whose_lock_file_is_deleted_is_not_taken_for_dead() {
    let mut scene = Scene::new();
    scene.store.submit(&draft("first")).unwrap();
    let mut command =
        scene.bench.command(["watch", "--json", "-q", "--exit-code", "--", "sh", "-c", PROGRAM]);
    command.env("HAVE", &scene.have.path).env("LEAVE", &scene.leave.path);
    let mut watch = Process::start_piped(&mut command);
    let mut reports = watch.child().stdout.take().unwrap();
    let mut unread = Vec::new();
    scene.have.line();
    scene.leave.say("");
    next_line(&mut reports, &mut unread, HANG).unwrap();
    // Moved first: the waiting runner may create a file in it at any moment.
    let gone = scene.bench.locks().with_extension("gone");
    std::fs::rename(scene.bench.locks(), &gone).unwrap();
    std::fs::remove_dir_all(&gone).unwrap();
    scene.store.submit(&draft("second")).unwrap();
    scene.have.line();
    assert_eq!(scene.recovered(None), 0, "it lives, and holds the draft");
    scene.leave.say("");
    let report = next_line(&mut reports, &mut unread, HANG).unwrap();
    assert!(report.contains("\"lost_claims\":0"), "{report}");
    watch.signal(Signal::TERM);
    assert_eq!(watch.output().status.code(), Some(0));
}

#[test]
fn a_pid_that_is_used_again_proves_nothing() {
    let mut scene = Scene::new();
    scene.orphaned("in hand");
    scene.sql(&format!("UPDATE runners SET pid = {}", std::process::id()));
    assert_eq!(scene.recovered(WINDOW), 1);
}

/// An unreadable boot id or another host name does not decide whether a runner is alive.
#[test]
fn the_lock_decides_whatever_is_known_of_the_machine() {
    for machine in ["boot_id = ''", "boot_id = 'another'", "boot_id = 'another', host = 'other'"] {
        let mut scene = Scene::new();
        let owner = scene.owned("alive");
        scene.sql(&format!("UPDATE runners SET {machine}"));
        assert_eq!(scene.recovered(None), 0, "{machine}: its lock is held");
        owner.die();
        assert_eq!(scene.recovered(WINDOW), 1, "{machine}: its lock is free");
    }
}

/// A database that was copied without its runners directory.
#[test]
fn without_a_lock_age_decides_whatever_is_known_of_the_machine() {
    for machine in ["boot_id = 'another'", "boot_id = 'another', host = 'other'"] {
        let mut scene = Scene::new();
        scene.orphaned("in hand");
        scene.sql(&format!("UPDATE runners SET {machine}"));
        std::fs::remove_dir_all(scene.bench.locks()).unwrap();
        assert_eq!(scene.recovered(WINDOW), 0, "{machine}");
        assert_eq!(scene.recovered(None), 1, "{machine}");
    }
}

#[test]
fn a_container_on_this_kernel_is_known_by_its_lock() {
    let mut scene = Scene::new();
    let owner = scene.owned("in hand");
    scene.sql("UPDATE runners SET host = 'container', pid = 1");
    assert_eq!(scene.recovered(None), 0);
    owner.die();
    assert_eq!(scene.recovered(WINDOW), 1);
}

/// A draft that kills its runner, before others that do not.
#[test]
fn a_draft_that_kills_its_runner_ends_in_failed_and_the_queue_flows() {
    let bench = Bench::new();
    let store = bench.store();
    let poison = store.submit(&draft("poison")).unwrap().id.to_hex();
    for n in 0..5 {
        store.submit(&draft(&format!("harmless {n}"))).unwrap();
    }
    let program = r#"IFS= read -r line; case $line in *poison*) kill -9 $PPID;; esac"#;
    let run = || bench.output(["run", "--json", "-q", "--exit-code", "--", "sh", "-c", program]);
    let state = || -> (String, i64, i64) {
        bench
            .sql()
            .query_row(
                "SELECT state, crashes, due_at FROM drafts WHERE id = ?1",
                [&poison],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .unwrap()
    };
    let mut deaths = 0;
    let mut accepted = 0;
    for _ in 0..20 {
        let output = run();
        if killed_by(&output, Signal::KILL) {
            deaths += 1;
            continue;
        }
        let summary = &json(&output)["summary"];
        accepted += summary["accepted"].as_u64().unwrap();
        let (state, errors, due_at) = state();
        if state == "failed" {
            break;
        }
        // From the second death on it is delayed, and the drafts after it have been processed.
        assert_eq!((state.as_str(), accepted), ("pending", 5));
        assert!(errors >= 2 && due_at > 0, "{errors} errors, due at {due_at}");
        bench.sql().execute("UPDATE drafts SET due_at = 1 WHERE due_at > 0", []).unwrap();
    }
    assert_eq!((deaths, accepted), (5, 5));
    let rows = read_back(&bench.sql());
    let row = &rows[&poison];
    assert_eq!(row.state, "failed");
    let last = row.events.last().unwrap();
    assert_eq!((last.event.as_str(), last.error_class.as_deref()), ("exhausted", Some("crash")));
    check_no_runner_left(&bench);
}

#[test]
fn watch_notices_short() {
    watch_notices(3);
}

#[test]
#[ignore = "minutes; DRAFTQ_TEST_DEATHS"]
fn watch_notices_long() {
    watch_notices(size("DRAFTQ_TEST_DEATHS", 100));
}

/// The time from the SIGKILL of an owner until the program of a waiting watch gets the draft.
///
/// In each round the watch processes one draft, so that the next one goes to the runner that is
/// to die; then it finishes its own, has nothing to do, and the runner is killed.
fn watch_notices(rounds: usize) {
    let seed = seed();
    let mut rng = Rng::with_seed(seed);
    let mut scene = Scene::new();
    let (mut have, mut leave) = (scene.bench.fifo("watch-have"), scene.bench.fifo("watch-leave"));
    let mut command =
        scene.bench.command(["watch", "--json", "-q", "--exit-code", "--", "sh", "-c", PROGRAM]);
    command.env("HAVE", &have.path).env("LEAVE", &leave.path);
    let mut watch = Process::start_piped(&mut command);
    let mut reports = watch.child().stdout.take().unwrap();
    let mut unread = Vec::new();
    scene.store.submit(&draft("something to begin with")).unwrap();
    have.line();
    let mut waits = Vec::new();
    for round in 0..rounds {
        let owner = scene.owned(&format!("{seed} {round}"));
        leave.say("");
        let report = next_line(&mut reports, &mut unread, HANG).unwrap();
        assert!(report.contains("\"accepted\":1"), "{report}");
        // A random moment, so that the kill is not in step with the watch.
        let still = !owner.process.ended_within(Duration::from_millis(rng.u64(..1_000)));
        assert!(still, "the owner ended by itself");
        let killed = Instant::now();
        owner.process.signal(Signal::KILL);
        assert!(have.line_within(NOTICE).is_some(), "the watch did not notice in {NOTICE:?}");
        waits.push(killed.elapsed().as_secs_f64() * 1_000.0);
        owner.die();
    }
    leave.say("");
    let report = next_line(&mut reports, &mut unread, HANG).unwrap();
    assert!(report.contains("\"recovered_processing\":1"), "{report}");
    watch.signal(Signal::TERM);
    assert_eq!(watch.output().status.code(), Some(0));
    check_no_runner_left(&scene.bench);
    let rows = read_back(&scene.bench.sql());
    assert!(rows.values().all(|row| row.state == "accepted"));
    println!(
        "{}",
        json!({
            "evidence": "dead owner", "seed": seed,
            "kill_to_program_of_a_waiting_watch_ms": quantiles(waits),
        })
    );
}
