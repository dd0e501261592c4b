//! A draft comes in. The same id is the same draft: a second submit adds nothing, changes
//! nothing, and says where the first one is.

use std::io;
use std::time::{Duration, Instant};

use super::DraftStore;
use super::group::{Lead, Role};
use super::insert::{MAX_BOUND_BYTES, insert};
use super::submission::Submission;
use crate::draft::Draft;
use crate::error::LibrarianError;

/// Most drafts that share a commit.
const MAX_GROUP: usize = 256;

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
