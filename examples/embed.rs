//! A service that embeds draftq: threads submit drafts while another processes them, until the
//! service stops.
//!
//! ```text
//! cargo run --example embed -- drafts.db
//! ```

use std::env;
use std::error::Error;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use draftq::{
    Cancellation, Draft, DraftMetadata, DraftProcessingDecision, DraftSourceSurface, DraftStore,
    LibrarianError, Runner, WatchEvent, from_fn,
};

/// Threads that submit, such as those that serve requests.
const SUBMITTERS: usize = 4;

/// Drafts that each of them submits.
const DRAFTS: usize = 25;

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args_os().nth(1).ok_or("name a database")?;
    let store = &DraftStore::open(path)?;
    let cancellation = Cancellation::default();
    let accepted = AtomicUsize::new(0);
    thread::scope(|scope| {
        let runner = Runner::new(store, "embed").cancellation(cancellation.clone());
        let watching = scope.spawn(|| watch(runner, &accepted));
        // Threads can share one store. Those that submit at the same time share a commit.
        let submitters: Vec<_> =
            (0..SUBMITTERS).map(|number| scope.spawn(move || submit(store, number))).collect();
        let submitted: Vec<_> = submitters.into_iter().map(|thread| thread.join()).collect();

        // The service stops: the draft that is being processed is finished, and the others stay
        // pending until the next start. This comes before any error is returned, because the
        // scope waits for the watch.
        cancellation.cancel();
        let watched = watching.join();
        for result in submitted.into_iter().chain([watched]) {
            result.map_err(|_| "a thread panicked")??;
        }
        Ok::<(), Box<dyn Error>>(())
    })?;
    let pending = store.pending_snapshot()?.pending_seen();
    writeln!(io::stdout(), "accepted {}, pending {pending}", accepted.into_inner())?;
    Ok(())
}

fn submit(store: &DraftStore, number: usize) -> Result<(), LibrarianError> {
    for draft in 0..DRAFTS {
        let text = format!("Observation {draft} of sensor {number}.");
        let metadata = DraftMetadata {
            source_project: Some("sensors".into()),
            ..DraftMetadata::new(DraftSourceSurface::AgentExport, SystemTime::now())
        };
        store.submit(&Draft::with_metadata(text, metadata))?;
    }
    Ok(())
}

/// Process drafts until the cancellation is requested. A draft is processed again after a crash, so
/// the processor's effects outside the database should be idempotent.
fn watch(runner: Runner, accepted: &AtomicUsize) -> Result<(), LibrarianError> {
    let processor = from_fn(|_draft| Ok(DraftProcessingDecision::Accepted));
    runner.watch(&mut [processor], Duration::from_secs(30), None, |event| {
        match event {
            WatchEvent::Ran { report, .. } => {
                accepted.fetch_add(report.summary.accepted, Ordering::Relaxed);
                // An error ended this run early. The watch would continue; this service stops.
                report.stopped_by.map_or(Ok(()), Err)
            }
            WatchEvent::Failed(error) | WatchEvent::CannotReopen(error) => Err(error),
            _ => Ok(()),
        }
    })
}
