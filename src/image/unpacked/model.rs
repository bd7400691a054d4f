//! What unpacking layers makes, kept in memory: every name, and of every file the digest of its content.
//!
//! The rules are containerd's (`pkg/archive/tar.go`, `applyNaive`; `tar_unix.go`; `core/diff/apply/apply_linux.go`), the same
//! from 1.6 to 2.1 as far as they are told here:
//!
//! ```text
//! a name                    links in its directories are followed inside the root; what is there already is replaced, but
//!                           a directory by a directory
//! a directory without entry gets 0755 and root, or owner, mode and attributes of the one in the layers below
//! a link to a file          sets owner, mode, time and attributes of the file anew
//! time of a directory       that of its entry, set at the end; otherwise nobody's
//! times                     before 1970 and after 2262 become 1970
//! trusted.*                 is left out
//! .wh.x                     on overlay a 0/0 device x; elsewhere x is removed
//! .wh..wh..opq              on overlay an attribute; elsewhere all is removed that is not of this layer
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Read},
};

use tar::EntryType;

use super::Form;
use crate::{
    digest::{Digest, Hasher},
    interrupt,
    layout::{told::Told, untar::Entry},
    pax::{Time, Xattr},
    tree::Kind,
};

/// What is remembered may take so much memory: about four million files.
const MAX_HELD: usize = 1 << 30;

/// Links in one name that are followed (continuity `fs/path.go`, `RootPath`).
const MAX_LINKS: usize = 255;

/// Linux takes no longer path.
const MAX_PATH: usize = 4096;

const MARK: &[u8] = b".wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const CAPABILITY: &[u8] = b"security.capability";

/// What only its kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A directory or a pipe.
    None,
    /// A file's length and digest, as far as they are known of one that is stored in parts.
    File(Option<u64>, Option<Digest>),
    /// Where a symbolic link points.
    Target(Box<[u8]>),
    /// A device's numbers.
    Device(u32, u32),
}

/// One inode as it should be.
#[derive(Debug, Clone)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// What only its kind has.
    pub body: Body,
    /// Permissions, owner and group; `None` where the layer below, which has them, is not known.
    pub owned: Option<(u32, u32, u32)>,
    /// Last modification, where an entry says so.
    pub mtime: Option<Time>,
    /// By name.
    pub xattrs: Vec<Xattr>,
    /// How many names it has.
    pub names: u32,
}

/// A name's inode, and the layer that has an entry for the name; 0 if none has.
#[derive(Debug, Clone, Copy)]
struct Name {
    inode: u32,
    layer: u32,
}

/// The number of the root's inode.
pub const ROOT: u32 = 0;

/// A tree as it should be.
pub struct Model {
    form: Form,
    /// By directory and name.
    names: BTreeMap<(u32, Box<[u8]>), Name>,
    inodes: Vec<Inode>,
    /// The layer that is being applied, from 1.
    layer: u32,
    /// Directories of this layer with entries, and their times.
    timed: Vec<(u32, Time)>,
    held: usize,
}

impl Model {
    /// An empty tree.
    pub fn new(form: Form) -> Self {
        let mut model = Self { form, names: BTreeMap::new(), inodes: Vec::new(), layer: 0, timed: Vec::new(), held: 0 };
        model.inodes.push(directory(None));
        model
    }

    /// An inode by its number.
    pub fn inode(&self, number: u32) -> Option<&Inode> {
        self.inodes.get(number as usize)
    }

    /// What is in a directory, sorted bytewise.
    pub fn children(&self, dir: u32) -> impl Iterator<Item = (&[u8], u32)> {
        let range = (dir, Box::<[u8]>::default())..(dir.saturating_add(1), Box::<[u8]>::default());
        self.names.range(range).map(|((_, name), entry)| (&name[..], entry.inode))
    }

    /// The inode that a directory has under a name.
    pub fn child(&self, dir: u32, name: &[u8]) -> Option<u32> {
        self.names.get(&(dir, name.into())).map(|entry| entry.inode)
    }

    /// How much memory it takes, about.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Begins the next layer. Where the tree below was copied, its directories have got the time of that.
    pub fn begin(&mut self) {
        self.layer += 1;
        if self.form == Form::Copied {
            self.inodes.iter_mut().filter(|inode| inode.kind == Kind::Directory).for_each(|dir| dir.mtime = None);
        }
    }

    /// Ends a layer: only now directories have their times.
    pub fn end(&mut self) {
        for (dir, time) in std::mem::take(&mut self.timed) {
            if let Some(inode) = self.inodes.get_mut(dir as usize) {
                inode.mtime = Some(time);
            }
        }
    }

    /// Applies one entry of the layer. `below` are the layers below, topmost first, where each lies by itself; `None` is one
    /// that is not known. An error: containerd would not have unpacked it.
    pub fn apply(&mut self, entry: &mut Entry<'_>, told: &Told, below: &[Option<Model>]) -> io::Result<()> {
        if entry.name.len() > MAX_PATH || told.link.len() > MAX_PATH {
            return Err(refused("a path of it is longer than 4096 bytes"));
        }
        if entry.kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = told.sparse_name.clone().unwrap_or_else(|| std::mem::take(&mut entry.name));
        let clean = clean(&path);
        let Some((name, dir)) = clean.split_last().filter(|(name, _)| **name != b"..") else { return Ok(()) };
        let dir = self.resolve(dir)?;
        let dir = self.make_parents(&dir, below)?;
        if let Some(deleted) = name.strip_prefix(MARK) {
            return self.mark(dir, name, deleted, told);
        }
        let kind = if told.is_old_directory { EntryType::Directory } else { entry.kind };
        self.make(dir, name, kind, entry, told)?;
        if self.held > MAX_HELD {
            return Err(refused("its names and attributes take more than 1 GiB of memory"));
        }
        Ok(())
    }

    /// The names that lead to `path` from the root when links are followed, as far as there is something.
    fn resolve(&self, path: &[&[u8]]) -> io::Result<Vec<Vec<u8>>> {
        let mut todo: VecDeque<Vec<u8>> = path.iter().map(|part| part.to_vec()).collect();
        let mut way: Vec<(Vec<u8>, Option<u32>)> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    way.pop();
                    continue;
                }
                _ => {}
            }
            let dir = way.last().map_or(Some(ROOT), |(_, inode)| *inode);
            let found = dir.and_then(|dir| self.child(dir, &part));
            let Some(Body::Target(target)) = found.and_then(|found| self.inode(found)).map(|inode| &inode.body) else {
                way.push((part, found));
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(refused("a path of it leads through more than 255 links"));
            }
            if target.starts_with(b"/") {
                way.clear();
            }
            for part in target.split(|&b| b == b'/').rev() {
                todo.push_front(part.to_vec());
            }
        }
        Ok(way.into_iter().map(|(name, _)| name).collect())
    }

    /// The directory at the end of `path`, which is made as far as it is not there.
    fn make_parents(&mut self, path: &[Vec<u8>], below: &[Option<Model>]) -> io::Result<u32> {
        let mut dir = ROOT;
        for (depth, name) in path.iter().enumerate() {
            dir = match self.child(dir, name) {
                Some(found) if self.inode(found).is_some_and(|inode| inode.kind == Kind::Directory) => found,
                Some(_) => return Err(refused("something of it lies below what is no directory")),
                None => {
                    let made = inherited(path.get(..=depth).unwrap_or_default(), below);
                    self.put(dir, name, made, 0)?
                }
            };
        }
        Ok(dir)
    }

    /// A whiteout, or the mark of a directory that hides what is below it.
    fn mark(&mut self, dir: u32, name: &[u8], deleted: &[u8], told: &Told) -> io::Result<()> {
        let is_overlay = self.form == Form::Overlay { is_lowest: false };
        if name == OPAQUE_MARK {
            match self.inodes.get_mut(dir as usize) {
                Some(inode) if is_overlay => set(&mut inode.xattrs, OPAQUE, b"y"),
                _ => self.clear(dir),
            }
            return Ok(());
        }
        if matches!(deleted, b"" | b"." | b"..") {
            return Err(refused("it has a whiteout of nothing"));
        }
        if !is_overlay {
            self.remove(dir, deleted);
            return Ok(());
        }
        if self.child(dir, deleted).is_some() {
            return Err(refused("it has a whiteout of what it has itself"));
        }
        let owned = Some((0, told.uid, told.gid));
        let device =
            Inode { kind: Kind::Char, body: Body::Device(0, 0), owned, mtime: None, xattrs: Vec::new(), names: 0 };
        self.put(dir, deleted, device, 0).map(drop)
    }

    fn make(&mut self, dir: u32, name: &[u8], kind: EntryType, entry: &mut Entry<'_>, told: &Told) -> io::Result<()> {
        let there = self.child(dir, name);
        let is_dir = |number| self.inode(number).is_some_and(|inode| inode.kind == Kind::Directory);
        let (kind, body) = match kind {
            EntryType::Directory => (Kind::Directory, Body::None),
            EntryType::Link => return self.link(dir, name, told),
            EntryType::Symlink => (Kind::Symlink, Body::Target(told.link.clone().into())),
            EntryType::Char => (Kind::Char, Body::Device(told.device.0, told.device.1)),
            EntryType::Block => (Kind::Block, Body::Device(told.device.0, told.device.1)),
            EntryType::Fifo => (Kind::Fifo, Body::None),
            EntryType::Regular if told.is_sparse => (Kind::File, Body::File(told.sparse_size, None)),
            EntryType::Regular => (Kind::File, Body::File(Some(entry.size), Some(digest(entry.content)?))),
            _ => return Err(refused("it has an entry of a type that is not unpacked")),
        };
        let number = match there.filter(|there| kind == Kind::Directory && is_dir(*there)) {
            Some(there) => {
                self.names.entry((dir, name.into())).and_modify(|known| known.layer = self.layer);
                there
            }
            None => {
                self.remove(dir, name);
                let new = Inode { kind, body, owned: None, mtime: None, xattrs: Vec::new(), names: 0 };
                self.put(dir, name, new, self.layer)?
            }
        };
        self.describe(number, told);
        Ok(())
    }

    fn link(&mut self, dir: u32, name: &[u8], told: &Told) -> io::Result<()> {
        let clean = clean(&told.link);
        let gone = || refused("it has a link to what is not there");
        let (last, parents) = clean.split_last().ok_or_else(gone)?;
        let found = self.resolve(parents)?.iter().try_fold(ROOT, |dir, name| self.child(dir, name));
        let target = found.and_then(|dir| self.child(dir, last)).ok_or_else(gone)?;
        if self.inode(target).is_none_or(|inode| inode.kind == Kind::Directory) || self.child(dir, name) == Some(target)
        {
            return Err(gone());
        }
        self.remove(dir, name);
        self.name(dir, name, target, self.layer);
        // A new owner takes a file's capabilities away (chown(2)).
        if let Some(inode) = self.inodes.get_mut(target as usize) {
            inode.xattrs.retain(|(name, _)| name != CAPABILITY);
        }
        self.describe(target, told);
        Ok(())
    }

    /// Sets what an entry says of an inode.
    fn describe(&mut self, number: u32, told: &Told) {
        let Some(inode) = self.inodes.get_mut(number as usize) else { return };
        inode.owned = Some((told.mode, told.uid, told.gid));
        let time = bound(told.mtime);
        inode.mtime = Some(time);
        for (name, value) in told.xattrs.iter().filter(|(name, _)| is_set(inode.kind, name)) {
            self.held += name.len() + value.len() + 64;
            set(&mut inode.xattrs, name, value);
        }
        if inode.kind == Kind::Directory {
            self.timed.push((number, time));
        }
    }

    fn put(&mut self, dir: u32, name: &[u8], inode: Inode, layer: u32) -> io::Result<u32> {
        let number = u32::try_from(self.inodes.len()).map_err(io::Error::other)?;
        self.held += size_of::<Inode>() + inode.xattrs.len() * 64;
        if let Body::Target(target) = &inode.body {
            self.held += target.len();
        }
        self.inodes.push(inode);
        self.name(dir, name, number, layer);
        Ok(number)
    }

    fn name(&mut self, dir: u32, name: &[u8], inode: u32, layer: u32) {
        // A key, its allocation, and its part of a node of the tree.
        self.held += name.len() + 80;
        self.names.insert((dir, name.into()), Name { inode, layer });
        if let Some(inode) = self.inodes.get_mut(inode as usize) {
            inode.names += 1;
        }
        self.touch(dir);
    }

    /// Something was made or removed in a directory.
    fn touch(&mut self, dir: u32) {
        if let Some(dir) = self.inodes.get_mut(dir as usize) {
            dir.mtime = None;
        }
    }

    /// Removes a name and all below it, if it is there.
    fn remove(&mut self, dir: u32, name: &[u8]) {
        let Some(gone) = self.names.remove(&(dir, name.into())) else { return };
        self.touch(dir);
        let mut todo = vec![gone.inode];
        while let Some(number) = todo.pop() {
            if let Some(inode) = self.inodes.get_mut(number as usize) {
                inode.names = inode.names.saturating_sub(1);
            }
            let below: Vec<Box<[u8]>> = self.children(number).map(|(name, _)| name.into()).collect();
            for name in below {
                todo.extend(self.names.remove(&(number, name)).map(|name| name.inode));
            }
        }
    }

    /// Removes all in a directory that this layer has no entry for.
    fn clear(&mut self, dir: u32) {
        let mut todo = vec![dir];
        while let Some(dir) = todo.pop() {
            let of_layer = |name: &[u8]| self.names.get(&(dir, name.into())).is_some_and(|n| n.layer == self.layer);
            let all: Vec<(Box<[u8]>, u32)> = self.children(dir).map(|(name, inode)| (name.into(), inode)).collect();
            let (kept, gone): (Vec<_>, Vec<_>) = all.into_iter().partition(|(name, _)| of_layer(name));
            gone.iter().for_each(|(name, _)| self.remove(dir, name));
            todo.extend(kept.into_iter().map(|(_, inode)| inode));
        }
    }
}

/// A directory that no entry tells of, as the layers below have it.
fn inherited(path: &[Vec<u8>], below: &[Option<Model>]) -> Inode {
    let path: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
    for model in below {
        let Some(model) = model else { return directory(None) };
        let way = model.resolve(&path).unwrap_or_default();
        let found = way.iter().try_fold(ROOT, |dir, name| model.child(dir, name));
        let Some(found) = found.and_then(|found| model.inode(found)) else { continue };
        if found.kind != Kind::Directory {
            break;
        }
        let xattrs = found.xattrs.iter().filter(|(name, _)| !name.starts_with(b"trusted.")).cloned().collect();
        return Inode { xattrs, ..directory(found.owned) };
    }
    directory(Some((0o755, 0, 0)))
}

fn directory(owned: Option<(u32, u32, u32)>) -> Inode {
    Inode { kind: Kind::Directory, body: Body::None, owned, mtime: None, xattrs: Vec::new(), names: 1 }
}

/// Attributes that unpacking sets: no others' are taken from layers, and only files and directories have those of users.
fn is_set(kind: Kind, name: &[u8]) -> bool {
    let takes_users = matches!(kind, Kind::File | Kind::Directory);
    !name.starts_with(b"trusted.") && (takes_users || !name.starts_with(b"user."))
}

fn set(xattrs: &mut Vec<Xattr>, name: &[u8], value: &[u8]) {
    match xattrs.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => *known = value.to_vec(),
        None => xattrs.push((name.to_vec(), value.to_vec())),
    }
}

/// containerd's `boundTime`: from 1970 to the last time that 63 bits of nanoseconds can say.
fn bound(time: Time) -> Time {
    let last = Time { secs: i64::MAX / 1_000_000_000, nanos: 854_775_807 };
    if (Time::default()..=last).contains(&time) { time } else { Time::default() }
}

/// The parts of a path as Go's `filepath.Clean` leaves them; a `..` at the front of a relative one stays.
fn clean(path: &[u8]) -> Vec<&[u8]> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|last| *last != b"..") => drop(parts.pop()),
            b".." if path.starts_with(b"/") => {}
            part => parts.push(part),
        }
    }
    parts
}

fn digest(content: &mut dyn Read) -> io::Result<Digest> {
    let (mut hasher, mut piece) = (Hasher::default(), vec![0; 64 << 10]);
    loop {
        interrupt::check().map_err(io::Error::other)?;
        match content.read(&mut piece)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(piece.get(..n).unwrap_or_default()),
        }
    }
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::layout::untar;

    /// A name, its type, and its content or where it points.
    type Line<'a> = (&'a str, EntryType, &'a str);

    fn tar(lines: &[Line<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, kind, text) in lines {
            let is_link = matches!(kind, EntryType::Link | EntryType::Symlink);
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o640);
            header.set_mtime(7);
            header.set_size(if is_link { 0 } else { text.len() as u64 });
            if is_link {
                header.as_mut_bytes()[157..157 + text.len()].copy_from_slice(text.as_bytes());
            }
            header.set_cksum();
            out.extend(header.as_bytes());
            if !is_link {
                out.extend(text.as_bytes());
                out.resize(out.len().next_multiple_of(512), 0);
            }
        }
        out.extend([0; 1024]);
        out
    }

    fn apply(model: &mut Model, bytes: &[u8], below: &[Option<Model>]) -> crate::error::Result<()> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        model.begin();
        let read = untar::inodes(file.path(), |mut entry, told| model.apply(&mut entry, &told, below));
        model.end();
        read.map(drop)
    }

    fn paths(model: &Model) -> Vec<String> {
        let (mut todo, mut found) = (vec![(String::new(), ROOT)], Vec::new());
        while let Some((path, dir)) = todo.pop() {
            for (name, inode) in model.children(dir) {
                let path = format!("{path}/{}", String::from_utf8_lossy(name));
                found.push(path.clone());
                todo.push((path, inode));
            }
        }
        found.sort();
        found
    }

    const DIR: EntryType = EntryType::Directory;
    const FILE: EntryType = EntryType::Regular;
    const LINK: EntryType = EntryType::Link;
    const SYMLINK: EntryType = EntryType::Symlink;

    #[test]
    fn no_name_leads_out_of_the_root() {
        let lines = [
            ("../../a", FILE, ""),
            ("/b", FILE, ""),
            ("up", SYMLINK, "../../.."),
            ("up/c", FILE, ""),
            ("root", SYMLINK, "/"),
            ("root/root/d", FILE, ""),
            ("x/../../e", FILE, ""),
            ("..", DIR, ""),
            ("/", DIR, ""),
            ("f", LINK, "../../../a"),
        ];
        let mut model = Model::new(Form::Cloned);
        apply(&mut model, &tar(&lines), &[]).unwrap();
        assert_eq!(paths(&model), ["/a", "/b", "/c", "/d", "/e", "/f", "/root", "/up"]);
    }

    #[test]
    fn what_containerd_would_not_unpack_is_refused() {
        let long = "d/".repeat(49) + "x";
        for lines in [
            &[("f", FILE, ""), ("f/below", FILE, "")][..],
            &[("l", LINK, "gone")],
            &[("d", DIR, ""), ("l", LINK, "d")],
            &[("l", SYMLINK, "l"), ("l/x", FILE, "")],
            &[("f", FILE, ""), (".wh.f", FILE, "")],
            &[(".wh...", FILE, "")],
            &[("odd", EntryType::Continuous, "")],
        ] {
            let mut model = Model::new(Form::Overlay { is_lowest: false });
            assert!(apply(&mut model, &tar(lines), &[]).is_err(), "{lines:?}");
        }
        let mut model = Model::new(Form::Cloned);
        apply(&mut model, &tar(&[(&long, FILE, "")]), &[]).unwrap();
        assert_eq!(paths(&model).len(), 50);
    }

    #[test]
    fn marks_delete_in_a_tree_and_are_kept_on_overlay() {
        let base = tar(&[("d", DIR, ""), ("d/old", FILE, ""), ("e", DIR, ""), ("e/f", FILE, ""), ("g", FILE, "")]);
        let next =
            tar(&[("d/new", FILE, ""), ("d/.wh..wh..opq", FILE, ""), ("d/later", FILE, ""), (".wh.e", FILE, "")]);
        let mut tree = Model::new(Form::Copied);
        apply(&mut tree, &base, &[]).unwrap();
        apply(&mut tree, &next, &[]).unwrap();
        assert_eq!(paths(&tree), ["/d", "/d/later", "/d/new", "/g"]);

        let mut lowest = Model::new(Form::Overlay { is_lowest: true });
        apply(&mut lowest, &base, &[]).unwrap();
        let below = [Some(lowest)];
        let mut upper = Model::new(Form::Overlay { is_lowest: false });
        apply(&mut upper, &next, &below).unwrap();
        assert_eq!(paths(&upper), ["/d", "/d/later", "/d/new", "/e"]);
        let of = |name: &[u8]| upper.inode(upper.child(ROOT, name).unwrap()).unwrap();
        assert_eq!((of(b"e").kind, &of(b"e").body), (Kind::Char, &Body::Device(0, 0)));
        // As the layer below has it, and no entry says when.
        assert_eq!((of(b"d").owned, of(b"d").mtime), (Some((0o640, 0, 0)), None));
        assert_eq!(of(b"d").xattrs, [(OPAQUE.to_vec(), b"y".to_vec())]);
        let mut unknown = Model::new(Form::Overlay { is_lowest: false });
        apply(&mut unknown, &next, &[None]).unwrap();
        assert_eq!(unknown.inode(unknown.child(ROOT, b"d").unwrap()).unwrap().owned, None);
    }

    #[test]
    fn times_are_those_that_63_bits_of_nanoseconds_say() {
        let time = |secs, nanos| Time { secs, nanos };
        assert_eq!(bound(time(-1, 999_999_999)), Time::default());
        assert_eq!(bound(time(9_223_372_036, 854_775_807)), time(9_223_372_036, 854_775_807));
        assert_eq!(bound(time(9_223_372_036, 854_775_808)), Time::default());
        assert_eq!(bound(time(5, 6)), time(5, 6));
    }

    /// Whatever byte is another: an answer or an error.
    #[test]
    fn a_damaged_layer_is_no_harm() {
        let whole = tar(&[
            ("d", DIR, ""),
            ("d/f", FILE, "content"),
            ("l", LINK, "d/f"),
            ("s", SYMLINK, "d"),
            ("s/g", FILE, "x"),
            (".wh.s", FILE, ""),
        ]);
        for at in 0..whole.len() - 1024 {
            for bit in [0x01, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= bit;
                // The checksum is as the damage wants it, else nothing would be read.
                for header in bytes.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
                    header[148..156].fill(b' ');
                    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
                    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
                let mut model = Model::new(Form::Cloned);
                let _ = apply(&mut model, &bytes, &[]);
            }
        }
    }
}
