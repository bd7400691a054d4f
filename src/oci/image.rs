//! Views of image documents: index, manifest, config; and which of an index's manifests this machine needs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::names;
use crate::digest::Digest;

/// A pointer to a blob (OCI image spec, `descriptor.md`). Members we do not use stay in `rest`, in their order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Free-form.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Which machines it is for; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Members of other programs.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Which machines a manifest is for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Platform {
    /// Go's name of the architecture.
    #[serde(default)]
    pub architecture: String,
    /// Go's name of the system.
    #[serde(default)]
    pub os: String,
    /// `v7`, `v8`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// `os.version` and others.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// An index: `index.json`, a multi-platform image, or a checkpoint.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Often absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The entries, in order. Required: an index whose key for them is damaged is not an empty one.
    pub manifests: Vec<Descriptor>,
    /// Free-form.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Members of other programs.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// A manifest: one image for one platform.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// What it is, if it is no image (OCI image spec 1.1, manifest.md, `artifactType`).
    #[serde(default)]
    pub artifact_type: Option<String>,
    /// The image's config.
    pub config: Descriptor,
    /// Its layers, bottom first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// What it refers to without needing it: an image made again, to its original.
    #[serde(default)]
    pub subject: Option<Descriptor>,
}

impl Manifest {
    /// True of what is no image: it has no config of one.
    pub fn is_artifact(&self) -> bool {
        self.artifact_type.is_some() && self.config.media_type == names::EMPTY
    }
}

/// An image's config: what we read of it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The layers' diff ids, bottom first.
    pub rootfs: Rootfs,
}

/// `rootfs` of an image's config.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Rootfs {
    /// Digests of the unpacked layers.
    pub diff_ids: Vec<Digest>,
}

/// The chain id of layers with these diff ids (OCI image spec, `config.md`, "Layer ChainID").
pub fn chain_of(diff_ids: &[Digest]) -> Option<Digest> {
    let (first, more) = diff_ids.split_first()?;
    Some(more.iter().fold(*first, |chain, id| Digest::of(format!("{chain} {id}").as_bytes())))
}

impl Descriptor {
    /// A plain descriptor.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        let (annotations, rest) = (BTreeMap::new(), BTreeMap::new());
        Self { media_type: media_type.into(), digest, size, annotations, platform: None, rest }
    }

    /// The same with a platform.
    pub fn on(self, platform: Platform) -> Self {
        Self { platform: Some(platform), ..self }
    }

    /// The same with one annotation more.
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// The same with its own digest, for [`Descriptor::seal`]; any annotation added later breaks it.
    pub fn sealed(mut self) -> Self {
        self.annotations.remove(names::SEAL);
        match self.own_digest() {
            Some(own) => self.with(names::SEAL, own.to_string()),
            None => self,
        }
    }

    /// Whether the entry is as it was sealed; `None` if it has no seal.
    pub fn seal(&self) -> Option<bool> {
        let mut bare = self.clone();
        let seal = bare.annotations.remove(names::SEAL)?;
        Some(bare.own_digest().is_some_and(|own| own.to_string() == seal))
    }

    /// Of its members in a fixed order, however they stand in the file.
    fn own_digest(&self) -> Option<Digest> {
        serde_json::to_vec(self).ok().map(|bytes| Digest::of(&bytes))
    }

    /// The name an import gives this entry.
    pub fn name(&self) -> Option<&str> {
        let named = self.annotations.get(names::IMAGE_NAME).or_else(|| self.annotations.get(names::REF_NAME));
        named.map(String::as_str)
    }

    /// True for an index of either kind.
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), names::INDEX | names::DOCKER_LIST)
    }

    /// True for a manifest of either kind.
    pub fn is_manifest(&self) -> bool {
        matches!(self.media_type.as_str(), names::MANIFEST | names::DOCKER_MANIFEST)
    }
}

impl Platform {
    /// This machine's, in Go's words, as containerd's `platforms.DefaultSpec` gives it.
    pub fn local() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        let variant = variant.map(str::to_owned);
        Self { architecture: architecture.into(), os: "linux".into(), variant, ..Self::default() }
    }

    /// True if a manifest for `self` serves a machine of platform `host`.
    pub fn serves(&self, host: &Self) -> bool {
        let same_variant = match (&self.variant, &host.variant) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => true,
        };
        self.os == host.os && self.architecture == host.architecture && same_variant
    }
}

impl Index {
    /// The entries that this machine needs: those for its platform, and those for any.
    pub fn local(&self, host: &Platform) -> Vec<&Descriptor> {
        self.manifests.iter().filter(|d| d.platform.as_ref().is_none_or(|p| p.serves(host))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_another_program_keeps_its_members() {
        let text = r#"{"mediaType":"a/b","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":3,"platform":{"architecture":"amd64","os":"linux"},"artifactType":"x"}"#;
        let entry: Descriptor = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&entry).unwrap(), text);
    }

    #[test]
    fn a_seal_breaks_with_any_change() {
        let entry = Descriptor::new(names::INDEX, Digest::of(b"x"), 3).with("a", "b").sealed();
        assert_eq!((entry.seal(), entry.clone().sealed()), (Some(true), entry.clone()));
        assert_eq!(entry.clone().with("a", "c").seal(), Some(false));
        assert_eq!(Descriptor { size: 4, ..entry.clone() }.seal(), Some(false));
        assert_eq!(entry.on(Platform::local()).seal(), Some(false));
        assert_eq!(Descriptor::new(names::INDEX, Digest::of(b"x"), 3).seal(), None);
    }

    #[test]
    fn an_index_yields_the_local_platform_only() {
        let entry = |arch: &str, variant: Option<&str>| {
            let variant = variant.map(str::to_owned);
            let platform = Platform { architecture: arch.into(), os: "linux".into(), variant, ..Platform::default() };
            Descriptor::new(names::MANIFEST, Digest::of(arch.as_bytes()), 1).on(platform)
        };
        let index = Index {
            manifests: vec![entry("amd64", None), entry("arm", Some("v6")), entry("arm", Some("v7"))],
            ..Index::default()
        };
        let arm = Platform {
            architecture: "arm".into(),
            os: "linux".into(),
            variant: Some("v7".into()),
            ..Platform::default()
        };
        let chosen = index.local(&arm);
        assert_eq!(chosen.len(), 1);
        assert_eq!(chosen[0].platform, Some(arm));
    }
}
