//! `draftq submit`: one text, or many drafts from a JSONL text.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use draftq::{Draft, DraftMetadata, DraftSourceSurface, Submission};

use super::arguments::utf8_argument;
use super::context::Context;
use super::failure::Failure;
use super::input::{open, read_text, utf8};
use super::output::Output;
use super::provenance::Provenance;
use super::submit_jsonl::submit_jsonl;
use super::terminal::stdin_is_terminal;

/// Submit one draft, or many.
///
/// The same text from the same source is the same draft. Submitting it again adds nothing, changes
/// nothing, and says which state it is in.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  draftq submit --text 'The staging database moved to port 5433.' --agent claude
  draftq submit --file notes.md --project billing --tag handoff
  git log -1 --format=%B | draftq submit --source-surface repo-handoff
  draftq submit --jsonl drafts.jsonl

Each line of a JSONL file is an envelope: {\"raw_text\":\"…\"}, and optionally
source_surface, source_agent, source_project, operator, provenance_uri,
context_tags, submitted_at_unix_ms. What a line leaves out comes from the flags.

Lines are stored in batches, so that others can write in between. An id is
printed when its draft is stored durably. At the first bad line it stops: the
lines before it are stored, the lines after it are checked and not stored.
Correct the bad lines and submit the file again: only what is missing is added.
With --atomic all lines are stored, or none.")]
pub struct Submit {
    /// `-` reads the text from standard input. This is the default if standard input is not a
    /// terminal and no other source is given.
    #[arg(value_name = "-", conflicts_with_all = ["text", "file", "jsonl"])]
    stdin: Vec<OsString>,
    /// The draft's text.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["file", "jsonl"])]
    #[arg(allow_hyphen_values = true)]
    text: Option<OsString>,
    /// Read the text from a file; it is kept byte for byte.
    #[arg(long, value_name = "PATH", conflicts_with = "jsonl")]
    file: Option<PathBuf>,
    /// Read many drafts, one JSON envelope per line; `-` is standard input.
    #[arg(long, value_name = "PATH")]
    jsonl: Option<PathBuf>,
    /// With --jsonl: leave out bad lines, and store the others.
    #[arg(long, requires = "jsonl", conflicts_with_all = ["text", "file", "stdin"])]
    skip_bad: bool,
    /// With --jsonl: store all lines in one transaction, or none. No other process can write while
    /// the input is read, so do not use it with a slow pipe.
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
            Some(path) => submit_jsonl(path, &metadata, self.atomic, self.skip_bad, context),
            None => self.submit_one(metadata, context),
        }
    }

    fn submit_one(&self, metadata: DraftMetadata, context: &Context) -> Result<ExitCode, Failure> {
        let text = self.read_text(context.max_text_bytes())?;
        let draft = Draft::with_metadata(text, metadata);
        let submission = context.store()?.submit(&draft)?;
        print(context.output_for_scripts(), &submission).map_err(|failure| {
            let Submission { id, state, .. } = submission;
            failure.although(&format!("but draft {id} is stored (it is {state})"))
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn read_text(&self, limit: usize) -> Result<String, Failure> {
        if !self.stdin.is_empty() && self.stdin != ["-"] {
            // The words are not repeated, because they may be the draft.
            return Err(Failure::usage(
                "the only word that submit accepts is - (standard input); give a text with \
                 --text 'TEXT' (in quotes), or a file with --file PATH",
            ));
        }
        match (&self.text, &self.file, self.stdin.first()) {
            (Some(text), ..) => utf8(text.clone().into_encoded_bytes(), "the text"),
            (_, Some(path), _) if path != Path::new("-") => {
                read_text(open(path)?, &format!("the file {}", path.display()), limit)
            }
            (_, None, None) if stdin_is_terminal() => Err(Failure::usage(
                "there is no text; give --text TEXT, --file PATH, --jsonl PATH, or a text on \
                 standard input",
            )),
            _ => read_text(io::stdin().lock(), "standard input", limit),
        }
    }
}

fn print(output: Output, submission: &Submission) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(submission);
    }
    let Submission { id, state, created, .. } = submission;
    output.text(&match created {
        true => format!("Submitted draft {id}; it is {state}."),
        false => format!("Draft {id} was submitted before; it is {state}. Nothing was changed."),
    })
}
