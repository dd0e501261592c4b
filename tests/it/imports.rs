//! Tables for later commands: imported drafts, pruned drafts and checkpoints.

use draftq::DraftState;

use crate::harness::{assert_whole, draft, store};
use crate::shells::{Shell, bring_to};

#[test]
fn a_pruned_draft_is_not_submitted_again() {
    for shell in Shell::all() {
        let (directory, store) = store();
        let path = directory.path().join("drafts.db");
        let id = bring_to(&store, "pruned", DraftState::Skipped);
        bring_to(&store, "another", DraftState::Pending);
        let pruned = format!(
            "INSERT INTO pruned_drafts SELECT id, state, 0 FROM drafts WHERE id = '{id}'; "
        );
        shell.ask(&path, &pruned).unwrap();
        shell.ask(&path, &format!("DELETE FROM drafts WHERE id = '{id}'")).unwrap();
        let again = store.submit(&draft("pruned")).unwrap();
        assert_eq!((again.state, again.created), (DraftState::Skipped, false), "{shell:?}");
        let by_hand = format!(
            "INSERT INTO submissions (id, submitted_at, source_surface, raw_text) \
             VALUES ('{id}', 0, 'cli', 'pruned')"
        );
        shell.ask(&path, &by_hand).unwrap();
        assert_eq!(store.stats().unwrap().drafts, 1, "{shell:?}");
        store.requeue(&[id.parse().unwrap()]).unwrap_err();
        assert_whole(&path);
    }
}

#[test]
fn a_finished_draft_can_be_imported_and_stays_marked() {
    for shell in Shell::all() {
        let (directory, store) = store();
        let path = directory.path().join("drafts.db");
        bring_to(&store, "here before", DraftState::Pending);
        let draft = draft("from elsewhere");
        let id = draft.id().to_hex();
        let import = |by: &str, state: &str, events: &str| {
            format!(
                "INSERT INTO imports (id, state, submitted_at, source_surface, decision, note, \
                     output, raw_text, imported_by, events) \
                 VALUES ('{id}', '{state}', 5, 'cli', nullif('{state}', 'pending'), 'a note', \
                     '[1]', 'from elsewhere', {by}, {events})"
            )
        };
        for (sql, refusal) in [
            (import("NULL", "accepted", "NULL"), "needs imported_by"),
            (import("''", "accepted", "NULL"), "needs imported_by"),
            (import("'me'", "processing", "NULL"), "illegal move"),
            (import("'me'", "nonsense", "NULL"), "CHECK constraint failed"),
            (import("'me'", "accepted", "'{}'"), "events is a JSON array"),
        ] {
            let message = shell.ask(&path, &sql).unwrap_err();
            assert!(message.contains(refusal), "{shell:?}: {sql}: {message}");
            assert_eq!(store.stats().unwrap().drafts, 1, "{shell:?}: {sql}");
        }
        let events = r#"'[{"event":"submitted","at":1},{"event":"decided","at":2}]'"#;
        shell.ask(&path, &import("'me'", "accepted", events)).unwrap();
        let (record, history, there) = store.inspect(draft.id()).unwrap();
        assert_eq!((record.state, record.note.as_deref()), (DraftState::Accepted, Some("a note")));
        assert_eq!(there.raw_text(), "from elsewhere");
        let [imported] = history.as_slice() else { panic!("{history:?}") };
        assert_eq!((imported.event.as_str(), imported.by_hand), ("imported", true));
        let ask = |sql: &str| shell.ask(&path, &sql.replace("{id}", &id)).unwrap();
        let by = "SELECT decided_by FROM draft_history WHERE id = '{id}'";
        assert_eq!(ask(by), "me", "{shell:?}");
        let kept = "SELECT json_array_length(events) FROM imports WHERE id = '{id}'";
        assert_eq!(ask(kept), "2", "{shell:?}");
        // It cannot be changed to look like a draft that was submitted here.
        for sql in [
            "UPDATE drafts SET imported_by = NULL WHERE id = '{id}'",
            "UPDATE drafts SET imported_by = 'you' WHERE id = '{id}'",
            "UPDATE imported_histories SET events = '[]'",
            "DELETE FROM imported_histories",
            "INSERT OR REPLACE INTO imported_histories SELECT seq, '[]' FROM drafts",
        ] {
            let message = shell.ask(&path, &sql.replace("{id}", &id)).unwrap_err();
            assert!(message.contains("draftq: illegal"), "{shell:?}: {sql}: {message}");
        }
        // A second import is the same draft, and it can be moved like any other.
        ask(&import("'you'", "failed", "NULL"));
        assert_eq!(ask(by), "me", "{shell:?}");
        store.requeue(&[draft.id()]).unwrap();
        assert_eq!(ask("SELECT count(*) FROM history WHERE event = 'requeued'"), "1");
        bring_to(&store, "after it", DraftState::Accepted);
    }
}

#[test]
fn a_decision_deletes_the_checkpoint() {
    let (directory, store) = store();
    let path = directory.path().join("drafts.db");
    let id = bring_to(&store, "x", DraftState::Processing);
    let ask = |sql: &str| Shell::Linked.ask(&path, &sql.replace("{id}", &id)).unwrap();
    ask("INSERT INTO checkpoints SELECT seq, '{\"step\":1}', 0 FROM drafts");
    let draft = draft("x");
    store.transition(draft.id(), DraftState::Processing, DraftState::Pending).unwrap();
    assert_eq!(ask("SELECT count(*) FROM checkpoints"), "1", "it is handed back with the draft");
    store.transition(draft.id(), DraftState::Pending, DraftState::Processing).unwrap();
    store.transition(draft.id(), DraftState::Processing, DraftState::Accepted).unwrap();
    assert_eq!(ask("SELECT count(*) FROM checkpoints"), "0");
}
