//! Writes colours in the form that terminals with 16 colours know.
//!
//! crossterm writes the 16 named colours as colours of a palette of 256 (`38;5;3`), which such
//! terminals do not know. Here they become `33`.

use std::io::{self, Write};

/// Collects what is drawn, and writes it when it is flushed.
pub struct Sixteen<W: Write> {
    inner: W,
    drawn: Vec<u8>,
}

impl<W: Write> Sixteen<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, drawn: Vec::new() }
    }
}

impl<W: Write> Write for Sixteen<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.drawn.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let drawn = std::mem::take(&mut self.drawn);
        self.inner.write_all(&translated(&drawn))?;
        self.inner.flush()
    }
}

/// The bytes with the colours of the palette replaced. Escape sequences cannot come from drafts,
/// because their text is escaped.
fn translated(drawn: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(drawn.len());
    let mut rest = drawn;
    while let Some(start) = rest.windows(2).position(|pair| pair == b"\x1b[") {
        let (before, sequence) = rest.split_at(start + 2);
        out.extend_from_slice(before);
        let end = sequence.iter().position(|byte| !byte.is_ascii_digit() && *byte != b';');
        let end = end.unwrap_or(sequence.len());
        let (parameters, after) = sequence.split_at(end);
        match (after.first(), str::from_utf8(parameters)) {
            (Some(b'm'), Ok(parameters)) => {
                out.extend_from_slice(attributes(parameters).as_bytes());
            }
            _ => out.extend_from_slice(parameters),
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out
}

fn attributes(parameters: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    let parts: Vec<&str> = parameters.split(';').collect();
    let mut rest = parts.as_slice();
    while let Some((first, others)) = rest.split_first() {
        if let (ground @ ("38" | "48"), ["5", colour, others @ ..]) = (*first, others)
            && let Ok(colour @ 0..=15) = colour.parse::<u8>()
        {
            let base = if ground == "38" { 30 } else { 40 };
            let bright = if colour >= 8 { 60 - 8 } else { 0 };
            out.push((base + bright + colour).to_string());
            rest = others;
            continue;
        }
        out.push((*first).to_owned());
        rest = others;
    }
    out.join(";")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_of_the_palette_become_the_sixteen() {
        for (drawn, expected) in [
            ("\x1b[38;5;3;49mtext", "\x1b[33;49mtext"),
            ("\x1b[38;5;9m\x1b[48;5;15m", "\x1b[91m\x1b[107m"),
            ("38;5;3m \x1b[38;5;3H\x1b[m\x1b[0m", "38;5;3m \x1b[38;5;3H\x1b[m\x1b[0m"),
            ("\x1b[38;5;200m\x1b[1;1", "\x1b[38;5;200m\x1b[1;1"),
            ("Grüße\x1b[", "Grüße\x1b["),
        ] {
            let out = translated(drawn.as_bytes());
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }
}
