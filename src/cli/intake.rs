//! Drafts come in: `submit` and `sweep`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use draftq::Cancellation;
use draftq::Submission;
use draftq::{Draft, DraftMetadata, DraftSourceSurface, DraftStore, LibrarianError};
use draftq::{SkipReason, SkippedFile, SweepFiles, SweepOptions, Swept};
use serde::Serialize;

use super::Context;
use super::failure::{Failure, say};
use super::progress::Progress;
use super::render::{Output, count};

/// At most this many bad lines are named one by one.
const NAMED_LINES: usize = 20;

/// So many answers are written at once.
const ANSWERS: usize = 1_000;

/// The buffer of a line that is longer than this is not kept, in bytes.
const KEPT_LINE: usize = 64 * 1024;

/// Where the drafts came from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Where drafts came from")]
pub struct Provenance {
    /// The surface that exposed them.
    #[arg(long, value_name = "SURFACE", value_parser = parse_surface)]
    source_surface: Option<DraftSourceSurface>,
    /// The agent that wrote them.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    agent: Option<String>,
    /// The project they belong to.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    project: Option<String>,
    /// The person on whose behalf they were written.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, value_parser = utf8_argument())]
    operator: Option<String>,
    /// A free label; may be given several times.
    #[arg(long = "tag", value_name = "TAG", allow_hyphen_values = true)]
    #[arg(value_parser = utf8_argument())]
    tags: Vec<String>,
}

impl Provenance {
    fn metadata(&self, default_surface: DraftSourceSurface) -> DraftMetadata {
        let surface = self.source_surface.unwrap_or(default_surface);
        DraftMetadata {
            source_agent: self.agent.clone(),
            source_project: self.project.clone(),
            operator: self.operator.clone(),
            context_tags: self.tags.clone(),
            ..DraftMetadata::new(surface, SystemTime::now())
        }
    }

    /// Whether anything was given.
    pub fn is_given(&self) -> bool {
        self.source_surface.is_some()
            || self.agent.is_some()
            || self.project.is_some()
            || self.operator.is_some()
            || !self.tags.is_empty()
    }
}

/// An argument that is UTF-8. The error does not repeat it.
fn utf8_argument() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().try_map(|value| {
        let value = value.into_encoded_bytes();
        String::from_utf8(value).map_err(|error| not_utf8(error.utf8_error().valid_up_to()))
    })
}

/// A source surface as an argument, in snake_case or kebab-case.
pub fn parse_surface(text: &str) -> Result<DraftSourceSurface, String> {
    DraftSourceSurface::parse(text).ok_or_else(|| {
        let names = DraftSourceSurface::ALL.map(DraftSourceSurface::as_str);
        format!("a surface is one of {}", names.join(", "))
    })
}

/// Stage drafts: one text, or many envelopes.
///
/// The same text from the same source is the same draft: submitting it again adds nothing,
/// changes nothing, and says which state it is in.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq submit --text 'The staging database moved to port 5433.' --agent claude
  draftq submit --file notes.md --project billing --tag handoff
  git log -1 --format=%B | draftq submit --source-surface repo-handoff
  draftq submit --jsonl drafts.jsonl

Each line of a JSONL file is an envelope: {\"raw_text\":\"…\"}, and if you like
source_surface, source_agent, source_project, operator, provenance_uri,
context_tags, submitted_at_unix_ms. What a line leaves out comes from the flags.

Lines are taken in batches, so that others can write in between, and an id is
printed once its draft is stored for good. A line that is no good stops it: what
stands before it is stored, what follows is checked and not taken. Correct the
lines and submit the file again: only what is missing is added. With --atomic
all lines go in, or none.")]
pub struct Submit {
    /// `-`: read the text from standard input, as when it is a pipe and nothing else is given.
    #[arg(value_name = "-", conflicts_with_all = ["text", "file", "jsonl"])]
    stdin: Vec<OsString>,
    /// The draft's text.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["file", "jsonl"])]
    #[arg(allow_hyphen_values = true)]
    text: Option<OsString>,
    /// Read the text from a file; it is kept byte for byte.
    #[arg(long, value_name = "PATH", conflicts_with = "jsonl")]
    file: Option<PathBuf>,
    /// Read many drafts, one JSON envelope a line; `-` is standard input.
    #[arg(long, value_name = "PATH")]
    jsonl: Option<PathBuf>,
    /// With --jsonl: leave out lines that are no good, and take the others.
    #[arg(long, requires = "jsonl", conflicts_with_all = ["text", "file", "stdin"])]
    skip_bad: bool,
    /// With --jsonl: take all lines in one transaction, or none. Nobody else can write while the
    /// file is read, so give it a file and not a slow pipe.
    #[arg(long, requires = "jsonl", conflicts_with_all = ["text", "file", "stdin"])]
    atomic: bool,
    #[command(flatten)]
    provenance: Provenance,
    /// A URI, path or event id of the source.
    #[arg(long = "provenance", value_name = "URI", allow_hyphen_values = true)]
    #[arg(value_parser = utf8_argument())]
    provenance_uri: Option<String>,
}

impl Submit {
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let mut metadata = self.provenance.metadata(DraftSourceSurface::Cli);
        metadata.provenance_uri = self.provenance_uri.clone();
        match &self.jsonl {
            Some(path) => self.submit_lines(path, &metadata, context),
            None => self.submit_one(metadata, context),
        }
    }

    fn submit_one(&self, metadata: DraftMetadata, context: &Context) -> Result<ExitCode, Failure> {
        let limit = context.global.max_text_bytes;
        if !self.stdin.is_empty() && self.stdin != ["-"] {
            // The words are not repeated: they may be the draft.
            return Err(Failure::usage(
                "submit takes no word but -, for standard input; give a text with --text 'TEXT' \
                 (in quotes), a file with --file PATH",
            ));
        }
        let text = match (&self.text, &self.file, self.stdin.first()) {
            (Some(text), ..) => utf8(text.clone().into_encoded_bytes(), "the text")?,
            (_, Some(path), _) if path != Path::new("-") => {
                read_text(open(path)?, &format!("the file {}", path.display()), limit)?
            }
            (_, None, None) if io::stdin().is_terminal() => {
                return Err(Failure::usage(
                    "there is no text; give --text TEXT, --file PATH, --jsonl PATH, or a text on \
                     standard input",
                ));
            }
            _ => read_text(io::stdin().lock(), "standard input", limit)?,
        };
        let draft = Draft::with_metadata(text, metadata);
        let submission = context.store()?.submit(&draft)?;
        print_submission(context.output_for_scripts(), &submission).map_err(|failure| {
            let Submission { id, state, .. } = submission;
            failure.although(&format!("draft {id} is stored all the same (it is {state})"))
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn submit_lines(
        &self,
        path: &Path,
        defaults: &DraftMetadata,
        context: &Context,
    ) -> Result<ExitCode, Failure> {
        let (reader, name): (Box<dyn BufRead>, _) = if path == Path::new("-") {
            (Box::new(io::stdin().lock()), "standard input".to_owned())
        } else {
            (Box::new(BufReader::new(open(path)?)), path.display().to_string())
        };
        let store = context.store()?;
        let lines = Lines::new(reader, &name, defaults, context.global.max_text_bytes);
        let output = context.output_for_scripts();
        let mut intake = Intake { name: &name, output, skip_bad: self.skip_bad, ..Intake::new() };
        let taken = match self.atomic {
            true => intake.take_all(&store, lines),
            false => intake.take_batches(&store, lines),
        };
        intake.end(taken, self.atomic)
    }
}

/// What became of the lines of a JSONL text.
struct Intake<'n> {
    name: &'n str,
    output: Output,
    skip_bad: bool,
    /// Lines that are no good, and the first of them.
    bad: usize,
    first_bad: Option<usize>,
    created: usize,
    present: usize,
    /// Why the answers can no longer be printed. Drafts are taken all the same.
    unprinted: Option<Failure>,
}

impl Intake<'_> {
    fn new() -> Self {
        Self {
            name: "",
            output: Output::new(false),
            skip_bad: false,
            bad: 0,
            first_bad: None,
            created: 0,
            present: 0,
            unprinted: None,
        }
    }

    /// Batch by batch, up to the first bad line.
    fn take_batches(
        &mut self,
        store: &DraftStore,
        lines: impl Iterator<Item = Result<Line, Failure>>,
    ) -> Result<(), Failure> {
        let mut batches = store.batched_submit();
        for line in lines {
            match line {
                Ok(Line::Draft(draft)) if self.goes_on() => {
                    let stored = batches.push(draft)?;
                    self.answer(&stored);
                }
                // What follows a bad line is only checked, so that all bad ones are named.
                Ok(Line::Draft(_)) => {}
                Ok(Line::Bad { number, reason }) => self.refuse(number, &reason),
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
    fn take_all(
        &mut self,
        store: &DraftStore,
        mut lines: impl Iterator<Item = Result<Line, Failure>>,
    ) -> Result<(), Failure> {
        let drafts = std::iter::from_fn(|| {
            loop {
                match lines.next()? {
                    Ok(Line::Draft(draft)) => return Some(Ok(draft)),
                    Ok(Line::Bad { number, reason }) => {
                        self.refuse(number, &reason);
                        if !self.goes_on() {
                            return Some(Err(Stop::BadLine));
                        }
                    }
                    Err(failure) => return Some(Err(Stop::Failed(failure))),
                }
            }
        });
        match store.submit_while_reading(drafts) {
            Ok(stored) => {
                self.answer(&stored);
                Ok(())
            }
            Err(Stop::Failed(failure)) => Err(failure),
            // The transaction is over; what follows is only checked.
            Err(Stop::BadLine) => lines.try_for_each(|line| {
                if let Line::Bad { number, reason } = line? {
                    self.refuse(number, &reason);
                }
                Ok(())
            }),
        }
    }

    /// Whether drafts are still taken.
    fn goes_on(&self) -> bool {
        self.bad == 0 || self.skip_bad
    }

    fn refuse(&mut self, number: usize, reason: &str) {
        if self.bad < NAMED_LINES {
            say(&format!("draftq: {}, line {number}: {reason}", self.name));
        }
        self.bad += 1;
        self.first_bad.get_or_insert(number);
    }

    /// Print the answers for drafts that are durably stored.
    fn answer(&mut self, stored: &[Submission]) {
        let created = stored.iter().filter(|submission| submission.created).count();
        self.created += created;
        self.present += stored.len() - created;
        if self.output.is_json() && self.unprinted.is_none() {
            // In parts, so that the answers of one transaction are not all in memory as text.
            let mut parts = stored.chunks(ANSWERS);
            // The first failure is the last attempt: a gap in the answers would go unnoticed.
            self.unprinted = parts.find_map(|part| self.output.json_lines(part).err());
        }
    }

    fn end(mut self, taken: Result<(), Failure>, atomic: bool) -> Result<ExitCode, Failure> {
        let stored = count(self.created + self.present, "draft");
        let kept = match atomic {
            true => "nothing was taken".to_owned(),
            false => format!(
                "{stored} before that {} stored; submit the file again, and only what is \
                 missing is added",
                are(self.created + self.present)
            ),
        };
        if self.bad > NAMED_LINES {
            say(&format!("draftq: … and {}", count(self.bad - NAMED_LINES, "more bad line")));
        }
        taken.map_err(|failure| failure.although(&kept))?;
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
            self.unprinted = self.output.text(&text).err();
        }
        match self.unprinted {
            None => Ok(ExitCode::SUCCESS),
            Some(failure) => Err(failure.although(&format!(
                "{stored} {} stored all the same",
                are(self.created + self.present)
            ))),
        }
    }
}

fn are(number: usize) -> &'static str {
    if number == 1 { "is" } else { "are" }
}

/// Why a transaction over all lines was undone.
enum Stop {
    BadLine,
    Failed(Failure),
}

impl From<LibrarianError> for Stop {
    fn from(error: LibrarianError) -> Self {
        Self::Failed(error.into())
    }
}

fn print_submission(output: Output, submission: &Submission) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(submission);
    }
    let Submission { id, state, created, .. } = submission;
    output.text(&match created {
        true => format!("Submitted draft {id}; it is {state}."),
        false => format!("Draft {id} was submitted before; it is {state}. Nothing was changed."),
    })
}

/// A line of a JSONL text that is not blank.
enum Line {
    Draft(Draft),
    Bad { number: usize, reason: String },
}

/// The lines of a JSONL text, one at a time.
struct Lines<'a, R> {
    reader: R,
    name: &'a str,
    defaults: &'a DraftMetadata,
    max_text_bytes: usize,
    /// Longest line in bytes. JSON writes a byte as six at the most (\u0000); the rest is for
    /// metadata.
    longest: usize,
    number: usize,
    line: Vec<u8>,
}

impl<'a, R: BufRead> Lines<'a, R> {
    fn new(reader: R, name: &'a str, defaults: &'a DraftMetadata, max_text_bytes: usize) -> Self {
        let longest = max_text_bytes.saturating_mul(6).saturating_add(1024 * 1024);
        Self { reader, name, defaults, max_text_bytes, longest, number: 0, line: Vec::new() }
    }

    /// The next line that is not blank, or `None` at the end.
    fn read(&mut self) -> Result<Option<Line>, io::Error> {
        loop {
            self.line.clear();
            self.number += 1;
            let number = self.number;
            let limit = u64::try_from(self.longest).unwrap_or(u64::MAX);
            if self.reader.by_ref().take(limit).read_until(b'\n', &mut self.line)? == 0 {
                return Ok(None);
            }
            if self.line.len() >= self.longest && self.line.last() != Some(&b'\n') {
                let reason = format!("it is longer than {} bytes", self.longest);
                self.reader.skip_until(b'\n')?;
                return Ok(Some(Line::Bad { number, reason }));
            }
            // Without its end, so that an error does not speak of a second line.
            let line = self.line.trim_ascii_end();
            if line.is_empty() {
                continue;
            }
            let draft = std::str::from_utf8(line)
                .map_err(|error| not_utf8(error.valid_up_to()))
                .and_then(|line| {
                    Draft::from_envelope(line, self.defaults).map_err(|error| error.to_string())
                })
                .and_then(|draft| match draft.check(self.max_text_bytes) {
                    Ok(()) => Ok(draft),
                    Err(LibrarianError::DraftRejected { reason, .. }) => Err(reason.to_string()),
                    Err(error) => Err(error.to_string()),
                });
            // The memory of a long line is not kept beside its draft.
            if self.line.capacity() > KEPT_LINE {
                self.line = Vec::new();
            }
            return Ok(Some(match draft {
                Ok(draft) => Line::Draft(draft),
                Err(reason) => Line::Bad { number, reason },
            }));
        }
    }
}

impl<R: BufRead> Iterator for Lines<'_, R> {
    type Item = Result<Line, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().map_err(|error| cannot_read(self.name, &error)).transpose()
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|source| {
        LibrarianError::Io { doing: "read", path: path.to_owned(), source }.into()
    })
}

fn cannot_read(name: &str, error: &io::Error) -> Failure {
    let source = io::Error::new(error.kind(), error.to_string());
    LibrarianError::Io { doing: "read", path: PathBuf::from(name), source }.into()
}

fn not_utf8(valid_up_to: usize) -> String {
    format!("it is not UTF-8 (the first bad byte is at offset {valid_up_to})")
}

/// A text, byte for byte, of at most `limit` bytes.
fn read_text(reader: impl Read, name: &str, limit: usize) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    // One byte more than the limit shows that there is more.
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    reader.take(most).read_to_end(&mut bytes).map_err(|error| cannot_read(name, &error))?;
    if bytes.len() > limit {
        return Err(Failure::bad_input(format!(
            "{name} was not taken: it has more than {limit} bytes; raise the limit with \
             --max-text-bytes"
        )));
    }
    utf8(bytes, name)
}

fn utf8(bytes: Vec<u8>, name: &str) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| {
        let reason = not_utf8(error.utf8_error().valid_up_to());
        Failure::bad_input(format!("{name} was not taken: {reason}"))
    })
}

/// Stage the texts that lie below a path: .md, .markdown and .txt files.
///
/// Hidden directories are not entered and symbolic links not followed. Files that cannot be
/// taken (empty, too large, not UTF-8, unreadable) are named with the reason; the rest goes in.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq sweep ~/notes docs/handoffs
  draftq sweep --path ~/.claude/projects --source-surface claude-memory

Surfaces of a sweep: directory (the default), claude_memory, codex_memory,
repo_handoff, agent_export. A draft's provenance is the file's absolute path as
a file:// URI.")]
pub struct Sweep {
    /// A directory, or a file.
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
        let staging = Staging::new(&paths, &self.provenance, context)?;
        // Nothing asks this one to end: what is not in yet, the next sweep takes.
        let never = Cancellation::default();
        let swept = staging.submit(&context.store()?, context.shows_progress(), &never)?;
        let output = context.output_for_scripts();
        let printed = match output.is_json() {
            true => output.json(&swept),
            false => output.text(&swept.to_text()),
        };
        printed.map_err(|failure| {
            let drafts = swept.drafts.len();
            let stored = count(drafts, "draft");
            failure.although(&format!("{stored} {} stored all the same", are(drafts)))
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A sweep whose paths are there and whose flags make sense.
pub struct Staging {
    found: SweepFiles,
    options: SweepOptions,
}

/// What a sweep did.
#[derive(Debug, Default, Serialize)]
pub struct SweepSummary {
    submitted: usize,
    skipped_empty: usize,
    already_present: usize,
    drafts: Vec<SweptDraft>,
    skipped: Vec<SkippedFile>,
}

#[derive(Debug, Serialize)]
struct SweptDraft {
    #[serde(flatten)]
    submission: Submission,
    provenance_uri: Option<String>,
}

impl Staging {
    /// Walk the paths; nothing is read yet.
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
        options.max_text_bytes = context.global.max_text_bytes;
        Ok(Self { found: draftq::find_sweep_files(paths)?, options })
    }

    /// Read the files and submit them, batch by batch, until that is all or it is to end.
    pub fn submit(
        &self,
        store: &DraftStore,
        with_progress: bool,
        cancellation: &Cancellation,
    ) -> Result<SweepSummary, Failure> {
        let progress = Progress::new(with_progress, self.found.len(), "sweep");
        let mut summary = SweepSummary::default();
        let mut batches = store.batched_submit();
        // Those of the drafts whose answers have not come yet, in their order.
        let mut uris = VecDeque::new();
        for swept in self.found.drafts(&self.options) {
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
            self.drafts.push(SweptDraft { submission: *submission, provenance_uri });
        }
    }

    /// The summary for a person: what went in, and each file that did not.
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
