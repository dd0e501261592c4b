//! Submits drafts. A draft with the same id is the same draft: a second submit adds nothing,
//! changes nothing, and returns the state of the first.

use std::io;
use std::time::{Duration, Instant};

use super::DraftStore;
use super::group::{Lead, Role};
use super::insert::insert;
use super::submission::Submission;
use crate::draft::Draft;
use crate::error::LibrarianError;

/// The largest number of drafts that share a commit.
const MAX_GROUP: usize = 256;

/// How many bytes of text are read at most, the last text excepted, before they are inserted.
const MAX_READ_BYTES: usize = 1024 * 1024;

impl DraftStore {
    /// Submit one draft. When this returns, the draft survives power loss.
    ///
    /// Threads that submit at the same time share a commit, and with it the wait for the disk
    /// (group commit).
    ///
    /// # Errors
    ///
    /// [`LibrarianError::DraftRejected`] if the text is blank or too long or the metadata is out
    /// of bounds; [`LibrarianError::Busy`] and [`LibrarianError::Database`] from the database.
    pub fn submit(&self, draft: &Draft) -> Result<Submission, LibrarianError> {
        draft.check(self.max_text_bytes())?;
        match self.inner.group.join(draft) {
            Role::Served(submission) => Ok(submission),
            Role::Leader { arrived } => {
                let lead = Lead::new(&self.inner.group);
                let followers = self.inner.group.take_waiting(MAX_GROUP - 1);
                self.submit_together(draft, followers, lead, arrived)
            }
        }
    }

    /// Notify waiting runners if a draft is new.
    fn notify_of(&self, submissions: &[Submission]) {
        self.notify(submissions.iter().filter(|submission| submission.created).count());
    }

    /// Submit this draft and those of waiting threads, and pass the results to the threads.
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
            // Take drafts that arrived during the wait for the write lock, and during the inserts.
            loop {
                let late = self.inner.group.take_waiting(MAX_GROUP - submissions.len());
                if late.is_empty() {
                    return Ok(submissions);
                }
                let drafts: Vec<&Draft> = late.iter().map(|(_, draft)| draft).collect();
                submissions.extend(insert(transaction, &drafts, now)?);
                followers.extend(late);
            }
        });
        let mut submissions = submissions?;
        self.notify_of(&submissions);
        // `insert` returns a result for each draft, the leader's first.
        let own = submissions.remove(0);
        lead.serve(followers.into_iter().map(|(ticket, _)| ticket).zip(submissions));
        Ok(own)
    }

    /// Submit many drafts in one transaction: all of them or, on an error, none.
    ///
    /// # Errors
    ///
    /// As for [`submit`](Self::submit), for the first draft that is rejected.
    pub fn submit_many<'a>(
        &self,
        drafts: impl IntoIterator<Item = &'a Draft>,
    ) -> Result<Vec<Submission>, LibrarianError> {
        let drafts: Vec<&Draft> = drafts.into_iter().collect();
        Ok(self.submit_timed(&drafts)?.0)
    }

    /// As [`submit_many`](Self::submit_many). Also returns how long the write lock was held.
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

    /// Submit many drafts in one transaction while they are being read: all of them or, if the
    /// iterator or the store fails, none.
    ///
    /// The transaction holds the write lock from before the first draft is read until after the
    /// last, and no other process can write meanwhile. Texts are not kept in memory; the results
    /// are, at ten bytes a draft.
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
                while chunk.len() < MAX_GROUP && bytes < MAX_READ_BYTES {
                    match drafts.next() {
                        None => break,
                        Some(Ok(draft)) => {
                            draft.check(self.max_text_bytes())?;
                            bytes += draft.raw_text().len();
                            chunk.push(draft);
                        }
                        Some(Err(error)) => {
                            stopped_by = Some(error);
                            // Any error rolls back the transaction; this one is not returned.
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

    /// A leader notifies waiting runners of the drafts of its followers, and passes on the results.
    #[test]
    fn a_leader_notifies_of_all_drafts_that_it_took() {
        let directory = tempfile::tempdir().unwrap();
        let store = DraftStore::open(directory.path().join("drafts.db")).unwrap();
        drop(Waiter::new(&store).unwrap());
        let waiting = directory.path().join("drafts.db-runners/0123456789abcdef.waiting");
        // It was stored already, so that only the follower's is new.
        let own = draft("the leader's");
        store.submit(&own).unwrap();
        let file = std::fs::File::create(&waiting).unwrap();
        file.lock().unwrap();
        let group = &store.inner.group;
        let Role::Leader { arrived } = group.join(&own) else { panic!("no other thread submits") };
        std::thread::scope(|scope| {
            let follower = scope.spawn(|| store.submit(&draft("a follower's")).unwrap());
            let taken = loop {
                let taken = group.take_waiting(1);
                if !taken.is_empty() {
                    break taken;
                }
                std::thread::yield_now();
            };
            let led = store.submit_together(&own, taken, Lead::new(group), arrived).unwrap();
            assert_eq!((led.id, led.created), (own.id(), false));
            let followed = follower.join().unwrap();
            assert_eq!((followed.id, followed.created), (draft("a follower's").id(), true));
        });
        assert!(!waiting.exists(), "a waiting runner is woken");
    }
}
