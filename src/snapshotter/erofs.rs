//! erofs (containerd 2.1 and newer): an overlay over read-only images (`plugins/snapshots/erofs`).
//!
//! ```text
//! snapshots/<id>/layer.erofs     a committed layer, with overlay's whiteouts
//! snapshots/<id>/fs              the container's upperdir; without parents its whole tree
//! snapshots/<id>/rwlayer.img     instead of it (`default_size`, 2.2 and newer): ext4 with `upper` in it
//! snapshots/<id>/fsmeta.erofs    names and attributes of this and all layers below, merged: not needed
//! ```

use std::path::PathBuf;

use super::{
    Driver, Found, Place, Root, directory,
    mount::{Mounted, Writers},
};
use crate::{
    error::{Error, Result},
    id::SnapshotId,
};

/// The layers are mounted to be read; the upperdir lies in the store, or in a file system of its own.
pub fn resolve(place: &Place) -> Result<Found> {
    let folder = place.folder(place.snapshot.id);
    let Mounted { root: upper, mut findings } = if !place.is_active {
        layer(place, place.snapshot.id)?
    } else if folder.join("rwlayer.img").symlink_metadata().is_ok() {
        let Mounted { root, findings } = place.mounts.file(&folder.join("rwlayer.img"), Writers::Possible)?;
        Mounted { root: root.join("upper"), findings }
    } else {
        Mounted { root: directory(folder.join("fs"))?.into(), findings: Vec::new() }
    };
    let mut lowers: Vec<Root> = Vec::new();
    for id in &place.snapshot.parents {
        let below = layer(place, *id)?;
        lowers.push(below.root);
        findings.extend(below.findings);
    }
    Ok(Found::overlay(place, Driver::Kernel, upper, lowers, findings))
}

fn layer(place: &Place, id: SnapshotId) -> Result<Mounted> {
    let file: PathBuf = place.folder(id).join("layer.erofs");
    // Some administrators keep layers elsewhere (`layer_content_caches`, 2.3 and newer).
    if let Ok(target) = file.read_link() {
        return Err(Error::Unsupported {
            what: format!("{} is a link to {}, outside of the store", file.display(), target.display()),
            hint: "copy the file to the link's place in a copy of the store".into(),
        });
    }
    place.mounts.file(&file, Writers::None)
}
