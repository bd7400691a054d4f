//! The sealed checkpoints of a layout: found, and opened by an identity.

use std::io::{BufReader, Read};

use serde::Serialize;

use crate::{
    crypt::{self, Header, Identities, Opened},
    digest::Digest,
    error::{At, Error, Result},
    layout::{Layout, read::MAX_DOCUMENT},
    oci::{
        image::{Descriptor, Index, Manifest},
        names,
        sealed::{Contents, VERSION},
    },
};

/// A sealed checkpoint of a layout.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// Its entry in `index.json`.
    pub entry: Descriptor,
    /// Its manifest.
    pub manifest: Manifest,
}

/// An age file of a layout, opened.
pub type Plain = Opened<BufReader<std::fs::File>>;

/// The sealed checkpoints among the entries of `index`, in order.
pub fn find(layout: &Layout, index: &Index) -> Result<Vec<Sealed>> {
    let mut found = Vec::new();
    for entry in index.manifests.iter().filter(|entry| entry.is_manifest()) {
        let path = layout.blob_path(&entry.digest);
        let document = layout.document(&entry.digest)?;
        let manifest: Manifest = serde_json::from_slice(&document).map_err(|e| Error::malformed(path, e))?;
        if manifest.artifact_type.as_deref() == Some(names::SEALED) {
            found.push(Sealed { entry: entry.clone(), manifest });
        }
    }
    Ok(found)
}

/// The age file `digest`, opened.
pub fn open(layout: &Layout, digest: &Digest, keys: &Identities) -> Result<Plain> {
    let file = BufReader::with_capacity(1 << 18, layout.open_blob(digest)?);
    crypt::open(file, keys).map_err(|e| e.at(&layout.blob_path(digest)))
}

/// The head of the age file `digest`.
pub fn header(layout: &Layout, digest: &Digest) -> Result<Header> {
    let mut file = BufReader::new(layout.open_blob(digest)?);
    Header::read(&mut file).map_err(|e| e.at(&layout.blob_path(digest)))
}

impl Sealed {
    /// The age file with the contents.
    pub fn contents_at(&self) -> Result<Digest> {
        let mut found = self.manifest.layers.iter().filter(|layer| layer.media_type == names::SEALED_CONTENTS);
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one.digest),
            _ => Err(Error::malformed(
                self.entry.digest.to_string(),
                format!("has not exactly one layer of type {}", names::SEALED_CONTENTS),
            )),
        }
    }

    /// What is sealed in it.
    pub fn contents(&self, layout: &Layout, keys: &Identities) -> Result<Contents> {
        let digest = self.contents_at()?;
        let (path, mut bytes) = (layout.blob_path(&digest), Vec::new());
        open(layout, &digest, keys)?.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).at("unseal", &path)?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(Error::malformed(path, "holds contents larger than 8 MiB"));
        }
        let contents: Contents = serde_json::from_slice(&bytes).map_err(|e| Error::malformed(&path, e))?;
        match contents.schema {
            VERSION => Ok(contents),
            other => {
                Err(Error::malformed(path, format!("holds contents of version {other}, and only {VERSION} is known")))
            }
        }
    }
}

/// What everybody can tell of a sealed checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Outside {
    /// Always true: so it is told from a checkpoint that can be read.
    pub sealed: bool,
    /// The digest of its entry.
    pub digest: String,
    /// When it was made (RFC 3339).
    pub created: String,
    /// To how many X25519 recipients it is sealed; `None` if no header can be read.
    pub recipients: Option<usize>,
    /// Its age files.
    pub blobs: usize,
    /// Their bytes.
    pub size: u64,
    /// The images in the layout that can be read as ever.
    pub readable: Vec<String>,
    /// It has an acquisition record that can be read.
    pub evidence: bool,
}

/// The sealed checkpoints of a layout, or the one with this digest.
pub fn outside(layout: &Layout, wanted: Option<&str>) -> Result<Vec<Outside>> {
    let index = layout.index()?;
    let found = find(layout, &index)?;
    let asked = found.iter().filter(|sealed| wanted.is_none_or(|w| sealed.entry.digest.to_string() == w));
    let tell = |sealed: &Sealed| {
        let (layers, digest) = (&sealed.manifest.layers, sealed.entry.digest.to_string());
        let is_about = |entry: &Descriptor| entry.annotations.get(names::EVIDENCE_OF) == Some(&digest);
        Outside {
            sealed: true,
            created: sealed.entry.annotations.get(names::CREATED).cloned().unwrap_or_default(),
            recipients: sealed.contents_at().and_then(|at| header(layout, &at)).ok().map(|header| header.recipients()),
            blobs: layers.len(),
            size: layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size)),
            readable: index.manifests.iter().filter_map(|entry| entry.name().map(str::to_owned)).collect(),
            evidence: index.manifests.iter().any(is_about),
            digest,
        }
    };
    Ok(asked.map(tell).collect())
}
