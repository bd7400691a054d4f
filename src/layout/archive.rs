//! The tar form of a layout: one plain tar that `ctr images import` reads from a pipe.

use std::{io::Write, path::Path};

use tar::{Builder, EntryType, Header};

use super::{Layout, open_regular};
use crate::{
    digest::Digest,
    error::{At, Error, Result},
    interrupt,
};

/// Writes the layout as a tar: `oci-layout`, `index.json`, then the folders and blobs in order of their digests.
/// All times are 0, all owners root, so the same layout gives the same bytes.
pub fn write(layout: &Layout, out: impl Write) -> Result<()> {
    let mut tar = Builder::new(out);
    for name in ["oci-layout", "index.json"] {
        append(&mut tar, name, &layout.dir().join(name))?;
    }
    for name in ["blobs/", "blobs/sha256/"] {
        let mut header = header(EntryType::Directory, 0o755, 0);
        tar.append_data(&mut header, name, std::io::empty()).at("write", "the tar form")?;
    }
    for digest in blobs(layout)? {
        interrupt::check()?;
        append(&mut tar, &format!("blobs/sha256/{}", digest.to_hex()), &layout.blob_path(&digest))?;
    }
    tar.into_inner().and_then(|mut out| out.flush()).at("write", "the tar form")
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

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append<W: Write>(tar: &mut Builder<W>, name: &str, path: &Path) -> Result<()> {
    let file = open_regular(path)?;
    let size = file.metadata().at("read", path)?.len();
    let mut header = header(EntryType::Regular, 0o644, size);
    tar.append_data(&mut header, name, file).at("write", "the tar form")
}
