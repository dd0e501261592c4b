//! A lost claim: its holder gets an error and changes nothing, and its late result is
//! kept as an event.

use std::time::SystemTime;

use draftq::{DraftProcessingDecision, DraftState, LibrarianError, Outcome};
use draftq::{ErrorKind, ProcessorError};
use rusqlite::Connection;

use crate::harness::{assert_whole, claim, draft, seed, setting, store};

fn row(connection: &Connection, id: &str) -> String {
    connection
        .query_row(
            "SELECT json_array(state, due_at, claimed_at, hex(claim_token), owner, claims, errors,
                 defers, updated_at, revision, decision, note, output, last_error)
             FROM drafts WHERE id = ?1",
            [id],
            |row| row.get(0),
        )
        .unwrap()
}

#[test]
fn a_late_result_is_refused() {
    lose_claims(200);
}

#[test]
#[ignore = "long; DRAFTQ_TEST_ROUNDS sets how long"]
fn a_late_result_is_refused_every_time() {
    lose_claims(setting("DRAFTQ_TEST_ROUNDS", 1_000));
}

fn lose_claims(rounds: u64) {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let (directory, store) = store();
    let path = directory.path().join("drafts.db");
    let by_hand = Connection::open(&path).unwrap();
    let other = store.register_runner("other").unwrap();
    // A runner registers again after about fifty rounds, so that both dead and live runners own claims.
    let mut runner = store.register_runner("test").unwrap();
    let mut refused = 0;
    for round in 0..rounds {
        let draft = draft(&format!("draft {round}"));
        let id = draft.id().to_hex();
        store.submit(&draft).unwrap();
        let lost = claim(&store, &runner);
        assert_eq!(lost.draft().id(), draft.id());

        let ways = if round % 50 == 49 { 4..5 } else { 0..4 };
        match random.u32(ways) {
            // Its owner is removed by hand, and age recovers it.
            0 => {
                let sql = "UPDATE drafts SET claim_token = NULL, owner = NULL WHERE id = ?1";
                by_hand.execute(sql, [&id]).unwrap();
                assert_eq!(store.recover(SystemTime::now()).unwrap().to_pending.len(), 1);
            }
            // It is moved by hand to pending, and perhaps to a terminal state.
            1 => {
                let sql = "UPDATE drafts SET state = 'pending', claimed_at = NULL, \
                           claim_token = NULL, owner = NULL WHERE id = ?1";
                by_hand.execute(sql, [&id]).unwrap();
            }
            2 => {
                let sql = "UPDATE drafts SET state = 'pending', claimed_at = NULL, \
                           claim_token = NULL, owner = NULL WHERE id = ?1";
                by_hand.execute(sql, [&id]).unwrap();
                let sql = "UPDATE drafts SET state = 'failed', decision = 'failed', \
                           decided_by = 'me' WHERE id = ?1";
                by_hand.execute(sql, [&id]).unwrap();
            }
            3 => {
                store.transition(draft.id(), DraftState::Processing, DraftState::Pending).unwrap();
            }
            // Its runner ends, and another recovers the claim.
            _ => {
                runner = store.register_runner("test").unwrap();
                let recovery = store.recover(SystemTime::UNIX_EPOCH).unwrap();
                assert_eq!(recovery.to_pending.len(), 1, "seed {seed}, round {round}");
            }
        }
        // It stays pending, or another runner claims it and may finish it.
        let pending = store.load(DraftState::Pending, draft.id()).is_ok();
        let now_held = (pending && random.bool()).then(|| claim(&store, &other));
        let still_held = match now_held {
            Some(claim) if random.bool() => {
                store.finish(claim, &DraftProcessingDecision::Skipped.into()).unwrap();
                None
            }
            held => held,
        };

        let before = row(&by_hand, &id);
        let events_before = store.inspect(draft.id()).unwrap().1.len();
        let decision = DraftProcessingDecision::ALL[random.usize(..5)];
        let error = if random.u32(..4) == 0 {
            let error = ProcessorError::new("exit", "exit status 3").with_detail("late");
            store.record_error(lost, &error.into()).unwrap_err()
        } else {
            let outcome = Outcome::new(decision).with_note("late").with_output(&[round]).unwrap();
            store.finish(lost, &outcome).unwrap_err()
        };
        assert!(matches!(error, LibrarianError::LostClaim { id } if id == draft.id()), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::LostClaim);
        assert_eq!(row(&by_hand, &id), before, "seed {seed}, round {round}");

        let (record, events, _) = store.inspect(draft.id()).unwrap();
        let [late] = &events[events_before..] else { panic!("one event more, not {events:?}") };
        assert_eq!(late.event, "refused");
        assert_eq!((late.from_state, late.to_state), (Some(record.state), Some(record.state)));
        assert!(!late.by_hand);
        match late.decision {
            Some(kept) => {
                assert_eq!((kept, late.note.as_deref()), (decision, Some("late")));
                assert_eq!(late.output.as_ref().unwrap().get(), format!("[{round}]"));
            }
            None => {
                assert_eq!(late.error_class.as_deref(), Some("exit"));
                assert_eq!(late.error.as_deref(), Some("exit status 3\nlate"));
            }
        }
        refused += 1;
        // The current holder is not affected. No draft is left for the next round to claim.
        match still_held {
            Some(claim) => {
                store.finish(claim, &DraftProcessingDecision::Accepted.into()).unwrap();
            }
            None if store.load(DraftState::Pending, draft.id()).is_ok() => {
                let claim = claim(&store, &other);
                store.finish(claim, &DraftProcessingDecision::Accepted.into()).unwrap();
            }
            None => {}
        }
    }
    assert_eq!(store.stats().unwrap().states[1], (DraftState::Processing, 0));
    assert_whole(&path);
    println!(
        r#"{{"test":"fencing","seed":{seed},"rounds":{rounds},"late_moves_refused":{refused}}}"#
    );
}

#[test]
fn a_late_result_for_a_deleted_draft_is_refused() {
    let (directory, store) = store();
    let by_hand = Connection::open(directory.path().join("drafts.db")).unwrap();
    let runner = store.register_runner("test").unwrap();
    let draft = draft("gone");
    store.submit(&draft).unwrap();
    let lost = claim(&store, &runner);
    store.transition(draft.id(), DraftState::Processing, DraftState::Skipped).unwrap();
    by_hand.execute("DELETE FROM drafts", []).unwrap();
    let error = store.finish(lost, &DraftProcessingDecision::Accepted.into()).unwrap_err();
    assert!(matches!(error, LibrarianError::LostClaim { .. }), "{error:?}");
    let left = "SELECT group_concat(event) FROM history";
    let left: String = by_hand.query_row(left, [], |row| row.get(0)).unwrap();
    assert_eq!(left, "deleted");
}
