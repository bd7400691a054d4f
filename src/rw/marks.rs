//! The marks overlay leaves in its directories (kernel documentation, filesystems/overlayfs.rst).

use std::{io, os::unix::fs::MetadataExt, path::Path};

use super::{MARK, OPAQUE_MARK};
use crate::{
    snapshotter::Driver,
    tree::{Kind, Node},
};

/// Whose attributes are overlay's: an overlay mounted with `userxattr` uses `user.overlay.*`, any other `trusted.overlay.*`.
///
/// It matters: to an overlay of the one kind the other's attributes mean nothing, and `user.overlay.opaque` may be set
/// by any process in the container, so obeying it there would let a container hide files from its own checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// `trusted.overlay.*`
    Trusted,
    /// `user.overlay.*`
    User,
    /// fuse-overlayfs, which takes either, has one of its own, and where it may set none of them, or make no device,
    /// files of a layer's names: `.wh.<name>` and `.wh..wh..opq` (containers/fuse-overlayfs `whiteout.rs`).
    Fuse,
}

/// The ways in which fuse-overlayfs says that a directory is opaque, in its own order.
const FUSE_OPAQUE: [&str; 3] = ["trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque"];

impl Marks {
    /// The marks in use in this upperdir. containerd mounts with `userxattr` when it runs in a user namespace, and then the
    /// snapshot's directory, which nobody in the container can reach, belongs to some other user than root.
    pub fn of(driver: Driver, upper: &Path) -> io::Result<Self> {
        if driver == Driver::Fuse {
            return Ok(Self::Fuse);
        }
        let owner = upper.parent().unwrap_or(upper).metadata()?.uid();
        Ok(if owner == 0 { Self::Trusted } else { Self::User })
    }

    /// The value of a mark, if `node` has it.
    pub fn value(self, node: &Node, mark: Mark) -> io::Result<Option<Vec<u8>>> {
        let prefix = match self {
            Self::Trusted => "trusted.overlay.",
            Self::User => "user.overlay.",
            // It neither redirects nor keeps data and metadata apart.
            Self::Fuse => return Ok(None),
        };
        node.xattr(format!("{prefix}{}", mark.name()).as_bytes())
    }

    /// True if the directory `node` hides what the layers below have in it. Another value than `y` does not: `x` says that
    /// listings must look for deletions that are attributes.
    pub fn is_opaque(self, node: &Node) -> io::Result<bool> {
        if self == Self::Fuse {
            for name in FUSE_OPAQUE {
                if node.xattr(name.as_bytes())?.is_some_and(|value| value.starts_with(b"y")) {
                    return Ok(true);
                }
            }
            return self.has(node, OPAQUE_MARK);
        }
        Ok(self.value(node, Mark::Opaque)?.as_deref() == Some(b"y"))
    }

    /// True if a file in the directory `dir`, and not the thing itself, says that `name` is deleted.
    pub fn is_deleted(self, dir: &Node, name: &[u8]) -> io::Result<bool> {
        Ok(self == Self::Fuse && self.has(dir, &[MARK, name].concat())?)
    }

    /// What an entry of this name says, if the name is a mark: the name that is deleted, or nothing by itself.
    pub fn mark(self, name: &[u8]) -> Option<&[u8]> {
        let deleted = name.strip_prefix(MARK).filter(|_| self == Self::Fuse)?;
        Some(if name == OPAQUE_MARK { b"" } else { deleted })
    }

    fn has(self, dir: &Node, name: &[u8]) -> io::Result<bool> {
        match dir.child(name) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// True if `node` says that its name is deleted. An empty file with the attribute does so whatever its directory says:
    /// that is asked only when names are listed (fs/overlayfs/util.c, `ovl_path_is_whiteout`).
    pub fn is_whiteout(self, node: &Node) -> io::Result<bool> {
        Ok(match node.meta.kind {
            Kind::Char => node.meta.device == (0, 0),
            Kind::File if node.meta.size == 0 && self != Self::Fuse => self.value(node, Mark::Whiteout)?.is_some(),
            _ => false,
        })
    }
}

/// One of overlay's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// `y`: the layers below do not show through this directory.
    Opaque,
    /// Where the layers below have this directory, or this file's data: a name beside it, or a path from the root.
    Redirect,
    /// The data of this file is in a layer below.
    Metacopy,
    /// This empty file stands for a deletion.
    Whiteout,
}

impl Mark {
    fn name(self) -> &'static str {
        match self {
            Self::Opaque => "opaque",
            Self::Redirect => "redirect",
            Self::Metacopy => "metacopy",
            Self::Whiteout => "whiteout",
        }
    }
}
