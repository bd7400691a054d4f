//! One run's private folder inside the layout, on the same file system; gone when the run ends, however it ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tempfile::TempDir;

use super::{
    Blob, BlobWriter, Layout,
    assembly::{Assembled, Assembly},
    copy, open_regular, private_dirs, read, sync_dir, untar,
    vault::Vault,
};
use crate::{
    digest::{Digest, Hasher},
    error::{At, Error, Result},
    interrupt, ledger,
    sparse::{self, SparseFile},
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
    /// Where what is no blob yet is written, if not there: elsewhere, as on a file system in memory.
    work: Option<TempDir>,
    /// Locked as long as we live; so a later run can tell a dead staging folder from a busy one.
    _locks: Vec<File>,
    /// The sealed blobs, if the run seals.
    vault: Option<Arc<Vault>>,
}

impl Layout {
    /// Begins a run: makes the layout if it is not there, removes what killed runs left, and makes a staging folder.
    pub fn stage(&self) -> Result<Staging> {
        if !self.dir.join("oci-layout").exists() {
            self.clone().create()?;
        }
        let _turn = self.lock()?;
        self.sweep()?;
        let (dir, lock) = folder(&self.dir)?;
        private_dirs(&dir.path().join("blobs"))?;
        let mut locks = vec![lock];
        let work = match &self.work {
            Some(place) => {
                sweep_work(place)?;
                let (work, lock) = folder(place)?;
                locks.push(lock);
                Some(work)
            }
            None => None,
        };
        let vault = self.recipients.clone().map(|recipients| Arc::new(Vault::new(recipients)));
        Ok(Staging { layout: self.clone(), dir, work, _locks: locks, vault })
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

/// A folder of this run's in `place`, locked.
fn folder(place: &Path) -> Result<(TempDir, File)> {
    loop {
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(place).at("write into", place)?;
        // Another run that sweeps this place may take it for a dead one's until it is locked.
        match File::open(dir.path()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            opened => {
                let lock = opened.at("open", dir.path())?;
                lock.lock().at("lock", dir.path())?;
                if dir.path().exists() {
                    return Ok((dir, lock));
                }
            }
        }
    }
}

/// Removes what killed runs left in a place that is no layout: it is plaintext. Each is locked as long as its run lives, and
/// another user's is left alone.
fn sweep_work(place: &Path) -> Result<()> {
    for entry in fs::read_dir(place).at("read", place)? {
        let path = entry.at("read", place)?.path();
        let is_ours = path.file_name().is_some_and(|name| is_staging(&name.to_string_lossy()));
        if !is_ours || !fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            continue;
        }
        if let Ok(dir) = File::open(&path)
            && dir.try_lock().is_ok()
        {
            match fs::remove_dir_all(&path) {
                // Another run that swept was sooner.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                removed => removed.at("remove", &path)?,
            }
        }
    }
    Ok(())
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
        let path = self.path(name);
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
        let dir = self.path("");
        tempfile::tempfile_in(&dir).at("write into", dir)
    }

    /// A new private file in the staging, to be written at once; zeros take no place.
    pub fn sparse(&self, name: &str) -> Result<SparseFile> {
        Ok(SparseFile::new(self.file(name)?, self.path(name)))
    }

    /// The path of something in the staging.
    pub fn path(&self, name: &str) -> PathBuf {
        self.work.as_ref().unwrap_or(&self.dir).path().join(name)
    }

    /// Where blobs wait.
    fn blobs(&self) -> PathBuf {
        self.dir.path().join("blobs")
    }

    /// Begins a blob; it is sealed if the run seals.
    pub fn blob(&self) -> Result<BlobWriter> {
        match &self.vault {
            Some(vault) => BlobWriter::begin_sealed(self.blobs(), vault),
            None => BlobWriter::begin(self.blobs()),
        }
    }

    /// The same of one that is to be read while it grows: it is sealed only when it is complete.
    pub fn draft(&self) -> Result<BlobWriter> {
        match &self.vault {
            Some(vault) => BlobWriter::begin_draft(self.folder("drafts")?, self.blobs(), vault),
            None => self.blob(),
        }
    }

    /// Begins a blob that nobody has to hide, as those of the base image: it is stored as it is, whether or not the run seals.
    pub fn plain_blob(&self) -> Result<BlobWriter> {
        BlobWriter::begin(self.blobs())
    }

    /// A file of the staging as a blob, holes and all; it is used up.
    pub fn take_in(&self, file: &File, path: &Path, size: u64) -> Result<Blob> {
        if self.vault.is_some() {
            let mut blob = self.blob()?;
            sparse::each_block(file, "what is to be sealed", |block| blob.write_all(block))?;
            fs::remove_file(path).at("remove", path)?;
            return blob.complete();
        }
        let mut hasher = Hasher::default();
        sparse::each_block(file, "what is to be stored", |block| {
            hasher.update(block);
            Ok(())
        })?;
        file.sync_all().at("sync", path)?;
        self.adopt(path, hasher.finish(), size)
    }

    /// A file of the staging as a blob: synced already, with this digest.
    fn adopt(&self, path: &Path, digest: Digest, size: u64) -> Result<Blob> {
        let target = self.blobs().join(digest.to_hex());
        fs::rename(path, &target).at("rename a blob to", target)?;
        Ok(Blob { digest, size })
    }

    /// A copy of `from`, which lies at `source`, if its digest is `expected`; otherwise nothing is left of it. `from` is
    /// only read, and nothing is written where the file system can share its blocks.
    pub fn copy_of(&self, from: &File, source: &Path, expected: &Digest) -> Result<Option<Blob>> {
        let dir = self.blobs();
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
        if self.vault.is_some() {
            let mut blob = self.blob()?;
            tar.stream(&mut blob)?;
            tar.remove_content()?;
            return blob.complete();
        }
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
        self.fill(self.blob()?, bytes)
    }

    /// The same of [`Staging::plain_blob`].
    pub fn plain_blob_of(&self, bytes: &[u8]) -> Result<Blob> {
        self.fill(self.plain_blob()?, bytes)
    }

    fn fill(&self, mut writer: BlobWriter, bytes: &[u8]) -> Result<Blob> {
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
            || self.stored(digest).is_some_and(|(own, _)| own == size)
            || found(self.layout.blob_path(digest))
            || found(self.blobs().join(digest.to_hex()))
    }

    /// Bytes of a blob of the layout or of this staging; of a sealed one, of its plaintext.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(digest)?.read_to_end(&mut bytes).at("read", self.blob_path(digest))?;
        Ok(bytes)
    }

    /// A blob of this staging, or else of the layout, to be read; of a sealed one, its plaintext.
    pub fn open(&self, digest: &Digest) -> Result<Box<dyn Read>> {
        let path = self.blob_path(digest);
        let sealed = self.vault.as_ref().map(|vault| vault.open(digest, &path)).transpose()?.flatten();
        sealed.map_or_else(|| Ok(Box::new(open_regular(&path)?) as _), Ok)
    }

    /// Where a blob of this staging, or else of the layout, lies; of a sealed one, what is stored of it.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        let staged = self.blobs().join(self.stored(digest).map_or(*digest, |(_, stored)| stored.digest).to_hex());
        if staged.exists() { staged } else { self.layout.blob_path(digest) }
    }

    /// To how many recipients the run seals.
    pub fn recipients(&self) -> Option<usize> {
        self.vault.as_ref().map(|vault| vault.recipients().count())
    }

    /// Of a sealed blob the plaintext's size, and what is stored of it.
    pub fn stored(&self, plain: &Digest) -> Option<(u64, Blob)> {
        self.vault.as_ref()?.stored(plain)
    }

    /// All sealed blobs, each with what is stored of it, in the order of the plaintexts' digests.
    pub fn sealed(&self) -> Vec<(Blob, Blob)> {
        self.vault.as_ref().map(|vault| vault.all()).unwrap_or_default()
    }

    /// The blobs of this staging that are stored as they are, by digest.
    pub fn plain(&self) -> Result<Vec<Blob>> {
        let sealed: BTreeSet<Digest> = self.sealed().iter().map(|(_, stored)| stored.digest).collect();
        let (dir, mut found) = (self.blobs(), Vec::new());
        for entry in fs::read_dir(&dir).at("read", &dir)? {
            let entry = entry.at("read", &dir)?;
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy()).parse::<Digest>();
            if let Some(digest) = digest.ok().filter(|digest| !sealed.contains(digest)) {
                found.push(Blob { digest, size: entry.metadata().at("look at", entry.path())?.len() });
            }
        }
        found.sort_unstable_by_key(|blob| blob.digest);
        Ok(found)
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
        let from = self.blobs();
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
        let path = self.dir.path().join("landing");
        let text: String = digests.iter().map(|d| format!("{d}\n")).collect();
        let mut file = File::create(&path).at("write", &path)?;
        file.write_all(text.as_bytes()).at("write", &path)?;
        file.sync_all().at("sync", &path)
    }

    /// Ends the run.
    pub fn close(self) -> Result<()> {
        for folder in [Some(self.dir), self.work].into_iter().flatten() {
            let path = folder.path().to_owned();
            folder.close().at("remove", path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs with layouts of their own may share the place outside: none takes another's folder for a dead one's.
    #[test]
    fn runs_that_begin_at_once_keep_their_folders() {
        let place = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        sweep_work(place.path()).unwrap();
                        let (dir, _lock) = folder(place.path()).unwrap();
                        std::thread::yield_now();
                        fs::write(dir.path().join("rw.tar"), "x").unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
