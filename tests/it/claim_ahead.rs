//! Drafts that are claimed ahead of their processing, and results that share a commit.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use draftq::{Draft, DraftProcessingDecision, DraftState, Runner};

use crate::harness::{accept, claim, draft, judged_by, store, timed_store};

/// One draft takes long, and the drafts that were claimed after it are released.
#[test]
fn drafts_claimed_ahead_of_a_slow_draft_are_released() {
    let (_directory, store) = store();
    let drafts: Vec<Draft> = (0..200).map(|number| draft(&number.to_string())).collect();
    store.submit_many(&drafts).unwrap();
    let other = store.register_runner("other").unwrap();
    let mut begun = 0;
    let mut judge = judged_by(|_: &Draft| {
        begun += 1;
        if begun == 12 {
            let waiting = Instant::now();
            while store.load(DraftState::Pending, drafts[12].id()).is_err() {
                assert!(waiting.elapsed() < Duration::from_secs(10), "it is kept from others");
            }
            store.release(claim(&store, &other)).unwrap();
        }
        Ok(DraftProcessingDecision::Accepted.into())
    });
    let report = Runner::new(&store, "test").run_one(&mut judge, SystemTime::now());
    assert_eq!(report.into_result().unwrap().accepted, 200);
}

#[test]
fn a_slow_draft_does_not_block_other_workers() {
    let timed = timed_store();
    let texts: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    timed.submit(&texts);
    let left = Arc::new((Mutex::new(texts.len() - 1), Condvar::new()));
    let judge = || {
        let left = Arc::clone(&left);
        judged_by(move |draft: &Draft| {
            let (number, changed) = &*left;
            let mut number = number.lock().unwrap();
            if draft.raw_text() == "7" {
                // This draft takes as long as all the others together.
                let limit = Duration::from_secs(20);
                let (number, _) = changed.wait_timeout_while(number, limit, |it| *it > 0).unwrap();
                assert_eq!(*number, 0, "drafts that nobody has looked at");
            } else {
                *number -= 1;
                changed.notify_all();
            }
            accept(draft)
        })
    };
    let mut judges = [judge(), judge(), judge()];
    let summary = timed.runner().run(&mut judges, timed.clock.now()).into_result().unwrap();
    assert_eq!((summary.claimed, summary.accepted), (300, 300));
}

#[test]
fn a_draft_that_is_released_during_a_run_is_claimed_again() {
    let timed = timed_store();
    let texts: Vec<String> = (0..60).map(|number| number.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    timed.submit(&texts);
    // One draft takes so long that those claimed ahead are given back; and that lasts, because
    // another writer has the database until after the draft is done.
    let mut judge = judged_by(|draft: &Draft| {
        if draft.raw_text() == "30" {
            // First the moves of those before it are stored.
            std::thread::sleep(Duration::from_millis(10));
            let writer = rusqlite::Connection::open(timed.store.path()).unwrap();
            writer.busy_timeout(Duration::from_secs(20)).unwrap();
            writer.execute_batch("BEGIN IMMEDIATE").unwrap();
            std::thread::sleep(Duration::from_millis(100));
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                writer.execute_batch("COMMIT").unwrap();
            });
        }
        accept(draft)
    });
    let summary = timed.run(&mut judge);
    assert_eq!((summary.pending_seen, summary.claimed, summary.accepted), (60, 60, 60));
    assert_eq!(summary.claim_misses, 0);
}

/// A result waits for others to share its commit, but only for a few milliseconds,
/// however long the next draft takes.
#[test]
fn a_decision_does_not_wait_for_the_next_draft() {
    let shortest = (0..10)
        .map(|_| {
            let timed = timed_store();
            // Nothing is claimed ahead of the last one: to give that back would store the others.
            let texts: Vec<String> = (0..16).map(|number| number.to_string()).collect();
            let drafts = timed.submit(&texts.iter().map(String::as_str).collect::<Vec<_>>());
            let mut waited = Duration::ZERO;
            timed.run(&mut judged_by(|draft: &Draft| {
                // By now several drafts are claimed at once.
                if draft.raw_text() == "15" {
                    let begun = Instant::now();
                    while timed.state(&drafts[14]) != DraftState::Accepted {
                        assert!(begun.elapsed() < Duration::from_secs(20), "it is never stored");
                    }
                    waited = begun.elapsed();
                }
                accept(draft)
            }));
            waited
        })
        .min()
        .unwrap();
    // 5 ms are promised. At least one of ten tries is not disturbed by other work.
    assert!(shortest < Duration::from_millis(100), "{shortest:?}");
}
