//! The JSON form of a draft.

use serde::{Deserialize, Serialize};

use crate::clock::{from_unix_ms, unix_ms};
use crate::draft::Draft;
use crate::error::LibrarianError;
use crate::id::DraftId;
use crate::metadata::{DraftMetadata, DraftSourceSurface};

/// Version of the JSON envelope ([`Draft::to_envelope`]); the file version's current one.
pub const DRAFT_SCHEMA_VERSION: u32 = 2;

impl Draft {
    /// The draft as one JSON object without a line break: the file version's envelope, schema
    /// version 2. A program that processes drafts reads it from its standard input.
    #[must_use]
    pub fn to_envelope(&self) -> String {
        let metadata = self.metadata();
        let envelope = EnvelopeOut {
            schema_version: DRAFT_SCHEMA_VERSION,
            id: self.id().to_hex(),
            source_surface: metadata.source_surface,
            source_agent: metadata.source_agent.as_deref(),
            source_project: metadata.source_project.as_deref(),
            operator: metadata.operator.as_deref(),
            provenance_uri: metadata.provenance_uri.as_deref(),
            context_tags: &metadata.context_tags,
            submitted_at_unix_ms: unix_ms(metadata.submitted_at),
            raw_text: self.raw_text(),
        };
        // Strings, integers and string keys only: serde_json has no way to fail on these.
        serde_json::to_string(&envelope).unwrap_or_default()
    }

    /// Read one JSON envelope. Only `raw_text` is required; other values that are absent or null
    /// come from `defaults`. Unknown keys are refused, so that a misspelt one is not lost.
    ///
    /// # Errors
    ///
    /// [`LibrarianError::DraftJson`] for anything that is not such an object (the message gives
    /// line and column, never the content), [`LibrarianError::UnsupportedDraftSchema`] for another
    /// `schema_version`, [`LibrarianError::DraftIdMismatch`] if the declared `id` does not follow
    /// from the content.
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
            Some(declared) if declared != draft.id().to_hex() => {
                // A declared id may be any text; only a valid one is repeated.
                let declared = declared
                    .parse::<DraftId>()
                    .map_or_else(|_| "something else".to_owned(), |id| id.to_hex());
                Err(LibrarianError::DraftIdMismatch { declared, computed: draft.id().to_hex() })
            }
            _ => Ok(draft),
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metadata::samples::{full, minimal as metadata};

    #[test]
    fn an_envelope_needs_only_its_text() {
        let draft = Draft::from_envelope(r#"{"raw_text":"hello"}"#, &metadata()).unwrap();
        assert_eq!(draft, Draft::with_metadata("hello".into(), metadata()));
        let draft = Draft::from_envelope(r#"{"raw_text":"hello"}"#, &full()).unwrap();
        assert_eq!(draft, Draft::with_metadata("hello".into(), full()));
    }

    #[test]
    fn an_error_does_not_quote_a_bad_envelope() {
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

    proptest! {
        #[test]
        fn an_envelope_gives_the_same_draft(
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
    }
}
