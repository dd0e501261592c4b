//! Which draft is to blame when a runner dies, and whose budget counts.

use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::json;

use super::audit::{check_no_runner_left, read_back};
use super::{Bench, Process, draft, json, killed_by};

/// Reports that it has a draft, then waits for the permission to end.
const WAITS: &str =
    r#"echo have > "$HAVE"; read -r leave < "$LEAVE"; echo '{"decision":"accepted"}'"#;

/// Reports its start and its end.
const LOGS: &str = r#"echo begin >> "$LOG"; echo end >> "$LOG"; echo '{"decision":"accepted"}'"#;

/// Kills its runner if the text is "poison".
const POISON: &str = r#"IFS= read -r line; case $line in *poison*) kill -9 $PPID;; esac; echo '{"decision":"accepted"}'"#;

fn column(connection: &Connection, column: &str) -> Vec<i64> {
    let mut statement =
        connection.prepare(&format!("SELECT {column} FROM drafts ORDER BY seq")).unwrap();
    let values = statement.query_map([], |row| row.get(0)).unwrap();
    values.map(Result::unwrap).collect()
}

#[test]
fn of_several_drafts_of_a_dead_runner_none_is_blamed_and_each_is_tried_alone() {
    let bench = Bench::new();
    let store = bench.store();
    for number in 0..4 {
        store.submit(&draft(&format!("draft {number}"))).unwrap();
    }
    let (have, leave) = (bench.fifo("have"), bench.fifo("leave"));
    let mut have = have;
    let options = ["run", "--json", "-q", "--jobs", "3", "--", "sh", "-c", WAITS];
    let mut command = bench.command(options);
    command.env("HAVE", &have.path).env("LEAVE", &leave.path);
    let process = Process::start_piped(&mut command);
    for _ in 0..3 {
        assert_eq!(have.line(), "have");
    }
    process.signal(Signal::KILL);
    assert!(killed_by(&process.output(), Signal::KILL));
    let recovery = store.recover(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!((recovery.to_pending.len(), recovery.to_failed.len()), (3, 0));
    let sql = bench.sql();
    assert_eq!(column(&sql, "crashes"), [0, 0, 0, 0]);
    assert_eq!(column(&sql, "suspect"), [1, 1, 1, 0]);
    assert_eq!(column(&sql, "due_at"), [0, 0, 0, 0], "an innocent draft does not wait");

    // With three workers, each suspect is still processed alone.
    let log = bench.path("log");
    let options = ["run", "--json", "-q", "--jobs", "3", "--", "sh", "-c", LOGS];
    let mut command = bench.command(options);
    command.env("LOG", &log);
    let output = command.output().unwrap();
    assert_eq!(json(&output)["summary"]["accepted"], 4, "{output:?}");
    let text = std::fs::read_to_string(&log).unwrap();
    assert_eq!(text, "begin\nend\n".repeat(4));
    assert_eq!(column(&sql, "suspect"), [0, 0, 0, 0]);
    read_back(&sql);
    check_no_runner_left(&bench);
}

#[test]
fn a_poison_draft_among_many_workers_is_the_only_one_that_fails() {
    const BUDGET: i64 = 3;
    let bench = Bench::new();
    let store = bench.store();
    for number in 0..12 {
        let text = if number == 5 { "poison".to_owned() } else { format!("harmless {number}") };
        store.submit(&draft(&text)).unwrap();
    }
    let budget = BUDGET.to_string();
    let options =
        ["run", "--json", "-q", "--jobs", "4", "--max-errors", &budget, "--", "sh", "-c", POISON];
    let sql = bench.sql();
    let mut deaths = 0;
    for _ in 0..50 {
        let output = bench.output(options);
        if killed_by(&output, Signal::KILL) {
            deaths += 1;
        } else if sql
            .query_row("SELECT count(*) FROM drafts WHERE state = 'pending'", [], |row| row.get(0))
            .is_ok_and(|pending: i64| pending == 0)
        {
            break;
        }
        // From the second crash on the draft is delayed; here the delay is removed.
        sql.execute("UPDATE drafts SET due_at = 1 WHERE due_at > 0", []).unwrap();
    }
    // The first death may make several drafts suspects. Each later one is the poison's alone.
    assert!((BUDGET..=BUDGET + 1).contains(&deaths), "{deaths} deaths");
    let mut crashes = vec![0; 12];
    crashes[5] = BUDGET;
    assert_eq!(column(&sql, "crashes"), crashes);
    let mut accepted = vec![1; 12];
    accepted[5] = 0;
    assert_eq!(column(&sql, "state = 'accepted'"), accepted);
    assert_eq!(column(&sql, "state = 'failed' AND decision IS NULL")[5], 1);
    read_back(&sql);
}

#[test]
fn the_budget_is_that_of_the_runner_under_which_the_draft_erred_or_died() {
    for (theirs, mine, state) in [("1", "5", "failed"), ("0", "1", "accepted")] {
        let now = ["--stale-processing-secs", "0", "--max-errors"];
        // Its processor fails.
        let bench = Bench::new();
        bench.store().submit(&draft("errs")).unwrap();
        let erring = [&["run", "-q", "--json"], &now[..], &[theirs, "--", "false"]].concat();
        assert_eq!(json(&bench.output(erring))["summary"]["errors"], 1);
        let accepting = [
            &["run", "-q", "--json"],
            &now[..],
            &[mine, "--", "sh", "-c", r#"echo '{"decision":"accepted"}'"#],
        ]
        .concat();
        bench.output(&accepting);
        let is = |sql: &Connection| -> String {
            sql.query_row("SELECT state FROM drafts", [], |row| row.get(0)).unwrap()
        };
        assert_eq!(is(&bench.sql()), state, "erred under {theirs}, recovered under {mine}");

        // It kills its runner.
        let bench = Bench::new();
        bench.store().submit(&draft("poison")).unwrap();
        let dying =
            [&["run", "-q", "--json"], &now[..], &[theirs, "--", "sh", "-c", POISON]].concat();
        assert!(killed_by(&bench.output(dying), Signal::KILL));
        bench.output(&accepting);
        assert_eq!(is(&bench.sql()), state, "died under {theirs}, recovered under {mine}");
    }
}

/// A runner that was cancelled, or that another program ended normally, charges no draft.
#[test]
fn a_runner_that_ends_in_good_order_charges_nothing() {
    let bench = Bench::new();
    let store = bench.store();
    let id = store.submit(&draft("left behind")).unwrap().id;
    let runner = store.register_runner("test").unwrap();
    let mut snapshot = store.pending_snapshot().unwrap();
    assert!(store.claim_next(&runner, &mut snapshot).unwrap().is_some());
    drop(runner);
    assert_eq!(store.recover(std::time::SystemTime::UNIX_EPOCH).unwrap().to_pending.len(), 1);
    let (record, history, _) = store.inspect(id).unwrap();
    assert_eq!((record.errors, record.crashes, record.due_at_unix_ms), (0, 0, None));
    assert_eq!(history.last().unwrap().error_class, None);
    assert_eq!(column(&bench.sql(), "suspect"), [0]);
    assert_eq!(json!(record)["crashes"], 0);
}
