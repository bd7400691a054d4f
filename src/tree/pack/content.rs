//! The content of a file: what is there is read, what is not is zeros, and what cannot be read costs no more than itself.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::{Out, PIECE, Packer};
use crate::{
    error::Result,
    interrupt,
    sparse::{next_data, next_hole},
};

/// What is skipped where a disk cannot be read, and how often before the rest of a file is given up.
const BAD_PIECE: u64 = 4096;
const MAX_BAD_PIECES: u32 = 64;

impl Packer<'_> {
    /// Writes exactly `size` bytes: what the header announced. Holes are not read, but written as the zeros they read as.
    pub(super) fn content(&mut self, path: &[u8], size: u64, file: &File) -> Result<()> {
        let (mut at, mut bad) = (0, 0);
        // Of a hole in a small file there is nothing on the disk either, and to look for it takes longer than to read it.
        if (1..=PIECE as u64).contains(&size) {
            at = self.piece(path, file, at, size, &mut bad)?;
        }
        while at < size {
            let data = next_data(file, at).min(size);
            self.write_zeros(data - at)?;
            let end = next_hole(file, data).min(size);
            at = data;
            while at < end {
                let done = self.piece(path, file, at, end, &mut bad)?;
                if done == 0 {
                    self.distrusted(path, format!("ends after {at} of {size} bytes; the rest is stored as zeros"));
                    return self.write_zeros(size - at);
                }
                at += done;
            }
        }
        Ok(())
    }

    /// Writes some bytes from `at` on, and says how many; 0 at the end of the file.
    fn piece(&mut self, path: &[u8], file: &File, at: u64, end: u64, bad: &mut u32) -> Result<u64> {
        interrupt::check()?;
        let want = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
        let read = match &mut self.out {
            Out::Sink(sink) => {
                let read = sink.read(file, at, &mut self.buf[..want])?;
                self.summary.written += *read.as_ref().unwrap_or(&0) as u64;
                read
            }
            _ => self.copy(file, at, want)?,
        };
        match read {
            Ok(len) => Ok(len as u64),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => self.piece(path, file, at, end, bad),
            Err(e) => self.bad_piece(path, at, end, bad, &e),
        }
    }

    /// The same, through our own memory.
    fn copy(&mut self, file: &File, at: u64, want: usize) -> Result<io::Result<usize>> {
        let mut buf = std::mem::take(&mut self.buf);
        let read = file.read_at(&mut buf[..want], at);
        let written = read.as_ref().map_or(Ok(()), |len| self.write(&buf[..*len]));
        self.buf = buf;
        written.map(|()| read)
    }

    /// A damaged place of a disk costs its own bytes, not the file; a disk that is gone must not be asked for each of them.
    fn bad_piece(&mut self, path: &[u8], at: u64, end: u64, bad: &mut u32, e: &io::Error) -> Result<u64> {
        *bad += 1;
        let len = if *bad > MAX_BAD_PIECES { end - at } else { (BAD_PIECE - at % BAD_PIECE).min(end - at) };
        self.distrusted(path, format!("unreadable at byte {at}: {e}; {len} bytes are stored as zeros"));
        self.write_zeros(len)?;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_stepped_over() {
        let temp = tempfile::tempdir().unwrap();
        let file = File::create(temp.path().join("f")).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"x", 32 << 20).unwrap();
        // Where the filesystem knows holes; elsewhere all is data, which is allowed.
        if next_data(&file, 0) != 0 {
            assert_eq!(next_data(&file, 0), 32 << 20);
            assert!(next_hole(&file, 32 << 20) < 33 << 20);
            assert_eq!(next_data(&file, 33 << 20), u64::MAX);
        }
    }
}
