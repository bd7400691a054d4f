//! Snapshotters of images that are fetched while they run: stargz, SOCI, nydus, overlaybd. What the container wrote is here;
//! what it stands on may be somewhere else.
//!
//! ```text
//! metadata.db                           as of containerd's own; labels say what is remote
//! snapshots/<id>/fs                     upperdir, or an unpacked layer; of a remote one empty, or a FUSE mount
//! snapshots/<id>/block/                 overlaybd: the layer is a block device's
//! snapshots/<id>/block/writable_data    the container's own, too (`rwMode` dir or dev)
//! ```
//!
//! A FUSE mount is never asked: while its server hangs it would not answer, and while it runs it would fetch. Deletions and
//! opaque directories are told without it.
//!
//! Sources: containerd/stargz-snapshotter `snapshot/snapshot.go`, awslabs/soci-snapshotter (the same), containerd/nydus-snapshotter
//! `pkg/label`, containerd/accelerated-container-image `pkg/snapshot/overlay.go`.

use std::{collections::BTreeMap, path::Path};

use super::{Driver, Found, Place, Root, database, directory};
use crate::{
    error::{Error, Result},
    host::mounts,
    id::SnapshotId,
};

/// Labels of a committed snapshot whose content is not in its directory.
const REMOTE: [&str; 7] = [
    "containerd.io/snapshot/remote",
    "containerd.io/snapshot/nydus-blob",
    "containerd.io/snapshot/nydus-bootstrap",
    "containerd.io/snapshot/nydus-ref",
    "containerd.io/snapshot/nydus-tarfs",
    "containerd.io/snapshot/nydus-proxy-mode",
    "containerd.io/snapshot/stargz",
];

/// Labels that name a layer by its digest, the best first.
const DIGEST: [&str; 3] = [
    "containerd.io/snapshot/cri.layer-digest",
    "containerd.io/snapshot/remote/stargz.digest",
    "containerd.io/snapshot.ref",
];

/// The upperdir, and those layers below that are here.
pub fn resolve(place: &Place) -> Result<Found> {
    let labels = database::labels(place.mounts.host(), place.dir)?;
    let own = place.folder(place.snapshot.id)?;
    if own.join("block/writable_data").symlink_metadata().is_ok() {
        return Err(Error::Unsupported {
            what: format!("{}: the container's own files are on an overlaybd device", own.display()),
            hint: "while it is attached its files are in the container itself: copy them from there".into(),
        });
    }
    let upper: Root = match place.is_active {
        true => place.tree(place.snapshot.id, "fs")?,
        false => layer(place, place.snapshot.id, &labels)?,
    };
    if let Some(name) = upper.why_absent() {
        return Err(Error::NotFound {
            what: format!("layer {name} in {}", upper.display()),
            hint: "it is remote: the registry has it".into(),
        });
    }
    let lowers: Vec<Root> =
        place.snapshot.parents.iter().map(|id| layer(place, *id, &labels)).collect::<Result<_>>()?;
    let remote: Vec<&str> = lowers.iter().filter_map(Root::why_absent).collect();
    let findings = (!remote.is_empty()).then(|| {
        format!(
            "{} of {} layers below are not on this machine ({}): what the container wrote, changed and deleted is in the \
             bundle, the target needs the image itself",
            remote.len(),
            lowers.len(),
            remote.join(", ")
        )
    });
    let findings = findings.into_iter().collect();
    Ok(Found::overlay(place, Driver::Kernel, upper, lowers, findings))
}

/// A committed layer; absent if it is remote.
fn layer(place: &Place, id: SnapshotId, labels: &BTreeMap<SnapshotId, BTreeMap<String, String>>) -> Result<Root> {
    let none = BTreeMap::new();
    let labels = labels.get(&id).unwrap_or(&none);
    let dir = place.path(&["snapshots", &id.to_string(), "fs"])?;
    let is_remote = REMOTE.iter().any(|label| labels.contains_key(*label))
        || place.folder(id)?.join("block/config.v1.json").symlink_metadata().is_ok()
        || is_mounted(place, &dir)?;
    if is_remote {
        let name = DIGEST.iter().find_map(|label| labels.get(*label)).cloned();
        return Ok(Root::absent(&dir, name.unwrap_or_else(|| format!("snapshot {id}"))));
    }
    directory(dir)
}

fn is_mounted(place: &Place, dir: &Path) -> Result<bool> {
    let host = place.mounts.host();
    if host.sysroot.is_some() {
        return Ok(false);
    }
    Ok(mounts::read(&host.proc.join("self/mountinfo"))?.iter().any(|mount| Path::new(&mount.at) == dir))
}
