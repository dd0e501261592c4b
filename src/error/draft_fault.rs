//! What can be wrong with a draft.

/// Why a store rejects a draft.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DraftRejection {
    /// Nothing but white space.
    #[error("its text is empty or blank")]
    EmptyText,
    /// More text than the store accepts.
    #[error("its text has {bytes} bytes, more than the limit of {limit}")]
    TextTooLong {
        /// Length of the text in bytes of UTF-8.
        bytes: usize,
        /// The store's limit in bytes.
        limit: usize,
    },
    /// A metadata field is too long.
    #[error("its {field} has {bytes} bytes, more than the limit of {limit}")]
    FieldTooLong {
        /// The field's name.
        field: &'static str,
        /// Its length in bytes of UTF-8.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A metadata field has a NUL character in it.
    #[error("its {field} contains a NUL character")]
    NulInField {
        /// The field's name.
        field: &'static str,
    },
    /// Too many tags.
    #[error("it has {tags} tags, more than the limit of {limit}")]
    TooManyTags {
        /// The number of its tags.
        tags: usize,
        /// The limit.
        limit: usize,
    },
}

/// What is wrong with a stored draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DraftDamage {
    /// The text, the surface, the agent, the project, the operator or the provenance was changed
    /// after the draft was submitted.
    #[error("its text or its provenance was altered after it was submitted (they give another id)")]
    Altered,
    /// The text is missing.
    #[error("its text is missing")]
    NoText,
    /// A column cannot be read.
    #[error("its column {column} cannot be read")]
    Unreadable {
        /// The column's name.
        column: &'static str,
    },
    /// The row breaks a rule of the schema, so that it cannot be changed.
    #[error("its row breaks a rule of the schema")]
    Row,
}
