//! The acquisition records of a layout, read; `verify` says whether they are to be believed.

use std::{
    fs::File,
    io::{Read, Write},
};

use crate::{
    digest::Digest,
    error::{At, Error, Result},
    evidence::Record,
    layout::Layout,
    oci::{
        image::{Descriptor, Manifest},
        names,
    },
};

/// A record that is attached to a checkpoint.
pub struct Attached {
    /// The checkpoint's name.
    pub reference: String,
    /// What it says.
    pub record: Record,
    /// Its blobs: the record's own first, then the list of sources, the sums, and the signature if there is one.
    pub layers: Vec<Descriptor>,
}

impl Attached {
    /// Its blob of that type.
    pub fn part(&self, media_type: &str) -> Option<&Descriptor> {
        self.layers.iter().find(|layer| layer.media_type == media_type)
    }
}

/// The records of the checkpoint called `wanted` (its name or its digest), or of all; in the order of `index.json`.
pub fn read(layout: &Layout, wanted: Option<&str>) -> Result<Vec<Attached>> {
    let index = layout.index()?;
    let mut found = Vec::new();
    for entry in index.manifests.iter().filter(|entry| entry.annotations.contains_key(names::EVIDENCE_OF)) {
        let of = entry.annotations.get(names::EVIDENCE_OF).and_then(|of| of.parse::<Digest>().ok());
        let about = index.manifests.iter().find(|other| Some(other.digest) == of);
        let reference = about.and_then(|about| about.name()).unwrap_or_default().to_owned();
        if wanted.is_none_or(|w| w == reference || of.is_some_and(|of| of.to_string() == w)) {
            found.push(attached(layout, entry, reference)?);
        }
    }
    if found.is_empty() {
        return Err(Error::NotFound {
            what: match wanted {
                Some(wanted) => format!("an acquisition record of {wanted:?} in {}", layout.dir().display()),
                None => format!("an acquisition record in {}", layout.dir().display()),
            },
            hint: "dewar checkpoint makes one unless it is told not to (--no-evidence, SOURCE_DATE_EPOCH)".into(),
        });
    }
    Ok(found)
}

fn attached(layout: &Layout, entry: &Descriptor, reference: String) -> Result<Attached> {
    let malformed =
        |digest: &Digest, e: &dyn std::fmt::Display| Error::malformed(layout.blob_path(digest), e.to_string());
    let manifest: Manifest =
        serde_json::from_slice(&layout.document(&entry.digest)?).map_err(|e| malformed(&entry.digest, &e))?;
    let layers = manifest.layers;
    let own = layers.iter().find(|layer| layer.media_type == names::EVIDENCE);
    let own = own.ok_or_else(|| malformed(&entry.digest, &"has no record among its layers"))?;
    let record = serde_json::from_slice(&layout.document(&own.digest)?).map_err(|e| malformed(&own.digest, &e))?;
    Ok(Attached { reference, record, layers })
}

/// Copies a blob of the layout, byte for byte.
pub fn copy(layout: &Layout, blob: &Descriptor, out: &mut dyn Write) -> Result<()> {
    let (path, mut buffer) = (layout.blob_path(&blob.digest), vec![0; 64 << 10]);
    let mut file: File = layout.open_blob(&blob.digest)?;
    loop {
        match file.read(&mut buffer).at("read", &path)? {
            0 => return out.flush().at("write", "stdout"),
            n => out.write_all(buffer.get(..n).unwrap_or_default()).at("write", "stdout")?,
        }
    }
}
