//! Layers whose blobs are gone, made again from their committed snapshots.
//!
//! ```text
//! the tar's digest is the recorded diff id, and the blob was that tar    the blob itself: nothing has changed
//! the tar's digest is the recorded diff id, the blob was compressed      same layer, same config, another manifest
//! no known writer wrote it so                                            same files, another diff id, config, manifest
//! manifest or config are gone too                                        an image of the snapshots, with an empty config
//! ```
//! A manifest that is not complete would make an import fail, so a substitute takes the image's name. It says so in
//! annotations, and its `subject` (OCI image spec 1.1, `manifest.md`) is the original, whose documents are in the bundle as
//! far as they were there. An import does not follow a subject.

use std::io::{self, Write};

use flate2::{Compression, GzBuilder, write::GzEncoder};
use serde_json::{Value, json};

use super::{
    Local, entries, fresh_config, oci_type,
    search::{self, Candidate, Goal, Moments, Owners},
    style::{STYLES, Style},
};
use crate::{
    digest::{Digest, Hasher},
    error::{At, Error, Result},
    layout::{Blob, BlobWriter, Staging},
    oci::{
        image::{Config, Descriptor, Manifest},
        names,
    },
    pax::Time,
    rw,
    snapshotter::RwLayer,
    tree::{Kind, Node},
};

/// The committed snapshot of a layer.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Its chain id, where containerd's records have it.
    pub chain: Option<Digest>,
    /// Its files, and those of the layers below.
    pub tree: RwLayer,
}

/// What was made again.
#[derive(Debug, Clone)]
pub struct Recreated {
    /// What the image's record points to; not in the bundle unless its document was there.
    pub original: Descriptor,
    /// The chain id of the original's layers.
    pub chain: Option<Digest>,
    /// The layers, by their place in the image.
    pub layers: Vec<Layer>,
    /// The manifest or the config were gone, so the image has no command and no environment.
    pub lacks_config: bool,
}

/// One layer made again.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its place in the image, from 0.
    pub place: usize,
    /// Its blob in the original image, where that is known.
    pub original: Option<Digest>,
    /// Who writes layers as it was written; `None` if it has another diff id now.
    pub writer: Option<&'static str>,
    /// What could not be put into it.
    pub lost: Vec<String>,
}

impl Recreated {
    /// True if every layer has its recorded diff id.
    pub fn is_exact(&self) -> bool {
        self.layers.iter().all(|layer| layer.writer.is_some())
    }

    /// In words: what is as it was, and what is not. `missing` names the blobs that are gone.
    pub fn account(&self, name: &str, missing: &[String]) -> (Vec<String>, Vec<String>) {
        let (mut notes, mut findings) = (Vec::new(), Vec::new());
        if self.lacks_config {
            findings.push(format!(
                "not in the content store: {} (of {name}); an image of its layers' snapshots takes its place, without a \
                 command and an environment (the container's spec has them)",
                missing.join(", ")
            ));
        }
        let exact = self.layers.iter().filter(|layer| layer.writer.is_some()).count();
        if exact > 0 {
            let mut writers: Vec<_> = self.layers.iter().filter_map(|layer| layer.writer).collect();
            writers.dedup();
            notes.push(format!(
                "{exact} layers of {name} are gone from the content store or damaged there: made again from their \
                 snapshots, byte for byte (as written by {})",
                writers.join("; ")
            ));
        }
        let which = |layer: &Layer| layer.original.map_or_else(|| (layer.place + 1).to_string(), |d| d.to_string());
        let unlike: Vec<_> = self.layers.iter().filter(|layer| layer.writer.is_none()).map(which).collect();
        if !unlike.is_empty() {
            findings.push(format!(
                "layer {} of {name}: made again from the snapshot, with the same files but not byte for byte, so the image \
                 in the bundle has other digests than the original",
                unlike.join(", ")
            ));
        }
        let lost = self.layers.iter().flat_map(|layer| layer.lost.iter().map(move |lost| (which(layer), lost)));
        findings.extend(lost.map(|(layer, lost)| format!("layer {layer} of {name}: {lost}")));
        (notes, findings)
    }

    /// The annotation's value.
    fn quality(&self) -> &'static str {
        if self.is_exact() { EXACT } else { EQUIVALENT }
    }

    /// The checkpoint's entry says of what its base image was made.
    pub fn annotate(&self, entry: Descriptor) -> Descriptor {
        let entry = entry.with(names::IMAGE_RECREATED, self.quality());
        let original = self.original.digest.to_string();
        if self.knows_original() { entry.with(names::IMAGE_ORIGINAL, original) } else { entry }
    }

    /// False if no record tells which image it was; then its digest stands for nothing.
    fn knows_original(&self) -> bool {
        !self.original.media_type.is_empty()
    }
}

/// Values of [`names::LAYER_RECREATED`] and [`names::IMAGE_RECREATED`].
const EXACT: &str = "exact";
const EQUIVALENT: &str = "equivalent";

/// An image that is not wholly in the content store.
pub(super) struct Incomplete<'a> {
    /// What the record points to.
    pub target: &'a Descriptor,
    /// The target's document is in the staging.
    pub has_target: bool,
    /// The documents, if both are there.
    pub local: Option<&'a Local>,
    /// Layers that are not in the staging, by place.
    pub lacking: &'a [usize],
}

/// The image that was made.
pub(super) struct Made {
    /// What its name stands for now.
    pub target: Descriptor,
    pub local: Local,
    pub recreated: Recreated,
}

/// Makes an incomplete image whole from `snapshots`, bottom first.
pub(super) fn rebuild(image: &Incomplete<'_>, snapshots: &[Committed], staging: &Staging) -> Result<Made> {
    match image.local {
        Some(local) => substitute(image, local, snapshots, staging),
        None => anew(image, snapshots, staging),
    }
}

/// The same image as an earlier run into this layout made it, if it is `known` there: a search is long, and containers of
/// one image are many.
///
/// The layout may be anybody's, so nothing in it is believed: only an exact image is taken, whose config is the original,
/// whose other layers are the original's, and each of whose layers made again unpacks to its recorded diff id.
pub(super) fn known(image: &Incomplete<'_>, known: &Descriptor, staging: &Staging) -> Option<Made> {
    let local = image.local?;
    let bytes = staging.landed_document(&known.digest).ok().filter(|bytes| Digest::of(bytes) == known.digest)?;
    let manifest: Manifest = serde_json::from_slice(&bytes).ok()?;
    let diff_ids = parsed::<Config>(&local.config).ok()?.rootfs.diff_ids;
    let old = &local.manifest.layers;
    if manifest.config.digest != Digest::of(&local.config)
        || manifest.layers.len() != old.len()
        || diff_ids.len() != old.len()
    {
        return None;
    }
    let mut layers = Vec::new();
    for (place, layer) in manifest.layers.iter().enumerate() {
        if !image.lacking.contains(&place) {
            if layer.digest != old[place].digest {
                return None;
            }
            continue;
        }
        if !staging.has(&layer.digest, layer.size) || staging.landed_diff_id(&layer.digest).ok()? != diff_ids[place] {
            return None;
        }
        let writer = layer.annotations.get(names::LAYER_WRITER)?;
        let writer = STYLES.iter().map(|style| style.writer).find(|known| known == writer)?;
        layers.push(Layer { place, original: Some(old[place].digest), writer: Some(writer), lost: Vec::new() });
    }
    let chain = super::chain_of(&diff_ids);
    let recreated = Recreated { original: image.target.clone(), chain, layers, lacks_config: false };
    let target = Descriptor::new(&known.media_type, known.digest, known.size);
    Some(Made { target, local: Local { manifest, config: local.config.clone() }, recreated })
}

/// The documents are there: layers that are gone are replaced, everything else stays.
fn substitute(image: &Incomplete<'_>, local: &Local, snapshots: &[Committed], staging: &Staging) -> Result<Made> {
    let config: Config = parsed(&local.config)?;
    let mut diff_ids = config.rootfs.diff_ids;
    let mut layers = local.manifest.layers.clone();
    if diff_ids.len() != layers.len() || snapshots.len() != layers.len() {
        let counts = format!("{} layers, {} diff ids, {} snapshots", layers.len(), diff_ids.len(), snapshots.len());
        return Err(Error::malformed(image.target.digest.to_string(), counts));
    }
    let chain = super::chain_of(&diff_ids);
    let mut maker = Maker { snapshots, staging, created: created(&local.config), before: None, made: Vec::new() };
    for &place in image.lacking {
        let goal = Goal::DiffId(diff_ids[place]);
        (layers[place], diff_ids[place]) = maker.layer(place, goal, Some(&local.manifest.layers[place]))?;
    }
    let recreated = Recreated { original: image.target.clone(), chain, layers: maker.made, lacks_config: false };
    if layers.iter().zip(&local.manifest.layers).all(|(new, old)| new.digest == old.digest) {
        return Ok(Made { target: image.target.clone(), local: local.clone(), recreated });
    }
    let config = if recreated.is_exact() { local.config.clone() } else { with_diff_ids(&local.config, &diff_ids)? };
    finish(image, config, layers, recreated, staging)
}

/// Only the snapshots are left.
fn anew(image: &Incomplete<'_>, snapshots: &[Committed], staging: &Staging) -> Result<Made> {
    if snapshots.is_empty() {
        return Err(Error::malformed(image.target.digest.to_string(), "there is no snapshot of any layer"));
    }
    let mut maker = Maker { snapshots, staging, created: Vec::new(), before: None, made: Vec::new() };
    let (mut layers, mut diff_ids, mut below) = (Vec::new(), Vec::new(), None);
    for (place, snapshot) in snapshots.iter().enumerate() {
        let goal = match (place, snapshot.chain, below) {
            (0, Some(whole), _) => Goal::Chain { below: None, whole },
            (_, Some(whole), Some(below)) => Goal::Chain { below: Some(below), whole },
            _ => Goal::Unknown,
        };
        let (layer, diff_id) = maker.layer(place, goal, None)?;
        layers.push(layer);
        diff_ids.push(diff_id);
        below = snapshot.chain;
    }
    let chain = snapshots.last().and_then(|top| top.chain);
    let recreated = Recreated { original: image.target.clone(), chain, layers: maker.made, lacks_config: true };
    let config = serde_json::to_vec(&fresh_config()).map_err(|e| Error::malformed("image config", e))?;
    finish(image, with_diff_ids(&config, &diff_ids)?, layers, recreated, staging)
}

/// Writes config and manifest.
fn finish(
    image: &Incomplete<'_>,
    config: Vec<u8>,
    layers: Vec<Descriptor>,
    recreated: Recreated,
    staging: &Staging,
) -> Result<Made> {
    let Blob { digest, size } = staging.plain_blob_of(&config)?;
    let described = Descriptor::new(names::CONFIG, digest, size);
    let layers: Vec<_> =
        layers.into_iter().map(|l| Descriptor { media_type: oci_type(&l.media_type).to_owned(), ..l }).collect();
    let mut annotations = json!({ names::IMAGE_RECREATED: recreated.quality() });
    if recreated.knows_original() {
        annotations[names::IMAGE_ORIGINAL] = image.target.digest.to_string().into();
    }
    if recreated.lacks_config {
        annotations[names::CONFIG_RECREATED] = "empty".into();
    }
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": names::MANIFEST, "config": described, "layers": layers,
    });
    if image.has_target {
        let Descriptor { media_type, digest, size, .. } = image.target;
        manifest["subject"] = json!({"mediaType": media_type, "digest": digest, "size": size});
    }
    manifest["annotations"] = annotations;
    let bytes = serde_json::to_vec(&manifest).map_err(|e| Error::malformed("image manifest", e))?;
    let Blob { digest, size } = staging.plain_blob_of(&bytes)?;
    let manifest = Manifest { config: described, layers, artifact_type: None, subject: None };
    Ok(Made { target: Descriptor::new(names::MANIFEST, digest, size), local: Local { manifest, config }, recreated })
}

fn parsed<T: serde::de::DeserializeOwned>(config: &[u8]) -> Result<T> {
    serde_json::from_slice(config).map_err(|e| Error::malformed("image config", e))
}

fn with_diff_ids(config: &[u8], diff_ids: &[Digest]) -> Result<Vec<u8>> {
    let mut config: Value = parsed(config)?;
    config["rootfs"]["diff_ids"] = json!(diff_ids);
    serde_json::to_vec(&config).map_err(|e| Error::malformed("image config", e))
}

/// When the image, and each of its layers, was made: builders give the same time to what has none.
fn created(config: &[u8]) -> Vec<Time> {
    let Ok(config) = serde_json::from_slice::<Value>(config) else { return Vec::new() };
    let history = config.get("history").and_then(Value::as_array).into_iter().flatten();
    let times = history.chain([&config]).filter_map(|of| of.get("created")?.as_str()?.parse::<jiff::Timestamp>().ok());
    let mut all: Vec<_> = times.map(|time| Time { secs: time.as_second(), nanos: 0 }).collect();
    all.sort_unstable();
    all.dedup();
    // An image of hundreds of layers would have as many; the last are the likeliest.
    all.split_off(all.len().saturating_sub(MAX_MOMENTS))
}

/// So many times of an image's history are tried.
const MAX_MOMENTS: usize = 4;

/// A layer stored compressed; it is read once.
const GZIP_LEVEL: u32 = 1;

struct Maker<'a> {
    snapshots: &'a [Committed],
    staging: &'a Staging,
    created: Vec<Time>,
    before: Option<&'static Style>,
    made: Vec<Layer>,
}

impl Maker<'_> {
    /// Makes the layer at `place`: its descriptor and diff id.
    fn layer(&mut self, place: usize, goal: Goal, original: Option<&Descriptor>) -> Result<(Descriptor, Digest)> {
        let plain = original.filter(|layer| is_plain(&layer.media_type));
        let exact = if matches!(goal, Goal::Unknown) { None } else { self.exact(place, goal, plain)? };
        let (descriptor, diff_id, writer, lost) = match exact {
            Some((descriptor, diff_id, writer)) => (descriptor, diff_id, Some(writer), Vec::new()),
            None => {
                let (descriptor, diff_id, lost) = self.equivalent(place)?;
                (descriptor, diff_id, None, lost)
            }
        };
        let original = original.map(|layer| layer.digest);
        self.made.push(Layer { place, original, writer, lost });
        if Some(descriptor.digest) == original {
            return Ok((descriptor, diff_id));
        }
        let quality = if writer.is_some() { EXACT } else { EQUIVALENT };
        let mut descriptor = descriptor.with(names::LAYER_RECREATED, quality);
        if let Some(writer) = writer {
            descriptor = descriptor.with(names::LAYER_WRITER, writer);
        }
        if let Some(original) = original {
            descriptor = descriptor.with(names::LAYER_ORIGINAL, original.to_string());
        }
        Ok((descriptor, diff_id))
    }

    /// The layer as it was, byte for byte, if a known writer wrote it. One whose blob was the tar itself is that blob.
    fn exact(
        &mut self,
        place: usize,
        goal: Goal,
        plain: Option<&Descriptor>,
    ) -> Result<Option<(Descriptor, Digest, &'static str)>> {
        // What cannot be read shows again, by name, when the layer is written in our own style.
        let entries = match entries::read(&self.snapshots[place].tree) {
            Ok(Some(entries)) => entries,
            Ok(None) => return Ok(None),
            Err(e) => return hopeless(e),
        };
        let owners = self.owners(place);
        let moments = Moments::of(&entries, &self.created);
        let found = search::find(&entries, goal, plain.map(|layer| layer.size), &owners, &moments, self.before);
        let how: Candidate<'_> = match found {
            Ok(Some(how)) => how,
            Ok(None) => return Ok(None),
            Err(e) => return hopeless(e),
        };
        self.before = Some(how.style);
        let mut out = Sink::open(self.staging, plain.is_none())?;
        let diff_id = search::write(&entries, how, &mut out)?;
        let blob = out.finish()?;
        let media_type = plain.map_or(names::LAYER_GZIP, |layer| &layer.media_type);
        let descriptor = Descriptor::new(media_type, blob.digest, blob.size);
        Ok(goal.is_met(&diff_id).then_some((descriptor, diff_id, how.style.writer)))
    }

    /// The same files in our own style.
    fn equivalent(&self, place: usize) -> Result<(Descriptor, Digest, Vec<String>)> {
        let mut out = Sink::open(self.staging, true)?;
        let mut plain = Hashing { to: &mut out, hasher: Hasher::default() };
        let summary = rw::write_layer(&self.snapshots[place].tree, &mut plain)?;
        let diff_id = plain.hasher.finish();
        let blob = out.finish()?;
        let lost = summary.left_out.iter().map(ToString::to_string);
        let lost = lost.chain(summary.warnings.iter().map(ToString::to_string)).collect();
        Ok((Descriptor::new(names::LAYER_GZIP, blob.digest, blob.size), diff_id, lost))
    }

    /// The owners that the image itself names, as of this layer.
    fn owners(&self, place: usize) -> Owners {
        let table = |name: &[u8]| {
            let trees = self.snapshots.iter().take(place + 1).rev();
            trees.map(|snapshot| small_file(&snapshot.tree, name)).find_map(|found| found).unwrap_or_default()
        };
        Owners::of(&table(b"passwd"), &table(b"group"))
    }
}

/// No search in a tree that cannot be read; an interrupt is no such thing.
fn hopeless<T>(e: Error) -> Result<Option<T>> {
    if matches!(e, Error::Interrupted) { Err(e) } else { Ok(None) }
}

fn is_plain(media_type: &str) -> bool {
    matches!(media_type, names::LAYER_TAR | names::DOCKER_LAYER_TAR)
}

/// `/etc/<name>` of a layer, if it has one of its own.
fn small_file(tree: &RwLayer, name: &[u8]) -> Option<Vec<u8>> {
    const MAX: u64 = 1 << 20;
    let node = Node::open(entries::place(tree)).ok()?.child(b"etc").ok()?.child(name).ok()?;
    let is_small = node.meta.kind == Kind::File && node.meta.size <= MAX;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(node.data().ok().filter(|_| is_small)?, MAX), &mut bytes).ok()?;
    Some(bytes)
}

/// A blob on its way, compressed or not.
enum Sink {
    Plain(Box<BlobWriter>),
    Gzip(Box<GzEncoder<BlobWriter>>),
}

impl Sink {
    fn open(staging: &Staging, compressed: bool) -> Result<Self> {
        let blob = staging.plain_blob()?;
        // No name and no time in the header: same bytes in, same bytes out.
        let gzip = |blob| Self::Gzip(Box::new(GzBuilder::new().write(blob, Compression::new(GZIP_LEVEL))));
        Ok(if compressed { gzip(blob) } else { Self::Plain(Box::new(blob)) })
    }

    fn finish(self) -> Result<Blob> {
        match self {
            Self::Plain(blob) => blob.complete(),
            Self::Gzip(gzip) => gzip.finish().at("compress", "a layer")?.complete(),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(blob) => blob.write(bytes),
            Self::Gzip(gzip) => gzip.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Hashing<'a> {
    to: &'a mut dyn Write,
    hasher: Hasher,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.hasher.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{layout::Layout, pax};

    /// A layer that was stored as a plain tar is its own blob again: the original image is whole, and nothing is replaced.
    #[test]
    fn a_plain_layer_made_again_is_the_blob_itself() {
        let temp = tempfile::tempdir().unwrap();
        let script = "mkdir -p tree/etc fs; echo root > tree/etc/motd
            find tree -exec touch -hd 2001-02-03T04:05:06Z {} +
            tar -C tree --sort=name --numeric-owner --owner=0 --group=0 -cf tar .; tar -C fs -xpf tar";
        assert!(Command::new("bash").args(["-ec", script]).current_dir(&temp).status().unwrap().success());
        let tar = std::fs::read(temp.path().join("tar")).unwrap();
        let (digest, size) = (Digest::of(&tar), tar.len() as u64);
        let snapshot = Committed { chain: None, tree: RwLayer::Tree { dir: temp.path().join("fs").into() } };
        for (media_type, is_same) in [(names::LAYER_TAR, true), (names::LAYER_GZIP, false)] {
            let layout = Layout::open_or_create(&temp.path().join(format!("layout-{is_same}"))).unwrap();
            let staging = layout.stage().unwrap();
            let config = serde_json::to_vec(&json!({"rootfs": {"diff_ids": [digest]}})).unwrap();
            let layers = vec![Descriptor::new(media_type, digest, size)];
            let described = Descriptor::new(names::CONFIG, Digest::of(&config), config.len() as u64);
            let local =
                Local { manifest: Manifest { config: described, layers, artifact_type: None, subject: None }, config };
            let target = Descriptor::new(names::MANIFEST, Digest::of(b"target"), 6);
            let image = Incomplete { target: &target, has_target: true, local: Some(&local), lacking: &[0] };
            let made = rebuild(&image, std::slice::from_ref(&snapshot), &staging).unwrap();
            // The owner of the files is whoever runs the tests.
            if !made.recreated.is_exact() {
                assert!(!rustix::process::geteuid().is_root());
                continue;
            }
            assert_eq!(made.target == target, is_same);
            assert_eq!(staging.has(&digest, size), is_same);
            assert_eq!(made.local.config, local.config, "the config stays whatever the blobs");
        }
    }

    /// Whoever wrote the layout may have put another layer under the image's name.
    #[test]
    fn an_image_of_the_layout_is_taken_only_if_it_unpacks_to_what_is_recorded() {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::open_or_create(&temp.path().join("layout")).unwrap();
        let tar = pax::END;
        let config = serde_json::to_vec(&json!({"rootfs": {"diff_ids": [Digest::of(&tar)]}})).unwrap();
        let described = Descriptor::new(names::CONFIG, Digest::of(&config), config.len() as u64);
        let layers = vec![Descriptor::new(names::LAYER_GZIP, Digest::of(b"gone"), 4)];
        let local = Local {
            manifest: Manifest { config: described.clone(), layers, artifact_type: None, subject: None },
            config,
        };
        let target = Descriptor::new(names::MANIFEST, Digest::of(b"target"), 6);
        let image = Incomplete { target: &target, has_target: false, local: Some(&local), lacking: &[0] };
        for (content, is_taken) in [(&tar[..], true), (&[0; 1536], false)] {
            let staging = layout.stage().unwrap();
            let Blob { digest, size } = staging.blob_of(content).unwrap();
            let layer = Descriptor::new(names::LAYER_TAR, digest, size).with(names::LAYER_WRITER, STYLES[0].writer);
            let recreated =
                Recreated { original: target.clone(), chain: None, layers: Vec::new(), lacks_config: false };
            let made = finish(&image, local.config.clone(), vec![layer], recreated, &staging).unwrap();
            layout.commit(&staging, std::slice::from_ref(&made.target)).unwrap();
            assert_eq!(known(&image, &made.target, &layout.stage().unwrap()).is_some(), is_taken);
        }
    }

    #[test]
    fn an_image_of_other_counts_than_its_snapshots_is_not_guessed_at() {
        let temp = tempfile::tempdir().unwrap();
        let staging = Layout::open_or_create(&temp.path().join("layout")).unwrap().stage().unwrap();
        let config = json!({"rootfs": {"diff_ids": [Digest::of(b"1")]}}).to_string().into_bytes();
        let described = Descriptor::new(names::CONFIG, Digest::of(&config), 1);
        let layers = vec![Descriptor::new(names::LAYER_GZIP, Digest::of(b"l"), 1)];
        let local =
            Local { manifest: Manifest { config: described, layers, artifact_type: None, subject: None }, config };
        let target = Descriptor::new(names::MANIFEST, Digest::of(b"target"), 6);
        let image = Incomplete { target: &target, has_target: true, local: Some(&local), lacking: &[0] };
        assert!(rebuild(&image, &[], &staging).is_err());
        let image = Incomplete { local: None, ..image };
        assert!(rebuild(&image, &[], &staging).is_err(), "nothing is left to make an image of");
    }
}
