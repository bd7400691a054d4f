//! Text for people: tables, sizes, and names of any bytes made safe for a terminal.

use std::{borrow::Cow, io::Write};

use dewar::{
    error::{At, Result},
    shares,
};

/// One line of a table.
pub type Cells<'r, const N: usize> = [Cow<'r, str>; N];

/// A table with a head, its columns as wide as their widest cell; the first `left_out` columns are not shown. `cells` makes a
/// line of a row, twice: a hundred thousand are not kept.
pub fn table<R: Sync, const N: usize>(
    out: &mut dyn Write,
    left_out: usize,
    head: [&str; N],
    rows: &[R],
    cells: for<'r> fn(&'r R) -> Cells<'r, N>,
) -> Result<()> {
    let mut widths = head.map(str::len);
    let widest = |rows: &[R]| rows.iter().fold([0; N], |widths, row| wider(widths, cells(row).map(|c| width_of(&c))));
    for share in shared(rows, widest) {
        widths = wider(widths, share);
    }
    let text = |rows: &[R]| {
        let mut text = String::new();
        rows.iter().for_each(|row| line(&mut text, left_out, widths, &cells(row)));
        text
    };
    let mut first = String::new();
    line(&mut first, left_out, widths, &head.map(Cow::Borrowed));
    out.write_all(first.as_bytes()).at("write", "stdout")?;
    // Many lines at a time, but not all: there may be a hundred thousand.
    for some in rows.chunks(AT_ONCE) {
        shared(some, text).iter().try_for_each(|text| out.write_all(text.as_bytes())).at("write", "stdout")?;
    }
    Ok(())
}

/// So many rows are made into text at once.
const AT_ONCE: usize = 1 << 14;

/// Fewer are not worth a thread.
const FEW: usize = 1 << 10;

/// What `work` makes of the rows, each core with a share of them; in order.
fn shared<R: Sync, T: Send>(rows: &[R], work: impl Fn(&[R]) -> T + Sync) -> Vec<T> {
    let parts: Vec<&[R]> = rows.chunks(rows.len().div_ceil(shares::cores()).max(FEW)).collect();
    shares::of(&parts, |share| work(share))
}

fn wider<const N: usize>(one: [usize; N], other: [usize; N]) -> [usize; N] {
    std::array::from_fn(|n| one[n].max(other[n]))
}

fn line<const N: usize>(text: &mut String, left_out: usize, widths: [usize; N], row: &Cells<'_, N>) {
    for (cell, width) in row.iter().zip(widths).skip(left_out) {
        text.push_str(cell);
        text.extend(std::iter::repeat_n(' ', width - width_of(cell) + 2));
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
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
pub fn safe(text: &str) -> Cow<'_, str> {
    // Looked at as a whole, not up to the first: so it goes many bytes at a time.
    let is_plain = text.bytes().fold(true, |is_plain, b| is_plain & (b' '..=b'~').contains(&b));
    if is_plain || !text.contains(char::is_control) {
        return Cow::Borrowed(text);
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
