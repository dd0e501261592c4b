//! The global options, and what follows from them: the store and the form of the output.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, ValueEnum};
use draftq::{DEFAULT_MAX_TEXT_BYTES, DraftStore, StoreOptions};

use super::arguments::zero_or_more;
use super::failure::Failure;
use super::output::Output;
use super::terminal;

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalOptions {
    /// The database file [default: $XDG_DATA_HOME/draftq/drafts.db].
    #[arg(long, global = true, value_name = "PATH", env = "DRAFTQ_DB", hide_env_values = true)]
    #[arg(value_parser = OsStringValueParser::new().map(PathBuf::from))]
    db: Option<PathBuf>,
    /// Print JSON: one document, or JSON Lines.
    #[arg(long, global = true, conflicts_with = "format")]
    json: bool,
    /// How to print results [default: text, but JSON from submit, sweep, run and watch when
    /// standard output is not a terminal].
    #[arg(long, global = true, value_name = "FORMAT")]
    format: Option<Format>,
    /// Show no progress, and log only errors.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// The longest text that submit and sweep accept, in bytes.
    #[arg(long, global = true, value_name = "BYTES", default_value_t = DEFAULT_MAX_TEXT_BYTES)]
    #[arg(env = "DRAFTQ_MAX_TEXT_BYTES", hide_env_values = true)]
    #[arg(value_parser = zero_or_more::<usize>, allow_negative_numbers = true)]
    max_text_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl GlobalOptions {
    /// Whether to show no progress and log only errors.
    pub fn quiet(&self) -> bool {
        self.quiet
    }
}

/// What every command receives.
#[derive(Debug)]
pub struct Context {
    global: GlobalOptions,
}

impl Context {
    pub fn new(global: GlobalOptions) -> Self {
        Self { global }
    }

    /// The store, created if there is none.
    pub fn store(&self) -> Result<DraftStore, Failure> {
        self.open(DraftStore::options())
    }

    /// An existing store, opened read-only.
    pub fn store_to_read(&self) -> Result<DraftStore, Failure> {
        self.open(DraftStore::options().read_only(true))
    }

    /// An existing store, opened to write.
    pub fn store_to_change(&self) -> Result<DraftStore, Failure> {
        self.open(DraftStore::options().create(false))
    }

    fn open(&self, options: StoreOptions) -> Result<DraftStore, Failure> {
        let path = match &self.global.db {
            Some(path) if path.as_os_str().is_empty() => {
                return Err(Failure::usage("--db (or DRAFTQ_DB) is empty; give a path"));
            }
            Some(path) => path.clone(),
            None => default_database()?,
        };
        Ok(options.max_text_bytes(self.global.max_text_bytes).open(path)?)
    }

    /// Output that is text unless JSON was asked for.
    pub fn output(&self) -> Output {
        Output::new(self.global.json || self.global.format == Some(Format::Json))
    }

    /// Output that is JSON if asked for, or if standard output is not a terminal. Scripts that
    /// were written for the file version rely on it.
    pub fn output_for_scripts(&self) -> Output {
        Output::new(match self.global.format {
            Some(format) => format == Format::Json,
            None => self.global.json || !terminal::stdout_is_terminal(),
        })
    }

    pub fn shows_progress(&self) -> bool {
        !self.global.quiet && terminal::stderr_is_terminal()
    }

    /// The longest text that is accepted, in bytes.
    pub fn max_text_bytes(&self) -> usize {
        self.global.max_text_bytes
    }
}

/// `$XDG_DATA_HOME/draftq/drafts.db`, by the XDG Base Directory Specification.
fn default_database() -> Result<PathBuf, Failure> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|it| it.is_absolute());
    let data = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local").join("share")));
    match data {
        Some(data) => Ok(data.join("draftq").join("drafts.db")),
        None => Err(Failure::usage(
            "neither HOME nor XDG_DATA_HOME is set; give the database with --db PATH",
        )),
    }
}
