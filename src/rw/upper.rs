//! The upperdir of an overlay, entry by entry, as a layer.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    MARK, OPAQUE_MARK,
    lower::{Link, Lowers},
    marks::{Mark, Marks, Opacity},
    refuse,
};
use crate::{
    error::{At, Error, Result},
    interrupt,
    tree::{Dir, Kind, Meta, Node, Packer, Steps, Why, plain},
};

/// What holds in one directory of the walk.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// All that overlay merges here is written, not only what is in the upperdir: the layer below has it elsewhere.
    is_whole: bool,
    /// Nothing of the layers below is seen here once the layer is applied: there is nothing to delete.
    is_hidden: bool,
    /// The mark of the directory in the upperdir.
    opacity: Opacity,
}

struct Walk<'p, 'a> {
    root: Meta,
    marks: Marks,
    lowers: Lowers,
    steps: Steps<Place>,
    packer: &'p mut Packer<'a>,
}

/// Writes what `upper` changes in `lowers`, topmost first.
pub fn pack(upper: &Path, lowers: &[PathBuf], packer: &mut Packer) -> Result<()> {
    let root = Node::open(upper).at("open", upper)?;
    if root.meta.kind != Kind::Directory {
        return Err(Error::malformed(upper, "the upperdir is no directory"));
    }
    let marks = Marks::of(upper).at("look at", upper)?;
    if marks == Marks::Trusted && !rustix::process::geteuid().is_root() {
        packer.warn(b"", "only root can see overlay's marks: directories that hide the image's may be missing");
    }
    let lowers = Lowers::open(lowers, marks, packer);
    root_entry(&root, &lowers, packer)?;
    let Some((dir, names)) = plain::list(packer, b"", &root) else { return Ok(()) };
    let opacity = marks.opacity(&root).at("read the attributes of", upper)?;
    let steps = Steps::begin(dir, names, Place { is_whole: false, is_hidden: false, opacity });
    Walk { root: root.meta, marks, lowers, steps, packer }.run()
}

/// The root's own owner, mode and attributes, if they are not those of the image.
fn root_entry(root: &Node, lowers: &Lowers, packer: &mut Packer) -> Result<()> {
    let Some(below) = lowers.root() else { return Ok(()) };
    let content = |node: &Node| {
        let mut xattrs = node.xattrs().unwrap_or_default();
        xattrs.retain(|(name, _)| super::judge(name) == crate::tree::Held::Kept);
        (node.meta.mode, node.meta.uid, node.meta.gid, xattrs)
    };
    if content(root) == content(below) {
        return Ok(());
    }
    packer.warn(b"", "the root directory's owner, mode or attributes changed; containerd does not restore these");
    packer.entry(b".", root).map(drop)
}

impl Walk<'_, '_> {
    fn run(mut self) -> Result<()> {
        loop {
            interrupt::check()?;
            match self.steps.next_name() {
                Some(name) => self.visit(&name)?,
                None => {
                    self.lowers.leave();
                    if !plain::leave(&mut self.steps, self.packer) {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn visit(&mut self, name: &[u8]) -> Result<()> {
        let Some(&place) = self.steps.value() else { return Ok(()) };
        let path = self.steps.path_to(name);
        let upper = match self.steps.dir().map(|dir| dir.child(name)) {
            Some(Err(e)) if place.is_whole && e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.transpose(),
        };
        let done = match upper {
            Ok(Some(node)) => self.upper_entry(name, &path, &node, place),
            Ok(None) => self.inherited(name, &path, place).map(|()| true),
            Err(e) => Err(Failed::Reading(e)),
        };
        // Errors of reading cost the entry; errors of writing end the work.
        let is_done = match done {
            Ok(is_done) => is_done,
            Err(Failed::Ending(e)) => return Err(e),
            Err(Failed::Reading(e)) => {
                self.packer.leave_out(&path, None, Why::Unreadable(e.to_string()));
                false
            }
        };
        // What was left out must not come back as what the image has there.
        if is_done { Ok(()) } else { self.delete(name, &path, None, place) }
    }

    /// False if it is not in the layer.
    fn upper_entry(&mut self, name: &[u8], path: &[u8], node: &Node, place: Place) -> Result<bool, Failed> {
        if self.marks.is_whiteout(node, place.opacity)? {
            self.delete(name, path, Some(node), place)?;
            return Ok(true);
        }
        if !self.admits(name, path, node, self.root.clone()) {
            return Ok(false);
        }
        match node.meta.kind {
            Kind::Directory => self.directory(name, path, node, place).map(|()| true),
            Kind::File if self.marks.value(node, Mark::Metacopy)?.is_some() => {
                let redirect = self.marks.value(node, Mark::Redirect)?;
                let data = self.lowers.data(redirect.as_deref().unwrap_or(name))?;
                let missing = || io::Error::other("overlay keeps its data in a layer below, where it was not found");
                Ok(self.packer.entry_from(path, node, &data.ok_or_else(missing)?)?)
            }
            _ => Ok(self.packer.entry(path, node)?),
        }
    }

    fn admits(&mut self, name: &[u8], path: &[u8], node: &Node, root: Meta) -> bool {
        if let Some(why) = refuse(name) {
            self.packer.leave_out(path, Some(&node.meta), why);
            return false;
        }
        self.packer.admits(path, &node.meta, &root)
    }

    /// A deletion, if there is something to delete: overlay leaves whiteouts over nothing, too.
    fn delete(&mut self, name: &[u8], path: &[u8], whiteout: Option<&Node>, place: Place) -> Result<()> {
        if place.is_hidden || !self.lowers.may_have(name) {
            return Ok(());
        }
        // The mark for a name such as `.wh..opq` would say something else.
        if let Some(why) = refuse(name) {
            whiteout.inspect(|node| self.packer.leave_out(path, Some(&node.meta), why));
            return Ok(());
        }
        let mark = self.steps.path_to(&[MARK, name].concat());
        self.packer.summary().whiteouts += 1;
        self.packer.mark(&mark)
    }

    fn directory(&mut self, name: &[u8], path: &[u8], node: &Node, place: Place) -> Result<(), Failed> {
        let opacity = self.marks.opacity(node)?;
        let is_opaque = opacity == Opacity::Opaque;
        let redirect = if is_opaque { None } else { self.marks.value(node, Mark::Redirect)? };
        self.packer.entry(path, node)?;
        let is_cut = is_opaque || redirect.is_some();
        if is_cut && !place.is_hidden && self.lowers.may_have_directory(name) {
            self.packer.summary().opaques += 1;
            self.packer.mark(&[path, b"/", OPAQUE_MARK].concat())?;
        }
        if !node.meta.is_on_mount_of(&self.root) {
            return Ok(());
        }
        let is_whole = redirect.is_some() || place.is_whole && !is_opaque;
        let below = Place { is_whole, is_hidden: place.is_hidden || is_cut, opacity };
        let listed = plain::list(self.packer, path, node);
        self.enter(Link { name: name.to_vec(), is_opaque, redirect }, path, listed, below);
        Ok(())
    }

    /// Goes down; where all is written, to the names of all layers.
    fn enter(&mut self, link: Link, path: &[u8], listed: Option<(Dir, Vec<Vec<u8>>)>, place: Place) {
        let name = link.name.clone();
        let (dir, mut names) = listed.map_or((None, Vec::new()), |(dir, names)| (Some(dir), names));
        self.lowers.enter(link);
        if place.is_whole {
            match self.lowers.names() {
                Ok(below) => names.extend(below),
                Err(e) => {
                    self.packer.leave_out(path, None, Why::Unreadable(format!("its part in the layers below: {e}")))
                }
            }
            names.sort_unstable();
            names.dedup();
        }
        self.steps.enter(&name, dir, names, place);
    }

    /// Something that the upperdir does not have, below a directory that has moved.
    fn inherited(&mut self, name: &[u8], path: &[u8], place: Place) -> Result<(), Failed> {
        let found = self.lowers.find(name)?;
        let (Some(top), Some(last)) = (found.first(), found.last()) else { return Ok(()) };
        if !self.admits(name, path, &top.node, self.lowers.root_of(top).meta.clone()) {
            return Ok(());
        }
        self.packer.entry_from(path, &top.node, &last.node)?;
        if top.node.meta.kind == Kind::Directory {
            let link = Link { name: name.to_vec(), is_opaque: false, redirect: None };
            self.enter(link, path, None, Place { opacity: Opacity::Clear, ..place });
        }
        Ok(())
    }
}

/// Why an entry was not written.
enum Failed {
    /// It could not be read: the rest can.
    Reading(io::Error),
    /// The stream could not be written, or the user asked us to stop.
    Ending(Error),
}

impl From<io::Error> for Failed {
    fn from(e: io::Error) -> Self {
        Self::Reading(e)
    }
}

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        Self::Ending(e)
    }
}
