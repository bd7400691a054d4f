//! `unseal`: the layout that a run without seals would have written, byte for byte.

use std::{
    collections::BTreeSet,
    io::{self, Read},
};

use super::sealed::{self, Sealed};
use crate::{
    crypt::Identities,
    digest::Digest,
    error::{At, Error, Result},
    interrupt,
    layout::{Layout, Staging},
    oci::{
        image::Descriptor,
        names,
        sealed::{Contents, SealedBlob},
    },
};

/// A checkpoint that was unsealed.
#[derive(Debug, Clone)]
pub struct Unsealed {
    /// The digest of its index.
    pub digest: Digest,
}

/// A sealed checkpoint, and what is in it.
pub struct Opened {
    sealed: Sealed,
    contents: Contents,
}

/// Opens the contents of all sealed checkpoints of `layout`, or of the one called `wanted`: by its name, by the digest of its
/// index, or by that of its entry.
pub fn open(layout: &Layout, wanted: Option<&str>, keys: &Identities) -> Result<Vec<Opened>> {
    let all = sealed::find(layout, &layout.index()?)?;
    let has = all.len();
    let mut opened = Vec::new();
    for sealed in all {
        // That one can be sealed to others must not keep back the one that is wanted.
        match (sealed.contents(layout, keys), wanted) {
            (Ok(contents), _) if wanted.is_none_or(|wanted| is_called(&sealed, &contents, wanted)) => {
                opened.push(Opened { sealed, contents });
            }
            (Ok(_), _) => {}
            (Err(e), None) => return Err(e),
            (Err(e), Some(wanted)) if sealed.entry.digest.to_string() == wanted || has == 1 => return Err(e),
            (Err(_), Some(_)) => {}
        }
    }
    if opened.is_empty() {
        let what = match wanted {
            Some(wanted) => format!("a sealed checkpoint {wanted:?} in {}", layout.dir().display()),
            None => format!("a sealed checkpoint in {}", layout.dir().display()),
        };
        return Err(Error::NotFound { what, hint: format!("it has {has} that are sealed; dewar inspect lists them") });
    }
    Ok(opened)
}

fn is_called(sealed: &Sealed, contents: &Contents, wanted: &str) -> bool {
    let is_it = |entry: &Descriptor| entry.digest == contents.checkpoint && entry.name() == Some(wanted);
    [sealed.entry.digest, contents.checkpoint].iter().any(|digest| digest.to_string() == wanted)
        || contents.entries.iter().any(is_it)
}

/// Writes what is sealed in `opened`, a checkpoint of `layout`, into `out`, as it was: each blob has the digest that the contents
/// say, or nothing is committed.
pub fn unseal(layout: &Layout, opened: &Opened, keys: &Identities, out: &Layout) -> Result<Unsealed> {
    let Opened { sealed, contents } = opened;
    refuse_other_image(contents, out)?;
    let known: BTreeSet<Digest> = contents.blobs.iter().map(|blob| blob.sealed).collect();
    let mut layers = sealed.manifest.layers.iter().filter(|layer| layer.media_type == names::SEALED_BLOB);
    if let Some(layer) = layers.find(|layer| !known.contains(&layer.digest)) {
        let path = layout.blob_path(&layer.digest);
        return Err(Error::malformed(path, "is not in the sealed contents: what would be unsealed is not whole"));
    }
    let staging = out.stage()?;
    for blob in &contents.blobs {
        one(layout, sealed, blob, keys, &staging)?;
    }
    let plain = contents.plain.iter().map(|blob| (blob.digest, blob.size));
    for (digest, size) in plain.chain(below(layout, contents)) {
        copy(layout, &digest, size, &staging)?;
    }
    if let Some(entry) = contents.entries.iter().find(|entry| !staging.has(&entry.digest, entry.size)) {
        return Err(Error::malformed(
            layout.dir(),
            format!("{}, an entry of what is sealed, is missing", entry.digest),
        ));
    }
    out.commit(&staging, &contents.entries)?;
    staging.close()?;
    Ok(Unsealed { digest: contents.checkpoint })
}

fn one(layout: &Layout, sealed: &Sealed, blob: &SealedBlob, keys: &Identities, staging: &Staging) -> Result<()> {
    let path = layout.blob_path(&blob.sealed);
    if !sealed.manifest.layers.iter().any(|layer| layer.digest == blob.sealed) {
        return Err(Error::malformed(layout.blob_path(&sealed.entry.digest), format!("has no layer {}", blob.sealed)));
    }
    // Of a file that unpacks to more than it should no more is read.
    let mut plain = sealed::open(layout, &blob.sealed, keys)?.take(blob.size.saturating_add(1));
    let mut out = staging.blob()?;
    let copied = io::copy(&mut plain, &mut out);
    interrupt::check()?;
    let size = copied.at("unseal", &path)?;
    match out.complete_as(&blob.digest)? {
        Some(_) if size == blob.size => Ok(()),
        _ => Err(Error::malformed(path, format!("does not hold {}, as the sealed contents say", blob.digest))),
    }
}

/// A blob that is not sealed. Its content is checked: the contents name it by digest.
fn copy(layout: &Layout, digest: &Digest, size: u64, staging: &Staging) -> Result<()> {
    let path = layout.blob_path(digest);
    if staging.has(digest, size) {
        return Ok(());
    }
    match staging.copy_of(&layout.open_blob(digest)?, &path, digest)? {
        Some(_) => Ok(()),
        None => Err(Error::malformed(path, "is damaged: its content has another digest")),
    }
}

/// All that the entries lead to and that is in the layout as it is. Documents of images only: what cannot be read leads nowhere.
fn below(layout: &Layout, contents: &Contents) -> Vec<(Digest, u64)> {
    let sealed: BTreeSet<Digest> = contents.blobs.iter().map(|blob| blob.digest).collect();
    let is_plain = |entry: &&Descriptor| !sealed.contains(&entry.digest);
    let mut todo: Vec<Descriptor> = contents.entries.iter().filter(is_plain).cloned().collect();
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    while let Some(descriptor) = todo.pop() {
        if !seen.insert(descriptor.digest) || layout.open_blob(&descriptor.digest).is_err() {
            continue;
        }
        todo.extend(layout.children(&descriptor).unwrap_or_default());
        todo.extend(layout.subject(&descriptor).unwrap_or_default());
        found.push((descriptor.digest, descriptor.size));
    }
    found
}

/// A restore looks the base image up by name; so one layout never has two of one name.
fn refuse_other_image(contents: &Contents, out: &Layout) -> Result<()> {
    if !out.dir().join("index.json").exists() {
        return Ok(());
    }
    let is_sealed = |entry: &Descriptor| contents.blobs.iter().any(|blob| blob.digest == entry.digest);
    let images: Vec<_> = contents.entries.iter().filter(|entry| !is_sealed(entry) && entry.name().is_some()).collect();
    let present = out.index()?.manifests;
    let clash = images
        .iter()
        .find(|image| present.iter().any(|entry| entry.name() == image.name() && entry.digest != image.digest));
    match clash {
        None => Ok(()),
        Some(image) => Err(Error::Unsupported {
            what: format!("{} already has another image {}", out.dir().display(), image.name().unwrap_or_default()),
            hint: "unseal into a layout of its own".into(),
        }),
    }
}
