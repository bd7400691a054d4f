//! btrfs: each snapshot is a subvolume, to be compared with its parent's (`plugins/snapshots/btrfs`).
//!
//! ```text
//! active/<id>       the container's
//! snapshots/<id>    committed, read-only
//! view/<id>         others' views
//! ```
//!
//! Subvolumes are directories where the file system is mounted. Each has a device number of its own, so equal inode numbers
//! in two of them are not taken for one file. A crash between making the committed one and deleting the active one leaves
//! both: the database says which counts.

use super::{Found, Origin, Place, RwLayer, directory};
use crate::{error::Result, id::SnapshotId};

/// A subvolume begins as its parent to the last bit, the times of directories too.
pub fn resolve(place: &Place) -> Result<Found> {
    let folder = |kind: &str, id: SnapshotId| directory(place.path(&[kind, &id.to_string()])?);
    let active = folder(if place.is_active { "active" } else { "snapshots" }, place.snapshot.id)?;
    Ok(Found::whole(match place.snapshot.parents.first() {
        Some(parent) => RwLayer::Trees { base: folder("snapshots", *parent)?, active, origin: Origin::Cloned },
        None => RwLayer::Tree { dir: active },
    }))
}
