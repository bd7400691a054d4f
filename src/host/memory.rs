//! Memory for a file that is read whole.
//!
//! To get memory for a large file page by page takes longer than to read it; in huge pages (2 MiB) it takes next to nothing.
//! Where the system gives none (`never` in `/sys/kernel/mm/transparent_hugepage/enabled`) the pages are small, and all else is
//! the same.

use std::io;

use memmap2::{Advice, MmapMut};

/// Bytes that were read.
pub(super) struct Memory {
    map: MmapMut,
    /// So many of them are filled.
    filled: usize,
}

impl Memory {
    /// Room for `room` bytes, filled by `fill`, which tells how many there were. What cannot be had is an error.
    pub fn filled(room: usize, fill: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<Self> {
        let mut map = MmapMut::map_anon(room)?;
        // A wish: where it is not granted, nothing is lost but time.
        let _ = map.advise(Advice::HugePage);
        let filled = fill(&mut map)?;
        Ok(Self { map, filled })
    }
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        self.map.get(..self.filled).unwrap_or(&self.map)
    }
}
