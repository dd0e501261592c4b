//! The command line: one file per command, with its arguments and its help beside its code.
//! Parts that several commands share are in files of their own.

mod arguments;
mod completions;
mod confirm;
mod context;
mod decide;
mod draft_table;
mod failure;
mod filter;
mod input;
mod jsonl;
mod list;
mod log;
mod messages;
mod output;
mod pause;
mod processing;
mod processor_name;
mod progress;
mod provenance;
mod release;
mod requeue;
mod resume;
mod review;
mod run;
mod run_progress;
mod selection;
mod show;
mod signals;
mod signature;
mod stats;
mod submit;
mod submit_files;
mod submit_jsonl;
mod summary;
mod sweep;
mod table;
mod terminal;
mod unreadable;
mod usage_error;
mod watch;
mod wording;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use self::context::{Context, GlobalOptions};
use self::failure::Failure;

/// A durable local inbox for drafts. Agents and people submit prose; a processor decides about
/// each draft.
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
  0  done                       70  a run met errors, deferrals or a hold
  64 wrong usage                73  cannot create a file or directory
  65 bad input data             74  storage or input/output error
  66 no such draft, file,       75  database busy, try again
     program or database        78  database of another program, of another
  129, 130, 131, 143                version, or that others could change
     ended by a second signal")]
struct Arguments {
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Submit(submit::Submit),
    Sweep(sweep::Sweep),
    Run(run::Run),
    Watch(watch::Watch),
    Pause(pause::Pause),
    Resume(resume::Resume),
    List(list::List),
    Show(show::Show),
    Stats(stats::Stats),
    Review(review::Review),
    Decide(decide::Decide),
    Requeue(requeue::Requeue),
    Release(release::Release),
    Completions(completions::Completions),
}

/// Parse the arguments and run the command. The only place where an error becomes an exit code.
pub fn main() -> ExitCode {
    if let Err(failure) = signals::survive_the_file_size_limit() {
        return failure.report();
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage_error::report(error),
    };
    log::start(arguments.global.quiet());
    match run(arguments) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let context = Context::new(arguments.global);
    match arguments.command {
        Command::Submit(command) => command.run(&context),
        Command::Sweep(command) => command.run(&context),
        Command::Run(command) => command.run(&context),
        Command::Watch(command) => command.run(&context),
        Command::Pause(command) => command.run(&context),
        Command::Resume(command) => command.run(&context),
        Command::List(command) => command.run(&context),
        Command::Show(command) => command.run(&context),
        Command::Stats(command) => command.run(&context),
        Command::Review(command) => command.run(&context),
        Command::Decide(command) => command.run(&context),
        Command::Requeue(command) => command.run(&context),
        Command::Release(command) => command.run(&context),
        Command::Completions(command) => command.run(Arguments::command()),
    }
}
