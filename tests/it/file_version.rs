//! A processor that was written for the file version, mimir-librarian 0.1.0: only the crate's
//! name in the `use` line is another. It compiles, and a run does with it what that one did.

use std::time::{Duration, SystemTime};

use draftq::{
    DeferredDraftProcessor, Draft, DraftMetadata, DraftProcessingDecision, DraftProcessor,
    DraftSourceSurface, DraftState, DraftStore, LibrarianError, run_once,
};

/// As in the file version: `process` alone, errors from `?` on I/O and JSON, the same names.
struct TextMatchingProcessor {
    seen: Vec<String>,
}

impl DraftProcessor for TextMatchingProcessor {
    fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        let _surface: DraftSourceSurface = draft.metadata().source_surface;
        let _project: Option<&str> = draft.metadata().source_project.as_deref();
        let _ids: (String, [u8; 8]) = (draft.id().to_hex(), draft.id().as_bytes());
        self.seen.push(draft.prose().to_owned());
        if let Some(path) = draft.raw_text().strip_prefix("read ") {
            std::fs::read(path)?;
        }
        if let Some(json) = draft.raw_text().strip_prefix("parse ") {
            serde_json::from_str::<serde_json::Value>(json)?;
        }
        if draft.raw_text().contains("accept") {
            Ok(DraftProcessingDecision::Accepted)
        } else if draft.raw_text().contains("skip") {
            Ok(DraftProcessingDecision::Skipped)
        } else if draft.raw_text().contains("fail") {
            Ok(DraftProcessingDecision::Failed)
        } else if draft.raw_text().contains("quarantine") {
            Ok(DraftProcessingDecision::Quarantined)
        } else {
            Err(LibrarianError::NotYetImplemented { component: "a decision" })
        }
    }
}

fn draft(text: &str) -> Draft {
    Draft::with_metadata(
        text.to_string(),
        DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::UNIX_EPOCH),
    )
}

fn store() -> (tempfile::TempDir, DraftStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
    (directory, store)
}

fn matching() -> TextMatchingProcessor {
    TextMatchingProcessor { seen: Vec::new() }
}

#[test]
fn four_drafts_reach_the_four_terminal_states() {
    let (_directory, store) = store();
    let texts = ["accept this draft", "skip this draft", "fail this draft", "quarantine this"];
    let drafts = texts.map(draft);
    for draft in &drafts {
        store.submit(draft).unwrap();
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(30);
    let mut processor = matching();
    let summary = run_once(&store, &mut processor, now, Duration::from_secs(10)).unwrap();

    assert_eq!(summary.recovered_processing, 0);
    assert_eq!(summary.pending_seen, 4);
    assert_eq!(summary.claimed, 4);
    assert_eq!(
        (summary.accepted, summary.skipped, summary.failed, summary.quarantined, summary.deferred),
        (1, 1, 1, 1, 0)
    );
    assert_eq!(processor.seen, texts, "first in, first out");
    assert_eq!(store.list(DraftState::Pending).unwrap().len(), 0);
    for (draft, state) in drafts.iter().zip([
        DraftState::Accepted,
        DraftState::Skipped,
        DraftState::Failed,
        DraftState::Quarantined,
    ]) {
        assert_eq!(&store.load(state, draft.id()).unwrap(), draft);
    }
}

#[test]
fn a_deferred_draft_is_pending_again_and_the_run_ends() {
    let (_directory, store) = store();
    store.submit(&draft("processor is not ready yet")).unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(30);
    let mut processor = DeferredDraftProcessor;
    let summary = run_once(&store, &mut processor, now, Duration::from_secs(10)).unwrap();

    assert_eq!((summary.claimed, summary.deferred), (1, 1));
    assert_eq!(summary.items[0].decision, DraftProcessingDecision::Deferred);
    assert_eq!(summary.items[0].final_state, "pending");
    assert_eq!(store.list(DraftState::Pending).unwrap().len(), 1);
    assert_eq!(store.list(DraftState::Processing).unwrap().len(), 0);
}

#[test]
fn a_stale_claim_is_recovered_before_drafts_are_counted() {
    let (_directory, store) = store();
    let draft = draft("skip me after recovery");
    store.submit(&draft).unwrap();
    store.transition(draft.id(), DraftState::Pending, DraftState::Processing).unwrap();

    let now = SystemTime::now() + Duration::from_secs(60);
    let summary = run_once(&store, &mut matching(), now, Duration::from_secs(1)).unwrap();

    assert_eq!(summary.recovered_processing, 1);
    assert_eq!(summary.pending_seen, 1);
    assert_eq!(summary.skipped, 1);
    assert_eq!(store.list(DraftState::Processing).unwrap().len(), 0);
    assert_eq!(store.list(DraftState::Skipped).unwrap().len(), 1);
}

#[test]
fn a_processors_error_ends_run_once_and_leaves_the_draft_in_processing() {
    for text in ["no word for it", "read /nonexistent/file", "parse {broken"] {
        let (_directory, store) = store();
        let draft = draft(text);
        store.submit(&draft).unwrap();
        let now = SystemTime::now();
        let error = run_once(&store, &mut matching(), now, Duration::from_secs(900)).unwrap_err();
        assert!(
            matches!(
                error,
                LibrarianError::NotYetImplemented { component: "a decision" }
                    | LibrarianError::DraftIo(_)
                    | LibrarianError::DraftJson(_)
            ),
            "{error:?}"
        );
        assert_eq!(store.load(DraftState::Processing, draft.id()).unwrap(), draft);

        // No runner holds it, so that only age recovers it.
        let summary = run_once(&store, &mut matching(), now, Duration::from_secs(900)).unwrap();
        assert_eq!(summary.recovered_processing, 0);
        let later = SystemTime::now() + Duration::from_secs(901);
        let summary =
            run_once(&store, &mut DeferredDraftProcessor, later, Duration::from_secs(900)).unwrap();
        assert_eq!((summary.recovered_processing, summary.deferred), (1, 1));
    }
}

#[test]
fn illegal_moves_and_missing_drafts_are_typed_errors() {
    let (_directory, store) = store();
    let present = draft("present");
    store.submit(&present).unwrap();
    for from in DraftState::ALL {
        for to in DraftState::ALL {
            let result = store.transition(draft("missing").id(), from, to);
            if from.runner_may_move_to(to) {
                assert!(
                    matches!(result, Err(LibrarianError::DraftNotFound { state, .. }) if state == from),
                    "{from} to {to}: {result:?}"
                );
            } else {
                assert!(
                    matches!(result, Err(LibrarianError::InvalidDraftTransition { from: f, to: t })
                        if (f, t) == (from, to)),
                    "{from} to {to}: {result:?}"
                );
            }
        }
    }
    assert!(matches!(
        store.load(DraftState::Accepted, present.id()),
        Err(LibrarianError::DraftNotFound { state: DraftState::Accepted, .. })
    ));
    assert_eq!(store.list(DraftState::Pending).unwrap(), [present]);
}

#[test]
fn transition_makes_the_moves_of_a_runner() {
    for to in DraftState::ALL.into_iter().filter(|to| *to != DraftState::Processing) {
        let (_directory, store) = store();
        let draft = draft("by hand");
        store.submit(&draft).unwrap();
        let claimed = store.transition(draft.id(), DraftState::Pending, DraftState::Processing);
        let claimed = claimed.unwrap();
        assert_eq!(
            (claimed.id, claimed.from, claimed.to),
            (draft.id(), DraftState::Pending, DraftState::Processing)
        );
        store.transition(draft.id(), DraftState::Processing, to).unwrap();
        assert_eq!(store.load(to, draft.id()).unwrap(), draft);
    }
}

#[test]
fn recovery_leaves_fresh_claims_alone() {
    let (_directory, store) = store();
    let draft = draft("fresh");
    store.submit(&draft).unwrap();
    store.transition(draft.id(), DraftState::Pending, DraftState::Processing).unwrap();
    assert_eq!(store.recover_stale_processing(SystemTime::UNIX_EPOCH).unwrap(), []);
    let ahead = SystemTime::now() + Duration::from_secs(60);
    assert_eq!(store.recover_stale_processing(ahead).unwrap().len(), 1);
    assert_eq!(store.recover_stale_processing(ahead).unwrap(), []);
}
