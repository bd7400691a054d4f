//! The one error of floor 1: where in the bytes, and why.

use std::fmt;

/// Bytes that do not follow their format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corrupt {
    /// Offset in the parsed buffer, in bytes.
    pub at: usize,
    /// What the format asked for.
    pub why: &'static str,
}

impl Corrupt {
    /// A finding at offset `at`.
    pub fn new(at: usize, why: &'static str) -> Self {
        Self { at, why }
    }
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.at, self.why)
    }
}

impl std::error::Error for Corrupt {}
