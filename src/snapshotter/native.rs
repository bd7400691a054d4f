//! native: `snapshots/<id>` is a whole copy of the parent's, to be compared with it (`plugins/snapshots/native`).

use super::{Found, Origin, Place, RwLayer, directory};
use crate::{error::Result, id::SnapshotId};

/// The copying sets the times of directories that have something in them anew (seen with 1.6 to 2.1: continuity's `CopyDir`).
/// Without a parent the folder is all there is.
pub fn resolve(place: &Place) -> Result<Found> {
    let folder = |id: SnapshotId| directory(place.folder(id)?);
    let active = folder(place.snapshot.id)?;
    Ok(Found::whole(match place.snapshot.parents.first() {
        Some(parent) => RwLayer::Trees { base: folder(*parent)?, active, origin: Origin::Copied },
        None => RwLayer::Tree { dir: active },
    }))
}
