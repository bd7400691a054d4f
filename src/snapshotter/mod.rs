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

mod blockfile;
mod btrfs;
mod database;
mod devmapper;
mod erofs;
mod live;
mod mount;
mod native;
mod overlay;
mod root;
mod superblock;

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
    },
    /// Two whole trees: the image's, and the container's.
    Trees {
        /// What the container began with.
        base: Root,
        /// What it made of it.
        active: Root,
        /// `active` was copied from `base` file by file: the times of its directories are those of the copying.
        is_copy: bool,
    },
    /// A whole tree with no image below it.
    Tree {
        /// The tree.
        dir: Root,
    },
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
    ("overlayfs", overlay::resolve),
    ("btrfs", btrfs::resolve),
    ("blockfile", blockfile::resolve),
    ("devmapper", devmapper::resolve),
    ("erofs", erofs::resolve),
];

/// Kinds of snapshot (`core/snapshots/snapshotter.go`).
const ACTIVE: &[u8] = &[2];
const COMMITTED: &[u8] = &[3];

/// The rw layer of the active snapshot `name`.
pub fn rw_layer(host: &Host, snapshotter: &str, name: &SnapshotName) -> Result<Found> {
    let (dir, resolve, snapshot, kind) = look_up(host, snapshotter, name)?;
    if kind != ACTIVE {
        let active = Corrupt { at: 0, why: "the container's snapshot is not an active one" };
        return Err(active).within(dir.join("metadata.db"));
    }
    resolve(&Place { mounts: &Mounts::of(host), dir: &dir, snapshot: &snapshot, is_active: true })
}

/// The committed layers that the snapshot `name` stands on, bottom first; a committed one is itself the last of them.
pub fn layers(host: &Host, snapshotter: &str, name: &SnapshotName) -> Result<Vec<RwLayer>> {
    let (dir, resolve, Snapshot { id, mut parents, .. }, kind) = look_up(host, snapshotter, name)?;
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

/// The directory `path`, if it can be listed.
fn directory(path: PathBuf) -> Result<PathBuf> {
    path.read_dir().at("read", &path)?;
    Ok(path)
}

/// The snapshotter's directory, how it is read, and the snapshot with its kind.
fn look_up(host: &Host, snapshotter: &str, name: &SnapshotName) -> Result<(PathBuf, Resolve, Snapshot, Vec<u8>)> {
    let Some((_, resolve)) = TABLE.iter().find(|(known, _)| *known == snapshotter) else {
        return Err(Error::Unsupported {
            what: format!("snapshotter {snapshotter:?} is not supported, so the container's files cannot be read"),
            hint: format!("supported: {}", names().collect::<Vec<_>>().join(", ")),
        });
    };
    let dir = host.snapshotter_dir(snapshotter);
    let (snapshot, kind) = database::find(host, &dir, name)?;
    Ok((dir, *resolve, snapshot, kind))
}
