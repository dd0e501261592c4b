//! A draft that is deferred again and again leaves a bounded number of rows.

use std::time::SystemTime;

use draftq::{
    Claimed, Clock, DeferredDraftProcessor, Draft, DraftProcessingDecision, DraftProcessor,
    DraftState, DraftStore, LibrarianError, Outcome, ProcessorError, Runner, RunnerRegistration,
    from_unix_ms,
};
use rusqlite::Connection;

use crate::harness::{assert_whole, draft, setting};

/// Defers every draft, with a long note and output.
struct NeverReady {
    output: String,
}

impl DraftProcessor for NeverReady {
    fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        self.process_to_outcome(draft).map(|outcome| outcome.decision())
    }

    fn process_to_outcome(&mut self, _draft: &Draft) -> Result<Outcome, LibrarianError> {
        Outcome::new(DraftProcessingDecision::Deferred)
            .with_note("the model is not ready")
            .with_output(&self.output)
    }
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// A simulated week of a watch over drafts whose processor is never ready.
fn week(drafts: usize, output_bytes: usize) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    let clock = Clock::manual(from_unix_ms(DAY_MS));
    let store = DraftStore::options().clock(clock.clone()).open(&path).unwrap();
    let all: Vec<Draft> = (0..drafts).map(|number| draft(&format!("draft {number}"))).collect();
    store.submit_many(&all).unwrap();
    let mut processor = NeverReady { output: "x".repeat(output_bytes) };
    let sql = Connection::open(&path).unwrap();
    let number = |query: &str| sql.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap();
    let used = || {
        number(
            "SELECT (page_count - freelist_count) * page_size \
                FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        )
    };
    let runner = Runner::new(&store, "test").backs_off(true);
    let (mut after_a_day, mut deferrals) = ((0, 0), 0);
    while clock.now_ms() < 8 * DAY_MS {
        let report = runner.run_one(&mut processor, clock.now());
        deferrals += report.into_result().unwrap().deferred;
        if clock.now_ms() < 2 * DAY_MS {
            after_a_day = (used(), number("SELECT count(*) FROM history"));
        }
        let due = number("SELECT min(due_at) FROM drafts");
        assert!(
            due > clock.now_ms(),
            "a deferral without a delay waits: {:?}",
            crate::harness::rows(
                &sql,
                "SELECT state, due_at, defers, defers_in_a_row, errors, last_error_class, count(*) FROM drafts GROUP BY 1,2,3,4,5,6"
            )
        );
        assert!(due <= clock.now_ms() + 60 * 60 * 1000, "an hour at most");
        clock.set(from_unix_ms(due));
    }
    let after_a_week = (used(), number("SELECT count(*) FROM history"));
    let per_draft = i64::try_from(deferrals / drafts).unwrap();
    println!(
        r#"{{"test":"never_ready_week","drafts":{drafts},"output_bytes":{output_bytes},"deferrals_each":{per_draft},"bytes_after_a_day":{},"bytes_after_a_week":{},"events_after_a_week":{}}}"#,
        after_a_day.0, after_a_week.0, after_a_week.1
    );
    assert!(per_draft > 160, "{per_draft} deferrals each");
    let growth = after_a_week.0 - after_a_day.0;
    assert!(growth <= 256 * 1024, "it grew by {growth} bytes in six days");
    // One submission, 20 deferrals with a claim each, the sum, and one or two more claims.
    let each = after_a_week.1 / i64::try_from(drafts).unwrap();
    assert!(each <= 44, "{each} events for each draft");
    let (record, history, _) = store.inspect(all[0].id()).unwrap();
    assert_eq!(record.defers, u64::try_from(per_draft).unwrap());
    let sum = history.last().unwrap();
    assert_eq!((sum.event.as_str(), sum.repeats), ("deferred", Some(record.defers - 20)));
    assert_eq!(sum.note.as_deref(), Some("the model is not ready"));
    assert_eq!(sum.at_unix_ms, record.updated_at_unix_ms, "the time of the last");
    assert_eq!(history.iter().filter(|event| event.event == "deferred").count(), 21);
    assert_whole(&path);
}

#[test]
fn a_week_of_deferrals_leaves_a_bounded_number_of_rows() {
    week(5, 2_000);
}

#[test]
#[ignore = "a minute; DRAFTQ_TEST_DRAFTS and DRAFTQ_TEST_OUTPUT set the size"]
fn a_week_of_deferrals_long() {
    let size = |name, default| usize::try_from(setting(name, default)).unwrap();
    week(size("DRAFTQ_TEST_DRAFTS", 100), size("DRAFTQ_TEST_OUTPUT", 100_000));
}

#[test]
fn a_decision_ends_the_sum_of_deferrals() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    let store = DraftStore::open(&path).unwrap();
    let draft = draft("at last");
    store.submit(&draft).unwrap();
    let runner = Runner::new(&store, "test");
    let defer = |times: usize| {
        for _ in 0..times {
            let report = runner.run_one(&mut DeferredDraftProcessor, SystemTime::now());
            assert_eq!(report.into_result().unwrap().deferred, 1);
        }
    };
    defer(25);
    store.transition(draft.id(), DraftState::Pending, DraftState::Processing).unwrap();
    store.transition(draft.id(), DraftState::Processing, DraftState::Accepted).unwrap();
    store.requeue(&[draft.id()]).unwrap();
    defer(22);
    let (record, history, _) = store.inspect(draft.id()).unwrap();
    assert_eq!(record.defers, 47);
    let repeats: Vec<_> = history.iter().filter_map(|event| event.repeats).collect();
    assert_eq!(repeats, [5, 2], "each row of deferrals has its own sum");
    assert_whole(&path);
    // None of the rows can be deleted by hand.
    let sql = Connection::open(&path).unwrap();
    for what in ["repeats IS NOT NULL", "event = 'deferred'", "event = 'claimed'"] {
        let before: i64 =
            sql.query_row("SELECT count(*) FROM history", [], |row| row.get(0)).unwrap();
        let rows: Vec<i64> = {
            let mut statement =
                sql.prepare(&format!("SELECT seq FROM history WHERE {what}")).unwrap();
            statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        for seq in rows {
            sql.execute("DELETE FROM history WHERE seq = ?1", [seq]).unwrap_err();
        }
        let after: i64 =
            sql.query_row("SELECT count(*) FROM history", [], |row| row.get(0)).unwrap();
        assert_eq!(before, after, "{what}");
    }
}

#[test]
fn runs_that_only_defer_leave_few_runners() {
    let directory = tempfile::tempdir().unwrap();
    let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
    store.submit(&draft("never ready")).unwrap();
    for _ in 0..100 {
        let runner = Runner::new(&store, "test");
        let report = runner.run_one(&mut DeferredDraftProcessor, SystemTime::now());
        assert_eq!(report.into_result().unwrap().deferred, 1);
    }
    let sql = Connection::open(store.path()).unwrap();
    let count = |what: &str| {
        sql.query_row(&format!("SELECT count(*) FROM {what}"), [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    let runners = count("runners");
    // The runners of the first 20 deferrals are named by events; a few of the others are left.
    assert!(runners <= 24, "{runners} runners");
    let missing = "history WHERE runner IS NOT NULL AND runner NOT IN (SELECT id FROM runners)";
    assert_eq!(count(missing), 0, "an event names a runner that is gone");
    let last: i64 = sql.query_row("SELECT max(id) FROM runners", [], |row| row.get(0)).unwrap();
    assert_eq!(last, 100, "no id is given twice");
}

/// Whatever happens between two deferrals, the next one is stored, and the history has no gap.
#[test]
fn a_sum_of_deferrals_continues_after_any_other_event() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drafts.db");
    let store = DraftStore::open(&path).unwrap();
    let draft = draft("never ready");
    store.submit(&draft).unwrap();
    let sql = Connection::open(&path).unwrap();
    let claim = |runner: &RunnerRegistration| {
        let mut snapshot = store.pending_snapshot().unwrap();
        match store.claim_next(runner, &mut snapshot).unwrap() {
            Some(Claimed::Draft(claim)) => *claim,
            other => panic!("{other:?}"),
        }
    };
    let defer = || {
        let runner = Runner::new(&store, "test");
        let report = runner.run_one(&mut DeferredDraftProcessor, SystemTime::now());
        let summary = report.into_result().unwrap();
        assert_eq!((summary.deferred, summary.errors), (1, 0));
        sql.execute("UPDATE drafts SET due_at = 0", []).unwrap();
        assert_whole(&path);
    };
    (0..24).for_each(|_| defer());
    for between in ["released", "recovered", "errored", "refused", "resolved", "requeued"] {
        let runner = store.register_runner("other").unwrap();
        match between {
            "released" => store.release(claim(&runner)).unwrap(),
            "recovered" => {
                let _left = claim(&runner);
                drop(runner);
                assert_eq!(store.recover(SystemTime::UNIX_EPOCH).unwrap().to_pending.len(), 1);
            }
            "errored" => {
                let error = ProcessorError::new("exit", "exit status 3").into();
                store.record_error(claim(&runner), &error).unwrap();
                assert_eq!(store.recover(SystemTime::now()).unwrap().to_pending.len(), 1);
            }
            "refused" => {
                let late = claim(&runner);
                let by_hand = "UPDATE drafts SET state = 'pending', claimed_at = NULL, \
                               claim_token = NULL, owner = NULL";
                sql.execute(by_hand, []).unwrap();
                store.finish(late, &DraftProcessingDecision::Accepted.into()).unwrap_err();
            }
            _ => {
                let by_hand = "UPDATE drafts SET state = 'skipped', decision = 'skipped', \
                               decided_by = 'me', due_at = 0";
                sql.execute(by_hand, []).unwrap();
                if between == "resolved" {
                    // As by hand, without the counter.
                    let again = "UPDATE drafts SET state = 'pending', decision = NULL, \
                                 decided_by = NULL";
                    sql.execute(again, []).unwrap();
                } else {
                    store.requeue(&[draft.id()]).unwrap();
                }
            }
        }
        sql.execute("UPDATE drafts SET due_at = 0", []).unwrap();
        let before: i64 =
            sql.query_row("SELECT count(*) FROM history", [], |row| row.get(0)).unwrap();
        (0..30).for_each(|_| defer());
        let after: i64 =
            sql.query_row("SELECT count(*) FROM history", [], |row| row.get(0)).unwrap();
        assert!(after - before <= 44, "{between}: {} rows more", after - before);
    }
    // Repeated releases leave no rows either.
    let count =
        || -> i64 { sql.query_row("SELECT count(*) FROM history", [], |row| row.get(0)).unwrap() };
    let before = count();
    for _ in 0..20 {
        let runner = store.register_runner("other").unwrap();
        store.release(claim(&runner)).unwrap();
        defer();
    }
    assert_eq!(count(), before);
}
