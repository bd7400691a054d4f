//! The upperdir of an overlay, entry by entry, as a layer.

use std::{io, sync::Arc};

use super::{
    MARK, OPAQUE_MARK,
    lower::{Link, Lowers},
    marks::{Mark, Marks},
    refuse, root_entry,
};
use crate::{
    error::{At, Error, Result},
    idmap::IdMap,
    interrupt,
    snapshotter::{Driver, Root},
    tree::{Dir, Kind, Meta, Node, Packer, Steps, Why, plain},
};

/// What holds in one directory of the walk.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// All that overlay merges here is written, not only what is in the upperdir: the image has it elsewhere.
    is_whole: bool,
    /// What the image has at this very place.
    image: Image,
}

impl Place {
    /// Names are visited that the upperdir does not have.
    fn names_below(self) -> bool {
        self.is_whole || self.image == Image::Covered
    }
}

/// What becomes of what the image has in a directory, once the layer is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Image {
    /// It is seen, unless the layer has something of the same name or deletes it.
    Shown,
    /// It must not be seen: every name that the layer does not have is deleted.
    Covered,
    /// There is nothing, or all is deleted already.
    Gone,
}

/// How a directory is cut off from what the layers below have at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Nothing of them is seen.
    Opaque,
    /// What they have elsewhere is seen.
    Moved,
}

struct Walk<'p, 'a> {
    root: Meta,
    marks: Marks,
    /// So many of the topmost layers below are not of the image: what they have belongs into the layer.
    own: usize,
    /// What overlay merges under the upperdir: it follows renamed directories to where the image has them.
    merged: Lowers,
    /// The image as it is without the upperdir: what the layer will be applied to.
    image: Lowers,
    steps: Steps<Place>,
    packer: &'p mut Packer<'a>,
}

/// Writes what the upperdir at `upper` changes in `lowers`, topmost first. The image is what is below the first `own` of them.
pub fn pack(
    upper: &Root,
    lowers: &[Root],
    own: usize,
    ids: Option<&Arc<IdMap>>,
    driver: Driver,
    packer: &mut Packer,
) -> Result<()> {
    let root = Node::open_mapped(upper, ids.cloned()).at("open", upper.name())?;
    if root.meta.kind != Kind::Directory {
        return Err(Error::malformed(upper.name(), "the upperdir is no directory"));
    }
    let marks = Marks::of(driver, upper).at("look at", upper.name())?;
    if marks == Marks::Trusted && !rustix::process::geteuid().is_root() {
        packer.warn(b"", "only root can see overlay's marks: directories that hide the image's may be missing");
    }
    let mut merged = Lowers::open(lowers, marks, packer);
    let image = merged.below(own);
    if let Some(below) = image.root() {
        root_entry(&root, below, packer)?;
    }
    let Some((dir, mut names)) = plain::list(packer, b"", &root) else { return Ok(()) };
    names_above(&mut merged, own, &mut names, b"", packer);
    let steps = Steps::begin(dir, names, Place { is_whole: false, image: Image::Shown });
    Walk { root: root.meta, marks, own, merged, image, steps, packer }.run()
}

impl Walk<'_, '_> {
    fn run(mut self) -> Result<()> {
        loop {
            interrupt::check()?;
            match self.steps.next_name() {
                Some(name) => self.visit(&name)?,
                None => {
                    self.merged.leave();
                    self.image.leave();
                    if !plain::leave(&mut self.steps, self.packer) {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn visit(&mut self, name: &[u8]) -> Result<()> {
        let Some(&place) = self.steps.value() else { return Ok(()) };
        if let Some(deleted) = self.marks.mark(name) {
            return self.deleted_by_name(deleted, name, place);
        }
        let path = self.steps.path_to(name);
        if self.packer.rests(&path)? {
            return Ok(());
        }
        let upper = match self.steps.dir().map(|dir| dir.child(name)) {
            Some(Err(e)) if (self.own > 0 || place.names_below()) && e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.transpose(),
        };
        let done = match upper {
            Ok(Some(node)) => self.upper_entry(name, &path, &node, place),
            Ok(None) => self.inherited(name, &path, place),
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

    /// A file whose name says that `deleted` is. What was made anew since under that name is seen.
    fn deleted_by_name(&mut self, deleted: &[u8], mark: &[u8], place: Place) -> Result<()> {
        let dir = self.steps.dir();
        let is_there = dir.is_some_and(|dir| dir.child(deleted).is_ok());
        let mark = dir.and_then(|dir| dir.child(mark).ok());
        if deleted.is_empty() || is_there {
            return Ok(());
        }
        let path = self.steps.path_to(deleted);
        self.delete(deleted, &path, mark.as_ref(), place)
    }

    /// False if it is not in the layer.
    fn upper_entry(&mut self, name: &[u8], path: &[u8], node: &Node, place: Place) -> Result<bool, Failed> {
        // What lies on another mount, or has no place in a layer, is not opened.
        if node.meta.is_on_mount_of(&self.root) && refuse(path).is_none() {
            self.packer.expect(node);
        }
        if self.marks.is_whiteout(node)? {
            self.delete(name, path, Some(node), place)?;
            return Ok(true);
        }
        let is_half = node.meta.kind == Kind::File && self.marks.value(node, Mark::Metacopy)?.is_some();
        let data = if is_half { Some(self.data_of(name, node)?) } else { None };
        let data = data.as_ref().unwrap_or(node);
        if !self.admits(path, node, data, self.root.clone())? {
            return Ok(false);
        }
        match node.meta.kind {
            Kind::Directory => self.directory(name, path, node, place).map(|()| true),
            _ => Ok(self.packer.entry_over(path, node, data, || self.image.may_have(name))?),
        }
    }

    /// The lower layer's file that has the data of `node`, of which the upperdir has the metadata only.
    fn data_of(&mut self, name: &[u8], node: &Node) -> io::Result<Node> {
        let redirect = self.marks.value(node, Mark::Redirect)?;
        let data = self.merged.data(redirect.as_deref().unwrap_or(name))?;
        data.ok_or_else(|| io::Error::other("overlay keeps its data in a layer below, where it was not found"))
    }

    fn admits(&mut self, path: &[u8], node: &Node, data: &Node, root: Meta) -> Result<bool> {
        if let Some(why) = refuse(path) {
            self.packer.keep_beside(path, node, data, why)?;
            return Ok(false);
        }
        Ok(self.packer.admits(path, &node.meta, &root))
    }

    /// A deletion, if there is something to delete: overlay leaves whiteouts over nothing, too.
    fn delete(&mut self, name: &[u8], path: &[u8], whiteout: Option<&Node>, place: Place) -> Result<()> {
        if place.image == Image::Gone || !self.image.may_have(name) {
            return Ok(());
        }
        // The mark for a name such as `.wh..opq` would say something else.
        if let Some(why) = refuse(path) {
            whiteout.inspect(|node| self.packer.leave_out(path, Some(&node.meta), why));
            return Ok(());
        }
        self.packer.delete(path, &self.steps.path_to(&[MARK, name].concat()), whiteout)
    }

    fn directory(&mut self, name: &[u8], path: &[u8], node: &Node, place: Place) -> Result<(), Failed> {
        let is_opaque = self.marks.is_opaque(node)?;
        let redirect = if is_opaque { None } else { self.marks.value(node, Mark::Redirect)? };
        self.packer.entry_over(path, node, node, || self.image.may_have(name))?;
        if !node.meta.is_on_mount_of(&self.root) {
            return Ok(());
        }
        let between = if is_opaque || redirect.is_some() { None } else { self.cut_between(name)? };
        let is_cut = is_opaque || redirect.is_some() || between.is_some();
        let image = self.image_in(name, is_cut, place);
        let has_moved = redirect.is_some() || between == Some(Cut::Moved);
        let is_whole = has_moved || place.is_whole && !is_opaque;
        let listed = plain::list(self.packer, path, node);
        self.enter(Link { name: name.to_vec(), is_opaque, redirect }, path, listed, Place { is_whole, image })?;
        Ok(())
    }

    /// What becomes of what the image has in the directory `name`; the layer's own is cut off from it, or not.
    fn image_in(&mut self, name: &[u8], is_cut: bool, place: Place) -> Image {
        match place.image {
            Image::Gone => Image::Gone,
            Image::Shown if !is_cut => Image::Shown,
            _ if self.image.may_have_directory(name) => Image::Covered,
            _ => Image::Gone,
        }
    }

    /// How the layers between the upperdir and the image cut the directory `name` off from the image's, if they do.
    fn cut_between(&mut self, name: &[u8]) -> io::Result<Option<Cut>> {
        if self.own == 0 {
            return Ok(None);
        }
        let found = self.merged.find(name)?;
        for between in found.iter().filter(|found| found.layer < self.own && found.node.meta.kind == Kind::Directory) {
            if self.marks.value(&between.node, Mark::Redirect)?.is_some() {
                return Ok(Some(Cut::Moved));
            }
        }
        // A mark, a whiteout or a file has ended the search before it came to the image.
        Ok((!found.iter().any(|found| found.layer >= self.own)).then_some(Cut::Opaque))
    }

    /// Goes down: to the names of all layers where all is written, to the image's where they must be deleted.
    fn enter(&mut self, link: Link, path: &[u8], listed: Option<(Dir, Vec<Vec<u8>>)>, mut place: Place) -> Result<()> {
        let name = link.name.clone();
        let (dir, mut names) = listed.map_or((None, Vec::new()), |(dir, names)| (Some(dir), names));
        self.image.enter(Link { name: name.clone(), is_opaque: place.image == Image::Gone, redirect: None });
        self.merged.enter(link);
        if place.is_whole {
            match self.merged.names() {
                Ok(below) => names.extend(below),
                Err(e) => {
                    self.packer.leave_out(path, None, Why::Unreadable(format!("its part in the layers below: {e}")))
                }
            }
        }
        names_above(&mut self.merged, self.own, &mut names, path, self.packer);
        if place.image == Image::Covered {
            match self.image.names() {
                Ok(below) if self.image.is_complete() && !below.iter().any(|name| name.starts_with(MARK)) => {
                    names.extend(below);
                }
                // Nobody can name all that is to be deleted, or no mark can.
                _ => {
                    self.packer.summary().opaques += 1;
                    self.packer.mark(&[path, b"/", OPAQUE_MARK].concat())?;
                    place.image = Image::Gone;
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        self.steps.enter(&name, dir, names, place);
        Ok(())
    }

    /// Something that the upperdir does not have: in a layer between it and the image, or below a directory that has moved or
    /// covers another. False if overlay shows nothing there.
    fn inherited(&mut self, name: &[u8], path: &[u8], place: Place) -> Result<bool, Failed> {
        let found = if self.own > 0 || place.is_whole { self.merged.find(name)? } else { Vec::new() };
        let (Some(top), Some(last)) = (found.first(), found.last()) else { return Ok(false) };
        if !place.is_whole && top.layer >= self.own {
            return Ok(place.image == Image::Shown);
        }
        if !self.admits(path, &top.node, &last.node, self.merged.root_of(top).meta.clone())? {
            return Ok(false);
        }
        let is_written = self.packer.entry_over(path, &top.node, &last.node, || self.image.may_have(name))?;
        if top.node.meta.kind == Kind::Directory {
            let between = self.cut_between(name)?;
            let image = self.image_in(name, place.is_whole || between.is_some(), place);
            let is_whole = place.is_whole || between == Some(Cut::Moved);
            let link = Link { name: name.to_vec(), is_opaque: false, redirect: None };
            self.enter(link, path, None, Place { is_whole, image })?;
        }
        Ok(is_written)
    }
}

/// Adds the names that the layers between the upperdir and the image have in the present directory.
fn names_above(merged: &mut Lowers, own: usize, names: &mut Vec<Vec<u8>>, path: &[u8], packer: &mut Packer) {
    if own == 0 {
        return;
    }
    match merged.names_above(own) {
        Ok(above) => names.extend(above),
        Err(e) => packer.leave_out(path, None, Why::Unreadable(format!("its part in the layers between: {e}"))),
    }
    names.sort_unstable();
    names.dedup();
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
