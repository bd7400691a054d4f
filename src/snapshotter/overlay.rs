//! overlayfs: `snapshots/<id>/fs` is the upperdir, the parents' are the lowerdirs (`plugins/snapshots/overlay`).

use super::{Found, Place, Root, RwLayer, directory};
use crate::{error::Result, id::SnapshotId};

/// Without parents containerd binds the folder instead of mounting an overlay, so whiteouts mean nothing there.
pub fn resolve(place: &Place) -> Result<Found> {
    let folder =
        |id: SnapshotId| directory(place.dir.join("snapshots").join(id.to_string()).join("fs")).map(Root::from);
    let upper = folder(place.snapshot.id)?;
    let lowers = place.snapshot.parents.iter().map(|id| folder(*id)).collect::<Result<Vec<_>>>()?;
    let ids = place.snapshot.ids.clone();
    Ok(Found::whole(if lowers.is_empty() {
        RwLayer::Tree { dir: upper }
    } else {
        RwLayer::Overlay { upper, lowers, ids }
    }))
}
