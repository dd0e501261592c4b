//! The command line, one file per stage of a draft's life, each command beside its arguments.

mod complete;
pub mod failure;
mod intake;
pub mod log;
mod look;
mod operate;
mod progress;
mod render;
pub mod signals;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand, ValueEnum};
use draftq::DEFAULT_MAX_TEXT_BYTES;
use draftq::DraftStore;
use draftq::StoreOptions;

use self::failure::Failure;
use self::render::Output;

/// A durable local inbox for drafts: agents and people submit prose, a processor decides what
/// becomes of it, and nothing is lost or trusted in between.
#[derive(Debug, Parser)]
#[command(
    name = "draftq",
    bin_name = "draftq",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = "\
Examples:
  draftq submit --text 'The staging database moved to port 5433.'
  draftq sweep ~/notes
  draftq run -- ./judge
  draftq list --state quarantined

Exit codes:
  0  done                       70  the run met errors, or drafts were deferred
  64 wrong usage                73  cannot create a file or directory
  65 bad input data             74  storage or input/output error
  66 no such draft, file or     75  database busy, try again
     database                   78  database of another program, of another
  129, 130, 131, 143                version, or that others could change
     ended by a second signal")]
pub struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// The database file [default: $XDG_DATA_HOME/draftq/drafts.db].
    #[arg(long, global = true, value_name = "PATH", env = "DRAFTQ_DB", hide_env_values = true)]
    #[arg(value_parser = OsStringValueParser::new().map(PathBuf::from))]
    db: Option<PathBuf>,
    /// Print JSON, for programs: one document, or JSON Lines.
    #[arg(long, global = true, conflicts_with = "format")]
    json: bool,
    /// How to print results [default: text, but JSON from submit, sweep, run and watch when
    /// standard output is not a terminal].
    #[arg(long, global = true, value_name = "FORMAT")]
    format: Option<Format>,
    /// No progress, and of the log only errors.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// The longest text that is taken in, in bytes.
    #[arg(long, global = true, value_name = "BYTES", default_value_t = DEFAULT_MAX_TEXT_BYTES)]
    #[arg(env = "DRAFTQ_MAX_TEXT_BYTES", hide_env_values = true, value_parser = from_zero::<usize>)]
    #[arg(allow_negative_numbers = true)]
    max_text_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    Submit(intake::Submit),
    Sweep(intake::Sweep),
    Run(work::Run),
    Watch(work::Watch),
    List(look::List),
    Show(look::Show),
    Stats(look::Stats),
    Requeue(operate::Requeue),
    Completions(complete::Completions),
}

impl Arguments {
    /// Whether progress and log are to be kept down.
    pub fn quiet(&self) -> bool {
        self.global.quiet
    }
}

/// Run the command that was asked for.
pub fn dispatch(arguments: Arguments) -> Result<ExitCode, Failure> {
    let context = Context { global: arguments.global };
    match arguments.command {
        Command::Submit(command) => command.run(&context),
        Command::Sweep(command) => command.run(&context),
        Command::Run(command) => command.run(&context),
        Command::Watch(command) => command.run(&context),
        Command::List(command) => command.run(&context),
        Command::Show(command) => command.run(&context),
        Command::Stats(command) => command.run(&context),
        Command::Requeue(command) => command.run(&context),
        Command::Completions(command) => command.run(),
    }
}

/// What every command has to hand.
#[derive(Debug)]
struct Context {
    global: Global,
}

impl Context {
    /// The store, opened as the global options say, and created if there is none.
    fn store(&self) -> Result<DraftStore, Failure> {
        self.open(DraftStore::options())
    }

    /// The store that is there, to be read only.
    fn store_to_read(&self) -> Result<DraftStore, Failure> {
        self.open(DraftStore::options().read_only(true))
    }

    /// The store that is there, to be changed.
    fn store_to_change(&self) -> Result<DraftStore, Failure> {
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
    fn output(&self) -> Output {
        Output::new(self.global.json || self.global.format == Some(Format::Json))
    }

    /// Output that is JSON also when nobody is there to read text: that of the commands that
    /// scripts of the file version call.
    fn output_for_scripts(&self) -> Output {
        let text = self.global.format == Some(Format::Text);
        Output::new(
            !text && (self.global.json || self.global.format.is_some() || !render::on_terminal()),
        )
    }

    fn shows_progress(&self) -> bool {
        use std::io::IsTerminal as _;
        !self.global.quiet && std::io::stderr().is_terminal()
    }
}

/// A number as an argument; the standard library's own errors speak of digits and types.
fn from_zero<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number, 0 or more".to_owned())
}

/// The same for a type that has no zero.
fn from_one<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number, 1 or more".to_owned())
}

/// A wait of so many seconds, or of 136 years: more would be past the end of the clock.
fn seconds(number: u64) -> Duration {
    Duration::from_secs(number.min(u32::MAX.into()))
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
            "neither HOME nor XDG_DATA_HOME is set; say where the database is with --db PATH",
        )),
    }
}
