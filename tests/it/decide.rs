//! An operator's decisions, corrected texts and undos: through the library, and by `decide`.

use draftq::{
    Draft, DraftProcessingDecision, DraftQuery, DraftState, DraftStore, LibrarianError,
    OperatorDecision, OperatorMove, Outcome, ProcessorError, RunnerInfo, SeenDraft, Superseded,
};
use rusqlite::Connection;

use crate::harness::{assert_whole, claim, draft, rows, store};

fn decision(decision: DraftProcessingDecision, note: &str) -> OperatorDecision {
    OperatorDecision::new(decision, "anna").unwrap().with_note(note).unwrap()
}

/// The draft with its last event.
fn seen(store: &DraftStore, draft: &Draft) -> SeenDraft {
    let (_, events) = store.record(draft.id()).unwrap();
    SeenDraft { id: draft.id(), last_event: events.last().unwrap().seq }
}

fn decide(store: &DraftStore, draft: &Draft, note: &str) -> OperatorMove {
    let accepted = decision(DraftProcessingDecision::Accepted, note);
    store.decide_seen(seen(store, draft), &accepted).unwrap()
}

/// The columns that a decision, a requeue and an undo change.
fn row(store: &DraftStore, draft: &Draft) -> String {
    let sql = Connection::open(store.path()).unwrap();
    let columns = "state, decision, note, output, usage, due_at, errors, crashes, \
                   defers_in_a_row, suspect, error_budget, last_error_class, last_error";
    rows(&sql, &format!("SELECT {columns} FROM drafts WHERE id = '{}'", draft.id())).unwrap()
}

fn last_event(store: &DraftStore, draft: &Draft) -> String {
    let sql = Connection::open(store.path()).unwrap();
    let last = format!(
        "SELECT event, from_state, to_state, decision, decided_by, note, output \
         FROM draft_history WHERE id = '{}' ORDER BY seq DESC LIMIT 1",
        draft.id()
    );
    rows(&sql, &last).unwrap()
}

#[test]
fn a_decision_is_signed_and_keeps_the_replaced_output_in_the_history() {
    let (_directory, store) = store();
    let drafts = [draft("pending"), draft("finished"), draft("erred")];
    store.submit_many(&drafts[1..]).unwrap();
    let runner = store.register_runner("test").unwrap();
    let outcome = Outcome::new(DraftProcessingDecision::Quarantined)
        .with_note("doubtful")
        .with_output(&serde_json::json!({"score": 1}))
        .unwrap();
    store.finish(claim(&store, &runner), &outcome).unwrap();
    let erred = claim(&store, &runner);
    store.record_error(erred, &ProcessorError::new("exit", "exit status 3").into()).unwrap();
    store.submit(&drafts[0]).unwrap();
    let ids = drafts.each_ref().map(Draft::id);
    // A draft that is given twice is decided once.
    let twice = [ids[0], ids[1], ids[2], ids[0]];
    let moved =
        store.decide(&twice, &decision(DraftProcessingDecision::Accepted, "read it")).unwrap();
    let from: Vec<_> = moved.iter().map(|moved| moved.from).collect();
    assert_eq!(from, [DraftState::Pending, DraftState::Quarantined, DraftState::Processing]);
    for (draft, event) in drafts.iter().zip([
        "resolved|pending|accepted|accepted|anna|read it|",
        "resolved|quarantined|accepted|accepted|anna|read it|{\"score\":1}",
        "resolved|processing|accepted|accepted|anna|read it|",
    ]) {
        assert_eq!(last_event(&store, draft), event);
        let (record, _) = store.record(draft.id()).unwrap();
        assert_eq!(
            (record.state, record.decided_by.as_deref()),
            (DraftState::Accepted, Some("anna"))
        );
        assert!(record.output.is_none());
    }
    // The same decision again, with another note, is an event of its own.
    decide(&store, &drafts[0], "read it twice");
    assert_eq!(
        last_event(&store, &drafts[0]),
        "resolved|accepted|accepted|accepted|anna|read it twice|"
    );
    assert_whole(store.path());
}

#[test]
fn a_draft_in_the_hands_of_a_live_runner_is_refused() {
    let (_directory, store) = store();
    let drafts = [draft("held"), draft("pending")];
    store.submit_many(&drafts).unwrap();
    let runner = store.register_runner(RunnerInfo::new("judge")).unwrap();
    let before = seen(&store, &drafts[0]);
    let held = claim(&store, &runner);
    let ids = [drafts[1].id(), drafts[0].id()];
    let accepted = decision(DraftProcessingDecision::Accepted, "mine");
    let refused = [
        store.decide(&ids, &accepted).map(drop),
        store.decide_seen(before, &accepted).map(drop),
        store.decide_seen(seen(&store, &drafts[0]), &accepted).map(drop),
        store.requeue_seen(seen(&store, &drafts[0]), "anna", None).map(drop),
        store.supersede(seen(&store, &drafts[0]), &draft("new"), "anna").map(drop),
    ];
    for result in refused {
        let Err(LibrarianError::DraftHeld { id, pid, processor, .. }) = result else {
            panic!("{result:?}")
        };
        assert_eq!((id, processor.as_str()), (drafts[0].id(), "judge"));
        assert_eq!(pid, i64::from(std::process::id()));
    }
    assert_eq!(store.query(&DraftQuery::default()).unwrap().rows.len(), 2, "all or nothing");
    assert_eq!(last_event(&store, &drafts[1]), "submitted||pending||||");
    store.finish(held, &DraftProcessingDecision::Skipped.into()).unwrap();
    assert_whole(store.path());
}

#[test]
fn a_draft_that_changed_since_it_was_seen_is_left_alone() {
    let (_directory, store) = store();
    let draft = draft("seen");
    store.submit(&draft).unwrap();
    let before = seen(&store, &draft);
    let moved = decide(&store, &draft, "first");
    let failed = decision(DraftProcessingDecision::Failed, "second");
    for result in [
        store.decide_seen(before, &failed).map(drop),
        store.requeue_seen(before, "ben", None).map(drop),
        store.supersede(before, &crate::harness::draft("corrected"), "ben").map(drop),
    ] {
        let Err(LibrarianError::DraftChanged { id, state }) = result else { panic!("{result:?}") };
        assert_eq!((id, state), (draft.id(), DraftState::Accepted));
    }
    store.decide(&[draft.id()], &failed).unwrap();
    let undone = store.undo(&moved, "anna");
    assert!(matches!(undone, Err(LibrarianError::DraftChanged { .. })), "{undone:?}");
    assert_eq!(last_event(&store, &draft), "resolved|accepted|failed|failed|anna|second|");
}

#[test]
fn an_undo_restores_everything_and_is_an_event_of_its_own() {
    let (_directory, store) = store();
    let drafts = [draft("decided"), draft("exhausted"), draft("pending")];
    store.submit_many(&drafts).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    let runner = store.register_runner(RunnerInfo::new("test").max_errors(1)).unwrap();
    let outcome = Outcome::new(DraftProcessingDecision::Quarantined)
        .with_note("doubtful")
        .with_output(&serde_json::json!({"score": 1}))
        .unwrap();
    store.finish(claim(&store, &runner), &outcome).unwrap();
    let erred = claim(&store, &runner);
    store.record_error(erred, &ProcessorError::new("exit", "exit status 3").into()).unwrap();
    store.recover(std::time::SystemTime::now() + std::time::Duration::from_secs(60)).unwrap();
    sql.execute_batch(
        "UPDATE drafts SET due_at = 253402300799999, errors = 2, last_error_class = 'exit', \
             last_error = 'exit status 1' WHERE state = 'pending'",
    )
    .unwrap();
    for draft in &drafts {
        let before = row(&store, draft);
        let accepted = decide(&store, draft, "mine");
        let undone = store.undo(&accepted, "ben").unwrap();
        assert_eq!(undone.to, accepted.from);
        if accepted.from == DraftState::Pending {
            // The name of who took it back is the note.
            assert_eq!(
                row(&store, draft),
                before.replace("pending||||", "pending||undone by ben||")
            );
            assert_eq!(last_event(&store, draft), "requeued|accepted|pending|||undone by ben|");
            continue;
        }
        assert_eq!(row(&store, draft), before);
        assert!(last_event(&store, draft).contains("|ben|"), "{}", last_event(&store, draft));
        // An undo can be undone, and a requeue too.
        store.undo(&undone, "ben").unwrap();
        assert!(row(&store, draft).starts_with("accepted|accepted|mine|"));
        store
            .undo(&store.requeue_seen(seen(&store, draft), "anna", Some("again")).unwrap(), "anna")
            .unwrap();
        assert!(row(&store, draft).starts_with("accepted|accepted|mine|"));
    }
    assert_whole(store.path());
}

#[test]
fn a_corrected_text_is_a_new_draft_that_names_the_old_one() {
    let (_directory, store) = store();
    let (old, new) = (draft("teh text"), draft("the text"));
    store.submit(&old).unwrap();
    let Superseded::Created(moved) = store.supersede(seen(&store, &old), &new, "anna").unwrap()
    else {
        panic!("it is new")
    };
    assert_eq!(moved.successor(), Some(new.id()));
    let (record, _) = store.record(new.id()).unwrap();
    assert_eq!((record.state, record.supersedes), (DraftState::Pending, Some(old.id())));
    let note = format!("superseded by {}", new.id());
    assert_eq!(last_event(&store, &old), format!("resolved|pending|skipped|skipped|anna|{note}|"));
    // The same correction again, and one that changes nothing.
    for (text, there) in [(&new, DraftState::Pending), (&old, DraftState::Skipped)] {
        let again = store.supersede(seen(&store, &old), text, "anna").unwrap();
        let Superseded::AlreadyThere { id, state } = again else { panic!("{again:?}") };
        assert_eq!((id, state), (text.id(), there));
    }
    store.undo(&moved, "anna").unwrap();
    assert_eq!(store.record(old.id()).unwrap().0.state, DraftState::Pending);
    let (record, _) = store.record(new.id()).unwrap();
    assert_eq!(record.state, DraftState::Skipped);
    assert_eq!(record.note.unwrap(), format!("undone: {} is back", old.id()));

    // A new draft that a runner took is not taken back.
    let newer = draft("the texts");
    let Superseded::Created(moved) = store.supersede(seen(&store, &old), &newer, "anna").unwrap()
    else {
        panic!("it is new")
    };
    let runner = store.register_runner("test").unwrap();
    let held = claim(&store, &runner);
    assert!(matches!(store.undo(&moved, "anna"), Err(LibrarianError::DraftHeld { .. })));
    store.finish(held, &DraftProcessingDecision::Accepted.into()).unwrap();
    assert!(matches!(store.undo(&moved, "anna"), Err(LibrarianError::DraftChanged { .. })));
    assert_eq!(store.record(old.id()).unwrap().0.state, DraftState::Skipped);
    assert_whole(store.path());
}

#[test]
fn what_cannot_be_signed_or_stored_is_refused() {
    let accepted = DraftProcessingDecision::Accepted;
    for by in ["", " \n", "a\0b", &"x".repeat(4097)] {
        let refused = OperatorDecision::new(accepted, by);
        assert!(matches!(refused, Err(LibrarianError::InvalidDecision { .. })), "{refused:?}");
    }
    assert!(OperatorDecision::new(DraftProcessingDecision::Deferred, "anna").is_err());
    for note in ["a\0b", &"x".repeat(65_537)] {
        assert!(OperatorDecision::new(accepted, "anna").unwrap().with_note(note).is_err());
    }
    let shown = format!("{:?}", decision(accepted, "canary"));
    assert!(!shown.contains("canary"), "{shown}");
}

#[test]
fn by_hand_a_signature_stays_and_each_decision_is_an_event() {
    let (_directory, store) = store();
    let draft = draft("a");
    store.submit(&draft).unwrap();
    decide(&store, &draft, "mine");
    let sql = Connection::open(store.path()).unwrap();
    let refusal = sql.execute("UPDATE drafts SET decided_by = NULL", []).unwrap_err().to_string();
    assert!(refusal.contains("a decision keeps its signature"), "{refusal}");
    sql.execute("UPDATE drafts SET decided_by = 'anna', note = 'again'", []).unwrap();
    assert_eq!(last_event(&store, &draft), "resolved|accepted|accepted|accepted|anna|again|");
}
