//! A requeue of drafts in each state, and which drafts in processing it refuses.

use std::time::{Duration, SystemTime};

use draftq::{DraftId, DraftQuery, DraftState, DraftStore};
use draftq::{LibrarianError, ProcessorError, RunnerInfo, RunnerRegistration};
use rusqlite::Connection;
use serde_json::json;

use crate::harness::{Sandbox, assert_whole, claim, draft, rows, store};

fn events(store: &DraftStore, id: DraftId) -> Vec<(String, bool)> {
    let (_, events) = store.record(id).unwrap();
    events.into_iter().map(|event| (event.event, event.by_hand)).collect()
}

fn last_event(store: &DraftStore, id: DraftId) -> String {
    events(store, id).pop().unwrap().0
}

/// A runner that has died: its lock is free, and its row shows no end.
fn kill(store: &DraftStore, runner: RunnerRegistration) {
    let sql = Connection::open(store.path()).unwrap();
    let id = runner.id();
    let row: (String, i64) = sql
        .query_row("SELECT lock_file, pid FROM runners WHERE id = ?1", [id], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    drop(runner);
    let mut directory = store.path().as_os_str().to_owned();
    directory.push("-runners");
    let lock = std::path::Path::new(&directory).join(row.0);
    std::fs::write(&lock, "").unwrap();
    std::fs::set_permissions(&lock, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    sql.execute("UPDATE runners SET ended_at = NULL, last_event = NULL WHERE id = ?1", [id])
        .unwrap();
}

#[test]
fn a_finished_draft_starts_anew() {
    let (_directory, store) = store();
    let draft = draft("again");
    store.submit(&draft).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute_batch(
        "UPDATE drafts SET errors = 3, crashes = 2, defers_in_a_row = 4, suspect = 1, \
             error_budget = 5, last_error_class = 'exit', last_error = 'exit status 1'; \
         UPDATE drafts SET state = 'failed', decision = 'failed', decided_by = 'me', note = 'n', \
             output = '{}', usage = '{}';",
    )
    .unwrap();
    store.requeue(&[draft.id()]).unwrap();
    let left = "SELECT json_array(state, errors, crashes, defers_in_a_row, suspect, error_budget, \
                last_error_class, last_error, decision, decided_by, note, output, usage, due_at, \
                requeues) FROM drafts";
    let left: String = sql.query_row(left, [], |row| row.get(0)).unwrap();
    assert_eq!(left, r#"["pending",0,0,0,0,null,null,null,null,null,null,null,null,0,1]"#);
}

#[test]
fn a_draft_in_processing_that_no_runner_holds_starts_anew() {
    let (_directory, store) = store();
    let erred = draft("its processor failed");
    store.submit(&erred).unwrap();
    let runner = store.register_runner("test").unwrap();
    let held = claim(&store, &runner);
    store.record_error(held, &ProcessorError::new("exit", "exit status 3").into()).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("UPDATE drafts SET crashes = 2, defers_in_a_row = 4, suspect = 1", []).unwrap();
    store.check_requeue(erred.id()).unwrap();
    let requeued = store.requeue(&[erred.id()]).unwrap();
    assert_eq!(
        (requeued[0].from, requeued[0].state(), requeued[0].held_by),
        (DraftState::Processing, DraftState::Pending, None)
    );
    let left = "SELECT state, errors, crashes, defers_in_a_row, suspect, error_budget, \
                last_error_class, last_error, claimed_at, claim_booted_at, claim_token, owner, \
                due_at, claims, requeues FROM drafts";
    assert_eq!(rows(&sql, left).unwrap(), "pending|0|0|0|0||||||||0|1|1");
    assert_eq!(last_event(&store, erred.id()), "requeued");
    // It can be claimed at once.
    assert_eq!(claim(&store, &runner).draft().id(), erred.id());

    // Claimed by hand, with and without a token, and under the file version's name.
    for by_hand in [
        "UPDATE drafts SET state = 'processing', claimed_at = 1, due_at = 0 WHERE seq = ",
        "UPDATE drafts SET state = 'processing', claimed_at = 1, claim_token = x'01' WHERE seq = ",
    ] {
        let draft = draft(by_hand);
        store.submit(&draft).unwrap();
        let seq = store.record(draft.id()).unwrap().0.seq;
        sql.execute_batch(&format!("{by_hand} {seq}")).unwrap();
        store.requeue(&[draft.id()]).unwrap();
        assert_eq!(last_event(&store, draft.id()), "requeued");
    }
    let moved = draft("transition");
    store.submit(&moved).unwrap();
    store.transition(moved.id(), DraftState::Pending, DraftState::Processing).unwrap();
    store.requeue(&[moved.id()]).unwrap();
    assert_eq!(last_event(&store, moved.id()), "requeued");
    assert_whole(store.path());
}

#[test]
fn a_draft_that_a_live_runner_holds_is_refused() {
    let (_directory, store) = store();
    let drafts = [draft("held"), draft("erred"), draft("pending")];
    store.submit_many(&drafts).unwrap();
    let runner = store.register_runner(RunnerInfo::new("judge")).unwrap();
    let held = claim(&store, &runner);
    let erred = claim(&store, &runner);
    store.record_error(erred, &ProcessorError::new("exit", "exit status 3").into()).unwrap();
    let [id, erred, pending] = drafts.each_ref().map(draftq::Draft::id);
    for result in [store.check_requeue(id), store.requeue(&[erred, id]).map(drop)] {
        match result.unwrap_err() {
            LibrarianError::DraftHeld { id: of, runner: by, pid, processor } => {
                assert_eq!((of, by, processor.as_str()), (id, runner.id(), "judge"));
                assert_eq!(pid, i64::from(std::process::id()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(last_event(&store, erred), "errored", "all or none");
    // Of several drafts that a filter selects, only the others are moved.
    let query = DraftQuery::default().states([DraftState::Processing, DraftState::Pending]);
    let rows = store.requeue_matching(&query).unwrap().rows;
    let rows: Vec<_> = rows.iter().map(|row| (row.id, row.state(), row.held_by)).collect();
    assert_eq!(
        rows,
        [
            (id, DraftState::Processing, Some(runner.id())),
            (erred, DraftState::Pending, None),
            (pending, DraftState::Pending, None),
        ]
    );
    // The runner has lost nothing.
    store.finish(held, &draftq::DraftProcessingDecision::Accepted.into()).unwrap();
    assert_eq!(last_event(&store, id), "decided");
    assert_whole(store.path());
}

#[test]
fn a_draft_of_a_dead_runner_is_requeued_and_the_others_are_not_blamed() {
    let (_directory, store) = store();
    let drafts = [draft("requeued"), draft("suspect")];
    store.submit_many(&drafts).unwrap();
    let runner = store.register_runner("test").unwrap();
    let dead = runner.id();
    let late = claim(&store, &runner);
    let _second = claim(&store, &runner);
    kill(&store, runner);
    let requeued = store.requeue(&[drafts[0].id()]).unwrap();
    assert_eq!((requeued[0].from, requeued[0].held_by), (DraftState::Processing, None));
    let (_, history) = store.record(drafts[0].id()).unwrap();
    let last = history.last().unwrap();
    assert_eq!((last.event.as_str(), last.runner), ("requeued", Some(dead)));
    // Its claim has ended.
    let result = store.finish(late, &draftq::DraftProcessingDecision::Accepted.into());
    assert!(matches!(result, Err(LibrarianError::LostClaim { .. })), "{result:?}");

    let recovery = store.recover(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(recovery.to_pending.len(), 1);
    let sql = Connection::open(store.path()).unwrap();
    let left = "SELECT state, crashes, suspect FROM drafts ORDER BY seq";
    assert_eq!(rows(&sql, left).unwrap(), "pending|0|0\npending|0|1");
    assert_eq!(last_event(&store, drafts[1].id()), "recovered");
    let ended = "SELECT ended_at IS NULL FROM runners WHERE id = ?1";
    assert!(!sql.query_row(ended, [dead], |row| row.get::<_, bool>(0)).unwrap());
    assert_whole(store.path());
}

/// Without a lock file it is not known whether the runner is alive, so it keeps its other claims.
#[test]
fn a_draft_of_a_runner_without_a_lock_file_is_requeued_alone() {
    let (directory, store) = store();
    let drafts = [draft("requeued"), draft("kept")];
    store.submit_many(&drafts).unwrap();
    let runner = store.register_runner("test").unwrap();
    let late = claim(&store, &runner);
    let kept = claim(&store, &runner);
    let lock = std::fs::read_dir(directory.path().join("drafts.db-runners")).unwrap();
    let is_lock = |path: &std::path::PathBuf| path.extension().is_some_and(|it| it == "lock");
    let lock = lock.map(|entry| entry.unwrap().path()).find(is_lock).unwrap();
    std::fs::remove_file(lock).unwrap();
    store.requeue(&[drafts[0].id()]).unwrap();
    assert_eq!(last_event(&store, drafts[0].id()), "requeued");
    let result = store.finish(late, &draftq::DraftProcessingDecision::Accepted.into());
    assert!(matches!(result, Err(LibrarianError::LostClaim { .. })), "{result:?}");
    let sql = Connection::open(store.path()).unwrap();
    let left = "SELECT owner, suspect, ended_at FROM drafts, runners WHERE state = 'processing'";
    assert_eq!(rows(&sql, left).unwrap(), format!("{}|0|", runner.id()));
    store.finish(kept, &draftq::DraftProcessingDecision::Accepted.into()).unwrap();
    assert_whole(store.path());
}

#[test]
fn release_recovery_and_requeue_are_different_events() {
    let (_directory, store) = store();
    let drafts = [draft("released"), draft("recovered"), draft("requeued")];
    store.submit_many(&drafts).unwrap();
    let runner = store.register_runner("test").unwrap();
    store.release(claim(&store, &runner)).unwrap();
    assert_eq!(last_event(&store, drafts[0].id()), "released");
    for id in [drafts[1].id(), drafts[2].id()] {
        store.transition(id, DraftState::Pending, DraftState::Processing).unwrap();
    }
    store.requeue(&[drafts[2].id()]).unwrap();
    store.recover(SystemTime::now() + Duration::from_secs(60)).unwrap();
    assert_eq!(last_event(&store, drafts[1].id()), "recovered");
    assert_eq!(last_event(&store, drafts[2].id()), "requeued");
}

#[test]
fn by_hand_a_requeue_is_legal_unless_a_runner_holds_the_draft() {
    const REQUEUE: &str = "UPDATE drafts SET state = 'pending', requeues = requeues + 1, \
         claimed_at = NULL, claim_booted_at = NULL, claim_token = NULL, owner = NULL";
    let (_directory, store) = store();
    let draft = draft("a");
    store.submit(&draft).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    let runner = store.register_runner("test").unwrap();
    let _held = claim(&store, &runner);
    let refusal = sql.execute(REQUEUE, []).unwrap_err().to_string();
    assert!(refusal.contains("by a requeue while a runner holds the draft"), "{refusal}");
    assert_eq!(last_event(&store, draft.id()), "claimed");

    // Its runner has ended, and left the claim.
    drop(runner);
    sql.execute(REQUEUE, []).unwrap();
    assert_eq!(events(&store, draft.id()).pop().unwrap(), ("requeued".to_owned(), true));

    let runner = store.register_runner("test").unwrap();
    let held = claim(&store, &runner);
    store.record_error(held, &ProcessorError::new("exit", "exit status 3").into()).unwrap();
    sql.execute(REQUEUE, []).unwrap();
    assert_eq!(events(&store, draft.id()).pop().unwrap(), ("requeued".to_owned(), true));
    assert_whole(store.path());
}

#[test]
fn the_command_requeues_what_no_live_runner_holds() {
    let sandbox = Sandbox::new();
    let erred = sandbox.submit("its processor failed");
    sandbox.draftq(["run", "--", "sh", "-c", "exit 3"]).expect(70);
    assert_eq!(sandbox.show(&erred)["state"], "processing");
    let dry = sandbox.draftq(["requeue", &erred, "--dry-run"]);
    assert!(dry.expect(0).out().ends_with("Would requeue 1 draft; nothing was changed.\n"));
    assert_eq!(sandbox.draftq(["requeue", &erred]).expect(0).out(), "Requeued 1 draft.\n");
    let shown = sandbox.show(&erred);
    assert_eq!((&shown["state"], &shown["errors"]), (&json!("pending"), &json!(0)));
    assert_eq!(shown["history"][3]["event"], "requeued");
    let ran = sandbox.draftq(["show", &erred]);
    let text = ran.expect(0).out();
    assert!(text.contains("  requeued   pending     operator\n"), "{text}");

    let store = sandbox.store();
    let runner = store.register_runner(RunnerInfo::new("judge")).unwrap();
    let _held = claim(&store, &runner);
    let free = sandbox.submit("claimed by hand");
    store.transition(free.parse().unwrap(), DraftState::Pending, DraftState::Processing).unwrap();
    let number = runner.id();
    let named = format!(
        "draftq: draft {erred} is held by runner {number} (processor judge, process {}); wait \
         until it has finished the draft, or end the runner\n",
        std::process::id()
    );
    for more in [&[][..], &["--dry-run"]] {
        let refused = sandbox.draftq([&["requeue", &free, &erred], more].concat());
        assert_eq!(refused.expect(65).err(), named);
    }
    assert_eq!(sandbox.show(&free)["state"], "processing", "all or none");

    let filter = ["requeue", "--state=processing"];
    let dry = sandbox.draftq([&filter[..], &["--dry-run"]].concat());
    let expected = "Would requeue 1 draft; 1 is held by a live runner; nothing was changed.\n";
    assert!(dry.expect(0).out().ends_with(expected), "{}", dry.out());
    let held = json!({"id": erred, "from": "processing", "state": "processing", "held_by": number,
                      "dry_run": true});
    let dry = sandbox.draftq([&filter[..], &["--dry-run", "--json"]].concat()).expect(0).lines();
    assert!(dry.len() == 2 && dry.contains(&held), "{dry:?}");
    let done = sandbox.draftq([&filter[..], &["--yes"]].concat());
    assert_eq!(done.expect(0).out(), "Requeued 1 draft; 1 is held by a live runner.\n");
    assert_eq!(sandbox.show(&free)["state"], "pending");
    let done = sandbox.draftq([&filter[..], &["--yes", "--json"]].concat()).expect(0).lines();
    let held = json!({"id": erred, "from": "processing", "state": "processing", "held_by": number});
    assert_eq!(done, [held]);
}
