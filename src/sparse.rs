//! Files whose zeros take no place on the disk: a container may hold a file of a terabyte with nothing in it.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use rustix::fs::SeekFrom;

use crate::{
    error::{At, Result},
    interrupt,
};

/// What is written at once.
const BUFFER: usize = 1 << 20;

/// Zeros are left out in pieces of this size, and at multiples of it: a file system's block, or several.
const PIECE: usize = 64 << 10;

static ZEROS: [u8; PIECE] = [0; PIECE];

/// True if there is nothing but zeros in `bytes`.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(PIECE).all(|piece| ZEROS.get(..piece.len()) == Some(piece))
}

/// Where the next data begins (lseek(2), SEEK_DATA). Past the last data a file ends in a hole, which ENXIO tells.
pub fn next_data(file: &File, at: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data.max(at),
        Err(rustix::io::Errno::NXIO) => u64::MAX,
        // Not every filesystem knows its holes: then all is data.
        Err(_) => at,
    }
}

/// Where the data at `at` ends. Seeking may run ahead of a file that grows; the caller stops at the size it knows.
pub fn next_hole(file: &File, at: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Hole(at)) {
        Ok(hole) if hole > at => hole,
        _ => u64::MAX,
    }
}

/// Files are taken in blocks of this size, counted from their beginning: the same file gives the same blocks.
pub const BLOCK: usize = 1 << 20;

/// Calls `each` with all of `from`, block by block; only the last is shorter. Holes are not read. `what` it is stands in errors.
pub fn each_block(from: &File, what: &str, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
    let (mut block, size) = (vec![0; BLOCK], from.metadata().at("read", what)?.len());
    let (mut at, mut data) = (0, 0);
    while at < size {
        interrupt::check()?;
        // Fits: a block's length at most.
        let len = (size - at).min(BLOCK as u64) as usize;
        if data < at + len as u64 {
            data = next_data(from, at.max(data));
        }
        let block = &mut block[..len];
        if data >= at + len as u64 {
            block.fill(0);
        } else {
            from.read_exact_at(block, at).at("read", what)?;
        }
        let written = each(block);
        interrupt::check()?;
        written.at("store", what)?;
        at += len as u64;
    }
    Ok(())
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

    /// Puts all that is written so far into the file.
    pub fn settle(&mut self) -> io::Result<()> {
        self.pour()?;
        self.file.set_len(self.at)
    }

    fn pour(&mut self) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let put = self.put(&buffer);
        buffer.clear();
        self.buffer = buffer;
        put
    }

    /// Writes what there is between pieces of zeros at once.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (mut from, mut to) = (0, 0);
        while from < bytes.len() {
            // Below PIECE, so it fits.
            let room = PIECE - ((self.at + (to - from) as u64) % PIECE as u64) as usize;
            let piece = &bytes[to..bytes.len().min(to + room)];
            let is_hole = is_zero(piece);
            if !is_hole {
                to += piece.len();
            }
            if is_hole || to == bytes.len() {
                self.file.write_all_at(&bytes[from..to], self.at)?;
                self.at += (to - from) as u64;
                if is_hole {
                    self.at += piece.len() as u64;
                    to += piece.len();
                }
                from = to;
            }
        }
        Ok(())
    }

    /// Writes so many zeros, which takes no time either.
    pub fn skip(&mut self, len: u64) -> io::Result<()> {
        // A few are better written than a call spent.
        if let Some(few) = usize::try_from(len).ok().and_then(|len| ZEROS.get(..len)) {
            return self.write_all(few);
        }
        self.pour()?;
        self.at += len;
        Ok(())
    }
}

impl Write for SparseFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() >= PIECE {
            // As long as this it needs no buffer; and between two calls one may be interrupted.
            let taken = bytes.len().min(BUFFER);
            self.pour()?;
            self.put(&bytes[..taken])?;
            return Ok(taken);
        }
        let taken = bytes.len().min(BUFFER - self.buffer.len());
        self.buffer.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        if self.buffer.len() == BUFFER {
            self.pour()?;
        }
        Ok(taken)
    }

    /// Does nothing: what is buffered is written by [`SparseFile::complete`].
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
            if is_zero(part) { file.skip(part.len() as u64) } else { file.write_all(part) }.unwrap();
        }
        let meta = file.complete().unwrap().metadata().unwrap();
        assert_eq!(meta.len(), right.len() as u64);
        assert!(meta.blocks() * 512 <= 1 << 20, "{} blocks", meta.blocks());
        let mut found = Vec::new();
        temp.reopen().unwrap().read_to_end(&mut found).unwrap();
        assert!(found == right);
    }
}
