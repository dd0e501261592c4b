//! Where a draft came from.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The longest value of one metadata field, in bytes of UTF-8.
pub const MAX_METADATA_BYTES: usize = 4096;

/// The largest number of tags of one draft.
pub const MAX_TAGS: usize = 64;

/// Where a draft came from. All fields but the time and the tags are part of the draft's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftMetadata {
    /// The surface that exposed or submitted the draft.
    pub source_surface: DraftSourceSurface,
    /// The agent that wrote it (`claude`, `codex`, …), if it is known.
    pub source_agent: Option<String>,
    /// The project or workspace that it belongs to, if it is known.
    pub source_project: Option<String>,
    /// The person for whom it was written, if known.
    pub operator: Option<String>,
    /// A URI, path or event id of the source.
    pub provenance_uri: Option<String>,
    /// Labels of the submitter's choice.
    pub context_tags: Vec<String>,
    /// When the draft was submitted, as its submitter states it; stored in whole milliseconds.
    pub submitted_at: SystemTime,
}

impl DraftMetadata {
    /// Metadata with a surface and a time alone.
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

    /// The metadata that mimir-librarian gives a draft from this source. For compatibility.
    #[must_use]
    pub fn from_source(source: &DraftSource, submitted_at: SystemTime) -> Self {
        use DraftSourceSurface as Surface;
        let file_uri = |path: &Path| Some(format!("file://{}", path.display()));
        let of_file = |surface, agent: Option<&str>, path: &Path| Self {
            source_agent: agent.map(str::to_owned),
            provenance_uri: file_uri(path),
            ..Self::new(surface, submitted_at)
        };
        match source {
            DraftSource::Directory { path } => of_file(Surface::Directory, None, path),
            DraftSource::AutoMemorySweep { file } => {
                of_file(Surface::ClaudeMemory, Some("claude"), file)
            }
            DraftSource::CodexMemorySweep { file } => {
                of_file(Surface::CodexMemory, Some("codex"), file)
            }
            DraftSource::McpSubmit { workspace } => Self {
                source_project: Some(workspace.clone()),
                ..Self::new(Surface::Mcp, submitted_at)
            },
            DraftSource::RepoHandoff { file } => of_file(Surface::RepoHandoff, None, file),
            DraftSource::CliSubmit => Self::new(Surface::Cli, submitted_at),
        }
    }
}

/// Where a draft came from, in mimir-librarian's older form. For compatibility;
/// [`DraftMetadata`] says more.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DraftSource {
    /// A file in a directory of drafts.
    Directory {
        /// Its absolute path.
        path: PathBuf,
    },
    /// A memory file of Claude.
    AutoMemorySweep {
        /// Its absolute path.
        file: PathBuf,
    },
    /// A memory file of Codex.
    CodexMemorySweep {
        /// Its absolute path.
        file: PathBuf,
    },
    /// A submission over the Model Context Protocol.
    McpSubmit {
        /// The workspace, which becomes the draft's project.
        workspace: String,
    },
    /// A hand-off or status document in a repository.
    RepoHandoff {
        /// Its absolute path.
        file: PathBuf,
    },
    /// The command line.
    CliSubmit,
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
    use super::*;

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
}

/// Metadata for tests.
#[cfg(test)]
pub(crate) mod samples {
    use std::time::{Duration, UNIX_EPOCH};

    use super::{DraftMetadata, DraftSourceSurface};

    pub(crate) fn minimal() -> DraftMetadata {
        DraftMetadata::new(DraftSourceSurface::Cli, UNIX_EPOCH)
    }

    /// A value in every field.
    pub(crate) fn full() -> DraftMetadata {
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
}
