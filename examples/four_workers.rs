//! Four workers, each a processor made from a function, in one run.
//!
//! ```text
//! cargo run --example four_workers -- drafts.db
//! ```

use std::env;
use std::error::Error;
use std::thread;
use std::time::{Duration, SystemTime};

use draftq::{
    Draft, DraftMetadata, DraftProcessingDecision, DraftSourceSurface, DraftStore, LibrarianError,
    Outcome, ProcessorError, Runner, from_fn,
};
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args_os().nth(1).ok_or("name a database")?;
    let store = DraftStore::open(path)?;
    let metadata = DraftMetadata::new(DraftSourceSurface::Cli, SystemTime::now());
    let texts = ["The staging database moved to port 5433.", "TODO", "Deploys freeze on Friday."];
    for text in texts {
        store.submit(&Draft::with_metadata(text.into(), metadata.clone()))?;
    }

    // One processor per worker. A processor may have state of its own, such as a connection.
    let mut workers: Vec<_> = (0..4).map(|_| from_fn(judge)).collect();
    let runner = Runner::new(&store, "four_workers");
    let summary = runner.run(&mut workers, SystemTime::now()).into_result()?;
    print_line(&serde_json::to_string(&summary)?)
}

/// In place of a slow call, such as one to a model.
fn judge(draft: &Draft) -> Result<Outcome, LibrarianError> {
    thread::sleep(Duration::from_millis(20));
    let words = draft.raw_text().split_whitespace().count();
    let Some(first) = draft.raw_text().chars().next() else {
        return Err(ProcessorError::new("no_text", "the text is empty").into());
    };
    if words < 3 {
        let note = format!("{words} word beginning with {first} is too little to keep");
        return Ok(Outcome::new(DraftProcessingDecision::Skipped).with_note(note));
    }
    Outcome::new(DraftProcessingDecision::Accepted).with_output(&json!({ "words": words }))
}

fn print_line(line: &str) -> Result<(), Box<dyn Error>> {
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
