//! containerd's own checkpoint, as `ctr containers restore` reads it (`client/container_restore_opts.go`).
//!
//! ```text
//! index.json:  <ref>-rootfs (committed image) · base image · <ref> (checkpoint index)
//! checkpoint index:  base image · runtime options · rw layer · CRIU images · spec · dump options · mounts · beside ·
//!                    raw capture · what else is volatile · account
//! ```
//! The base image comes first and carries this machine's platform: then an import of 1.6 and 1.7 unpacks that, and
//! does not stumble over a layer that is no image.

use prost::Message;
use serde::Serialize;

use super::{Parts, account};
use crate::{
    error::{Error, Result},
    image::Base,
    layout::{Blob, Staging, read},
    oci::{
        account::Account,
        image::{Descriptor, Index, Platform},
        names,
    },
    proto::{Any, CHECKPOINT_OPTIONS},
};

/// Writes the checkpoint index; yields the entries for `index.json`.
pub fn write(staging: &Staging, parts: &Parts) -> Result<Vec<Descriptor>> {
    let mut entries = Vec::new();
    if let Some(committed) = &parts.committed {
        entries.push(named(committed.clone(), &format!("{}-rootfs", parts.reference)));
    }
    if let Some(base) = parts.base.as_ref().filter(|base| base.carried && base.local.is_some()) {
        entries.push(base.entry());
    }
    let mut manifests = members(staging, parts)?;
    let images = entries.iter().map(|entry| entry.digest).collect();
    let account = account::document(Account { images, ..parts.account.clone() }, read::MAX_DOCUMENT);
    let account = staging.blob_of(&account.map_err(|e| Error::malformed("account", e))?)?;
    manifests.push(Descriptor::new(names::ACCOUNT, account.digest, account.size).on(plain_platform()));
    let index = Index { schema_version: 2, manifests, annotations: annotations(parts), ..Index::default() };
    entries.push(checkpoint_entry(staging.blob_of(&json(&index)?)?, parts));
    Ok(entries.into_iter().map(Descriptor::sealed).collect())
}

fn plain_platform() -> Platform {
    Platform { variant: None, ..Platform::local() }
}

fn members(staging: &Staging, parts: &Parts) -> Result<Vec<Descriptor>> {
    let here = Platform::local;
    let plain = plain_platform;
    let blob = |media_type: &str, blob: Blob| Descriptor::new(media_type, blob.digest, blob.size);
    let mut members = Vec::new();
    // An import fails on a member whose documents it cannot find, so a base without any is left out.
    let base = parts.base.as_ref().filter(|base| base.local.is_some() || !base.carried);
    members.extend(base.map(|base| base.target.clone().on(here())));
    if !parts.container.runtime_options.is_empty() {
        let options = staging.blob_of(&parts.container.runtime_options)?;
        members.push(blob(names::RUNTIME_OPTIONS, options).on(plain()));
    }
    members.extend(parts.layer.as_ref().map(|layer| blob(layer.media_type, layer.blob).on(plain())));
    members.extend(parts.criu.map(|criu| blob(names::CRIU_TAR, criu).on(here())));
    if !parts.container.spec.is_empty() {
        members.push(blob(names::CHECKPOINT_CONFIG, staging.blob_of(&parts.container.spec)?).on(here()));
    }
    if parts.criu.is_some() {
        let any = Any { type_url: CHECKPOINT_OPTIONS.into(), value: parts.options.encode_to_vec() };
        members.push(blob(names::CHECKPOINT_OPTIONS, staging.blob_of(&any.encode_to_vec())?).on(plain()));
    }
    members.extend(parts.binds.iter().map(|bind| {
        let member = blob(names::RESOURCE_TAR, bind.blob).with(names::MOUNT_DESTINATION, &bind.destination);
        member.with(names::MOUNT_TYPE, bind.kind).on(plain())
    }));
    let beside = parts.layer.as_ref().and_then(|layer| layer.beside);
    members.extend(beside.map(|tar| blob(names::RESOURCE_TAR, tar).with(names::BESIDE, "rw layer").on(plain())));
    members.extend(parts.raw.map(|raw| blob(names::RAW_TAR, raw).with(names::RESTORABLE, "false").on(plain())));
    members.extend(parts.volatile.map(|volatile| blob(names::VOLATILE, volatile).on(plain())));
    Ok(members)
}

fn annotations(parts: &Parts) -> std::collections::BTreeMap<String, String> {
    [
        (names::CHECKPOINT_RUNTIME, &parts.container.runtime),
        (names::CHECKPOINT_SNAPSHOTTER, &parts.container.snapshotter),
        (names::REF_NAME, &parts.container.image),
    ]
    .map(|(key, value)| (key.to_owned(), value.clone()))
    .into()
}

fn checkpoint_entry(blob: Blob, parts: &Parts) -> Descriptor {
    let mut entry = Descriptor::new(names::INDEX, blob.digest, blob.size);
    entry.annotations = parts.annotations.clone();
    if let Some(base) = parts.base.as_ref().filter(|base| !base.carried) {
        entry = entry.with(names::IMAGE_OMITTED, &base.name);
    }
    if let Some(Base { recreated: Ok(Some(recreated)), target, .. }) = &parts.base
        && recreated.original.digest != target.digest
    {
        entry = recreated.annotate(entry);
    }
    named(entry, &parts.reference).with(names::CREATED, parts.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn named(entry: Descriptor, name: &str) -> Descriptor {
    entry.with(names::IMAGE_NAME, name).with(names::REF_NAME, name)
}

fn json(document: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|e| Error::malformed("checkpoint index", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bundle::Bind,
        containerd::meta::Container,
        digest::Digest,
        id::{ContainerRef, SnapshotKey},
        image::Local,
        layout::Layout,
        oci::image::Manifest,
        proto::CheckpointOptions,
        rw::Layer,
    };

    fn blob(content: &str) -> Blob {
        Blob { digest: Digest::of(content.as_bytes()), size: content.len() as u64 }
    }

    fn base() -> Base {
        let config = Descriptor::new(names::CONFIG, Digest::of(b"config"), 6);
        Base {
            name: "localhost/base:1".into(),
            target: Descriptor::new(names::MANIFEST, Digest::of(b"base"), 4),
            local: Some(Local {
                manifest: Manifest { config, layers: Vec::new(), artifact_type: None, subject: None },
                config: Vec::new(),
            }),
            missing: Vec::new(),
            carried: true,
            recreated: Ok(None),
        }
    }

    /// Everything there can be.
    fn whole() -> Parts {
        let name = ContainerRef { namespace: "default".parse().unwrap(), id: "web".parse().unwrap() };
        let layer = blob("layer");
        Parts {
            container: Container {
                name,
                image: "localhost/base:1".into(),
                snapshotter: "overlayfs".into(),
                snapshot_key: SnapshotKey("web".into()),
                runtime: "io.containerd.runc.v2".into(),
                runtime_options: b"options".to_vec(),
                spec: b"spec".to_vec().into(),
                labels: Default::default(),
                created_at: None,
                origin: Default::default(),
            },
            base: Some(base()),
            committed: Some(Descriptor::new(names::MANIFEST, Digest::of(b"committed"), 9)),
            layer: Some(Layer {
                blob: layer,
                diff_id: layer.digest,
                media_type: names::LAYER_GZIP,
                beside: Some(blob("beside")),
                summary: Default::default(),
            }),
            criu: Some(blob("criu")),
            raw: Some(blob("raw")),
            volatile: Some(blob("volatile")),
            options: CheckpointOptions { file_locks: true, ..Default::default() },
            binds: vec![Bind { kind: "bind", destination: "/data".into(), blob: blob("bind") }],
            account: Default::default(),
            annotations: Default::default(),
            created: "2023-11-14T22:13:20Z".parse().unwrap(),
            reference: "localhost/x:1".into(),
        }
    }

    /// The entries for `index.json`, and the members of the checkpoint index.
    fn written(parts: &Parts) -> (Vec<Descriptor>, Vec<Descriptor>) {
        let temp = tempfile::tempdir().unwrap();
        let staging = Layout::open_or_create(&temp.path().join("layout")).unwrap().stage().unwrap();
        let entries = write(&staging, parts).unwrap();
        let bytes = staging.read_blob(&entries.last().unwrap().digest).unwrap();
        let index: Index = serde_json::from_slice(&bytes).unwrap();
        (entries, index.manifests)
    }

    fn types(members: &[Descriptor]) -> Vec<&str> {
        members.iter().map(|m| m.media_type.as_str()).collect()
    }

    #[test]
    fn everything_stands_in_its_place() {
        let (entries, members) = written(&whole());
        let entry_names: Vec<_> = entries.iter().map(|e| e.name().unwrap()).collect();
        assert_eq!(entry_names, ["localhost/x:1-rootfs", "localhost/base:1", "localhost/x:1"]);
        assert_eq!(
            types(&members),
            [
                names::MANIFEST,
                names::RUNTIME_OPTIONS,
                names::LAYER_GZIP,
                names::CRIU_TAR,
                names::CHECKPOINT_CONFIG,
                names::CHECKPOINT_OPTIONS,
                names::RESOURCE_TAR,
                names::RESOURCE_TAR,
                names::RAW_TAR,
                names::VOLATILE,
                names::ACCOUNT
            ]
        );
        // Without a platform on it, an import by containerd 1.6 and 1.7 fails at the first layer.
        assert!(members.iter().all(|m| m.platform.is_some()));
        assert_eq!(members[6].annotations[names::MOUNT_DESTINATION], "/data");
        assert_eq!(members[6].annotations[names::MOUNT_TYPE], "bind");
        assert_eq!(members[7].annotations[names::BESIDE], "rw layer");
        assert_eq!(members[8].annotations[names::RESTORABLE], "false");
        assert!(entries.iter().all(|entry| entry.seal() == Some(true)));
        assert_eq!(entries[2].annotations[names::CREATED], "2023-11-14T22:13:20Z");
    }

    #[test]
    fn spec_and_runtime_options_are_the_bytes_of_the_record() {
        let (_, members) = written(&whole());
        let digest = |t: &str| members.iter().find(|m| m.media_type == t).unwrap().digest;
        assert_eq!(digest(names::CHECKPOINT_CONFIG), Digest::of(b"spec"));
        assert_eq!(digest(names::RUNTIME_OPTIONS), Digest::of(b"options"));
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let mut parts = Parts {
            raw: None,
            volatile: None,
            criu: None,
            layer: None,
            committed: None,
            base: None,
            binds: Vec::new(),
            ..whole()
        };
        parts.container.runtime_options.clear();
        parts.container.spec.clear();
        let (entries, members) = written(&parts);
        assert_eq!((entries.len(), types(&members)), (1, vec![names::ACCOUNT]));
        // A dump's options mean nothing without a dump.
        let (_, members) = written(&Parts { criu: None, ..whole() });
        assert!(!types(&members).contains(&names::CHECKPOINT_OPTIONS));
    }

    #[test]
    fn a_base_image_is_named_as_far_as_it_can_be_had() {
        // Its documents are lost: an import would fail on it.
        let lost = Parts { base: Some(Base { local: None, ..base() }), ..whole() };
        let (entries, members) = written(&lost);
        assert!(entries.iter().all(|e| e.name() != Some("localhost/base:1")));
        assert!(!types(&members).contains(&names::MANIFEST));
        // Left behind on purpose: referenced, and said so.
        let (entries, members) = written(&Parts { base: Some(Base { carried: false, ..base() }), ..whole() });
        assert!(entries.iter().all(|e| e.name() != Some("localhost/base:1")));
        assert!(types(&members).contains(&names::MANIFEST));
        assert_eq!(entries.last().unwrap().annotations[names::IMAGE_OMITTED], "localhost/base:1");
    }
}
