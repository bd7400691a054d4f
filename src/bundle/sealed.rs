//! A bundle that is sealed: its documents and blobs are age files by now, and an artifact holds them ([`crate::oci::sealed`]).

use serde_json::{Value, json};

use super::Parts;
use crate::{
    digest::Digest,
    error::{Error, Result},
    layout::{Blob, Staging, read},
    oci::{
        image::Descriptor,
        names,
        sealed::{Contents, PlainBlob, SealedBlob, VERSION},
    },
};

/// Puts what `index.json` would have said, and `checkpoint` is the index of, into the sealed contents. Yields what it says
/// instead: the entries of what is not sealed, and that of the sealed checkpoint, the last.
pub fn write(staging: &Staging, parts: &Parts, checkpoint: Digest, entries: &[Descriptor]) -> Result<Vec<Descriptor>> {
    let blob =
        |(plain, stored): (Blob, Blob)| SealedBlob { digest: plain.digest, size: plain.size, sealed: stored.digest };
    let plain = staging.plain()?.into_iter().map(|Blob { digest, size }| PlainBlob { digest, size });
    let contents = Contents {
        schema: VERSION,
        checkpoint,
        entries: entries.to_vec(),
        blobs: staging.sealed().into_iter().map(blob).collect(),
        plain: plain.collect(),
    };
    let bytes = serde_json::to_vec(&contents).map_err(|e| Error::malformed("the sealed contents", e))?;
    if bytes.len() as u64 > read::MAX_DOCUMENT {
        return Err(Error::malformed("the sealed contents", "would be larger than 8 MiB"));
    }
    let mut stored: Vec<Blob> = staging.sealed().into_iter().map(|(_, stored)| stored).collect();
    stored.sort_unstable_by_key(|blob| blob.digest);
    let contents = staging.blob_of(&bytes)?;
    let (_, contents) =
        staging.stored(&contents.digest).ok_or_else(|| Error::malformed("the contents", "are not sealed"))?;
    let layer = |media_type, blob: Blob| Descriptor::new(media_type, blob.digest, blob.size);
    let mut layers = vec![layer(names::SEALED_CONTENTS, contents)];
    layers.extend(stored.into_iter().map(|blob| layer(names::SEALED_BLOB, blob)));
    let mut shown: Vec<_> = entries.iter().filter(|entry| staging.stored(&entry.digest).is_none()).cloned().collect();
    shown.push(entry(staging, parts, &layers)?);
    Ok(shown)
}

fn entry(staging: &Staging, parts: &Parts, layers: &[Descriptor]) -> Result<Descriptor> {
    let config = staging.plain_blob_of(b"{}")?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": names::MANIFEST,
        "artifactType": names::SEALED,
        "config": Descriptor::new(names::EMPTY, config.digest, config.size),
        "layers": layers,
    });
    let manifest = staging.plain_blob_of(manifest.to_string().as_bytes())?;
    let mut entry = Descriptor::new(names::MANIFEST, manifest.digest, manifest.size)
        .with(names::CREATED, parts.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .with(names::ENGINE_NAME, "dewar")
        .with(names::ENGINE_VERSION, env!("CARGO_PKG_VERSION"))
        .with(names::SEALED_RECIPIENTS, staging.recipients().unwrap_or_default().to_string());
    entry.rest.insert("artifactType".into(), Value::from(names::SEALED));
    Ok(entry.sealed())
}
