//! Inserts drafts.

use std::collections::HashMap;
use std::ops::RangeFrom;

use rusqlite::{Connection, OptionalExtension as _, Statement, ToSql};

use super::columns::get;
use super::submission::Submission;
use crate::clock::unix_ms;
use crate::database::TransactionError;
use crate::draft::Draft;
use crate::error::LibrarianError;
use crate::id::DraftId;
use crate::state::DraftState;

/// How many drafts one INSERT adds. For each statement SQLite saves the pages that it may have to
/// undo, which costs more than a row.
const CHUNKS: [usize; 3] = [64, 8, 1];

/// Insert the drafts that are new, in their order, and return a result for each draft. The
/// statements do not use the view `submissions`, because a view's trigger opens every table again
/// for each row.
pub(super) fn insert(
    connection: &Connection,
    drafts: &[&Draft],
    now: i64,
) -> Result<Vec<Submission>, TransactionError> {
    let mut states = HashMap::with_capacity(drafts.len());
    let mut new = Vec::with_capacity(drafts.len());
    let mut submissions = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let id = draft.id();
        // A draft that is given twice is new once.
        let there = match states.get(&id) {
            Some(state) => Some(*state),
            None => known_state_of(connection, id)?,
        };
        if there.is_none() {
            new.push(*draft);
        }
        let state = there.unwrap_or(DraftState::Pending);
        states.insert(id, state);
        submissions.push(Submission { id, state, created: there.is_none() });
    }
    let new: Vec<(i64, &Draft)> = (last_seq(connection)? + 1..).zip(new).collect();
    let mut rest = new.as_slice();
    for size in CHUNKS {
        while let Some((chunk, others)) = rest.split_at_checked(size) {
            insert_chunk(connection, chunk, now)?;
            rest = others;
        }
    }
    Ok(submissions)
}

fn insert_chunk(
    connection: &Connection,
    chunk: &[(i64, &Draft)],
    now: i64,
) -> Result<(), TransactionError> {
    let rows = vec!["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)"; chunk.len()].join(", ");
    let mut statement = connection.prepare_cached(&format!(
        "INSERT INTO drafts (seq, text_bytes, id, submitted_at, source_surface, source_agent, \
             source_project, operator, provenance_uri, context_tags, updated_at, revision) \
         VALUES {rows}"
    ))?;
    let mut parameters = 1..;
    for (seq, draft) in chunk {
        // A text has some MiB at most.
        let bytes = i64::try_from(draft.raw_text().len()).unwrap_or(i64::MAX);
        bind(&mut statement, &mut parameters, &[seq, &bytes])?;
        bind_draft(&mut statement, &mut parameters, draft, now)?;
    }
    statement.raw_execute()?;
    insert_texts(connection, chunk)
}

/// Insert one new draft that replaces another. The caller has checked that its id is new.
pub(super) fn insert_superseding(
    connection: &Connection,
    draft: &Draft,
    superseded: DraftId,
    now: i64,
) -> Result<(), TransactionError> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO submissions (supersedes, raw_text, id, submitted_at, source_surface, \
             source_agent, source_project, operator, provenance_uri, context_tags, updated_at, \
             revision) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
    )?;
    let mut parameters = 1..;
    bind(&mut statement, &mut parameters, &[&superseded.to_hex(), &draft.raw_text()])?;
    bind_draft(&mut statement, &mut parameters, draft, now)?;
    statement.raw_execute()?;
    Ok(())
}

/// Bind a draft's columns, from `id` to `updated_at`.
fn bind_draft(
    statement: &mut Statement<'_>,
    parameters: &mut RangeFrom<usize>,
    draft: &Draft,
    now: i64,
) -> Result<(), TransactionError> {
    let metadata = draft.metadata();
    bind(
        statement,
        parameters,
        &[
            &draft.id().to_hex(),
            &unix_ms(metadata.submitted_at),
            &metadata.source_surface.as_str(),
            &metadata.source_agent,
            &metadata.source_project,
            &metadata.operator,
            &metadata.provenance_uri,
            &tags_json(&metadata.context_tags)?,
            &now,
        ],
    )
}

/// Bind the next parameters.
fn bind(
    statement: &mut Statement<'_>,
    parameters: &mut RangeFrom<usize>,
    values: &[&dyn ToSql],
) -> Result<(), TransactionError> {
    for (value, parameter) in values.iter().zip(parameters) {
        statement.raw_bind_parameter(parameter, value)?;
    }
    Ok(())
}

/// One at a time: of several rows SQLite would first make a table of its own, because triggers may
/// read what they are inserted into.
fn insert_texts(connection: &Connection, drafts: &[(i64, &Draft)]) -> Result<(), TransactionError> {
    let mut statement =
        connection.prepare_cached("INSERT INTO draft_texts (seq, raw_text) VALUES (?, ?)")?;
    for (seq, draft) in drafts {
        bind(&mut statement, &mut (1..), &[seq, &draft.raw_text()])?;
        statement.raw_execute()?;
    }
    Ok(())
}

/// The state of the draft with this id; of a pruned one, its final state.
pub(super) fn known_state_of(
    connection: &Connection,
    id: DraftId,
) -> Result<Option<DraftState>, TransactionError> {
    let mut statement = connection.prepare_cached(
        "SELECT state FROM drafts WHERE id = ?1 \
         UNION ALL SELECT state FROM pruned_drafts WHERE id = ?1",
    )?;
    Ok(statement.query_row([id.to_hex()], |row| get(row, "state")).optional()?)
}

/// The last seq that a draft was given; 0 if none was. The event of a deleted draft stays.
fn last_seq(connection: &Connection) -> Result<i64, TransactionError> {
    let mut statement =
        connection.prepare_cached("SELECT draft FROM history ORDER BY draft DESC LIMIT 1")?;
    Ok(statement.query_row([], |row| row.get(0)).optional()?.unwrap_or(0))
}

fn tags_json(tags: &[String]) -> Result<String, LibrarianError> {
    Ok(if tags.is_empty() { "[]".to_owned() } else { serde_json::to_string(tags)? })
}
