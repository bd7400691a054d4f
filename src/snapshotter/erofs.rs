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
    Driver, Found, Place, Root,
    mount::{Mounted, Writers},
};
use crate::{
    error::{Error, Result},
    id::SnapshotId,
};

/// The layers are mounted to be read; the upperdir lies in the store, or in a file system of its own.
pub fn resolve(place: &Place) -> Result<Found> {
    let id = place.snapshot.id;
    let own = place.path(&["snapshots", &id.to_string(), "rwlayer.img"])?;
    let Mounted { root: upper, mut findings } = if !place.is_active {
        layer(place, id)?
    } else if own.symlink_metadata().is_ok() {
        let Mounted { root, findings } = place.mounts.file(&own, Writers::Possible)?;
        Mounted { root: root.join("upper"), findings }
    } else {
        Mounted { root: place.tree(id, "fs")?, findings: Vec::new() }
    };
    let mut lowers: Vec<Root> = Vec::new();
    for id in &place.snapshot.parents {
        // What the container wrote comes home without what it stands on, too.
        let below = layer(place, *id).or_else(|e| absent(place, *id, &e))?;
        lowers.push(below.root);
        findings.extend(below.findings);
    }
    Ok(Found::overlay(place, Driver::Kernel, upper, lowers, findings))
}

fn file(place: &Place, id: SnapshotId) -> Result<PathBuf> {
    place.path(&["snapshots", &id.to_string(), "layer.erofs"])
}

fn absent(place: &Place, id: SnapshotId, e: &Error) -> Result<Mounted> {
    let file = file(place, id)?;
    let finding = format!("the layer below in {} cannot be read: {e}", file.display());
    Ok(Mounted { root: Root::absent(&file, e.to_string()), findings: vec![finding] })
}

fn layer(place: &Place, id: SnapshotId) -> Result<Mounted> {
    let file = file(place, id)?;
    // Some administrators keep layers elsewhere (`layer_content_caches`, 2.3 and newer).
    if let Ok(target) = file.read_link() {
        return Err(Error::Unsupported {
            what: format!("{} is a link to {}, outside of the store", file.display(), target.display()),
            hint: "copy the file to the link's place in a copy of the store".into(),
        });
    }
    place.mounts.file(&file, Writers::None)
}
