//! The sealed blobs of one run: what is stored of each, and its key, in memory, so that the run itself can read it again.
//!
//! A run works with the digests of the plaintext, as if nothing were sealed: so what it makes of them is what it would have
//! made, and unsealing gives the same bytes back.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::Blob;
use crate::{
    crypt::{self, OwnKey, Recipients},
    digest::Digest,
    error::{At, Result},
};

/// One run's sealed blobs.
pub struct Vault {
    recipients: Recipients,
    blobs: Mutex<BTreeMap<Digest, Kept>>,
}

/// A sealed blob.
struct Kept {
    /// The size of the plaintext.
    size: u64,
    stored: Blob,
    key: OwnKey,
}

impl Vault {
    pub(super) fn new(recipients: Recipients) -> Self {
        Self { recipients, blobs: Mutex::default() }
    }

    pub(super) fn recipients(&self) -> &Recipients {
        &self.recipients
    }

    fn blobs(&self) -> MutexGuard<'_, BTreeMap<Digest, Kept>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keep(&self, plain: Blob, stored: Blob, key: OwnKey) {
        self.blobs().insert(plain.digest, Kept { size: plain.size, stored, key });
    }

    /// The plaintext's size and what is stored of it.
    pub(super) fn stored(&self, plain: &Digest) -> Option<(u64, Blob)> {
        self.blobs().get(plain).map(|kept| (kept.size, kept.stored))
    }

    /// All there are: the plaintext, and what is stored of it, in the order of the plaintext's digests.
    pub(super) fn all(&self) -> Vec<(Blob, Blob)> {
        let plain = |(digest, kept): (&Digest, &Kept)| (Blob { digest: *digest, size: kept.size }, kept.stored);
        self.blobs().iter().map(plain).collect()
    }

    /// The plaintext again, of what is stored at `path`.
    pub(super) fn open(&self, plain: &Digest, path: &Path) -> Result<Option<Box<dyn Read>>> {
        let blobs = self.blobs();
        let Some(kept) = blobs.get(plain) else { return Ok(None) };
        let file = BufReader::with_capacity(1 << 18, File::open(path).at("read", path)?);
        Ok(Some(Box::new(crypt::open(file, &kept.key).map_err(|e| e.at(path))?)))
    }
}
