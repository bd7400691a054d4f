//! The rw layer: what a container changed in its image, as one OCI layer (OCI image spec, layer.md), an uncompressed tar.
//!
//! Overlay keeps the changes apart, in the upperdir (`upper`); where an entry there stands for something in the layers
//! below (a renamed directory, a file whose owner alone changed) it is looked up there (`lower`) by the kernel's rules
//! (`marks`). Other snapshotters keep whole trees: the image's and the container's are compared (`walk`). A snapshot without
//! a parent is a tree like any other. The same change gives the same layer either way; only of a file with several names other
//! names may be written, where that makes no difference, or keeps names one that moved along with a directory.
//!
//! ```text
//! upperdir                             layer
//! 0/0 device, whiteout attribute       <dir>/.wh.<name>, if the image has that name
//! overlay.opaque = y                   the directory, then <dir>/.wh.<name> for each name of the image's that is not in it
//! overlay.redirect                     as opaque, then all that overlay merges there
//! overlay.metacopy                     the file, with the data of the layer below
//! everything else                      itself
//! ```
//!
//! Only where a layer below cannot be read, so that nobody can say which names it has, a directory gets the mark that
//! hides them all, `.wh..wh..opq`.
//!
//! The root has no entry unless its owner, mode or attributes changed: then it is `./`, which containerd ignores and other
//! tools restore. Times of the root are no change: every new file touches them.

use std::{fs::File, io::Write};

pub use crate::ahead::{Compression, Draft};
use crate::{
    ahead::{self, Probe, Tar, Watch},
    error::{At, Error, Result},
    freeze::Still,
    host::Host,
    layout::Staging,
    runtime::Task,
    snapshotter::{Driver, Root, RwLayer},
    sparse::SparseFile,
    tree::{Held, Kind, Listed, Meta, Node, Packer, Sink, Summary, Why, plain},
};

mod inodes;
mod lower;
mod marks;
mod seal;
mod upper;
mod walk;

pub use inodes::{Seen, inodes};
pub use seal::{Layer, seal};

/// A layer as it was while nobody wrote, to be stored when the container runs again.
pub struct Captured {
    tar: Tar,
    how: Compression,
    /// What no layer can hold, as another tar.
    beside: File,
    summary: Summary,
}

/// Copies the rw layer of a running container, as far as it can be told later what has changed; `None` where it cannot.
pub fn copy_ahead(
    host: &Host,
    task: &Task,
    rw: &RwLayer,
    how: Compression,
    staging: &Staging,
) -> Result<Option<Draft>> {
    let Some(root) = watched(rw)? else { return Ok(None) };
    let watch = Watch { host, task, root: Some(&root), everyone: false };
    let draft = Draft::make(how, staging, &watch, |sink| {
        let mut packer = Packer::into_sink(sink, judge);
        pack(rw, &mut packer)?;
        packer.finish().map(drop)
    })?;
    Ok(Some(draft))
}

/// The tree that the container writes to, if its files tell when they are written to. What we have mounted ourselves is
/// another view of a device, that may be behind; what fuse-overlayfs has not written yet is not there.
fn watched(rw: &RwLayer) -> Result<Option<Node>> {
    let (root, ids) = match rw {
        RwLayer::Overlay { driver: Driver::Fuse, .. } => return Ok(None),
        RwLayer::Overlay { upper, ids, .. } => (upper, ids.clone()),
        RwLayer::Stacked { overlay, .. } => return watched(overlay),
        RwLayer::Trees { active, .. } => (active, None),
        RwLayer::Tree { dir } => (dir, None),
    };
    if root.is_apart() || root.why_absent().is_some() {
        return Ok(None);
    }
    let node = Node::open_mapped(root, ids).at("open", root.name())?;
    Ok(ahead::can_tell(&node).then_some(node))
}

/// Captures the rw layer while the container is held still, as it was at its `outset`; of what was copied ahead only what may
/// have changed is read.
pub fn capture(
    host: &Host,
    still: &Still,
    draft: Option<Draft>,
    (rw, outset): (&RwLayer, Outset),
    how: Compression,
    staging: &Staging,
) -> Result<Captured> {
    let mut beside = staging.sparse("beside.tar")?;
    let tmp = outset.tmp.as_ref().map(|(meta, _)| meta.clone());
    let write = |sink: &mut dyn Sink| {
        let packer = Packer::into_sink(sink, judge).with_beside(&mut beside);
        let listed = outset.root.into_iter().chain(outset.tmp);
        let mut packer = listed.fold(packer, |packer, (meta, names)| packer.with_listed(meta, names));
        pack(rw, &mut packer)?;
        packer.finish()
    };
    let (tar, summary) = match (draft, still.task(), watched(rw)?) {
        (Some(mut draft), Some(task), Some(root)) => {
            draft.doubt.look(&Watch { host, task, root: Some(&root), everyone: false });
            let before = tmp.as_ref().map(|meta| (TMP, meta));
            draft.catch_up(staging, Some(Probe { root: &root, before }), write)?
        }
        _ => ahead::whole(how, staging, write)?,
    };
    Ok(Captured { tar, how, beside: beside.complete()?, summary })
}

/// Where CRIU may make a directory for a moment, in the container's own tree, to see what a mount covers (`get_clean_mnt`): the
/// root and `/tmp`. Nobody else does anything while it dumps. So both are looked at before it begins, and no name that comes
/// later is seen.
#[derive(Debug)]
pub struct Outset {
    root: Option<(Meta, Vec<Vec<u8>>)>,
    tmp: Option<(Meta, Vec<Vec<u8>>)>,
}

const TMP: &[u8] = b"tmp";

impl Outset {
    /// How the two are now. What cannot be looked at is told by whoever captures it.
    pub fn of(rw: &RwLayer) -> Self {
        let root = match rw {
            RwLayer::Overlay { upper: root, .. }
            | RwLayer::Trees { active: root, .. }
            | RwLayer::Tree { dir: root } => Node::open(root).ok(),
            RwLayer::Stacked { overlay, .. } => return Self::of(overlay),
        };
        let tmp = root.as_ref().and_then(|root| root.child(TMP).ok());
        let seen = |node: Node| {
            let names = node.dir().and_then(|dir| dir.names()).ok()?;
            Some((node.meta, names))
        };
        Self { root: root.and_then(seen), tmp: tmp.and_then(seen) }
    }
}

impl Captured {
    /// What it was caught up from, to be captured again: in a new staging file.
    pub fn into_draft(self, staging: &Staging) -> Result<Option<Draft>> {
        let beside = staging.path("beside.tar");
        std::fs::remove_file(&beside).at("remove", beside)?;
        Ok(self.tar.into_draft())
    }
}

/// Files of this prefix are marks of a layer (OCI image spec, layer.md, "Whiteouts").
const MARK: &[u8] = b".wh.";

/// Makes a directory hide all that the layers below have in it.
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";

/// Writes the rw layer as a tar stream and tells what went in, what did not, and what was odd.
pub fn write_layer(rw: &RwLayer, out: &mut dyn Write) -> Result<Summary> {
    let mut packer = Packer::new(out, judge);
    pack(rw, &mut packer)?;
    packer.finish()
}

/// The same; what no layer can hold goes into a second tar stream, as far as it has content: see [`Packer::with_beside`].
pub fn write_layer_beside(rw: &RwLayer, out: &mut dyn Write, beside: &mut SparseFile) -> Result<Summary> {
    let mut packer = Packer::new(out, judge).with_beside(beside);
    pack(rw, &mut packer)?;
    packer.finish()
}

/// Tells `each` what the layer would hold, in its order, and reads no content.
pub fn list(rw: &RwLayer, each: &mut dyn FnMut(Listed<'_>) -> Result<()>) -> Result<Summary> {
    let mut packer = Packer::listing(each, judge);
    pack(rw, &mut packer)?;
    packer.finish()
}

fn pack(rw: &RwLayer, packer: &mut Packer) -> Result<()> {
    let directory = |root: &Root| {
        let node = Node::open(root).at("open", root.name())?;
        match node.meta.kind {
            Kind::Directory => Ok(node),
            _ => Err(Error::malformed(root.name(), "the root of a snapshot is no directory")),
        }
    };
    match rw {
        RwLayer::Overlay { .. } => overlay(rw, 0, packer),
        RwLayer::Stacked { overlay: inner, own } => overlay(inner, *own, packer),
        RwLayer::Trees { base, active, origin } => walk::pack(&directory(base)?, &directory(active)?, *origin, packer),
        RwLayer::Tree { dir } => plain::pack(&directory(dir)?, packer, refuse),
    }
}

/// An overlay of which the topmost `own` lowerdirs are not of the image.
fn overlay(rw: &RwLayer, own: usize, packer: &mut Packer) -> Result<()> {
    match rw {
        RwLayer::Overlay { upper, lowers, ids, driver } => {
            upper::pack(upper, lowers, own, ids.as_ref(), *driver, packer)
        }
        RwLayer::Stacked { .. } | RwLayer::Trees { .. } | RwLayer::Tree { .. } => pack(rw, packer),
    }
}

/// The root's own owner, mode and attributes, if they are not those of the image.
fn root_entry(root: &Node, below: &Node, packer: &mut Packer) -> Result<()> {
    let content = |node: &Node| (node.meta.mode, node.meta.uid, node.meta.gid, kept_xattrs(node).unwrap_or_default());
    if content(root) == content(below) {
        return Ok(());
    }
    packer.warn(b"", "the root directory's owner, mode or attributes changed; containerd does not restore these");
    packer.entry_over(b".", root, root, || true).map(drop)
}

/// The extended attributes that a layer carries.
fn kept_xattrs(node: &Node) -> std::io::Result<Vec<crate::pax::Xattr>> {
    let mut xattrs = node.xattrs()?;
    xattrs.retain(|(name, _)| judge(name) == Held::Kept);
    Ok(xattrs)
}

/// Linux takes no longer path in one call than 4095 bytes, and whoever unpacks a layer has a path of his own before it:
/// containerd refuses the whole image for one path that is too long (seen with 2.1).
const MAX_PATH: usize = 4095 - 512;

/// Why something of this path cannot be in a layer. A file that really has a mark's name would come back as a deletion.
fn refuse(path: &[u8]) -> Option<Why> {
    let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
    match name.starts_with(MARK) {
        true => Some(Why::WhiteoutName),
        false => (path.len() > MAX_PATH).then_some(Why::PathTooLong(MAX_PATH)),
    }
}

/// Overlay's own attributes never leave the machine: in another overlay they would come alive.
fn judge(name: &[u8]) -> Held {
    let prefixes: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs."];
    if prefixes.iter().any(|prefix| name.starts_with(prefix)) { Held::Dropped } else { Held::Kept }
}

#[cfg(test)]
mod tests;
