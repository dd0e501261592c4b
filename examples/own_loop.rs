//! A loop of one's own, with every call that it needs. [`draftq::Runner`] does the same and more
//! (several workers, shared commits, retries); use this where its shape does not fit.
//!
//! ```text
//! cargo run --example own_loop -- drafts.db
//! ```
//!
//! It processes what is in the database, waits for more, and ends after a draft with the text
//! "stop".

use std::env;
use std::error::Error;
use std::io::{self, Write as _};
use std::time::{Duration, Instant, SystemTime};

use draftq::{
    Cancellation, Claim, Claimed, Draft, DraftProcessingDecision, DraftStore, ErrorKind,
    LibrarianError, Outcome, ProcessorError, RunnerInfo, RunnerRegistration, Waiter,
};

/// Claims without an owner, such as those of a failed attempt, are recovered at this age.
const STALE_AFTER: Duration = Duration::from_secs(900);

/// A run begins at least this often.
const POLL_INTERVAL: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args_os().nth(1).ok_or("name a database")?;
    let store = DraftStore::open(path)?;
    let cancellation = Cancellation::default();
    let mut waiter = Waiter::new(&store)?.processor("own_loop");
    // Held for as long as this process claims drafts: it shows others that the process is alive.
    let runner = store.register_runner(RunnerInfo::new("own_loop").max_errors(3))?;
    while !cancellation.is_cancelled() {
        // What is submitted from here on ends the wait below.
        waiter.mark()?;
        run(&store, &runner, &cancellation)?;
        waiter.wait(Instant::now() + POLL_INTERVAL, &cancellation)?;
    }
    Ok(())
}

/// One run: recover, make due drafts claimable, and process the drafts that are pending now.
fn run(
    store: &DraftStore,
    runner: &RunnerRegistration,
    cancellation: &Cancellation,
) -> Result<(), Box<dyn Error>> {
    let stale_before = SystemTime::now().checked_sub(STALE_AFTER).unwrap_or(SystemTime::UNIX_EPOCH);
    store.recover(stale_before)?;
    store.release_due()?;
    let mut snapshot = store.pending_snapshot()?;
    loop {
        let claimed = match store.claim_next(runner, &mut snapshot) {
            Ok(Some(claimed)) => claimed,
            Ok(None) => break,
            // An operator has paused the processor. The wait ends with the hold.
            Err(error) if error.kind() == ErrorKind::OnHold => break,
            Err(error) => return Err(error.into()),
        };
        let claim = match claimed {
            Claimed::Draft(claim) => *claim,
            // The draft is damaged. Its error is recorded already.
            other => {
                writeln!(io::stdout(), "{other:?}")?;
                continue;
            }
        };
        if cancellation.is_cancelled() {
            store.release(claim)?;
            break;
        }
        match process(store, claim, cancellation) {
            Ok(()) => {}
            // The draft was recovered or moved in the meantime; nothing was changed.
            Err(error) if error.kind() == ErrorKind::LostClaim => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Process one draft and store the result. The claim is consumed: it can be finished once.
fn process(
    store: &DraftStore,
    claim: Claim,
    cancellation: &Cancellation,
) -> Result<(), LibrarianError> {
    let id = claim.draft().id();
    let line = match decide(claim.draft()) {
        Ok(outcome) => {
            if claim.draft().raw_text() == "stop" {
                cancellation.cancel();
            }
            format!("{id} {}", store.finish(claim, &outcome)?)
        }
        Err(error) => {
            store.record_error(claim, &error)?;
            format!("{id} {}", error.class())
        }
    };
    writeln!(io::stdout(), "{line}")?;
    Ok(())
}

fn decide(draft: &Draft) -> Result<Outcome, LibrarianError> {
    match draft.raw_text() {
        "later" => {
            let outcome = Outcome::new(DraftProcessingDecision::Deferred);
            Ok(outcome.with_retry_after(Duration::from_secs(3600)))
        }
        "broken" => Err(ProcessorError::new("broken", "the text cannot be parsed").into()),
        _ => Ok(DraftProcessingDecision::Accepted.into()),
    }
}
