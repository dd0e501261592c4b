//! `cargo bench`: how fast draftq is, beside R, in one run.
//!
//! R is a bare rusqlite loop of the same durability (WAL, `synchronous=FULL`) with a minimal
//! table: what SQLite on this machine gives to a queue without fences, checks, history, errors or
//! runners. Machines differ and are noisy, so the ratio to R is what counts; each figure is the
//! median of several rounds, in which draftq and R take turns.
//!
//! Prints Markdown. `cargo bench -- drain` runs the parts whose name contains `drain`;
//! `DRAFTQ_BENCH_ROUNDS` (3), `DRAFTQ_BENCH_DRAFTS` (20000) and `DRAFTQ_BENCH_GROWTH` (100000)
//! size it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use draftq::runner::Cancellation;
use draftq::sweep::{self, SweepOptions, Swept};
use draftq::watch::Waiter;
use draftq::{
    Draft, DraftMetadata, DraftProcessingDecision, DraftProcessor, DraftSourceSurface, DraftStore,
    LibrarianError, Runner,
};
use rusqlite::{Connection, TransactionBehavior, params};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const KIB: usize = 1024;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, path, rest @ ..] = arguments.as_slice() {
        match role.as_str() {
            "child-drain" => return child_drain(Path::new(path), rest),
            "child-open" => return child_open(Path::new(path)),
            "child-watch" => return child_watch(Path::new(path)),
            _ => {}
        }
    }
    let wanted = arguments.into_iter().find(|argument| !argument.starts_with('-'));
    let mut bench = Bench {
        wanted,
        rounds: size("DRAFTQ_BENCH_ROUNDS", 3),
        drafts: size("DRAFTQ_BENCH_DRAFTS", 20_000),
        growth: size("DRAFTQ_BENCH_GROWTH", 100_000),
        out: std::io::stdout(),
    };
    writeln!(bench.out, "| what | draftq | R | draftq / R | spread |")?;
    writeln!(bench.out, "|---|---|---|---|---|")?;
    bench.submit_one_by_one()?;
    bench.submit_from_threads()?;
    bench.submit_many()?;
    bench.sweep()?;
    bench.drain()?;
    bench.drain_by_processes()?;
    bench.drain_grown()?;
    bench.start_up()?;
    bench.wake_up()?;
    Ok(())
}

fn size(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default).max(1)
}

struct Bench {
    wanted: Option<String>,
    rounds: usize,
    drafts: usize,
    growth: usize,
    out: std::io::Stdout,
}

/// Operations per second.
fn rate(operations: usize, took: Duration) -> f64 {
    // Counts here are far below 2^52.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let operations = operations as f64;
    operations / took.as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        self.wanted.as_deref().is_none_or(|wanted| name.contains(wanted))
    }

    /// Rounds of both, in turns; a line of the table.
    fn compare(
        &mut self,
        name: &str,
        mut ours: impl FnMut(&Path) -> Outcome<f64>,
        mut bare: impl FnMut(&Path) -> Outcome<f64>,
    ) -> Outcome<()> {
        if !self.wants(name) {
            return Ok(());
        }
        let (mut our_rates, mut bare_rates) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let directory = tempfile::tempdir()?;
            bare_rates.push(bare(&directory.path().join("bare.db"))?);
            our_rates.push(ours(&directory.path().join("drafts.db"))?);
        }
        let ratios = our_rates.iter().zip(&bare_rates).map(|(ours, bare)| ours / bare);
        let ratio = median(ratios.collect());
        let least = our_rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = our_rates.iter().copied().fold(0.0, f64::max);
        let (ours, bare) = (median(our_rates), median(bare_rates));
        writeln!(
            self.out,
            "| {name} | {ours:.0}/s | {bare:.0}/s | {ratio:.2} | {least:.0}–{most:.0}/s |"
        )?;
        Ok(())
    }

    /// A figure that has no R.
    fn tell(&mut self, name: &str, figure: &str) -> Outcome<()> {
        writeln!(self.out, "| {name} | {figure} | | | |")?;
        Ok(())
    }

    fn submit_one_by_one(&mut self) -> Outcome<()> {
        let drafts = self.drafts / 10;
        self.compare(
            "submit, one at a time, 1 KiB",
            |path| {
                let store = DraftStore::open(path)?;
                let drafts = make(drafts, KIB);
                let begun = Instant::now();
                for draft in &drafts {
                    store.submit(draft)?;
                }
                Ok(rate(drafts.len(), begun.elapsed()))
            },
            |path| bare_submit(path, drafts),
        )
    }

    fn submit_from_threads(&mut self) -> Outcome<()> {
        const THREADS: usize = 8;
        let drafts = self.drafts / 2;
        self.compare(
            "submit, one at a time from 8 threads (R: one thread)",
            |path| {
                let store = DraftStore::options().connections(8).open(path)?;
                let drafts = make(drafts, KIB);
                let begun = Instant::now();
                std::thread::scope(|scope| {
                    let threads: Vec<_> = drafts
                        .chunks(drafts.len().div_ceil(THREADS))
                        .map(|mine| {
                            let store = &store;
                            scope.spawn(move || {
                                mine.iter().try_for_each(|it| store.submit(it).map(drop))
                            })
                        })
                        .collect();
                    threads.into_iter().try_for_each(|it| it.join().unwrap_or(Ok(())))
                })?;
                Ok(rate(drafts.len(), begun.elapsed()))
            },
            |path| bare_submit(path, drafts / 5),
        )
    }

    fn submit_many(&mut self) -> Outcome<()> {
        for (name, bytes, drafts) in [
            ("submit many in a call, 1 KiB", KIB, self.drafts),
            ("submit many in a call, 10 KiB", 10 * KIB, self.drafts / 5),
            ("submit many in a call, 100 KiB", 100 * KIB, self.drafts / 40),
        ] {
            self.compare(
                name,
                |path| {
                    let store = DraftStore::open(path)?;
                    let drafts = make(drafts, bytes);
                    let begun = Instant::now();
                    store.submit_many(&drafts)?;
                    Ok(rate(drafts.len(), begun.elapsed()))
                },
                |path| {
                    let mut connection = bare(path)?;
                    let drafts = make(drafts, bytes);
                    let begun = Instant::now();
                    let transaction = connection.transaction()?;
                    for draft in &drafts {
                        bare_insert(&transaction, draft)?;
                    }
                    transaction.commit()?;
                    Ok(rate(drafts.len(), begun.elapsed()))
                },
            )?;
        }
        Ok(())
    }

    fn sweep(&mut self) -> Outcome<()> {
        let files = 10_000;
        if !self.wants("sweep") {
            return Ok(());
        }
        let tree = tempfile::tempdir()?;
        for (number, draft) in make(files, KIB).iter().enumerate() {
            fs::write(tree.path().join(format!("{number}.md")), draft.raw_text())?;
        }
        self.compare(
            "sweep of 10,000 files (R: read and insert them)",
            |path| {
                let store = DraftStore::open(path)?;
                let metadata = DraftMetadata::new(DraftSourceSurface::Directory, SystemTime::now());
                let options = SweepOptions::new(metadata);
                let begun = Instant::now();
                let found = sweep::find(&[tree.path()])?;
                let mut batch = Vec::new();
                for swept in found.drafts(&options) {
                    if let Swept::Draft(draft) = swept {
                        batch.push(draft);
                    }
                    if batch.len() == 500 {
                        store.submit_many(&batch)?;
                        batch.clear();
                    }
                }
                store.submit_many(&batch)?;
                Ok(rate(files, begun.elapsed()))
            },
            |path| {
                let mut connection = bare(path)?;
                let begun = Instant::now();
                let transaction = connection.transaction()?;
                for entry in fs::read_dir(tree.path())? {
                    let text = fs::read_to_string(entry?.path())?;
                    bare_insert(&transaction, &draft_of(text))?;
                }
                transaction.commit()?;
                Ok(rate(files, begun.elapsed()))
            },
        )
    }

    fn drain(&mut self) -> Outcome<()> {
        for (name, bytes, drafts) in [
            ("drain by one runner, 1 KiB (R: one by one)", KIB, self.drafts),
            ("drain by one runner, 10 KiB", 10 * KIB, self.drafts / 2),
            ("drain by one runner, 100 KiB", 100 * KIB, self.drafts / 40),
        ] {
            self.compare(
                name,
                |path| {
                    let store = DraftStore::open(path)?;
                    store.submit_many(&make(drafts, bytes))?;
                    let begun = Instant::now();
                    drain(&store, drafts)?;
                    Ok(rate(drafts, begun.elapsed()))
                },
                |path| bare_drain(path, drafts.min(4_000), bytes, 1),
            )?;
        }
        let drafts = self.drafts;
        self.compare(
            "drain by one runner, 1 KiB (R: by the hundred)",
            |path| {
                let store = DraftStore::open(path)?;
                store.submit_many(&make(drafts, KIB))?;
                let begun = Instant::now();
                drain(&store, drafts)?;
                Ok(rate(drafts, begun.elapsed()))
            },
            |path| bare_drain(path, drafts, KIB, 100),
        )
    }

    fn drain_by_processes(&mut self) -> Outcome<()> {
        const PROCESSES: usize = 4;
        let name = "drain by 4 processes, 1 KiB (R: draftq's one process)";
        if !self.wants(name) {
            return Ok(());
        }
        let drafts = self.drafts * 4;
        let mut shares = Vec::new();
        let mut measure = |path: &Path, processes: usize| -> Outcome<f64> {
            let store = DraftStore::open(path)?;
            store.submit_many(&make(drafts, KIB))?;
            let children: Vec<_> = (0..processes)
                .map(|_| {
                    Command::new(std::env::current_exe()?)
                        .arg("child-drain")
                        .arg(path)
                        .stdin(Stdio::piped())
                        .stdout(Stdio::piped())
                        .spawn()
                })
                .collect::<Result<_, _>>()?;
            // Each says that it is open, and waits for the word to begin.
            let mut answers = Vec::new();
            let mut starts = Vec::new();
            for mut child in children {
                let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
                lines.next().ok_or("no word")??;
                starts.push(child.stdin.take().ok_or("no input")?);
                answers.push((child, lines));
            }
            let begun = Instant::now();
            for start in &mut starts {
                start.write_all(b"go\n")?;
            }
            let mut mine = Vec::new();
            for (mut child, mut lines) in answers {
                mine.push(lines.next().ok_or("no answer")??.parse::<usize>()?);
                child.wait()?;
            }
            let took = begun.elapsed();
            if mine.iter().sum::<usize>() != drafts {
                return Err(format!("{mine:?} are not {drafts}").into());
            }
            if processes == PROCESSES {
                shares.push(mine);
            }
            Ok(rate(drafts, took))
        };
        let (mut four, mut one) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let directory = tempfile::tempdir()?;
            one.push(measure(&directory.path().join("one.db"), 1)?);
            four.push(measure(&directory.path().join("four.db"), PROCESSES)?);
        }
        let ratio = median(four.iter().zip(&one).map(|(four, one)| four / one).collect());
        let (four, one) = (median(four), median(one));
        let fair = drafts / PROCESSES;
        let least = shares.iter().flatten().min().copied().unwrap_or(0) * 100 / fair;
        writeln!(
            self.out,
            "| {name} | {four:.0}/s | {one:.0}/s | {ratio:.2} | least share {least} % of a fair one |"
        )?;
        Ok(())
    }

    /// A drain of 2,000 drafts among many others, beside the same among none.
    fn drain_grown(&mut self) -> Outcome<()> {
        const DRAINED: usize = 2_000;
        let grown = self.growth;
        for (name, prepare) in [
            ("pending", Grown::Pending),
            ("finished", Grown::Finished),
            ("in the future", Grown::Future),
        ] {
            let name = format!("drain of 2,000 among {grown} {name} (R: draftq among none)");
            self.compare(
                &name,
                |path| {
                    let store = DraftStore::open(path)?;
                    prepare.fill(&store, path, grown)?;
                    if !matches!(prepare, Grown::Pending) {
                        store.submit_many(&make(DRAINED, KIB))?;
                    }
                    let begun = Instant::now();
                    drain(&store, DRAINED)?;
                    Ok(rate(DRAINED, begun.elapsed()))
                },
                |path| {
                    let store = DraftStore::open(path)?;
                    store.submit_many(&make(DRAINED, KIB))?;
                    let begun = Instant::now();
                    drain(&store, DRAINED)?;
                    Ok(rate(DRAINED, begun.elapsed()))
                },
            )?;
        }
        Ok(())
    }

    /// The command, start to end, beside a bare program that opens, inserts and commits.
    fn start_up(&mut self) -> Outcome<()> {
        let draftq = env!("CARGO_BIN_EXE_draftq");
        let times = 50;
        self.compare(
            "`draftq submit --text` (R: a bare program that opens, inserts, commits)",
            |path| {
                drop(DraftStore::open(path)?);
                let begun = Instant::now();
                for number in 0..times {
                    let text = format!("draft {number}");
                    run(Command::new(draftq)
                        .arg("--db")
                        .arg(path)
                        .args(["submit", "--text", &text]))?;
                }
                Ok(rate(times, begun.elapsed()))
            },
            |path| {
                drop(bare(path)?);
                let begun = Instant::now();
                for _ in 0..times {
                    run(Command::new(std::env::current_exe()?).arg("child-open").arg(path))?;
                }
                Ok(rate(times, begun.elapsed()))
            },
        )?;
        if self.wants("draftq stats") {
            let directory = tempfile::tempdir()?;
            let path = directory.path().join("drafts.db");
            DraftStore::open(&path)?.submit_many(&make(100, KIB))?;
            let begun = Instant::now();
            for _ in 0..times {
                run(Command::new(draftq).arg("--db").arg(&path).arg("stats"))?;
            }
            let each = begun.elapsed() / u32::try_from(times)?;
            self.tell("`draftq stats` on a small file, start to end", &format!("{each:.1?}"))?;
        }
        Ok(())
    }

    /// From a submit's return in this process to the call of the processor in a waiting one, and
    /// what the waiting costs.
    fn wake_up(&mut self) -> Outcome<()> {
        if !self.wants("wake-up") {
            return Ok(());
        }
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("drafts.db");
        let store = DraftStore::open(&path)?;
        let mut watch = Command::new(std::env::current_exe()?)
            .arg("child-watch")
            .arg(&path)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(watch.stdout.take().ok_or("no output")?).lines();
        let mut latencies = Vec::new();
        for number in 0..201 {
            // A moment in which it falls asleep.
            std::thread::sleep(Duration::from_millis(5));
            store.submit(&draft_of(format!("draft {number}")))?;
            let submitted = unix_nanos()?;
            let begun: u128 = lines.next().ok_or("no line")??.parse()?;
            latencies.push(Duration::from_nanos(u64::try_from(begun.saturating_sub(submitted))?));
        }
        // The first is for the watch to be up.
        latencies.remove(0);
        latencies.sort();
        let at = |part: usize| latencies.get(latencies.len() * part / 100).copied();
        let (p50, p99) = (at(50).unwrap_or_default(), at(99).unwrap_or_default());
        self.tell(
            "wake-up: from a submit to its processor's start in a waiting process, p50 / p99 of 200",
            &format!("{p50:.2?} / {p99:.2?}"),
        )?;
        let idle = Duration::from_secs(30);
        let before = cpu_time(watch.id())?;
        std::thread::sleep(idle);
        let used = cpu_time(watch.id())? - before;
        let percent = used.as_secs_f64() / idle.as_secs_f64() * 100.0;
        let status = fs::read_to_string(format!("/proc/{}/status", watch.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("?");
        self.tell("idle watch over 30 s: CPU", &format!("{percent:.3} %"))?;
        self.tell("its peak memory", peak.trim())?;
        watch.kill()?;
        watch.wait()?;
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Grown {
    Pending,
    Finished,
    Future,
}

impl Grown {
    fn fill(self, store: &DraftStore, path: &Path, drafts: usize) -> Outcome<()> {
        for chunk in make(drafts, 100).chunks(10_000) {
            store.submit_many(chunk)?;
        }
        match self {
            Self::Pending => {}
            Self::Finished => drain(store, drafts)?,
            Self::Future => {
                let connection = Connection::open(path)?;
                // A day ahead: further than 30 days would be the mark of a wrong clock.
                connection
                    .execute("UPDATE drafts SET due_at = (unixepoch() + 86400) * 1000 + seq", [])?;
            }
        }
        Ok(())
    }
}

/// A process's CPU time, from its `schedstat`, which counts nanoseconds.
fn cpu_time(pid: u32) -> Outcome<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("schedstat"))?;
        total += stat.split(' ').next().ok_or("no time")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}

fn run(command: &mut Command) -> Outcome<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

fn draft_of(text: String) -> Draft {
    Draft::with_metadata(text, DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now()))
}

fn make(drafts: usize, bytes: usize) -> Vec<Draft> {
    let unique = fastrand::u64(..);
    (0..drafts)
        .map(|number| {
            let mut text = format!("{unique:x} {number} ");
            while text.len() < bytes {
                text.push_str("The staging database moved to port 5433 on Tuesday. ");
            }
            text.truncate(bytes.max(24));
            draft_of(text)
        })
        .collect()
}

/// A processor that costs nothing.
struct Trivial;

impl DraftProcessor for Trivial {
    fn process(&mut self, _draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        Ok(DraftProcessingDecision::Accepted)
    }
}

fn drain(store: &DraftStore, limit: usize) -> Outcome<()> {
    let runner = Runner::new(store, "bench").keep_items(false).limit(limit);
    let report = runner.run_one(&mut Trivial, SystemTime::now());
    if let Some(error) = report.stopped_by {
        return Err(error.into());
    }
    if report.summary.accepted == limit { Ok(()) } else { Err("not all were drained".into()) }
}

fn unix_nanos() -> Outcome<u128> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos())
}

/// A process of its own that waits for work, and prints when it begins each draft.
fn child_watch(path: &Path) -> Outcome<()> {
    struct Stamp;
    impl DraftProcessor for Stamp {
        fn process(&mut self, _draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            writeln!(std::io::stdout(), "{}", now.unwrap_or_default().as_nanos())?;
            Ok(DraftProcessingDecision::Accepted)
        }
    }
    let store = DraftStore::open(path)?;
    let runner = Runner::new(&store, "bench").keep_items(false);
    let cancellation = Cancellation::default();
    let mut waiter = Waiter::new(&store)?;
    loop {
        waiter.mark()?;
        runner.run_one(&mut Stamp, SystemTime::now()).into_result()?;
        waiter.wait(Instant::now() + Duration::from_secs(3600), &cancellation)?;
    }
}

/// A process of its own that drains until nothing is left, and prints how many it had.
fn child_drain(path: &Path, _rest: &[String]) -> Outcome<()> {
    let store = DraftStore::open(path)?;
    let runner = Runner::new(&store, "bench").keep_items(false);
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    std::io::stdin().read_line(&mut String::new())?;
    let report = runner.run_one(&mut Trivial, SystemTime::now());
    if let Some(error) = report.stopped_by {
        return Err(error.into());
    }
    writeln!(out, "{}", report.summary.accepted)?;
    Ok(())
}

/// The bare program: open, insert, commit.
fn child_open(path: &Path) -> Outcome<()> {
    let connection = open_bare(path)?;
    bare_insert(&connection, &draft_of("draft".to_owned()))?;
    Ok(())
}

fn open_bare(path: &Path) -> Outcome<Connection> {
    let connection = Connection::open(path)?;
    connection.execute_batch("PRAGMA synchronous = FULL")?;
    Ok(connection)
}

fn bare(path: &Path) -> Outcome<Connection> {
    let path: PathBuf = path.to_owned();
    let connection = open_bare(&path)?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0))?;
    connection.execute_batch(
        "CREATE TABLE q (seq INTEGER PRIMARY KEY, id TEXT NOT NULL, state TEXT NOT NULL, \
                         body TEXT NOT NULL);
         CREATE INDEX q_pending ON q (seq) WHERE state = 'pending';",
    )?;
    Ok(connection)
}

fn bare_insert(connection: &Connection, draft: &Draft) -> Outcome<()> {
    connection
        .prepare_cached("INSERT INTO q (id, state, body) VALUES (?1, 'pending', ?2)")?
        .execute(params![draft.id().to_hex(), draft.raw_text()])?;
    Ok(())
}

fn bare_submit(path: &Path, drafts: usize) -> Outcome<f64> {
    let connection = bare(path)?;
    let drafts = make(drafts, KIB);
    let begun = Instant::now();
    for draft in &drafts {
        bare_insert(&connection, draft)?;
    }
    Ok(rate(drafts.len(), begun.elapsed()))
}

/// Claim and finish, so many in a transaction.
fn bare_drain(path: &Path, drafts: usize, bytes: usize, batch: usize) -> Outcome<f64> {
    let mut connection = bare(path)?;
    let transaction = connection.transaction()?;
    for draft in make(drafts, bytes) {
        bare_insert(&transaction, &draft)?;
    }
    transaction.commit()?;
    let begun = Instant::now();
    let mut done = 0;
    while done < drafts {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let claimed: Vec<i64> = transaction
            .prepare_cached(
                "UPDATE q SET state = 'processing' WHERE seq IN \
                     (SELECT seq FROM q WHERE state = 'pending' ORDER BY seq LIMIT ?1) \
                 RETURNING seq, body",
            )?
            .query_map([i64::try_from(batch)?], |row| {
                std::hint::black_box(row.get::<_, String>(1)?);
                row.get(0)
            })?
            .collect::<Result<_, _>>()?;
        transaction.commit()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for seq in &claimed {
            transaction
                .prepare_cached("UPDATE q SET state = 'accepted' WHERE seq = ?1")?
                .execute([seq])?;
        }
        transaction.commit()?;
        done += claimed.len();
    }
    Ok(rate(drafts, begun.elapsed()))
}
