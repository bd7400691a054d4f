//! Where every so many lines of the records begin, and what is told before them: who passes over a directory with all below it
//! while a container stands still does not read what is recorded of that.

use super::is_beyond;
use crate::tree::Summary;

/// So many lines lie between two places. In tests few, so that none gets by without.
const EVERY: u64 = if cfg!(test) { 3 } else { 512 };

/// Where a line begins.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The line's path.
    pub path: Vec<u8>,
    /// In the file.
    pub at: u64,
    /// What is before it.
    pub preceding: Preceding,
}

/// All that is told before a line.
#[derive(Debug, Clone, Default)]
pub struct Preceding {
    /// Lines.
    pub lines: u64,
    /// Entries among them.
    pub entries: u64,
    /// Their account.
    pub account: Summary,
}

/// Places, in order.
#[derive(Debug, Default)]
pub struct Index {
    places: Vec<Place>,
    /// Length of all their paths.
    len: usize,
}

/// Longer paths in all are not kept: what follows is read.
const MAX_LEN: usize = 4 << 20;

impl Index {
    /// A line of something in the tree comes next, and before it stands what is `preceding`.
    pub fn note(&mut self, path: &[u8], at: u64, preceding: &Preceding) {
        let last = self.places.last().map(|place| place.preceding.lines);
        if last.is_none_or(|last| preceding.lines - last >= EVERY) && self.len + path.len() <= MAX_LEN {
            self.len += path.len();
            self.places.push(Place { path: path.to_vec(), at, preceding: preceding.clone() });
        }
    }

    /// The last place that is `key`'s or below it, of one who has read so many lines, the last of them `key`'s. What lies there
    /// follows without a gap: only what else was told of a path may stand too early, and of that there is no place.
    pub fn last_below(&self, key: &[u8], read: u64) -> Option<&Place> {
        let (_, ahead) = self.places.split_at(self.places.partition_point(|place| place.preceding.lines < read));
        let below = ahead.partition_point(|place| !is_beyond(&place.path, key));
        ahead.get(below.checked_sub(1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ahead::{
        cut::Shape,
        record::{Line, Record, Records},
    };

    #[test]
    fn the_last_place_below_is_found_whatever_was_told_too_early() {
        let mut out = Records::begin(tempfile::tempfile().unwrap());
        let record = |path: &str| {
            let shape = Shape { may_cut: false, head: 512, body: 0 };
            Record { path: path.into(), sum: 0, shape, stamp: None, seen: None }
        };
        let inside: Vec<String> = (10..30).map(|n| format!("a/{n}")).collect();
        for path in std::iter::once("a").chain(inside.iter().map(String::as_str)) {
            out.put(&record(path)).unwrap();
        }
        for _ in 0..20 {
            out.put_odd(b"socket").unwrap();
        }
        for path in ["a/last", "b", "c", "d", "e", "f"] {
            out.put(&record(path)).unwrap();
        }
        let kept = out.finish().unwrap();
        let place = kept.index.last_below(b"a", 1).unwrap();
        assert_eq!((place.path.as_slice(), place.preceding.entries), (&b"a/last"[..], 21));
        assert_eq!(place.preceding.account.written, 21 * 512);
        let mut read = kept.read().unwrap();
        read.leap(place).unwrap();
        let found: Vec<_> =
            std::iter::from_fn(|| read.line().unwrap()).map(|line: Line| line.path().to_vec()).collect();
        assert_eq!(found, [&b"a/last"[..], b"b", b"c", b"d", b"e", b"f"]);
        // The next place is beyond it.
        assert!(kept.index.last_below(b"b", 43).is_none());
    }

    #[test]
    fn long_paths_do_not_fill_the_memory() {
        let (mut index, path) = (Index::default(), vec![b'a'; MAX_LEN / 3]);
        for n in 0..9 {
            index.note(&path, 0, &Preceding { lines: n * EVERY, ..Preceding::default() });
        }
        assert_eq!(index.places.len(), 3);
    }
}
