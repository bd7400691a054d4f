//! overlayfs and fuse-overlayfs: `snapshots/<id>/fs` is the upperdir, the parents' are the lowerdirs
//! (`plugins/snapshots/overlay`; containerd/fuse-overlayfs-snapshotter).

use super::{Driver, Found, Place};
use crate::{error::Result, id::SnapshotId};

/// The kernel's overlayfs.
pub fn kernel(place: &Place) -> Result<Found> {
    resolve(place, Driver::Kernel)
}

/// The program: a proxy plugin, mostly of daemons without root.
pub fn fuse(place: &Place) -> Result<Found> {
    resolve(place, Driver::Fuse)
}

fn resolve(place: &Place, driver: Driver) -> Result<Found> {
    let folder = |id: SnapshotId| place.tree(id, "fs");
    let upper = folder(place.snapshot.id)?;
    let lowers = place.snapshot.parents.iter().map(|id| folder(*id)).collect::<Result<Vec<_>>>()?;
    Ok(Found::overlay(place, driver, upper, lowers, Vec::new()))
}
