//! R: a bare rusqlite loop of draftq's durability with a minimal table, and nothing of a queue's
//! fences, checks, history, errors or runners. The table and the moves are those of
//! `benches/queue.rs`, so that the two comparisons can be laid side by side.

use std::path::Path;
use std::time::{Duration, Instant};

use draftq::Draft;
use rusqlite::{Connection, TransactionBehavior, params};

use crate::common::{Gate, Outcome, Peer, Seen};
use crate::drafts;

pub struct Bare;

fn open(directory: &Path) -> Outcome<Connection> {
    let connection = Connection::open(directory.join("bare.db"))?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0))?;
    connection.execute_batch(
        "PRAGMA synchronous = FULL;
         CREATE TABLE IF NOT EXISTS q (seq INTEGER PRIMARY KEY, id TEXT NOT NULL, \
                                       state TEXT NOT NULL, body TEXT NOT NULL);
         CREATE INDEX IF NOT EXISTS q_pending ON q (seq) WHERE state = 'pending';",
    )?;
    Ok(connection)
}

fn insert(connection: &Connection, draft: &Draft) -> Outcome<()> {
    connection
        .prepare_cached("INSERT INTO q (id, state, body) VALUES (?1, 'pending', ?2)")?
        .execute(params![draft.id().to_hex(), draft.raw_text()])?;
    Ok(())
}

impl Peer for Bare {
    fn name(&self) -> String {
        "R: a bare loop, WAL, FULL".to_owned()
    }

    fn submit(&self, directory: &Path, texts: &[String]) -> Outcome<Duration> {
        let connection = open(directory)?;
        let drafts = drafts(texts);
        let begun = Instant::now();
        for draft in &drafts {
            insert(&connection, draft)?;
        }
        Ok(begun.elapsed())
    }

    fn submit_many(&self, directory: &Path, texts: &[String]) -> Outcome<Option<Duration>> {
        let mut connection = open(directory)?;
        let drafts = drafts(texts);
        let begun = Instant::now();
        let transaction = connection.transaction()?;
        for draft in &drafts {
            insert(&transaction, draft)?;
        }
        transaction.commit()?;
        Ok(Some(begun.elapsed()))
    }

    fn most_at_once(&self) -> usize {
        100
    }

    fn drain(&self, directory: &Path, batch: usize, gate: &Gate, seen: &Seen) -> Outcome<Duration> {
        let mut connection = open(directory)?;
        let begun = gate.wait()?;
        loop {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let claimed: Vec<(i64, String)> = transaction
                .prepare_cached(
                    "UPDATE q SET state = 'processing' WHERE seq IN \
                         (SELECT seq FROM q WHERE state = 'pending' ORDER BY seq LIMIT ?1) \
                     RETURNING seq, body",
                )?
                .query_map([i64::try_from(batch)?], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?;
            transaction.commit()?;
            if claimed.is_empty() {
                return Ok(begun.elapsed());
            }
            for (_, text) in &claimed {
                seen.process(text)?;
            }
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for (seq, _) in &claimed {
                transaction
                    .prepare_cached("UPDATE q SET state = 'accepted' WHERE seq = ?1")?
                    .execute(params![seq])?;
            }
            transaction.commit()?;
        }
    }

    fn left(&self, directory: &Path) -> Outcome<usize> {
        let left: i64 = open(directory)?.query_row(
            "SELECT count(*) FROM q WHERE state <> 'accepted'",
            [],
            |row| row.get(0),
        )?;
        Ok(usize::try_from(left)?)
    }
}
