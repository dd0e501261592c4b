//! `draftq submit --jsonl`: the drafts of a JSONL text, batch by batch or all at once.

use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::ExitCode;

use draftq::{DraftMetadata, DraftStore, LibrarianError, Submission};

use super::context::Context;
use super::failure::Failure;
use super::input::open;
use super::jsonl::{Line, Lines};
use super::messages::message;
use super::output::Output;
use super::wording::{count, is_or_are};

/// The most bad lines that are named one by one.
const NAMED_LINES: usize = 20;

/// The number of answers that are printed with one write.
const ANSWERS_PER_WRITE: usize = 1_000;

/// Submit the drafts of a JSONL file; `-` is standard input.
pub fn submit_jsonl(
    path: &Path,
    defaults: &DraftMetadata,
    atomic: bool,
    skip_bad: bool,
    context: &Context,
) -> Result<ExitCode, Failure> {
    let (reader, name): (Box<dyn BufRead>, _) = if path == Path::new("-") {
        (Box::new(io::stdin().lock()), "standard input".to_owned())
    } else {
        (Box::new(BufReader::new(open(path)?)), path.display().to_string())
    };
    let store = context.store()?;
    let lines = Lines::new(reader, &name, defaults, context.max_text_bytes());
    let mut submission = JsonlSubmission {
        name: &name,
        output: context.output_for_scripts(),
        skip_bad,
        bad: 0,
        first_bad: None,
        created: 0,
        present: 0,
        print_failure: None,
    };
    let result = match atomic {
        true => submission.submit_atomically(&store, lines),
        false => submission.submit_in_batches(&store, lines),
    };
    submission.end(result, atomic)
}

/// What was done with the lines so far.
struct JsonlSubmission<'n> {
    /// The name of the input in messages.
    name: &'n str,
    output: Output,
    skip_bad: bool,
    /// How many lines are bad, and the number of the first.
    bad: usize,
    first_bad: Option<usize>,
    created: usize,
    present: usize,
    /// Why answers can no longer be printed. The drafts are stored nevertheless.
    print_failure: Option<Failure>,
}

impl JsonlSubmission<'_> {
    /// Batch by batch, up to the first bad line.
    fn submit_in_batches(
        &mut self,
        store: &DraftStore,
        lines: impl Iterator<Item = Result<Line, Failure>>,
    ) -> Result<(), Failure> {
        let mut batches = store.batched_submit();
        for line in lines {
            match line {
                Ok(Line::Draft(draft)) if self.stores_drafts() => {
                    let stored = batches.push(draft)?;
                    self.answer(&stored);
                }
                // After a bad line the others are only checked, so that all bad ones are named.
                Ok(Line::Draft(_)) => {}
                Ok(Line::Bad { number, reason }) => self.note_bad_line(number, &reason),
                Err(failure) => {
                    let stored = batches.finish()?;
                    self.answer(&stored);
                    return Err(failure);
                }
            }
        }
        let stored = batches.finish()?;
        self.answer(&stored);
        Ok(())
    }

    /// All lines in one transaction, or none.
    fn submit_atomically(
        &mut self,
        store: &DraftStore,
        mut lines: impl Iterator<Item = Result<Line, Failure>>,
    ) -> Result<(), Failure> {
        let drafts = std::iter::from_fn(|| {
            loop {
                match lines.next()? {
                    Ok(Line::Draft(draft)) => return Some(Ok(draft)),
                    Ok(Line::Bad { number, reason }) => {
                        self.note_bad_line(number, &reason);
                        if !self.stores_drafts() {
                            return Some(Err(RolledBack::BadLine));
                        }
                    }
                    Err(failure) => return Some(Err(RolledBack::Failed(failure))),
                }
            }
        });
        match store.submit_while_reading(drafts) {
            Ok(stored) => {
                self.answer(&stored);
                Ok(())
            }
            Err(RolledBack::Failed(failure)) => Err(failure),
            // The transaction has ended; the remaining lines are only checked.
            Err(RolledBack::BadLine) => lines.try_for_each(|line| {
                if let Line::Bad { number, reason } = line? {
                    self.note_bad_line(number, &reason);
                }
                Ok(())
            }),
        }
    }

    /// Whether further drafts are stored.
    fn stores_drafts(&self) -> bool {
        self.bad == 0 || self.skip_bad
    }

    fn note_bad_line(&mut self, number: usize, reason: &str) {
        if self.bad < NAMED_LINES {
            message(&format!("draftq: {}, line {number}: {reason}", self.name));
        }
        self.bad += 1;
        self.first_bad.get_or_insert(number);
    }

    /// Print the answers for drafts that are stored durably.
    fn answer(&mut self, stored: &[Submission]) {
        let created = stored.iter().filter(|submission| submission.created).count();
        self.created += created;
        self.present += stored.len() - created;
        // After a failure nothing more is printed, because a gap would not be noticed.
        if self.output.is_json() && self.print_failure.is_none() {
            let mut parts = stored.chunks(ANSWERS_PER_WRITE);
            self.print_failure = parts.find_map(|part| self.output.json_lines(part).err());
        }
    }

    fn end(mut self, result: Result<(), Failure>, atomic: bool) -> Result<ExitCode, Failure> {
        let number = self.created + self.present;
        let stored = format!("{} {}", count(number, "draft"), is_or_are(number));
        let kept = match atomic {
            true => "nothing was stored".to_owned(),
            false => format!(
                "{} before that {} stored; submit the file again, and only what is missing is \
                 added",
                count(number, "draft"),
                is_or_are(number)
            ),
        };
        if self.bad > NAMED_LINES {
            message(&format!("draftq: … and {}", count(self.bad - NAMED_LINES, "more bad line")));
        }
        result.map_err(|failure| failure.although(&kept))?;
        if let Some(first) = self.first_bad.filter(|_| !self.skip_bad) {
            return Err(Failure::bad_input(format!(
                "{} has {}, the first is line {first}; {kept}; correct the bad lines first, or \
                 leave them out with --skip-bad",
                self.name,
                count(self.bad, "bad line"),
            )));
        }
        if !self.output.is_json() {
            let text = format!(
                "{} submitted, {} already present, {} left out.",
                count(self.created, "draft"),
                self.present,
                count(self.bad, "bad line"),
            );
            self.print_failure = self.output.text(&text).err();
        }
        match self.print_failure {
            None => Ok(ExitCode::SUCCESS),
            Some(failure) => Err(failure.although(&format!("but {stored} stored"))),
        }
    }
}

/// Why a transaction over all lines was rolled back.
enum RolledBack {
    BadLine,
    Failed(Failure),
}

impl From<LibrarianError> for RolledBack {
    fn from(error: LibrarianError) -> Self {
        Self::Failed(error.into())
    }
}
