//! The lifecycle: six states, five decisions, and the moves that a runner may make.
//!
//! The database enforces the same moves by triggers (`migrations/0002_drafts.sql`); a test compares
//! all 36 pairs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The state of a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DraftState {
    /// Waiting for a runner.
    Pending,
    /// Claimed by a runner, which may have died since.
    Processing,
    /// The processor accepted it.
    Accepted,
    /// The processor skipped it on purpose.
    Skipped,
    /// Kept for review: the processor failed it, or its errors reached the budget.
    Failed,
    /// Unsafe, conflicting or unresolved: for review only.
    Quarantined,
}

impl DraftState {
    /// Every state, in the order used everywhere.
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::Processing,
        Self::Accepted,
        Self::Skipped,
        Self::Failed,
        Self::Quarantined,
    ];

    /// The state's name, as it is stored and printed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Accepted => "accepted",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Quarantined => "quarantined",
        }
    }

    /// As [`as_str`](Self::as_str), under the file version's name: there, each state is a
    /// directory.
    #[must_use]
    pub fn dir_name(self) -> &'static str {
        self.as_str()
    }

    /// Whether no runner moves a draft out of this state.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Pending | Self::Processing)
    }

    /// Whether a runner may move a draft from this state to `to`. (An operator's requeue of a
    /// finished draft is not a runner's move.)
    #[must_use]
    pub fn runner_may_move_to(self, to: Self) -> bool {
        match self {
            Self::Pending => to == Self::Processing,
            Self::Processing => to != Self::Processing,
            Self::Accepted | Self::Skipped | Self::Failed | Self::Quarantined => false,
        }
    }
}

impl fmt::Display for DraftState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.dir_name())
    }
}

/// The text names no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected one of pending, processing, accepted, skipped, failed, quarantined")]
pub struct NotADraftState;

impl FromStr for DraftState {
    type Err = NotADraftState;

    fn from_str(text: &str) -> Result<Self, NotADraftState> {
        Self::ALL.into_iter().find(|state| state.dir_name() == text).ok_or(NotADraftState)
    }
}

/// A processor's decision about a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DraftProcessingDecision {
    /// Durably taken by the processor.
    Accepted,
    /// Skipped on purpose.
    Skipped,
    /// To be kept for review.
    Failed,
    /// Unsafe, conflicting or unresolved.
    Quarantined,
    /// The processor is not ready; the draft returns to pending.
    Deferred,
}

impl DraftProcessingDecision {
    /// Every decision, in the order of their target states, deferral last.
    pub const ALL: [Self; 5] =
        [Self::Accepted, Self::Skipped, Self::Failed, Self::Quarantined, Self::Deferred];

    /// The state that a draft moves to.
    #[must_use]
    pub fn target_state(self) -> DraftState {
        match self {
            Self::Accepted => DraftState::Accepted,
            Self::Skipped => DraftState::Skipped,
            Self::Failed => DraftState::Failed,
            Self::Quarantined => DraftState::Quarantined,
            Self::Deferred => DraftState::Pending,
        }
    }

    /// The name, as it is stored and printed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Quarantined => "quarantined",
            Self::Deferred => "deferred",
        }
    }

    /// The decision of this name.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|decision| decision.as_str() == value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for state in DraftState::ALL {
            assert_eq!(state.dir_name().parse(), Ok(state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.dir_name());
        }
        for decision in DraftProcessingDecision::ALL {
            assert_eq!(DraftProcessingDecision::parse(decision.as_str()), Some(decision));
            assert_eq!(serde_json::to_value(decision).unwrap(), decision.as_str());
        }
    }

    #[test]
    fn a_runner_has_six_moves() {
        let pairs = DraftState::ALL
            .into_iter()
            .flat_map(|from| DraftState::ALL.into_iter().map(move |to| (from, to)));
        let legal: Vec<_> = pairs.filter(|(from, to)| from.runner_may_move_to(*to)).collect();
        assert_eq!(legal.len(), 6);
        assert!(legal.iter().all(|(from, _)| !from.is_terminal()));
        for decision in DraftProcessingDecision::ALL {
            assert!(DraftState::Processing.runner_may_move_to(decision.target_state()));
        }
    }
}
