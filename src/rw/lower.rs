//! The layers below: what overlay would find there under a name, by the kernel's rules (fs/overlayfs/namei.c, `ovl_lookup`).
//!
//! A directory is merged from all layers that have it, topmost first, down to the first that is opaque there. A name ends
//! at the first layer that has a whiteout or anything but a directory. A redirect makes the search go on under another
//! name, or from the roots under another path.

use std::{collections::BTreeSet, io, rc::Rc};

use super::marks::{Mark, Marks};
use crate::{
    snapshotter::Root,
    tree::{Kind, Node, Packer},
};

/// Beyond so many descriptors the merged directories farthest above are let go; they are looked up again when needed.
const MAX_HELD: usize = 256;

/// What one layer has of something.
#[derive(Debug)]
pub struct Found {
    /// Its number, the topmost is 0.
    pub layer: usize,
    /// What it is there.
    pub node: Node,
}

/// The same directory in the layers that have it, topmost first.
type Merged = Vec<Found>;

/// How a directory hangs below its parent, for those who look from the upperdir down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: Vec<u8>,
    /// The layers below do not show through.
    pub is_opaque: bool,
    /// Its place in the layers below, if it has another name there.
    pub redirect: Option<Vec<u8>>,
}

/// The layers below, at the place where the walk of the upperdir stands.
#[derive(Debug)]
pub struct Lowers {
    marks: Marks,
    roots: Rc<Merged>,
    /// From the root to the present directory.
    links: Vec<Link>,
    /// The merged directory of each link, as far as it was looked up and is still held.
    held: Vec<Option<Merged>>,
    /// A layer could not be opened: nobody can say that something is not below.
    is_incomplete: bool,
}

/// What is wanted of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Anything,
    Directory,
    /// The data of a file whose upper half was found already.
    Data,
}

impl Lowers {
    /// Opens the layers, topmost first. One that cannot be opened is noted.
    pub fn open(paths: &[Root], marks: Marks, packer: &mut Packer) -> Self {
        let (mut roots, mut is_incomplete) = (Vec::new(), false);
        for (layer, root) in paths.iter().enumerate() {
            // That it is not here is known, and has been told.
            if root.why_absent().is_some() {
                is_incomplete = true;
                continue;
            }
            match Node::open(root) {
                Ok(node) if node.meta.kind == Kind::Directory => roots.push(Found { layer, node }),
                Ok(_) => is_incomplete = true,
                Err(e) => {
                    is_incomplete = true;
                    packer.warn(b"", format!("the layer below in {} cannot be opened: {e}", root.name().display()));
                }
            }
        }
        Self { marks, roots: Rc::new(roots), links: Vec::new(), held: Vec::new(), is_incomplete }
    }

    /// The same layers, for another walk.
    pub fn again(&self) -> Self {
        let (links, held) = (Vec::new(), Vec::new());
        Self { marks: self.marks, roots: Rc::clone(&self.roots), links, held, is_incomplete: self.is_incomplete }
    }

    /// Only the layers below the topmost `own`, for another walk.
    pub fn below(&self, own: usize) -> Self {
        let part = |root: &Found| root.node.again().map(|node| Found { layer: root.layer, node });
        let mut below = self.again();
        if own > 0 {
            let roots: io::Result<Merged> = self.roots.iter().filter(|root| root.layer >= own).map(part).collect();
            below.is_incomplete |= roots.is_err();
            below.roots = Rc::new(roots.unwrap_or_default());
        }
        below
    }

    /// Follows the walk down.
    pub fn enter(&mut self, link: Link) {
        self.links.push(link);
        self.held.push(None);
    }

    /// Follows the walk up.
    pub fn leave(&mut self) {
        self.links.pop();
        self.held.pop();
    }

    /// The root of the topmost layer.
    pub fn root(&self) -> Option<&Node> {
        self.roots.first().map(|found| &found.node)
    }

    /// The root of the layer that has `found`.
    pub fn root_of<'a>(&'a self, found: &'a Found) -> &'a Node {
        self.roots.iter().find(|root| root.layer == found.layer).map_or(&found.node, |root| &root.node)
    }

    /// True if the layers below show something under `name` in the present directory, or if nobody can tell.
    pub fn may_have(&mut self, name: &[u8]) -> bool {
        self.is_incomplete || self.look(name, Want::Anything).map_or(true, |found| !found.is_empty())
    }

    /// True if what they show there is a directory, or if nobody can tell.
    pub fn may_have_directory(&mut self, name: &[u8]) -> bool {
        let is_dir = |found: Merged| found.first().is_some_and(|top| top.node.meta.kind == Kind::Directory);
        self.is_incomplete || self.look(name, Want::Anything).map_or(true, is_dir)
    }

    /// What they show under `name` in the present directory: the first is what is seen, a file's data is in the last.
    pub fn find(&mut self, name: &[u8]) -> io::Result<Merged> {
        self.look(name, Want::Anything)
    }

    /// The data of a file that lies under `name` (or a path from the root) in the layers below.
    pub fn data(&mut self, name: &[u8]) -> io::Result<Option<Node>> {
        let last = self.look(name, Want::Data)?.pop().map(|found| found.node);
        let is_whole = |node: &Node| Ok::<_, io::Error>(self.marks.value(node, Mark::Metacopy)?.is_none());
        Ok(match last {
            Some(node) if is_whole(&node)? => Some(node),
            _ => None,
        })
    }

    /// True if all layers could be opened: then what is not found is not there.
    pub fn is_complete(&self) -> bool {
        !self.is_incomplete
    }

    /// The names in the present directory, whiteouts included.
    pub fn names(&mut self) -> io::Result<BTreeSet<Vec<u8>>> {
        let mut names = BTreeSet::new();
        for found in self.here()? {
            names.extend(found.node.dir()?.names()?);
        }
        let marks = self.marks;
        names.retain(|name| marks.mark(name).is_none());
        Ok(names)
    }

    /// The names that the topmost `own` layers have in the present directory, whiteouts included.
    pub fn names_above(&mut self, own: usize) -> io::Result<BTreeSet<Vec<u8>>> {
        let mut names = BTreeSet::new();
        for found in self.here()?.iter().filter(|found| found.layer < own) {
            names.extend(found.node.dir()?.names()?);
        }
        Ok(names)
    }

    fn look(&mut self, name: &[u8], want: Want) -> io::Result<Merged> {
        self.here()?;
        let here = self.held.last().and_then(Option::as_ref).unwrap_or(&self.roots);
        Search::new(self.marks, &self.roots, name, want).run(here)
    }

    /// The present directory in the layers below.
    fn here(&mut self) -> io::Result<&Merged> {
        let known = self.held.iter().rposition(Option::is_some).map_or(0, |at| at + 1);
        for at in known..self.links.len() {
            let parent = if at == 0 { &self.roots } else { self.held[at - 1].as_ref().unwrap_or(&self.roots) };
            let link = &self.links[at];
            let merged = if link.is_opaque {
                Merged::new()
            } else {
                let name = link.redirect.as_deref().unwrap_or(&link.name);
                Search::new(self.marks, &self.roots, name, Want::Directory).run(parent)?
            };
            self.held[at] = Some(merged);
            self.let_go(at);
        }
        Ok(self.held.last().and_then(Option::as_ref).unwrap_or(&self.roots))
    }

    /// Keeps the number of descriptors within bounds; `keep` stays.
    fn let_go(&mut self, keep: usize) {
        let mut total: usize = self.held.iter().flatten().map(Vec::len).sum();
        for merged in self.held[..keep].iter_mut().filter(|merged| merged.is_some()) {
            if total <= MAX_HELD {
                return;
            }
            total -= merged.take().map_or(0, |gone| gone.len());
        }
    }
}

/// One search through the layers.
struct Search<'a> {
    marks: Marks,
    roots: &'a Merged,
    /// What is looked for in the next layer: a name, or a path from the root that begins with `/`.
    path: Vec<u8>,
    want: Want,
    /// No layer farther down is asked.
    is_over: bool,
}

impl<'a> Search<'a> {
    fn new(marks: Marks, roots: &'a Merged, name: &[u8], want: Want) -> Self {
        Self { marks, roots, path: name.to_vec(), want, is_over: false }
    }

    fn run(mut self, parent: &Merged) -> io::Result<Merged> {
        let mut found = Merged::new();
        let mut next_layer = 0;
        while !self.is_over {
            // A path from the root is looked for in every layer, whether or not it has the parent.
            let bases = if self.path.starts_with(b"/") { self.roots } else { parent };
            let Some(base) = bases.iter().find(|base| base.layer >= next_layer) else { break };
            next_layer = base.layer + 1;
            if let Some(node) = self.in_layer(&base.node)? {
                found.push(Found { layer: base.layer, node });
            }
        }
        Ok(found)
    }

    /// What one layer has; and whether, and under which path, the next is to be asked.
    fn in_layer(&mut self, base: &Node) -> io::Result<Option<Node>> {
        let path = self.path.clone();
        let parts: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|part| !part.is_empty()).collect();
        if parts.is_empty() || parts.iter().any(|part| matches!(*part, b"." | b"..")) {
            return Err(io::Error::other("a redirect of overlay leads to no place"));
        }
        let mut at: Option<Node> = None;
        for (i, part) in parts.iter().enumerate() {
            let dir = at.as_ref().unwrap_or(base);
            let Some(node) = child(dir, part)? else {
                self.is_over |= self.marks.is_deleted(dir, part)?;
                return Ok(None);
            };
            if !self.step(&node, &parts, i)? {
                return Ok(None);
            }
            at = Some(node);
        }
        Ok(at)
    }

    /// Judges `node`, met as component `i`: false if the search ends before it.
    fn step(&mut self, node: &Node, parts: &[&[u8]], i: usize) -> io::Result<bool> {
        let is_last = i + 1 == parts.len();
        let is_dir = node.meta.kind == Kind::Directory;
        let is_unwanted = match self.want {
            Want::Data if is_last => node.meta.kind != Kind::File,
            Want::Directory => !is_dir,
            _ => !is_dir && !is_last,
        };
        if is_unwanted || self.marks.is_whiteout(node)? {
            self.is_over = true;
            return Ok(false);
        }
        let is_seen_through = if is_dir { self.through_directory(node, is_last)? } else { self.through_file(node)? };
        if is_seen_through && let Some(redirect) = self.marks.value(node, Mark::Redirect)? {
            self.redirect(&redirect, parts, i);
        }
        Ok(true)
    }

    /// A directory is merged with those below unless it is opaque; one on the way ends the search there, but is passed.
    fn through_directory(&mut self, node: &Node, is_last: bool) -> io::Result<bool> {
        if is_last {
            self.want = Want::Directory;
        }
        let is_opaque = self.marks.is_opaque(node)?;
        self.is_over |= is_opaque;
        Ok(!is_opaque)
    }

    /// A file ends the search, unless its data is farther down.
    fn through_file(&mut self, node: &Node) -> io::Result<bool> {
        let is_half = node.meta.kind == Kind::File && self.marks.value(node, Mark::Metacopy)?.is_some();
        self.is_over = !is_half;
        if is_half {
            self.want = Want::Data;
        }
        Ok(is_half)
    }

    /// Component `i` is called differently in the layers farther down.
    fn redirect(&mut self, to: &[u8], parts: &[&[u8]], i: usize) {
        let mut path = Vec::new();
        if to.starts_with(b"/") {
            path.extend(to);
            // An opaque directory on the way does not hide what is fetched from elsewhere.
            self.is_over = false;
        } else {
            if self.path.starts_with(b"/") {
                path.push(b'/');
            }
            for part in &parts[..i] {
                path.extend(*part);
                path.push(b'/');
            }
            path.extend(to);
        }
        for part in &parts[i + 1..] {
            path.push(b'/');
            path.extend(*part);
        }
        self.path = path;
    }
}

fn child(dir: &Node, name: &[u8]) -> io::Result<Option<Node>> {
    match dir.child(name) {
        Ok(node) => Ok(Some(node)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename) => Ok(None),
        Err(e) => Err(e),
    }
}
