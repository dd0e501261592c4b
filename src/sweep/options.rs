//! How the files of a sweep become drafts.

use crate::draft::DEFAULT_MAX_TEXT_BYTES;
use crate::metadata::{DraftMetadata, DraftSourceSurface};

/// How the files of a sweep become drafts.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SweepOptions {
    /// The metadata of every draft; the provenance URI is set for each file.
    pub metadata: DraftMetadata,
    /// The largest file that is taken, in bytes. It should be the store's limit.
    pub max_text_bytes: usize,
}

impl SweepOptions {
    /// Options with these metadata, with the surface's [default agent](default_agent) if they name
    /// none, and with the default limit of [`DEFAULT_MAX_TEXT_BYTES`].
    #[must_use]
    pub fn new(mut metadata: DraftMetadata) -> Self {
        if metadata.source_agent.is_none() {
            metadata.source_agent = default_agent(metadata.source_surface).map(str::to_owned);
        }
        Self { metadata, max_text_bytes: DEFAULT_MAX_TEXT_BYTES }
    }
}

/// The agent whose files a sweep of this surface finds, if the surface implies one.
///
/// The agent is part of a draft's id; the file version fills in the same.
#[must_use]
pub fn default_agent(surface: DraftSourceSurface) -> Option<&'static str> {
    match surface {
        DraftSourceSurface::ClaudeMemory => Some("claude"),
        DraftSourceSurface::CodexMemory => Some("codex"),
        DraftSourceSurface::CopilotSessionStore => Some("copilot"),
        DraftSourceSurface::Directory
        | DraftSourceSurface::Mcp
        | DraftSourceSurface::Cli
        | DraftSourceSurface::RepoHandoff
        | DraftSourceSurface::AgentExport
        | DraftSourceSurface::ConsensusQuorum => None,
    }
}

/// Whether drafts of this surface are files in directories.
#[must_use]
pub fn is_sweep_surface(surface: DraftSourceSurface) -> bool {
    match surface {
        DraftSourceSurface::Directory
        | DraftSourceSurface::ClaudeMemory
        | DraftSourceSurface::CodexMemory
        | DraftSourceSurface::RepoHandoff
        | DraftSourceSurface::AgentExport => true,
        DraftSourceSurface::Mcp
        | DraftSourceSurface::Cli
        | DraftSourceSurface::ConsensusQuorum
        | DraftSourceSurface::CopilotSessionStore => false,
    }
}
