//! Reading a layout: which blobs its index leads to.

use std::{collections::HashSet, fs::File, io::Read};

use super::{Layout, open_regular};
use crate::{
    digest::Digest,
    error::{At, Error, Result},
    oci::image::{Descriptor, Index, Manifest},
};

/// A manifest, index or config larger than this is an attack.
pub const MAX_DOCUMENT: u64 = 8 << 20;

impl Layout {
    /// Opens a blob; it is a regular file.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        open_regular(&self.blob_path(digest))
    }

    /// A small document of the layout; its size is bounded, its digest not verified.
    pub fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let file = self.open_blob(digest)?;
        let mut bytes = Vec::new();
        file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).at("read", &path)?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(Error::malformed(path, "is larger than any index, manifest or config may be (8 MiB)"));
        }
        Ok(bytes)
    }

    /// What a descriptor points to directly: an index's entries, a manifest's config and layers; nothing for a leaf.
    pub fn children(&self, parent: &Descriptor) -> Result<Vec<Descriptor>> {
        let path = self.blob_path(&parent.digest);
        if parent.is_index() {
            let index: Index =
                serde_json::from_slice(&self.document(&parent.digest)?).map_err(|e| Error::malformed(path, e))?;
            return Ok(index.manifests);
        }
        if parent.is_manifest() {
            let manifest: Manifest =
                serde_json::from_slice(&self.document(&parent.digest)?).map_err(|e| Error::malformed(path, e))?;
            return Ok(std::iter::once(manifest.config).chain(manifest.layers).collect());
        }
        Ok(Vec::new())
    }

    /// The manifest that this one refers to (OCI image spec 1.1, `manifest.md`, `subject`).
    pub fn subject(&self, of: &Descriptor) -> Result<Option<Descriptor>> {
        let path = self.blob_path(&of.digest);
        let parsed = |bytes: Vec<u8>| serde_json::from_slice::<Manifest>(&bytes).map_err(|e| Error::malformed(path, e));
        Ok(if of.is_manifest() { parsed(self.document(&of.digest)?)?.subject } else { None })
    }
}

/// Every digest that the index leads to, the originals of images made again included. What cannot be read leads nowhere
/// further.
pub(super) fn reachable(layout: &Layout) -> Result<HashSet<Digest>> {
    let mut seen = HashSet::new();
    let mut todo = layout.index()?.manifests;
    while let Some(descriptor) = todo.pop() {
        // Whether a blob leads further is its media type's to say, and one blob may have several.
        if seen.insert((descriptor.digest, descriptor.media_type.clone())) {
            todo.extend(layout.children(&descriptor).unwrap_or_default());
            todo.extend(layout.subject(&descriptor).unwrap_or_default());
        }
    }
    Ok(seen.into_iter().map(|(digest, _)| digest).collect())
}
