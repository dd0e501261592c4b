//! effectum, as it comes: made for one process, asynchronous, finished jobs kept.

#[path = "../../common.rs"]
mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Gate, Outcome, Peer, Seen};
use effectum::{Job, JobRunner, Queue, RunningJob, Worker};

/// Without progress for so long, a process counts as failed: more than twice what SQLite waits
/// for a lock before it gives up.
const STUCK: Duration = Duration::from_secs(11);

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    common::run(&Effectum, "", &arguments)
}

struct Effectum;

/// The runtime of effectum's own example; the writing is in a thread of effectum's.
fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn open(directory: &Path) -> Outcome<Queue> {
    Ok(Queue::new(&directory.join("effectum.db")).await?)
}

/// Closing waits for the writer's thread: without it the last work might be cut off.
async fn close(queue: &Queue) -> Outcome<()> {
    Ok(queue.close(Duration::from_secs(5)).await?)
}

fn job(text: &str) -> Job {
    Job::builder("draft").payload(text.as_bytes().to_vec()).build()
}

async fn process(job: RunningJob, seen: Seen) -> Result<(), String> {
    let text = std::str::from_utf8(&job.payload).map_err(|error| error.to_string())?;
    seen.process(text).map_err(|error| error.to_string())
}

impl Peer for Effectum {
    fn name(&self) -> String {
        "effectum 0.7.0, rollback journal, NORMAL".to_owned()
    }

    fn submit(&self, directory: &Path, texts: &[String]) -> Outcome<Duration> {
        runtime()?.block_on(async {
            let queue = open(directory).await?;
            let begun = Instant::now();
            for text in texts {
                queue.add_job(job(text)).await?;
            }
            let took = begun.elapsed();
            close(&queue).await?;
            Ok(took)
        })
    }

    fn submit_many(&self, directory: &Path, texts: &[String]) -> Outcome<Option<Duration>> {
        runtime()?.block_on(async {
            let queue = open(directory).await?;
            let begun = Instant::now();
            queue.add_jobs(texts.iter().map(|text| job(text)).collect()).await?;
            let took = begun.elapsed();
            close(&queue).await?;
            Ok(Some(took))
        })
    }

    fn most_at_once(&self) -> usize {
        100
    }

    fn drain(&self, directory: &Path, batch: usize, gate: &Gate, seen: &Seen) -> Outcome<Duration> {
        runtime()?.block_on(async {
            let queue = open(directory).await?;
            let begun = gate.wait()?;
            // effectum's batch is how many jobs of a worker are under way at once.
            let worker = Worker::builder(&queue, seen.clone())
                .max_concurrency(u16::try_from(batch)?)
                .jobs([JobRunner::builder("draft", process).build()])
                .build()
                .await?;
            // A worker never ends, so it is over when the queue says that nothing waits. It is
            // asked only once the worker has come to rest, not to disturb it with reads, and the
            // time is that of the last job.
            let (mut finished, mut last) = (0, Instant::now());
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let counts = worker.counts();
                if counts.finished > finished {
                    (finished, last) = (counts.finished, Instant::now());
                }
                if last.elapsed() < Duration::from_millis(200) {
                    continue;
                }
                let idle = counts.started == counts.finished;
                match queue.num_active_jobs().await {
                    Ok(active) if idle && active.pending == 0 => break,
                    Ok(_) | Err(_) if last.elapsed() > STUCK => {
                        return Err("stuck after an error that effectum only logs".into());
                    }
                    Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
            drop(worker);
            close(&queue).await?;
            Ok(last - begun)
        })
    }

    fn left(&self, directory: &Path) -> Outcome<usize> {
        runtime()?.block_on(async {
            let queue = open(directory).await?;
            let active = queue.num_active_jobs().await?;
            close(&queue).await?;
            Ok(usize::try_from(active.pending + active.running)?)
        })
    }
}
