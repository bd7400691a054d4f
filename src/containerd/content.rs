//! The content store: blobs by digest, shared by all namespaces (`plugins/content/local`).

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    digest::Digest,
    error::{At, Error, Result},
    host::{Host, database},
};

/// A manifest, index or config larger than this is an attack (containerd itself reads at most 8 MiB).
const MAX_DOCUMENT: u64 = 8 << 20;

/// The host's content store.
pub struct Content {
    host: Host,
}

impl Content {
    /// The store of `host`; nothing is opened yet.
    pub fn of(host: &Host) -> Self {
        Self { host: host.clone() }
    }

    /// Where a blob lies if it is there.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.host.root.join("io.containerd.content.v1.content/blobs/sha256").join(digest.to_hex())
    }

    /// Opens a blob; `None` when the store does not have it. Nothing is verified yet.
    pub fn open(&self, digest: &Digest) -> Result<Option<File>> {
        match self.host.inside(&self.path(digest)).and_then(|path| database::open(&path)) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.is_missing_file() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A small document, verified against its digest; `None` when the store does not have it.
    pub fn document(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.open(digest)? else { return Ok(None) };
        read_document(file, &self.path(digest), digest).map(Some)
    }
}

fn read_document(file: File, path: &Path, digest: &Digest) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).at("read", path)?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(Error::malformed(path, "is larger than any index, manifest or config may be (8 MiB)"));
    }
    let found = Digest::of(&bytes);
    if found != *digest {
        return Err(Error::malformed(path, format!("the blob's content has digest {found}: it is damaged")));
    }
    Ok(bytes)
}
