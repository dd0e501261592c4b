//! The claims that a runner still holds.

use std::collections::HashSet;

use super::DraftStore;
use super::claimed::{Claim, ClaimKey};
use crate::error::LibrarianError;

/// What identifies a claim: the draft and the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ClaimId {
    seq: i64,
    token: [u8; 16],
    runner: i64,
}

impl ClaimId {
    /// The runner that made the claim.
    pub(crate) fn runner(self) -> i64 {
        self.runner
    }
}

impl Claim {
    /// What identifies this claim.
    pub(crate) fn claim_id(&self) -> ClaimId {
        let ClaimKey { seq, token, runner, .. } = self.key;
        ClaimId { seq, token, runner }
    }
}

impl DraftStore {
    /// The claims that this runner holds now. A claim that is not among them was lost: the draft was
    /// released by an operator, recovered, or moved by hand.
    pub(crate) fn held_claims(&self, runner: i64) -> Result<HashSet<ClaimId>, LibrarianError> {
        self.database().statement("read the claims of a runner", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT seq, claim_token FROM drafts INDEXED BY drafts_in_flight \
                 WHERE state = 'processing' AND owner = ?1",
            )?;
            let claims = statement.query_map([runner], |row| {
                Ok(ClaimId { seq: row.get("seq")?, token: row.get("claim_token")?, runner })
            })?;
            Ok(claims.collect::<Result<_, _>>()?)
        })
    }
}
