//! What runs in a process of its own: this program, called again with a word for what to do.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use draftq::Cancellation;
use draftq::Waiter;
use draftq::{Draft, DraftProcessingDecision, DraftProcessor, DraftStore, LibrarianError, Runner};

use crate::{Outcome, Trivial, bare, draft_of};

/// Do what the arguments say, if they are those of a child.
pub fn act(arguments: &[String]) -> Option<Outcome<()>> {
    let [role, path] = arguments else { return None };
    let path = Path::new(path);
    match role.as_str() {
        "child-drain" => Some(drain(path)),
        "child-open" => Some(open(path)),
        "child-watch" => Some(watch(path)),
        _ => None,
    }
}

/// A child and its answers.
pub struct Answering {
    pub process: Child,
    pub input: ChildStdin,
    pub answers: Lines<BufReader<ChildStdout>>,
}

/// Start a child of this kind on this database.
pub fn start(role: &str, path: &Path) -> Outcome<Answering> {
    let mut process = Command::new(std::env::current_exe()?)
        .arg(role)
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let input = process.stdin.take().ok_or("no input")?;
    let answers = BufReader::new(process.stdout.take().ok_or("no output")?).lines();
    Ok(Answering { process, input, answers })
}

impl Answering {
    pub fn answer(&mut self) -> Outcome<String> {
        Ok(self.answers.next().ok_or("no answer")??)
    }

    /// CPU time so far.
    pub fn cpu_time(&self) -> Outcome<Duration> {
        let mut total = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            // In nanoseconds, where `stat` has hundredths of a second.
            let stat = std::fs::read_to_string(task?.path().join("schedstat"))?;
            total += stat.split(' ').next().ok_or("no time")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(total))
    }

    /// Peak of its memory so far, in MiB.
    pub fn peak_memory(&self) -> Outcome<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no peak")?;
        Ok(kib.trim().parse::<f64>()? / 1024.0)
    }
}

/// Drain until nothing is left: say that it is open, wait for the word, say how many it had, and
/// wait for the end.
fn drain(path: &Path) -> Outcome<()> {
    let store = DraftStore::open(path)?;
    let runner = Runner::new(&store, "bench").max_items(0);
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    std::io::stdin().read_line(&mut String::new())?;
    let report = runner.run_one(&mut Trivial, SystemTime::now());
    if let Some(error) = report.stopped_by {
        return Err(error.into());
    }
    drop(runner);
    writeln!(out, "{}", report.summary.accepted)?;
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// Wait for work, and print when each draft is begun.
fn watch(path: &Path) -> Outcome<()> {
    struct Stamp;
    impl DraftProcessor for Stamp {
        fn process(&mut self, _draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            writeln!(std::io::stdout(), "{}", now.unwrap_or_default().as_nanos())?;
            Ok(DraftProcessingDecision::Accepted)
        }
    }
    let store = DraftStore::open(path)?;
    let runner = Runner::new(&store, "bench").max_items(0);
    let cancellation = Cancellation::default();
    let mut waiter = Waiter::new(&store)?;
    loop {
        waiter.mark()?;
        runner.run_one(&mut Stamp, SystemTime::now()).into_result()?;
        waiter.wait(Instant::now() + Duration::from_secs(3600), &cancellation)?;
    }
}

/// The bare program: open, insert, commit.
fn open(path: &Path) -> Outcome<()> {
    let connection = bare::open(path)?;
    bare::insert(&connection, &draft_of("draft".to_owned()))
}
