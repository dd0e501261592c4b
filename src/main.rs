//! The `draftq` command: parse, dispatch, and the one place that turns an error into an exit
//! code. Everything it does, it does through the library's public interface.

#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::failure::Failure;

fn main() -> ExitCode {
    if let Err(failure) = cli::signals::survive_the_file_size_limit() {
        return failure.report();
    }
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return cli::failure::from_clap(error),
    };
    cli::log::start(arguments.quiet());
    match cli::dispatch(arguments) {
        Ok(code) => code,
        // Whoever read our output has seen enough.
        Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
