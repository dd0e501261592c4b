//! A draft comes in. The same id is the same draft: a second submit adds nothing, changes
//! nothing, and says where the first one is.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, ToSql};
use serde::Serialize;

use super::group::{Lead, Role};
use super::{DraftStore, state_of, tags_json};
use crate::clock::unix_ms;
use crate::database::Fault;
use crate::draft::{Draft, DraftId};
use crate::error::LibrarianError;
use crate::state::DraftState;

/// What became of a submitted draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submission {
    /// The draft's id.
    pub id: DraftId,
    /// The state it is in: pending if it is new.
    pub state: DraftState,
    /// Whether it is new. If not, nothing was changed.
    pub created: bool,
}

impl Serialize for Submission {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let mut fields = serializer.serialize_struct("Submission", 3)?;
        fields.serialize_field("id", &self.id.to_hex())?;
        fields.serialize_field("state", &self.state)?;
        fields.serialize_field("created", &self.created)?;
        fields.end()
    }
}

impl DraftStore {
    /// Stage one draft. When this returns, the draft survives power loss.
    ///
    /// Threads that submit at the same time share a commit, and with it the wait for the disk:
    /// one of them writes for all that have come by then (the group commit of databases).
    ///
    /// # Errors
    ///
    /// [`LibrarianError::DraftRejected`] if the text is blank or too long or the metadata is out
    /// of bounds; [`LibrarianError::Busy`] and [`LibrarianError::Database`] from the database.
    pub fn submit(&self, draft: &Draft) -> Result<Submission, LibrarianError> {
        draft.check(self.max_text_bytes())?;
        match self.inner.group.join(draft) {
            Role::Served(submission) => Ok(submission),
            Role::Leader => {
                let lead = Lead::new(&self.inner.group);
                let now = self.now_ms();
                let mut followers = Vec::new();
                let submissions = self.database().write("submit a draft", |transaction| {
                    let mut submissions = insert(transaction, &[draft], now)?;
                    // Who came while this waited for the write lock, or wrote, goes along.
                    loop {
                        let come = self.inner.group.take_waiting(MAX_GROUP - submissions.len());
                        if come.is_empty() {
                            return Ok(submissions);
                        }
                        let drafts: Vec<&Draft> = come.iter().map(|(_, draft)| draft).collect();
                        submissions.extend(insert(transaction, &drafts, now)?);
                        followers.extend(come);
                    }
                });
                let tickets = followers.into_iter().map(|(ticket, _)| ticket);
                match submissions {
                    Ok(mut submissions) => {
                        if submissions.iter().any(|submission| submission.created) {
                            self.ring();
                        }
                        // `insert` answers for each draft, the leader's first.
                        let own = submissions.remove(0);
                        lead.serve(tickets.zip(submissions.into_iter().map(Some)));
                        Ok(own)
                    }
                    Err(error) => {
                        lead.serve(tickets.map(|ticket| (ticket, None)));
                        Err(error)
                    }
                }
            }
        }
    }

    /// Stage many drafts in one transaction: all of them or, on an error, none.
    ///
    /// # Errors
    ///
    /// As for [`submit`](Self::submit), for the first draft that is not taken.
    pub fn submit_many<'a>(
        &self,
        drafts: impl IntoIterator<Item = &'a Draft>,
    ) -> Result<Vec<Submission>, LibrarianError> {
        let drafts: Vec<&Draft> = drafts.into_iter().collect();
        for draft in &drafts {
            draft.check(self.max_text_bytes())?;
        }
        if drafts.is_empty() {
            return Ok(Vec::new());
        }
        let now = self.now_ms();
        let submissions = self
            .database()
            .write("submit drafts", |transaction| insert(transaction, &drafts, now))?;
        if submissions.iter().any(|submission| submission.created) {
            self.ring();
        }
        Ok(submissions)
    }
}

/// How many rows one INSERT adds: for each statement SQLite notes down the pages that it may have
/// to undo, and that is dearer than a row.
const CHUNKS: [usize; 3] = [64, 8, 1];

/// Most drafts that share a commit.
const MAX_GROUP: usize = 256;

/// Most bytes of text that one INSERT adds, if it is more than one row.
const MAX_BOUND_BYTES: usize = 1024 * 1024;

fn insert(connection: &Connection, drafts: &[&Draft], now: i64) -> Result<Vec<Submission>, Fault> {
    let mut created = HashSet::new();
    let mut rest = drafts;
    for size in CHUNKS {
        while let Some((chunk, others)) = rest.split_at_checked(size) {
            insert_chunk(connection, chunk, now, &mut created)?;
            rest = others;
        }
    }
    drafts
        .iter()
        .map(|draft| {
            let id = draft.id();
            // Removed, so that the same draft given twice is new once.
            if created.remove(&id) {
                return Ok(Submission { id, state: DraftState::Pending, created: true });
            }
            let state = state_of(connection, id)?.ok_or(LibrarianError::UnknownDraft { id })?;
            Ok(Submission { id, state, created: false })
        })
        .collect()
}

/// The schema's own trigger passes over an id that is there.
fn insert_chunk(
    connection: &Connection,
    chunk: &[&Draft],
    now: i64,
    created: &mut HashSet<DraftId>,
) -> Result<(), Fault> {
    let rows = vec!["(?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?)"; chunk.len()].join(", ");
    let mut statement = connection.prepare_cached(&format!(
        "INSERT INTO drafts (id, updated_at, revision, submitted_at, text_bytes, source_surface, \
             source_agent, source_project, operator, provenance_uri, context_tags) \
         VALUES {rows} RETURNING seq, id"
    ))?;
    let mut parameters = 1..;
    for draft in chunk {
        let metadata = draft.metadata();
        let values: [&dyn ToSql; 10] = [
            &draft.id(),
            &now,
            &unix_ms(metadata.submitted_at),
            // A text is at most some MiB.
            &i64::try_from(draft.raw_text().len()).unwrap_or(i64::MAX),
            &metadata.source_surface.as_str(),
            &metadata.source_agent,
            &metadata.source_project,
            &metadata.operator,
            &metadata.provenance_uri,
            &tags_json(&metadata.context_tags)?,
        ];
        for (value, parameter) in values.into_iter().zip(parameters.by_ref()) {
            statement.raw_bind_parameter(parameter, value)?;
        }
    }
    let mut seqs: HashMap<DraftId, i64> = HashMap::with_capacity(chunk.len());
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        seqs.insert(row.get(1)?, row.get(0)?);
    }
    created.extend(seqs.keys());
    let texts: Vec<(i64, &str)> = chunk
        .iter()
        .filter_map(|draft| Some((seqs.remove(&draft.id())?, draft.raw_text())))
        .collect();
    insert_texts(connection, &texts)
}

fn insert_texts(connection: &Connection, texts: &[(i64, &str)]) -> Result<(), Fault> {
    let mut rest = texts;
    for size in CHUNKS {
        while let Some((chunk, others)) = rest.split_at_checked(size) {
            // SQLite takes a copy of what is bound: of long texts, one at a time.
            let bytes: usize = chunk.iter().map(|(_, text)| text.len()).sum();
            if size > 1 && bytes > MAX_BOUND_BYTES {
                break;
            }
            let rows = vec!["(?, ?)"; size].join(", ");
            let mut statement = connection.prepare_cached(&format!(
                "INSERT INTO draft_texts (seq, raw_text) VALUES {rows}"
            ))?;
            let mut parameters = 1..;
            for (seq, text) in chunk {
                let values: [&dyn ToSql; 2] = [seq, text];
                for (value, parameter) in values.into_iter().zip(parameters.by_ref()) {
                    statement.raw_bind_parameter(parameter, value)?;
                }
            }
            statement.raw_execute()?;
            rest = others;
        }
    }
    Ok(())
}
