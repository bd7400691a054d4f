//! The rw layer of a bundle, entry by entry, with the digest of each content; nothing is kept but the entry at hand.

use serde::Serialize;
use tar::EntryType;

use crate::{
    digest::Hasher,
    error::Result,
    layout::{Layout, untar},
    name::AnyPath,
    oci::image::Descriptor as Member,
};

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerEntry {
    /// From the container's root.
    #[serde(flatten)]
    pub path: AnyPath,
    /// `file`, `directory`, `symlink`, `hard link`, …; `deleted`; `opaque`: what the image has in this directory is hidden.
    pub kind: &'static str,
    /// Bytes of content.
    pub size: u64,
    /// The content's digest; of files only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Content is read in pieces of this size.
const PIECE: usize = 64 << 10;

/// Tells `each` every entry of the layer `member`, in its order.
pub fn entries(layout: &Layout, member: &Member, each: &mut dyn FnMut(LayerEntry) -> Result<()>) -> Result<()> {
    let (mut failed, mut piece) = (None, vec![0; PIECE]);
    let walked = untar::walk(&layout.blob_path(&member.digest), |entry| {
        let sha256 = if entry.kind == EntryType::Regular {
            let mut hasher = Hasher::default();
            loop {
                let len = entry.content.read(&mut piece)?;
                if len == 0 {
                    break Some(hasher.finish().to_hex());
                }
                hasher.update(&piece[..len]);
            }
        } else {
            None
        };
        each(told(&entry.name, entry.kind, entry.size, sha256)).map_err(|e| {
            failed = Some(e);
            std::io::Error::other("not written")
        })
    });
    failed.map_or_else(|| walked.map(drop), Err)
}

/// A mark stands for what it says (OCI image spec, layer.md, "Whiteouts").
fn told(name: &[u8], kind: EntryType, size: u64, sha256: Option<String>) -> LayerEntry {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let name = name.strip_suffix(b"/").unwrap_or(name);
    let (dir, last) = name.split_at(name.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1));
    let mark = last.strip_prefix(b".wh.").filter(|_| kind == EntryType::Regular);
    let (path, kind) = match mark {
        Some(b".wh..opq") => (dir.strip_suffix(b"/").unwrap_or(dir).to_vec(), "opaque"),
        Some(deleted) => ([dir, deleted].concat(), "deleted"),
        None => (name.to_vec(), kind_name(kind)),
    };
    let is_mark = mark.is_some();
    LayerEntry { path: AnyPath::from_root(&path), kind, size, sha256: sha256.filter(|_| !is_mark) }
}

fn kind_name(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => "file",
        EntryType::Link => "hard link",
        EntryType::Symlink => "symlink",
        EntryType::Char => "character device",
        EntryType::Block => "block device",
        EntryType::Directory => "directory",
        EntryType::Fifo => "fifo",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stand_for_what_they_say() {
        let entry = |name: &[u8], kind| {
            let entry = told(name, kind, 1, Some("00".into()));
            (entry.path.path, entry.kind, entry.sha256.is_some())
        };
        for (name, kind, path, word, hashed) in [
            (&b"etc/motd"[..], EntryType::Regular, "/etc/motd", "file", true),
            (b"./etc/", EntryType::Directory, "/etc", "directory", true),
            (b"etc/.wh.group", EntryType::Regular, "/etc/group", "deleted", false),
            (b".wh.home", EntryType::Regular, "/home", "deleted", false),
            (b"srv/.wh..wh..opq", EntryType::Regular, "/srv", "opaque", false),
            (b".wh..wh..opq", EntryType::Regular, "/", "opaque", false),
            (b".wh.x", EntryType::Directory, "/.wh.x", "directory", true),
        ] {
            assert_eq!(entry(name, kind), (path.to_owned(), word, hashed), "{}", name.escape_ascii());
        }
    }
}
