//! The types of a claim.
//!
//! A claim carries a token that no other claim ever had, and every move out of `processing` by its
//! holder is guarded by it: the fencing token of distributed locks (Kleppmann, 2016), kept where
//! the resource is. [`Claim`] owns the token and is consumed by the move, so it cannot be finished
//! twice. A holder that lost its claim gets an error and changes nothing.

use std::fmt;

use crate::draft::Draft;
use crate::hold::Hold;
use crate::id::DraftId;
use crate::state::DraftState;

/// A draft that a runner holds. Dropping it leaves the draft in `processing`; it is recovered
/// once the runner's registration has ended.
#[derive(Debug)]
#[must_use = "a claim that is dropped leaves its draft in processing"]
pub struct Claim {
    pub(super) key: ClaimKey,
    pub(super) draft: Draft,
    pub(super) claims: u64,
    pub(super) errors: u64,
}

impl Claim {
    /// The draft.
    #[must_use]
    pub fn draft(&self) -> &Draft {
        &self.draft
    }

    /// How often the draft has been claimed, including this time.
    #[must_use]
    pub fn claims(&self) -> u64 {
        self.claims
    }

    /// How many errors and crashes the draft had before.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors
    }
}

/// The values that a move of a claimed draft needs.
pub(crate) struct ClaimKey {
    pub seq: i64,
    pub id: DraftId,
    pub token: [u8; 16],
    pub runner: i64,
}

impl fmt::Debug for ClaimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClaimKey({} by runner {})", self.id, self.runner)
    }
}

/// What [`DraftStore::claim_next`](crate::DraftStore::claim_next) found.
#[derive(Debug)]
#[must_use = "a claim that is dropped leaves its draft in processing"]
#[non_exhaustive]
pub enum Claimed {
    /// A draft to process.
    Draft(Box<Claim>),
    /// A damaged draft ([`LibrarianError::DamagedDraft`](crate::LibrarianError::DamagedDraft)): its
    /// row or text was altered after it was submitted. It is not processed; the snapshot continues
    /// after it.
    Unreadable {
        /// The draft.
        id: DraftId,
        /// The state that it is in: `processing` with the error recorded, or `pending` if its row
        /// cannot be changed.
        state: DraftState,
    },
}

/// The claims of one transaction.
#[derive(Debug, Default)]
pub(crate) struct NewClaims {
    /// The drafts with their `seq`, in order.
    pub found: Vec<(i64, Claimed)>,
    /// Whether they are one suspect.
    pub found_suspect: bool,
    /// What follows these drafts.
    pub next: Next,
    /// The hold because of which nothing was claimed.
    pub hold: Option<Hold>,
}

/// What the next claim would find.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Next {
    /// Perhaps more drafts.
    #[default]
    Drafts,
    /// A suspect, which is claimed only by a runner that holds nothing else.
    Suspect,
    /// Nothing: the snapshot is used up.
    Nothing,
}
