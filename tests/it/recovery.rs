//! Recovery of claims: by the death of the runner or by age, whose fault the death is, and clocks that
//! are set.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant, SystemTime};

use draftq::{
    Claimed, Clock, Draft, DraftProcessingDecision, DraftState, DraftStore, LibrarianError,
    Outcome, ProcessorError, Runner, RunnerInfo, from_unix_ms,
};
use rusqlite::Connection;

use crate::harness::{accept, claim, draft, err, judged_by, store, timed_store, uncharged};

/// The lock of the runner is free, and it held one draft.
#[test]
fn a_death_is_charged_to_the_only_draft_and_makes_it_a_suspect() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual(from_unix_ms(3_600_000));
    let store = DraftStore::options()
        .clock(clock.clone())
        .open(directory.path().join("drafts.db"))
        .unwrap();
    store.submit(&draft("poison")).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    let lock = "0123456789abcdef.lock";
    for (before, waits) in
        [(0, 0..1), (1, 7_500..12_501), (2, 15_000..25_001), (30, 2_700_000..4_500_001)]
    {
        sql.execute("UPDATE drafts SET due_at = 0, suspect = 0, crashes = ?1", [before]).unwrap();
        let runner = store.register_runner(RunnerInfo::new("test").max_errors(0)).unwrap();
        let _held = claim(&store, &runner);
        let file = directory.path().join("drafts.db-runners").join(lock);
        File::options().write(true).create(true).truncate(true).mode(0o600).open(file).unwrap();
        sql.execute("UPDATE runners SET lock_file = ?1 WHERE id = ?2", (lock, runner.id()))
            .unwrap();
        let recovery = store.recover(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!((recovery.to_pending.len(), recovery.to_failed.len()), (1, 0));
        let row = "SELECT crashes, suspect, due_at FROM drafts";
        let (crashes, suspect, due_at): (i64, i64, i64) =
            sql.query_row(row, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        assert_eq!((crashes, suspect), (before + 1, 1));
        let waited = if due_at == 0 { 0 } else { due_at - clock.now_ms() };
        assert!(waits.contains(&waited), "after {crashes} crashes it waits {waited} ms");
    }
}

/// The claims of a dead runner are recovered. Those of a runner whose lock file is gone are not,
/// unless they are old enough.
#[test]
fn a_claim_whose_lock_file_is_gone_waits_until_it_is_old() {
    let (directory, store) = store();
    store.submit_many(&[draft("a"), draft("b")]).unwrap();
    let (ended, lost) =
        (store.register_runner("ended").unwrap(), store.register_runner("lost").unwrap());
    let _held = [claim(&store, &ended), claim(&store, &lost)];
    drop(ended);
    for entry in fs::read_dir(directory.path().join("drafts.db-runners")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let recovery = store.recover(SystemTime::UNIX_EPOCH).unwrap();
    let returned: Vec<_> = recovery.to_pending.iter().map(|moved| moved.id).collect();
    assert_eq!(returned, [draft("a").id()]);
    let recovery = store.recover(SystemTime::now() + Duration::from_secs(1)).unwrap();
    let returned: Vec<_> = recovery.to_pending.iter().map(|moved| moved.id).collect();
    assert_eq!(returned, [draft("b").id()]);
}

/// Drafts that failed together are not all tried again at the same time.
#[test]
fn retry_times_are_spread() {
    let (_directory, store) = store();
    let drafts: Vec<Draft> = (0..20).map(|number| draft(&number.to_string())).collect();
    store.submit_many(&drafts).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("UPDATE drafts SET state = 'processing', claimed_at = 1, errors = 2", []).unwrap();
    assert_eq!(store.recover(SystemTime::now()).unwrap().to_pending.len(), 20);
    let times = "SELECT count(DISTINCT due_at) FROM drafts WHERE due_at > 0";
    let times: i64 = sql.query_row(times, [], |row| row.get(0)).unwrap();
    assert!(times > 1);
}

/// A clock that was set back leaves claims in the future. One whose row cannot be changed stops no
/// other.
#[test]
fn claims_in_the_future_are_set_to_now() {
    let (_directory, store) = store();
    store.submit_many(&[draft("a"), draft("b")]).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute_batch(
        "UPDATE drafts SET state = 'processing', claimed_at = 253402300799999;
         CREATE TRIGGER stays BEFORE UPDATE OF claimed_at ON drafts WHEN OLD.seq = 1
         BEGIN SELECT RAISE(ABORT, 'it stays'); END;",
    )
    .unwrap();
    store.recover(SystemTime::UNIX_EPOCH).unwrap();
    let future = "SELECT group_concat(seq) FROM drafts WHERE claimed_at = 253402300799999";
    let future: String = sql.query_row(future, [], |row| row.get(0)).unwrap();
    assert_eq!(future, "1");
}

/// The age of a claim without an owner is that of the clock, but at most the time since the boot.
#[test]
fn a_claim_is_not_older_than_the_time_since_boot() {
    const NOW: i64 = 3_600_000;
    let directory = tempfile::tempdir().unwrap();
    // The machine has just booted.
    let clock = Clock::manual(from_unix_ms(NOW));
    let store =
        DraftStore::options().clock(clock).open(directory.path().join("drafts.db")).unwrap();
    store.submit(&draft("a")).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    for (claimed_at, booted_at, stale) in [
        // The boot time is unknown: only the clock counts.
        (NOW - 60_000, None, true),
        (NOW - 59_999, None, false),
        // The machine has booted since.
        (NOW - 60_000, Some(0), true),
        (NOW - 59_999, Some(0), false),
        // The machine has not booted since, and the clock was set forward.
        (NOW - 60_000, Some(NOW - 60_000), false),
    ] {
        sql.execute(
            "UPDATE drafts SET state = 'processing', claimed_at = ?1, claim_booted_at = ?2",
            (claimed_at, booted_at),
        )
        .unwrap();
        let recovery = store.recover(from_unix_ms(NOW - 60_000)).unwrap();
        assert_eq!(recovery.to_pending.len(), usize::from(stale), "{claimed_at} {booted_at:?}");
        sql.execute("UPDATE drafts SET state = 'pending', claimed_at = NULL", []).unwrap();
    }
}

/// Errors under an earlier runner do not fail a draft when another runner dies or ends.
#[test]
fn the_death_of_another_runner_fails_no_draft() {
    for (end, suspect) in [
        // The runner has no row: either draft may be to blame.
        ("DELETE FROM runners", 1),
        // The runner ended normally.
        ("UPDATE runners SET ended_at = 1", 0),
    ] {
        let (_directory, store) = store();
        store.submit_many(&[draft("a"), draft("b")]).unwrap();
        let sql = Connection::open(store.path()).unwrap();
        // Its errors have reached the budget of the runner under which it failed last.
        sql.execute("UPDATE drafts SET errors = 3, error_budget = 1", []).unwrap();
        let runner = store.register_runner("test").unwrap();
        let _held = [claim(&store, &runner), claim(&store, &runner)];
        sql.execute(end, []).unwrap();
        let recovery = store.recover(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!((recovery.to_pending.len(), recovery.to_failed.len()), (2, 0), "{end}");
        let rows = "SELECT group_concat(suspect || ' ' || crashes || ' ' || errors || ' ' || due_at) \
                    FROM drafts";
        let rows: String = sql.query_row(rows, [], |row| row.get(0)).unwrap();
        assert_eq!(rows, format!("{suspect} 0 3 0,{suspect} 0 3 0"), "{end}");
    }
}

/// With several workers, a suspect is still processed alone: not with the drafts before it
/// and not with those after it.
#[test]
fn a_suspect_is_processed_alone() {
    let (_directory, store) = store();
    let drafts = ["before", "suspect", "after", "last"].map(draft);
    store.submit_many(&drafts).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("UPDATE drafts SET suspect = 1 WHERE seq = 2", []).unwrap();
    let judge = || {
        let sql = Connection::open(store.path()).unwrap();
        judged_by(move |draft: &Draft| {
            let begun = Instant::now();
            // Long enough for the other workers to claim a draft if they were allowed to.
            while ["before", "suspect"].contains(&draft.raw_text())
                && begun.elapsed() < Duration::from_millis(200)
            {
                let held = "SELECT count(*) FROM drafts WHERE state = 'processing'";
                let held: i64 = sql.query_row(held, [], |row| row.get(0)).unwrap();
                assert_eq!(held, 1, "beside {:?}", draft.raw_text());
            }
            Ok(DraftProcessingDecision::Accepted.into())
        })
    };
    let mut processors = [judge(), judge(), judge()];
    let report = Runner::new(&store, "test").run(&mut processors, SystemTime::now());
    assert_eq!(report.into_result().unwrap().accepted, 4);
}

/// A draft is no longer a suspect after its processor returned a result.
#[test]
fn a_draft_stays_a_suspect_until_it_was_processed() {
    let (_directory, store) = store();
    store.submit(&draft("suspect")).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("UPDATE drafts SET suspect = 1, defers_in_a_row = 3", []).unwrap();
    let row = || -> (i64, i64) {
        let row = "SELECT suspect, defers_in_a_row FROM drafts";
        sql.query_row(row, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    let runner = store.register_runner("test").unwrap();
    store.release(claim(&store, &runner)).unwrap();
    assert_eq!(row(), (1, 3), "it was not begun");
    store.record_error(claim(&store, &runner), &uncharged()).unwrap();
    assert_eq!(row(), (1, 3), "the machine failed it");
    let error = ProcessorError::new("exit", "exit status 1").into();
    store.record_error(claim(&store, &runner), &error).unwrap();
    assert_eq!(row(), (0, 0), "it erred, and that is no deferral");
    for (decision, deferrals) in
        [(DraftProcessingDecision::Skipped, 0), (DraftProcessingDecision::Deferred, 4)]
    {
        let other = draft(decision.as_str());
        store.submit(&other).unwrap();
        let only = format!("WHERE id = '{}'", other.id());
        sql.execute(&format!("UPDATE drafts SET suspect = 1, defers_in_a_row = 3 {only}"), [])
            .unwrap();
        store.finish(claim(&store, &runner), &decision.into()).unwrap();
        let row = format!("SELECT suspect, defers_in_a_row FROM drafts {only}");
        let row = sql.query_row(&row, [], |row| Ok((row.get(0)?, row.get(1)?)));
        assert_eq!(row, Ok((0, deferrals)), "{decision:?}");
    }
}

#[test]
fn a_clock_that_is_set_forward_makes_no_claim_stale() {
    let timed = timed_store();
    timed.submit(&["a"]);
    assert_eq!(timed.run(&mut judged_by(err)).errors, 1);
    // An administrator sets the clock an hour ahead; no time has passed.
    let hour = Duration::from_secs(3600);
    timed.clock.jump(timed.clock.now() + hour);
    assert_eq!(timed.run(&mut judged_by(accept)).recovered_processing, 0, "not early");
    timed.pass(Duration::from_secs(59));
    assert_eq!(timed.run(&mut judged_by(accept)).recovered_processing, 0, "not early");
    timed.pass(Duration::from_secs(1));
    assert_eq!(timed.run(&mut judged_by(accept)).recovered_processing, 1, "not stuck");
    // The clock is set back: the draft does not wait for the clock to catch up.
    timed.submit(&["b"]);
    assert_eq!(timed.run(&mut judged_by(err)).errors, 1);
    timed.clock.jump(timed.clock.now() - hour);
    assert_eq!(timed.run(&mut judged_by(accept)).recovered_processing, 0);
    timed.pass(Duration::from_secs(60));
    assert_eq!(timed.run(&mut judged_by(accept)).recovered_processing, 1, "not stuck");
}

#[test]
fn a_claim_with_a_time_in_the_future_ages_from_now() {
    let timed = timed_store();
    let draft = timed.submit(&["a"]).remove(0);
    timed.clock.set(SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000));
    timed.store.transition(draft.id(), DraftState::Pending, DraftState::Processing).unwrap();
    timed.clock.set(from_unix_ms(3_600_000));
    assert_eq!(timed.run(&mut judged_by(accept)).recovered_processing, 0);
    timed.pass(Duration::from_secs(59));
    assert_eq!(timed.run(&mut judged_by(accept)).recovered_processing, 0, "not early");
    timed.pass(Duration::from_secs(1));
    assert_eq!(timed.run(&mut judged_by(accept)).recovered_processing, 1, "not stuck");
}

#[test]
fn age_recovers_no_claim_of_a_live_runner_and_death_all() {
    let timed = timed_store();
    let draft = timed.submit(&["slow"]).remove(0);
    let runner = timed.store.register_runner("slow").unwrap();
    let mut snapshot = timed.store.pending_snapshot().unwrap();
    let Some(Claimed::Draft(claim)) = timed.store.claim_next(&runner, &mut snapshot).unwrap()
    else {
        panic!("nothing was claimed")
    };
    timed.pass(Duration::from_secs(1_000_000));
    let far = timed.clock.now() + Duration::from_secs(1_000_000);
    assert_eq!(timed.store.recover(far).unwrap(), Default::default());

    drop(runner);
    let recovery = timed.store.recover(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(recovery.to_pending.len(), 1);
    let (record, ..) = timed.store.inspect(draft.id()).unwrap();
    // The runner ended normally, so no draft is charged.
    assert_eq!((record.state, record.errors, record.crashes), (DraftState::Pending, 0, 0));
    assert_eq!(record.last_error_class, None);

    // The late result is refused, and kept as an event.
    let outcome = Outcome::new(DraftProcessingDecision::Accepted).with_note("too late");
    let error = timed.store.finish(*claim, &outcome).unwrap_err();
    assert!(matches!(error, LibrarianError::LostClaim { id } if id == draft.id()), "{error:?}");
    let (record, history, _) = timed.store.inspect(draft.id()).unwrap();
    assert_eq!((record.state, record.note), (DraftState::Pending, None));
    let refused = history.last().unwrap();
    assert_eq!((refused.event.as_str(), refused.note.as_deref()), ("refused", Some("too late")));
    assert_eq!(refused.decision, Some(DraftProcessingDecision::Accepted));
}

/// Also if it is ended under the file version's name for it.
#[test]
fn a_suspicion_ends_with_a_transition() {
    let (_directory, store) = store();
    let suspect = draft("suspect");
    store.submit(&suspect).unwrap();
    let sql = Connection::open(store.path()).unwrap();
    sql.execute("UPDATE drafts SET suspect = 1, defers_in_a_row = 3", []).unwrap();
    store.transition(suspect.id(), DraftState::Pending, DraftState::Processing).unwrap();
    store.transition(suspect.id(), DraftState::Processing, DraftState::Pending).unwrap();
    let row = "SELECT suspect, defers_in_a_row FROM drafts";
    let row: (i64, i64) = sql.query_row(row, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(row, (0, 0));
}

/// A run that the store ended leaves its claims, and the next run of the same runner, in the same
/// process, gets them back: they do not look like those of a live runner.
#[test]
fn what_a_failed_run_left_behind_is_recovered_by_the_next_run_of_the_same_runner() {
    let (_directory, store) = store();
    for text in ["a", "b", "c"] {
        store.submit(&draft(text)).unwrap();
    }
    let sql = Connection::open(store.path()).unwrap();
    sql.busy_timeout(Duration::from_secs(60)).unwrap();
    let version: i64 = sql.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    let runner = Runner::new(&store, "test");
    let mut spoils = judged_by(|_: &Draft| {
        sql.pragma_update(None, "user_version", 99).unwrap();
        Ok(DraftProcessingDecision::Accepted.into())
    });
    let report = runner.run_one(&mut spoils, SystemTime::now());
    let stopped_by = report.stopped_by;
    assert!(matches!(stopped_by, Some(LibrarianError::ForeignDatabase { .. })), "{stopped_by:?}");
    sql.pragma_update(None, "user_version", version).unwrap();
    let mut accepts = judged_by(|_: &Draft| Ok(DraftProcessingDecision::Accepted.into()));
    let summary = runner.run_one(&mut accepts, SystemTime::now()).into_result().unwrap();
    assert_eq!(summary.accepted, 3);
}
