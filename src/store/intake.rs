//! A draft comes in. The same id is the same draft: a second submit adds nothing, changes
//! nothing, and says where the first one is.

use std::collections::HashMap;
use std::io;
use std::ops::RangeFrom;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension as _, Statement, ToSql};
use serde::Serialize;

use super::group::{Lead, Role};
use super::{DraftStore, state_of, tags_json};
use crate::clock::unix_ms;
use crate::database::TransactionError;
use crate::draft::Draft;
use crate::error::LibrarianError;
use crate::id::DraftId;
use crate::state::DraftState;

/// What became of a submitted draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
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
        match self.inner.group.join(draft, self.database().busy_timeout()) {
            Role::Served(submission) => Ok(submission),
            Role::Busy { waited } => {
                Err(LibrarianError::Busy { path: self.path().to_owned(), waited })
            }
            Role::Leader { arrived } => {
                let lead = Lead::new(&self.inner.group);
                let come = self.inner.group.take_waiting(MAX_GROUP - 1);
                self.submit_together(draft, come, lead, arrived)
            }
        }
    }

    /// Tell waiting runners, if there is something new.
    fn notify_of(&self, submissions: &[Submission]) {
        if submissions.iter().any(|submission| submission.created) {
            self.notify();
        }
    }

    /// Submit this draft and those of the threads that wait, and tell them.
    fn submit_together(
        &self,
        draft: &Draft,
        mut followers: Vec<(u64, Draft)>,
        lead: Lead<'_>,
        arrived: Instant,
    ) -> Result<Submission, LibrarianError> {
        let now = self.now_ms();
        let submissions = self.write_since(arrived, "submit a draft", |transaction| {
            let drafts: Vec<&Draft> =
                [draft].into_iter().chain(followers.iter().map(|(_, draft)| draft)).collect();
            let mut submissions = insert(transaction, &drafts, now)?;
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
                self.notify_of(&submissions);
                // `insert` answers for each draft, the leader's first.
                let own = submissions.remove(0);
                lead.serve(tickets.zip(submissions.into_iter().map(Some)));
                Ok(own)
            }
            Err(error) => {
                if matches!(error, LibrarianError::Busy { .. }) {
                    lead.fail_busy();
                }
                lead.serve(tickets.map(|ticket| (ticket, None)));
                Err(error)
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
        Ok(self.submit_timed(&drafts)?.0)
    }

    /// As [`submit_many`](Self::submit_many); also for how long the write lock was held.
    pub(super) fn submit_timed(
        &self,
        drafts: &[&Draft],
    ) -> Result<(Vec<Submission>, Duration), LibrarianError> {
        for draft in drafts {
            draft.check(self.max_text_bytes())?;
        }
        if drafts.is_empty() {
            return Ok((Vec::new(), Duration::ZERO));
        }
        let now = self.now_ms();
        let (submissions, locked) = self.write("submit drafts", |transaction| {
            let locked = Instant::now();
            Ok((insert(transaction, drafts, now)?, locked))
        })?;
        let held = locked.elapsed();
        self.notify_of(&submissions);
        Ok((submissions, held))
    }

    /// Stage many drafts in one transaction while they are being read: all of them or, when the
    /// iterator gives an error or the store does, none.
    ///
    /// The transaction holds the write lock from before the first draft is asked for until after
    /// the last: nobody else can write meanwhile. Texts are not kept in memory; what is kept is
    /// ten bytes a draft, for the answer.
    ///
    /// # Errors
    ///
    /// The iterator's first error, or as for [`submit`](Self::submit).
    pub fn submit_while_reading<E: From<LibrarianError>>(
        &self,
        drafts: impl IntoIterator<Item = Result<Draft, E>>,
    ) -> Result<Vec<Submission>, E> {
        let now = self.now_ms();
        let mut stopped_by = None;
        let submissions = self.write("submit drafts", |transaction| {
            let mut submissions = Vec::new();
            let mut drafts = drafts.into_iter();
            loop {
                let (mut chunk, mut bytes) = (Vec::new(), 0);
                while chunk.len() < MAX_GROUP && bytes < MAX_BOUND_BYTES {
                    match drafts.next() {
                        None => break,
                        Some(Ok(draft)) => {
                            draft.check(self.max_text_bytes())?;
                            bytes += draft.raw_text().len();
                            chunk.push(draft);
                        }
                        Some(Err(error)) => {
                            stopped_by = Some(error);
                            // Any error undoes the transaction; this one is not returned.
                            let stopped = io::Error::from(io::ErrorKind::Interrupted);
                            return Err(LibrarianError::DraftIo(stopped).into());
                        }
                    }
                }
                if chunk.is_empty() {
                    return Ok(submissions);
                }
                let chunk: Vec<&Draft> = chunk.iter().collect();
                submissions.extend(insert(transaction, &chunk, now)?);
            }
        });
        if let Some(error) = stopped_by {
            return Err(error);
        }
        let submissions = submissions?;
        self.notify_of(&submissions);
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

/// Insert those drafts that are new, in their order, and answer for each. By its own statements
/// instead of through `submissions`: a view's trigger opens every table anew for each row.
fn insert(
    connection: &Connection,
    drafts: &[&Draft],
    now: i64,
) -> Result<Vec<Submission>, TransactionError> {
    let mut states = HashMap::with_capacity(drafts.len());
    let mut new = Vec::with_capacity(drafts.len());
    let mut submissions = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let id = draft.id();
        // Given twice, it is new once.
        let there = match states.get(&id) {
            Some(state) => Some(*state),
            None => match state_of(connection, id)? {
                None => pruned_state_of(connection, id)?,
                state => state,
            },
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
        // A text is at most some MiB.
        let bytes = i64::try_from(draft.raw_text().len()).unwrap_or(i64::MAX);
        bind(&mut statement, &mut parameters, &[seq, &bytes])?;
        bind_draft(&mut statement, &mut parameters, draft, now)?;
    }
    statement.raw_execute()?;
    let texts: Vec<_> = chunk.iter().map(|(seq, draft)| (*seq, draft.raw_text())).collect();
    insert_texts(connection, &texts)
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

fn insert_texts(connection: &Connection, texts: &[(i64, &str)]) -> Result<(), TransactionError> {
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
                bind(&mut statement, &mut parameters, &[seq, text])?;
            }
            statement.raw_execute()?;
            rest = others;
        }
    }
    Ok(())
}

/// The state in which a draft was that was pruned.
fn pruned_state_of(
    connection: &Connection,
    id: DraftId,
) -> Result<Option<DraftState>, TransactionError> {
    let mut statement =
        connection.prepare_cached("SELECT state FROM pruned_drafts WHERE id = ?1")?;
    Ok(statement.query_row([id.to_hex()], |row| super::columns::get(row, "state")).optional()?)
}

/// The last seq that a draft was given; 0 if none was. The event of a deleted draft stays.
fn last_seq(connection: &Connection) -> Result<i64, TransactionError> {
    let mut statement =
        connection.prepare_cached("SELECT draft FROM history ORDER BY draft DESC LIMIT 1")?;
    Ok(statement.query_row([], |row| row.get(0)).optional()?.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::metadata::{DraftMetadata, DraftSourceSurface};
    use crate::runner::Waiter;

    fn draft(text: &str) -> Draft {
        let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
        Draft::with_metadata(text.to_owned(), metadata)
    }

    /// What a leader submits for others is told to waiting runners, and to the others.
    #[test]
    fn a_leader_tells_of_all_that_it_took_along() {
        let directory = tempfile::tempdir().unwrap();
        let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
        drop(Waiter::new(&store).unwrap());
        let wakeup = directory.path().join("drafts.db-runners/wakeup");
        // It was stored already, so that only the follower's is new.
        let own = draft("the leader's");
        store.submit(&own).unwrap();
        std::fs::File::options().write(true).open(&wakeup).unwrap().set_len(0).unwrap();
        let group = &store.inner.group;
        let Role::Leader { arrived } = group.join(&own, Duration::from_secs(5)) else {
            panic!("nobody else is there")
        };
        std::thread::scope(|scope| {
            let follower = scope.spawn(|| store.submit(&draft("a follower's")).unwrap());
            let come = loop {
                let come = group.take_waiting(1);
                if !come.is_empty() {
                    break come;
                }
                std::thread::yield_now();
            };
            let led = store.submit_together(&own, come, Lead::new(group), arrived).unwrap();
            assert_eq!((led.id, led.created), (own.id(), false));
            let followed = follower.join().unwrap();
            assert_eq!((followed.id, followed.created), (draft("a follower's").id(), true));
        });
        assert!(std::fs::metadata(&wakeup).unwrap().len() > 0, "waiting runners are told");
    }
}
