//! Moves and other changes by hand, with SQL: what the database accepts and what it refuses. Asked
//! through the SQLite in this program, the `sqlite3` shell and Python's `sqlite3`.

use std::path::Path;
use std::time::SystemTime;

use draftq::{Claimed, DraftState, unix_ms};
use rusqlite::Connection;

use crate::harness::{assert_whole, draft, rows, store};
use crate::shells::{Shell, bring_to};

/// Everything in the file that a statement could change.
fn contents(path: &Path) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    ["drafts", "draft_texts", "history"]
        .map(|table| rows(&connection, &format!("SELECT rowid, * FROM {table}")).unwrap())
        .to_vec()
}

fn pairs() -> impl Iterator<Item = (DraftState, DraftState)> {
    DraftState::ALL.into_iter().flat_map(|from| DraftState::ALL.map(|to| (from, to)))
}

fn history_rows(path: &Path, id: &str) -> Vec<String> {
    let sql = format!(
        "SELECT event || ' ' || coalesce(from_state, '-') || ' ' || to_state || ' ' || by_hand || ' ' || at
         FROM history WHERE draft = (SELECT seq FROM drafts WHERE id = '{id}') ORDER BY seq"
    );
    let text = rows(&Connection::open(path).unwrap(), &sql).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn legal_moves_by_hand_leave_one_event_each_and_others_are_refused() {
    for shell in Shell::all() {
        let (directory, store) = store();
        let path = directory.path().join("drafts.db");
        let drafts: Vec<_> = pairs()
            .map(|(from, to)| (from, to, bring_to(&store, &format!("{from} to {to}"), from)))
            .collect();
        drop(store);

        // All other columns fit the target state, so that only the move can be refused.
        let moves: Vec<_> = drafts
            .iter()
            .map(|(_, to, id)| {
                let claimed_at = if *to == DraftState::Processing { "7" } else { "NULL" };
                let decision = if to.is_terminal() { format!("'{to}'") } else { "NULL".into() };
                format!(
                    "UPDATE drafts SET state = '{to}', claimed_at = {claimed_at}, \
                         claim_token = NULL, owner = NULL, due_at = 0, decision = {decision} \
                     WHERE id = '{id}'"
                )
            })
            .collect();
        let events_before: Vec<_> = drafts.iter().map(|(.., id)| history_rows(&path, id)).collect();
        let begun = unix_ms(SystemTime::now());
        let answers = shell.each(&path, &moves);
        let ended = unix_ms(SystemTime::now());

        for (((from, to, id), answer), before) in drafts.iter().zip(answers).zip(events_before) {
            // A decision by hand needs a signature.
            let legal = (from.runner_may_move_to(*to) && !to.is_terminal())
                || (from.is_terminal() && *to == DraftState::Pending);
            let events = history_rows(&path, id);
            let state = rows(
                &Connection::open(&path).unwrap(),
                &format!("SELECT state FROM drafts WHERE id = '{id}'"),
            );
            if legal {
                assert_eq!(answer, Ok(String::new()), "{shell:?}: {from} to {to}");
                assert_eq!(state.unwrap(), to.dir_name());
                assert_eq!(events.len(), before.len() + 1, "{shell:?}: {from} to {to}");
                let words: Vec<_> = events.last().unwrap().split(' ').collect();
                assert_eq!(words[1..4], [from.dir_name(), to.dir_name(), "1"], "{shell:?}");
                let at: i64 = words[4].parse().unwrap();
                assert!((begun - 1..=ended + 1).contains(&at), "{at} in {begun}..={ended}");
            } else if from == to {
                // Not a move: there is nothing to refuse or record.
                assert_eq!(answer, Ok(String::new()), "{shell:?}: {from} to {to}");
                assert_eq!(events, before);
            } else {
                let message = answer.unwrap_err();
                let named = format!("draftq: illegal move: {from} to {to}");
                assert!(message.contains(&named), "{shell:?}: {message}");
                assert_eq!((state.unwrap().as_str(), events), (from.dir_name(), before));
            }
        }
        assert_whole(&path);
    }
}

#[test]
fn each_move_by_hand_has_its_event() {
    let (directory, store) = store();
    let path = directory.path().join("drafts.db");
    for (from, sets, event) in [
        (DraftState::Pending, "state = 'processing', claimed_at = 1", "claimed"),
        (DraftState::Processing, "state = 'pending'", "recovered"),
        (DraftState::Processing, "state = 'pending', decision = 'deferred'", "deferred"),
        (DraftState::Processing, "state = 'pending', requeues = requeues + 1", "requeued"),
        (
            DraftState::Processing,
            "state = 'failed', decision = 'failed', decided_by = 'me'",
            "resolved",
        ),
        (
            DraftState::Pending,
            "state = 'accepted', decision = 'accepted', decided_by = 'me'",
            "resolved",
        ),
        (
            DraftState::Failed,
            "state = 'accepted', decision = 'accepted', decided_by = 'me'",
            "resolved",
        ),
        (DraftState::Failed, "decided_by = 'me'", "resolved"),
        (DraftState::Processing, "errors = errors + 1", "errored"),
        (DraftState::Skipped, "state = 'pending', decision = NULL", "requeued"),
    ] {
        let id = bring_to(&store, &format!("{from}: {sets}"), from);
        let leave = if from == DraftState::Processing && event != "errored" {
            ", claimed_at = NULL, claim_token = NULL, owner = NULL"
        } else {
            ""
        };
        let begun = unix_ms(SystemTime::now());
        let sql = format!("UPDATE drafts SET {sets}{leave} WHERE id = '{id}'");
        Shell::Linked.ask(&path, &sql).unwrap();
        let events = history_rows(&path, &id);
        let words: Vec<_> = events.last().unwrap().split(' ').collect();
        assert_eq!((words[0], words[3]), (event, "1"), "{sets}");
        assert!(words[4].parse::<i64>().unwrap() >= begun - 1, "{sets}: a real time");
    }
    let begun = unix_ms(SystemTime::now());
    let sql = "INSERT INTO submissions (id, submitted_at, source_surface, raw_text) \
               VALUES ('00000000000000aa', 0, 'cli', 'é by hand')";
    Shell::Linked.ask(&path, sql).unwrap();
    let at = "SELECT event || ' ' || by_hand || ' ' || (at >= {begun} - 1) FROM history \
              ORDER BY seq DESC LIMIT 1";
    let at = at.replace("{begun}", &begun.to_string());
    assert_eq!(Shell::Linked.ask(&path, &at).unwrap(), "submitted 1 1");
    assert_whole(&path);
}

/// Statements that must change nothing. Most of them are refused, with this message.
fn attacks(pending: &str, processing: &str, finished: &str) -> Vec<(String, &'static str)> {
    const EDIT: &str = "draftq: illegal edit";
    const CONTINUES: &str = "does not continue the draft's history";
    const IDENTITY: &str = "identity is fixed";
    const INSERT: &str = "draftq: illegal insert";
    const DELETE: &str = "draftq: illegal delete";
    const CHECK: &str = "CHECK constraint failed";
    const SILENT: &str = "";
    let columns = "(id, updated_at, submitted_at, text_bytes, source_surface)";
    let values = "0, 0, 0, 'cli')";
    let mut attacks = Vec::new();
    let mut attack = |sql: String, refusal| attacks.push((sql, refusal));

    // Identity.
    for id in [pending, processing, finished] {
        for set in [
            "id = '0123456789abcdef'",
            "seq = 99",
            "rowid = 99",
            "oid = 99",
            "_rowid_ = -1",
            "\"ROWID\" = 99",
            "submitted_at = 0",
            "text_bytes = 0",
            "source_surface = 'mcp'",
            "source_agent = 'x'",
            "source_project = 'x'",
            "operator = 'x'",
            "provenance_uri = 'x'",
            "context_tags = '[\"x\"]'",
            "(id, note) = ('0123456789abcdef', 'x')",
        ] {
            for or in ["", "OR IGNORE", "OR REPLACE", "OR FAIL"] {
                attack(format!("UPDATE {or} drafts SET {set} WHERE id = '{id}'"), IDENTITY);
            }
        }
        for column in ["seq", "rowid", "oid", "_rowid_"] {
            for or in ["OR REPLACE", "OR IGNORE"] {
                attack(
                    format!(
                        "UPDATE {or} drafts SET {column} = (SELECT seq FROM drafts WHERE id <> '{id}') \
                         WHERE id = '{id}'"
                    ),
                    IDENTITY,
                );
            }
        }
        attack(
            format!(
                "UPDATE OR REPLACE drafts SET id = (SELECT id FROM drafts WHERE id <> '{id}') \
                 WHERE id = '{id}'"
            ),
            IDENTITY,
        );
        // An existing id is the same draft.
        for verb in ["INSERT OR REPLACE", "INSERT OR IGNORE", "INSERT", "REPLACE"] {
            attack(format!("{verb} INTO drafts {columns} VALUES ('{id}', {values}"), SILENT);
            attack(
                format!(
                    "{verb} INTO submissions (id, submitted_at, source_surface, raw_text) \
                     VALUES ('{id}', 0, 'cli', 'x')"
                ),
                SILENT,
            );
            attack(
                format!(
                    "{verb} INTO drafts (seq, id, updated_at, submitted_at, text_bytes, source_surface) \
                     SELECT seq, '00000000000000aa', 0, 0, 0, 'cli' FROM drafts WHERE id = '{id}'"
                ),
                match verb {
                    "INSERT" => "UNIQUE constraint failed",
                    "INSERT OR IGNORE" => SILENT,
                    // With recursive triggers, the delete trigger of the replaced row refuses.
                    _ => "draftq: illegal",
                },
            );
            attack(
                format!("{verb} INTO drafts {columns} VALUES ('00000000000000aa', {values}"),
                INSERT,
            );
            attack(
                format!(
                    "{verb} INTO draft_texts (seq, raw_text) \
                     SELECT seq, 'x' FROM drafts WHERE id = '{id}'"
                ),
                EDIT,
            );
            attack(
                format!("{verb} INTO history SELECT * FROM history WHERE event = 'submitted'"),
                CONTINUES,
            );
        }
        attack(
            format!(
                "INSERT INTO drafts {columns} VALUES ('{id}', {values} \
                 ON CONFLICT (id) DO UPDATE SET state = 'quarantined'"
            ),
            SILENT,
        );
        // Text and history.
        for table in ["draft_texts", "history"] {
            let draft = if table == "history" { "draft" } else { "seq" };
            let seq = format!("(SELECT seq FROM drafts WHERE id = '{id}')");
            attack(format!("DELETE FROM {table} WHERE {draft} = {seq}"), DELETE);
            for or in ["", "OR IGNORE", "OR REPLACE"] {
                attack(format!("UPDATE {or} {table} SET rowid = 99 WHERE {draft} = {seq}"), EDIT);
            }
        }
        // An unknown state.
        for state in ["'nonsense'", "'Pending'", "''"] {
            for or in ["", "OR REPLACE"] {
                attack(
                    format!("UPDATE {or} drafts SET state = {state} WHERE id = '{id}'"),
                    "illegal move",
                );
            }
        }
        attack(format!("UPDATE drafts SET state = NULL WHERE id = '{id}'"), "NOT NULL");
    }
    attack("UPDATE draft_texts SET raw_text = 'x'".into(), EDIT);
    attack("UPDATE history SET at = 0".into(), EDIT);
    attack("UPDATE history SET by_hand = 0, draft = draft + 1".into(), EDIT);
    attack("DELETE FROM draft_texts".into(), DELETE);
    attack("DELETE FROM history".into(), DELETE);

    // Rows in advance, or with the last possible number.
    attack("INSERT INTO draft_texts (seq, raw_text) VALUES (99, 'x')".into(), INSERT);
    attack("INSERT INTO draft_texts (raw_text) VALUES ('x')".into(), INSERT);
    for (seq, refusal) in
        [("9223372036854775807", CHECK), ("99", INSERT), ("-5", INSERT), ("0", CHECK)]
    {
        attack(
            format!(
                "INSERT OR REPLACE INTO drafts \
                 (seq, id, updated_at, submitted_at, text_bytes, source_surface) \
                 VALUES ({seq}, '00000000000000aa', {values}"
            ),
            refusal,
        );
        attack(
            format!(
                "INSERT INTO history (seq, draft, event, from_state, to_state, at, by_hand) \
                 SELECT {seq}, seq, 'refused', state, state, 0, 0 FROM drafts LIMIT 1"
            ),
            if seq.parse::<i64>().unwrap() > 0 { CONTINUES } else { CHECK },
        );
    }
    // Events of drafts that do not exist, or are in another state.
    for event in ["'submitted', NULL", "'deleted', 'deleted'", "'decided', 'pending'"] {
        for draft in [0, 99] {
            for or in ["", "OR IGNORE", "OR REPLACE"] {
                let to =
                    if draft == 0 && event.starts_with("'deleted") { "pending" } else { "deleted" };
                attack(
                    format!(
                        "INSERT {or} INTO history (draft, event, from_state, to_state, at, by_hand) \
                         VALUES ({draft}, {event}, '{to}', 0, 0)"
                    ),
                    CONTINUES,
                );
            }
        }
    }
    // A sum of deferrals that is none: the row that it continues could be deleted.
    attack(
        "INSERT INTO history (draft, event, from_state, to_state, at, repeats, by_hand) \
         SELECT seq, 'errored', state, state, 0, 2, 0 FROM drafts LIMIT 1"
            .into(),
        CONTINUES,
    );
    // A draft without its text, with any conflict clause.
    for or in ["", "OR IGNORE", "OR FAIL", "OR REPLACE"] {
        for (id, text) in
            [("00000000000000aa", "NULL"), ("00000000000000aa", "' \n'"), ("bad", "'x'")]
        {
            attack(
                format!(
                    "INSERT {or} INTO submissions (id, submitted_at, source_surface, raw_text) \
                     VALUES ('{id}', 0, 'cli', {text})"
                ),
                if id == "bad" && or != "OR IGNORE" { CHECK } else { INSERT },
            );
        }
    }
    for (draft, to) in [("99", "pending"), ("1", "quarantined")] {
        attack(
            format!(
                "INSERT INTO history (draft, event, to_state, at, by_hand) \
                 VALUES ({draft}, 'submitted', '{to}', 0, 0)"
            ),
            CONTINUES,
        );
    }
    // Rows that do not continue a history: the draft's own states, forged moves.
    for (id, state) in [(pending, "pending"), (processing, "processing"), (finished, "accepted")] {
        for (event, from, to) in [
            ("submitted", "NULL", "'pending'"),
            ("claimed", "'pending'", "'processing'"),
            ("decided", "'processing'", "'accepted'"),
            ("deferred", "'processing'", "'pending'"),
            ("recovered", "'processing'", "'pending'"),
            ("requeued", "'accepted'", "'pending'"),
            ("resolved", "'pending'", "'accepted'"),
            ("deleted", "'accepted'", "NULL"),
            ("claimed", &format!("'{state}'"), &format!("'{state}'")),
            ("decided", "NULL", "NULL"),
        ] {
            attack(
                format!(
                    "INSERT INTO history (draft, event, from_state, to_state, at, by_hand) \
                     SELECT seq, '{event}', {from}, {to}, 0, 0 FROM drafts WHERE id = '{id}'"
                ),
                CONTINUES,
            );
        }
    }
    attack(
        "INSERT INTO history (draft, event, at, by_hand) VALUES (99, 'errored', 0, 0)".into(),
        CONTINUES,
    );
    for id in ["'short'", "'0123456789ABCDEF'", "'0123456789abcdef' || char(0)", "NULL"] {
        let sql = format!(
            "INSERT INTO submissions (id, submitted_at, source_surface, raw_text) \
             VALUES ({id}, 0, 'cli', 'x')"
        );
        attack(sql, "constraint failed");
    }
    for state in DraftState::ALL.into_iter().filter(|state| *state != DraftState::Pending) {
        attack(
            format!(
                "INSERT INTO drafts (id, state, claimed_at, updated_at, submitted_at, text_bytes, \
                 source_surface) VALUES ('00000000000000aa', '{state}', 1, {values}"
            ),
            "illegal move: a draft starts as pending",
        );
    }
    for tags in [
        "[1]",
        "[[\"a\"]]",
        "[null]",
        "{}",
        "x",
        "\"a\"",
        "[\"\\ud800\"]",
        "[\"a\"]' || char(0) || '",
    ] {
        attack(
            format!(
                "INSERT INTO submissions (id, context_tags, submitted_at, source_surface, raw_text) \
                 VALUES ('00000000000000aa', '{tags}', 0, 'cli', 'x')"
            ),
            // The trigger, the CHECK or json_each itself.
            "",
        );
    }

    // Unfinished drafts are not deleted, nor finished ones by the same statement.
    for id in [pending, processing] {
        attack(format!("DELETE FROM drafts WHERE id = '{id}'"), DELETE);
    }
    attack("DELETE FROM drafts".into(), DELETE);

    // Columns of processing in another state, and processing without them.
    for id in [pending, finished] {
        for set in ["claimed_at = 1", "claim_token = randomblob(16)", "owner = 1"] {
            attack(format!("UPDATE drafts SET {set} WHERE id = '{id}'"), CHECK);
            attack(format!("UPDATE OR REPLACE drafts SET {set} WHERE id = '{id}'"), CHECK);
            attack(format!("UPDATE OR IGNORE drafts SET {set} WHERE id = '{id}'"), SILENT);
        }
    }
    attack(format!("UPDATE drafts SET claimed_at = NULL WHERE id = '{processing}'"), CHECK);
    attack(format!("UPDATE drafts SET claim_token = NULL WHERE id = '{processing}'"), CHECK);
    attack(format!("UPDATE drafts SET due_at = 5 WHERE id = '{processing}'"), CHECK);
    attack(format!("UPDATE drafts SET due_at = 5 WHERE id = '{finished}'"), CHECK);
    attack(format!("UPDATE drafts SET due_at = -5 WHERE id = '{pending}'"), CHECK);
    attack(format!("UPDATE drafts SET errors = -1 WHERE id = '{processing}'"), CHECK);
    attack(format!("UPDATE drafts SET decision = 'accepted' WHERE id = '{processing}'"), CHECK);
    attack(
        format!("UPDATE drafts SET decision = 'skipped' WHERE id = '{finished}'"),
        "illegal move",
    );
    attack(format!("UPDATE drafts SET output = '{{' WHERE id = '{finished}'"), CHECK);
    for token in ["randomblob(16)", "x''", "zeroblob(16)"] {
        attack(
            format!("UPDATE drafts SET claim_token = {token} WHERE id = '{processing}'"),
            "a claim keeps its token",
        );
    }
    attack(
        format!("UPDATE drafts SET state = 'processing', claimed_at = 1 WHERE id = '{finished}'"),
        "illegal move: accepted to processing",
    );
    attack(
        format!(
            "UPDATE OR IGNORE drafts SET state = 'accepted', decision = 'accepted' \
             WHERE id = '{pending}'"
        ),
        "illegal move: pending to accepted",
    );
    attack(
        "UPDATE drafts SET state = other.state FROM (SELECT 'skipped' AS state) AS other \
         WHERE drafts.state = 'accepted'"
            .into(),
        "illegal move: accepted to skipped",
    );
    attacks
}

#[test]
fn no_statement_by_hand_changes_or_loses_a_draft() {
    for shell in Shell::all() {
        let (directory, store) = store();
        let path = directory.path().join("drafts.db");
        let processing = draft("in processing");
        store.submit(&processing).unwrap();
        let runner = store.register_runner("test").unwrap();
        let mut snapshot = store.pending_snapshot().unwrap();
        let claim = store.claim_next(&runner, &mut snapshot).unwrap();
        assert!(matches!(claim, Some(Claimed::Draft(_))));
        let pending = bring_to(&store, "pending", DraftState::Pending);
        let finished = bring_to(&store, "accepted", DraftState::Accepted);
        let before = contents(&path);

        let attacks = attacks(&pending, &processing.id().to_hex(), &finished);
        // The shell is a process per statement: for it, those without an OR clause and the worst.
        let attacks: Vec<_> = attacks
            .into_iter()
            .filter(|(sql, _)| {
                shell != Shell::Sqlite3 || !sql.contains("OR IGNORE") && !sql.contains("OR FAIL")
            })
            .collect();
        let statements: Vec<_> = attacks.iter().map(|(sql, _)| sql.clone()).collect();
        for recursive in ["OFF", "ON"] {
            if shell == Shell::Sqlite3 && recursive == "ON" {
                continue;
            }
            let mut script = vec![format!("PRAGMA recursive_triggers = {recursive}")];
            script.extend(statements.iter().cloned());
            let answers = shell.each(&path, &script);
            for ((sql, refusal), answer) in attacks.iter().zip(&answers[1..]) {
                match answer {
                    Err(message) => {
                        assert!(message.contains(refusal), "{shell:?}: {sql}: {message}");
                    }
                    Ok(_) => assert_eq!(*refusal, "", "{shell:?}: was let through: {sql}"),
                }
            }
            assert_eq!(contents(&path), before, "{shell:?}: something changed the file");
        }
        assert_whole(&path);
        store.submit(&draft("and there is room for more")).unwrap();
    }
}

#[test]
fn a_claim_without_a_token_cannot_get_one() {
    let (directory, store) = store();
    let path = directory.path().join("drafts.db");
    let id = bring_to(&store, "x", DraftState::Processing);
    let ask = |sql: &str| Shell::Linked.ask(&path, &sql.replace("{id}", &id));
    ask("CREATE TEMP TABLE kept AS SELECT claim_token FROM drafts").unwrap();
    let token = ask("SELECT hex(claim_token) FROM drafts WHERE id = '{id}'").unwrap();
    ask("UPDATE drafts SET claim_token = NULL, owner = NULL WHERE id = '{id}'").unwrap();
    for value in [format!("x'{token}'"), "randomblob(16)".to_owned()] {
        let sql = format!("UPDATE drafts SET claim_token = {value} WHERE id = '{{id}}'");
        let message = ask(&sql).unwrap_err();
        assert!(message.contains("a claim keeps its token"), "{message}");
    }
}

#[test]
fn a_deleted_draft_leaves_one_event_and_no_seq_is_reused() {
    for shell in Shell::all() {
        let (directory, store) = store();
        let path = directory.path().join("drafts.db");
        let stays = bring_to(&store, "stays", DraftState::Accepted);
        let goes = bring_to(&store, "goes", DraftState::Quarantined);
        shell.ask(&path, &format!("DELETE FROM drafts WHERE id = '{goes}'")).unwrap();
        let left = "SELECT (SELECT group_concat(id) FROM drafts), \
                        (SELECT group_concat(raw_text) FROM draft_texts), \
                        (SELECT group_concat(draft || event) FROM history WHERE seq > 3)";
        let last = format!("{stays}|stays|2deleted");
        assert_eq!(shell.ask(&path, left).unwrap(), last, "{shell:?}");
        let refused = shell.ask(&path, "DELETE FROM history WHERE event = 'deleted'").unwrap_err();
        assert!(refused.contains("draftq: illegal delete"), "{shell:?}: {refused}");
        assert_eq!(store.stats().unwrap().drafts, 1, "{shell:?}");
        // Neither its seq nor that of its event is reused.
        bring_to(&store, "goes", DraftState::Pending);
        assert_eq!(shell.ask(&path, "SELECT max(seq) FROM drafts").unwrap(), "3", "{shell:?}");
        assert_eq!(shell.ask(&path, "SELECT max(seq) FROM history").unwrap(), "8", "{shell:?}");
        assert_eq!(store.stats().unwrap().drafts, 2, "{shell:?}");
        // There are later events now, so this one can be deleted.
        shell.ask(&path, "DELETE FROM history WHERE event = 'deleted'").unwrap();
        assert_whole(&path);
    }
}
