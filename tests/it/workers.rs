//! Several workers in one run: their limit, their snapshot, their summary.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use draftq::{
    Cancellation, Claimed, Draft, DraftProcessingDecision, DraftRunSummary, DraftState,
    LibrarianError, Outcome, Runner,
};

use crate::harness::{accept, draft, judged_by, seed, setting, store, timed_store};

#[test]
fn workers_share_the_limit_and_process_each_draft_once() {
    let timed = timed_store();
    let texts: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    timed.submit(&texts);
    let seen: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let busy = Arc::new(AtomicUsize::new(0));
    let mut workers: Vec<_> = (0..4)
        .map(|_| {
            let (seen, busy) = (Arc::clone(&seen), Arc::clone(&busy));
            judged_by(move |draft: &Draft| {
                busy.fetch_add(1, Ordering::SeqCst);
                *seen.lock().unwrap().entry(draft.raw_text().to_owned()).or_default() += 1;
                // Another worker must not get a deferred draft again.
                Ok(DraftProcessingDecision::Deferred.into())
            })
        })
        .collect();
    let runner = timed.runner().limit(70);
    let summary = runner.run(&mut workers, timed.clock.now()).into_result().unwrap();
    assert_eq!((summary.pending_seen, summary.claimed, summary.deferred), (100, 70, 70));
    assert_eq!(summary.items.len(), 70);
    assert_eq!(busy.load(Ordering::SeqCst), 70);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 70);
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    // First in, first out: these are the first 70.
    assert!(seen.keys().all(|text| text.parse::<usize>().unwrap() < 70));
}

/// Runs with random workers, speeds, holds, errors, limits and cancellations: the summary adds up,
/// and the store holds what it says.
#[test]
fn the_summary_agrees_with_the_store() {
    let seed = seed();
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..setting("DRAFTQ_TEST_RUNS", 25) {
        // A hold ends by the store's clock, so this one must go.
        let (_directory, store) = store();
        let number = random.usize(1..80);
        let drafts: Vec<Draft> = (0..number).map(|number| draft(&number.to_string())).collect();
        store.submit_many(&drafts).unwrap();

        let (slow, holding) = (random.u32(0..30), random.bool());
        let judge = |mut random: fastrand::Rng| {
            judged_by(move |_: &Draft| {
                if random.u32(0..100) < slow {
                    std::thread::sleep(Duration::from_millis(random.u64(1..40)));
                }
                if random.u32(0..20) == 0 {
                    return Err(LibrarianError::RetryBudgetExhausted { attempts: 1 });
                }
                let decision = *random.choice(&DraftProcessingDecision::ALL).unwrap();
                let hold = Duration::from_millis(random.u64(1..30));
                let outcome = Outcome::new(decision);
                Ok(match holding && random.u32(0..10) == 0 {
                    true => outcome.with_hold(hold),
                    false => outcome,
                })
            })
        };
        let jobs = random.usize(1..5);
        let mut judges: Vec<_> = (0..jobs).map(|_| judge(random.fork())).collect();
        let limit = if random.bool() { number } else { random.usize(1..90) };
        let stops = random.u32(0..5) == 0;
        let cancels = random.u32(0..3) == 0;
        let cancellation = Cancellation::default();
        let runner = Runner::new(&store, "test").limit(limit).stop_at_error(stops);
        let runner = runner.cancellation(cancellation.clone());
        let report = std::thread::scope(|scope| {
            if cancels {
                let moment = Duration::from_micros(random.u64(0..60_000));
                scope.spawn(move || {
                    std::thread::sleep(moment);
                    cancellation.cancel();
                });
            }
            runner.run(&mut judges, SystemTime::now())
        });

        let summary = &report.summary;
        let told = format!("round {round}, jobs {jobs}, limit {limit}, stops {stops}: {summary:?}");
        assert_eq!(summary.claimed, summary.done(), "{told}");
        assert_eq!(summary.items.len() + summary.errors, summary.claimed, "{told}");
        assert_eq!(report.stopped_by.is_some(), stops && summary.errors > 0, "{told}");
        assert_eq!((summary.pending_seen, summary.claim_misses), (number, 0), "{told}");
        assert!(summary.claimed <= limit, "{told}");
        if !cancels && report.stopped_by.is_none() {
            assert_eq!(summary.claimed, number.min(limit), "{told}");
        }
        let held: (usize, usize, usize, usize, usize, usize, usize) =
            rusqlite::Connection::open(store.path())
                .unwrap()
                .query_row(
                    "SELECT sum(claims), sum(claims > 1), sum(owner IS NOT NULL), sum(defers),
                            sum(state = 'processing'), sum(state = 'accepted'),
                            sum(state = 'quarantined') FROM drafts",
                    [],
                    |row| row.try_into(),
                )
                .unwrap();
        let DraftRunSummary { claimed, deferred, errors, accepted, quarantined, .. } = *summary;
        assert_eq!(held, (claimed, 0, 0, deferred, errors, accepted, quarantined), "{told}");
    }
}

#[test]
fn drafts_submitted_during_a_run_are_left_for_the_next() {
    let timed = timed_store();
    timed.submit(&["a", "b"]);
    let store = timed.store.clone();
    let mut late = 0;
    let summary = timed.run(&mut judged_by(|draft: &Draft| {
        late += 1;
        store.submit(&crate::harness::draft(&format!("late {late}"))).unwrap();
        accept(draft)
    }));
    assert_eq!((summary.pending_seen, summary.claimed, summary.accepted), (2, 2, 2));
    assert_eq!(timed.store.list(DraftState::Pending).unwrap().len(), 2);
}

#[test]
fn drafts_that_another_runner_claimed_are_misses() {
    let timed = timed_store();
    let drafts = timed.submit(&["a", "b", "c"]);
    let other = timed.store.register_runner("other").unwrap();
    let mut taken = None;
    let summary = timed.run(&mut judged_by(|draft: &Draft| {
        if taken.is_none() {
            let mut snapshot = timed.store.pending_snapshot().unwrap();
            taken = timed.store.claim_next(&other, &mut snapshot).unwrap();
        }
        accept(draft)
    }));
    assert_eq!((summary.pending_seen, summary.claimed, summary.claim_misses), (3, 2, 1));
    let Some(Claimed::Draft(claim)) = taken else { panic!("nothing was taken") };
    assert_eq!(claim.draft(), &drafts[1]);
    timed.store.finish(*claim, &DraftProcessingDecision::Skipped.into()).unwrap();
    assert_eq!(timed.state(&drafts[1]), DraftState::Skipped);
}

#[test]
fn a_runner_reports_its_progress() {
    let timed = timed_store();
    timed.submit(&["a", "b", "c"]);
    let told: Arc<Mutex<Vec<(usize, usize)>>> = Arc::default();
    let hears = Arc::clone(&told);
    let runner = timed.runner().observer(move |summary| {
        hears.lock().unwrap().push((summary.done(), summary.pending_seen));
    });
    runner.run_one(&mut judged_by(accept), timed.clock.now()).into_result().unwrap();
    assert_eq!(*told.lock().unwrap(), [(0, 3), (1, 3), (2, 3), (3, 3)]);
}
