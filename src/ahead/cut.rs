//! Where a tar is cut into segments, each of which is compressed by itself.
//!
//! ```text
//! │ head body head body … │ head │ body of a large file, in pieces of 1 MiB │ head body … │
//! ```
//! The places depend on the tar alone, never on time or threads, so that the same files give the same bytes. And they depend
//! on what is near by: after a change the cuts soon fall where they fell before, and what was compressed ahead serves again.

/// No segment is longer.
pub const SEGMENT: u64 = 1 << 20;

/// No segment ends before this length for the sake of a name.
const LEAST: u64 = 256 << 10;

/// Content from this size on has segments of its own.
const LARGE: u64 = 256 << 10;

/// One in so many names may end a segment.
const ONE_IN: u64 = 8;

/// What is known of an entry before its bytes: all that decides on cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// A segment may end before it.
    pub may_cut: bool,
    /// Length of its header.
    pub head: u64,
    /// Length of its content with the padding.
    pub body: u64,
}

impl Shape {
    /// The shape of the entry `path`.
    pub fn of(path: &[u8], head: u64, body: u64) -> Self {
        Self { may_cut: sum(path).is_multiple_of(ONE_IN), head, body }
    }

    /// Length of the whole entry.
    pub fn len(self) -> u64 {
        self.head + self.body
    }
}

/// FNV-1a, with its last bits mixed: a fixed function of the name.
fn sum(path: &[u8]) -> u64 {
    let hash = path
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    hash ^ (hash >> 29)
}

/// Follows a tar and says where to cut it.
#[derive(Debug, Default)]
pub struct Cutter {
    /// Length of the segment so far.
    len: u64,
    /// After so many bytes more there is a cut in any case; and another after so many more.
    ends: [u64; 2],
}

impl Cutter {
    /// An entry begins; true if a segment ends before it.
    pub fn begin(&mut self, entry: Shape) -> bool {
        let is_large = entry.body >= LARGE;
        let together = entry.head + if is_large { 0 } else { entry.body };
        let ends = self.len > 0 && (self.len >= LEAST && entry.may_cut || self.len + together > SEGMENT);
        if ends {
            self.len = 0;
        }
        self.ends = if is_large { [entry.head, entry.body] } else { [0, 0] };
        ends
    }

    /// How many of the next `len` bytes belong to the present segment.
    pub fn room(&self, len: u64) -> u64 {
        let end = if self.ends[0] > 0 { self.ends[0] } else { u64::MAX };
        len.min(SEGMENT - self.len).min(end)
    }

    /// So many bytes follow, no more than there is room for; true if the segment ends after them.
    pub fn add(&mut self, len: u64) -> bool {
        self.len += len;
        let mut ends = self.len == SEGMENT;
        if self.ends[0] > 0 {
            self.ends[0] -= len;
            if self.ends[0] == 0 {
                self.ends = [self.ends[1], 0];
                ends = true;
            }
        }
        if ends {
            self.len = 0;
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begin and length of each segment.
    fn segments(entries: &[(String, u64)]) -> Vec<(u64, u64)> {
        let (mut cutter, mut found, mut start, mut at) = (Cutter::default(), Vec::new(), 0, 0);
        for (path, body) in entries {
            let shape = Shape::of(path.as_bytes(), 512, *body);
            if cutter.begin(shape) {
                found.push((start, at - start));
                start = at;
            }
            let mut left = shape.len();
            while left > 0 {
                let len = cutter.room(left);
                (left, at) = (left - len, at + len);
                if cutter.add(len) {
                    found.push((start, at - start));
                    start = at;
                }
            }
        }
        if at > start {
            found.push((start, at - start));
        }
        found
    }

    #[test]
    fn segments_are_bounded_and_large_content_has_its_own() {
        let entries = [("a".into(), 512), ("b".into(), 5 << 20), ("c".into(), 1536), ("d".into(), LARGE)];
        let found = segments(&entries);
        assert!(found.iter().all(|(_, len)| *len > 0 && *len <= SEGMENT));
        let body = 512 + 512 + 512;
        let pieces: Vec<_> = (0..5).map(|n| (body + n * SEGMENT, SEGMENT)).collect();
        assert_eq!(found[0], (0, body));
        assert_eq!(found[1..6], pieces);
        assert_eq!(
            found.iter().map(|(_, len)| len).sum::<u64>(),
            entries.iter().map(|(_, body)| body + 512).sum::<u64>()
        );
    }

    #[test]
    fn after_a_change_the_cuts_soon_fall_where_they_fell_before() {
        let mut entries: Vec<_> = (0..3000).map(|n| (format!("d/{n:05}"), 512 * (1 + n % 40))).collect();
        let before = segments(&entries);
        entries.insert(100, ("d/00099.new".into(), 5120));
        let after: Vec<_> = segments(&entries).into_iter().map(|(at, len)| (at.wrapping_sub(5632), len)).collect();
        let same = before.iter().filter(|segment| after.contains(segment)).count();
        assert!(before.len() > 50 && same > before.len() - 10, "{same} of {}", before.len());
    }
}
