//! Single moves by id, under the file version's name.

use rusqlite::named_params;

use super::{DraftStore, DraftTransition};
use crate::error::LibrarianError;
use crate::id::DraftId;
use crate::state::DraftState;

impl DraftStore {
    /// Move a draft along one of a runner's edges, as the file version does. A claim made so has
    /// no owner: age alone recovers it. A runner of one's own should use
    /// [`claim_next`](Self::claim_next) and [`finish`](Self::finish).
    ///
    /// # Errors
    ///
    /// [`LibrarianError::InvalidDraftTransition`] for an edge that no runner has,
    /// [`LibrarianError::DraftNotFound`] if the draft is not in `from`.
    pub fn transition(
        &self,
        id: DraftId,
        from: DraftState,
        to: DraftState,
    ) -> Result<DraftTransition, LibrarianError> {
        if !from.runner_may_move_to(to) {
            return Err(LibrarianError::InvalidDraftTransition { from, to });
        }
        let now = self.now_ms();
        self.write("move a draft", |transaction| {
            let moved = if to == DraftState::Processing {
                transaction
                    .prepare_cached(
                        "UPDATE drafts SET state = 'processing', claimed_at = :now, \
                             claim_booted_at = :booted_at, due_at = 0, \
                             claim_token = randomblob(16), claims = min(claims, 999999999) + 1, \
                             decision = NULL, note = NULL, output = NULL, usage = NULL, \
                             updated_at = :now, revision = (revision + 1) & 4294967295 \
                         WHERE id = :id AND state = 'pending'",
                    )?
                    .execute(named_params! {
                        ":id": id.to_hex(),
                        ":now": now,
                        ":booted_at": self.clock().booted_at_ms(),
                    })?
            } else {
                transaction
                    .prepare_cached(
                        "UPDATE drafts SET state = :to, claimed_at = NULL, \
                             claim_booted_at = NULL, claim_token = NULL, owner = NULL, \
                             decision = :decision, suspect = 0, defers_in_a_row = 0, \
                             updated_at = :now, revision = (revision + 1) & 4294967295 \
                         WHERE id = :id AND state = 'processing'",
                    )?
                    .execute(named_params! {
                        ":id": id.to_hex(),
                        ":to": to.as_str(),
                        ":decision": to.is_terminal().then_some(to.as_str()),
                        ":now": now,
                    })?
            };
            match moved {
                0 => Err(LibrarianError::DraftNotFound { state: from, id }.into()),
                _ => Ok(DraftTransition { id, from, to }),
            }
        })
    }
}
