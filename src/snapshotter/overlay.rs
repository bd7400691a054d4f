//! overlayfs: `snapshots/<id>/fs` is the upperdir, the parents' are the lowerdirs (`plugins/snapshots/overlay`).

use std::path::{Path, PathBuf};

use super::{RwLayer, Snapshot};
use crate::{
    error::{At, Result},
    id::SnapshotId,
};

/// Without parents containerd binds the folder instead of mounting an overlay, so whiteouts mean nothing there.
pub fn resolve(root: &Path, snapshot: &Snapshot) -> Result<RwLayer> {
    let upper = folder(root, snapshot.id)?;
    let lowers = snapshot.parents.iter().map(|id| folder(root, *id)).collect::<Result<Vec<_>>>()?;
    let ids = snapshot.ids.clone();
    Ok(if lowers.is_empty() { RwLayer::Tree { dir: upper } } else { RwLayer::Overlay { upper, lowers, ids } })
}

fn folder(root: &Path, id: SnapshotId) -> Result<PathBuf> {
    let dir = root.join("snapshots").join(id.to_string()).join("fs");
    dir.read_dir().at("read", &dir)?;
    Ok(dir)
}
