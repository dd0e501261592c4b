//! One row that the schema would refuse never stops the others, and never undoes their moves.

use std::time::SystemTime;

use draftq::{
    DeferredDraftProcessor, Draft, DraftProcessingDecision, DraftProcessor, DraftState, DraftStore,
    LibrarianError, Runner,
};
use rusqlite::Connection;

use crate::harness::{draft, store};

struct Accept;

impl DraftProcessor for Accept {
    fn process(&mut self, _draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        Ok(DraftProcessingDecision::Accepted)
    }
}

/// A connection on which the schema's rules do not hold.
fn unruly(store: &DraftStore) -> Connection {
    let connection = Connection::open(store.path()).unwrap();
    connection
        .execute_batch(
            "PRAGMA ignore_check_constraints = ON;
             DROP TRIGGER drafts_identity_is_fixed;",
        )
        .unwrap();
    connection
}

/// Runs over five drafts, of which the third was damaged by this statement; how many of the
/// others were accepted.
fn neighbours_accepted(damage: &str, jobs: usize) -> (usize, DraftState) {
    let (_directory, store) = store();
    let drafts: Vec<Draft> = (0..5).map(|number| draft(&format!("draft {number}"))).collect();
    store.submit_many(&drafts).unwrap();
    let damaged = drafts[2].id();
    let sql = damage.replace("{id}", &damaged.to_hex());
    unruly(&store).execute_batch(&sql).unwrap_or_else(|error| panic!("{damage}: {error}"));
    for _ in 0..3 {
        let mut processors: Vec<_> = (0..jobs).map(|_| Accept).collect();
        let report = Runner::new(&store, "test").run(&mut processors, SystemTime::now());
        assert!(report.stopped_by.is_none(), "{damage}: {:?}", report.stopped_by);
        // The next recovery does not fail either, nor the one a day later.
        store.recover(SystemTime::now()).unwrap_or_else(|error| panic!("{damage}: {error}"));
    }
    let connection = Connection::open(store.path()).unwrap();
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, usize>(0)).unwrap();
    let accepted = count("SELECT count(*) FROM drafts WHERE state = 'accepted' AND seq <> 3");
    let state: String = connection
        .query_row("SELECT state FROM drafts WHERE seq = 3", [], |row| row.get(0))
        .unwrap();
    (accepted, state.parse().unwrap_or(DraftState::Pending))
}

#[test]
fn a_damaged_row_does_not_stop_other_drafts() {
    for damage in [
        // A CHECK fails at the claim.
        "UPDATE drafts SET claims = -7 WHERE id = '{id}'",
        "UPDATE drafts SET claims = -9223372036854775808 WHERE id = '{id}'",
        // A CHECK fails at the move out of processing.
        "UPDATE drafts SET defers = -7 WHERE id = '{id}'",
        "UPDATE drafts SET crashes = -7, errors = -3 WHERE id = '{id}'",
        // The ends of the ranges.
        "UPDATE drafts SET claims = 9223372036854775807 WHERE id = '{id}'",
        "UPDATE drafts SET revision = 9223372036854775807 WHERE id = '{id}'",
        "UPDATE drafts SET errors = 9223372036854775807, defers = 9223372036854775807, \
             crashes = 9223372036854775807 WHERE id = '{id}'",
        "UPDATE drafts SET submitted_at = -1, updated_at = -1 WHERE id = '{id}'",
        "UPDATE drafts SET submitted_at = 9223372036854775807 WHERE id = '{id}'",
        "UPDATE drafts SET text_bytes = 9223372036854775807 WHERE id = '{id}'",
        "UPDATE drafts SET text_bytes = -1 WHERE id = '{id}'",
        // Values that cannot be read.
        "UPDATE drafts SET source_surface = 'nowhere' WHERE id = '{id}'",
        "UPDATE drafts SET source_agent = CAST(x'ff00' AS TEXT) WHERE id = '{id}'",
        r#"UPDATE drafts SET context_tags = '["\ud800"]' WHERE id = '{id}'"#,
        "UPDATE drafts SET context_tags = '[\"a\"]' || char(0) WHERE id = '{id}'",
        "UPDATE drafts SET note = CAST(x'fffe' AS TEXT), decision = 'deferred' WHERE id = '{id}'",
        "UPDATE drafts SET id = 'not an id' WHERE id = '{id}'",
        "UPDATE drafts SET id = CAST(x'ff' AS TEXT) WHERE id = '{id}'",
        // In processing, and held by no runner.
        "UPDATE drafts SET state = 'processing', claimed_at = 1, defers = -1, errors = -1, \
             crashes = -1 WHERE id = '{id}'",
        "UPDATE drafts SET state = 'processing', claimed_at = 1, owner = 99, \
             claim_token = x'00', crashes = -1 WHERE id = '{id}'",
        "UPDATE drafts SET state = 'processing', claimed_at = 9223372036854775807, crashes = -5 \
             WHERE id = '{id}'",
        // Delayed, and due.
        "UPDATE drafts SET due_at = 1, updated_at = -1, state = 'pending' WHERE id = '{id}'",
        "DROP TRIGGER draft_texts_are_deleted_with_their_draft; \
             DELETE FROM draft_texts WHERE seq = 3",
    ] {
        for jobs in [1, 3] {
            let (accepted, _) = neighbours_accepted(damage, jobs);
            assert_eq!(accepted, 4, "{damage}, {jobs} jobs");
        }
    }
}

#[test]
fn a_draft_with_a_counter_at_its_limit_is_processed() {
    for damage in [
        "UPDATE drafts SET claims = 9223372036854775807 WHERE id = '{id}'",
        "UPDATE drafts SET revision = 9223372036854775807 WHERE id = '{id}'",
        "UPDATE drafts SET revision = -9223372036854775808 WHERE id = '{id}'",
    ] {
        assert_eq!(neighbours_accepted(damage, 1), (4, DraftState::Accepted), "{damage}");
    }
}

#[test]
fn a_damaged_runner_row_stops_no_run() {
    for row in [
        "(9223372036854775807, 1, 'h', 'b', 'p', 'x', 5, 'l', 0, NULL, 0)",
        "(1000000000000000, 1, 'h', 'b', 'p', 'x', 5, 'l', 0, NULL, 0)",
        "(-5, -1, CAST(x'ff' AS TEXT), CAST(x'00ff' AS TEXT), 'p', 'x', -1, CAST(x'ff' AS TEXT), -1, NULL, -1)",
        "(7, 9223372036854775807, 'h', 'b', CAST(x'ff' AS TEXT), CAST(x'ff' AS TEXT), 9223372036854775807, '../../x', 0, 9223372036854775807, 0)",
    ] {
        let (_directory, store) = store();
        let drafts: Vec<Draft> = (0..3).map(|number| draft(&format!("draft {number}"))).collect();
        store.submit_many(&drafts).unwrap();
        unruly(&store)
            .execute_batch(&format!(
                "INSERT INTO runners (id, pid, host, boot_id, program, processor, max_errors, \
                     lock_file, started_at, ended_at, first_event) VALUES {row};
                 UPDATE drafts SET state = 'processing', claimed_at = 1, claim_token = x'01', \
                     owner = (SELECT id FROM runners) WHERE seq = 1;"
            ))
            .unwrap();
        for _ in 0..2 {
            let report = Runner::new(&store, "test").run_one(&mut Accept, SystemTime::now());
            assert!(report.stopped_by.is_none(), "{row}: {:?}", report.stopped_by);
        }
        assert!(store.list(DraftState::Accepted).unwrap().len() >= 2, "{row}");
    }
}

#[test]
fn the_schema_refuses_these_rows() {
    let (_directory, store) = store();
    store.submit(&draft("a")).unwrap();
    let connection = Connection::open(store.path()).unwrap();
    for set in [
        "claims = 9223372036854775807",
        "errors = 1000000001",
        "crashes = -1",
        "defers_in_a_row = -1",
        "due_at = 253402300800000",
        "suspect = 2",
        "updated_at = -1",
        "output = '{}' || char(0)",
        "usage = '[]'",
        "usage = '{'",
    ] {
        let error = connection.execute(&format!("UPDATE drafts SET {set}"), []).unwrap_err();
        assert!(error.to_string().contains("CHECK constraint failed"), "{set}: {error}");
    }
    for values in [
        "(1000000000000001, 1, 'h', 'b', 'p', 'x', 5, 'l', 0, 0)",
        "(1, 4294967296, 'h', 'b', 'p', 'x', 5, 'l', 0, 0)",
        "(1, -1, 'h', 'b', 'p', 'x', 5, 'l', 0, 0)",
    ] {
        let sql = format!(
            "INSERT INTO runners (id, pid, host, boot_id, program, processor, max_errors, \
                 lock_file, started_at, first_event) VALUES {values}"
        );
        let error = connection.execute(&sql, []).unwrap_err();
        assert!(error.to_string().contains("CHECK constraint failed"), "{values}: {error}");
    }
    // And a run processes the other drafts.
    let report =
        Runner::new(&store, "test").run_one(&mut DeferredDraftProcessor, SystemTime::now());
    assert_eq!(report.into_result().unwrap().deferred, 1);
}
