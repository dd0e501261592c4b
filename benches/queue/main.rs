//! `cargo bench`: how fast draftq is, beside R ([`bare`]), in one run.
//!
//! Machines differ and are noisy, so the ratio is what counts, and draftq and R take turns: block
//! by block where many drafts go one by one, one after the other elsewhere. Everything is measured
//! anew in each of several runs, minutes apart; the table has medians, and the range of the ratios.
//!
//! Prints Markdown; what it is at, to standard error. `cargo bench -- drain` measures the parts
//! whose name contains `drain`. The sizes are set by `DRAFTQ_BENCH_RUNS` (3), `DRAFTQ_BENCH_DRAFTS`
//! (20000) and `DRAFTQ_BENCH_GROWTH` (1000000: the longest queue and the most finished drafts).

mod bare;
mod children;
mod table;

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use draftq::{
    Draft, DraftMetadata, DraftProcessingDecision, DraftProcessor, DraftSourceSurface, DraftStore,
    LibrarianError, Runner,
};
use draftq::{SweepOptions, Swept};
use rusqlite::Connection;
use tempfile::TempDir;

use self::table::{Table, Unit, median};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const KIB: usize = 1024;

/// How many drafts go one by one before it is the other's turn.
const BLOCK: usize = 50;

const DRAFTQ: &str = env!("CARGO_BIN_EXE_draftq");

type Part = fn(&mut Bench) -> Outcome<()>;

const PARTS: [(&str, Part); 10] = [
    ("submit", Bench::submit),
    ("submit from threads", Bench::submit_from_threads),
    ("submit many", Bench::submit_many),
    ("sweep", Bench::sweep),
    ("drain", Bench::drain),
    ("drain by processes", Bench::drain_by_processes),
    ("growth", Bench::growth),
    ("start-up", Bench::start_up),
    ("wake-up", Bench::wake_up),
    ("memory", Bench::memory),
];

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(done) = children::act(&arguments) {
        return done;
    }
    let wanted = arguments.into_iter().find(|argument| !argument.starts_with('-'));
    let runs = size("DRAFTQ_BENCH_RUNS", 3);
    let mut bench = Bench {
        drafts: size("DRAFTQ_BENCH_DRAFTS", 20_000),
        growth: size("DRAFTQ_BENCH_GROWTH", 1_000_000),
        grown: HashMap::new(),
        table: Table::default(),
    };
    for run in 1..=runs {
        for (name, part) in PARTS {
            if wanted.as_deref().is_none_or(|wanted| name.contains(wanted)) {
                writeln!(std::io::stderr(), "run {run} of {runs}: {name}")?;
                // What others have left for the disk to write is not to be waited for here.
                rustix::fs::sync();
                part(&mut bench)?;
            }
        }
    }
    bench.table.print(&mut std::io::stdout())
}

fn size(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default).max(1)
}

struct Bench {
    drafts: usize,
    growth: usize,
    /// Large stores, made once.
    grown: HashMap<String, (TempDir, DraftStore)>,
    table: Table,
}

/// Operations per second.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn rate(operations: usize, took: Duration) -> f64 {
    operations as f64 / took.as_secs_f64()
}

fn timed<T>(what: impl FnOnce() -> Outcome<T>) -> Outcome<Duration> {
    let begun = Instant::now();
    what()?;
    Ok(begun.elapsed())
}

/// Seconds that it takes, the median of several times.
fn typical(times: usize, mut what: impl FnMut() -> Outcome<()>) -> Outcome<f64> {
    let took: Outcome<Vec<f64>> = (0..times).map(|_| Ok(timed(&mut what)?.as_secs_f64())).collect();
    Ok(median(&took?))
}

/// A directory that goes away, with a new queue of each kind.
struct Pair {
    _directory: TempDir,
    path: PathBuf,
    store: DraftStore,
    r: Connection,
}

impl Pair {
    fn new() -> Outcome<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("drafts.db");
        let store = DraftStore::options().connections(8).open(&path)?;
        let r = bare::create(&directory.path().join("bare.db"))?;
        Ok(Self { _directory: directory, path, store, r })
    }
}

impl Bench {
    fn submit(&mut self) -> Outcome<()> {
        let Pair { store, r, _directory, .. } = Pair::new()?;
        let drafts = self.drafts / 10;
        let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..drafts.div_ceil(BLOCK) {
            let block = make(BLOCK, KIB);
            theirs += timed(|| block.iter().try_for_each(|draft| bare::insert(&r, draft)))?;
            ours += timed(|| {
                block.iter().try_for_each(|draft| store.submit(draft).map(drop))?;
                Ok(())
            })?;
        }
        let name = "submit, one at a time";
        self.table.beside_r(name, Unit::PerSecond, rate(drafts, ours), rate(drafts, theirs));
        Ok(())
    }

    fn submit_from_threads(&mut self) -> Outcome<()> {
        const THREADS: usize = 8;
        let Pair { store, r, _directory, .. } = Pair::new()?;
        let blocks = (self.drafts / 40).div_ceil(BLOCK);
        let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..blocks {
            let block = make(BLOCK, KIB);
            theirs += timed(|| block.iter().try_for_each(|draft| bare::insert(&r, draft)))?;
            let block = make(BLOCK * THREADS, KIB);
            ours += timed(|| {
                std::thread::scope(|scope| {
                    let threads: Vec<_> = block
                        .chunks(BLOCK)
                        .map(|mine| {
                            let submit = |draft| store.submit(draft).map(drop);
                            scope.spawn(move || mine.iter().try_for_each(submit))
                        })
                        .collect();
                    threads.into_iter().try_for_each(|it| it.join().unwrap_or(Ok(())))
                })?;
                Ok(())
            })?;
        }
        self.table.beside_r(
            "submit, one at a time from 8 threads (R: from one)",
            Unit::PerSecond,
            rate(blocks * BLOCK * THREADS, ours),
            rate(blocks * BLOCK, theirs),
        );
        Ok(())
    }

    fn submit_many(&mut self) -> Outcome<()> {
        for (kib, drafts) in [(1, self.drafts), (10, self.drafts / 5), (100, self.drafts / 40)] {
            let Pair { store, mut r, _directory, .. } = Pair::new()?;
            let drafts = make(drafts, kib * KIB);
            let theirs = timed(|| bare::insert_many(&mut r, &drafts))?;
            rustix::fs::sync();
            let ours = timed(|| Ok(store.submit_many(&drafts)?))?;
            self.table.beside_r(
                &format!("submit many in a call, {kib} KiB"),
                Unit::PerSecond,
                rate(drafts.len(), ours),
                rate(drafts.len(), theirs),
            );
        }
        Ok(())
    }

    fn sweep(&mut self) -> Outcome<()> {
        const FILES: usize = 10_000;
        let tree = tempfile::tempdir()?;
        for (number, draft) in make(FILES, KIB).iter().enumerate() {
            fs::write(tree.path().join(format!("{number}.md")), draft.raw_text())?;
        }
        let Pair { store, mut r, _directory, .. } = Pair::new()?;
        rustix::fs::sync();
        let theirs = timed(|| {
            let transaction = r.transaction()?;
            for entry in fs::read_dir(tree.path())? {
                let text = fs::read_to_string(entry?.path())?;
                bare::insert(&transaction, &draft_of(text))?;
            }
            Ok(transaction.commit()?)
        })?;
        rustix::fs::sync();
        let ours = timed(|| {
            let metadata = DraftMetadata::new(DraftSourceSurface::Directory, SystemTime::now());
            let options = SweepOptions::new(metadata);
            let found = draftq::find_sweep_files(&[tree.path()])?;
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
            Ok(store.submit_many(&batch)?)
        })?;
        self.table.beside_r(
            "sweep of 10,000 files (R: read and insert them)",
            Unit::PerSecond,
            rate(FILES, ours),
            rate(FILES, theirs),
        );
        Ok(())
    }

    fn drain(&mut self) -> Outcome<()> {
        for (kib, drafts) in [(1, self.drafts), (10, self.drafts / 2), (100, self.drafts / 40)] {
            let Pair { store, mut r, _directory, .. } = Pair::new()?;
            let texts = make(drafts, kib * KIB);
            store.submit_many(&texts)?;
            bare::insert_many(&mut r, &texts)?;
            rustix::fs::sync();
            let few = (drafts / 5).max(100);
            let one_by_one = bare::drain(&mut r, few, 1)?;
            rustix::fs::sync();
            let ours = timed(|| drain(&store, drafts))?;
            rustix::fs::sync();
            let by_the_hundred = bare::drain(&mut r, drafts - few, 100)?;
            let size = if kib == 1 { String::new() } else { format!(", {kib} KiB") };
            for (how, theirs) in [
                ("one by one", rate(few, one_by_one)),
                ("by the hundred", rate(drafts - few, by_the_hundred)),
            ] {
                self.table.beside_r(
                    &format!("drain by one runner, trivial processor{size} (R: {how})"),
                    Unit::PerSecond,
                    rate(drafts, ours),
                    theirs,
                );
            }
        }
        Ok(())
    }

    fn drain_by_processes(&mut self) -> Outcome<()> {
        const PROCESSES: usize = 4;
        let drafts = self.drafts * 4;
        let measure = |processes: usize| -> Outcome<(f64, usize)> {
            let Pair { store, path, _directory, .. } = Pair::new()?;
            store.submit_many(&make(drafts, KIB))?;
            rustix::fs::sync();
            let mut children = (0..processes)
                .map(|_| children::start("child-drain", &path))
                .collect::<Outcome<Vec<_>>>()?;
            // Each says that it is open, and waits for the word to begin.
            children.iter_mut().try_for_each(|child| child.answer().map(drop))?;
            let begun = Instant::now();
            children.iter_mut().try_for_each(|child| child.input.write_all(b"go\n"))?;
            let shares = children
                .iter_mut()
                .map(|child| Ok(child.answer()?.parse()?))
                .collect::<Outcome<Vec<usize>>>()?;
            let took = begun.elapsed();
            for mut child in children {
                drop(child.input);
                child.process.wait()?;
            }
            if shares.iter().sum::<usize>() != drafts {
                return Err(format!("{shares:?} are not {drafts}").into());
            }
            Ok((rate(drafts, took), shares.into_iter().min().unwrap_or(0)))
        };
        let (one, _) = measure(1)?;
        let (four, least) = measure(PROCESSES)?;
        let name = "drain by 4 processes (beside it: one process)";
        self.table.beside(name, Unit::PerSecond, four, "one", one);
        let share = rate(least * PROCESSES * 100, Duration::from_secs(1))
            / rate(drafts, Duration::from_secs(1));
        self.table.alone("its least share, of a fair one", Unit::Percent, share);
        Ok(())
    }

    /// A store with this many others in it, beside one without.
    fn growth(&mut self) -> Outcome<()> {
        const DRAINED: usize = 2_000;
        const BYTES: usize = 100;
        let sizes = |least: usize| {
            let most = self.growth;
            [1_000, 10_000, 100_000, 1_000_000]
                .into_iter()
                .filter(move |it| (least..=most).contains(it))
        };
        let grown: Vec<(Grown, usize)> = sizes(1_000)
            .map(|drafts| (Grown::Pending, drafts))
            .chain(sizes(100_000).map(|drafts| (Grown::Finished, drafts)))
            .chain(sizes(100_000).map(|drafts| (Grown::Waiting, drafts)))
            .collect();
        for (what, drafts) in grown {
            let among = format!("among {drafts} {}", what.name());
            if !self.grown.contains_key(&among) {
                let directory = tempfile::tempdir()?;
                let path = directory.path().join("drafts.db");
                let store = DraftStore::open(&path)?;
                what.fill(&store, &path, drafts, BYTES)?;
                self.grown.insert(among.clone(), (directory, store));
            }
            let (_, crowded) = self.grown.get(&among).ok_or("just made")?;
            let Pair { store: empty, path, _directory, .. } = Pair::new()?;
            let mut took = [Duration::ZERO; 2];
            for _ in 0..3 {
                for (store, took) in [&empty, crowded].into_iter().zip(&mut took) {
                    store.submit_many(&make(DRAINED, BYTES))?;
                    // Or else the drain pays for what the submit has left in the WAL, more or
                    // less of it.
                    Connection::open(store.path())?.query_row(
                        "PRAGMA wal_checkpoint(TRUNCATE)",
                        [],
                        |_| Ok(()),
                    )?;
                    rustix::fs::sync();
                    *took += timed(|| drain(store, DRAINED))?;
                }
            }
            let [few, many] = took.map(|took| rate(3 * DRAINED, took));
            let name = format!("drain of {DRAINED} {among}");
            self.table.beside(&name, Unit::PerSecond, many, "among none", few);
            if drafts < self.growth {
                continue;
            }
            let looks = |store: &DraftStore, path: &Path| -> Outcome<[(&'static str, f64); 3]> {
                Ok([
                    ("stats", typical(21, || Ok(store.stats().map(drop)?))?),
                    (
                        "recovery, with nothing to do,",
                        typical(21, || Ok(store.recover(SystemTime::UNIX_EPOCH).map(drop)?))?,
                    ),
                    ("opening the file", typical(21, || Ok(DraftStore::open(path).map(drop)?))?),
                ])
            };
            let many = looks(crowded, crowded.path())?;
            let few = looks(&empty, &path)?;
            for ((what, many), (_, few)) in many.into_iter().zip(few) {
                let name = format!("{what} {among}");
                self.table.beside(&name, Unit::Seconds, many, "among none", few);
            }
        }
        Ok(())
    }

    /// The command, start to end, beside a bare program that opens, inserts and commits.
    fn start_up(&mut self) -> Outcome<()> {
        const TIMES: usize = 100;
        let Pair { store, path, r, _directory } = Pair::new()?;
        store.submit_many(&make(100, KIB))?;
        // No process is to find the file open: then it would have less to do at its end.
        drop((store, r));
        let bare_path = path.with_file_name("bare.db");
        let (mut ours, mut theirs, mut looks) = (Vec::new(), Vec::new(), Vec::new());
        let unique = fastrand::u64(..);
        for number in 0..TIMES {
            let text = format!("{unique:x} {number}");
            let mut bare = Command::new(std::env::current_exe()?);
            bare.arg("child-open").arg(&bare_path);
            theirs.push(timed(|| run(&mut bare))?.as_secs_f64());
            let draftq = || {
                let mut command = Command::new(DRAFTQ);
                command.arg("--db").arg(&path);
                command
            };
            ours.push(timed(|| run(draftq().args(["submit", "--text", &text])))?.as_secs_f64());
            looks.push(timed(|| run(draftq().arg("stats")))?.as_secs_f64());
        }
        self.table.beside_r(
            "`draftq submit --text`, start to end (R: a bare program that opens, inserts, commits)",
            Unit::Seconds,
            median(&ours),
            median(&theirs),
        );
        let name = "`draftq stats` on a small file, start to end";
        self.table.alone(name, Unit::Seconds, median(&looks));
        Ok(())
    }

    /// From a submit's return in this process to the call of the processor in a waiting one, and
    /// what the waiting costs.
    fn wake_up(&mut self) -> Outcome<()> {
        const TIMES: usize = 200;
        let Pair { store, path, _directory, .. } = Pair::new()?;
        let mut watch = children::start("child-watch", &path)?;
        let mut latencies = Vec::new();
        for number in 0..=TIMES {
            // A moment in which it falls asleep.
            std::thread::sleep(Duration::from_millis(5));
            store.submit(&draft_of(format!("draft {number}")))?;
            let submitted = unix_nanos()?;
            let begun: u128 = watch.answer()?.parse()?;
            let took = u64::try_from(begun.saturating_sub(submitted))?;
            latencies.push(Duration::from_nanos(took).as_secs_f64());
        }
        // The first is for the watch to be up.
        latencies.remove(0);
        latencies.sort_by(f64::total_cmp);
        let name = "wake-up: from a submit to its processor's start in a waiting process";
        for (part, of) in [(50, "p50"), (99, "p99")] {
            let took = latencies.get(TIMES * part / 100).copied().unwrap_or(f64::NAN);
            self.table.alone(&format!("{name}, {of}"), Unit::Seconds, took);
        }
        let idle = Duration::from_secs(10);
        let before = watch.cpu_time()?;
        std::thread::sleep(idle);
        let used = watch.cpu_time()? - before;
        let share = used.as_secs_f64() / idle.as_secs_f64() * 100.0;
        self.table.alone("an idle watch: CPU", Unit::Percent, share);
        self.table.alone("an idle watch: peak memory", Unit::Mebibytes, watch.peak_memory()?);
        watch.process.kill()?;
        watch.process.wait()?;
        Ok(())
    }

    /// Peak memory of a process that drains all there is.
    fn memory(&mut self) -> Outcome<()> {
        let measure = |drafts: usize| -> Outcome<f64> {
            let Pair { store, path, _directory, .. } = Pair::new()?;
            for block in 0..drafts.div_ceil(10_000) {
                store.submit_many(&make((drafts - block * 10_000).min(10_000), KIB))?;
            }
            let mut child = children::start("child-drain", &path)?;
            child.answer()?;
            child.input.write_all(b"go\n")?;
            child.answer()?;
            let peak = child.peak_memory()?;
            drop(child.input);
            child.process.wait()?;
            Ok(peak)
        };
        let (many, few) = (self.drafts * 5, self.drafts / 2);
        let name = format!("peak memory of a run over {many} drafts (beside it: over {few})");
        let (many, few) = (measure(many)?, measure(few)?);
        self.table.beside(&name, Unit::Mebibytes, many, "few", few);
        Ok(())
    }
}

/// What a store is grown with.
#[derive(Clone, Copy)]
enum Grown {
    Pending,
    Finished,
    Waiting,
}

impl Grown {
    fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Finished => "finished",
            Self::Waiting => "that wait for a time",
        }
    }

    fn fill(self, store: &DraftStore, path: &Path, drafts: usize, bytes: usize) -> Outcome<()> {
        for block in 0..drafts.div_ceil(10_000) {
            store.submit_many(&make((drafts - block * 10_000).min(10_000), bytes))?;
        }
        match self {
            Self::Pending => Ok(()),
            Self::Finished => drain(store, drafts),
            Self::Waiting => {
                let connection = Connection::open(path)?;
                // A day ahead: further than 30 days would be the mark of a wrong clock.
                connection
                    .execute("UPDATE drafts SET due_at = (unixepoch() + 86400) * 1000 + seq", [])?;
                Ok(())
            }
        }
    }
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
    let runner = Runner::new(store, "bench").max_items(0).limit(limit);
    let report = runner.run_one(&mut Trivial, SystemTime::now());
    if let Some(error) = report.stopped_by {
        return Err(error.into());
    }
    if report.summary.accepted == limit { Ok(()) } else { Err("not all were drained".into()) }
}

fn unix_nanos() -> Outcome<u128> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos())
}
