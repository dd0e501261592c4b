//! `draftq completions`: completion scripts for shells.

use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

use super::failure::Failure;
use super::output::Output;

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  draftq completions bash > ~/.local/share/bash-completion/completions/draftq")]
pub struct Completions {
    /// The shell to complete commands in.
    shell: Shell,
}

impl Completions {
    /// Print the script for `command`, the whole command line.
    pub fn run(self, mut command: clap::Command) -> Result<ExitCode, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "draftq", &mut script);
        Output::new(false).bytes(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
