//! Drafts come in: `submit` and `sweep`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use draftq::runner::Cancellation;
use draftq::store::intake::Submission;
use draftq::sweep::{self, SkipReason, SkippedFile, SweepOptions, Swept};
use draftq::{Draft, DraftMetadata, DraftSourceSurface, DraftStore, LibrarianError};
use serde::Serialize;

use super::Context;
use super::failure::{Failure, say};
use super::progress::Progress;
use super::render::{Output, count};

/// A sweep submits this many drafts in one transaction, or as many as have this many bytes.
const BATCH_DRAFTS: usize = 500;
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// At most this many bad lines are named one by one.
const NAMED_LINES: usize = 20;

/// Where the drafts came from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Where drafts came from")]
pub struct Provenance {
    /// The surface that exposed them.
    #[arg(long, value_name = "SURFACE", value_parser = parse_surface)]
    source_surface: Option<DraftSourceSurface>,
    /// The agent that wrote them.
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// The project they belong to.
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// The person on whose behalf they were written.
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// A free label; may be given several times.
    #[arg(long = "tag", value_name = "TAG")]
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
All lines go in, or none.")]
pub struct Submit {
    /// `-`: read the text from standard input, as when it is a pipe and nothing else is given.
    #[arg(value_name = "-", conflicts_with_all = ["text", "file", "jsonl"])]
    stdin: Option<OsString>,
    /// The draft's text.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["file", "jsonl"])]
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
    #[command(flatten)]
    provenance: Provenance,
    /// A URI, path or event id of the source.
    #[arg(long = "provenance", value_name = "URI")]
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
        if self.stdin.as_ref().is_some_and(|word| word != "-") {
            // The word is not repeated: it may be the draft.
            return Err(Failure::usage(
                "submit takes no word but -, for standard input; give a text with --text TEXT, a \
                 file with --file PATH",
            ));
        }
        let text = match (&self.text, &self.file, &self.stdin) {
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
        print_submission(context.output_for_scripts(), &submission)?;
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
        let (drafts, bad) = read_lines(reader, &name, defaults, context.global.max_text_bytes)?;
        for line in bad.iter().take(NAMED_LINES) {
            say(&format!("draftq: {name}, line {}: {}", line.number, line.reason));
        }
        if bad.len() > NAMED_LINES {
            say(&format!("draftq: … and {} more", count(bad.len() - NAMED_LINES, "bad line")));
        }
        if !bad.is_empty() && !self.skip_bad {
            return Err(Failure::bad_input(format!(
                "{} in {name}, so nothing was taken; mend them, or leave them out with --skip-bad",
                count(bad.len(), "bad line"),
            )));
        }
        let submissions = context.store()?.submit_many(&drafts)?;
        let output = context.output_for_scripts();
        if output.is_json() {
            for submission in &submissions {
                output.json(submission)?;
            }
        } else {
            let created = submissions.iter().filter(|submission| submission.created).count();
            let present = submissions.len() - created;
            output.text(&format!(
                "{} submitted, {present} already present, {} left out.",
                count(created, "draft"),
                count(bad.len(), "bad line"),
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_submission(output: Output, submission: &Submission) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(submission);
    }
    let Submission { id, state, created } = submission;
    output.text(&match created {
        true => format!("Submitted draft {id}; it is {state}."),
        false => format!("Draft {id} was submitted before; it is {state}. Nothing was changed."),
    })
}

struct BadLine {
    number: usize,
    reason: String,
}

/// Every draft of a JSONL text, and every line that is none.
fn read_lines(
    mut reader: impl BufRead,
    name: &str,
    defaults: &DraftMetadata,
    max_text_bytes: usize,
) -> Result<(Vec<Draft>, Vec<BadLine>), Failure> {
    // JSON writes a byte as six at the most (\u0000); the rest is for metadata.
    let longest = max_text_bytes.saturating_mul(6).saturating_add(1024 * 1024);
    let (mut drafts, mut bad) = (Vec::new(), Vec::new());
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let limit = u64::try_from(longest).unwrap_or(u64::MAX);
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut line);
        if read.map_err(|error| cannot_read(name, &error))? == 0 {
            break;
        }
        if line.len() >= longest && line.last() != Some(&b'\n') {
            let reason = format!("it is longer than {longest} bytes");
            bad.push(BadLine { number, reason });
            reader.skip_until(b'\n').map_err(|error| cannot_read(name, &error))?;
            continue;
        }
        // Without its end, so that an error does not speak of a second line.
        let line = line.trim_ascii_end();
        if line.is_empty() {
            continue;
        }
        let draft = std::str::from_utf8(line)
            .map_err(|error| not_utf8(error.valid_up_to()))
            .and_then(|line| {
                Draft::from_envelope(line, defaults).map_err(|error| error.to_string())
            })
            .and_then(|draft| match draft.check(max_text_bytes) {
                Ok(()) => Ok(draft),
                Err(LibrarianError::DraftRejected { reason, .. }) => Err(reason.to_string()),
                Err(error) => Err(error.to_string()),
            });
        match draft {
            Ok(draft) => drafts.push(draft),
            Err(reason) => bad.push(BadLine { number, reason }),
        }
    }
    Ok((drafts, bad))
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
        if output.is_json() {
            output.json(&swept)?;
        } else {
            output.text(&swept.to_text())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A sweep whose paths are there and whose flags make sense.
pub struct Staging {
    found: sweep::Found,
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
        if !sweep::is_sweep_surface(metadata.source_surface) {
            return Err(Failure::usage(format!(
                "drafts of the surface {} are not swept from files; use directory, \
                 claude_memory, codex_memory, repo_handoff or agent_export",
                metadata.source_surface.as_str()
            )));
        }
        let mut options = SweepOptions::new(metadata);
        options.max_text_bytes = context.global.max_text_bytes;
        Ok(Self { found: sweep::find(paths)?, options })
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
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for swept in self.found.drafts(&self.options) {
            match swept {
                Swept::Draft(draft) => {
                    bytes += draft.raw_text().len();
                    batch.push(draft);
                }
                Swept::Skipped(file) => {
                    summary.skipped_empty += usize::from(file.reason == SkipReason::Empty);
                    summary.skipped.push(file);
                }
            }
            if batch.len() >= BATCH_DRAFTS || bytes >= BATCH_BYTES {
                summary.take(store, &std::mem::take(&mut batch))?;
                bytes = 0;
            }
            progress.advance();
            if cancellation.is_cancelled() {
                break;
            }
        }
        summary.take(store, &batch)?;
        progress.clear();
        Ok(summary)
    }
}

impl SweepSummary {
    fn take(&mut self, store: &DraftStore, batch: &[Draft]) -> Result<(), Failure> {
        for (draft, submission) in batch.iter().zip(store.submit_many(batch)?) {
            match submission.created {
                true => self.submitted += 1,
                false => self.already_present += 1,
            }
            let provenance_uri = draft.metadata().provenance_uri.clone();
            self.drafts.push(SweptDraft { submission, provenance_uri });
        }
        Ok(())
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
            text.push_str(&draftq::escape::line(&path));
            text.push(' ');
            text.push_str(file.reason.explanation());
            if let Some(detail) = &file.detail {
                text.push_str(&format!(" ({detail})"));
            }
        }
        text
    }
}
