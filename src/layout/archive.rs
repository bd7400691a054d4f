//! The tar form of a layout: one plain tar that `ctr images import` reads from a pipe.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use super::{Layout, assembly::Assembly, open_regular};
use crate::{
    digest::Digest,
    error::{At, Error, Result},
    pax::{Header, Time, Type},
};

/// Writes the layout as a tar: `oci-layout`, `index.json`, then the folders and blobs in order of their digests.
/// All times are 0, all owners root, so the same layout gives the same bytes.
pub fn write(layout: &Layout, out: &mut dyn Write) -> Result<()> {
    assembly(layout)?.stream(out)
}

/// The same as a synced file in `dir`, which lies on the layout's file system. It uses the layout up: its largest blob
/// becomes that file where the file system allows it.
pub fn turn_into_file(layout: &Layout, dir: &Path) -> Result<PathBuf> {
    Ok(assembly(layout)?.into_file(dir, false)?.path)
}

fn assembly(layout: &Layout) -> Result<Assembly> {
    let mut tar = Assembly::default();
    for name in ["oci-layout", "index.json"] {
        push(&mut tar, name, &layout.dir().join(name))?;
    }
    for name in ["blobs/", "blobs/sha256/"] {
        tar.push(&header(Type::Directory, name, 0o755, 0), None);
    }
    let mut loose = loose(layout);
    let all: BTreeSet<Digest> = blobs(layout)?.into_iter().chain(loose.keys().copied()).collect();
    for digest in all {
        let name = format!("blobs/sha256/{}", digest.to_hex());
        match loose.remove(&digest) {
            Some(inner) => tar.push_tar(&header(Type::File, &name, 0o644, inner.size()), inner),
            None => push(&mut tar, &name, &layout.blob_path(&digest))?,
        }
    }
    Ok(tar)
}

fn loose(layout: &Layout) -> BTreeMap<Digest, Assembly> {
    let loose = layout.loose.as_ref().map(|loose| loose.lock().unwrap_or_else(PoisonError::into_inner).clone());
    loose.unwrap_or_default()
}

fn blobs(layout: &Layout) -> Result<Vec<Digest>> {
    let dir = layout.dir().join("blobs/sha256");
    let mut digests = Vec::new();
    for entry in walkdir::WalkDir::new(&dir).min_depth(1).max_depth(1).sort_by_file_name() {
        let entry = entry.map_err(|e| Error::malformed(&dir, e))?;
        digests.extend(format!("sha256:{}", entry.file_name().to_string_lossy()).parse::<Digest>().ok());
    }
    Ok(digests)
}

fn header(kind: Type, name: &str, mode: u32, size: u64) -> Header<'_> {
    let (path, link, mtime) = (name.as_bytes(), &b""[..], Time::default());
    Header { kind, path, link, mode, uid: 0, gid: 0, size, mtime, device: (0, 0), xattrs: &[] }
}

fn push(tar: &mut Assembly, name: &str, path: &Path) -> Result<()> {
    let size = open_regular(path)?.metadata().at("read", path)?.len();
    tar.push(&header(Type::File, name, 0o644, size), Some(path.to_owned()));
    Ok(())
}
