//! `draftq sweep`: submit the text files below a path.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use draftq::Cancellation;

use super::context::Context;
use super::failure::Failure;
use super::provenance::Provenance;
use super::submit_files::SubmitFiles;
use super::wording::{count, is_or_are};

/// Submit the text files below a path: .md, .markdown and .txt.
///
/// Hidden directories and symbolic links are not followed. Files that cannot be submitted (empty,
/// too large, not UTF-8, unreadable) are listed with the reason; the others are submitted.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq sweep ~/notes docs/handoffs
  draftq sweep --path ~/.claude/projects --source-surface claude-memory

Surfaces of a sweep: directory (the default), claude_memory, codex_memory,
repo_handoff, agent_export. A draft's provenance is the file's absolute path as
a file:// URI.")]
pub struct Sweep {
    /// A directory or a file.
    #[arg(value_name = "PATH", required_unless_present = "path")]
    paths: Vec<PathBuf>,
    /// The same, as a flag.
    #[arg(long, value_name = "PATH")]
    path: Vec<PathBuf>,
    #[command(flatten)]
    provenance: Provenance,
}

impl Sweep {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let paths: Vec<PathBuf> = self.path.into_iter().chain(self.paths).collect();
        let files = SubmitFiles::new(&paths, &self.provenance, context)?;
        // A signal simply ends a sweep: the next sweep submits what is missing.
        let never = Cancellation::default();
        let summary = files.submit(&context.store()?, context.shows_progress(), &never)?;
        let output = context.output_for_scripts();
        let printed = match output.is_json() {
            true => output.json(&summary),
            false => output.text(&summary.to_text()),
        };
        printed.map_err(|failure| {
            let number = summary.drafts();
            let stored = count(number, "draft");
            failure.although(&format!("but {stored} {} stored", is_or_are(number)))
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
