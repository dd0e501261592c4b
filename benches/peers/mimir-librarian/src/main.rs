//! The file version: each draft a JSON file, its state a directory, a claim a rename.

#[path = "../../common.rs"]
mod common;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use common::{Gate, Outcome, Peer, Seen};
use mimir_librarian::{
    DEFAULT_PROCESSING_STALE_SECS, Draft, DraftMetadata, DraftProcessingDecision, DraftProcessor,
    DraftSourceSurface, DraftState, DraftStore, LibrarianError, run_once,
};

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    common::run(&Files, "", &arguments)
}

struct Files;

struct Processor<'a>(&'a Seen);

impl DraftProcessor for Processor<'_> {
    fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        match self.0.process(draft.raw_text()) {
            Ok(()) => Ok(DraftProcessingDecision::Accepted),
            Err(_) => Ok(DraftProcessingDecision::Failed),
        }
    }
}

impl Peer for Files {
    fn name(&self) -> String {
        "mimir-librarian 0.1.0, files without fsync".to_owned()
    }

    fn submit(&self, directory: &Path, texts: &[String]) -> Outcome<Duration> {
        let store = DraftStore::new(directory);
        let drafts: Vec<Draft> = texts
            .iter()
            .map(|text| {
                let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
                Draft::with_metadata(text.clone(), metadata)
            })
            .collect();
        let begun = Instant::now();
        for draft in &drafts {
            store.submit(draft)?;
        }
        Ok(begun.elapsed())
    }

    fn submit_many(&self, _directory: &Path, _texts: &[String]) -> Outcome<Option<Duration>> {
        Ok(None)
    }

    fn drain(
        &self,
        directory: &Path,
        _batch: usize,
        gate: &Gate,
        seen: &Seen,
    ) -> Outcome<Duration> {
        let store = DraftStore::new(directory);
        let stale = Duration::from_secs(DEFAULT_PROCESSING_STALE_SECS);
        let begun = gate.wait()?;
        run_once(&store, &mut Processor(seen), SystemTime::now(), stale)?;
        Ok(begun.elapsed())
    }

    fn left(&self, directory: &Path) -> Outcome<usize> {
        let store = DraftStore::new(directory);
        let pending = store.list(DraftState::Pending)?.len();
        let processing = store.list(DraftState::Processing)?.len();
        Ok(pending + processing + store.list(DraftState::Failed)?.len())
    }
}
