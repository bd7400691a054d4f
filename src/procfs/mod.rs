//! Texts of procfs, as proc(5) and the kernel's `fs/proc/` have them: bytes in, values out.
//!
//! What is read here was written by the kernel, but names in it are the container's, of any bytes; and of a bundle,
//! anybody's.

pub mod map;
pub mod net;
pub mod process;

/// The number that stands before the first byte that is no digit of it.
fn number(text: &[u8], radix: u32) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    // `+5` is no number of the kernel's.
    text.bytes().next().filter(u8::is_ascii_hexdigit)?;
    u64::from_str_radix(text, radix).ok()
}

/// The words of a line.
fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// The lines of a text.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&b| b == b'\n').filter(|line| !line.is_empty())
}
