//! Snapshotters: from a container's snapshot name to the directories that hold its rw layer.
//!
//! Which number a snapshot has, and which parents, is in the snapshotter's `metadata.db` ([`database`]); what lies in the
//! directories of those numbers, each snapshotter's own file here knows.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    corrupt::Corrupt,
    error::{At, Error, In, Result},
    host::Host,
    id::{SnapshotId, SnapshotName},
    idmap::IdMap,
};

pub mod all;
mod blockfile;
mod btrfs;
pub mod census;
mod database;
mod devmapper;
pub mod docker;
mod erofs;
mod live;
mod mount;
pub mod mounted;
mod native;
mod overlay;
mod remote;
mod root;
mod superblock;
mod zfs;

pub use database::Databases;
use database::Opened;
use mount::Mounts;
pub use root::Root;

/// Where a container's own changes lie, whatever the snapshotter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RwLayer {
    /// An overlay mount: changes in `upper`, the image in `lowers`, nearest first.
    Overlay {
        /// The upperdir.
        upper: Root,
        /// The lowerdirs, topmost first.
        lowers: Vec<Root>,
        /// How owners in the upperdir are mapped back, if the snapshot was made for a user namespace.
        ids: Option<Arc<IdMap>>,
        /// Whose marks are in the directories.
        driver: Driver,
    },
    /// An overlay whose topmost lowerdirs are not of the image, as Docker's init layer is not: what they have is the
    /// container's too.
    Stacked {
        /// The overlay.
        overlay: Box<RwLayer>,
        /// How many lowerdirs are not of the image.
        own: usize,
    },
    /// Two whole trees: the image's, and the container's.
    Trees {
        /// What the container began with.
        base: Root,
        /// What it made of it.
        active: Root,
        /// How `active` came to be.
        origin: Origin,
    },
    /// A whole tree with no image below it.
    Tree {
        /// The tree.
        dir: Root,
    },
}

/// How a container's tree came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// By whatever means.
    Unknown,
    /// From the image's, file by file: the times of its directories are those of the copying.
    Copied,
    /// From the image's, block by block or by the file system: every inode began with its number and all of its times.
    Cloned,
}

/// Who merges an overlay's directories: they mark deletions differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The kernel's overlayfs.
    Kernel,
    /// The program fuse-overlayfs.
    Fuse,
}

/// An active snapshot and what it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder's number.
    pub id: SnapshotId,
    /// The numbers of its parents, nearest first.
    pub parents: Vec<SnapshotId>,
    /// How owners are mapped, if it was made for a user namespace.
    pub ids: Option<Arc<IdMap>>,
}

/// A snapshot, and where to look for it.
struct Place<'a> {
    /// The file systems of the store that are mounted to be read.
    pub mounts: &'a Mounts<'a>,
    /// The snapshotter's directory.
    pub dir: &'a Path,
    /// Which one.
    pub snapshot: &'a Snapshot,
    /// A container's; else a committed one.
    pub is_active: bool,
}

impl Place<'_> {
    /// What most snapshotters have of the snapshot with that number.
    fn folder(&self, id: SnapshotId) -> Result<PathBuf> {
        self.path(&["snapshots", &id.to_string()])
    }

    /// `names` below the snapshotter's directory, each a directory there and no link to elsewhere; the last may be anything.
    fn path(&self, names: &[&str]) -> Result<PathBuf> {
        let mut path = self.dir.to_owned();
        for (at, name) in names.iter().enumerate() {
            if at > 0 && path.symlink_metadata().at("open", &path)?.is_symlink() {
                return Err(Error::malformed(&path, "a link where the snapshotter has a directory"));
            }
            path.push(name);
        }
        Ok(path)
    }

    /// The directory `name` of the snapshot with that number, if it can be listed.
    fn tree(&self, id: SnapshotId, name: &str) -> Result<Root> {
        directory(self.path(&["snapshots", &id.to_string(), name])?)
    }
}

/// Where a snapshot's files are, and what is not as it should be with them.
pub struct Found {
    /// The files.
    pub rw: RwLayer,
    /// Each with its consequence.
    pub findings: Vec<String>,
}

impl Found {
    /// All is as it should be.
    fn whole(rw: RwLayer) -> Self {
        Self { rw, findings: Vec::new() }
    }

    /// An overlay; without parents all of them bind the upperdir instead, and marks mean nothing there.
    fn overlay(place: &Place, driver: Driver, upper: Root, lowers: Vec<Root>, findings: Vec<String>) -> Self {
        let ids = place.snapshot.ids.clone();
        let rw = match lowers.is_empty() {
            true => RwLayer::Tree { dir: upper },
            false => RwLayer::Overlay { upper, lowers, ids, driver },
        };
        Self { rw, findings }
    }
}

/// Finds the files of a snapshot.
type Resolve = fn(&Place) -> Result<Found>;

/// The names of the snapshotters we can read.
pub fn names<'a>() -> impl Iterator<Item = &'a str> {
    TABLE.iter().map(|(name, _)| *name)
}

/// The snapshotters we can read, by containerd's name for them.
const TABLE: &[(&str, Resolve)] = &[
    ("native", native::resolve),
    ("overlayfs", overlay::kernel),
    ("btrfs", btrfs::resolve),
    ("blockfile", blockfile::resolve),
    ("devmapper", devmapper::resolve),
    ("erofs", erofs::resolve),
    ("fuse-overlayfs", overlay::fuse),
    ("nydus", remote::resolve),
    ("overlaybd", remote::resolve),
    ("soci", remote::resolve),
    ("stargz", remote::resolve),
    ("zfs", zfs::resolve),
];

/// Kinds of snapshot (`core/snapshots/snapshotter.go`).
const ACTIVE: &[u8] = &[2];
const COMMITTED: &[u8] = &[3];

/// The rw layer of the active snapshot `name`.
pub fn rw_layer(host: &Host, databases: &Databases, snapshotter: &str, name: &SnapshotName) -> Result<Found> {
    let (dir, resolve) = reader_of(host, snapshotter)?;
    let database = databases.open(host, &dir)?;
    let (snapshot, kind) = find(host, &database, &dir, name)?;
    if kind != ACTIVE {
        let active = Corrupt { at: 0, why: "the container's snapshot is not an active one" };
        return Err(active).within(dir.join("metadata.db"));
    }
    let mut found = resolve(&Place { mounts: &Mounts::of(host), dir: &dir, snapshot: &snapshot, is_active: true })?;
    found.findings.extend(database.doubts(name));
    Ok(found)
}

impl RwLayer {
    /// The directory of its own files.
    pub fn root(&self) -> &Root {
        match self {
            Self::Overlay { upper, .. } => upper,
            Self::Stacked { overlay, .. } => overlay.root(),
            Self::Trees { active: dir, .. } | Self::Tree { dir } => dir,
        }
    }

    /// The same, where the topmost `own` lowerdirs are not of the image; `None` if nobody can tell them apart.
    pub fn stacked(self, own: usize) -> Option<Self> {
        match self {
            _ if own == 0 => Some(self),
            Self::Overlay { .. } => Some(Self::Stacked { overlay: Box::new(self), own }),
            _ => None,
        }
    }
}

/// The committed layers that the snapshot `name` stands on, bottom first; a committed one is itself the last of them.
pub fn layers(host: &Host, databases: &Databases, snapshotter: &str, name: &SnapshotName) -> Result<Vec<RwLayer>> {
    let (dir, resolve) = reader_of(host, snapshotter)?;
    let (Snapshot { id, mut parents, .. }, kind) = find(host, &*databases.open(host, &dir)?, &dir, name)?;
    if kind == COMMITTED {
        parents.insert(0, id);
    }
    let mounts = Mounts::of(host);
    let layer = |at: usize| {
        let snapshot = Snapshot { id: parents[at], parents: parents[at + 1..].to_vec(), ids: None };
        resolve(&Place { mounts: &mounts, dir: &dir, snapshot: &snapshot, is_active: false }).map(|found| found.rw)
    };
    (0..parents.len()).rev().map(layer).collect()
}

/// The files of the committed snapshot `name` alone.
pub fn committed(host: &Host, databases: &Databases, snapshotter: &str, name: &SnapshotName) -> Result<RwLayer> {
    let (dir, resolve) = reader_of(host, snapshotter)?;
    let (snapshot, kind) = find(host, &*databases.open(host, &dir)?, &dir, name)?;
    if kind != COMMITTED {
        let committed = Corrupt { at: 0, why: "the snapshot of a layer is not a committed one" };
        return Err(committed).within(dir.join("metadata.db"));
    }
    let place = Place { mounts: &Mounts::of(host), dir: &dir, snapshot: &snapshot, is_active: false };
    resolve(&place).map(|found| found.rw)
}

/// The directory `path`, if it can be listed.
fn directory(path: PathBuf) -> Result<Root> {
    if path.symlink_metadata().at("open", &path)?.is_symlink() {
        return Err(Error::malformed(&path, "a link where the snapshotter has a directory"));
    }
    path.read_dir().at("read", &path)?;
    Ok(path.into())
}

/// Directories that proxy plugins choose for themselves (stargz-snapshotter `cmd/containerd-stargz-grpc/main.go`,
/// soci-snapshotter `config`, accelerated-container-image `docs`); others are where containerd's own would be.
const PLACES: &[(&str, &str)] = &[
    ("overlaybd", "/var/lib/overlaybd"),
    ("soci", "/var/lib/soci-snapshotter-grpc/snapshotter"),
    ("stargz", "/var/lib/containerd-stargz-grpc/snapshotter"),
];

/// Where it keeps its snapshots: where the configuration says, else where it usually does.
pub fn directory_of(host: &Host, snapshotter: &str) -> Result<PathBuf> {
    let usual = host.snapshotter_dir(snapshotter)?;
    if host.snapshotters.contains_key(snapshotter) || usual.join("metadata.db").exists() {
        return Ok(usual);
    }
    let others = PLACES.iter().filter(|(name, _)| *name == snapshotter);
    let mut others = others.filter_map(|(_, place)| host.inside(place.as_ref()).ok());
    Ok(others.find(|dir| dir.join("metadata.db").exists()).unwrap_or(usual))
}

/// Directories that look like another snapshotter's may mean something else: nothing is guessed.
fn unknown(host: &Host, snapshotter: &str) -> Error {
    let dir = match host.snapshotter_dir(snapshotter) {
        Ok(dir) => dir,
        Err(e) => return e,
    };
    let why = match dir.join("metadata.db").exists() {
        true => format!("what its directories in {} mean is not known", dir.display()),
        false => "where it keeps its snapshots is not on record".into(),
    };
    Error::Unsupported {
        what: format!(
            "snapshotter {snapshotter:?} is not supported, because {why}, so the container's files cannot be read"
        ),
        hint: format!("supported: {}", names().collect::<Vec<_>>().join(", ")),
    }
}

/// The snapshotter's directory, and how it is read.
fn reader_of(host: &Host, snapshotter: &str) -> Result<(PathBuf, Resolve)> {
    let Some((_, resolve)) = TABLE.iter().find(|(known, _)| *known == snapshotter) else {
        return Err(unknown(host, snapshotter));
    };
    Ok((directory_of(host, snapshotter)?, *resolve))
}

/// The snapshot `name` with its kind.
fn find(host: &Host, database: &Opened, dir: &Path, name: &SnapshotName) -> Result<(Snapshot, Vec<u8>)> {
    let (snapshot, kind) = database.find(name)?;
    refuse_links(host, dir, &snapshot)?;
    Ok((snapshot, kind))
}

/// On another host's file system a link in place of a snapshot would be followed out of it.
fn refuse_links(host: &Host, dir: &Path, snapshot: &Snapshot) -> Result<()> {
    for id in [snapshot.id].iter().chain(&snapshot.parents).filter(|_| host.sysroot.is_some()) {
        let folder = dir.join("snapshots").join(id.to_string());
        if host.inside(&folder)? != folder {
            return Err(Error::malformed(folder, "a symbolic link stands in for a snapshot"));
        }
    }
    Ok(())
}
