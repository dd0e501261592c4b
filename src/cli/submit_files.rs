//! Submits the files below some paths, for `sweep` and `run --sweep`.

use std::collections::VecDeque;
use std::path::PathBuf;

use draftq::{
    Cancellation, DraftSourceSurface, DraftStore, SkipReason, SkippedFile, Submission, SweepFiles,
    SweepOptions, Swept,
};
use serde::Serialize;

use super::context::Context;
use super::failure::Failure;
use super::progress::Progress;
use super::provenance::Provenance;
use super::wording::count;

/// The files to submit, whose paths exist, and the metadata for them.
pub struct SubmitFiles {
    files: SweepFiles,
    options: SweepOptions,
}

/// What was done with the files.
#[derive(Debug, Default, Serialize)]
pub struct SweepSummary {
    submitted: usize,
    skipped_empty: usize,
    already_present: usize,
    drafts: Vec<SubmittedFile>,
    skipped: Vec<SkippedFile>,
}

#[derive(Debug, Serialize)]
struct SubmittedFile {
    #[serde(flatten)]
    submission: Submission,
    provenance_uri: Option<String>,
}

impl SubmitFiles {
    /// Find the files; none is read yet.
    pub fn new(
        paths: &[PathBuf],
        provenance: &Provenance,
        context: &Context,
    ) -> Result<Self, Failure> {
        let metadata = provenance.metadata(DraftSourceSurface::Directory);
        if !draftq::is_sweep_surface(metadata.source_surface) {
            return Err(Failure::usage(format!(
                "drafts of the surface {} are not swept from files; use directory, \
                 claude_memory, codex_memory, repo_handoff or agent_export",
                metadata.source_surface.as_str()
            )));
        }
        let mut options = SweepOptions::new(metadata);
        options.max_text_bytes = context.max_text_bytes();
        Ok(Self { files: draftq::find_sweep_files(paths)?, options })
    }

    /// Read the files and submit them, batch by batch, until all are done or the end is
    /// requested.
    pub fn submit(
        &self,
        store: &DraftStore,
        with_progress: bool,
        cancellation: &Cancellation,
    ) -> Result<SweepSummary, Failure> {
        let progress = Progress::new(with_progress, self.files.len(), "sweep");
        let mut summary = SweepSummary::default();
        let mut batches = store.batched_submit();
        // The provenance of the drafts that are not answered yet, in their order.
        let mut uris = VecDeque::new();
        for swept in self.files.drafts(&self.options) {
            match swept {
                Swept::Draft(draft) => {
                    uris.push_back(draft.metadata().provenance_uri.clone());
                    summary.add(&batches.push(draft)?, &mut uris);
                }
                Swept::Skipped(file) => {
                    summary.skipped_empty += usize::from(file.reason == SkipReason::Empty);
                    summary.skipped.push(file);
                }
            }
            progress.advance();
            if cancellation.is_cancelled() {
                break;
            }
        }
        summary.add(&batches.finish()?, &mut uris);
        progress.clear();
        Ok(summary)
    }
}

impl SweepSummary {
    fn add(&mut self, stored: &[Submission], uris: &mut VecDeque<Option<String>>) {
        for submission in stored {
            match submission.created {
                true => self.submitted += 1,
                false => self.already_present += 1,
            }
            let provenance_uri = uris.pop_front().flatten();
            self.drafts.push(SubmittedFile { submission: *submission, provenance_uri });
        }
    }

    /// How many drafts are stored.
    pub fn drafts(&self) -> usize {
        self.drafts.len()
    }

    /// The summary for a person: counts, and each file that was skipped.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{} submitted, {} already present, {} skipped.",
            count(self.submitted, "draft"),
            self.already_present,
            count(self.skipped.len(), "file"),
        );
        for file in &self.skipped {
            let path = file.path.display().to_string();
            text.push_str("\n  ");
            text.push_str(&draftq::escape_line(&path));
            text.push(' ');
            text.push_str(file.reason.explanation());
            if let Some(detail) = &file.detail {
                text.push_str(&format!(" ({})", draftq::escape_line(detail)));
            }
        }
        text
    }
}
