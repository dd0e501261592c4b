//! R: a bare rusqlite loop of draftq's durability (WAL, `synchronous=FULL`) with a minimal table.
//! What SQLite on this machine gives to a queue without fences, checks, history, errors or runners.

use std::path::Path;
use std::time::{Duration, Instant};

use draftq::Draft;
use rusqlite::{Connection, TransactionBehavior, params};

use crate::Outcome;

pub fn open(path: &Path) -> Outcome<Connection> {
    let connection = Connection::open(path)?;
    connection.execute_batch("PRAGMA synchronous = FULL")?;
    Ok(connection)
}

/// A new queue.
pub fn create(path: &Path) -> Outcome<Connection> {
    let connection = open(path)?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0))?;
    connection.execute_batch(
        "CREATE TABLE q (seq INTEGER PRIMARY KEY, id TEXT NOT NULL, state TEXT NOT NULL, \
                         body TEXT NOT NULL);
         CREATE INDEX q_pending ON q (seq) WHERE state = 'pending';",
    )?;
    Ok(connection)
}

/// Submit one.
pub fn insert(connection: &Connection, draft: &Draft) -> Outcome<()> {
    connection
        .prepare_cached("INSERT INTO q (id, state, body) VALUES (?1, 'pending', ?2)")?
        .execute(params![draft.id().to_hex(), draft.raw_text()])?;
    Ok(())
}

/// Submit many in one transaction.
pub fn insert_many(connection: &mut Connection, drafts: &[Draft]) -> Outcome<()> {
    let transaction = connection.transaction()?;
    drafts.iter().try_for_each(|draft| insert(&transaction, draft))?;
    transaction.commit()?;
    Ok(())
}

/// Claim and finish this many, so many in a transaction.
pub fn drain(connection: &mut Connection, drafts: usize, batch: usize) -> Outcome<Duration> {
    let begun = Instant::now();
    let mut done = 0;
    while done < drafts {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let claimed: Vec<i64> = transaction
            .prepare_cached(
                "UPDATE q SET state = 'processing' WHERE seq IN \
                     (SELECT seq FROM q WHERE state = 'pending' ORDER BY seq LIMIT ?1) \
                 RETURNING seq, body",
            )?
            .query_map([i64::try_from(batch)?], |row| {
                std::hint::black_box(row.get::<_, String>(1)?);
                row.get(0)
            })?
            .collect::<Result<_, _>>()?;
        transaction.commit()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for seq in &claimed {
            transaction
                .prepare_cached("UPDATE q SET state = 'accepted' WHERE seq = ?1")?
                .execute([seq])?;
        }
        transaction.commit()?;
        done += claimed.len();
    }
    Ok(begun.elapsed())
}
