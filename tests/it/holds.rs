//! A processor that asks its runner to claim nothing for a while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant, SystemTime};

use draftq::{Cancellation, Draft, DraftProcessingDecision, DraftState, Outcome, Runner};
use rusqlite::Connection;

use crate::harness::{draft, err, judged_by, store, timed_store};

#[test]
fn a_short_hold_does_not_end_a_longer_one() {
    const LONG: Duration = Duration::from_millis(300);
    let (_directory, store) = store();
    let drafts = [draft("long"), draft("short"), draft("last")];
    store.submit_many(&drafts).unwrap();
    let (long, reader) = (drafts[0].id(), store.clone());
    let short_begun = AtomicBool::new(false);
    let judge = || {
        let (reader, short_begun) = (reader.clone(), &short_begun);
        judged_by(move |draft: &Draft| {
            let accepted = Outcome::new(DraftProcessingDecision::Accepted);
            let now = microseconds();
            Ok(match draft.raw_text() {
                "long" => {
                    while !short_begun.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                    accepted.with_hold(LONG).with_note(&now)
                }
                "short" => {
                    short_begun.store(true, Ordering::SeqCst);
                    // Only after the long hold is known.
                    while reader.load(DraftState::Accepted, long).is_err() {
                        std::thread::yield_now();
                    }
                    accepted.with_hold(Duration::ZERO)
                }
                _ => accepted.with_note(&now),
            })
        })
    };
    let mut processors = [judge(), judge()];
    let report = Runner::new(&store, "test").run(&mut processors, SystemTime::now());
    assert_eq!(report.summary.accepted, 3);
    let noted = |draft: &Draft| -> u128 {
        store.record(draft.id()).unwrap().0.note.unwrap().parse().unwrap()
    };
    let between = noted(&drafts[2]) - noted(&drafts[0]);
    assert!(between >= LONG.as_micros(), "{between} µs");
}

/// Drafts that were claimed ahead wait as well.
#[test]
fn a_hold_applies_to_drafts_that_were_claimed_ahead() {
    const HOLD: Duration = Duration::from_millis(300);
    for _ in 0..20 {
        let (_directory, store) = store();
        let drafts: Vec<Draft> = (0..200).map(|number| draft(&number.to_string())).collect();
        store.submit_many(&drafts).unwrap();
        let sql = Connection::open(store.path()).unwrap();
        let (mut begun, mut held_since, mut ahead) = (0, None, 0);
        Runner::new(&store, "test")
            .limit(13)
            .run_one(
                &mut judged_by(|_: &Draft| {
                    begun += 1;
                    let outcome = Outcome::new(DraftProcessingDecision::Accepted);
                    if begun == 12 {
                        let claimed = "SELECT count(*) FROM drafts WHERE state = 'processing' \
                                       AND seq > 12";
                        ahead = sql.query_row(claimed, [], |row| row.get(0)).unwrap();
                        held_since = Some(Instant::now());
                        return Ok(outcome.with_hold(HOLD));
                    }
                    if let Some(since) = held_since {
                        assert!(since.elapsed() >= HOLD, "{:?}", since.elapsed());
                    }
                    Ok(outcome)
                }),
                SystemTime::now(),
            )
            .into_result()
            .unwrap();
        assert_eq!(begun, 13);
        if ahead > 0 {
            return;
        }
    }
    panic!("nothing was ever claimed ahead");
}

/// Microseconds by a clock that never goes back.
fn microseconds() -> String {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed().as_micros().to_string()
}

#[test]
fn a_hold_stops_all_workers() {
    let (_directory, store) = store();
    store.submit_many(&["1", "2", "3", "4"].map(draft)).unwrap();
    let hold = Duration::from_millis(150);
    let begun = Instant::now();
    let starts = Arc::new(Mutex::new(Vec::new()));
    let judge = || {
        let starts = Arc::clone(&starts);
        judged_by(move |_: &Draft| {
            starts.lock().unwrap().push(begun.elapsed());
            Ok(Outcome::new(DraftProcessingDecision::Accepted).with_hold(hold))
        })
    };
    let runner = Runner::new(&store, "test");
    let summary = runner.run(&mut [judge()], SystemTime::now()).into_result().unwrap();
    assert_eq!(summary.accepted, 4);
    let starts = starts.lock().unwrap();
    for pair in starts.windows(2) {
        assert!(pair[1] - pair[0] >= hold, "{starts:?}");
    }
}

#[test]
fn a_cancelled_hold_ends_the_run() {
    let timed = timed_store();
    timed.submit(&["1", "2"]);
    let cancellation = Cancellation::default();
    let asked = cancellation.clone();
    let mut judge = judged_by(|_: &Draft| {
        asked.cancel();
        let outcome = Outcome::new(DraftProcessingDecision::Accepted);
        Ok(outcome.with_hold(Duration::from_secs(3600)))
    });
    let runner = timed.runner().cancellation(cancellation);
    let summary = runner.run_one(&mut judge, timed.clock.now()).into_result().unwrap();
    // The current draft is finished, and no other is claimed.
    assert_eq!((summary.pending_seen, summary.claimed, summary.accepted), (2, 1, 1));
    assert_eq!(summary.claim_misses, 0);
    assert_eq!(timed.store.list(DraftState::Processing).unwrap(), []);
}

/// A hold that is longer than any test.
const LONG_HOLD: Duration = Duration::from_secs(3600);

#[test]
fn a_run_without_more_drafts_does_not_wait_for_a_hold() {
    let timed = timed_store();
    timed.submit(&["1", "2"]);
    let mut judge = judged_by(|_: &Draft| {
        let outcome = Outcome::new(DraftProcessingDecision::Accepted);
        Ok(outcome.with_hold(LONG_HOLD))
    });
    let begun = Instant::now();
    let runner = timed.runner().limit(1);
    let summary = runner.run_one(&mut judge, timed.clock.now()).into_result().unwrap();
    assert_eq!((summary.pending_seen, summary.claimed, summary.accepted), (2, 1, 1));
    assert!(begun.elapsed() < LONG_HOLD / 60, "{:?}", begun.elapsed());
}

#[test]
fn an_error_ends_a_run_during_a_hold() {
    let timed = timed_store();
    timed.submit(&["holds", "errs", "pending"]);
    let both = Arc::new(Barrier::new(2));
    let judge = || {
        let both = Arc::clone(&both);
        judged_by(move |draft: &Draft| {
            both.wait();
            if draft.raw_text() == "holds" {
                let outcome = Outcome::new(DraftProcessingDecision::Accepted);
                return Ok(outcome.with_hold(LONG_HOLD));
            }
            // The other worker is holding by then; otherwise this shows nothing.
            std::thread::sleep(Duration::from_millis(50));
            err(draft)
        })
    };
    let begun = Instant::now();
    let runner = timed.runner().stop_at_error(true);
    let report = runner.run(&mut [judge(), judge()], timed.clock.now());
    assert!(report.stopped_by.is_some());
    assert_eq!((report.summary.accepted, report.summary.errors), (1, 1));
    assert!(begun.elapsed() < LONG_HOLD / 60, "{:?}", begun.elapsed());
}
