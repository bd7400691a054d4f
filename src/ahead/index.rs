//! Where every so many lines of the records begin, and what is told before them: who passes over a directory with all below it
//! while a container stands still does not read what is recorded of that.

use super::record::is_beyond;
use crate::tree::Summary;

/// So many lines lie between two places. In tests few, so that none gets by without.
pub const EVERY: u64 = if cfg!(test) { 3 } else { 512 };

/// Where a line begins.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The line's path.
    pub path: Vec<u8>,
    /// In the file.
    pub at: u64,
    /// What is before it.
    pub before: Before,
}

/// All that is told before a line.
#[derive(Debug, Clone, Default)]
pub struct Before {
    /// Lines.
    pub lines: u64,
    /// Entries among them.
    pub entries: u64,
    /// Their account.
    pub account: Summary,
}

/// Places, in order.
#[derive(Debug, Default)]
pub struct Index(Vec<Place>);

impl Index {
    /// The line at `place` comes next.
    pub fn note(&mut self, place: impl FnOnce() -> Place, lines: u64) {
        if lines.is_multiple_of(EVERY) {
            self.0.push(place());
        }
    }

    /// The last place that is `key`'s or below it, of one who has read so many lines, the last of them `key`'s.
    pub fn last_below(&self, key: &[u8], read: u64) -> Option<&Place> {
        let (_, ahead) = self.0.split_at(self.0.partition_point(|place| place.before.lines < read));
        let below = ahead.partition_point(|place| !is_beyond(&place.path, key));
        ahead.get(below.checked_sub(1)?)
    }
}
