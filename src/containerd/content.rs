//! The content store: blobs by digest, shared by all namespaces (`plugins/content/local`).
//!
//! ```text
//! <root>/io.containerd.content.v1.content/blobs/sha256/<hex>
//! <root>/io.containerd.content.v1.content/ingest/<sha256 of the ref>/{ref,data,startedat,updatedat,total}
//! ```

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::{
    digest::Digest,
    error::{At, Error, Result},
    host::{Host, database},
    ledger,
};

/// A manifest, index or config larger than this is an attack (containerd itself reads at most 8 MiB).
const MAX_DOCUMENT: u64 = 8 << 20;

/// The host's content store.
pub struct Content {
    host: Host,
}

/// A file of the store that is, or should be, a blob.
#[derive(Debug)]
pub struct BlobFile {
    /// Where it lies.
    pub path: PathBuf,
    /// What its name says; `None` if that is no digest of ours.
    pub digest: Option<Digest>,
    /// Its length in bytes; `None` if it is no regular file.
    pub size: Option<u64>,
}

/// A download that was begun.
#[derive(Debug)]
pub struct Ingest {
    /// Its directory.
    pub path: PathBuf,
    /// What containerd calls it (`<ns>/<n>/<ref>`), if that can be read.
    pub name: Option<String>,
    /// How much is there, in bytes.
    pub size: u64,
    /// When it last grew, as written by containerd (RFC 3339), if that can be read.
    pub updated: Option<String>,
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

    fn dir(&self) -> Result<PathBuf> {
        self.host.inside(&self.host.root.join("io.containerd.content.v1.content"))
    }

    /// Calls `each` with every file below `blobs/`, whatever it is; none is opened.
    pub fn for_each_file(&self, mut each: impl FnMut(BlobFile)) -> Result<()> {
        for path in names(&self.dir()?.join("blobs"))? {
            if path.ends_with("blobs/sha256") {
                for path in names(&path)? {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    let digest = format!("sha256:{name}").parse().ok();
                    each(BlobFile { size: regular(&path), digest, path });
                }
            } else {
                each(BlobFile { size: regular(&path), digest: None, path });
            }
        }
        Ok(())
    }

    /// The downloads that were begun and not ended.
    pub fn ingests(&self) -> Result<Vec<Ingest>> {
        let all = names(&self.dir()?.join("ingest"))?.into_iter();
        Ok(all.map(ingest).collect())
    }
}

/// The entries of a directory, in order; none if it is not there, or is a link.
fn names(dir: &Path) -> Result<Vec<PathBuf>> {
    match fs::symlink_metadata(dir) {
        Ok(meta) if meta.is_dir() => {}
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).at("look at", dir),
        _ => return Ok(Vec::new()),
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).at("read", dir)? {
        all.push(entry.at("read", dir)?.path());
    }
    all.sort_unstable();
    Ok(all)
}

/// The length of a regular file.
fn regular(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file).map(|meta| meta.len())
}

fn ingest(path: PathBuf) -> Ingest {
    let text = |name: &str| {
        let file = path.join(name);
        regular(&file).filter(|size| *size < 1 << 16)?;
        let text = String::from_utf8(database::bounded("document", &file, 1 << 16).ok()?).ok()?;
        Some(text.trim().to_owned())
    };
    let (name, updated) = (text("ref"), text("updatedat"));
    Ingest { name, updated, size: regular(&path.join("data")).unwrap_or(0), path }
}

fn read_document(file: File, path: &Path, digest: &Digest) -> Result<Vec<u8>> {
    let (seen, mut bytes) = (ledger::look(&file), Vec::new());
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).at("read", path)?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(Error::malformed(path, "is larger than any index, manifest or config may be (8 MiB)"));
    }
    let found = Digest::of(&bytes);
    ledger::hashed("blob", path, seen, found);
    if found != *digest {
        return Err(Error::malformed(path, format!("the blob's content has digest {found}: it is damaged")));
    }
    Ok(bytes)
}
