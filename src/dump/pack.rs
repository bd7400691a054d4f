//! The CRIU tar: plain and flat, as runc's and containerd's restore unpack it. Memory comes first, so that it can be hashed
//! while CRIU writes it; then the rest, in order of names.

use std::{fs, path::Path};

use walkdir::WalkDir;

use super::{Images, follow::Followed, make_private};
use crate::{
    error::{At, Error, Result},
    layout::{Blob, Staging, assembly::Assembly},
    pax::{Header, Time, Type},
};

/// Makes the images a blob. The largest of them, memory, becomes the blob itself where the file system allows it; all
/// are gone afterwards.
///
/// CRIU's statistics go along: a restore passes them over, people and tools read them.
pub fn pack(images: &mut Images, staging: &Staging) -> Result<Blob> {
    let Followed { mut tar, files } = images.follower.finish();
    images.hashed_ahead = tar.hashed();
    make_private(&images.dir)?;
    let entries = WalkDir::new(&images.dir).min_depth(1).max_depth(1).sort_by_file_name();
    let mut others = Vec::new();
    let mut pages = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::malformed(&images.dir, e))?.into_path();
        match number(&path) {
            Some(n) if n > files => pages.push((n, path)),
            Some(_) => {}
            None => others.push(path),
        }
    }
    pages.sort();
    for path in pages.into_iter().map(|(_, path)| path).chain(others) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        push_found(&mut tar, &path, &name)?;
    }
    if images.stats.exists() {
        push_found(&mut tar, &images.stats, "stats-dump")?;
    }
    staging.assemble(tar)
}

/// What CRIU calls the file with the pages of number `n`.
pub(super) fn pages_file(n: u32) -> String {
    format!("pages-{n}.img")
}

fn number(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix("pages-")?.strip_suffix(".img")?.parse().ok()
}

/// Adds a file of `size` bytes.
pub(super) fn push(tar: &mut Assembly, path: &Path, name: &str, size: u64) {
    tar.push(&header(name, size), Some(path.to_owned()));
}

fn header(name: &str, size: u64) -> Header<'_> {
    Header {
        kind: Type::File,
        path: name.as_bytes(),
        link: b"",
        mode: 0o600,
        uid: 0,
        gid: 0,
        size,
        mtime: Time::default(),
        device: (0, 0),
        xattrs: &[],
    }
}

fn push_found(tar: &mut Assembly, path: &Path, name: &str) -> Result<()> {
    let meta = fs::symlink_metadata(path).at("look at", path)?;
    if meta.is_symlink() {
        // `parent`: an earlier pre-dump. We make none, but a configuration file of CRIU's may.
        let target = fs::read_link(path).at("read", path)?;
        let link = target.as_os_str().as_encoded_bytes();
        tar.push(&Header { kind: Type::Symlink, link, ..header(name, 0) }, None);
        return Ok(());
    }
    if !meta.is_file() {
        return Err(Error::malformed(path, "is no regular file: CRIU writes none such"));
    }
    push(tar, path, name, meta.len());
    Ok(())
}
