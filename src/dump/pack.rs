//! The CRIU tar: plain, flat, in order of names, as runc's and containerd's restore unpack it.

use std::{
    fs::{self, File},
    io::{self, Write},
};

use tar::{EntryType, Header};
use walkdir::WalkDir;

use super::Images;
use crate::{
    error::{At, Error, Result},
    interrupt,
    layout::{Blob, Staging},
};

/// Packs the images into a blob and removes them one by one, so that memory stands on disk twice for one file only.
///
/// CRIU's statistics go along: a restore passes them over, people and tools read them.
pub fn pack(images: &Images, staging: &Staging) -> Result<Blob> {
    let mut tar = tar::Builder::new(staging.blob()?);
    for entry in WalkDir::new(&images.dir).min_depth(1).max_depth(1).sort_by_file_name() {
        interrupt::check()?;
        let entry = entry.map_err(|e| Error::malformed(&images.dir, e))?;
        append(&mut tar, entry.path(), &entry.file_name().to_string_lossy())?;
    }
    if images.stats.exists() {
        append(&mut tar, &images.stats, "stats-dump")?;
    }
    let mut blob = tar.into_inner().at("write", "the CRIU tar")?;
    blob.flush().at("write", "the CRIU tar")?;
    blob.complete()
}

fn append(tar: &mut tar::Builder<crate::layout::BlobWriter>, path: &std::path::Path, name: &str) -> Result<()> {
    let meta = fs::symlink_metadata(path).at("look at", path)?;
    let mut header = Header::new_gnu();
    header.set_mode(0o600);
    header.set_mtime(0);
    if meta.is_symlink() {
        // `parent`: an earlier pre-dump. We make none, but a configuration file of CRIU's may.
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        let target = fs::read_link(path).at("read", path)?;
        return tar.append_link(&mut header, name, target).at("write", "the CRIU tar");
    }
    if !meta.is_file() {
        return Err(Error::malformed(path, "is no regular file: CRIU writes none such"));
    }
    header.set_entry_type(EntryType::Regular);
    header.set_size(meta.len());
    let file = File::open(path).at("read", path)?;
    tar.append_data(&mut header, name, io::Read::take(file, meta.len())).at("write", "the CRIU tar")?;
    fs::remove_file(path).at("remove", path)
}
