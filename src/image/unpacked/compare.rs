//! A snapshot on disk against what it should be. Whatever is there is looked at by one name below an open directory, and
//! no link is followed.

use std::{
    collections::HashMap,
    io::{self, Read},
};

use super::model::{Body, Inode, Model, ROOT};
use crate::{
    digest::{Digest, Hasher},
    image::entries,
    interrupt,
    pax::{Time, Xattr},
    timeline::moment,
    tree::{Dir, FileId, Kind, Meta, Node, Steps},
};

/// How something differs.
#[derive(Debug)]
pub enum Difference<'a> {
    /// It is there, and is another: in what, in words.
    Changed(Vec<String>, &'a Meta),
    /// A file without content, where the layer has so many bytes.
    Emptied(u64, &'a Meta),
    /// No layer has it.
    Added(&'static str, &'a Meta),
    /// A layer has it: what it should be.
    Missing(&'static str),
    /// It, or what is in it, cannot be read.
    Unreadable(String),
}

/// Tells `each` every difference, with its path.
pub fn compare(model: &Model, root: &Node, each: &mut dyn FnMut(&[u8], Difference<'_>)) -> io::Result<()> {
    let dir = root.dir()?;
    let mut names = dir.names()?;
    if entries::is_made_by_mkfs(root)? {
        names.retain(|name| name != entries::LOST_AND_FOUND);
    }
    let mut walk = Compare { model, top: &root.meta, linked: HashMap::new(), each };
    let strange = strange_xattrs(root, &[], false)?;
    if !strange.is_empty() {
        (walk.each)(b"", Difference::Changed(strange, &root.meta));
    }
    walk.missing(b"", ROOT, &names);
    walk.run(Steps::begin(dir, names, Some(ROOT)))
}

struct Compare<'a> {
    model: &'a Model,
    top: &'a Meta,
    /// Of inodes with several names: which file was found under the first of them.
    linked: HashMap<u32, FileId>,
    each: &'a mut dyn FnMut(&[u8], Difference<'_>),
}

impl Compare<'_> {
    /// Each level of the walk has the directory's number in the model, if it has one there.
    fn run(&mut self, mut steps: Steps<Option<u32>>) -> io::Result<()> {
        loop {
            interrupt::check().map_err(io::Error::other)?;
            let Some(name) = steps.next_name() else {
                match steps.leave() {
                    Ok(true) => continue,
                    Ok(false) => return Ok(()),
                    Err(lost) => {
                        let why = format!("{}; {} more names in it were not visited", lost.source, lost.names);
                        (self.each)(&lost.path, Difference::Unreadable(why));
                        continue;
                    }
                }
            };
            let path = steps.path_to(&name);
            let expected = steps.value().copied().flatten().and_then(|dir| self.model.child(dir, &name));
            let found = steps.dir().ok_or_else(|| io::ErrorKind::NotFound.into()).and_then(|dir| dir.child(&name));
            match found.and_then(|node| self.visit(&path, &node, expected)) {
                Ok(None) => {}
                Ok(Some((dir, names, number))) => steps.enter(&name, Some(dir), names, number),
                Err(e) => (self.each)(&path, Difference::Unreadable(e.to_string())),
            }
        }
    }

    /// Judges one thing; a directory to be entered comes back.
    #[allow(clippy::type_complexity, reason = "a step of one walk")]
    fn visit(
        &mut self,
        path: &[u8],
        node: &Node,
        expected: Option<u32>,
    ) -> io::Result<Option<(Dir, Vec<Vec<u8>>, Option<u32>)>> {
        let inode = expected.and_then(|number| Some((number, self.model.inode(number)?)));
        let is_mounted = !node.meta.is_on_mount_of(self.top);
        match inode {
            None => (self.each)(path, Difference::Added(added(&node.meta), &node.meta)),
            Some((number, inode)) => self.judge(path, node, number, inode, is_mounted),
        }
        if node.meta.kind != Kind::Directory || is_mounted {
            // Of what should be below a directory nothing is there.
            if let Some((number, _)) = inode {
                self.missing(path, number, &[]);
            }
            return Ok(None);
        }
        let number = inode.filter(|(_, inode)| inode.kind == Kind::Directory).map(|(number, _)| number);
        let dir = node.dir()?;
        let names = dir.names()?;
        if let Some(number) = number {
            self.missing(path, number, &names);
        }
        Ok(Some((dir, names, number)))
    }

    fn judge(&mut self, path: &[u8], node: &Node, number: u32, inode: &Inode, is_mounted: bool) {
        let mut what = Vec::new();
        if is_mounted {
            what.push("another file system is mounted there".into());
        }
        if node.meta.kind != inode.kind {
            what.push(format!("a {}, was a {}", node.meta.kind.name(), inode.kind.name()));
            return (self.each)(path, Difference::Changed(what, &node.meta));
        }
        if let (0, Body::File(Some(size @ 1..), _)) = (node.meta.size, &inode.body) {
            return (self.each)(path, Difference::Emptied(*size, &node.meta));
        }
        if let Err(e) = body(node, inode, &mut what) {
            what.push(format!("its content cannot be read: {e}"));
        }
        metadata(&node.meta, inode, &mut what);
        let inherits = self.inherits_acl(path);
        match strange_xattrs(node, &inode.xattrs, inherits) {
            Ok(strange) => what.extend(strange),
            Err(e) => what.push(format!("its attributes cannot be read: {e}")),
        }
        // A snapshotter that copies keeps only files together.
        if inode.names > 1 && inode.kind == Kind::File {
            let first = *self.linked.entry(number).or_insert(node.meta.id);
            if first != node.meta.id {
                what.push("no longer one file with its other names".into());
            }
        }
        if !what.is_empty() {
            (self.each)(path, Difference::Changed(what, &node.meta));
        }
    }

    /// True if its directory has a default ACL, which what is made in it gets before its own attributes are set.
    fn inherits_acl(&self, path: &[u8]) -> bool {
        let mut parts: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
        parts.pop();
        let dir = parts.into_iter().try_fold(ROOT, |dir, name| self.model.child(dir, name));
        let dir = dir.and_then(|dir| self.model.inode(dir));
        dir.is_some_and(|dir| dir.xattrs.iter().any(|(name, _)| name == ACL_DEFAULT))
    }

    /// Tells of what should be in the directory and is not, and all that should be below that.
    fn missing(&mut self, path: &[u8], dir: u32, names: &[Vec<u8>]) {
        let is_there = |name: &[u8]| names.binary_search_by(|known| known.as_slice().cmp(name)).is_ok();
        let gone = self.model.children(dir).filter(|(name, _)| !is_there(name));
        let mut todo: Vec<(Vec<u8>, u32)> = gone.map(|(name, inode)| (joined(path, name), inode)).collect();
        todo.reverse();
        while let Some((path, number)) = todo.pop() {
            let Some(inode) = self.model.inode(number) else { continue };
            (self.each)(&path, Difference::Missing(inode.kind.name()));
            todo.extend(self.model.children(number).map(|(name, inode)| (joined(&path, name), inode)));
        }
    }
}

fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

fn added(meta: &Meta) -> &'static str {
    match (meta.kind, meta.device) {
        (Kind::Char, (0, 0)) => "whiteout: it hides what the layers below have there",
        (kind, _) => kind.name(),
    }
}

/// What only its kind has.
fn body(node: &Node, inode: &Inode, what: &mut Vec<String>) -> io::Result<()> {
    match &inode.body {
        Body::None => {}
        Body::File(Some(size), _) if *size != node.meta.size => {
            what.push(format!("{} bytes, were {size}", node.meta.size))
        }
        Body::File(_, None) => {}
        Body::File(_, Some(right)) => {
            let is = digest(node)?;
            if is != *right {
                let kept =
                    if inode.mtime == Some(node.meta.mtime) { "size and time of last modification" } else { "size" };
                what.push(format!("other content of the same {kept}: {is}, was {right}"));
            }
        }
        Body::Target(right) => {
            let target = node.target()?;
            if *target != **right {
                what.push(format!("points to {}, did to {}", target.escape_ascii(), right.escape_ascii()));
            }
        }
        Body::Device(major, minor) if (*major, *minor) != node.meta.device => {
            what.push(format!("device {}:{}, was {major}:{minor}", node.meta.device.0, node.meta.device.1));
        }
        Body::Device(..) => {}
    }
    Ok(())
}

fn metadata(meta: &Meta, inode: &Inode, what: &mut Vec<String>) {
    if let Some((mode, uid, gid)) = inode.owned {
        // Links have no mode of their own.
        if meta.mode != mode && meta.kind != Kind::Symlink {
            what.push(format!("mode {:04o}, was {mode:04o}", meta.mode));
        }
        if (meta.uid, meta.gid) != (uid, gid) {
            what.push(format!("owner {}:{}, was {uid}:{gid}", meta.uid, meta.gid));
        }
    }
    if let Some(mtime) = inode.mtime.filter(|mtime| !is_kept(*mtime, meta.mtime)) {
        let text = |time: Time| moment::iso(time, 9).0;
        what.push(format!("last modified at {}, was at {}", text(meta.mtime), text(mtime)));
    }
}

/// The last moments that file systems can keep: those of 32 and 34 bits, and of XFS's nanoseconds.
const LAST_MOMENTS: [i64; 3] = [0x7fff_ffff, 0x3_7fff_ffff, 16_299_260_424];

/// True if a file system that was told `told` may say `is`.
fn is_kept(told: Time, is: Time) -> bool {
    told == is || LAST_MOMENTS.contains(&is.secs) && told.secs > is.secs
}

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// Attributes that the machine gives, and overlay's notes on what it copied, which change nothing that is seen.
const OF_THE_MACHINE: [&[u8]; 7] = [
    b"security.selinux",
    b"security.ima",
    b"security.evm",
    b"trusted.overlay.origin",
    b"trusted.overlay.impure",
    b"trusted.overlay.nlink",
    b"trusted.overlay.uuid",
];

/// In what the attributes of `node` are not `right`.
fn strange_xattrs(node: &Node, right: &[Xattr], inherits_acl: bool) -> io::Result<Vec<String>> {
    let mut what = Vec::new();
    let is = node.xattrs()?;
    let is_ours = |name: &[u8]| !OF_THE_MACHINE.contains(&name);
    let value_of = |all: &[Xattr], name: &[u8]| all.iter().find(|(known, _)| known == name).map(|(_, v)| v.clone());
    for (name, value) in right.iter().filter(|(name, _)| is_ours(name)) {
        let value = if name == ACL_ACCESS { access_acl(value, node.meta.mode) } else { Some(value.clone()) };
        match (value_of(&is, name), value) {
            (is, right) if is == right => {}
            (None, _) => what.push(format!("attribute {} is gone", name.escape_ascii())),
            (Some(_), _) => what.push(format!("attribute {} has another value", name.escape_ascii())),
        }
    }
    for (name, _) in is.iter().filter(|(name, _)| is_ours(name) && value_of(right, name).is_none()) {
        if !(inherits_acl && (name == ACL_ACCESS || name == ACL_DEFAULT)) {
            what.push(format!("attribute {} was not there", name.escape_ascii()));
        }
    }
    Ok(what)
}

/// Tags of an ACL's entries (linux/posix_acl.h).
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The ACL as the kernel tells it when the mode has been set after it; `None` when it says no more than the mode.
fn access_acl(value: &[u8], mode: u32) -> Option<Vec<u8>> {
    let mut value = value.to_vec();
    let (_, entries) = value.split_at_mut_checked(4)?;
    let tag = |entry: &[u8]| u16::from_le_bytes([entry[0], entry[1]]);
    let has_mask = entries.chunks_exact(8).any(|entry| tag(entry) == MASK);
    if entries.len() <= 24 && !has_mask {
        return None;
    }
    for entry in entries.chunks_exact_mut(8) {
        let shift = match tag(entry) {
            USER_OBJ => 6,
            MASK => 3,
            GROUP_OBJ if !has_mask => 3,
            OTHER => 0,
            _ => continue,
        };
        entry[2] = (mode >> shift & 7) as u8;
    }
    Some(value)
}

fn digest(node: &Node) -> io::Result<Digest> {
    let (mut file, mut hasher, mut piece) = (node.data()?, Hasher::default(), vec![0; 256 << 10]);
    // No longer than it was when it was looked at.
    let mut left = node.meta.size;
    while left > 0 {
        interrupt::check().map_err(io::Error::other)?;
        let n = file.read(&mut piece)?;
        if n == 0 {
            break;
        }
        hasher.update(piece.get(..n).unwrap_or_default());
        left = left.saturating_sub(n as u64);
    }
    Ok(hasher.finish())
}
