//! The only writer to standard output: escaping, tables, JSON.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use comfy_table::{ColumnConstraint, ContentArrangement, Row, Table, Width, presets};
use draftq::from_unix_ms;
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use super::failure::Failure;

/// Whether a person reads standard output.
pub fn on_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether to colour what is written there: only on a terminal that can, and not if `NO_COLOR` is
/// set to anything.
pub fn in_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty())
        && std::env::var_os("TERM").is_none_or(|it| it != "dumb")
}

/// Where results go, and in which form.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether results are to be JSON.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// One JSON document on one line.
    pub fn json(self, value: &impl Serialize) -> Result<(), Failure> {
        let document = serde_json::to_string(value)?;
        self.write(&draftq::escape_json(&document), "\n")
    }

    /// JSON Lines, written at once.
    pub fn json_lines<T: Serialize>(self, values: &[T]) -> Result<(), Failure> {
        let mut lines = String::new();
        for value in values {
            lines.push_str(&draftq::escape_json(&serde_json::to_string(value)?));
            lines.push('\n');
        }
        self.write(&lines, "")
    }

    /// Lines for a person.
    pub fn text(self, text: &str) -> Result<(), Failure> {
        self.write(&draftq::escape_text(text), "\n")
    }

    /// Exactly these bytes.
    pub fn bytes(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        Ok(stdout.flush()?)
    }

    fn write(self, text: &str, end: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.write_all(end.as_bytes())?;
        Ok(stdout.flush()?)
    }
}

/// A table that fits the terminal, or 80 columns where there is none; one line a row.
pub struct Sheet {
    table: Table,
    /// Most characters in a cell.
    longest_cell: usize,
}

/// The width of a table where there is no terminal.
const USUAL_WIDTH: u16 = 80;

/// Characters in a cell per column of the table: enough for letters with their combining marks.
const CHARACTERS_PER_COLUMN: usize = 4;

impl Sheet {
    /// A table with these columns. The first `fixed` columns are never shortened.
    pub fn new(columns: &[&str], fixed: usize) -> Self {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_truncation_indicator("…")
            .set_header(columns);
        if !on_terminal() || table.width().is_none() {
            table.set_width(USUAL_WIDTH);
        }
        let width = table.width().unwrap_or(USUAL_WIDTH);
        let longest_cell = usize::from(width) * CHARACTERS_PER_COLUMN;
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            // What is shortened is cut where the room ends, not at a space before it.
            column.set_delimiter('\0');
            if index < fixed {
                column.set_constraint(ColumnConstraint::ContentWidth);
            } else {
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(6)));
            }
        }
        Self { table, longest_cell }
    }

    /// Add a row; each cell is escaped to one line.
    pub fn row<'a>(&mut self, cells: impl IntoIterator<Item = Cow<'a, str>>) {
        let longest = self.longest_cell;
        let cells: Vec<String> = cells
            .into_iter()
            // Before the layout, whose time grows with the square of a cell's length. Before the
            // escaping as well, which makes a text up to ten times as long.
            .map(|cell| cut(&draftq::escape_line(&cut(&cell, longest)), longest).into_owned())
            .collect();
        let mut row = Row::from(cells);
        row.max_height(1);
        self.table.add_row(row);
    }

    /// The table as text, without blanks at the ends of its lines.
    pub fn into_text(self) -> String {
        let lines: Vec<String> =
            self.table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }
}

/// The first so many characters, with an ellipsis if there are more.
fn cut(text: &str, characters: usize) -> Cow<'_, str> {
    match text.char_indices().nth(characters) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

/// A time to the second, UTC.
pub fn time(unix_ms: i64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    OffsetDateTime::from(from_unix_ms(unix_ms)).format(format).unwrap_or_default()
}

/// A time to the minute, UTC, for a column whose title says so.
pub fn minute(unix_ms: i64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]");
    OffsetDateTime::from(from_unix_ms(unix_ms)).format(format).unwrap_or_default()
}

/// A length of time in its two largest units: "3m 20s".
pub fn duration(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        return format!("{} ms", duration.as_millis());
    }
    if duration < Duration::from_secs(10) {
        return format!("{:.1} s", duration.as_secs_f64());
    }
    let whole = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    whole.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A count with its noun, in the plural where it should be.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
