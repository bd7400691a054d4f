//! Files whose zeros take no place on the disk: a container may hold a file of a terabyte with nothing in it.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use crate::error::{At, Result};

/// What is written at once.
const BUFFER: usize = 1 << 20;

/// Zeros are left out in pieces of this size, and at multiples of it: a file system's block, or several.
const PIECE: usize = 64 << 10;

static ZEROS: [u8; PIECE] = [0; PIECE];

/// True if there is nothing but zeros in `bytes`.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(PIECE).all(|piece| ZEROS.get(..piece.len()) == Some(piece))
}

/// A new file, written from its beginning to its end; pieces of zeros become holes.
pub struct SparseFile {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    /// How much was written before the buffer.
    at: u64,
}

impl SparseFile {
    /// A writer into `file`, which is empty; `path` is its name in errors.
    pub fn new(file: File, path: PathBuf) -> Self {
        Self { file, path, buffer: Vec::with_capacity(BUFFER), at: 0 }
    }

    /// The file, all written; its offset is wherever it was.
    pub fn complete(mut self) -> Result<File> {
        let written = self.pour().and_then(|()| self.file.set_len(self.at));
        written.at("write", &self.path)?;
        Ok(self.file)
    }

    fn pour(&mut self) -> io::Result<()> {
        for piece in self.buffer.chunks(PIECE) {
            if !is_zero(piece) {
                self.file.write_all_at(piece, self.at)?;
            }
            self.at += piece.len() as u64;
        }
        self.buffer.clear();
        Ok(())
    }
}

impl Write for SparseFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BUFFER - self.buffer.len());
        self.buffer.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        if self.buffer.len() == BUFFER {
            self.pour()?;
        }
        Ok(taken)
    }

    /// Does nothing: an incomplete buffer is poured by [`SparseFile::complete`], so that pieces stay at their multiples.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::fs::MetadataExt};

    use super::*;

    #[test]
    fn zeros_take_no_place_and_come_back() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let mut file = SparseFile::new(temp.reopen().unwrap(), temp.path().to_owned());
        let mut right = vec![0; 40 << 20];
        right[..5].copy_from_slice(b"first");
        right[20_000_000] = 7;
        for part in right.chunks(77_777) {
            file.write_all(part).unwrap();
        }
        let meta = file.complete().unwrap().metadata().unwrap();
        assert_eq!(meta.len(), right.len() as u64);
        assert!(meta.blocks() * 512 <= 1 << 20, "{} blocks", meta.blocks());
        let mut found = Vec::new();
        temp.reopen().unwrap().read_to_end(&mut found).unwrap();
        assert!(found == right);
    }
}
