//! blockfile (containerd 1.7 and newer): `snapshots/<id>` is a file that holds a file system, a copy of the parent's
//! (`plugins/snapshots/blockfile`).
//!
//! Both are mounted to be read, and compared. A running container's is read where the daemon has mounted it.

use super::{Found, Origin, Place, RwLayer, mount::Writers};
use crate::{error::Result, id::SnapshotId};

/// The copy is one of blocks: it begins as its parent, the times of directories too.
pub fn resolve(place: &Place) -> Result<Found> {
    let open = |id: SnapshotId, writers| place.mounts.file(&place.folder(id)?, writers);
    let active = open(place.snapshot.id, if place.is_active { Writers::Possible } else { Writers::None })?;
    let Some(parent) = place.snapshot.parents.first() else {
        return Ok(Found { rw: RwLayer::Tree { dir: active.root }, findings: active.findings });
    };
    let base = open(*parent, Writers::None)?;
    let findings = [active.findings, base.findings].concat();
    Ok(Found { rw: RwLayer::Trees { base: base.root, active: active.root, origin: Origin::Cloned }, findings })
}
