//! Writing a blob: hashed as it passes, synced, and named by its digest once complete.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

use tempfile::TempPath;

use crate::{
    digest::{Digest, Hasher},
    error::{At, Result},
    interrupt,
    sparse::SparseFile,
};

/// Bytes that are in the layout, or in a staging that will land in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// Of the bytes as stored.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
}

/// A blob being written. Dropped before [`BlobWriter::complete`], it leaves nothing.
pub struct BlobWriter {
    dir: PathBuf,
    file: SparseFile,
    path: TempPath,
    hasher: Hasher,
    size: u64,
}

impl BlobWriter {
    pub(super) fn begin(dir: PathBuf) -> Result<Self> {
        let file = tempfile::Builder::new().prefix(".part-").tempfile_in(&dir).at("write into", &dir)?;
        let (file, path) = file.into_parts();
        Ok(Self { file: SparseFile::new(file, dir.clone()), dir, path, hasher: Hasher::default(), size: 0 })
    }

    /// Completes the blob if its digest is `expected`; otherwise it leaves nothing and returns `None`.
    pub fn complete_as(self, expected: &Digest) -> Result<Option<Blob>> {
        if self.hasher.clone().finish() == *expected { self.complete().map(Some) } else { Ok(None) }
    }

    /// What is written so far, to be read while it grows or after it was given up.
    pub fn so_far(&mut self) -> Result<File> {
        self.file.settle().at("write into", &self.dir)?;
        File::open(&self.path).at("read", &self.path)
    }

    /// Flushes, syncs and names the blob. Failures are errors like any other: a full disk shows here at the latest.
    pub fn complete(self) -> Result<Blob> {
        self.file.complete()?.sync_all().at("sync a blob in", &self.dir)?;
        let digest = self.hasher.finish();
        let target = self.dir.join(digest.to_hex());
        fs::rename(&self.path, &target).at("rename a blob to", &target)?;
        // The name is free for another file now; the guard must not remove that one.
        let _ = self.path.keep();
        Ok(Blob { digest, size: self.size })
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        interrupt::check().map_err(|_| io::Error::from(io::ErrorKind::Other))?;
        let taken = self.file.write(bytes)?;
        self.hasher.update(bytes.get(..taken).unwrap_or_default());
        self.size += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
