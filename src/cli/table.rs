//! Tables for a person.

use std::borrow::Cow;

use comfy_table::{ColumnConstraint, ContentArrangement, Row, Width, presets};

use super::terminal::stdout_is_terminal;

/// The width of a table where there is no terminal.
const DEFAULT_WIDTH: u16 = 80;

/// Characters in a cell per column of the terminal: enough for letters with combining marks.
const CHARACTERS_PER_COLUMN: usize = 4;

/// A table that fits the terminal, or 80 columns where there is none. Each row is one line.
pub struct Table {
    table: comfy_table::Table,
    /// Most characters in a cell.
    longest_cell: usize,
}

impl Table {
    /// A table with these columns. The first `fixed` columns are never shortened.
    pub fn new(columns: &[&str], fixed: usize) -> Self {
        let mut table = comfy_table::Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_truncation_indicator("…")
            .set_header(columns);
        if !stdout_is_terminal() || table.width().is_none() {
            table.set_width(DEFAULT_WIDTH);
        }
        let width = table.width().unwrap_or(DEFAULT_WIDTH);
        let longest_cell = usize::from(width) * CHARACTERS_PER_COLUMN;
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            // Shorten a cell at any character, not only at a space.
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
            // Cells are shortened before the layout, whose time grows with the square of a cell's
            // length, and before the escaping, which makes a text up to ten times as long.
            .map(|cell| {
                shorten(&draftq::escape_line(&shorten(&cell, longest)), longest).into_owned()
            })
            .collect();
        let mut row = Row::from(cells);
        row.max_height(1);
        self.table.add_row(row);
    }

    /// The table as text, without spaces at the ends of its lines.
    pub fn into_text(self) -> String {
        let lines: Vec<String> =
            self.table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }
}

/// The first characters of a text, up to this number, with an ellipsis if there are more.
fn shorten(text: &str, characters: usize) -> Cow<'_, str> {
    match text.char_indices().nth(characters) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}
