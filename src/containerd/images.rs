//! Which images are in the content store, without meta.db: every document is looked at, and those that belong together joined.
//!
//! ```text
//! config    {"rootfs": {"diff_ids": […]}}       gives the chain id, by which a snapshot tells what it stands on
//! manifest  {"config": {"digest": …}, "layers": […]}
//! index     {"manifests": [{"digest": …, "annotations": {"io.containerd.image.name": …}}]}     may know its name
//! ```

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use super::meta::{Image, Origin};
use crate::{
    digest::Digest,
    host::{Host, database},
    ledger,
    oci::{
        image::{Config, Index, Manifest, chain_of},
        names,
    },
};

/// Documents of images are of some KiB; larger ones that would be read only to be thrown away are layers.
const MAX_DOCUMENT: u64 = 1 << 20;

/// So many blobs are looked at; a node has some thousands.
const MAX_BLOBS: usize = 200_000;

/// The images of a content store, by the chain ids of their layers.
#[derive(Debug, Default)]
pub struct Images {
    by_chain: BTreeMap<Digest, Image>,
}

/// A manifest, without what it is not asked for.
struct Found {
    media_type: String,
    digest: Digest,
    size: u64,
    config: Digest,
}

impl Images {
    /// Reads the documents of `host`'s content store. What cannot be read or understood is no document.
    pub fn of(host: &Host) -> Self {
        let dir = host.root.join("io.containerd.content.v1.content/blobs/sha256");
        let Ok(dir) = host.inside(&dir) else { return Self::default() };
        let (mut chains, mut manifests, mut names) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        for (digest, path) in blobs(&dir) {
            let Some(bytes) = document(&path) else { continue };
            if let Ok(index) = serde_json::from_slice::<Index>(&bytes) {
                let named = index.manifests.iter().filter_map(|entry| Some((entry.digest, entry.name()?.to_owned())));
                names.extend(named.filter(|(_, name)| is_reference(name)));
            } else if let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) {
                manifests.push(Found {
                    media_type: media_type(&bytes),
                    digest,
                    size: bytes.len() as u64,
                    config: manifest.config.digest,
                });
            } else if let Ok(config) = serde_json::from_slice::<Config>(&bytes) {
                chains.extend(chain_of(&config.rootfs.diff_ids).map(|chain| (digest, chain)));
            }
        }
        let image = |found: Found| {
            let name = names.get(&found.digest).cloned().unwrap_or_default();
            let Found { media_type, digest, size, config } = found;
            Some((*chains.get(&config)?, Image { name, digest, media_type, size, origin: Origin::Live }))
        };
        let mut by_chain = BTreeMap::new();
        for (chain, image) in manifests.into_iter().filter_map(image) {
            // Of several manifests for the same layers, one with a name.
            let known: &mut Image = by_chain.entry(chain).or_insert_with(|| image.clone());
            if known.name.is_empty() {
                *known = image;
            }
        }
        Self { by_chain }
    }

    /// The image whose layers have this chain id; its name is empty where no document tells it.
    pub fn with_chain(&self, chain: &Digest) -> Option<&Image> {
        self.by_chain.get(chain)
    }
}

fn blobs(dir: &Path) -> impl Iterator<Item = (Digest, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().take(MAX_BLOBS);
    entries.filter_map(|entry| {
        let meta = entry.metadata().ok().filter(|meta| meta.is_file() && meta.len() <= MAX_DOCUMENT);
        let digest = format!("sha256:{}", entry.file_name().to_str()?).parse().ok();
        digest.filter(|_| meta.is_some()).map(|digest| (digest, entry.path()))
    })
}

/// The bytes of a blob that begins as JSON does.
fn document(path: &Path) -> Option<Vec<u8>> {
    let mut file = database::open(path).ok()?;
    let (seen, mut bytes) = (ledger::look(&file), vec![0]);
    file.read_exact(&mut bytes).ok().filter(|()| bytes == b"{")?;
    file.take(MAX_DOCUMENT).read_to_end(&mut bytes).ok()?;
    ledger::read("blob", path, seen, &bytes);
    Some(bytes)
}

fn media_type(manifest: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    let typed = serde_json::from_slice::<Typed>(manifest).ok().and_then(|typed| typed.media_type);
    typed.filter(|text| !text.is_empty()).unwrap_or_else(|| names::MANIFEST.to_owned())
}

/// A bare tag (`latest`, as other tools write into an index) names no image.
fn is_reference(name: &str) -> bool {
    name.contains('/') && !name.contains(char::is_whitespace)
}
