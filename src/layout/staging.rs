//! One run's private folder inside the layout, on the same file system; gone when the run ends, however it ends.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use tempfile::TempDir;

use super::{
    Blob, BlobWriter, Layout,
    assembly::{Assembled, Assembly},
    copy, private_dirs, read, sync_dir, untar,
};
use crate::{
    digest::Digest,
    error::{At, Error, Result},
    interrupt, ledger,
    sparse::SparseFile,
};

const PREFIX: &str = ".dewar-";

/// True for what a run leaves in a layout only if it was killed.
pub(super) fn is_staging(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// A run's staging folder. Blobs completed in it enter the layout when [`Layout::commit`] takes it.
pub struct Staging {
    layout: Layout,
    dir: TempDir,
    /// Locked as long as we live; so a later run can tell a dead staging folder from a busy one.
    _lock: File,
}

impl Layout {
    /// Begins a run: makes the layout if it is not there, removes what killed runs left, and makes a staging folder.
    pub fn stage(&self) -> Result<Staging> {
        if !self.dir.join("oci-layout").exists() {
            self.clone().create()?;
        }
        let _turn = self.lock()?;
        self.sweep()?;
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&self.dir).at("write into", &self.dir)?;
        let lock = File::open(dir.path()).at("open", dir.path())?;
        lock.lock().at("lock", dir.path())?;
        private_dirs(&dir.path().join("blobs"))?;
        Ok(Staging { layout: self.clone(), dir, _lock: lock })
    }

    /// Removes the staging of runs that were killed. While another run is busy nothing is touched: it may rely on
    /// blobs that a killed one had brought in.
    fn sweep(&self) -> Result<()> {
        let mut dead = Vec::new();
        for entry in fs::read_dir(&self.dir).at("read", &self.dir)? {
            let path = entry.at("read", &self.dir)?.path();
            if !path.file_name().is_some_and(|name| is_staging(&name.to_string_lossy())) {
                continue;
            }
            // A run leaves a folder, or the file that was to replace another; to open anything else could take for ever.
            if !fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir() || m.is_file()) {
                continue;
            }
            match File::open(&path).at("open", &path)?.try_lock() {
                Ok(()) => dead.push(path),
                Err(_) => return Ok(()),
            }
        }
        dead.iter().try_for_each(|staging| self.remove_ruins(staging))
    }

    /// A run killed while it committed may have moved blobs in that no index names.
    fn remove_ruins(&self, staging: &Path) -> Result<()> {
        if let Ok(landing) = fs::read_to_string(staging.join("landing")) {
            let named = read::reachable(self)?;
            let digests = landing.lines().filter_map(|line| line.parse::<Digest>().ok());
            for digest in digests.filter(|d| !named.contains(d)) {
                remove_if_there(&self.blob_path(&digest))?;
            }
        }
        let gone = if staging.is_dir() { fs::remove_dir_all(staging) } else { fs::remove_file(staging) };
        gone.at("remove", staging)
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("remove", path),
        _ => Ok(()),
    }
}

impl Staging {
    /// A new private folder in the staging, for images and other things on their way.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        private_dirs(&path)?;
        Ok(path)
    }

    /// A new private file in the staging.
    pub fn file(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600).open(&path).at("create", path)
    }

    /// A new file in the staging that nobody else can open: it has no name, and is gone with its descriptor.
    pub fn scratch(&self) -> Result<File> {
        tempfile::tempfile_in(self.dir.path()).at("write into", self.dir.path())
    }

    /// A new private file in the staging, to be written at once; zeros take no place.
    pub fn sparse(&self, name: &str) -> Result<SparseFile> {
        Ok(SparseFile::new(self.file(name)?, self.path(name)))
    }

    /// The path of something in the staging.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Begins a blob.
    pub fn blob(&self) -> Result<BlobWriter> {
        BlobWriter::begin(self.dir.path().join("blobs"))
    }

    /// A file of the staging as a blob: synced already, with this digest.
    pub fn adopt(&self, path: &Path, digest: Digest, size: u64) -> Result<Blob> {
        let target = self.path("blobs").join(digest.to_hex());
        fs::rename(path, &target).at("rename a blob to", target)?;
        Ok(Blob { digest, size })
    }

    /// A copy of `from`, which lies at `source`, if its digest is `expected`; otherwise nothing is left of it. `from` is
    /// only read, and nothing is written where the file system can share its blocks.
    pub fn copy_of(&self, from: &File, source: &Path, expected: &Digest) -> Result<Option<Blob>> {
        let dir = self.path("blobs");
        let (file, path) =
            tempfile::Builder::new().prefix(".part-").tempfile_in(&dir).at("write into", &dir)?.into_parts();
        let seen = ledger::look(from);
        let copied = copy::whole(from, &file);
        interrupt::check()?;
        let (digest, size) = copied.at("copy", source)?;
        ledger::hashed("blob", source, seen, digest);
        if digest != *expected {
            return Ok(None);
        }
        file.sync_all().at("sync a blob in", &dir)?;
        let path = path.keep().map_err(|e| e.error).at("keep a blob in", &dir)?;
        self.adopt(&path, digest, size).map(Some)
    }

    /// A tar made of files of this staging, as a blob; the files are used up.
    pub fn assemble(&self, tar: Assembly) -> Result<Blob> {
        if let Some(loose) = &self.layout.loose {
            let (digest, size) = (tar.hash()?, tar.size());
            let tar = tar.moved_to(&self.layout.dir.join("loose").join(digest.to_hex()))?;
            loose.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, tar);
            return Ok(Blob { digest, size });
        }
        let Assembled { path, digest, size } = tar.into_file(&self.folder("assembly")?, true)?;
        let digest = digest.ok_or_else(|| Error::malformed(&path, "has no digest"))?;
        self.adopt(&path, digest, size)
    }

    /// A small blob at once.
    pub fn blob_of(&self, bytes: &[u8]) -> Result<Blob> {
        let mut writer = self.blob()?;
        writer.write_all(bytes).at("write", self.dir.path())?;
        writer.complete()
    }

    /// The blob if the layout or this staging has it already, with the size it should have.
    pub fn has(&self, digest: &Digest, size: u64) -> bool {
        let found = |path: PathBuf| fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.len() == size);
        let is_loose = |loose: &Mutex<BTreeMap<Digest, Assembly>>| {
            loose.lock().unwrap_or_else(PoisonError::into_inner).get(digest).is_some_and(|tar| tar.size() == size)
        };
        self.layout.loose.as_ref().is_some_and(|loose| is_loose(loose))
            || found(self.layout.blob_path(digest))
            || found(self.dir.path().join("blobs").join(digest.to_hex()))
    }

    /// Bytes of a blob of the layout or of this staging.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        fs::read(&path).at("read", path)
    }

    /// Where a blob of this staging, or else of the layout, lies.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        let staged = self.dir.path().join("blobs").join(digest.to_hex());
        if staged.exists() { staged } else { self.layout.blob_path(digest) }
    }

    /// A small blob of the layout, which may be anybody's: bounded, and of a regular file only. Its digest is not checked.
    pub fn landed_document(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.layout.document(digest)
    }

    /// What a tar of the layout unpacks to: its diff id, computed anew.
    pub fn landed_diff_id(&self, digest: &Digest) -> Result<Digest> {
        untar::walk(&self.layout.blob_path(digest), |_| Ok(()))
    }

    /// Moves every completed blob into the layout. The caller holds the layout's lock.
    pub(super) fn land(&self) -> Result<()> {
        let from = self.dir.path().join("blobs");
        let mut names = Vec::new();
        for entry in fs::read_dir(&from).at("read", &from)? {
            names.push(entry.at("read", &from)?.file_name().to_string_lossy().into_owned());
        }
        let digests = names.iter().filter_map(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
        let new: Vec<Digest> = digests.filter(|d| !self.layout.blob_path(d).exists()).collect();
        self.announce(&new)?;
        for digest in &new {
            let target = self.layout.blob_path(digest);
            fs::rename(from.join(digest.to_hex()), &target).at("move a blob to", target)?;
        }
        sync_dir(&self.layout.dir.join("blobs/sha256"))
    }

    fn announce(&self, digests: &[Digest]) -> Result<()> {
        let path = self.path("landing");
        let text: String = digests.iter().map(|d| format!("{d}\n")).collect();
        let mut file = File::create(&path).at("write", &path)?;
        file.write_all(text.as_bytes()).at("write", &path)?;
        file.sync_all().at("sync", &path)
    }

    /// Ends the run.
    pub fn close(self) -> Result<()> {
        let path = self.dir.path().to_owned();
        self.dir.close().at("remove", path)
    }
}
