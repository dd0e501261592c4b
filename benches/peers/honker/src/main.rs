//! honker, as it comes (`synchronous=NORMAL`) or, as `full-OPERATION`, with `synchronous=FULL`.

#[path = "../../common.rs"]
mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Gate, Outcome, Peer, Seen};
use honker::{Database, EnqueueOpts, Queue, QueueOpts};

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let full = arguments.first().is_some_and(|operation| operation.starts_with("full-"));
    common::run(&Honker { full }, if full { "full-" } else { "" }, &arguments)
}

struct Honker {
    full: bool,
}

impl Honker {
    fn open(&self, directory: &Path) -> Outcome<(Database, Queue)> {
        let database = Database::open(directory.join("honker.db"))?;
        if self.full {
            let synchronous = database.with_conn(|connection| {
                connection.execute_batch("PRAGMA synchronous = FULL")?;
                connection.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0))
            })?;
            if synchronous != 2 {
                return Err("synchronous is not FULL".into());
            }
        }
        let queue = database.queue("drafts", QueueOpts::default());
        Ok((database, queue))
    }
}

impl Peer for Honker {
    fn name(&self) -> String {
        let synchronous = if self.full { "FULL" } else { "NORMAL, as it comes" };
        format!("honker 0.5.0, WAL, {synchronous}")
    }

    fn submit(&self, directory: &Path, texts: &[String]) -> Outcome<Duration> {
        let (_database, queue) = self.open(directory)?;
        let begun = Instant::now();
        for text in texts {
            queue.enqueue(text, EnqueueOpts::default())?;
        }
        Ok(begun.elapsed())
    }

    fn submit_many(&self, directory: &Path, texts: &[String]) -> Outcome<Option<Duration>> {
        let (database, queue) = self.open(directory)?;
        let begun = Instant::now();
        let transaction = database.transaction()?;
        for text in texts {
            queue.enqueue_tx(&transaction, text, EnqueueOpts::default())?;
        }
        transaction.commit()?;
        Ok(Some(begun.elapsed()))
    }

    fn most_at_once(&self) -> usize {
        100
    }

    fn drain(&self, directory: &Path, batch: usize, gate: &Gate, seen: &Seen) -> Outcome<Duration> {
        let (_database, queue) = self.open(directory)?;
        let worker = std::process::id().to_string();
        let begun = gate.wait()?;
        loop {
            let jobs = queue.claim_batch(&worker, i64::try_from(batch)?)?;
            if jobs.is_empty() {
                return Ok(begun.elapsed());
            }
            for job in &jobs {
                seen.process(&job.payload_as::<String>()?)?;
            }
            let acknowledged = if let [job] = jobs.as_slice() {
                job.ack()?
            } else {
                let ids: Vec<i64> = jobs.iter().map(|job| job.id).collect();
                queue.ack_batch(&ids, &worker)? == i64::try_from(ids.len())?
            };
            if !acknowledged {
                return Err("a claim was lost".into());
            }
        }
    }

    fn left(&self, directory: &Path) -> Outcome<usize> {
        let (database, _queue) = self.open(directory)?;
        // What is done is deleted; what failed too often goes to a table of its own.
        let left: i64 = database.with_conn(|connection| {
            connection.query_row(
                "SELECT (SELECT count(*) FROM _honker_live) + (SELECT count(*) FROM _honker_dead)",
                [],
                |row| row.get(0),
            )
        })?;
        Ok(usize::try_from(left)?)
    }
}
