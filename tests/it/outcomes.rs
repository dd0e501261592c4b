//! What is stored of a decision, a deferral and an error, and when the draft is tried again.

use std::time::Duration;

use draftq::{
    Claimed, Clock, DeferredDraftProcessor, Draft, DraftProcessingDecision, DraftState, DraftStore,
    MAX_NOTE_BYTES, Outcome, ProcessorError, from_unix_ms,
};
use rusqlite::Connection;

use crate::harness::{accept, claim, draft, err, judged_by, store, timed_store};

#[test]
fn the_shortest_delay_is_a_millisecond() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual(from_unix_ms(3_600_000));
    let store =
        DraftStore::options().clock(clock).open(directory.path().join("drafts.db")).unwrap();
    let later = draft("a");
    store.submit(&later).unwrap();
    let runner = store.register_runner("test").unwrap();
    let outcome =
        Outcome::new(DraftProcessingDecision::Deferred).with_retry_after(Duration::from_micros(1));
    store.finish(claim(&store, &runner), &outcome).unwrap();
    assert_eq!(store.record(later.id()).unwrap().0.due_at_unix_ms, Some(3_600_001));
}

#[test]
fn a_damaged_draft_is_charged_and_has_no_owner() {
    for damage in [
        "DROP TRIGGER draft_texts_are_fixed; UPDATE draft_texts SET raw_text = 'x'",
        // The tags are not part of the id, but processors get them.
        r#"DROP TRIGGER drafts_identity_is_fixed; UPDATE drafts SET context_tags = '["\ud800"]'"#,
    ] {
        let (_directory, store) = store();
        let damaged = draft("damaged");
        store.submit(&damaged).unwrap();
        let sql = Connection::open(store.path()).unwrap();
        sql.execute_batch(damage).unwrap();
        let runner = store.register_runner("test").unwrap();
        let mut snapshot = store.pending_snapshot().unwrap();
        let claimed = store.claim_next(&runner, &mut snapshot).unwrap();
        assert!(
            matches!(claimed, Some(Claimed::Unreadable { id, .. }) if id == damaged.id()),
            "{claimed:?}"
        );
        let row = "SELECT json_array(state, owner, claim_token IS NULL, errors, last_error_class) \
                   FROM drafts";
        let row: String = sql.query_row(row, [], |row| row.get(0)).unwrap();
        assert_eq!(row, r#"["processing",null,1,1,"damaged"]"#, "{damage}");
    }
}

#[test]
fn a_stored_error_has_a_length_limit() {
    let (_directory, store) = store();
    let long = draft("long");
    store.submit(&long).unwrap();
    let runner = store.register_runner("test").unwrap();
    let error = ProcessorError::new("exit", "é".repeat(MAX_NOTE_BYTES));
    store.record_error(claim(&store, &runner), &error.into()).unwrap();
    let stored = store.record(long.id()).unwrap().0.last_error.unwrap();
    assert!((8 * 1024 - 1..=8 * 1024).contains(&stored.len()), "{}", stored.len());
}

#[test]
fn note_and_output_are_stored_with_the_move() {
    let timed = timed_store();
    let drafts = timed.submit(&["a"]);
    timed.run(&mut judged_by(|_: &Draft| {
        let outcome = Outcome::new(DraftProcessingDecision::Quarantined).with_note("look at it");
        outcome.with_output(&serde_json::json!({"z": 1, "a": [1.50, "\u{202e}"]}))
    }));
    let (record, history, text) = timed.store.inspect(drafts[0].id()).unwrap();
    assert_eq!(record.state, DraftState::Quarantined);
    assert_eq!(record.decision, Some(DraftProcessingDecision::Quarantined));
    assert_eq!(record.note.as_deref(), Some("look at it"));
    let output: serde_json::Value = serde_json::from_str(record.output.unwrap().get()).unwrap();
    assert_eq!(output, serde_json::json!({"z": 1, "a": [1.50, "\u{202e}"]}));
    assert_eq!(record.claims, 1);
    assert_eq!(text.raw_text(), "a");
    let events: Vec<_> = history.iter().map(|event| event.event.as_str()).collect();
    assert_eq!(events, ["submitted", "claimed", "decided"]);
    assert!(history.iter().all(|event| !event.by_hand && event.at_unix_ms == 3_600_000));

    // A requeue removes note and output from the draft; the history keeps them.
    timed.store.requeue(&[drafts[0].id()]).unwrap();
    let (record, history, _) = timed.store.inspect(drafts[0].id()).unwrap();
    assert_eq!((record.decision, record.note, record.errors), (None, None, 0));
    assert_eq!(history[2].note.as_deref(), Some("look at it"));
    assert_eq!(history[3].event, "requeued");
}

#[test]
fn errors_are_counted_delay_the_draft_and_end_in_failed() {
    let timed = timed_store();
    let stuck = timed.submit(&["stuck"]).remove(0);
    let stale = Duration::from_secs(60);

    // After the first error the draft is tried again as soon as the claim is stale.
    let summary = timed.run(&mut judged_by(err));
    assert_eq!((summary.claimed, summary.errors), (1, 1));
    assert_eq!(timed.state(&stuck), DraftState::Processing);
    let (record, ..) = timed.store.inspect(stuck.id()).unwrap();
    assert_eq!(record.last_error_class.as_deref(), Some("model"));
    assert!(record.last_error.unwrap().contains("no model"));
    assert_eq!(timed.run(&mut judged_by(err)).claimed, 0, "not stale yet");
    timed.pass(stale);
    let summary = timed.run(&mut judged_by(err));
    assert_eq!((summary.recovered_processing, summary.claimed, summary.errors), (1, 1, 1));

    // After the second it also waits 10 s, give or take a quarter.
    timed.pass(stale);
    let summary = timed.run(&mut judged_by(err));
    assert_eq!((summary.recovered_processing, summary.pending_seen), (1, 0));
    let due = timed.store.inspect(stuck.id()).unwrap().0.due_at_unix_ms.unwrap();
    let delay = due - timed.clock.now_ms();
    assert!((7_500..=12_600).contains(&delay), "{delay} ms");
    timed.pass(Duration::from_secs(13));

    // The third reaches the budget. The next draft is not delayed.
    let behind = timed.submit(&["behind"]).remove(0);
    let summary = timed.run(&mut judged_by(|draft: &Draft| match draft.raw_text() {
        "stuck" => err(draft),
        _ => accept(draft),
    }));
    assert_eq!((summary.errors, summary.accepted), (1, 1));
    assert_eq!(timed.state(&behind), DraftState::Accepted);
    timed.pass(stale);
    let summary = timed.run(&mut judged_by(accept));
    assert_eq!((summary.recovered_processing, summary.exhausted, summary.claimed), (0, 1, 0));
    let (record, history, _) = timed.store.inspect(stuck.id()).unwrap();
    assert_eq!((record.state, record.decision), (DraftState::Failed, None));
    assert_eq!(record.last_error_class.as_deref(), Some("model"));
    assert_eq!(history.last().unwrap().event, "exhausted");

    // An operator requeues it.
    timed.store.requeue(&[stuck.id()]).unwrap();
    assert_eq!(timed.run(&mut judged_by(accept)).accepted, 1);
}

#[test]
fn deferrals_do_not_count_as_errors() {
    let timed = timed_store();
    let patient = timed.submit(&["patient"]).remove(0);
    for _ in 0..20 {
        assert_eq!(timed.run(&mut DeferredDraftProcessor).deferred, 1);
    }
    let (record, ..) = timed.store.inspect(patient.id()).unwrap();
    assert_eq!((record.state, record.claims), (DraftState::Pending, 20));
    assert_eq!((record.defers, record.errors), (20, 0));
}

#[test]
fn a_delayed_draft_is_claimed_when_due_in_its_old_place() {
    let timed = timed_store();
    timed.submit(&["first", "second"]);
    let later = |draft: &Draft| {
        let outcome = Outcome::new(DraftProcessingDecision::Deferred);
        Ok(match draft.raw_text() {
            "first" => outcome.with_retry_after(Duration::from_secs(30)),
            _ => outcome,
        })
    };
    assert_eq!(timed.run(&mut judged_by(later)).deferred, 2);
    timed.pass(Duration::from_millis(29_999));
    assert_eq!(timed.run(&mut DeferredDraftProcessor).pending_seen, 1);
    timed.pass(Duration::from_millis(1));
    let mut seen = Vec::new();
    timed.run(&mut judged_by(|draft: &Draft| {
        seen.push(draft.raw_text().to_owned());
        accept(draft)
    }));
    assert_eq!(seen, ["first", "second"]);
}

#[test]
fn a_due_time_in_the_far_future_is_kept() {
    let timed = timed_store();
    let draft = timed.submit(&["a"]).remove(0);
    let outside = rusqlite::Connection::open(timed.store.path()).unwrap();
    let year_ms: i64 = 365 * 24 * 60 * 60 * 1000;
    let due_at = timed.clock.now_ms() + year_ms;
    outside.execute("UPDATE drafts SET due_at = ?1", [due_at]).unwrap();
    assert_eq!(timed.run(&mut judged_by(accept)).pending_seen, 0);
    timed.clock.set(from_unix_ms(due_at - 1));
    assert_eq!(timed.run(&mut judged_by(accept)).pending_seen, 0);
    timed.clock.set(from_unix_ms(due_at));
    assert_eq!(timed.run(&mut judged_by(accept)).accepted, 1);
    assert_eq!(timed.state(&draft), DraftState::Accepted);
}

#[test]
fn a_damaged_draft_does_not_block_others() {
    let timed = timed_store();
    let drafts = timed.submit(&["whole", "damaged", "whole too"]);
    let outside = rusqlite::Connection::open(timed.store.path()).unwrap();
    outside
        .execute_batch(
            "DROP TRIGGER draft_texts_are_fixed;
             UPDATE draft_texts SET raw_text = CAST(x'ff00ff' AS TEXT) WHERE seq = 2;",
        )
        .unwrap();
    let summary = timed.run(&mut judged_by(accept));
    assert_eq!((summary.claimed, summary.accepted, summary.errors), (3, 2, 1));
    assert_eq!(timed.state(&drafts[1]), DraftState::Processing);
    assert_eq!(timed.state(&drafts[2]), DraftState::Accepted);
}
