//! The CRIU tar: plain, flat, in order of names, as runc's and containerd's restore unpack it.

use std::{fs, path::Path};

use walkdir::WalkDir;

use super::{Images, make_private};
use crate::{
    error::{At, Error, Result},
    layout::{Blob, Staging, assembly::Assembly},
    pax::{Header, Time, Type},
};

/// Makes the images a blob. The largest of them, memory, becomes the blob itself where the file system allows it; all
/// are gone afterwards.
///
/// CRIU's statistics go along: a restore passes them over, people and tools read them.
pub fn pack(images: &Images, staging: &Staging) -> Result<Blob> {
    make_private(&images.dir)?;
    let mut tar = Assembly::default();
    for entry in WalkDir::new(&images.dir).min_depth(1).max_depth(1).sort_by_file_name() {
        let entry = entry.map_err(|e| Error::malformed(&images.dir, e))?;
        push(&mut tar, entry.path(), &entry.file_name().to_string_lossy())?;
    }
    if images.stats.exists() {
        push(&mut tar, &images.stats, "stats-dump")?;
    }
    staging.assemble(tar)
}

fn push(tar: &mut Assembly, path: &Path, name: &str) -> Result<()> {
    let meta = fs::symlink_metadata(path).at("look at", path)?;
    let file = Header {
        kind: Type::File,
        path: name.as_bytes(),
        link: b"",
        mode: 0o600,
        uid: 0,
        gid: 0,
        size: meta.len(),
        mtime: Time::default(),
        device: (0, 0),
        xattrs: &[],
    };
    if meta.is_symlink() {
        // `parent`: an earlier pre-dump. We make none, but a configuration file of CRIU's may.
        let target = fs::read_link(path).at("read", path)?;
        tar.push(&Header { kind: Type::Symlink, link: target.as_os_str().as_encoded_bytes(), size: 0, ..file }, None);
        return Ok(());
    }
    if !meta.is_file() {
        return Err(Error::malformed(path, "is no regular file: CRIU writes none such"));
    }
    tar.push(&file, Some(path.to_owned()));
    Ok(())
}
