//! A question to the person at the terminal.

use std::io;

use super::failure::Failure;
use super::input::cannot_read;
use super::messages::write_to_stderr;

/// Ask on the terminal; anything but yes is no.
pub fn asked(question: &str) -> Result<bool, Failure> {
    write_to_stderr(&format!("{question} [y/N] "));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| cannot_read("the answer", error))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
