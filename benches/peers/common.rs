//! What every peer's program shares: the operations, the texts, the processes, the line of JSON.
//!
//! `PROGRAM OPERATION DRAFTS` measures one operation once and prints one line. A program calls
//! itself as `PROGRAM OPERATION DRAFTS child DIRECTORY` for each process of a drain, so that a
//! drain by one runner and by four are measured in the same way.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Barrier, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The size of a text.
const BYTES: usize = 1024;

/// How long a process may take for a drain before it counts as failed.
const DEADLINE: Duration = Duration::from_secs(120);

/// A queue under measurement.
pub trait Peer {
    /// How the table calls it.
    fn name(&self) -> String;

    /// Submits one text after the other and says how long that took, without opening.
    fn submit(&self, directory: &Path, texts: &[String]) -> Outcome<Duration>;

    /// Submits all texts in one call or transaction; `None` if it has no such thing.
    fn submit_many(&self, directory: &Path, texts: &[String]) -> Outcome<Option<Duration>>;

    /// How many it is told to take at once when it may take many. draftq and the file version
    /// leave no such choice.
    fn most_at_once(&self) -> usize {
        1
    }

    /// Opens the queue, waits at the gate, and processes until nothing is left: claims of
    /// `batch` at once, each processed by `seen`. Says how long that took since the gate opened.
    fn drain(&self, directory: &Path, batch: usize, gate: &Gate, seen: &Seen) -> Outcome<Duration>;

    /// How many are not yet finished, by the queue's own account.
    fn left(&self, directory: &Path) -> Outcome<usize>;
}

/// Where the processes of a drain wait for each other, each with its queue already open.
#[derive(Default)]
pub struct Gate(OnceLock<Instant>);

impl Gate {
    /// When the gate opened.
    pub fn wait(&self) -> Outcome<Instant> {
        writeln!(std::io::stdout(), "ready")?;
        std::io::stdin().read_line(&mut String::new())?;
        Ok(*self.0.get_or_init(Instant::now))
    }
}

/// The trivial processor: it remembers which texts it was given, and when the last came.
///
/// Shared, since some queues call it from a task of their own.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<(Vec<usize>, Option<Instant>)>>);

impl Seen {
    pub fn process(&self, text: &str) -> Outcome<()> {
        if text.len() != BYTES {
            return Err(format!("a text of {} bytes", text.len()).into());
        }
        let number = text.get(..8).ok_or("a text without a number")?.parse()?;
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.0.push(number);
        seen.1 = Some(Instant::now());
        Ok(())
    }

    fn take(&self) -> (Vec<usize>, Option<Instant>) {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Measures what the arguments ask for.
///
/// `prefix` is what the names of this peer's operations begin with, where a program has several.
pub fn run(peer: &impl Peer, prefix: &str, arguments: &[String]) -> Outcome<()> {
    let [operation, drafts, role @ ..] = arguments else {
        return Err("usage: PROGRAM OPERATION DRAFTS".into());
    };
    let operation = operation.strip_prefix(prefix).ok_or("an operation of another peer")?;
    let drafts: usize = drafts.parse()?;
    if let [role, directory] = role
        && role == "child"
    {
        let (_, many) = drain_of(operation).ok_or("not a drain")?;
        let batch = if many { peer.most_at_once() } else { 1 };
        return child(peer, Path::new(directory), batch);
    }
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    let texts = texts(drafts)?;
    let mut line = match operation {
        "submit" => taken(drafts, Some(peer.submit(directory, &texts)?)),
        "submit-many" => taken(drafts, peer.submit_many(directory, &texts)?),
        _ => {
            let (processes, _) = drain_of(operation)
                .ok_or("operations: submit, submit-many, drain[-many], drain-4[-many]")?;
            if peer.submit_many(directory, &texts)?.is_none() {
                peer.submit(directory, &texts)?;
            }
            let command = [format!("{prefix}{operation}"), drafts.to_string()];
            drain(peer, directory, &command, drafts, processes)?
        }
    };
    line["peer"] = peer.name().into();
    line["operation"] = operation.into();
    line["drafts"] = drafts.into();
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

/// How many processes, and whether they may take many at once.
fn drain_of(operation: &str) -> Option<(usize, bool)> {
    match operation {
        "drain" => Some((1, false)),
        "drain-many" => Some((1, true)),
        "drain-4" => Some((4, false)),
        "drain-4-many" => Some((4, true)),
        _ => None,
    }
}

fn taken(drafts: usize, took: Option<Duration>) -> Value {
    json!({ "per_second": took.map(|took| rate(drafts, took)) })
}

/// Operations per second, whole ones.
fn rate(operations: usize, took: Duration) -> u64 {
    let nanos = took.as_nanos().max(1);
    let operations = u128::try_from(operations).unwrap_or(u128::MAX);
    u64::try_from(operations.saturating_mul(1_000_000_000) / nanos).unwrap_or(u64::MAX)
}

/// The same texts for everyone: ASCII, so that no queue pays for escapes that others do not have.
fn texts(drafts: usize) -> Outcome<Vec<String>> {
    let mut texts = Vec::with_capacity(drafts);
    for number in 0..drafts {
        let mut text = String::with_capacity(BYTES + 64);
        write!(text, "{number:08} ")?;
        while text.len() < BYTES {
            text.push_str("The staging database moved to port 5433 on Tuesday. ");
        }
        text.truncate(BYTES);
        texts.push(text);
    }
    Ok(texts)
}

/// What one process of a drain had to say.
struct Answer {
    took: Option<Duration>,
    error: Option<String>,
    seen: Vec<usize>,
}

fn drain(
    peer: &impl Peer,
    directory: &Path,
    command: &[String],
    drafts: usize,
    processes: usize,
) -> Outcome<Value> {
    let barrier = Arc::new(Barrier::new(processes));
    let (sender, answers) = mpsc::channel();
    let mut children = Vec::new();
    for _ in 0..processes {
        let mut child = Command::new(std::env::current_exe()?)
            .args(command)
            .arg("child")
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().ok_or("no input")?;
        let output = child.stdout.take().ok_or("no output")?;
        children.push(child);
        let (barrier, sender) = (Arc::clone(&barrier), sender.clone());
        std::thread::spawn(move || {
            // Nobody listens any more: the deadline has passed.
            let _ = sender.send(listen(input, output, &barrier));
        });
    }
    let deadline = Instant::now() + DEADLINE;
    let mut heard = Vec::new();
    for _ in 0..processes {
        let patience = deadline.saturating_duration_since(Instant::now());
        match answers.recv_timeout(patience) {
            Ok(answer) => heard.push(answer),
            Err(_) => {
                // Whoever has not answered is stuck; the rest is over already.
                children.iter_mut().try_for_each(Child::kill)?;
                heard.push(answers.recv()?);
            }
        }
    }
    for child in &mut children {
        child.wait()?;
    }

    let mut times = vec![0_usize; drafts];
    for number in heard.iter().flat_map(|answer| &answer.seen) {
        *times.get_mut(*number).ok_or("an unknown text")? += 1;
    }
    let left = peer.left(directory)?;
    // The slowest counts. One that was stuck says nothing; one that failed, until when it worked.
    let took = heard.iter().filter_map(|answer| answer.took).max();
    let done = drafts.saturating_sub(left);
    Ok(json!({
        "per_second": took.map(|took| rate(done, took)),
        "processes": processes,
        "failed": heard.iter().filter(|answer| answer.error.is_some()).count(),
        "never": times.iter().filter(|times| **times == 0).count(),
        "repeated": times.iter().filter(|times| **times > 1).count(),
        "left": left,
        "least": heard.iter().map(|answer| answer.seen.len()).min(),
        "errors": heard.iter().filter_map(|answer| answer.error.as_deref()).collect::<Vec<_>>(),
    }))
}

/// The parent's side of one process.
fn listen(mut input: ChildStdin, output: ChildStdout, barrier: &Barrier) -> Answer {
    let mut lines = BufReader::new(output).lines().map_while(Result::ok);
    let ready = lines.next();
    // Also without a word of its own: the others must not wait for it.
    barrier.wait();
    let mut answer = Answer { took: None, error: None, seen: Vec::new() };
    if ready.as_deref() != Some("ready") || input.write_all(b"go\n").is_err() {
        answer.error = Some("did not open".to_owned());
        return answer;
    }
    answer.took = lines.next().and_then(|it| it.parse().ok()).map(Duration::from_nanos);
    match lines.next() {
        Some(error) if error.is_empty() => {}
        Some(error) => answer.error = Some(error),
        None => answer.error = Some("died or was stuck".to_owned()),
    }
    answer.seen = lines.filter_map(|line| line.parse().ok()).collect();
    answer
}

/// The process's own side: how long, the error if there was one, and the number of each text.
fn child(peer: &impl Peer, directory: &Path, batch: usize) -> Outcome<()> {
    let seen = Seen::default();
    let gate = Gate::default();
    let result = peer.drain(directory, batch, &gate, &seen);
    let (numbers, last) = seen.take();
    let (took, error) = match result {
        Ok(took) => (took, String::new()),
        // As long as it worked: not how long it then was stuck.
        Err(error) => {
            let took = gate.0.get().zip(last).map(|(begun, last)| last - *begun);
            (took.unwrap_or_default(), error.to_string().replace('\n', " "))
        }
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", took.as_nanos())?;
    writeln!(out, "{error}")?;
    for number in numbers {
        writeln!(out, "{number}")?;
    }
    Ok(())
}
