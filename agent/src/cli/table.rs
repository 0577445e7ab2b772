//! Aligned columns.

use super::color::{Color, Tint};

/// Spaces between columns.
const GAP: usize = 2;

/// A cell: its text, and how it is tinted.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    tint: Option<Tint>,
    right: bool,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            tint: None,
            right: false,
        }
    }
}

impl Cell {
    /// A tinted cell.
    pub(super) fn tinted(text: impl Into<String>, tint: Tint) -> Self {
        Self {
            tint: Some(tint),
            ..Self::from(text)
        }
    }

    /// A number, to the right of its column.
    pub(super) fn number(number: u64) -> Self {
        Self {
            right: true,
            ..Self::from(number.to_string())
        }
    }

    /// Text to the right of its column.
    pub(super) fn right(text: impl Into<String>) -> Self {
        Self {
            right: true,
            ..Self::from(text)
        }
    }

    /// The same in a tint, if there is one.
    pub(super) fn with(self, tint: Option<Tint>) -> Self {
        Self { tint, ..self }
    }
}

/// Rows under a heading. Widths are counted in characters: names of Kubernetes are ASCII.
#[derive(Debug)]
pub(super) struct Table {
    heading: Vec<Cell>,
    rows: Vec<Vec<Cell>>,
    indent: usize,
}

impl Table {
    /// An empty table.
    pub(super) fn new(heading: &[&str]) -> Self {
        let heading = heading.iter().map(|text| Cell::tinted(*text, Tint::Dim));
        Self {
            heading: heading.collect(),
            rows: Vec::new(),
            indent: 0,
        }
    }

    /// The same, so many spaces from the left.
    pub(super) const fn indented(mut self, indent: usize) -> Self {
        self.indent = indent;
        self
    }

    /// Adds a row.
    pub(super) fn row(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// The lines, each with its end.
    pub(super) fn render(mut self, color: Color) -> String {
        // Numbers stand under the end of their heading.
        for (column, cell) in self.heading.iter_mut().enumerate() {
            let numbers = self.rows.iter().filter_map(|row| row.get(column));
            cell.right = !self.rows.is_empty() && numbers.into_iter().all(|cell| cell.right);
        }
        let rows: Vec<_> = std::iter::once(&self.heading).chain(&self.rows).collect();
        let columns = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in rows {
            text.push_str(&line(row, &widths, self.indent, color));
        }
        text
    }
}

fn line(row: &[Cell], widths: &[usize], indent: usize, color: Color) -> String {
    let mut line = " ".repeat(indent);
    // Spaces are due only when more text comes: no line ends in them.
    let mut due = 0;
    for (cell, width) in row.iter().zip(widths) {
        let pad = width.saturating_sub(cell.text.chars().count());
        if cell.text.is_empty() {
            due += width + GAP;
            continue;
        }
        let before = if cell.right { pad } else { 0 };
        line.push_str(&" ".repeat(due + before));
        match cell.tint {
            Some(tint) => line.push_str(&color.tint(tint, &cell.text)),
            None => line.push_str(&cell.text),
        }
        due = pad - before + GAP;
    }
    line.push('\n');
    line
}
