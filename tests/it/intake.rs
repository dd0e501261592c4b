//! Drafts that come in at the same time, and many at once.

use std::collections::BTreeMap;
use std::sync::Barrier;

use draftq::DEFAULT_MAX_TEXT_BYTES;
use draftq::Submission;
use draftq::{Draft, DraftState, DraftStore, LibrarianError};

use crate::harness::{assert_whole, draft, store};

#[test]
fn threads_that_submit_together_get_their_own_results() {
    const THREADS: usize = 8;
    const EACH: usize = 60;
    let (directory, _) = store();
    let path = directory.path().join("drafts.db");
    // Fewer connections than threads, because followers need none.
    let store = DraftStore::options().connections(2).open(&path).unwrap();
    let start = Barrier::new(THREADS);
    let answers: Vec<(Draft, Submission)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (store, start) = (&store, &start);
                scope.spawn(move || {
                    start.wait();
                    (0..EACH)
                        .map(|number| {
                            // All threads submit every third text.
                            let draft = match number % 3 {
                                0 => draft(&format!("shared {number}")),
                                _ => draft(&format!("{thread} {number}")),
                            };
                            let submission = store.submit(&draft).unwrap();
                            (draft, submission)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let mut created: BTreeMap<_, usize> = BTreeMap::new();
    for (draft, submission) in &answers {
        assert_eq!(submission.id, draft.id());
        assert_eq!(submission.state, DraftState::Pending);
        *created.entry(draft.id()).or_default() += usize::from(submission.created);
    }
    assert!(created.values().all(|times| *times == 1), "each draft is new just once");
    let stored = store.list(DraftState::Pending).unwrap();
    assert_eq!(stored.len(), created.len());
    assert!(stored.iter().all(|draft| created.contains_key(&draft.id())));
    assert_whole(&path);
}

#[test]
fn submit_many_stores_all_in_order_or_none() {
    let (directory, store) = store();
    for size in [1, 7, 8, 9, 63, 64, 65, 200] {
        let mut drafts: Vec<Draft> =
            (0..size).map(|number| draft(&format!("{size}: {number}"))).collect();
        // One draft twice in a call, and one that is stored already.
        drafts.push(draft(&format!("{size}: 0")));
        drafts.push(draft("1: 0"));
        let submissions = store.submit_many(&drafts).unwrap();
        let expected: Vec<_> =
            (0..drafts.len()).map(|index| (drafts[index].id(), index < size)).collect();
        let answered: Vec<_> = submissions.iter().map(|it| (it.id, it.created)).collect();
        assert_eq!(answered, expected, "{size}");
    }
    let before = store.stats().unwrap().drafts;
    let bad = [draft("good"), draft("  "), draft("good too")];
    let error = store.submit_many(&bad).unwrap_err();
    assert!(matches!(error, LibrarianError::DraftRejected { .. }), "{error:?}");
    assert_eq!(store.stats().unwrap().drafts, before);
    assert_whole(&directory.path().join("drafts.db"));
}

#[test]
fn long_texts_among_short_ones_keep_their_order() {
    let (directory, store) = store();
    let long = "ä".repeat(DEFAULT_MAX_TEXT_BYTES / 2);
    let mut drafts: Vec<Draft> = (0..70).map(|number| draft(&format!("short {number}"))).collect();
    drafts.insert(30, draft(&long));
    drafts.insert(65, draft(&format!("b{}", "ä".repeat(600_000))));
    store.submit_many(&drafts).unwrap();
    assert_eq!(store.list(DraftState::Pending).unwrap(), drafts);
    assert_whole(&directory.path().join("drafts.db"));
}

#[test]
fn every_way_to_submit_rejects_the_same_drafts() {
    let (_directory, store) = store();
    let blank = draft(" \n\t");
    let rejected = |error: LibrarianError| matches!(error, LibrarianError::DraftRejected { .. });
    assert!(rejected(store.submit(&blank).unwrap_err()));
    assert!(rejected(store.submit_many([&draft("good"), &blank]).unwrap_err()));
    let read = [draft("good"), blank.clone()].map(Ok::<_, LibrarianError>);
    assert!(rejected(store.submit_while_reading(read).unwrap_err()));
    let mut batches = store.batched_submit();
    assert!(rejected(batches.push(blank).unwrap_err()));
    assert!(batches.finish().unwrap().is_empty());
    assert_eq!(store.stats().unwrap().drafts, 0);
}
