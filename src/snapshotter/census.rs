//! All that the snapshotters' own databases have, without meta.db: whose a snapshot is stands in its name.
//!
//! ```text
//! default/5/redis                     an active snapshot: of container redis in namespace default
//! default/4/sha256:ab…                a committed one: the image's layers up to the one with this chain id
//! default/3/extract-123-abc sha256:…  a layer that was being unpacked
//! ```
//! Source: containerd `core/metadata/snapshot.go`, `createKey`: `<namespace>/<n>/<key>`; a key may hold slashes.

use std::{collections::BTreeMap, fs};

use super::{ACTIVE, Mounts, Place, RwLayer, Snapshot, database, directory_of, names, overlay};
use crate::{
    error::Result,
    host::Host,
    id::{SnapshotId, SnapshotKey, SnapshotName},
};

/// The default snapshotter.
pub const OVERLAYFS: &str = "overlayfs";

/// The name of a snapshotter's directory, up to its own name.
const PREFIX: &str = "io.containerd.snapshotter.v1.";

/// One snapshot, as its own database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name there.
    pub name: SnapshotName,
    /// The name of what it stands on.
    pub parent: Option<SnapshotName>,
    /// It can be written to: a container's, or a layer that was being unpacked.
    pub is_active: bool,
}

impl Entry {
    /// The namespace and the key that the name was made of.
    pub fn owner(&self) -> Option<(&str, &str)> {
        split(&self.name)
    }

    /// The parent's key.
    pub fn parent_key(&self) -> Option<SnapshotKey> {
        split(self.parent.as_ref()?).map(|(_, key)| SnapshotKey(key.to_owned()))
    }
}

fn split(name: &SnapshotName) -> Option<(&str, &str)> {
    let (namespace, rest) = name.0.split_once('/')?;
    Some((namespace, rest.split_once('/')?.1))
}

/// Every snapshot of every snapshotter of the host, by the snapshotter's name; or why its database cannot be read.
pub fn all(host: &Host) -> BTreeMap<String, Result<Vec<Entry>>> {
    let usual = fs::read_dir(&host.root).into_iter().flatten().flatten();
    let usual = usual.filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix(PREFIX)?.to_owned()));
    let elsewhere =
        names().map(str::to_owned).filter(|name| directory_of(host, name).ok() != host.snapshotter_dir(name).ok());
    let names = usual.chain(host.snapshotters.keys().cloned()).chain(elsewhere);
    let read = |name: String| {
        let dir = directory_of(host, &name).ok()?;
        // One that was never used has no database, and no snapshot either.
        let is_used = || fs::read_dir(dir.join("snapshots")).is_ok_and(|mut all| all.next().is_some());
        (dir.join("metadata.db").exists() || is_used()).then(|| (name, entries(host, &dir)))
    };
    names.filter_map(read).collect()
}

fn entries(host: &Host, dir: &std::path::Path) -> Result<Vec<Entry>> {
    let all = database::all(host, dir)?;
    let entry = |(name, kind, parent): (String, Vec<u8>, String)| Entry {
        name: SnapshotName(name),
        parent: Some(parent).filter(|p| !p.is_empty()).map(SnapshotName),
        is_active: kind == ACTIVE,
    };
    Ok(all.into_iter().map(entry).collect())
}

/// Directories of the snapshotter overlayfs, lowest number first, where its database is gone: which is whose is not known.
pub fn folders(host: &Host) -> Vec<SnapshotId> {
    let entries = host
        .snapshotter_dir(OVERLAYFS)
        .map(|dir| fs::read_dir(dir.join("snapshots")))
        .into_iter()
        .flatten()
        .flatten()
        .flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut all: Vec<u64> = numbers.collect();
    all.sort_unstable();
    all.into_iter().map(SnapshotId).collect()
}

/// The snapshot in the folder `id`, upon all that are older: a parent has a lower number than its child, and more below only
/// makes a deletion count that would have deleted nothing. Without a directory for the kernel's own work it is no snapshot
/// that could be written to.
pub fn folder(host: &Host, id: SnapshotId) -> Result<Option<RwLayer>> {
    let dir = host.snapshotter_dir(OVERLAYFS)?;
    let is_dir = |name: &str| {
        fs::symlink_metadata(dir.join("snapshots").join(id.to_string()).join(name)).is_ok_and(|m| m.is_dir())
    };
    if !is_dir("fs") || !is_dir("work") {
        return Ok(None);
    }
    let older = folders(host).into_iter().filter(|other| other.0 < id.0);
    let has_files = |id: &SnapshotId| dir.join("snapshots").join(id.to_string()).join("fs").is_dir();
    let mut parents: Vec<_> = older.filter(has_files).collect();
    parents.reverse();
    let snapshot = Snapshot { id, parents, ids: None };
    overlay::kernel(&Place { mounts: &Mounts::of(host), dir: &dir, snapshot: &snapshot, is_active: true })
        .map(|found| Some(found.rw))
}
