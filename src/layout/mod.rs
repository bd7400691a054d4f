//! OCI image layouts: opened, written to, and committed so that a crash at any instant leaves the old one.
//!
//! ```text
//! LAYOUT/oci-layout
//! LAYOUT/index.json                 replaced last, by rename, under a lock on LAYOUT itself
//! LAYOUT/blobs/sha256/<hex>
//! LAYOUT/.dewar-<random>/           one run's staging, locked while that run lives; the next run removes dead ones
//!     blobs/<hex>                   complete and synced, not yet in the layout
//!     landing                       names that the commit under way adds, so that its ruins can be told
//!     …                             CRIU's images and what else is on its way
//! ```
//! No file of ours stays in a layout: `ctr images import` would take it for a blob.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use nix::fcntl::OFlag;

use crate::{
    crypt::Recipients,
    digest::Digest,
    error::{At, Error, Result},
};

pub mod archive;
pub mod assembly;
pub mod blob;
mod copy;
pub mod index;
pub mod read;
mod staging;
pub mod told;
pub mod untar;
mod vault;

use assembly::Assembly;
pub use blob::{Blob, BlobWriter};
pub use staging::Staging;

/// The content of `oci-layout` (OCI image spec, `image-layout.md`).
const MARKER: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// An index without entries.
const EMPTY_INDEX: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// An OCI image layout on disk.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
    /// Of a layout that will only be streamed: the tars that need not be put together for that.
    loose: Option<Arc<Mutex<BTreeMap<Digest, Assembly>>>>,
    /// To whom what runs write is sealed.
    recipients: Option<Recipients>,
    /// Where runs keep what is not sealed yet.
    work: Option<PathBuf>,
}

impl Layout {
    fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), loose: None, recipients: None, work: None }
    }

    /// The same, for runs that seal what they write to `recipients`, and keep in `work`, or else in the layout, what is not
    /// sealed yet.
    pub fn sealed_to(self, recipients: Recipients, work: Option<PathBuf>) -> Self {
        Self { recipients: Some(recipients), work, ..self }
    }

    /// Where runs keep what is on its way: memory as CRIU writes it, files as they are captured.
    pub fn work(&self) -> &Path {
        self.work.as_deref().unwrap_or(&self.dir)
    }

    /// Makes one in the empty directory `dir` that will only be streamed by [`archive::write`], and then removed: what
    /// CRIU wrote is not written once more for it.
    pub fn fleeting(dir: &Path) -> Result<Self> {
        Ok(Self { loose: Some(Arc::default()), ..Self::open_or_create(dir)? })
    }

    /// Opens an existing layout for reading.
    pub fn open(dir: &Path) -> Result<Self> {
        let marker = dir.join("oci-layout");
        let mut bytes = Vec::new();
        match open_regular(&marker) {
            Ok(file) => file.take(read::MAX_DOCUMENT).read_to_end(&mut bytes).at("read", &marker)?,
            Err(Error::Io { source: e, .. }) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(Error::NotFound {
                    what: format!("an OCI image layout at {} (no oci-layout in it)", dir.display()),
                    hint: "name the directory that dewar checkpoint wrote with -o".into(),
                });
            }
            Err(e) => return Err(e),
        };
        let version = serde_json::from_slice::<serde_json::Value>(&bytes).map_err(|e| Error::malformed(&marker, e))?;
        match version.get("imageLayoutVersion").and_then(|v| v.as_str()) {
            Some("1.0.0") => Ok(Self::at(dir)),
            _ => Err(Error::malformed(marker, "is of a layout version other than 1.0.0, the only one there is")),
        }
    }

    /// Opens the layout at `dir` or makes an empty one there. What exists and is no layout is left alone.
    pub fn open_or_create(dir: &Path) -> Result<Self> {
        Self::to_fill(dir)?.create()
    }

    /// The layout at `dir`, which [`Layout::stage`] makes if it is not there yet: a run that cannot even begin leaves
    /// nothing. What exists and is no layout is refused.
    pub fn to_fill(dir: &Path) -> Result<Self> {
        let layout = Self::at(dir);
        // Its index is wanted last, when a container has long been dumped: whether it can be read is better known now.
        let readable = |layout: Self| layout.index().map(|_| layout);
        match fs::read_dir(dir) {
            Err(_) if dir.is_symlink() && !dir.exists() => Err(not_a_layout(dir, "is a symbolic link to nothing")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(layout),
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => Err(not_a_layout(dir, "is a file")),
            Err(e) => Err(e).at("open", dir),
            Ok(_) if dir.join("oci-layout").exists() => Self::open(dir).and_then(readable),
            Ok(entries) => {
                let mut names = entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()));
                // Another run may be making it this very moment.
                let ours =
                    |name: &str| staging::is_staging(name) || ["blobs", "index.json", "oci-layout"].contains(&name);
                match names.find(|name| !ours(name)) {
                    Some(name) => Err(not_a_layout(dir, &format!("holds {name:?} but no oci-layout"))),
                    None if dir.join("index.json").exists() => readable(layout),
                    None => Ok(layout),
                }
            }
        }
    }

    /// The marker comes last: a directory with it is a whole layout. Under the lock, since another run that comes upon the
    /// half-made layout sweeps it.
    fn create(self) -> Result<Self> {
        let dir = &self.dir;
        private_dirs(&dir.join("blobs/sha256"))?;
        let turn = self.lock()?;
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).at("make private", dir)?;
        for (name, content) in [("index.json", EMPTY_INDEX), ("oci-layout", MARKER)] {
            if !dir.join(name).exists() {
                replace(dir, name, content.as_bytes())?;
            }
        }
        drop(turn);
        Ok(self)
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a blob lies if it is there.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.to_hex())
    }

    /// Waits for the layout's lock: a `flock` on its directory, so that no lock file stays behind.
    fn lock(&self) -> Result<File> {
        let dir = File::open(&self.dir).at("open", &self.dir)?;
        dir.lock().at("lock", &self.dir)?;
        Ok(dir)
    }
}

fn not_a_layout(dir: &Path, why: &str) -> Error {
    Error::Unsupported {
        what: format!("{} exists and is no OCI image layout ({why}); nothing was written", dir.display()),
        hint: "choose a new or empty directory, or an existing layout".into(),
    }
}

/// Opens a file of a layout. A layout may be anybody's: a link in it could lead out of it, a FIFO would keep us for ever.
fn open_regular(path: &Path) -> Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Err(e) if e.raw_os_error() == Some(nix::libc::ELOOP) => Err(Error::malformed(path, "is a symbolic link")),
        opened => opened.at("read", path),
    }?;
    match file.metadata().at("look at", path)?.is_file() {
        true => Ok(file),
        false => Err(Error::malformed(path, "is no regular file")),
    }
}

/// Makes directories that only their owner can enter: memory holds secrets.
fn private_dirs(dir: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).at("create", dir)
}

/// Replaces a file by rename, synced before and after, so that a reader sees the old or the new one.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let mut file = tempfile::Builder::new().prefix(".dewar-").tempfile_in(dir).at("write into", dir)?;
    let target = dir.join(name);
    io::Write::write_all(&mut file, bytes).at("write", &target)?;
    file.as_file().sync_all().at("sync", &target)?;
    file.persist(&target).map_err(|e| e.error).at("replace", &target)?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).at("sync", dir)
}
