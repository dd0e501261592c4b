//! Reads a whole database and checks that the drafts agree with their histories.

use std::collections::BTreeMap;

use rusqlite::Connection;

use super::Bench;

/// One row of `history`.
#[derive(Debug)]
pub struct Event {
    pub event: String,
    pub from: Option<String>,
    pub to: String,
    pub runner: Option<i64>,
    pub error_class: Option<String>,
}

/// One row of `drafts`, with its text and its events.
#[derive(Debug)]
pub struct Row {
    pub id: String,
    pub state: String,
    pub text: String,
    claims: usize,
    errors: usize,
    pub crashes: usize,
    defers: usize,
    pub events: Vec<Event>,
}

impl Row {
    /// How often this happened.
    pub fn count(&self, event: &str) -> usize {
        self.events.iter().filter(|it| it.event == event).count()
    }

    pub fn is_terminal(&self) -> bool {
        ["accepted", "skipped", "failed", "quarantined"].contains(&self.state.as_str())
    }

    /// How many more decisions there are than times that the draft was pending.
    pub fn duplicates(&self) -> usize {
        let mut duplicates = 0;
        let mut decided = false;
        for event in &self.events {
            match event.event.as_str() {
                "decided" | "exhausted" if decided => duplicates += 1,
                "decided" | "exhausted" => decided = true,
                "requeued" => decided = false,
                _ => {}
            }
        }
        duplicates
    }

    /// Check that the history is a chain of legal moves that ends in the draft's state, and that the
    /// counters agree with it.
    fn check(&self) -> Result<(), String> {
        let mut state: Option<&str> = None;
        let mut holder: Option<i64> = None;
        let (mut errors, mut crashes) = (0, 0);
        for event in &self.events {
            let from = event.from.as_deref();
            if from != state && event.event != "refused" {
                return Err(format!("{event:?} does not follow from {state:?}"));
            }
            let terminal = ["accepted", "skipped", "failed", "quarantined"];
            let legal = match (event.event.as_str(), from, event.to.as_str()) {
                ("submitted", None, "pending")
                | ("claimed", Some("pending"), "processing")
                | ("deferred" | "released" | "recovered", Some("processing"), "pending")
                | ("exhausted", Some("processing"), "failed")
                | ("errored", Some("processing"), "processing") => true,
                ("decided", Some("processing"), to) => terminal.contains(&to),
                ("requeued", Some(from), "pending") => from != "pending",
                ("refused", Some(from), to) => from == to,
                _ => false,
            };
            if !legal {
                return Err(format!("{event:?} is no legal move"));
            }
            match event.event.as_str() {
                "claimed" => holder = event.runner,
                "decided" | "deferred" | "released" | "errored" if event.runner != holder => {
                    return Err(format!("{event:?} is not by the holder, {holder:?}"));
                }
                "requeued" => (errors, crashes) = (0, 0),
                _ => {}
            }
            match event.event.as_str() {
                "errored" => {
                    errors += 1;
                    holder = None;
                }
                "recovered" | "exhausted" => {
                    if event.runner != holder {
                        return Err(format!("{event:?} is not from the holder, {holder:?}"));
                    }
                    let crash = event.error_class.as_deref() == Some("crash");
                    crashes += usize::from(crash && holder.is_some());
                }
                _ => {}
            }
            if event.event != "refused" {
                state = Some(&event.to);
            }
        }
        if state != Some(&self.state) {
            return Err(format!("the history ends in {state:?}"));
        }
        for (name, counter, counted) in [
            // Released claims do not count.
            ("claims", self.claims, self.count("claimed") - self.count("released")),
            ("defers", self.defers, self.count("deferred")),
            ("errors", self.errors, errors),
            ("crashes", self.crashes, crashes),
        ] {
            if counter != counted {
                return Err(format!("{name} is {counter}, the history has {counted}"));
            }
        }
        Ok(())
    }
}

/// All drafts by id. Panics if SQLite finds damage, or if a draft and its history disagree.
pub fn read_back(connection: &Connection) -> BTreeMap<String, Row> {
    check_integrity(connection);
    let mut events: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
    let mut statement = connection
        .prepare(
            "SELECT draft, event, from_state, to_state, runner, error_class FROM history \
             ORDER BY seq",
        )
        .unwrap();
    let rows = statement.query_map([], |row| {
        let event = Event {
            event: row.get(1)?,
            from: row.get(2)?,
            to: row.get(3)?,
            runner: row.get(4)?,
            error_class: row.get(5)?,
        };
        Ok((row.get(0)?, event))
    });
    for row in rows.unwrap() {
        let (draft, event) = row.unwrap();
        events.entry(draft).or_default().push(event);
    }
    let mut statement = connection
        .prepare(
            "SELECT seq, id, state, claims, errors, crashes, defers, raw_text FROM drafts \
             LEFT JOIN draft_texts USING (seq)",
        )
        .unwrap();
    let rows = statement.query_map([], |row| {
        let seq = row.get(0)?;
        Ok(Row {
            id: row.get(1)?,
            state: row.get(2)?,
            claims: row.get(3)?,
            errors: row.get(4)?,
            crashes: row.get(5)?,
            defers: row.get(6)?,
            text: row.get(7)?,
            events: events.remove(&seq).unwrap_or_default(),
        })
    });
    let drafts: BTreeMap<String, Row> =
        rows.unwrap().map(|row| row.unwrap()).map(|row| (row.id.clone(), row)).collect();
    for row in drafts.values() {
        if let Err(reason) = row.check() {
            panic!("draft {}: {reason}; {row:#?}", row.id);
        }
    }
    drop(statement);
    assert!(events.is_empty(), "a history without its draft: {events:?}");
    drafts
}

pub fn check_integrity(connection: &Connection) {
    let verdict: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let loose: i64 = connection
        .query_row(
            "SELECT (SELECT count(*) FROM drafts) - (SELECT count(*) FROM draft_texts)",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(loose, 0, "drafts without a text, or texts without a draft");
}

/// After the last runner has ended normally, no lock file may be left.
pub fn check_no_runner_left(bench: &Bench) {
    let left: i64 = bench
        .sql()
        .query_row("SELECT count(*) FROM runners WHERE ended_at IS NULL", [], |row| row.get(0))
        .unwrap();
    assert_eq!(left, 0, "runners that nobody has declared dead");
    let files: Vec<_> = std::fs::read_dir(bench.locks())
        .map(|entries| entries.map(|entry| entry.unwrap().file_name()).collect())
        .unwrap_or_default();
    let locks: Vec<_> = files
        .iter()
        .filter(|name| !["wakeup", "writer.turn", "in-use"].iter().any(|it| *it == **name))
        .collect();
    assert!(locks.is_empty(), "lock files of dead runners: {locks:?}");
}
