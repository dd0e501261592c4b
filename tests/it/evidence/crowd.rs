//! Many processes at the write lock: submits, runs and watches that wait, and processes
//! that are stopped or killed while they wait.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use draftq::DraftStore;
use inotify::{Inotify, WatchMask};
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::json;

use super::audit::read_back;
use super::{Bench, HANG, Process, draft, quantiles, seed, size};

/// A program that accepts every draft.
const ACCEPT: [&str; 3] = ["sh", "-c", r#"cat > /dev/null; echo '{"decision":"accepted"}'"#];

/// A writer that does not use the queue holds the write lock.
fn hold(bench: &Bench) -> Connection {
    let holder = bench.sql();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    holder
}

fn submit(bench: &Bench, text: &str) -> Process {
    Process::start_piped(&mut bench.command(["submit", "--json", "--text", text]))
}

fn submits(bench: &Bench, count: usize) -> Vec<Process> {
    (0..count).map(|n| submit(bench, &format!("draft {n}"))).collect()
}

/// A store whose time-out is so long that it would hide a standstill.
fn patient_store(bench: &Bench) -> DraftStore {
    DraftStore::options().busy_timeout(HANG * 20).open(bench.db()).unwrap()
}

fn all_end_well(processes: Vec<Process>) {
    for process in processes {
        let output = process.output();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < HANG, "{what}: not within {HANG:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Wait until a waiting writer has the turn.
fn until_turn_is_held(bench: &Bench) {
    until("the turn is held", || {
        File::open(bench.locks().join("writer.turn"))
            .is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
    });
}

/// Wait until all these processes sleep at the same time, or until it is clear that they will
/// not.
fn until_all_sleep(processes: &[Process]) {
    let begun = Instant::now();
    let sleeps = |process: &Process| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid.as_raw_nonzero()))
            .unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('S'))
    };
    while !processes.iter().all(sleeps) && begun.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(2));
    }
}

/// CPU time of all threads of these processes.
fn cpu_time(processes: &[Process]) -> Duration {
    let mut nanos = 0;
    for process in processes {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", process.pid.as_raw_nonzero())) else {
            continue;
        };
        for task in tasks.flatten() {
            let stat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            nanos += stat.split(' ').next().map_or(0, |time| time.parse().unwrap_or(0));
        }
    }
    Duration::from_nanos(nanos)
}

/// The share of a core that these processes use within this time.
fn share_of_a_core(processes: &[Process], within: Duration) -> f64 {
    let (before, begun) = (cpu_time(processes), Instant::now());
    thread::sleep(within);
    let used = cpu_time(processes).saturating_sub(before);
    used.as_secs_f64() / begun.elapsed().as_secs_f64()
}

#[test]
fn waiting_costs_next_to_nothing() {
    let bench = Bench::new();
    bench.store();
    let holder = hold(&bench);
    let crowd = submits(&bench, 60);
    until_all_sleep(&crowd);
    let share = share_of_a_core(&crowd, Duration::from_millis(700));
    holder.execute_batch("COMMIT").unwrap();
    all_end_well(crowd);
    assert_eq!(read_back(&bench.sql()).len(), 60);
    println!("{}", json!({ "evidence": "waiting", "submits": 60, "share_of_a_core": share }));
    assert!(share <= 0.2, "60 that wait take {share} of a core");
}

#[test]
fn a_stopped_process_at_the_head_holds_nobody_up() {
    let bench = Bench::new();
    let store = patient_store(&bench);
    let holder = hold(&bench);
    let head = submit(&bench, "head");
    until_turn_is_held(&bench);
    head.signal(Signal::STOP);
    let crowd = submits(&bench, 20);
    let (done, waits) = mpsc::channel();
    let patient = thread::spawn(move || {
        let texts = (0..20).map(|n| draft(&format!("patient {n}")));
        let failed = texts.map(|draft| store.submit(&draft)).find_map(Result::err);
        done.send(failed).unwrap();
    });
    until_all_sleep(&crowd);
    holder.execute_batch("COMMIT").unwrap();
    let failed = waits.recv_timeout(HANG).expect("somebody waits for the stopped process");
    assert!(failed.is_none(), "{failed:?}");
    patient.join().unwrap();
    all_end_well(crowd);
    head.signal(Signal::CONT);
    all_end_well(vec![head]);
    assert_eq!(read_back(&bench.sql()).len(), 41);
}

#[test]
fn processes_killed_while_they_wait_hold_nobody_up() {
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    let bench = Bench::new();
    let store = patient_store(&bench);
    let holder = hold(&bench);
    let head = submit(&bench, "head");
    until_turn_is_held(&bench);
    let crowd = submits(&bench, 30);
    let (done, waits) = mpsc::channel();
    let patient = thread::spawn(move || done.send(store.submit(&draft("patient")).err()).unwrap());
    until_all_sleep(&crowd);
    head.signal(Signal::KILL);
    let (killed, left): (Vec<_>, Vec<_>) = crowd.into_iter().partition(|_| rng.bool());
    for process in &killed {
        process.signal(Signal::KILL);
    }
    holder.execute_batch("COMMIT").unwrap();
    let failed = waits.recv_timeout(HANG).expect("somebody waits for the dead");
    assert!(failed.is_none(), "seed {seed}: {failed:?}");
    patient.join().unwrap();
    let acknowledged = left.len() + 1;
    all_end_well(left);
    let killed = killed.len() + 1;
    drop(head);
    let rows = read_back(&bench.sql()).len();
    // A killed process may have committed before.
    assert!((acknowledged..=acknowledged + killed).contains(&rows), "seed {seed}: {rows}");
}

#[test]
fn the_queue_is_made_anew_when_its_file_or_directory_is_deleted() {
    for directory in [false, true] {
        let bench = Bench::new();
        let store = patient_store(&bench);
        let holder = hold(&bench);
        let head = submit(&bench, "head");
        until_turn_is_held(&bench);
        let crowd = submits(&bench, 20);
        until_all_sleep(&crowd);
        match directory {
            false => fs::remove_file(bench.locks().join("writer.turn")).unwrap(),
            true => fs::remove_dir_all(bench.locks()).unwrap(),
        }
        // The waiting processes queue on a new file, whose lock one of them holds.
        until_turn_is_held(&bench);
        holder.execute_batch("COMMIT").unwrap();
        all_end_well(crowd);
        all_end_well(vec![head]);
        store.submit(&draft("after")).unwrap();
        assert_eq!(read_back(&bench.sql()).len(), 22);
    }
}

#[test]
fn without_a_turn_writers_wait_all_the_same() {
    // A directory in the file's place, and no descriptor to open the file with.
    for limit in [None, Some("ulimit -n 9; exec \"$@\"")] {
        let bench = Bench::new();
        bench.store();
        let turn = bench.locks().join("writer.turn");
        if limit.is_none() {
            fs::create_dir_all(&turn).unwrap();
        }
        let holder = hold(&bench);
        let crowd: Vec<_> = (0..10)
            .map(|n| {
                let text = format!("draft {n}");
                let plain = bench.command(["submit", "--json", "--text", &text]);
                let mut command = match limit {
                    None => plain,
                    Some(script) => {
                        let mut shell = Command::new("sh");
                        shell.args(["-c", script, "sh"]).arg(plain.get_program());
                        shell.args(plain.get_args()).stdin(Stdio::null());
                        shell
                    }
                };
                Process::start_piped(&mut command)
            })
            .collect();
        until_all_sleep(&crowd);
        holder.execute_batch("COMMIT").unwrap();
        all_end_well(crowd);
        assert_eq!(read_back(&bench.sql()).len(), 10);
    }
}

#[test]
fn the_first_start_waits_for_one_that_has_the_empty_file() {
    let bench = Bench::new();
    fs::create_dir_all(bench.db().parent().unwrap()).unwrap();
    let holder = Connection::open(bench.db()).unwrap();
    holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let crowd = submits(&bench, 40);
    until_all_sleep(&crowd);
    let share = share_of_a_core(&crowd, Duration::from_millis(500));
    holder.execute_batch("ROLLBACK").unwrap();
    drop(holder);
    all_end_well(crowd);
    assert_eq!(read_back(&bench.sql()).len(), 40);
    assert!(share <= 0.2, "40 that wait take {share} of a core");
}

#[test]
fn the_turn_wakes_no_waiting_runner() {
    let bench = Bench::new();
    let store = bench.store();
    fs::create_dir_all(bench.locks()).unwrap();
    let mut inotify = Inotify::init().unwrap();
    inotify.watches().add(bench.locks(), WatchMask::CLOSE_WRITE).unwrap();
    let holder = hold(&bench);
    let waiting = thread::spawn(move || {
        store.submit(&draft("waits")).unwrap();
        store
    });
    until_turn_is_held(&bench);
    holder.execute_batch("COMMIT").unwrap();
    // Kept open, because the process that created the entry file closes it.
    let _store = waiting.join().unwrap();
    let mut buffer = [0; 4096];
    let events = inotify.read_events(&mut buffer).map(|events| events.count()).unwrap_or(0);
    assert_eq!(events, 0, "a waiting runner was woken");
}

#[test]
fn many_watches_share_what_comes_in() {
    watches(&Bench::new(), 20, 20);
}

/// Waiting watches, and submits one after the other. Returns how long the submits took, and the share
/// of a core that the watches used meanwhile.
fn watches(bench: &Bench, watches: usize, drafts: usize) -> (Vec<f64>, f64, f64) {
    bench.store();
    let watching: Vec<_> = (0..watches)
        .map(|_| {
            let mut command = bench.command(["watch", "-q", "--"].iter().chain(&ACCEPT));
            Process::start(command.stdout(Stdio::null()).stderr(Stdio::piped()))
        })
        .collect();
    until("the first watch listens", || bench.locks().join("wakeup").exists());
    until_all_sleep(&watching);
    let (before, begun) = (cpu_time(&watching), Instant::now());
    let mut times = Vec::new();
    for n in 0..drafts {
        let begun = Instant::now();
        all_end_well(vec![submit(bench, &format!("draft {n}"))]);
        times.push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    let sql = bench.sql();
    until("all drafts are accepted", || {
        let accepted: usize = sql
            .query_row("SELECT count(*) FROM drafts WHERE state = 'accepted'", [], |row| row.get(0))
            .unwrap();
        accepted == drafts
    });
    let took = begun.elapsed().as_secs_f64();
    let share = cpu_time(&watching).saturating_sub(before).as_secs_f64() / took;
    for watch in &watching {
        watch.signal(Signal::TERM);
    }
    for watch in watching {
        let output = watch.output();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains("the watch continues"), "{said}");
    }
    for row in read_back(&sql).values() {
        assert_eq!((row.state.as_str(), row.events.len()), ("accepted", 3), "{row:?}");
    }
    (times, took, share)
}

/// Two busy loops, until it is dropped.
struct Load(Vec<Process>);

impl Load {
    fn new() -> Self {
        let busy = || Process::start(Command::new("sh").args(["-c", "while :; do :; done"]));
        Self(vec![busy(), busy()])
    }
}

#[test]
#[ignore = "two minutes, on a machine that does nothing else; DRAFTQ_TEST_CROWD"]
fn crowd_long() {
    let count = size("DRAFTQ_TEST_CROWD", 200);
    let load = Load::new();

    let bench = Bench::new();
    bench.store();
    let begun = Instant::now();
    for n in 0..count {
        all_end_well(vec![submit(&bench, &format!("one after the other {n}"))]);
    }
    let in_turn = begun.elapsed();

    let commands: [(&str, usize, Vec<&str>); 2] = [
        ("submits", count, vec!["submit", "--json", "--text"]),
        ("runs", count / 2, vec!["run", "-q", "--"]),
    ];
    for (what, count, arguments) in commands {
        let holder = hold(&bench);
        let begun = Instant::now();
        let crowd: Vec<_> = (0..count)
            .map(|n| {
                let mut command = bench.command(&arguments);
                match what {
                    "submits" => command.arg(format!("at once {n}")),
                    _ => command.args(ACCEPT),
                };
                Process::start_piped(&mut command)
            })
            .collect();
        until_all_sleep(&crowd);
        let share = share_of_a_core(&crowd, Duration::from_millis(600));
        holder.execute_batch("COMMIT").unwrap();
        let (released, held) = (Instant::now(), begun.elapsed());
        // The time of each end is recorded at once.
        let ends: Vec<_> = thread::scope(|scope| {
            let waits = crowd.into_iter().map(|process| {
                scope.spawn(move || {
                    let output = process.output();
                    (output.status.code(), begun.elapsed().as_secs_f64() * 1_000.0)
                })
            });
            let waits: Vec<_> = waits.collect();
            waits.into_iter().map(|wait| wait.join().unwrap()).collect()
        });
        let after = released.elapsed();
        let failed = ends.iter().filter(|(code, _)| *code != Some(0)).count();
        let times: Vec<_> = ends.into_iter().map(|(_, time)| time).collect();
        println!(
            "{}",
            json!({
                "evidence": "crowd", "what": what, "seed": 0, "processes": count,
                "failed": failed, "held_secs": held.as_secs_f64(),
                "share_of_a_core": share, "ms": quantiles(times.clone()),
                "secs_after_release": after.as_secs_f64(),
                "submits_one_after_the_other_secs": in_turn.as_secs_f64(),
            })
        );
        assert_eq!(failed, 0);
        assert!(share <= 0.2, "waiting took {share} of a core");
        let mut sorted = times;
        sorted.sort_by(f64::total_cmp);
        assert!(sorted[sorted.len() - 1] <= 4.0 * sorted[sorted.len() / 2], "{sorted:?}");
        if what == "submits" {
            assert!(after <= in_turn.mul_f64(1.5), "{after:?} beside {in_turn:?}");
        }
    }

    let (times, took, share) = watches(&Bench::new(), count, count + count / 5);
    println!(
        "{}",
        json!({
            "evidence": "crowd", "what": "watches", "seed": 0, "processes": count,
            "submit_ms": quantiles(times.clone()), "secs": took, "share_of_a_core": share,
        })
    );
    assert!(share <= 0.2, "the watches took {share} of a core");
    let mut sorted = times;
    sorted.sort_by(f64::total_cmp);
    assert!(sorted[sorted.len() - 1] <= 4.0 * sorted[sorted.len() / 2], "{sorted:?}");
    drop(load.0);
}
