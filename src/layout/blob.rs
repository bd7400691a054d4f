//! Writing a blob: hashed as it passes, sealed if the run seals, synced, and named by its digest once complete.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
};

use tempfile::TempPath;

use super::vault::Vault;
use crate::{
    crypt::{self, OwnKey, Sealer},
    digest::{Digest, Hasher},
    error::{At, Error, Result},
    interrupt,
    sparse::{self, SparseFile},
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
pub struct BlobWriter(Way);

enum Way {
    /// It is stored as it is.
    Plain(Box<Part>),
    /// What is stored of it is an age file.
    Sealed(Box<Sealing>),
    /// It is read while it grows, and sealed once it is complete; until then it is where other plaintext is.
    Draft(Box<Part>, PathBuf, Arc<Vault>),
}

/// A file that becomes a blob.
struct Part {
    dir: PathBuf,
    file: SparseFile,
    path: TempPath,
    hasher: Hasher,
    size: u64,
}

/// A blob that is sealed as it passes: neither its plaintext nor its key is ever in a file.
struct Sealing {
    sealer: Sealer<Part>,
    dir: PathBuf,
    key: OwnKey,
    vault: Arc<Vault>,
    /// Of the plaintext.
    hasher: Hasher,
    size: u64,
}

impl BlobWriter {
    pub(super) fn begin(dir: PathBuf) -> Result<Self> {
        Part::begin(dir).map(|part| Self(Way::Plain(Box::new(part))))
    }

    pub(super) fn begin_sealed(dir: PathBuf, vault: &Arc<Vault>) -> Result<Self> {
        let (sealer, key) = crypt::seal(vault.recipients(), Part::begin(dir.clone())?).at("seal a blob in", &dir)?;
        let (hasher, vault) = (Hasher::default(), vault.clone());
        Ok(Self(Way::Sealed(Box::new(Sealing { sealer, dir, key, vault, hasher, size: 0 }))))
    }

    /// One in `work` that becomes a sealed blob in `dir`.
    pub(super) fn begin_draft(work: PathBuf, dir: PathBuf, vault: &Arc<Vault>) -> Result<Self> {
        Part::begin(work).map(|part| Self(Way::Draft(Box::new(part), dir, vault.clone())))
    }

    /// What is written so far, to be read while it grows or after it was given up. Of what is sealed as it passes there is
    /// nothing to be read.
    pub fn so_far(&mut self) -> Result<File> {
        match &mut self.0 {
            Way::Plain(part) | Way::Draft(part, ..) => {
                part.file.settle().at("write into", &part.dir)?;
                File::open(&part.path).at("read", &part.path)
            }
            Way::Sealed(sealing) => Err(Error::malformed(&sealing.dir, "a blob there is sealed while it is written")),
        }
    }

    /// Completes the blob if its digest is `expected`; otherwise it leaves nothing and returns `None`.
    pub fn complete_as(self, expected: &Digest) -> Result<Option<Blob>> {
        let hasher = match &self.0 {
            Way::Plain(part) | Way::Draft(part, ..) => &part.hasher,
            Way::Sealed(sealing) => &sealing.hasher,
        };
        if hasher.clone().finish() == *expected { self.complete().map(Some) } else { Ok(None) }
    }

    /// Flushes, syncs and names the blob. Failures are errors like any other: a full disk shows here at the latest.
    ///
    /// Of a sealed blob digest and size are those of its plaintext; the staging knows what is stored of it.
    pub fn complete(self) -> Result<Blob> {
        match self.0 {
            Way::Plain(part) => part.complete(),
            Way::Draft(part, dir, vault) => {
                let mut sealed = Self::begin_sealed(dir, &vault)?;
                // The guard of its name removes it when it is dropped.
                let (file, _path) = (part.file.complete()?, part.path);
                sparse::each_block(&file, "a draft", |block| sealed.write_all(block))?;
                sealed.complete()
            }
            Way::Sealed(sealing) => {
                let Sealing { sealer, dir, key, vault, hasher, size } = *sealing;
                let (part, plain) =
                    (sealer.finish().at("seal a blob in", dir)?, Blob { digest: hasher.finish(), size });
                // The same once more needs no second place; and it would have two digests.
                if vault.stored(&plain.digest).is_none() {
                    vault.keep(plain, part.complete()?, key);
                }
                Ok(plain)
            }
        }
    }
}

impl Part {
    fn begin(dir: PathBuf) -> Result<Self> {
        let file = tempfile::Builder::new().prefix(".part-").tempfile_in(&dir).at("write into", &dir)?;
        let (file, path) = file.into_parts();
        Ok(Self { file: SparseFile::new(file, dir.clone()), dir, path, hasher: Hasher::default(), size: 0 })
    }

    fn complete(self) -> Result<Blob> {
        self.file.complete()?.sync_all().at("sync a blob in", &self.dir)?;
        let digest = self.hasher.finish();
        let target = self.dir.join(digest.to_hex());
        fs::rename(&self.path, &target).at("rename a blob to", &target)?;
        // The name is free for another file now; the guard must not remove that one.
        let _ = self.path.keep();
        Ok(Blob { digest, size: self.size })
    }
}

impl Write for Part {
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

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Way::Plain(part) | Way::Draft(part, ..) => part.write(bytes),
            Way::Sealed(sealing) => {
                let taken = sealing.sealer.write(bytes)?;
                sealing.hasher.update(bytes.get(..taken).unwrap_or_default());
                sealing.size += taken as u64;
                Ok(taken)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Way::Plain(part) | Way::Draft(part, ..) => part.flush(),
            Way::Sealed(sealing) => sealing.sealer.flush(),
        }
    }
}
