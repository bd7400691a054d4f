//! Images: their documents, what those name, and the snapshots they were unpacked into.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::Path,
    rc::Rc,
};

use super::super::documents::MAX_DEPTH;
use super::{
    super::documents::{Document, Documents, Local},
    finding::{
        Findings, IMAGE_CHAIN_MISSING, IMAGE_CHAIN_WRONG, IMAGE_CONFIG_MISSING, IMAGE_LAYER_MISSING,
        IMAGE_LAYERS_DISCARDED, IMAGE_MALFORMED, IMAGE_MANIFEST_MISSING, IMAGE_OTHER_PLATFORM, IMAGE_PARTLY_UNPACKED,
        IMAGE_TARGET_MISSING,
    },
    way_in,
};
use crate::{
    containerd::survey::{BlobRecord, ImageRecord, Namespace, Records},
    digest::Digest,
    error::Result,
    host::Host,
    oci::image::{Descriptor, Index, Platform},
};

/// On a manifest's record: it keeps its layers (`core/images/mediatypes.go`, `ChildGCLabels`).
const KEEPS_LAYERS: &str = "containerd.io/gc.ref.content.l.";
/// On a config's record: it was unpacked into that snapshotter, and this is the topmost chain id.
const UNPACKED: &str = "containerd.io/gc.ref.snapshot.";

/// What is known of all images.
#[derive(Default)]
pub struct Images {
    /// By namespace and name.
    pub by_name: BTreeMap<(String, String), Rc<Image>>,
    /// Which images a blob is of, and as what: for those who tell of the blob.
    pub uses: HashMap<Digest, Uses>,
    /// The layers of all images, by chain id.
    pub layers: HashMap<Digest, Layer>,
}

/// What a chain id ends with.
pub struct Layer {
    /// The digest of the layer's tar.
    pub diff_id: Digest,
    /// The blobs that images have of it: they may be compressed in several ways.
    pub blobs: Vec<Digest>,
}

/// Who needs a blob.
pub struct Uses {
    /// `layer of default/localhost/shop:1`.
    pub first: String,
    /// How many more images do.
    pub more: usize,
}

/// The blobs that an image needs on this machine.
#[derive(Default)]
pub struct Image {
    /// Index, manifests, configs and layers.
    pub needs: Vec<(Digest, &'static str)>,
    /// Why it cannot be used, if that is known from its documents.
    pub broken: Option<String>,
    /// Chain id, diff id and blob of each layer.
    pub layers: Vec<(Digest, Digest, Digest)>,
}

/// Checks every image of every namespace; several names of one image are told as one.
pub fn check(host: &Host, meta: &Path, records: &Records, findings: &mut Findings) -> Result<Images> {
    let (mut images, mut documents) = (Images::default(), Documents::of(host));
    for (name, ns) in &records.namespaces {
        let mut groups: BTreeMap<&str, Vec<(&String, &ImageRecord)>> = BTreeMap::new();
        ns.images.iter().for_each(|(name, image)| groups.entry(&image.digest).or_default().push((name, image)));
        let mut partly = Vec::new();
        let mut whole = HashSet::new();
        for group in groups.values() {
            let [(first, record), ..] = group.as_slice() else { continue };
            let more = if group.len() > 1 { format!(" (and {} more names)", group.len() - 1) } else { String::new() };
            let mut judge = Judge {
                thing: format!("image {name}/{first}{more}"),
                place: way_in(meta, format_args!("v1/{name}/images/{first}")),
                ns,
                findings,
                image: Image::default(),
                partly: &mut partly,
                whole: &mut whole,
            };
            judge.judge(record, &mut documents)?;
            let image = Rc::new(judge.image);
            images.remember(&format!("{name}/{first}"), &image, group.len() - 1);
            images
                .by_name
                .extend(group.iter().map(|(image_name, _)| ((name.clone(), (*image_name).clone()), image.clone())));
        }
        // Layers that a whole image shares are no sign of an unpacking cut off.
        for partly in partly.into_iter().filter(|p| p.chains.iter().any(|chain| !whole.contains(chain))) {
            findings.add(&IMAGE_PARTLY_UNPACKED, partly.thing, partly.place, partly.seen);
        }
    }
    Ok(images)
}

impl Images {
    fn remember(&mut self, name: &str, image: &Image, more: usize) {
        for (chain, diff_id, blob) in &image.layers {
            let layer = self.layers.entry(*chain).or_insert_with(|| Layer { diff_id: *diff_id, blobs: Vec::new() });
            if !layer.blobs.contains(blob) {
                layer.blobs.push(*blob);
            }
        }
        for (digest, what) in &image.needs {
            match self.uses.get_mut(digest) {
                Some(uses) => uses.more += 1 + more,
                None => drop(self.uses.insert(*digest, Uses { first: format!("{what} of {name}"), more })),
            }
        }
    }
}

/// An image some of whose layers are unpacked, and that nothing says is.
struct Partly {
    thing: String,
    place: String,
    seen: String,
    chains: Vec<(String, Digest)>,
}

/// One image being judged.
struct Judge<'a> {
    thing: String,
    place: String,
    ns: &'a Namespace,
    findings: &'a mut Findings,
    image: Image,
    partly: &'a mut Vec<Partly>,
    /// Snapshotter and chain id of all layers of images that are unpacked.
    whole: &'a mut HashSet<(String, Digest)>,
}

impl Judge<'_> {
    fn judge(&mut self, record: &ImageRecord, documents: &mut Documents) -> Result<()> {
        let Ok(digest) = record.digest.parse() else {
            self.broken(&super::finding::IMAGE_MALFORMED, format!("its digest is {:?}", record.digest));
            return Ok(());
        };
        if !self.ns.blobs.contains_key(&record.digest) {
            self.broken(&IMAGE_TARGET_MISSING, format!("{} is not on record", record.digest));
        }
        let target = Descriptor::new(&record.media_type, digest, u64::try_from(record.size).unwrap_or(0));
        let mut seen = BTreeSet::new();
        for local in self.locals(&target, documents, 0, &mut seen)? {
            self.local(&local);
        }
        Ok(())
    }

    fn broken(&mut self, code: &super::Code, seen: String) {
        self.image.broken.get_or_insert_with(|| seen.clone());
        self.findings.add(code, &self.thing, &self.place, seen);
    }

    fn need(&mut self, digest: Digest, what: &'static str) {
        self.image.needs.push((digest, what));
    }

    /// The manifests of this platform below `descriptor`.
    fn locals(
        &mut self,
        descriptor: &Descriptor,
        documents: &mut Documents,
        depth: usize,
        seen: &mut BTreeSet<Digest>,
    ) -> Result<Vec<Rc<Local>>> {
        if depth > MAX_DEPTH || !seen.insert(descriptor.digest) {
            return Ok(Vec::new());
        }
        self.need(descriptor.digest, if descriptor.is_index() { "index" } else { "manifest" });
        if !descriptor.is_index() && !descriptor.is_manifest() {
            // Whatever it is, it names nothing that we know of.
            return Ok(Vec::new());
        }
        match documents.get(descriptor)? {
            Document::Manifest(local) => Ok(vec![local]),
            Document::Index(index) => self.children(&index, descriptor, documents, depth, seen),
            // That it is missing or damaged is told of the blob.
            Document::Missing => Ok(Vec::new()),
            Document::Bad(why) => {
                // A damaged blob is told as one; a sound one that makes no sense only here.
                if documents.is_sound(&descriptor.digest) {
                    self.broken(&IMAGE_MALFORMED, format!("{}: {why}", descriptor.digest));
                }
                Ok(Vec::new())
            }
        }
    }

    fn children(
        &mut self,
        index: &Index,
        of: &Descriptor,
        documents: &mut Documents,
        depth: usize,
        seen: &mut BTreeSet<Digest>,
    ) -> Result<Vec<Rc<Local>>> {
        let ns = self.ns;
        let is_recorded = |d: &&&Descriptor| ns.blobs.contains_key(&d.digest.to_string());
        let candidates = index.local(&Platform::local());
        let is_document = |d: &&Descriptor| d.is_index() || d.is_manifest();
        let mut chosen: Vec<&Descriptor> = candidates.iter().filter(is_recorded).copied().collect();
        if chosen.is_empty() {
            let all: Vec<&Descriptor> = index.manifests.iter().filter(is_document).collect();
            chosen = all.iter().filter(is_recorded).copied().collect();
            if let (false, Some(first)) = (chosen.is_empty(), chosen.first()) {
                let seen = format!("manifest {} is there", first.digest);
                self.findings.add(&IMAGE_OTHER_PLATFORM, &self.thing, &self.place, seen);
            } else if let Some(first) = candidates.first() {
                self.broken(&IMAGE_MANIFEST_MISSING, format!("manifest {} is not on record", first.digest));
            } else if !all.is_empty() {
                self.broken(&IMAGE_MANIFEST_MISSING, format!("none of {} is on record", of.digest));
            }
        }
        let mut found = Vec::new();
        for child in chosen {
            found.extend(self.locals(child, documents, depth + 1, seen)?);
        }
        Ok(found)
    }

    fn local(&mut self, local: &Local) {
        self.need(local.config, "config");
        local.layers.iter().for_each(|layer| self.image.needs.push((*layer, "layer")));
        if local.layers.len() == local.diff_ids.len() {
            let layers = local.chains().into_iter().zip(&local.diff_ids).zip(&local.layers);
            self.image.layers.extend(layers.map(|((chain, diff_id), blob)| (chain, *diff_id, *blob)));
        }
        let config = self.ns.blobs.get(&local.config.to_string());
        if config.is_none() {
            self.broken(&IMAGE_CONFIG_MISSING, format!("{} is not on record", local.config));
        }
        let unpacked = self.chains(local, config);
        let lacking: Vec<&Digest> =
            local.layers.iter().filter(|l| !self.ns.blobs.contains_key(&l.to_string())).collect();
        if lacking.is_empty() {
            return;
        }
        let manifest = self.ns.blobs.get(&local.digest.to_string());
        let keeps = manifest.is_some_and(|m| m.labels.keys().any(|label| label.starts_with(KEEPS_LAYERS)));
        let seen = match lacking.as_slice() {
            [one] => format!("layer {one} is not on record"),
            several => format!("{} of {} layers are not on record", several.len(), local.layers.len()),
        };
        if keeps && !unpacked {
            self.broken(&IMAGE_LAYER_MISSING, seen);
        } else {
            self.findings.add(&IMAGE_LAYERS_DISCARDED, &self.thing, &self.place, seen);
        }
    }

    /// Its layers' chain ids against the snapshots; true if it is unpacked somewhere.
    fn chains(&mut self, local: &Local, config: Option<&BlobRecord>) -> bool {
        let chains = local.chains();
        let Some(top) = chains.last() else { return false };
        let labels = config.into_iter().flat_map(|c| &c.labels);
        let claimed: BTreeMap<&str, &str> =
            labels.filter_map(|(label, chain)| Some((label.strip_prefix(UNPACKED)?, chain.as_str()))).collect();
        let snapshotters: BTreeSet<&str> =
            claimed.keys().copied().chain(self.ns.snapshots.keys().map(String::as_str)).collect();
        let mut is_unpacked = false;
        for snapshotter in snapshotters {
            let all = self.ns.snapshots.get(snapshotter);
            let has = |chain: &Digest| all.and_then(|all| all.get(&chain.to_string()));
            is_unpacked |= has(top).is_some();
            self.parents(snapshotter, &chains, &has);
            match (claimed.get(snapshotter), has(top)) {
                (Some(chain), _) if !all.is_some_and(|all| all.contains_key(*chain)) => {
                    let seen =
                        format!("{snapshotter} snapshot {chain}, which its config's record names, is not on record");
                    self.findings.add(&IMAGE_CHAIN_MISSING, &self.thing, &self.place, seen);
                }
                (_, Some(_)) => self.whole.extend(chains.iter().map(|chain| (snapshotter.to_owned(), *chain))),
                (_, None) => self.partly(snapshotter, &chains, &|chain| has(chain).is_some()),
            }
        }
        is_unpacked
    }

    /// A layer's snapshot stands on that of the layer below.
    fn parents<'r>(
        &mut self,
        snapshotter: &str,
        chains: &[Digest],
        has: &dyn Fn(&Digest) -> Option<&'r crate::containerd::survey::SnapshotRecord>,
    ) {
        let below = std::iter::once(String::new()).chain(chains.iter().map(Digest::to_string));
        for (chain, below) in chains.iter().zip(below) {
            if let Some(record) = has(chain).filter(|record| record.parent != below) {
                let parent = if record.parent.is_empty() { "nothing" } else { &record.parent };
                let seen = format!("{snapshotter} snapshot {chain} stands on {parent}");
                self.findings.add(&IMAGE_CHAIN_WRONG, &self.thing, &self.place, seen);
            }
        }
    }

    fn partly(&mut self, snapshotter: &str, chains: &[Digest], has: &dyn Fn(&Digest) -> bool) {
        let present: Vec<_> = chains.iter().filter(|c| has(c)).map(|c| (snapshotter.to_owned(), *c)).collect();
        if !present.is_empty() {
            let seen = format!("{} of {} layers are unpacked in {snapshotter}", present.len(), chains.len());
            self.partly.push(Partly { thing: self.thing.clone(), place: self.place.clone(), seen, chains: present });
        }
    }
}
