//! The base image: its closure in the content store, carried byte for byte; what is gone from there, made again from its
//! snapshots ([`rebuild`]); and the image that the container's files make on top of it.

use std::collections::BTreeMap;

use oci_spec::image::{Descriptor as WrittenDescriptor, ImageManifestBuilder, MediaType};
use serde_json::{Value, json};

use crate::{
    containerd::{content::Content, meta::Image},
    digest::Digest,
    error::{Error, Result},
    layout::{Blob, Staging},
    oci::{
        image::{Config, Descriptor, Index, Manifest, Platform, chain_of},
        names,
    },
    rw::Layer,
};

pub mod dialect;
pub mod entries;
pub mod rebuild;
pub mod search;
pub mod style;
pub mod unpacked;

pub use rebuild::{Committed, Recreated};

/// A base image as far as it is in the layout.
#[derive(Debug, Clone)]
pub struct Base {
    /// Its exact name in containerd's records.
    pub name: String,
    /// What its name stands for in the bundle: what the record points to, or the image made again from its snapshots.
    pub target: Descriptor,
    /// The manifest for this machine, when its documents are here.
    pub local: Option<Local>,
    /// Blobs that the store lacks or has damaged, in words; they are in the bundle if the image was made again.
    pub missing: Vec<String>,
    /// Its blobs are in the layout; false when only referenced.
    pub carried: bool,
    /// What was made again, or why what is missing could not be.
    pub recreated: Result<Option<Recreated>, String>,
}

/// The documents of one platform's image.
#[derive(Debug, Clone)]
pub struct Local {
    /// The manifest.
    pub manifest: Manifest,
    /// The config, verbatim.
    pub config: Vec<u8>,
}

/// Where an image that is not whole may be had from.
pub struct Sources<'a> {
    /// The entry of its name in the layout: an earlier run may have made it again.
    pub known: Option<Descriptor>,
    /// Finds the committed snapshots of the image with a chain id, bottom first; without one, those of the container.
    pub snapshots: &'a dyn Fn(Option<Digest>) -> Result<Vec<Committed>>,
}

/// Copies the image's blobs that this machine needs into the staging; with `carry` false, it only reads the documents.
///
/// A blob that the store lacks or has damaged is named in the result and hides no other. If there is one, the image is made
/// again from its snapshots; where that fails, the result says why.
pub fn export(content: &Content, image: &Image, staging: &Staging, carry: bool, sources: &Sources<'_>) -> Result<Base> {
    let target = Descriptor::new(&image.media_type, image.digest, image.size);
    let mut export = Export { content, staging, carry, missing: Vec::new(), local: None, lacking: Vec::new() };
    if image.is_known() {
        export.descend(&target, 0)?;
    } else {
        export.missing.push("anything that tells which image it was".into());
    }
    if export.local.is_none() && export.missing.is_empty() {
        export.missing.push(format!("{} has no manifest for this machine's platform", image.name));
    }
    let Export { missing, local, lacking, .. } = export;
    let name = image.name.clone();
    let mut base = Base { name, target, local, missing, carried: carry, recreated: Ok(None) };
    if carry && (!lacking.is_empty() || base.local.is_none()) {
        base.rebuild(&lacking, staging, sources)?;
    }
    Ok(base)
}

/// An index in an index in an index: nobody builds such images.
const MAX_DEPTH: usize = 4;

struct Export<'a> {
    content: &'a Content,
    staging: &'a Staging,
    carry: bool,
    missing: Vec<String>,
    local: Option<Local>,
    /// The layers of `local` that are missing, by place.
    lacking: Vec<usize>,
}

impl Export<'_> {
    /// Takes in a document and what this machine needs below it.
    fn descend(&mut self, descriptor: &Descriptor, depth: usize) -> Result<()> {
        let Some(bytes) = self.document(descriptor)? else { return Ok(()) };
        let understood = match (descriptor.is_index(), descriptor.is_manifest()) {
            (true, _) if depth < MAX_DEPTH => self.index(&bytes, depth)?,
            (_, true) => self.manifest(&bytes)?,
            _ => Err(format!("media type {:?} is no image", descriptor.media_type)),
        };
        if let Err(why) = understood {
            self.missing.push(format!("{}: {why}", descriptor.digest));
        }
        Ok(())
    }

    fn index(&mut self, bytes: &[u8], depth: usize) -> Result<Result<(), String>> {
        let index: Index = match serde_json::from_slice(bytes) {
            Ok(index) => index,
            Err(e) => return Ok(Err(e.to_string())),
        };
        let candidates = index.local(&Platform::local());
        // A pull fetches the best match only; others that would also serve may be absent, and nobody misses them.
        let present: Vec<_> =
            candidates.iter().filter(|d| matches!(self.content.open(&d.digest), Ok(Some(_)))).collect();
        if let (true, Some(first)) = (present.is_empty(), candidates.first()) {
            self.missing.push(format!("manifest {} for this platform", first.digest));
        }
        for child in present {
            self.descend(child, depth + 1)?;
        }
        Ok(Ok(()))
    }

    fn manifest(&mut self, bytes: &[u8]) -> Result<Result<(), String>> {
        let manifest: Manifest = match serde_json::from_slice(bytes) {
            Ok(manifest) => manifest,
            Err(e) => return Ok(Err(e.to_string())),
        };
        let config = self.document(&manifest.config)?;
        let layers = if self.carry { manifest.layers.as_slice() } else { &[] };
        let mut lacking = Vec::new();
        for (place, layer) in layers.iter().enumerate() {
            if !self.copy(layer)? {
                lacking.push(place);
            }
        }
        if let (None, Some(config)) = (&self.local, config) {
            self.local = Some(Local { manifest, config });
            self.lacking = lacking;
        }
        Ok(Ok(()))
    }

    /// A small blob, put into the staging too.
    fn document(&mut self, descriptor: &Descriptor) -> Result<Option<Vec<u8>>> {
        match self.content.document(&descriptor.digest) {
            Ok(Some(bytes)) => {
                if self.carry && !self.staging.has(&descriptor.digest, bytes.len() as u64) {
                    self.staging.plain_blob_of(&bytes)?;
                }
                return Ok(Some(bytes));
            }
            Ok(None) => self.missing.push(format!("{} {}", descriptor.media_type, descriptor.digest)),
            Err(e @ Error::Malformed { .. }) => self.missing.push(e.to_string()),
            Err(e) => return Err(e),
        }
        Ok(None)
    }

    /// A large blob: copied, or shared by the file system, and verified. False if the store does not have it whole.
    fn copy(&mut self, layer: &Descriptor) -> Result<bool> {
        if self.staging.has(&layer.digest, layer.size) {
            return Ok(true);
        }
        let Some(file) = self.content.open(&layer.digest)? else {
            self.missing.push(format!("layer {} ({} bytes)", layer.digest, layer.size));
            return Ok(false);
        };
        let path = self.content.path(&layer.digest);
        let is_whole = self.staging.copy_of(&file, &path, &layer.digest)?.is_some();
        if !is_whole {
            self.missing.push(format!("{} is damaged: its content has another digest", path.display()));
        }
        Ok(is_whole)
    }
}

/// The image of the container's files: the base's layers and the rw layer, the base's config with one diff id more.
///
/// `None` when the base is not wholly here. Nothing in it depends on the time, so the same files give the same digest.
pub fn committed(base: Option<&Base>, layer: &Layer, staging: &Staging) -> Result<Option<Descriptor>> {
    let (config, layers) = match base {
        None => (fresh_config(), Vec::new()),
        Some(base @ Base { local: Some(local), .. }) if base.is_whole() => {
            let config = serde_json::from_slice(&local.config).map_err(|e| Error::malformed("image config", e))?;
            (config, local.manifest.layers.clone())
        }
        Some(_) => return Ok(None),
    };
    let config = staging.blob_of(&with_layer(config, layer.diff_id)?)?;
    let below = layers.iter().map(|l| written(oci_type(&l.media_type), Blob { digest: l.digest, size: l.size }));
    let all = below.chain([written(layer.media_type, layer.blob)]).collect::<Result<Vec<_>>>()?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(written(names::CONFIG, config)?)
        .layers(all)
        .build()
        .map_err(|e| Error::malformed("image manifest", e))?;
    let bytes = serde_json::to_vec(&manifest).map_err(|e| Error::malformed("image manifest", e))?;
    let Blob { digest, size } = staging.blob_of(&bytes)?;
    Ok(Some(Descriptor::new(names::MANIFEST, digest, size)))
}

fn written(media_type: &str, blob: Blob) -> Result<WrittenDescriptor> {
    let digest: oci_spec::image::Digest =
        blob.digest.to_string().parse().map_err(|e| Error::malformed("image manifest", e))?;
    Ok(WrittenDescriptor::new(MediaType::from(media_type), blob.size, digest))
}

/// An OCI manifest names layers in OCI's words; Docker's bytes are the same.
fn oci_type(media_type: &str) -> &str {
    match media_type {
        names::DOCKER_LAYER_GZIP => names::LAYER_GZIP,
        names::DOCKER_LAYER_TAR => names::LAYER_TAR,
        names::DOCKER_LAYER_ZSTD => names::LAYER_ZSTD,
        other => other,
    }
}

fn fresh_config() -> Value {
    let Platform { architecture, os, variant, .. } = Platform::local();
    let mut config =
        json!({"architecture": architecture, "os": os, "config": {}, "rootfs": {"type": "layers", "diff_ids": []}});
    if let (Some(variant), Some(members)) = (variant, config.as_object_mut()) {
        members.insert("variant".into(), variant.into());
    }
    config
}

fn with_layer(mut config: Value, diff_id: Digest) -> Result<Vec<u8>> {
    let diff_ids = config.pointer_mut("/rootfs/diff_ids").and_then(Value::as_array_mut);
    let diff_ids = diff_ids.ok_or_else(|| Error::malformed("image config", "has no rootfs.diff_ids"))?;
    diff_ids.push(diff_id.to_string().into());
    // Tools count history against layers, so an entry goes where there are others.
    if let Some(history) = config.get_mut("history").and_then(Value::as_array_mut) {
        history.push(json!({"created_by": "dewar checkpoint", "comment": "the container's rw layer"}));
    }
    serde_json::to_vec(&config).map_err(|e| Error::malformed("image config", e))
}

/// True for what ends the run: the user's wish, or a disk that takes no more.
fn is_ours(e: &Error) -> bool {
    let writes = ["write", "write into", "compress", "sync a blob in", "rename a blob to"];
    matches!(e, Error::Interrupted) || matches!(e, Error::Io { verb, .. } if writes.contains(verb))
}

impl Base {
    /// The chain id of the layers that the record points to: the key of the snapshot that an unpack makes. An image made
    /// again may have another, but the container stands on this one.
    pub fn chain_id(&self) -> Option<Digest> {
        if let Ok(Some(recreated)) = &self.recreated {
            return recreated.chain;
        }
        let config: Config = serde_json::from_slice(&self.local.as_ref()?.config).ok()?;
        chain_of(&config.rootfs.diff_ids)
    }

    /// True if all that an unpack needs is in the layout.
    fn is_whole(&self) -> bool {
        let is_recreated = matches!(self.recreated, Ok(Some(_)));
        self.carried && self.local.is_some() && (self.missing.is_empty() || is_recreated)
    }

    /// Makes the image again from its snapshots; that this cannot be done costs nothing else.
    fn rebuild(&mut self, lacking: &[usize], staging: &Staging, sources: &Sources<'_>) -> Result<()> {
        let target = self.target.clone();
        let has_target = staging.has(&target.digest, target.size);
        let image = rebuild::Incomplete { target: &target, has_target, local: self.local.as_ref(), lacking };
        let known = sources.known.as_ref().and_then(|known| rebuild::known(&image, known, staging));
        let made = known.map_or_else(
            || (sources.snapshots)(self.chain_id()).and_then(|found| rebuild::rebuild(&image, &found, staging)),
            Ok,
        );
        match made {
            Ok(made) => {
                self.target = made.target;
                self.local = Some(made.local);
                self.recreated = Ok(Some(made.recreated));
            }
            Err(e) if is_ours(&e) => return Err(e),
            Err(e) => self.recreated = Err(e.to_string()),
        }
        Ok(())
    }

    /// Its entry in `index.json`, under its own exact name.
    pub fn entry(&self) -> Descriptor {
        let named = BTreeMap::from([names::IMAGE_NAME, names::REF_NAME].map(|key| (key.to_owned(), self.name.clone())));
        Descriptor { annotations: named, ..self.target.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    fn staging(temp: &tempfile::TempDir) -> Staging {
        Layout::open_or_create(&temp.path().join("layout")).unwrap().stage().unwrap()
    }

    fn layer(content: &[u8]) -> Layer {
        let digest = Digest::of(content);
        let blob = Blob { digest, size: content.len() as u64 };
        Layer { blob, diff_id: digest, media_type: names::LAYER_GZIP, beside: None, summary: Default::default() }
    }

    fn base(config: &str, media_type: &str) -> Base {
        let below = Descriptor::new(media_type, Digest::of(b"below"), 5);
        let config = config.as_bytes().to_vec();
        let manifest = Manifest {
            config: Descriptor::new(names::CONFIG, Digest::of(&config), 1),
            layers: vec![below],
            artifact_type: None,
            subject: None,
        };
        Base {
            name: "localhost/x:1".into(),
            target: Descriptor::new(names::MANIFEST, Digest::of(b"target"), 6),
            local: Some(Local { manifest, config }),
            missing: Vec::new(),
            carried: true,
            recreated: Ok(None),
        }
    }

    /// The committed image's manifest and config.
    fn commit(base: Option<&Base>) -> (Value, Value) {
        let temp = tempfile::tempdir().unwrap();
        let staging = staging(&temp);
        let target = committed(base, &layer(b"rw"), &staging).unwrap().unwrap();
        let manifest: Value = serde_json::from_slice(&staging.read_blob(&target.digest).unwrap()).unwrap();
        let config = manifest["config"]["digest"].as_str().unwrap().parse().unwrap();
        let config = serde_json::from_slice(&staging.read_blob(&config).unwrap()).unwrap();
        (manifest, config)
    }

    const BELOW: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";

    #[test]
    fn the_rw_layer_goes_on_top_and_the_rest_of_the_config_stays() {
        let text = format!(
            r#"{{"zeta":1,"config":{{"Cmd":["x"],"Odd":{{"kept":true}}}},"history":[{{"created_by":"y"}}],"rootfs":{{"type":"layers","diff_ids":["{BELOW}"]}}}}"#
        );
        let (manifest, config) = commit(Some(&base(&text, names::DOCKER_LAYER_GZIP)));
        let types: Vec<_> = manifest["layers"].as_array().unwrap().iter().map(|l| &l["mediaType"]).collect();
        assert_eq!(types, [names::LAYER_GZIP, names::LAYER_GZIP], "Docker's layers are called by OCI's name");
        assert_eq!(config["rootfs"]["diff_ids"], json!([BELOW, Digest::of(b"rw").to_string()]));
        assert_eq!(config["history"].as_array().unwrap().len(), 2);
        assert_eq!((&config["zeta"], &config["config"]["Odd"]["kept"]), (&json!(1), &json!(true)));
    }

    #[test]
    fn a_config_without_history_gets_none() {
        let text = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{BELOW}"]}}}}"#);
        assert!(commit(Some(&base(&text, names::LAYER_GZIP))).1.get("history").is_none());
    }

    #[test]
    fn a_container_without_an_image_is_an_image_of_one_layer() {
        let (manifest, config) = commit(None);
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 1);
        assert_eq!(config["architecture"], Platform::local().architecture);
    }

    #[test]
    fn no_image_is_made_on_a_base_that_is_not_wholly_here() {
        let temp = tempfile::tempdir().unwrap();
        let staging = staging(&temp);
        let whole = base(r#"{"rootfs":{"diff_ids":[]}}"#, names::LAYER_GZIP);
        let lacking = [
            Base { missing: vec!["a layer".into()], ..whole.clone() },
            Base { carried: false, ..whole.clone() },
            Base { local: None, ..whole.clone() },
        ];
        assert!(lacking.iter().all(|base| committed(Some(base), &layer(b"rw"), &staging).unwrap().is_none()));
        assert!(committed(Some(&base("{}", names::LAYER_GZIP)), &layer(b"rw"), &staging).is_err());
    }

    #[test]
    fn a_chain_id_is_that_of_the_image_specification() {
        let two = "sha256:2222222222222222222222222222222222222222222222222222222222222222";
        let text = format!(r#"{{"rootfs":{{"diff_ids":["{BELOW}","{two}"]}}}}"#);
        let right = Digest::of(format!("{BELOW} {two}").as_bytes());
        assert_eq!(base(&text, names::LAYER_GZIP).chain_id(), Some(right));
        let one = format!(r#"{{"rootfs":{{"diff_ids":["{BELOW}"]}}}}"#);
        assert_eq!(base(&one, names::LAYER_GZIP).chain_id().unwrap().to_string(), BELOW);
    }
}
