//! A committed layer as a list of entries: what its tar held, as far as the unpacked files tell.
//!
//! What unpacking loses: names of owners, the entry of the root, times of whiteouts, order, and which directories were only
//! made because something lay below them. The last shows: an unpacker sets a directory's time when the tar has an entry for
//! it; one that it made by itself has the time of its last new file, so its mtime and its ctime are of one moment.

use std::path::Path;

use super::style::Order;
use crate::{
    error::{At, Error, Result},
    interrupt,
    pax::{Time, Xattr},
    snapshotter::{Driver, RwLayer},
    tree::{Dir, FileId, Kind, Meta, Node, Steps},
};

/// What one entry is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A file, directory, link, device or pipe.
    Inode(Kind),
    /// A deletion.
    Whiteout,
    /// A directory that hides all below it; its path is the directory's.
    Opaque,
}

/// One entry. Paths are without prefix, and without `/` at either end.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Of what.
    pub what: What,
    /// Where; of a whiteout, what it deletes.
    pub path: Vec<u8>,
    /// Where a symbolic link points.
    pub target: Vec<u8>,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of the content.
    pub size: u64,
    /// Last modification; of marks, when the unpacker made them.
    pub mtime: Time,
    /// A device's numbers.
    pub device: (u32, u32),
    /// Extended attributes but overlay's.
    pub xattrs: Vec<Xattr>,
    /// Which inode, if it has several names.
    pub shared: Option<FileId>,
}

/// A layer's entries, or none if they are too many to hold.
pub struct Entries {
    /// The tree.
    pub root: Node,
    /// In order of [`Order::Walk`].
    pub all: Vec<Entry>,
}

/// Names, attributes and the records themselves may take so much memory; a layer of half a million files needs about half.
const MAX_HELD: usize = 256 << 20;

/// A directory that was touched within this time of its last change got its time from the file system.
const INSTANT: f64 = 2.0;

/// Reads a layer; `None` when it is too large to be held, holds something no tar does, or lies in one tree with the layers
/// below: what the tar repeated of those cannot be told.
pub fn read(tree: &RwLayer) -> Result<Option<Entries>> {
    let (dir, is_overlay) = match tree {
        RwLayer::Overlay { upper, ids: None, driver: Driver::Kernel, .. } => (upper, true),
        RwLayer::Tree { dir } => (dir, false),
        RwLayer::Overlay { .. } | RwLayer::Stacked { .. } | RwLayer::Trees { .. } => return Ok(None),
    };
    let root = Node::open(dir).at("open", dir.name())?;
    let mut reader = Reader { top: root.meta.clone(), is_overlay, held: 0, all: Vec::new() };
    let is_whole = reader.walk(&root).at("read", dir.name())?;
    interrupt::check()?;
    Ok(is_whole.then_some(Entries { root, all: reader.all }))
}

/// The directory of a layer's own files.
pub fn place(tree: &RwLayer) -> &Path {
    tree.root()
}

/// What mkfs makes in the root of an ext4 for fsck to put finds in: the lowest layer of a snapshotter that keeps whole file
/// systems has it, and no image.
pub(super) const LOST_AND_FOUND: &[u8] = b"lost+found";

/// True if `root` is that of a whole ext4 (magic number and inode as in fs/ext4/ext4.h) with nothing found.
pub(super) fn is_made_by_mkfs(root: &Node) -> std::io::Result<bool> {
    if root.meta.id.ino != 2 || root.file_system()? != 0xef53 {
        return Ok(false);
    }
    match root.child(LOST_AND_FOUND) {
        Ok(node) if node.meta.kind == Kind::Directory => Ok(node.dir()?.names()?.is_empty()),
        Ok(_) => Ok(false),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

struct Reader {
    top: Meta,
    is_overlay: bool,
    held: usize,
    all: Vec<Entry>,
}

impl Reader {
    /// False when it had to give up.
    fn walk(&mut self, root: &Node) -> std::io::Result<bool> {
        let dir = root.dir()?;
        let mut names = dir.names()?;
        if is_made_by_mkfs(root)? {
            names.retain(|name| name != LOST_AND_FOUND);
        }
        let mut steps = Steps::begin(dir, names, ());
        loop {
            interrupt::check().map_err(std::io::Error::other)?;
            let Some(name) = steps.next_name() else {
                match steps.leave() {
                    Ok(true) => continue,
                    Ok(false) => return Ok(true),
                    Err(lost) => return Err(lost.source),
                }
            };
            let path = steps.path_to(&name);
            let Some(node) = steps.dir().map(|dir| dir.child(&name)).transpose()? else { return Ok(false) };
            let Some(below) = self.visit(path, &node)? else { return Ok(false) };
            if let Some((dir, names)) = below {
                steps.enter(&name, Some(dir), names, ());
            }
        }
    }

    /// Takes in one inode; `None` when it must give up, otherwise the directory to go down into.
    #[allow(clippy::type_complexity, reason = "a step of one walk")]
    fn visit(&mut self, path: Vec<u8>, node: &Node) -> std::io::Result<Option<Option<(Dir, Vec<Vec<u8>>)>>> {
        let meta = &node.meta;
        let is_whiteout = self.is_overlay && meta.kind == Kind::Char && meta.device == (0, 0);
        let mut entry = Entry {
            what: if is_whiteout { What::Whiteout } else { What::Inode(meta.kind) },
            target: if meta.kind == Kind::Symlink { node.target()? } else { Vec::new() },
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            size: if meta.kind == Kind::File { meta.size } else { 0 },
            mtime: meta.mtime,
            device: meta.device,
            xattrs: node.xattrs()?,
            shared: (meta.links > 1 && meta.kind != Kind::Directory && !is_whiteout).then_some(meta.id),
            path,
        };
        let is_opaque = self.is_overlay && entry.xattrs.iter().any(|(name, value)| name == OPAQUE && value == b"y");
        // These make a file of a layer something else; no unpacker leaves them. Nor does one mount anything.
        let is_strange = entry.xattrs.iter().any(|(name, _)| STRANGE.contains(&&name[..]));
        let is_odd = is_strange || meta.kind == Kind::Socket || !meta.is_on_mount_of(&self.top);
        entry.xattrs.retain(|(name, _)| !is_foreign(name));
        self.held += size_of::<Entry>() + entry.path.len() + entry.target.len();
        self.held += entry.xattrs.iter().map(|(name, value)| name.len() + value.len() + 64).sum::<usize>();
        if is_odd || self.held > MAX_HELD {
            return Ok(None);
        }
        let opaque = is_opaque.then(|| Entry { what: What::Opaque, xattrs: Vec::new(), ..entry.clone() });
        if meta.kind != Kind::Directory {
            self.all.push(entry);
            return Ok(Some(None));
        }
        if !is_implied(meta.mtime, meta.ctime) {
            self.all.push(entry);
        }
        self.all.extend(opaque);
        let dir = node.dir()?;
        let names = dir.names()?;
        Ok(Some(Some((dir, names))))
    }
}

const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const STRANGE: [&[u8]; 2] = [b"trusted.overlay.redirect", b"trusted.overlay.metacopy"];

/// Attributes that the machine gave, not the image.
fn is_foreign(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") || name == b"security.selinux"
}

fn is_implied(mtime: Time, ctime: Time) -> bool {
    let seconds = |time: Time| time.secs as f64 + f64::from(time.nanos) / 1e9;
    mtime.nanos != 0 && (0.0..INSTANT).contains(&(seconds(ctime) - seconds(mtime)))
}

impl Entries {
    /// The entries in another order, as indexes.
    pub fn in_order(&self, order: Order) -> Vec<usize> {
        let mut indexes: Vec<usize> = (0..self.all.len()).collect();
        match order {
            Order::Walk => {}
            Order::Bytes => indexes.sort_by(|&a, &b| self.all[a].path.cmp(&self.all[b].path)),
        }
        indexes
    }

    /// Opens a file of the layer. `last` is the directory of the file before: most files lie beside another.
    pub fn open(&self, path: &[u8], last: &mut Option<(Vec<u8>, Node)>) -> Result<std::fs::File> {
        let (dir, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&path[..0], path),
        };
        let opened = || {
            if dir.is_empty() {
                return self.root.child(name)?.data();
            }
            if !matches!(last, Some((known, _)) if known == dir) {
                let mut parts = dir.split(|&b| b == b'/');
                let first = self.root.child(parts.next().unwrap_or_default())?;
                *last = Some((dir.to_vec(), parts.try_fold(first, |at, part| at.child(part))?));
            }
            let (_, node) = last.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
            let file = node.child(name)?;
            if file.meta.kind == Kind::File { file.data() } else { Err(std::io::ErrorKind::InvalidInput.into()) }
        };
        let mut opened = opened;
        opened().map_err(|source| Error::Io {
            verb: "read",
            path: String::from_utf8_lossy(path).into_owned().into(),
            source,
        })
    }
}
