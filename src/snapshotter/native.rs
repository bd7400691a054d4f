//! native: `snapshots/<id>` is a whole copy of the parent's, to be compared with it (`plugins/snapshots/native`).

use std::path::{Path, PathBuf};

use super::{RwLayer, Snapshot};
use crate::{
    error::{At, Result},
    id::SnapshotId,
};

/// The copying sets the times of directories that have something in them anew (seen with 1.6 to 2.1: continuity's `CopyDir`).
/// Without a parent the folder is all there is.
pub fn resolve(root: &Path, snapshot: &Snapshot) -> Result<RwLayer> {
    let active = folder(root, snapshot.id)?;
    Ok(match snapshot.parents.first() {
        Some(parent) => RwLayer::Trees { base: folder(root, *parent)?, active, is_copy: true },
        None => RwLayer::Tree { dir: active },
    })
}

fn folder(root: &Path, id: SnapshotId) -> Result<PathBuf> {
    let dir = root.join("snapshots").join(id.to_string());
    dir.read_dir().at("read", &dir)?;
    Ok(dir)
}
