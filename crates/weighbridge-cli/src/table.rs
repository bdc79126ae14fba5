//! Plain columns, and fields with a label.
//!
//! What lives here: widths and alignment. What does not: what is in the cells, which is fit for a
//! terminal already (`escape`).

use unicode_width::UnicodeWidthStr;

use crate::paint::Paint;

/// How the cells of a column stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows under a head.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    columns: [(&'static str, Align); N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(columns: [(&'static str, Align); N]) -> Self {
        Table {
            columns,
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// The head and the rows, one line each.
    pub(crate) fn lines(&self, paint: Paint) -> Vec<String> {
        let widths: [usize; N] = std::array::from_fn(|at| {
            let cells = self.rows.iter().map(|row| row[at].width());
            cells
                .chain([self.columns[at].0.width()])
                .max()
                .unwrap_or_default()
        });
        let line = |cells: &[String; N]| {
            let mut line = String::new();
            for (at, cell) in cells.iter().enumerate() {
                let padding = " ".repeat(widths[at] - cell.width());
                let (before, after) = match self.columns[at].1 {
                    Align::Left => ("", &*padding),
                    Align::Right => (&*padding, ""),
                };
                let gap = if at == 0 { "" } else { "  " };
                line.extend([gap, before, cell, after]);
            }
            line.trim_end().to_owned()
        };
        let head = self.columns.map(|(name, _)| name.to_owned());
        let head = paint.bold(&line(&head));
        std::iter::once(head)
            .chain(self.rows.iter().map(line))
            .collect()
    }
}

/// A label and what it is about.
pub(crate) fn field(label: &str, value: &str) -> String {
    format!("{label:<12}{value}")
}

/// `1 tensor`, `2 tensors`.
pub(crate) fn count(number: usize, one: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {one}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paint::PLAIN;

    #[test]
    fn columns_stand_in_line_whatever_is_in_them() {
        let mut table = Table::new([
            ("name", Align::Left),
            ("n", Align::Right),
            ("", Align::Left),
        ]);
        table.row(["漢字".into(), "7".into(), "x".into()]);
        table.row(["a".into(), "1234".into(), String::new()]);
        assert_eq!(
            table.lines(PLAIN),
            ["name     n", "漢字     7  x", "a     1234"]
        );
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!(count(1, "set"), "1 set");
        assert_eq!(count(0, "set"), "0 sets");
    }
}
