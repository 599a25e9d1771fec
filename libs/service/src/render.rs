//! Text pages for a person: lines, and tables with aligned columns.

use std::fmt::{Display, Write as _};

/// Appends a line, formatted as by `format!`, to a `String`.
#[macro_export]
macro_rules! line {
    ($out:expr) => {
        $crate::render::push_line($out, ::std::format_args!(""))
    };
    ($out:expr, $($text:tt)*) => {
        $crate::render::push_line($out, ::std::format_args!($($text)*))
    };
}

/// Implements [`line!`](crate::line).
pub fn push_line(out: &mut String, text: impl Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

/// A text of at most `bytes` bytes; a longer one is cut off there, with `…` after it.
pub(crate) fn cut(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes));
        text.push('…');
    }
    text
}

/// Appends rows in left-aligned columns under their heads, two spaces before each column.
pub fn table(out: &mut String, heads: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = heads.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::from(" ");
        for (cell, width) in cells.zip(&widths) {
            let _ = write!(text, " {cell:<width$} ");
        }
        push_line(out, text.trim_end());
    };
    line(&mut heads.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut out = String::new();
        line!(&mut out, "{} rows", 2);
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        table(
            &mut out,
            &["name", "x"],
            &[row(["a", "1"]), row(["longer", "-"])],
        );
        assert_eq!(out, "2 rows\n  name    x\n  a       1\n  longer  -\n");
    }
}
