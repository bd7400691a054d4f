//! The committed snapshots of an image's layers: what is left of layers whose blobs are gone.

use super::{locate::Target, store::Store};
use crate::{
    containerd::meta::Container,
    digest::Digest,
    error::{Error, Result},
    id::SnapshotKey,
    image::Committed,
    snapshotter::{self, RwLayer},
};

/// No image has more layers; a longer chain of records is a loop.
const MAX_LAYERS: usize = 4096;

/// The layers of the image with this chain id, or, where no record leads to them, those that the container's files lie on.
pub fn of(store: &Store, target: &Target, chain: Option<Digest>) -> Result<Vec<Committed>> {
    committed(store, &target.container, chain).or_else(|e| below(target.rw.as_ref()).ok_or(e))
}

/// The lowerdirs, bottom first, each with those below it.
fn below(rw: Option<&RwLayer>) -> Option<Vec<Committed>> {
    let Some(RwLayer::Overlay { lowers, driver, .. }) = rw else { return None };
    let layer = |at: usize| match (lowers[at].clone(), lowers[at + 1..].to_vec()) {
        (dir, below) if below.is_empty() => RwLayer::Tree { dir },
        (upper, lowers) => RwLayer::Overlay { upper, lowers, ids: None, driver: *driver },
    };
    Some((0..lowers.len()).rev().map(|at| Committed { chain: None, tree: layer(at) }).collect())
}

/// The layers of the image with this chain id, bottom first, in whatever snapshotter that can be read has them. If none has,
/// or the chain id is not known, those that the container itself stands on.
fn committed(store: &Store, container: &Container, chain: Option<Digest>) -> Result<Vec<Committed>> {
    let namespace = &container.name.namespace;
    let own = container.snapshotter.as_str();
    // Overlay's first: only there each layer lies by itself.
    let known = snapshotter::names().filter(|name| !["overlayfs", own].contains(name));
    let unpacked = chain.map(|id| SnapshotKey(id.to_string()));
    let unpacked = ["overlayfs", own].into_iter().chain(known).flat_map(|sn| unpacked.clone().map(|key| (sn, key)));
    let mut failed = Error::NotFound { what: "a snapshot of its layers".into(), hint: String::new() };
    for (sn, key) in unpacked.chain([(own, container.snapshot_key.clone())]) {
        let Some(record) = store.snapshot(namespace, sn, &key)? else { continue };
        match snapshotter::layers(&store.host, &store.databases, sn, &record.name) {
            Ok(trees) => return with_chains(store, container, sn, key, record.parent, trees),
            Err(e) => failed = e,
        }
    }
    Err(failed)
}

/// The layers with their chain ids, which are the keys of the snapshot and its parents.
fn with_chains(
    store: &Store,
    container: &Container,
    sn: &str,
    key: SnapshotKey,
    mut parent: Option<SnapshotKey>,
    trees: Vec<RwLayer>,
) -> Result<Vec<Committed>> {
    let mut chains = vec![key.0.parse().ok()];
    while let Some(key) = parent.filter(|_| chains.len() <= MAX_LAYERS) {
        chains.push(key.0.parse().ok());
        parent = store.snapshot(&container.name.namespace, sn, &key)?.and_then(|record| record.parent);
    }
    // Nearest first; the container's own snapshot has no layer of the image, and its key is no chain id.
    let chains = chains.into_iter().rev().chain(std::iter::repeat(None));
    Ok(trees.into_iter().zip(chains).map(|(tree, chain)| Committed { chain, tree }).collect())
}
