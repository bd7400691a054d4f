//! The documents of images, read from the content store once each: index, manifest, config.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    rc::Rc,
};

use super::locate::with_causes;
use crate::{
    containerd::content::Content,
    digest::Digest,
    error::Result,
    host::Host,
    interrupt,
    oci::image::{Config, Descriptor, Index, Manifest},
};

/// An index in an index in an index: nobody builds such images.
pub const MAX_DEPTH: usize = 4;

/// One manifest with its config.
pub struct Local {
    /// Its digest.
    pub digest: Digest,
    /// Its config's.
    pub config: Digest,
    /// The layers that a store is expected to have, bottom first.
    pub layers: Vec<Digest>,
    /// The layers' diff ids, if the config can be read.
    pub diff_ids: Vec<Digest>,
}

impl Local {
    /// The chain ids, bottom first (OCI image spec, `config.md`, "Layer ChainID").
    pub fn chains(&self) -> Vec<Digest> {
        let mut chains: Vec<Digest> = Vec::new();
        for diff_id in &self.diff_ids {
            let chain = chains.last().map_or(*diff_id, |below| Digest::of(format!("{below} {diff_id}").as_bytes()));
            chains.push(chain);
        }
        chains
    }
}

/// A document of the content store, understood.
#[derive(Clone)]
pub enum Document {
    /// Its entries.
    Index(Rc<Index>),
    /// What it names.
    Manifest(Rc<Local>),
    /// It is not there.
    Missing,
    /// It cannot be understood; why.
    Bad(String),
}

/// Documents, each read once.
pub struct Documents {
    content: Content,
    known: HashMap<Digest, Document>,
}

impl Documents {
    /// Of this host's content store.
    pub fn of(host: &Host) -> Self {
        Self { content: Content::of(host), known: HashMap::new() }
    }

    /// What `descriptor` points to. An error only if we are to stop.
    pub fn get(&mut self, descriptor: &Descriptor) -> Result<Document> {
        interrupt::check()?;
        if let Some(known) = self.known.get(&descriptor.digest) {
            return Ok(known.clone());
        }
        let found = match self.bytes(&descriptor.digest) {
            Ok(None) => Document::Missing,
            Ok(Some(bytes)) if descriptor.is_index() => {
                let index = serde_json::from_slice(&bytes).map(Rc::new);
                index.map_or_else(|e| Document::Bad(e.to_string()), Document::Index)
            }
            Ok(Some(bytes)) => match serde_json::from_slice::<Manifest>(&bytes) {
                Ok(manifest) => Document::Manifest(Rc::new(self.local(descriptor.digest, manifest))),
                Err(e) => Document::Bad(e.to_string()),
            },
            Err(why) => Document::Bad(why),
        };
        self.known.insert(descriptor.digest, found.clone());
        Ok(found)
    }

    /// The manifests below `target` that are there, of all platforms.
    pub fn manifests(&mut self, target: &Descriptor) -> Result<Vec<Rc<Local>>> {
        let (mut found, mut seen, mut todo) = (Vec::new(), BTreeSet::new(), vec![(target.clone(), 0)]);
        while let Some((descriptor, depth)) = todo.pop() {
            let is_document = descriptor.is_index() || descriptor.is_manifest();
            if !is_document || depth > MAX_DEPTH || !seen.insert(descriptor.digest) {
                continue;
            }
            match self.get(&descriptor)? {
                Document::Index(index) => todo.extend(index.manifests.iter().rev().map(|d| (d.clone(), depth + 1))),
                Document::Manifest(local) => found.push(local),
                Document::Missing | Document::Bad(_) => {}
            }
        }
        Ok(found)
    }

    /// True unless a document is there whose content is not what its digest says.
    pub fn is_sound(&self, digest: &Digest) -> bool {
        self.bytes(digest).is_ok()
    }

    fn bytes(&self, digest: &Digest) -> Result<Option<Vec<u8>>, String> {
        let path = self.content.path(digest);
        // What is no file is not opened: it could be a pipe that never ends.
        match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Ok(meta) if !meta.is_file() => Err(format!("{} is no regular file", path.display())),
            _ => self.content.document(digest).map_err(|e| with_causes(&e)),
        }
    }

    fn local(&self, digest: Digest, manifest: Manifest) -> Local {
        let config = self.bytes(&manifest.config.digest).ok().flatten();
        let config = config.and_then(|bytes| serde_json::from_slice::<Config>(&bytes).ok()).unwrap_or_default();
        // Layers that may not be distributed are never expected (OCI image spec, `layer.md`).
        let is_ours = |l: &&Descriptor| !["nondistributable", "foreign"].iter().any(|w| l.media_type.contains(w));
        let layers = manifest.layers.iter().filter(is_ours).map(|l| l.digest).collect();
        Local { digest, config: manifest.config.digest, layers, diff_ids: config.rootfs.diff_ids }
    }
}
