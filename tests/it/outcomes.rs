//! What is stored of a decision, a deferral and an error, and when the draft is tried again.

use std::time::Duration;

use draftq::{
    Claimed, Clock, DeferredDraftProcessor, Draft, DraftProcessingDecision, DraftState, DraftStore,
    MAX_NOTE_BYTES, Outcome, ProcessorError, from_unix_ms,
};
use rusqlite::Connection;

use crate::harness::{accept, bench, claim, draft, err, judged_by, store};

#[test]
fn a_delay_is_one_however_short_it_is() {
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
fn a_damaged_draft_is_charged_and_let_go_by_its_runner() {
    for damage in [
        "DROP TRIGGER draft_texts_are_fixed; UPDATE draft_texts SET raw_text = 'x'",
        // No part of the id, but of what a processor is given.
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
fn an_error_is_stored_up_to_a_length() {
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
fn what_the_processor_says_is_stored_with_the_move() {
    let bench = bench();
    let drafts = bench.submit(&["a"]);
    bench.run(&mut judged_by(|_: &Draft| {
        let outcome = Outcome::new(DraftProcessingDecision::Quarantined).with_note("look at it");
        outcome.with_output(&serde_json::json!({"z": 1, "a": [1.50, "\u{202e}"]}))
    }));
    let (record, history, text) = bench.store.inspect(drafts[0].id()).unwrap();
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

    // A requeue takes the old words off the draft; the history keeps them.
    bench.store.requeue(&[drafts[0].id()]).unwrap();
    let (record, history, _) = bench.store.inspect(drafts[0].id()).unwrap();
    assert_eq!((record.decision, record.note, record.errors), (None, None, 0));
    assert_eq!(history[2].note.as_deref(), Some("look at it"));
    assert_eq!(history[3].event, "requeued");
}

#[test]
fn errors_are_counted_wait_longer_each_time_and_end_in_failed() {
    let bench = bench();
    let stuck = bench.submit(&["stuck"]).remove(0);
    let stale = Duration::from_secs(60);

    // The first error: tried again as soon as the claim is stale.
    let summary = bench.run(&mut judged_by(err));
    assert_eq!((summary.claimed, summary.errors), (1, 1));
    assert_eq!(bench.state(&stuck), DraftState::Processing);
    let (record, ..) = bench.store.inspect(stuck.id()).unwrap();
    assert_eq!(record.last_error_class.as_deref(), Some("model"));
    assert!(record.last_error.unwrap().contains("no model"));
    assert_eq!(bench.run(&mut judged_by(err)).claimed, 0, "not stale yet");
    bench.pass(stale);
    let summary = bench.run(&mut judged_by(err));
    assert_eq!((summary.recovered_processing, summary.claimed, summary.errors), (1, 1, 1));

    // The second: it also waits, 10 s give or take a quarter.
    bench.pass(stale);
    let summary = bench.run(&mut judged_by(err));
    assert_eq!((summary.recovered_processing, summary.pending_seen), (1, 0));
    let due = bench.store.inspect(stuck.id()).unwrap().0.due_at_unix_ms.unwrap();
    let delay = due - bench.clock.now_ms();
    assert!((7_500..=12_600).contains(&delay), "{delay} ms");
    bench.pass(Duration::from_secs(13));

    // The third is the budget; the draft behind it is not held up.
    let behind = bench.submit(&["behind"]).remove(0);
    let summary = bench.run(&mut judged_by(|draft: &Draft| match draft.raw_text() {
        "stuck" => err(draft),
        _ => accept(draft),
    }));
    assert_eq!((summary.errors, summary.accepted), (1, 1));
    assert_eq!(bench.state(&behind), DraftState::Accepted);
    bench.pass(stale);
    let summary = bench.run(&mut judged_by(accept));
    assert_eq!((summary.recovered_processing, summary.exhausted, summary.claimed), (0, 1, 0));
    let (record, history, _) = bench.store.inspect(stuck.id()).unwrap();
    assert_eq!((record.state, record.decision), (DraftState::Failed, None));
    assert_eq!(record.last_error_class.as_deref(), Some("model"));
    assert_eq!(history.last().unwrap().event, "exhausted");

    // An operator gives it a fresh start.
    bench.store.requeue(&[stuck.id()]).unwrap();
    assert_eq!(bench.run(&mut judged_by(accept)).accepted, 1);
}

#[test]
fn deferrals_never_count_as_errors() {
    let bench = bench();
    let patient = bench.submit(&["patient"]).remove(0);
    for _ in 0..20 {
        assert_eq!(bench.run(&mut DeferredDraftProcessor).deferred, 1);
    }
    let (record, ..) = bench.store.inspect(patient.id()).unwrap();
    assert_eq!((record.state, record.claims), (DraftState::Pending, 20));
    assert_eq!((record.defers, record.errors), (20, 0));
}

#[test]
fn a_delayed_draft_is_not_claimed_before_its_time_and_keeps_its_place() {
    let bench = bench();
    bench.submit(&["first", "second"]);
    let later = |draft: &Draft| {
        let outcome = Outcome::new(DraftProcessingDecision::Deferred);
        Ok(match draft.raw_text() {
            "first" => outcome.with_retry_after(Duration::from_secs(30)),
            _ => outcome,
        })
    };
    assert_eq!(bench.run(&mut judged_by(later)).deferred, 2);
    bench.pass(Duration::from_millis(29_999));
    assert_eq!(bench.run(&mut DeferredDraftProcessor).pending_seen, 1);
    bench.pass(Duration::from_millis(1));
    let mut seen = Vec::new();
    bench.run(&mut judged_by(|draft: &Draft| {
        seen.push(draft.raw_text().to_owned());
        accept(draft)
    }));
    assert_eq!(seen, ["first", "second"]);
}

#[test]
fn a_due_time_is_waited_for_however_far_ahead_it_is() {
    let bench = bench();
    let draft = bench.submit(&["a"]).remove(0);
    let outside = rusqlite::Connection::open(bench.store.path()).unwrap();
    let year_ms: i64 = 365 * 24 * 60 * 60 * 1000;
    let due_at = bench.clock.now_ms() + year_ms;
    outside.execute("UPDATE drafts SET due_at = ?1", [due_at]).unwrap();
    assert_eq!(bench.run(&mut judged_by(accept)).pending_seen, 0);
    bench.clock.set(from_unix_ms(due_at - 1));
    assert_eq!(bench.run(&mut judged_by(accept)).pending_seen, 0);
    bench.clock.set(from_unix_ms(due_at));
    assert_eq!(bench.run(&mut judged_by(accept)).accepted, 1);
    assert_eq!(bench.state(&draft), DraftState::Accepted);
}

#[test]
fn a_draft_damaged_from_outside_does_not_stand_in_the_way() {
    let bench = bench();
    let drafts = bench.submit(&["whole", "damaged", "whole too"]);
    let outside = rusqlite::Connection::open(bench.store.path()).unwrap();
    outside
        .execute_batch(
            "DROP TRIGGER draft_texts_are_fixed;
             UPDATE draft_texts SET raw_text = CAST(x'ff00ff' AS TEXT) WHERE seq = 2;",
        )
        .unwrap();
    let summary = bench.run(&mut judged_by(accept));
    assert_eq!((summary.claimed, summary.accepted, summary.errors), (3, 2, 1));
    assert_eq!(bench.state(&drafts[1]), DraftState::Processing);
    assert_eq!(bench.state(&drafts[2]), DraftState::Accepted);
}
