//! The rw layer, inode by inode as it lies on the disk: for those who ask when, not what.
//!
//! A layer has neither the time of an inode's birth nor that of a deletion; the upperdir has both:
//!
//! ```text
//! upperdir                         what its inode tells
//! a file, directory, …             its own four times
//! 0/0 device (a whiteout)          the deletion is not older than the inode. The kernel gives many names to one such inode
//!                                  (since 5.8, fs/overlayfs/dir.c, ovl_whiteout): then not newer than its last change; and never
//!                                  newer than the last change of the directory it is in
//! .wh.name (fuse-overlayfs)        the same
//! overlay.origin                   copied up: its times of content are those of a file of the image, perhaps of another name
//! ```
//! Of other snapshotters the two trees are compared, and a deletion is only known to be not newer than its directory.

use std::{collections::HashSet, io};

use super::{
    judge,
    lower::{Link, Lowers},
    marks::{Mark, Marks},
};
use crate::{
    error::{At, Result},
    interrupt,
    pax::Time,
    snapshotter::{Root, RwLayer},
    tree::{Kind, Meta, Node, Packer, Steps, Summary, Why, plain},
};

/// A name that the container has added, changed or deleted.
pub struct Seen<'a> {
    /// From the root of the tree.
    pub path: &'a [u8],
    /// The inode that tells of it; of a deletion, the mark, or `None` where none is left.
    pub node: Option<&'a Node>,
    /// What has its content, where that is another inode.
    pub data: Option<&'a Node>,
    /// What the image has of this name.
    pub below: Option<&'a Meta>,
    /// It is deleted.
    pub is_deleted: bool,
    /// A directory that hides what the image has in its own.
    pub is_opaque: bool,
    /// The last change of the directory it is in.
    pub directory_changed: Time,
    /// Its content is as the image has it, perhaps under another name: so is its time of modification.
    pub is_copied_up: bool,
}

/// Tells `each` of all inodes of the rw layer, parents first; yields what could not be looked at.
pub fn inodes(rw: &RwLayer, each: &mut dyn FnMut(&Seen<'_>) -> Result<()>) -> Result<Summary> {
    match rw {
        RwLayer::Stacked { overlay, .. } => inodes(overlay, each),
        RwLayer::Overlay { upper, lowers, ids, driver } => {
            let root = Node::open_mapped(upper, ids.clone()).at("open", upper.name())?;
            let marks = Marks::of(*driver, upper).at("look at", upper.name())?;
            let mut moved = Moved { of: (&root, lowers, marks), known: None };
            walk(&root, lowers, marks, &mut |seen| {
                let is_copied_up = seen.is_copied_up || moved.has(seen)?;
                each(&Seen { is_copied_up, ..*seen })
            })
        }
        RwLayer::Trees { base, active, .. } => compared(rw, Some(base), active, each),
        RwLayer::Tree { dir } => compared(rw, None, dir, each),
    }
}

/// The attributes in which overlay keeps what a file was copied up from (kernel, fuse-overlayfs `main.c`).
const ORIGINS: [&[u8]; 3] = [b"trusted.overlay.origin", b"user.overlay.origin", b"user.fuseoverlayfs.origin"];

/// More files of the image than this are not remembered: of those that were moved then too many are told.
const MAX_REMEMBERED: usize = 4 << 20;

/// Files of the image that were copied up under one name and have another now: nothing but their times is left to know
/// them by.
struct Moved<'a> {
    of: (&'a Node, &'a [Root], Marks),
    /// Time of modification and length of what the image has under the names of the upperdir.
    known: Option<HashSet<(Time, u64)>>,
}

impl Moved<'_> {
    fn has(&mut self, seen: &Seen<'_>) -> Result<bool> {
        let Some(node) = seen.node.filter(|node| !seen.is_deleted && is_older_than_itself(&node.meta)) else {
            return Ok(false);
        };
        if !ORIGINS.iter().any(|name| matches!(node.xattr(name), Ok(Some(_)))) {
            return Ok(false);
        }
        if self.known.is_none() {
            let (root, lowers, marks) = self.of;
            let mut known = HashSet::new();
            walk(root, lowers, marks, &mut |seen| {
                if let Some(below) = seen.below.filter(|_| known.len() < MAX_REMEMBERED) {
                    known.insert((below.mtime, below.size));
                }
                Ok(())
            })?;
            self.known = Some(known);
        }
        Ok(self.known.as_ref().is_some_and(|known| known.contains(&(node.meta.mtime, node.meta.size))))
    }
}

fn is_older_than_itself(meta: &Meta) -> bool {
    meta.btime.is_some_and(|born| meta.mtime < born)
}

fn is_as_below(node: &Node, below: Option<&Meta>) -> bool {
    below.is_some_and(|below| (below.kind, below.mtime) == (node.meta.kind, node.meta.mtime))
}

/// A walk through an upperdir, with what overlay merges below it.
struct Walk<'w, 'p> {
    root: &'w Node,
    marks: Marks,
    merged: Lowers,
    /// Each directory's last change.
    steps: Steps<Time>,
    packer: Packer<'p>,
    each: &'w mut dyn FnMut(&Seen<'_>) -> Result<()>,
}

fn walk(root: &Node, lowers: &[Root], marks: Marks, each: &mut dyn FnMut(&Seen<'_>) -> Result<()>) -> Result<Summary> {
    let mut silent = |_: crate::tree::Listed<'_>| Ok(());
    let mut packer = Packer::listing(&mut silent, judge);
    let merged = Lowers::open(lowers, marks, &mut packer);
    let Some((dir, names)) = plain::list(&mut packer, b"", root) else { return packer.finish() };
    let steps = Steps::begin(dir, names, root.meta.mtime);
    Walk { root, marks, merged, steps, packer, each }.run()
}

impl Walk<'_, '_> {
    fn run(mut self) -> Result<Summary> {
        loop {
            interrupt::check()?;
            match self.steps.next_name() {
                Some(name) => self.visit(&name)?,
                None => {
                    self.merged.leave();
                    if !plain::leave(&mut self.steps, &mut self.packer) {
                        return self.packer.finish();
                    }
                }
            }
        }
    }

    fn visit(&mut self, name: &[u8]) -> Result<()> {
        let path = self.steps.path_to(name);
        let Some(node) = self.steps.dir().and_then(|dir| plain::find(&mut self.packer, dir, &path, name)) else {
            return Ok(());
        };
        if let Some(deleted) = self.marks.mark(name) {
            // What was made anew since under that name is seen.
            let is_there = self.steps.dir().is_some_and(|dir| dir.child(deleted).is_ok());
            return if deleted.is_empty() || is_there { Ok(()) } else { self.deleted(&node, deleted) };
        }
        if !self.packer.admits(&path, &node.meta, &self.root.meta) {
            return Ok(());
        }
        match self.entry(name, &path, &node)? {
            Err(e) => self.packer.leave_out(&path, Some(&node.meta), Why::Unreadable(e.to_string())),
            Ok(Some(link)) if node.meta.is_on_mount_of(&self.root.meta) => {
                if let Some((dir, names)) = plain::list(&mut self.packer, &path, &node) {
                    self.merged.enter(link);
                    self.steps.enter(name, Some(dir), names, node.meta.mtime);
                }
            }
            Ok(_) => {}
        }
        Ok(())
    }

    /// Something that is no mark by its name; how it hangs below its parent, if it is a directory.
    fn entry(&mut self, name: &[u8], path: &[u8], node: &Node) -> Result<io::Result<Option<Link>>> {
        let marked = || Ok((self.marks.is_whiteout(node)?, self.link(name, node)?));
        let link = match marked() {
            Ok((true, _)) => return self.deleted(node, name).map(|()| Ok(None)),
            Ok((false, link)) => link,
            Err(e) => return Ok(Err(e)),
        };
        let data = match self.data(name, node) {
            Ok(data) => data,
            Err(e) => return Ok(Err(e)),
        };
        let below = self.below(name);
        let is_opaque = link.as_ref().is_some_and(|link| link.is_opaque);
        (self.each)(&Seen {
            path,
            node: Some(node),
            data: data.as_ref(),
            below: below.as_ref(),
            is_deleted: false,
            is_opaque,
            directory_changed: self.steps.value().copied().unwrap_or_default(),
            is_copied_up: is_as_below(node, below.as_ref()),
        })?;
        Ok(Ok(link))
    }

    fn link(&self, name: &[u8], node: &Node) -> io::Result<Option<Link>> {
        if node.meta.kind != Kind::Directory {
            return Ok(None);
        }
        let is_opaque = self.marks.is_opaque(node)?;
        let redirect = if is_opaque { None } else { self.marks.value(node, Mark::Redirect)? };
        Ok(Some(Link { name: name.to_vec(), is_opaque, redirect }))
    }

    /// What has the data of `node`, if overlay keeps its metadata alone in the upperdir.
    fn data(&mut self, name: &[u8], node: &Node) -> io::Result<Option<Node>> {
        if node.meta.kind != Kind::File || self.marks.value(node, Mark::Metacopy)?.is_none() {
            return Ok(None);
        }
        let redirect = self.marks.value(node, Mark::Redirect)?;
        self.merged.data(redirect.as_deref().unwrap_or(name))
    }

    fn below(&mut self, name: &[u8]) -> Option<Meta> {
        self.merged.find(name).ok()?.into_iter().next().map(|found| found.node.meta)
    }

    /// A deletion, if there is something to delete: overlay leaves whiteouts over nothing, too.
    fn deleted(&mut self, mark: &Node, name: &[u8]) -> Result<()> {
        let below = self.below(name);
        if below.is_none() && self.merged.is_complete() {
            return Ok(());
        }
        (self.each)(&Seen {
            path: &self.steps.path_to(name),
            node: Some(mark),
            data: None,
            below: below.as_ref(),
            is_deleted: true,
            is_opaque: false,
            directory_changed: self.steps.value().copied().unwrap_or_default(),
            is_copied_up: false,
        })
    }
}

/// What is different in two trees.
fn compared(
    rw: &RwLayer,
    base: Option<&Root>,
    active: &Root,
    each: &mut dyn FnMut(&Seen<'_>) -> Result<()>,
) -> Result<Summary> {
    let open = |root: &Root| Node::open(root).at("open", root.name());
    let (base, active) = (base.map(open).transpose()?, open(active)?);
    super::list(rw, &mut |listed| {
        let (parent, _) = split(listed.path);
        let node = listed.meta.and_then(|_| look_up(&active, listed.path));
        let below = base.as_ref().filter(|_| listed.existed || node.is_none());
        let below = below.and_then(|base| look_up(base, listed.path)).map(|node| node.meta);
        if listed.meta.is_some() && node.is_none() {
            return Ok(());
        }
        each(&Seen {
            path: listed.path,
            node: node.as_ref(),
            data: None,
            below: below.as_ref(),
            is_deleted: listed.meta.is_none(),
            is_opaque: false,
            directory_changed: look_up(&active, parent).map_or_else(Time::default, |dir| dir.meta.mtime),
            is_copied_up: node.as_ref().is_some_and(|node| is_as_below(node, below.as_ref())),
        })
    })
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn look_up(root: &Node, path: &[u8]) -> Option<Node> {
    let names = path.split(|&b| b == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names.into_iter().try_fold(root.again().ok()?, |dir, name| dir.child(name).ok())
}
