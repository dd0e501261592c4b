//! Many drafts in batches: bounded memory, and a write lock that is never held for long.

use std::time::Duration;

use super::DraftStore;
use super::intake::Submission;
use crate::draft::Draft;
use crate::error::LibrarianError;

/// How long a batch is to hold the write lock; the promise is 100 ms.
const AIM: Duration = Duration::from_millis(40);

/// The size of the first batch, before it is known how fast the disk is.
const FIRST: Size = Size { drafts: 64, bytes: 256 * 1024 };
/// Below this a batch takes as long as the disk takes to sync, whatever is in it.
const SMALLEST: Size = Size { drafts: 16, bytes: 64 * 1024 };
/// Batches of this size are about as fast as larger ones; it bounds the memory.
const LARGEST: Size = Size { drafts: 4096, bytes: 4 * 1024 * 1024 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    drafts: usize,
    bytes: usize,
}

impl Size {
    /// The largest batch that is allowed after one of this size held the lock for so long: at
    /// most twice as large.
    fn next(self, held: Duration) -> Self {
        let scale = |size: usize, smallest: usize, largest| {
            let scaled = (size as u128 * AIM.as_micros()) / held.as_micros().max(1);
            let most = size.saturating_mul(2).clamp(smallest, largest);
            usize::try_from(scaled).unwrap_or(most).clamp(smallest, most)
        };
        Self {
            drafts: scale(self.drafts, SMALLEST.drafts, LARGEST.drafts),
            bytes: scale(self.bytes, SMALLEST.bytes, LARGEST.bytes),
        }
    }
}

/// Submits drafts in batches, each one transaction.
///
/// The size of a batch follows from how long the last one held the write lock, so that other
/// writers wait 100 ms at most (unless the disk stalls, or a single draft takes longer). Drafts
/// that were not committed yet are lost when this is dropped; call [`finish`](Self::finish).
#[derive(Debug)]
#[must_use = "drafts that were not committed are lost when this is dropped"]
pub struct BatchedSubmit<'s> {
    store: &'s DraftStore,
    drafts: Vec<Draft>,
    bytes: usize,
    size: Size,
}

impl DraftStore {
    /// Submit many drafts in batches.
    pub fn batched_submit(&self) -> BatchedSubmit<'_> {
        BatchedSubmit { store: self, drafts: Vec::new(), bytes: 0, size: FIRST }
    }
}

impl BatchedSubmit<'_> {
    /// Add a draft. If the batch has no room for it, or is full with it, the batch is committed:
    /// the answers for its drafts, in their order, are returned once they survive power loss.
    /// Otherwise nothing is returned.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::DraftRejected`] for this draft alone: it is not added. Other errors as
    /// for [`DraftStore::submit_many`]: nothing of the batch is stored, and its drafts are
    /// dropped; batches that were answered for are stored.
    pub fn push(&mut self, draft: Draft) -> Result<Vec<Submission>, LibrarianError> {
        draft.check(self.store.max_text_bytes())?;
        let bytes = draft.raw_text().len();
        let mut submissions = Vec::new();
        if !self.drafts.is_empty() && self.bytes + bytes > self.size.bytes {
            submissions = self.commit_full()?;
        }
        self.bytes += bytes;
        self.drafts.push(draft);
        if self.drafts.len() >= self.size.drafts || self.bytes >= self.size.bytes {
            submissions.extend(self.commit_full()?);
        }
        Ok(submissions)
    }

    fn commit_full(&mut self) -> Result<Vec<Submission>, LibrarianError> {
        let size = Size { drafts: self.drafts.len(), bytes: self.bytes };
        let (submissions, held) = self.commit()?;
        self.size = size.next(held);
        Ok(submissions)
    }

    /// Commit what is left. More drafts may follow.
    ///
    /// # Errors
    ///
    /// As for [`push`](Self::push).
    pub fn finish(&mut self) -> Result<Vec<Submission>, LibrarianError> {
        Ok(self.commit()?.0)
    }

    fn commit(&mut self) -> Result<(Vec<Submission>, Duration), LibrarianError> {
        let drafts = std::mem::take(&mut self.drafts);
        self.bytes = 0;
        self.store.submit_timed(&drafts.iter().collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_time_that_the_lock_was_held() {
        let ms = Duration::from_millis;
        assert_eq!(FIRST.next(AIM), FIRST);
        let twice = Size { drafts: 2 * FIRST.drafts, bytes: 2 * FIRST.bytes };
        assert_eq!((FIRST.next(ms(20)), FIRST.next(ms(0))), (twice, twice));
        let half = Size { drafts: FIRST.drafts / 2, bytes: FIRST.bytes / 2 };
        assert_eq!(FIRST.next(ms(80)), half);
        assert_eq!(FIRST.next(ms(3_600_000)), SMALLEST);
        assert_eq!(SMALLEST.next(ms(3_600_000)), SMALLEST);
        assert_eq!(LARGEST.next(ms(1)), LARGEST);
        // It recovers from the smallest.
        let grown = (0..30).fold(SMALLEST, |size, _| size.next(ms(0)));
        assert_eq!(grown, LARGEST);
        // Where each draft takes a millisecond, the aim is reached and kept.
        let steady = (0..10).fold(FIRST, |size, _| {
            let held = ms(u64::try_from(size.drafts).unwrap());
            Size { bytes: LARGEST.bytes, ..size }.next(held)
        });
        assert_eq!(steady.drafts, 40);
        // Many small drafts do not earn room for as many large ones.
        let small = Size { drafts: LARGEST.drafts, bytes: 100 * 1024 };
        assert_eq!(small.next(ms(1)).bytes, 200 * 1024);
    }
}
