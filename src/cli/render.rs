//! Text for people: tables, sizes, and names of any bytes made safe for a terminal.

use std::io::Write;

use dewar::error::{At, Result};

/// A table with a head, its columns as wide as their widest cell.
pub fn table(out: &mut dyn Write, head: &[&str], rows: &[Vec<String>]) -> Result<()> {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|row| row.get(i)).map(|cell| width_of(cell));
        cells.chain([head.get(i).map_or(0, |h| h.len())]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width - width_of(cell) + 2));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        // Many lines at a time: there may be a hundred thousand.
        if text.len() > 1 << 16 {
            out.write_all(text.as_bytes()).at("write", "stdout")?;
            text.clear();
        }
    }
    out.write_all(text.as_bytes()).at("write", "stdout")
}

fn width_of(cell: &str) -> usize {
    if cell.is_ascii() { cell.len() } else { cell.chars().count() }
}

/// One line of the result.
pub fn print(out: &mut dyn Write, line: &str) -> Result<()> {
    writeln!(out, "{line}").at("write", "stdout")
}

/// A document of the result.
pub fn json(out: &mut dyn Write, document: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(document).map_err(std::io::Error::from).at("write", "stdout")?;
    print(out, &text)
}

/// A name from a store with control characters escaped: it must not drive the terminal.
pub fn safe(text: &str) -> String {
    let is_plain = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    if is_plain || !text.contains(char::is_control) {
        return text.to_owned();
    }
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// `1.5 MiB`.
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Warnings on stderr; a closed stderr is nobody's trouble.
pub fn warn(text: &str) {
    let _ = writeln!(std::io::stderr(), "dewar: {}", safe(text));
}
