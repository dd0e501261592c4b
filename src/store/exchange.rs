//! Finishes and claims many drafts in one transaction, for a runner that works on several at a
//! time.

use super::DraftStore;
use super::claim::{ClaimRequest, claim};
use super::claimed::{Claim, NewClaims};
use super::finish::{Stored, finish, record_error, release};
use super::hold::hold_of_runner;
use super::registration::RunnerRegistration;
use super::snapshot::PendingSnapshot;
use crate::error::LibrarianError;
use crate::hold::Hold;
use crate::outcome::Outcome;

/// A claim and the processor's result.
#[derive(Debug)]
pub(crate) struct Processed {
    pub claim: Box<Claim>,
    pub result: Result<Outcome, LibrarianError>,
    /// The processor was told that its result is no longer wanted.
    pub unwanted: bool,
}

/// The result of an exchange.
#[derive(Debug, Default)]
pub(crate) struct Exchanged {
    /// What was done with each result.
    pub stored: Vec<Stored>,
    /// The new claims.
    pub claims: NewClaims,
    /// The hold that is in force, if it was looked for: to claim, or because a result asked for one.
    pub hold: Option<Hold>,
}

impl DraftStore {
    /// In one transaction: store the results in `processed`, release the claims in `released`, and
    /// claim up to `want` more drafts. `holds_nothing` is whether the runner holds no other draft.
    /// The snapshot is not advanced.
    pub(crate) fn exchange(
        &self,
        runner: &RunnerRegistration,
        processed: &[Processed],
        released: &[Box<Claim>],
        snapshot: &PendingSnapshot,
        want: usize,
        holds_nothing: bool,
    ) -> Result<Exchanged, LibrarianError> {
        let want = want.min(snapshot.remaining());
        if processed.is_empty() && released.is_empty() && want == 0 {
            return Ok(Exchanged::default());
        }
        let request = ClaimRequest {
            candidates: self.candidates(snapshot, want)?,
            runner: runner.id(),
            snapshot,
            want,
            holds_nothing,
            now: self.now_ms(),
            booted_at: self.clock().booted_at_ms(),
        };
        let now = request.now;
        let asks_for_hold = |processed: &Processed| {
            processed.result.as_ref().is_ok_and(|outcome| outcome.hold().is_some())
        };
        let exchanged = self.write("move drafts", |transaction| {
            let finished: Vec<_> = processed
                .iter()
                .filter_map(|processed| {
                    Some((&processed.claim.key, processed.result.as_ref().ok()?))
                })
                .collect();
            let back_off = runner.backs_off();
            let mut finished = finish(transaction, &finished, back_off, now)?.into_iter();
            let stored = processed
                .iter()
                .map(|processed| match &processed.result {
                    // As many were given to `finish` as are asked for here.
                    Ok(_) => Ok(finished.next().unwrap_or(Stored::ClaimLost)),
                    Err(error) => record_error(transaction, &processed.claim.key, error, now),
                })
                .collect::<Result<_, _>>()?;
            for claim in released {
                release(transaction, &claim.key, now)?;
            }
            let mut claims = match want {
                0 => NewClaims::default(),
                _ => claim(transaction, &request)?,
            };
            let mut hold = claims.hold.take();
            if hold.is_none() && processed.iter().any(asks_for_hold) {
                hold = hold_of_runner(transaction, runner.id(), now)?;
            }
            Ok(Exchanged { stored, claims, hold })
        })?;
        let was_released = |processed: &Processed| {
            processed.result.as_ref().is_err_and(|error| !error.is_charged())
        };
        self.notify(released.len() + processed.iter().filter(|it| was_released(it)).count());
        Ok(exchanged)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rusqlite::Connection;

    use super::*;
    use crate::draft::Draft;
    use crate::metadata::{DraftMetadata, DraftSourceSurface};
    use crate::state::DraftProcessingDecision;
    use crate::store::claimed::Claimed;

    /// A run may lose a claim, claim the draft again, and submit both results at once.
    #[test]
    fn an_old_claim_is_lost_if_there_is_a_newer_one_of_the_same_draft() {
        let directory = tempfile::tempdir().unwrap();
        let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
        let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
        store.submit(&Draft::with_metadata("text".to_owned(), metadata)).unwrap();
        let runner = store.register_runner("test").unwrap();
        let claim = || {
            let mut snapshot = store.pending_snapshot().unwrap();
            match store.claim_next(&runner, &mut snapshot).unwrap() {
                Some(Claimed::Draft(claim)) => claim,
                other => panic!("{other:?}"),
            }
        };
        let old = claim();
        let sql = Connection::open(store.path()).unwrap();
        sql.execute(
            "UPDATE drafts SET state = 'pending', claimed_at = NULL, claim_token = NULL, \
                 owner = NULL",
            [],
        )
        .unwrap();
        let processed = [
            (old, DraftProcessingDecision::Accepted),
            (claim(), DraftProcessingDecision::Quarantined),
        ]
        .map(|(claim, decision)| Processed {
            claim,
            result: Ok(decision.into()),
            unwanted: false,
        });
        let snapshot = store.pending_snapshot().unwrap();
        let exchanged = store.exchange(&runner, &processed, &[], &snapshot, 0, true).unwrap();
        assert_eq!(exchanged.stored, [Stored::ClaimLost, Stored::Moved]);
        let state: String =
            sql.query_row("SELECT state FROM drafts", [], |row| row.get(0)).unwrap();
        assert_eq!(state, "quarantined");
    }
}
