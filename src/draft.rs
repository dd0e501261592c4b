//! A draft: a text, its metadata, and the id that follows from both.

use std::fmt;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::error::{DraftDamage, DraftRejection, LibrarianError};
use crate::id::DraftId;
use crate::metadata::{DraftMetadata, DraftSource, MAX_METADATA_BYTES, MAX_TAGS};

/// The largest text that a store accepts unless it is configured otherwise: 8 MiB of UTF-8.
pub const DEFAULT_MAX_TEXT_BYTES: usize = 8 * 1024 * 1024;

/// A text that an agent or a person wrote, not to be trusted until a processor has decided about
/// it.
///
/// `Debug` shows the id and the length, never the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Draft {
    id: DraftId,
    metadata: DraftMetadata,
    raw_text: String,
}

impl Draft {
    /// A draft of this text and metadata. Nothing is checked here;
    /// [`DraftStore::submit`](crate::DraftStore::submit) checks.
    #[must_use]
    pub fn with_metadata(raw_text: String, metadata: DraftMetadata) -> Self {
        let id = DraftId::of(&raw_text, &metadata);
        Self { id, metadata, raw_text }
    }

    /// A draft of this text from a [`DraftSource`]. For compatibility with mimir-librarian;
    /// [`with_metadata`](Self::with_metadata) says more about where a draft came from.
    #[must_use]
    pub fn new(raw_text: String, source: &DraftSource, submitted_at: SystemTime) -> Self {
        Self::with_metadata(raw_text, DraftMetadata::from_source(source, submitted_at))
    }

    /// A draft as it was read from a store, with the id that it was stored under.
    ///
    /// # Errors
    ///
    /// [`DraftDamage::Altered`] if the id does not follow from the text and the metadata: they
    /// were changed after they were submitted.
    pub(crate) fn stored(
        id: DraftId,
        raw_text: String,
        metadata: DraftMetadata,
    ) -> Result<Self, DraftDamage> {
        match DraftId::of(&raw_text, &metadata) == id {
            true => Ok(Self { id, metadata, raw_text }),
            false => Err(DraftDamage::Altered),
        }
    }

    /// The id, which follows from text and provenance.
    #[must_use]
    pub fn id(&self) -> DraftId {
        self.id
    }

    /// Where the draft came from.
    #[must_use]
    pub fn metadata(&self) -> &DraftMetadata {
        &self.metadata
    }

    /// When the draft was submitted, as its submitter states it.
    #[must_use]
    pub fn submitted_at(&self) -> SystemTime {
        self.metadata.submitted_at
    }

    /// The text, byte for byte as it was submitted.
    #[must_use]
    pub fn raw_text(&self) -> &str {
        &self.raw_text
    }

    /// The same text as [`raw_text`](Self::raw_text).
    #[must_use]
    pub fn prose(&self) -> &str {
        &self.raw_text
    }

    /// Whether a store with this limit accepts the draft.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::DraftRejected`] if the text is blank or longer than `max_text_bytes`
    /// bytes of UTF-8, or the metadata is out of bounds.
    pub fn check(&self, max_text_bytes: usize) -> Result<(), LibrarianError> {
        let rejected = |reason| Err(LibrarianError::DraftRejected { id: self.id, reason });
        if self.raw_text.trim().is_empty() {
            return rejected(DraftRejection::EmptyText);
        }
        if self.raw_text.len() > max_text_bytes {
            let bytes = self.raw_text.len();
            return rejected(DraftRejection::TextTooLong { bytes, limit: max_text_bytes });
        }
        let metadata = &self.metadata;
        let fields = [
            ("agent", metadata.source_agent.as_deref()),
            ("project", metadata.source_project.as_deref()),
            ("operator", metadata.operator.as_deref()),
            ("provenance", metadata.provenance_uri.as_deref()),
        ];
        let tags = metadata.context_tags.iter().map(|tag| ("tag", Some(tag.as_str())));
        for (field, value) in fields.into_iter().chain(tags) {
            let value = value.unwrap_or_default();
            if value.len() > MAX_METADATA_BYTES {
                let bytes = value.len();
                return rejected(DraftRejection::FieldTooLong {
                    field,
                    bytes,
                    limit: MAX_METADATA_BYTES,
                });
            }
            // The id separates its parts by NUL: with one inside, two drafts could share an id.
            if value.contains('\0') {
                return rejected(DraftRejection::NulInField { field });
            }
        }
        if metadata.context_tags.len() > MAX_TAGS {
            let tags = metadata.context_tags.len();
            return rejected(DraftRejection::TooManyTags { tags, limit: MAX_TAGS });
        }
        Ok(())
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft")
            .field("id", &self.id)
            .field("text_bytes", &self.raw_text.len())
            .finish()
    }
}

impl DraftId {
    /// The id that mimir-librarian gave a draft of its first envelope: the first 8 bytes of
    /// SHA-256 over the text alone. No draft here has such an id. For compatibility.
    #[must_use]
    pub fn from_prose(prose: &str) -> Self {
        Self::from_digest(Sha256::digest(prose.as_bytes()).into())
    }

    /// As [`of`](Self::of), under mimir-librarian's name. For compatibility.
    #[must_use]
    pub fn from_raw_text_and_metadata(raw_text: &str, metadata: &DraftMetadata) -> Self {
        Self::of(raw_text, metadata)
    }

    /// The id of this text with this metadata.
    #[must_use]
    pub fn of(raw_text: &str, metadata: &DraftMetadata) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(raw_text.as_bytes());
        hasher.update([0]);
        hasher.update(metadata.source_surface.as_str().as_bytes());
        hasher.update([0]);
        for part in [
            &metadata.source_agent,
            &metadata.source_project,
            &metadata.operator,
            &metadata.provenance_uri,
        ] {
            hasher.update(part.as_deref().unwrap_or_default().as_bytes());
            hasher.update([0]);
        }
        Self::from_digest(hasher.finalize().into())
    }

    fn from_digest([a, b, c, d, e, f, g, h, ..]: [u8; 32]) -> Self {
        Self::from_bytes([a, b, c, d, e, f, g, h])
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;
    use crate::metadata::DraftSourceSurface;
    use crate::metadata::samples::{full, minimal as metadata};

    /// The vectors were computed by the file version, mimir-librarian 0.1.0.
    #[test]
    fn ids_are_those_of_the_file_version() {
        let id = |text: &str, metadata| Draft::with_metadata(text.into(), metadata).id().to_hex();
        assert_eq!(id("hello", metadata()), "fc1231b7765044dd");
        assert_eq!(id("Grüße, 世界 🌍\n", full()), "a43d364474ee7db3");
        let agent_only = DraftMetadata { source_agent: Some("codex".into()), ..metadata() };
        assert_eq!(id("hello", agent_only), "a8d7885821fa41fe");
        let operator_only = DraftMetadata { operator: Some("codex".into()), ..metadata() };
        assert_eq!(id("hello", operator_only), "77a9860a9a58bedb");
    }

    #[test]
    fn the_file_versions_older_names_give_its_ids() {
        let of = |source: &DraftSource| Draft::new("hello".into(), source, UNIX_EPOCH);
        assert_eq!(of(&DraftSource::CliSubmit).id().to_hex(), "fc1231b7765044dd");
        let memory = of(&DraftSource::CodexMemorySweep { file: "/notes/a b.md".into() });
        let expected = DraftMetadata {
            source_agent: Some("codex".into()),
            provenance_uri: Some("file:///notes/a b.md".into()),
            ..DraftMetadata::new(DraftSourceSurface::CodexMemory, UNIX_EPOCH)
        };
        assert_eq!(memory.metadata(), &expected);
        let id = DraftId::from_raw_text_and_metadata("hello", &expected);
        assert_eq!(memory.id(), id);
        // The beginning of SHA-256 of "hello".
        assert_eq!(DraftId::from_prose("hello").to_hex(), "2cf24dba5fb0a30e");
    }

    #[test]
    fn tags_and_time_are_no_part_of_the_id() {
        let other = DraftMetadata { context_tags: vec![], submitted_at: UNIX_EPOCH, ..full() };
        assert_eq!(DraftId::of("x", &full()), DraftId::of("x", &other));
    }

    #[test]
    fn what_was_altered_in_a_store_is_no_draft() {
        let id = DraftId::of("text", &full());
        assert!(Draft::stored(id, "text".into(), full()).is_ok());
        assert_eq!(Draft::stored(id, "Text".into(), full()), Err(DraftDamage::Altered));
        let retagged = DraftMetadata { context_tags: vec![], submitted_at: UNIX_EPOCH, ..full() };
        assert!(Draft::stored(id, "text".into(), retagged).is_ok());
        for altered in [
            DraftMetadata { source_surface: DraftSourceSurface::Mcp, ..full() },
            DraftMetadata { source_agent: None, ..full() },
            DraftMetadata { source_project: None, ..full() },
            DraftMetadata { operator: Some("Zoe".into()), ..full() },
            DraftMetadata { provenance_uri: None, ..full() },
        ] {
            assert_eq!(Draft::stored(id, "text".into(), altered), Err(DraftDamage::Altered));
        }
    }

    #[test]
    fn debug_shows_no_text() {
        let shown = format!("{:?}", Draft::with_metadata("canary".into(), metadata()));
        assert!(!shown.contains("canary"), "{shown}");
        assert!(shown.contains("text_bytes: 6"), "{shown}");
    }

    #[test]
    fn limits_are_named() {
        let reason = |draft: &Draft| match draft.check(10) {
            Err(LibrarianError::DraftRejected { reason, .. }) => Some(reason),
            _ => None,
        };
        let with = |text: &str, metadata| reason(&Draft::with_metadata(text.into(), metadata));
        assert_eq!(with("ten bytes!", metadata()), None);
        assert_eq!(with(" \n\t\u{3000}", metadata()), Some(DraftRejection::EmptyText));
        let long = DraftRejection::TextTooLong { bytes: 11, limit: 10 };
        assert_eq!(with("eleven byte", metadata()), Some(long));
        let nul = DraftMetadata { source_agent: Some("a\0b".into()), ..metadata() };
        assert_eq!(with("x", nul), Some(DraftRejection::NulInField { field: "agent" }));
        let wide = DraftMetadata { operator: Some("o".repeat(4097)), ..metadata() };
        let field = DraftRejection::FieldTooLong {
            field: "operator",
            bytes: 4097,
            limit: MAX_METADATA_BYTES,
        };
        assert_eq!(with("x", wide), Some(field));
        let tags = DraftMetadata { context_tags: vec!["t".into(); 65], ..metadata() };
        assert_eq!(
            with("x", tags),
            Some(DraftRejection::TooManyTags { tags: 65, limit: MAX_TAGS })
        );
    }

    proptest! {
        #[test]
        fn an_id_parses_back(bytes in any::<[u8; 8]>()) {
            let id = DraftId::from_bytes(bytes);
            prop_assert_eq!(id.to_hex().parse::<DraftId>(), Ok(id));
            prop_assert_eq!(id.to_string(), id.to_hex());
        }
    }
}
