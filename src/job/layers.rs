//! The committed snapshots of an image's layers: what is left of layers whose blobs are gone.

use crate::{
    containerd::meta::{Container, MetaDb},
    digest::Digest,
    error::{Error, Result},
    host::Host,
    id::SnapshotKey,
    image::Committed,
    snapshotter,
};

/// No image has more layers; a longer chain of records is a loop.
const MAX_LAYERS: usize = 4096;

/// The layers of the image with this chain id in the container's snapshotter, bottom first. If that has none of the kind,
/// or the chain id is not known, those that the container itself stands on.
pub fn committed(host: &Host, container: &Container, chain: Option<Digest>) -> Result<Vec<Committed>> {
    let meta = MetaDb::read(host)?;
    let (namespace, sn) = (&container.name.namespace, container.snapshotter.as_str());
    let mut found = None;
    for key in chain.map(|id| SnapshotKey(id.to_string())).into_iter().chain([container.snapshot_key.clone()]) {
        found = meta.snapshot(namespace, sn, &key)?.map(|record| (key, record));
        if found.is_some() {
            break;
        }
    }
    let (key, record) = found.ok_or_else(|| Error::NotFound {
        what: format!("a snapshot of the image in {sn:?}, namespace {namespace}"),
        hint: String::new(),
    })?;
    let trees = snapshotter::layers(host, sn, &record.name)?;
    let (mut chains, mut parent) = (vec![key.0.parse().ok()], record.parent);
    while let Some(key) = parent.filter(|_| chains.len() <= MAX_LAYERS) {
        chains.push(key.0.parse().ok());
        parent = meta.snapshot(namespace, sn, &key)?.and_then(|record| record.parent);
    }
    // Nearest first; the container's own snapshot has no layer of the image, and its key is no chain id.
    let chains = chains.into_iter().take(MAX_LAYERS).rev().chain(std::iter::repeat(None));
    Ok(trees.into_iter().zip(chains).map(|(tree, chain)| Committed { chain, tree }).collect())
}
