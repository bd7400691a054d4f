//! The rw layer: what a container changed in its image, as one OCI layer (OCI image spec, layer.md), an uncompressed tar.
//!
//! Overlay keeps the changes apart, in the upperdir (`upper`); where an entry there stands for something in the layers
//! below (a renamed directory, a file whose owner alone changed) it is looked up there (`lower`) by the kernel's rules
//! (`marks`). A snapshot without a parent is a tree like any other.
//!
//! ```text
//! upperdir                             layer
//! 0/0 device, whiteout attribute       <dir>/.wh.<name>, if the image has that name
//! overlay.opaque = y                   the directory, then <dir>/.wh..wh..opq, if the image has that directory
//! overlay.redirect                     as opaque, then all that overlay merges there
//! overlay.metacopy                     the file, with the data of the layer below
//! everything else                      itself
//! ```
//!
//! The root has no entry unless its owner, mode or attributes changed: then it is `./`, which containerd ignores and other
//! tools restore. Times of the root are no change: every new file touches them.

use std::{
    fs::File,
    io::{BufWriter, Seek, SeekFrom, Write},
};

use crate::{
    error::{At, Error, Result},
    freeze::Still,
    layout::Staging,
    snapshotter::RwLayer,
    tree::{Held, Kind, Node, Packer, Summary, Why, plain},
};

mod lower;
mod marks;
mod seal;
mod upper;

pub use seal::{Compression, Layer, seal};

/// A layer as it was while nobody wrote: a plain tar in the staging, to be compressed when the container runs again.
pub struct Captured {
    tar: File,
    summary: Summary,
}

/// Captures the rw layer while the container is held still.
pub fn capture(_: &Still, rw: &RwLayer, staging: &Staging) -> Result<Captured> {
    let path = staging.path("rw.tar");
    let mut out = BufWriter::with_capacity(1 << 20, staging.file("rw.tar")?);
    let summary = write_layer(rw, &mut out)?;
    let mut tar = out.into_inner().map_err(std::io::IntoInnerError::into_error).at("write", &path)?;
    tar.seek(SeekFrom::Start(0)).at("read", &path)?;
    Ok(Captured { tar, summary })
}

/// Files of this prefix are marks of a layer (OCI image spec, layer.md, "Whiteouts").
const MARK: &[u8] = b".wh.";

/// Makes a directory hide all that the layers below have in it.
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";

/// Writes the rw layer as a tar stream and tells what went in, what did not, and what was odd.
pub fn write_layer(rw: &RwLayer, out: &mut dyn Write) -> Result<Summary> {
    let mut packer = Packer::new(out, judge);
    match rw {
        RwLayer::Overlay { upper, lowers } => upper::pack(upper, lowers, &mut packer)?,
        RwLayer::Tree { dir } => {
            let root = Node::open(dir).at("open", dir)?;
            if root.meta.kind != Kind::Directory {
                return Err(Error::malformed(dir, "the root of a snapshot is no directory"));
            }
            plain::pack(&root, &mut packer, refuse)?;
        }
    }
    packer.finish()
}

/// A file that really has a mark's name cannot be in a layer: it would come back as a deletion.
fn refuse(name: &[u8]) -> Option<Why> {
    name.starts_with(MARK).then_some(Why::WhiteoutName)
}

/// Overlay's own attributes never leave the machine: in another overlay they would come alive.
fn judge(name: &[u8]) -> Held {
    let is_overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    if is_overlay { Held::Dropped } else { Held::Kept }
}
