//! Digests: of blobs, of layers unpacked, of chains of layers; and images by name.

use std::{collections::BTreeSet, fs};

use super::{
    Blob, ImageInfo, What, Who,
    atlas::{Atlas, Images},
};
use crate::{containerd::content::Content, digest::Digest, error::Result};

/// Less of a digest would mean too many things.
const MIN_PREFIX: usize = 12;

/// What a digest, the beginning of one, or an image's name means.
pub fn ask(atlas: &Atlas<'_>, thing: &str) -> Result<Vec<What>> {
    let mut found = Vec::new();
    for digest in digests(atlas, thing)? {
        found.extend(blob(atlas, &digest)?);
    }
    for name in images(atlas, thing) {
        found.push(image(atlas, &name)?);
    }
    Ok(found)
}

/// The digests that `thing` means.
fn digests(atlas: &Atlas<'_>, thing: &str) -> Result<BTreeSet<Digest>> {
    let hex = thing.strip_prefix("sha256:").unwrap_or(thing);
    if let Ok(digest) = format!("sha256:{hex}").parse() {
        return Ok(BTreeSet::from([digest]));
    }
    let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if hex.len() < MIN_PREFIX || !hex.bytes().all(is_hex) {
        return Ok(BTreeSet::new());
    }
    let images = atlas.images()?;
    let mut all: BTreeSet<Digest> =
        atlas.records.namespaces.values().flat_map(|ns| ns.blobs.keys()).filter_map(|d| d.parse().ok()).collect();
    all.extend(images.layers.keys().chain(images.documents.keys()).chain(images.chains.keys()));
    all.retain(|digest| digest.to_hex().starts_with(hex));
    Ok(all)
}

/// A blob, or a layer whose blob may be gone; `None` if nobody knows it. Snapshots by chain id are told elsewhere.
pub fn blob(atlas: &Atlas<'_>, digest: &Digest) -> Result<Option<What>> {
    let images = atlas.images()?;
    let path = Content::of(atlas.host()).path(digest);
    let size = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file).map(|meta| meta.len());
    let text = digest.to_string();
    let recorded = atlas.records.namespaces.iter().filter(|(_, ns)| ns.blobs.contains_key(&text));
    let namespaces: Vec<String> = recorded.map(|(name, _)| name.clone()).collect();
    let (mut roles, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut role = |what: String, of: &[String]| {
        roles.extend(of.iter().map(|name| format!("{what} of {name}")));
        names.extend(of.iter().cloned());
    };
    for (at, place) in images.layers.get(digest).into_iter().flatten() {
        let (local, of) = &images.manifests[*at];
        let by = if local.layers.get(*place) == Some(digest) { "layer" } else { "diff id of layer" };
        role(format!("{by} {} of {}", place + 1, local.diff_ids.len().max(local.layers.len())), of);
    }
    for (at, place) in images.chains.get(digest).into_iter().flatten() {
        let (local, of) = &images.manifests[*at];
        role(format!("chain id of layers 1 to {} of {}", place + 1, local.diff_ids.len()), of);
    }
    for (at, what) in images.documents.get(digest).into_iter().flatten() {
        role((*what).to_owned(), &images.manifests[*at].1);
    }
    if let Some(of) = images.targets.get(digest) {
        role("target".into(), of);
    }
    if size.is_none() && namespaces.is_empty() && roles.is_empty() {
        return Ok(None);
    }
    Ok(Some(What::Blob(Blob {
        digest: text,
        path: size.map(|_| path.display().to_string()),
        size,
        roles: roles.into_iter().collect(),
        namespaces,
        containers: with_users(atlas, &names, standing(atlas, images, digest)),
    })))
}

/// The containers that stand on the snapshot of a layer, whatever became of the image's record.
fn standing(atlas: &Atlas<'_>, images: &Images, digest: &Digest) -> Vec<Who> {
    let layers = images.layers.get(digest).into_iter().flatten();
    let chains = layers.filter_map(|(at, place)| images.manifests[*at].0.chains().get(*place).copied());
    let chains: BTreeSet<Digest> = chains.chain(images.chains.contains_key(digest).then_some(*digest)).collect();
    let mut found = Vec::new();
    for (chain, snapshotter) in chains.iter().flat_map(|chain| atlas.backends.keys().map(move |sn| (chain, sn))) {
        for name in atlas.names_of_key(snapshotter, &chain.to_string()) {
            found.extend(atlas.containers_on(snapshotter, name));
        }
    }
    found
}

/// Those that were found, and the containers of these images that are not yet among them.
fn with_users(atlas: &Atlas<'_>, names: &BTreeSet<String>, mut found: Vec<Who>) -> Vec<Who> {
    let known: BTreeSet<String> = found.iter().map(|who| who.container.clone()).collect();
    found.extend(users(atlas, names).into_iter().filter(|who| !known.contains(&who.container)));
    found.sort_unstable();
    found.dedup_by(|a, b| a.container == b.container);
    found
}

/// The images called `thing`, with or without their namespace.
fn images(atlas: &Atlas<'_>, thing: &str) -> Vec<String> {
    let all = atlas.records.namespaces.iter().flat_map(|(ns, all)| all.images.keys().map(move |name| (ns, name)));
    let called =
        all.filter(|(ns, name)| *name == thing || thing.strip_prefix(ns.as_str()) == Some(&format!("/{name}")));
    called.map(|(ns, name)| format!("{ns}/{name}")).collect()
}

fn image(atlas: &Atlas<'_>, name: &str) -> Result<What> {
    let images = atlas.images()?;
    let target = images.targets.iter().find(|(_, names)| names.iter().any(|n| n == name));
    let digest = target.map(|(digest, _)| digest.to_string()).unwrap_or_default();
    let mut layers = Vec::new();
    for (local, _) in images.manifests.iter().filter(|(_, names)| names.iter().any(|n| n == name)) {
        for chain in local.chains() {
            layers.extend(atlas.layer(&chain)?);
        }
    }
    let containers = users(atlas, &BTreeSet::from([name.to_owned()]));
    Ok(What::Image(ImageInfo { name: name.to_owned(), digest, layers, containers }))
}

/// The containers made of any of these images.
fn users(atlas: &Atlas<'_>, images: &BTreeSet<String>) -> Vec<Who> {
    let of = |c: &crate::containerd::meta::Container| format!("{}/{}", c.name.namespace, c.image);
    let ours = atlas.containers.iter().filter(|known| images.contains(&of(&known.container)));
    ours.map(|known| known.who("its image")).collect()
}
