//! The answer to a submit.

use serde::Serialize;

use crate::id::DraftId;
use crate::state::DraftState;

/// The result of a submit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Submission {
    /// The draft's id.
    pub id: DraftId,
    /// The state it is in: pending if it is new.
    pub state: DraftState,
    /// Whether the draft is new. If not, nothing was changed.
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
