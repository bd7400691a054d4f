//! Memory of segments that serves again and again: none of it is fetched from the kernel, or cleared, once for each segment.

use super::cut::SEGMENT;

/// Bytes in memory that is kept when they are done with.
#[derive(Default)]
pub struct Bytes {
    /// What was ever needed; behind `len` lies what was there before.
    all: Vec<u8>,
    len: usize,
}

impl Bytes {
    /// None; the memory stays.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.all.get(..self.len).unwrap_or_default()
    }

    /// Room for so many more, to be [`taken`](Self::take) as far as it was filled. There may be anything in it.
    pub fn room(&mut self, more: usize) -> &mut [u8] {
        let end = self.len + more;
        if self.all.is_empty() {
            // Zeros from the kernel, which costs nothing before they are used.
            self.all = vec![0; end.max(SEGMENT as usize)];
        } else if self.all.len() < end {
            self.all.resize(end, 0);
        }
        &mut self.all[self.len..end]
    }

    /// So many bytes of the room were filled.
    pub fn take(&mut self, more: usize) {
        self.len = (self.len + more).min(self.all.len());
    }

    /// These, too.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.take(bytes.len());
    }

    /// So many zeros, too.
    pub fn zeros(&mut self, more: usize) {
        self.room(more).fill(0);
        self.take(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_is_not_seen() {
        let mut bytes = Bytes::default();
        bytes.extend(b"before");
        bytes.clear();
        assert_eq!(bytes.as_slice(), b"");
        bytes.extend(b"ne");
        bytes.zeros(2);
        bytes.room(100).fill(7);
        bytes.take(1);
        assert_eq!(bytes.as_slice(), b"ne\0\0\x07");
        bytes.zeros(3 << 20);
        assert_eq!(bytes.as_slice().len(), 5 + (3 << 20));
        assert!(bytes.as_slice()[5..].iter().all(|byte| *byte == 0));
    }
}
