//! Sealed checkpoints: without an identity their digests and the form of each age file; with one, also what is in them.

use std::{
    collections::BTreeSet,
    io::{self, Read},
};

use super::{super::sealed, Verify, with_causes};
use crate::{
    crypt::Identities,
    digest::{Digest, Hasher},
    error::Result,
    interrupt,
    oci::{
        image::{Descriptor, Manifest},
        names,
        sealed::SealedBlob,
    },
};

impl Verify<'_> {
    /// The manifest of a sealed checkpoint, whose blobs are what it says.
    pub(super) fn sealed(&mut self, at: &str, entry: &Descriptor, manifest: &Manifest) -> Result<()> {
        if entry.seal().is_none() {
            self.find(at, "its entry in index.json has lost its seal: it was changed");
        }
        self.sealed.push((at.to_owned(), entry.digest));
        let mut recipients = BTreeSet::new();
        for (i, layer) in manifest.layers.iter().enumerate() {
            let at = format!("{at} > layer {i}");
            if ![names::SEALED_CONTENTS, names::SEALED_BLOB].contains(&layer.media_type.as_str()) {
                self.find(&at, &format!("media type {:?} is none of a sealed checkpoint", layer.media_type));
            }
            let header = sealed::header(self.layout, &layer.digest).map_err(|e| with_causes(&e));
            let Some(header) = self.find_if(&at, header) else { continue };
            recipients.insert(header.recipients());
            if header.plain_size(layer.size).is_none() {
                self.find(&at, "is cut: no age file has its length");
            }
        }
        if recipients.len() > 1 {
            self.find(at, "its blobs are not all sealed to as many recipients");
        }
        let sealed = sealed::Sealed { entry: entry.clone(), manifest: manifest.clone() };
        match self.keys {
            None => self.find_if(at, sealed.contents_at().map_err(|e| with_causes(&e))).map_or(Ok(()), |_| Ok(())),
            Some(keys) => self.contents(at, &sealed, keys),
        }
    }

    /// What is sealed is what the contents say, and all of it.
    fn contents(&mut self, at: &str, sealed: &sealed::Sealed, keys: &Identities) -> Result<()> {
        let contents = sealed.contents(self.layout, keys).map_err(|e| with_causes(&e));
        let Some(contents) = self.find_if(at, contents) else { return Ok(()) };
        let layers = sealed.manifest.layers.iter().enumerate();
        let layers = layers.filter(|(_, layer)| layer.media_type == names::SEALED_BLOB);
        for (i, layer) in layers {
            let at = format!("{at} > layer {i}");
            match contents.blobs.iter().find(|blob| blob.sealed == layer.digest) {
                None => self.find(&at, "is not in the sealed contents"),
                Some(blob) => self.plaintext(&at, blob, keys)?,
            }
        }
        let there: BTreeSet<Digest> = sealed.manifest.layers.iter().map(|layer| layer.digest).collect();
        for blob in contents.blobs.iter().filter(|blob| !there.contains(&blob.sealed)) {
            self.find(at, &format!("the sealed contents name {}, and there is no such layer", blob.sealed));
        }
        let known = |digest: &Digest| contents.blobs.iter().any(|blob| blob.digest == *digest);
        if !known(&contents.checkpoint) {
            self.find(at, &format!("the checkpoint {} is not in it", contents.checkpoint));
        }
        for entry in contents.entries.iter().filter(|entry| !known(&entry.digest)) {
            self.blob(&format!("{at} > {}", entry.name().unwrap_or("an entry")), entry)?;
        }
        for blob in &contents.plain {
            let descriptor = Descriptor::new("application/octet-stream", blob.digest, blob.size);
            self.blob(&format!("{at} > {}", blob.digest), &descriptor)?;
        }
        Ok(())
    }

    fn plaintext(&mut self, at: &str, blob: &SealedBlob, keys: &Identities) -> Result<()> {
        let opened = sealed::open(self.layout, &blob.sealed, keys).map_err(|e| with_causes(&e));
        let Some(plain) = self.find_if(at, opened) else { return Ok(()) };
        let summed = sum(plain.take(blob.size.saturating_add(1)));
        interrupt::check()?;
        match self.find_if(at, summed.map_err(|e| format!("cannot be unsealed: {e}"))) {
            Some(found) if found != (blob.digest, blob.size) => {
                self.find(at, &format!("unseals to {}, the sealed contents say {}", found.0, blob.digest));
            }
            _ => {}
        }
        Ok(())
    }
}

fn sum(mut plain: impl Read) -> io::Result<(Digest, u64)> {
    let (mut hasher, mut size, mut buffer) = (Hasher::default(), 0, vec![0; 1 << 18]);
    loop {
        interrupt::check().map_err(io::Error::other)?;
        match plain.read(&mut buffer)? {
            0 => return Ok((hasher.finish(), size)),
            n => {
                hasher.update(buffer.get(..n).unwrap_or_default());
                size += n as u64;
            }
        }
    }
}
