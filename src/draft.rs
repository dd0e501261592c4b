//! What a draft is: prose, where it came from, and the id that follows from both.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::{from_unix_ms, unix_ms};
use crate::error::{DraftDamage, DraftRejection, LibrarianError};
use crate::id::DraftId;

/// Version of the JSON envelope ([`Draft::to_envelope`]); the file version's current one.
pub const DRAFT_SCHEMA_VERSION: u32 = 2;

/// Largest text a store takes unless it is configured otherwise: 8 MiB, in bytes of UTF-8.
pub const DEFAULT_MAX_TEXT_BYTES: usize = 8 * 1024 * 1024;

/// Largest value of one metadata field, in bytes of UTF-8.
pub const MAX_METADATA_BYTES: usize = 4096;

/// Most tags one draft may carry.
pub const MAX_TAGS: usize = 64;

/// A piece of prose that an agent or a person wrote, not to be trusted until a processor has
/// looked at it.
///
/// `Debug` shows the id and the length, never the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Draft {
    id: DraftId,
    metadata: DraftMetadata,
    raw_text: String,
}

impl Draft {
    /// A draft of this text and metadata. Nothing is checked here; a store checks what it takes
    /// in ([`DraftStore::submit`](crate::DraftStore::submit)).
    #[must_use]
    pub fn with_metadata(raw_text: String, metadata: DraftMetadata) -> Self {
        let id = DraftId::of(&raw_text, &metadata);
        Self { id, metadata, raw_text }
    }

    /// A draft as it was read from a store, under the id that it was stored with.
    ///
    /// # Errors
    ///
    /// [`DraftDamage::Altered`] if the id does not follow from the text and the metadata: somebody
    /// or something changed them after they were submitted.
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

    /// When the draft was staged, by its submitter's word.
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

    /// The draft as one JSON object without a line break: the file version's envelope, schema
    /// version 2. This is what an external processor reads from its standard input.
    #[must_use]
    pub fn to_envelope(&self) -> String {
        let envelope = EnvelopeOut {
            schema_version: DRAFT_SCHEMA_VERSION,
            id: self.id.to_hex(),
            source_surface: self.metadata.source_surface,
            source_agent: self.metadata.source_agent.as_deref(),
            source_project: self.metadata.source_project.as_deref(),
            operator: self.metadata.operator.as_deref(),
            provenance_uri: self.metadata.provenance_uri.as_deref(),
            context_tags: &self.metadata.context_tags,
            submitted_at_unix_ms: unix_ms(self.metadata.submitted_at),
            raw_text: &self.raw_text,
        };
        // Strings, integers and string keys only: serde_json has no way to fail on these.
        serde_json::to_string(&envelope).unwrap_or_default()
    }

    /// Read one JSON envelope. Only `raw_text` is required; what else is absent or null comes
    /// from `defaults`. Unknown keys are refused, so that a misspelt one is not lost.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::DraftJson`] for anything that is not such an object (the message gives
    /// line and column, never the content), [`LibrarianError::UnsupportedDraftSchema`] for another
    /// `schema_version`, [`LibrarianError::DraftIdMismatch`] when a declared `id` is not the one
    /// that follows from the content.
    pub fn from_envelope(json: &str, defaults: &DraftMetadata) -> Result<Self, LibrarianError> {
        let envelope: EnvelopeIn = serde_json::from_str(json)?;
        let defaults = defaults.clone();
        if let Some(version) = envelope.schema_version.filter(|v| *v != DRAFT_SCHEMA_VERSION) {
            return Err(LibrarianError::UnsupportedDraftSchema { version });
        }
        let draft = Self::with_metadata(
            envelope.raw_text,
            DraftMetadata {
                source_surface: envelope.source_surface.unwrap_or(defaults.source_surface),
                source_agent: envelope.source_agent.or(defaults.source_agent),
                source_project: envelope.source_project.or(defaults.source_project),
                operator: envelope.operator.or(defaults.operator),
                provenance_uri: envelope.provenance_uri.or(defaults.provenance_uri),
                context_tags: envelope.context_tags.unwrap_or(defaults.context_tags),
                submitted_at: envelope
                    .submitted_at_unix_ms
                    .map_or(defaults.submitted_at, from_unix_ms),
            },
        );
        match envelope.id {
            Some(declared) if declared != draft.id.to_hex() => {
                // A declared id is the submitter's text: only its shape is repeated.
                let declared = declared
                    .parse::<DraftId>()
                    .map_or_else(|_| "something else".to_owned(), |id| id.to_hex());
                Err(LibrarianError::DraftIdMismatch { declared, computed: draft.id.to_hex() })
            }
            _ => Ok(draft),
        }
    }

    /// Whether a store with this limit takes the draft.
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

#[derive(Serialize)]
struct EnvelopeOut<'a> {
    schema_version: u32,
    id: String,
    source_surface: DraftSourceSurface,
    source_agent: Option<&'a str>,
    source_project: Option<&'a str>,
    operator: Option<&'a str>,
    provenance_uri: Option<&'a str>,
    context_tags: &'a [String],
    submitted_at_unix_ms: i64,
    raw_text: &'a str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeIn {
    schema_version: Option<u32>,
    id: Option<String>,
    source_surface: Option<DraftSourceSurface>,
    source_agent: Option<String>,
    source_project: Option<String>,
    operator: Option<String>,
    provenance_uri: Option<String>,
    context_tags: Option<Vec<String>>,
    submitted_at_unix_ms: Option<i64>,
    raw_text: String,
}

impl DraftId {
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
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(hasher.finalize());
        Self::from_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Where a draft came from. All but the time and the tags are part of the draft's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftMetadata {
    /// The surface that exposed or submitted the draft.
    pub source_surface: DraftSourceSurface,
    /// The agent that wrote it (`claude`, `codex`, …), if known.
    pub source_agent: Option<String>,
    /// The project or workspace it belongs to, if known.
    pub source_project: Option<String>,
    /// The person on whose behalf, if known.
    pub operator: Option<String>,
    /// A URI, path or event id of the source.
    pub provenance_uri: Option<String>,
    /// Free labels.
    pub context_tags: Vec<String>,
    /// When the draft came in, by its submitter's word; kept in whole milliseconds.
    pub submitted_at: SystemTime,
}

impl DraftMetadata {
    /// Metadata with no more than a surface and a time.
    #[must_use]
    pub fn new(source_surface: DraftSourceSurface, submitted_at: SystemTime) -> Self {
        Self {
            source_surface,
            source_agent: None,
            source_project: None,
            operator: None,
            provenance_uri: None,
            context_tags: Vec::new(),
            submitted_at,
        }
    }
}

/// The kind of place a draft came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DraftSourceSurface {
    /// A file in a directory of drafts.
    Directory,
    /// A memory file of Claude.
    ClaudeMemory,
    /// A memory file of Codex.
    CodexMemory,
    /// A submission over the Model Context Protocol.
    Mcp,
    /// The command line.
    Cli,
    /// A hand-off or status document in a repository.
    RepoHandoff,
    /// An export of an agent or a harness.
    AgentExport,
    /// The result of a consensus quorum.
    ConsensusQuorum,
    /// The session store of GitHub Copilot's command line.
    CopilotSessionStore,
}

impl DraftSourceSurface {
    /// Every surface, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::Directory,
        Self::ClaudeMemory,
        Self::CodexMemory,
        Self::Mcp,
        Self::Cli,
        Self::RepoHandoff,
        Self::AgentExport,
        Self::ConsensusQuorum,
        Self::CopilotSessionStore,
    ];

    /// The surface of this name, in snake_case or kebab-case.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|surface| {
            surface.as_str() == value
                || (!value.contains('_') && surface.as_str() == value.replace('-', "_"))
        })
    }

    /// The name in snake_case, as it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::ClaudeMemory => "claude_memory",
            Self::CodexMemory => "codex_memory",
            Self::Mcp => "mcp",
            Self::Cli => "cli",
            Self::RepoHandoff => "repo_handoff",
            Self::AgentExport => "agent_export",
            Self::ConsensusQuorum => "consensus_quorum",
            Self::CopilotSessionStore => "copilot_session_store",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    fn metadata() -> DraftMetadata {
        DraftMetadata::new(DraftSourceSurface::Cli, UNIX_EPOCH)
    }

    fn full() -> DraftMetadata {
        DraftMetadata {
            source_surface: DraftSourceSurface::ClaudeMemory,
            source_agent: Some("claude".into()),
            source_project: Some("buildepicshit/Mimir".into()),
            operator: Some("Zoë".into()),
            provenance_uri: Some("file:///notes/héllo.md".into()),
            context_tags: vec!["a".into()],
            submitted_at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        }
    }

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
    fn surfaces_parse_in_both_spellings() {
        for surface in DraftSourceSurface::ALL {
            let snake = surface.as_str();
            assert_eq!(DraftSourceSurface::parse(snake), Some(surface));
            assert_eq!(DraftSourceSurface::parse(&snake.replace('_', "-")), Some(surface));
        }
        for wrong in ["", "CLI", "claude memory", "copilot_session-store", "unknown"] {
            assert_eq!(DraftSourceSurface::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_envelope_needs_only_its_text() {
        let draft = Draft::from_envelope(r#"{"raw_text":"hello"}"#, &metadata()).unwrap();
        assert_eq!(draft, Draft::with_metadata("hello".into(), metadata()));
        let draft = Draft::from_envelope(r#"{"raw_text":"hello"}"#, &full()).unwrap();
        assert_eq!(draft, Draft::with_metadata("hello".into(), full()));
    }

    #[test]
    fn a_bad_envelope_is_refused_without_a_word_of_it() {
        for bad in [
            "",
            "canary",
            "[]",
            r#"{"text":"canary"}"#,
            r#"{"raw_text":"canary","canary":1}"#,
            r#"{"raw_text":"x","context_tags":"canary"}"#,
            r#"{"raw_text":"x","source_surface":"canary"}"#,
            r#"{"raw_text":"x","schema_version":1}"#,
            r#"{"raw_text":"x","id":"canary"}"#,
            r#"{"raw_text":"x","id":"0000000000000000"}"#,
        ] {
            let error = Draft::from_envelope(bad, &metadata()).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("canary"), "{bad}: {shown}");
        }
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
        fn an_envelope_brings_back_the_draft(
            text in any::<String>(),
            agent in any::<Option<String>>(),
            tags in proptest::collection::vec(any::<String>(), 0..4),
            ms in 0i64..4_000_000_000_000,
        ) {
            let draft = Draft::with_metadata(text, DraftMetadata {
                source_agent: agent,
                context_tags: tags,
                submitted_at: from_unix_ms(ms),
                ..metadata()
            });
            let line = draft.to_envelope();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(Draft::from_envelope(&line, &metadata()).unwrap(), draft);
        }

        #[test]
        fn an_id_parses_back(bytes in any::<[u8; 8]>()) {
            let id = DraftId::from_bytes(bytes);
            prop_assert_eq!(id.to_hex().parse::<DraftId>(), Ok(id));
            prop_assert_eq!(id.to_string(), id.to_hex());
        }
    }
}
