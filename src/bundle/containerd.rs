//! containerd's own checkpoint, as `ctr containers restore` reads it (`client/container_restore_opts.go`).
//!
//! ```text
//! index.json:  <ref>-rootfs (committed image) · base image · <ref> (checkpoint index)
//! checkpoint index:  base image · runtime options · rw layer · CRIU images · spec · dump options · bind mounts
//! ```
//! The base image comes first and carries this machine's platform: then an import of 1.6 and 1.7 unpacks that, and
//! does not stumble over a layer that is no image.

use prost::Message;
use serde::Serialize;

use super::Parts;
use crate::{
    error::{Error, Result},
    layout::{Blob, Staging},
    oci::{
        image::{Descriptor, Index, Platform},
        names,
    },
    proto::{Any, CHECKPOINT_OPTIONS},
};

/// Writes the checkpoint index; yields the entries for `index.json`.
pub fn write(staging: &Staging, parts: &Parts) -> Result<Vec<Descriptor>> {
    let index = Index {
        schema_version: 2,
        manifests: members(staging, parts)?,
        annotations: annotations(parts),
        ..Index::default()
    };
    let blob = staging.blob_of(&json(&index)?)?;
    let mut entries = Vec::new();
    if let Some(committed) = &parts.committed {
        entries.push(named(committed.clone(), &format!("{}-rootfs", parts.reference)));
    }
    if let Some(base) = parts.base.as_ref().filter(|base| base.carried && base.local.is_some()) {
        entries.push(base.entry());
    }
    entries.push(checkpoint_entry(blob, parts));
    Ok(entries)
}

fn members(staging: &Staging, parts: &Parts) -> Result<Vec<Descriptor>> {
    let here = Platform::local;
    let plain = || Platform { variant: None, ..Platform::local() };
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
        blob(names::RESOURCE_TAR, bind.blob).with(names::MOUNT_DESTINATION, &bind.destination).on(plain())
    }));
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
    named(entry, &parts.reference).with(names::CREATED, parts.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn named(entry: Descriptor, name: &str) -> Descriptor {
    entry.with(names::IMAGE_NAME, name).with(names::REF_NAME, name)
}

fn json(document: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document).map_err(|e| Error::malformed("checkpoint index", e))
}
