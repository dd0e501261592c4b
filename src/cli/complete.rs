//! Completions for shells.

use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Arguments;
use super::failure::Failure;
use super::render::Output;

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  draftq completions bash > ~/.local/share/bash-completion/completions/draftq")]
pub struct Completions {
    /// Which shell.
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "draftq", &mut script);
        Output::new(false).bytes(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
