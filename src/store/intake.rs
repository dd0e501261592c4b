//! A draft comes in. The same id is the same draft: a second submit adds nothing, changes
//! nothing, and says where the first one is.

use rusqlite::{Connection, named_params};
use serde::Serialize;

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
    /// # Errors
    ///
    /// [`LibrarianError::DraftRejected`] if the text is blank or too long or the metadata is out
    /// of bounds; [`LibrarianError::Busy`] and [`LibrarianError::Database`] from the database.
    pub fn submit(&self, draft: &Draft) -> Result<Submission, LibrarianError> {
        draft.check(self.max_text_bytes())?;
        let now = self.now_ms();
        let submission = self
            .database()
            .write("submit a draft", |transaction| insert(transaction, draft, now))?;
        if submission.created {
            self.ring();
        }
        Ok(submission)
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
        let submissions: Vec<Submission> =
            self.database().write("submit drafts", |transaction| {
                drafts.iter().map(|draft| insert(transaction, draft, now)).collect()
            })?;
        if submissions.iter().any(|submission| submission.created) {
            self.ring();
        }
        Ok(submissions)
    }
}

fn insert(connection: &Connection, draft: &Draft, now: i64) -> Result<Submission, Fault> {
    let metadata = draft.metadata();
    let inserted = connection
        .prepare_cached(
            "INSERT INTO drafts (id, updated_at, revision, submitted_at, text_bytes, \
                 source_surface, source_agent, source_project, operator, provenance_uri, \
                 context_tags) \
             VALUES (:id, :now, 1, :submitted_at, :text_bytes, :surface, :agent, :project, \
                 :operator, :provenance, :tags)",
        )?
        .execute(named_params! {
            ":id": draft.id(),
            ":now": now,
            ":submitted_at": unix_ms(metadata.submitted_at),
            // A text is at most some MiB.
            ":text_bytes": i64::try_from(draft.raw_text().len()).unwrap_or(i64::MAX),
            ":surface": metadata.source_surface.as_str(),
            ":agent": metadata.source_agent,
            ":project": metadata.source_project,
            ":operator": metadata.operator,
            ":provenance": metadata.provenance_uri,
            ":tags": tags_json(&metadata.context_tags)?,
        })?;
    if inserted == 0 {
        // The schema's own trigger passes over an id that is there.
        let state = state_of(connection, draft.id())?
            .ok_or(LibrarianError::UnknownDraft { id: draft.id() })?;
        return Ok(Submission { id: draft.id(), state, created: false });
    }
    connection
        .prepare_cached("INSERT INTO draft_texts (seq, raw_text) VALUES (?1, ?2)")?
        .execute((connection.last_insert_rowid(), draft.raw_text()))?;
    Ok(Submission { id: draft.id(), state: DraftState::Pending, created: true })
}
