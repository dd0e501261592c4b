//! draftq, and R: the bare loop (`bare-OPERATION`). `table` makes the Markdown of all lines.

mod bare;
#[path = "../../common.rs"]
mod common;
mod table;

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use common::{Gate, Outcome, Peer, Seen};
use draftq::{
    DEFAULT_PROCESSING_STALE_SECS, Draft, DraftMetadata, DraftProcessingDecision, DraftProcessor,
    DraftSourceSurface, DraftState, DraftStore, LibrarianError, run_once,
};

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("table") => table::print(),
        Some(operation) if operation.starts_with("bare-") => {
            common::run(&bare::Bare, "bare-", &arguments)
        }
        _ => common::run(&Draftq, "", &arguments),
    }
}

struct Draftq;

struct Processor<'a>(&'a Seen);

impl DraftProcessor for Processor<'_> {
    fn process(&mut self, draft: &Draft) -> Result<DraftProcessingDecision, LibrarianError> {
        match self.0.process(draft.raw_text()) {
            Ok(()) => Ok(DraftProcessingDecision::Accepted),
            Err(_) => Ok(DraftProcessingDecision::Failed),
        }
    }
}

fn open(directory: &Path) -> Outcome<DraftStore> {
    Ok(DraftStore::open(directory.join("drafts.db"))?)
}

fn drafts(texts: &[String]) -> Vec<Draft> {
    let draft = |text: &String| {
        let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
        Draft::with_metadata(text.clone(), metadata)
    };
    texts.iter().map(draft).collect()
}

impl Peer for Draftq {
    fn name(&self) -> String {
        "draftq, WAL, FULL".to_owned()
    }

    fn submit(&self, directory: &Path, texts: &[String]) -> Outcome<Duration> {
        let store = open(directory)?;
        let drafts = drafts(texts);
        let begun = Instant::now();
        for draft in &drafts {
            store.submit(draft)?;
        }
        Ok(begun.elapsed())
    }

    fn submit_many(&self, directory: &Path, texts: &[String]) -> Outcome<Option<Duration>> {
        let store = open(directory)?;
        let drafts = drafts(texts);
        let begun = Instant::now();
        store.submit_many(&drafts)?;
        Ok(Some(begun.elapsed()))
    }

    fn drain(&self, directory: &Path, _: usize, gate: &Gate, seen: &Seen) -> Outcome<Duration> {
        let store = open(directory)?;
        let stale = Duration::from_secs(DEFAULT_PROCESSING_STALE_SECS);
        let begun = gate.wait()?;
        // The call that the file version has too.
        run_once(&store, &mut Processor(seen), SystemTime::now(), stale)?;
        Ok(begun.elapsed())
    }

    fn left(&self, directory: &Path) -> Outcome<usize> {
        let stats = open(directory)?.stats()?;
        let left = stats.states.iter().filter(|(state, _)| *state != DraftState::Accepted);
        Ok(usize::try_from(left.map(|(_, drafts)| drafts).sum::<u64>())?)
    }
}
