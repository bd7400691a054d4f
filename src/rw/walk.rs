//! Two whole trees, the image's and the container's, entry by entry, as a layer.
//!
//! Whatever the upperdir way would see is a change here: any difference of kind, owner, mode, time to the nanosecond,
//! attribute, device, target or content. Where metadata is equal to the last bit the content is compared, since times can
//! be set by anybody; but not in a clone, where an inode has kept the time of its last change, which nobody can set. Directories above a change come along, as overlay copies them up.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::unix::fs::FileExt,
};

use super::{MARK, judge, kept_xattrs, refuse, root_entry};
use crate::{
    error::Result,
    interrupt,
    pax::Time,
    snapshotter::Origin,
    tree::{Dir, FileId, Kind, Listed, Meta, Node, Packer, Steps, Why, plain},
};

/// Files are compared in pieces of this size.
const PIECE: usize = 256 << 10;

/// So many directories that may yet be written stay open; others are looked up again.
const MAX_HELD: usize = 32;

/// Writes what `active` changes in `base`. In a copy the time of a directory alone is no change.
pub fn pack(base: &Node, active: &Node, origin: Origin, packer: &mut Packer) -> Result<()> {
    root_entry(active, base, packer)?;
    let mut survey = Survey { root: &active.meta, origin, files: HashMap::new(), order: Vec::new() };
    // What is wrong with the trees is told by the second walk.
    let mut silent = |_: Listed<'_>| Ok(());
    if let Some(walk) = Walk::begin(base, active, &mut Packer::listing(&mut silent, judge)) {
        walk.run(&mut |path, _| packer.rests_beforehand(path), &mut |pair, _| survey.look(pair))?;
    }
    let mut diff = Diff { root: active, origin, links: survey.judge(), pending: Vec::new(), orphaned: Vec::new() };
    match Walk::begin(base, active, packer) {
        Some(walk) => walk.run(&mut |path, packer| packer.rests(path), &mut |pair, packer| diff.write(pair, packer)),
        None => Ok(()),
    }
}

/// The same place in both trees.
struct Pair<'a> {
    path: &'a [u8],
    name: &'a [u8],
    base: Option<Node>,
    active: Option<Node>,
}

/// A walk through both trees at once. A directory that only the image has is not entered: one mark deletes it.
struct Walk<'p, 'a> {
    active: Steps<()>,
    base: Steps<()>,
    packer: &'p mut Packer<'a>,
}

impl<'p, 'a> Walk<'p, 'a> {
    fn begin(base: &Node, active: &Node, packer: &'p mut Packer<'a>) -> Option<Self> {
        let below = plain::list(packer, b"", base)?;
        let above = plain::list(packer, b"", active)?;
        let names = both(&below.1, &above.1);
        let active = Steps::begin(above.0, names, ());
        Some(Self { active, base: Steps::begin(below.0, Vec::new(), ()), packer })
    }

    /// Calls `each` with every pair but those that are known, with all below them; it says whether to go down.
    fn run(
        mut self,
        is_known: &mut dyn FnMut(&[u8], &mut Packer) -> Result<bool>,
        each: &mut dyn FnMut(&Pair, &mut Packer) -> Result<bool>,
    ) -> Result<()> {
        loop {
            interrupt::check()?;
            let Some(name) = self.active.next_name() else {
                let is_on = plain::leave(&mut self.active, self.packer);
                plain::leave(&mut self.base, self.packer);
                if is_on { continue } else { return Ok(()) }
            };
            let path = self.active.path_to(&name);
            if is_known(&path, self.packer)? {
                continue;
            }
            let (base, active) = (find(&self.base, &name), find(&self.active, &name));
            let unreadable =
                [&base, &active].into_iter().find_map(|found| found.as_ref().err().map(io::Error::to_string));
            if let Some(why) = unreadable {
                self.packer.leave_out(&path, None, Why::Unreadable(why));
                continue;
            }
            if let (Ok(None), Ok(None)) = (&base, &active) {
                let gone = io::Error::from(rustix::io::Errno::NOENT);
                self.packer.leave_out(&path, None, Why::Unreadable(gone.to_string()));
                continue;
            }
            let pair = Pair { path: &path, name: &name, base: base.ok().flatten(), active: active.ok().flatten() };
            if each(&pair, self.packer)? {
                self.enter(&pair);
            }
        }
    }

    /// Goes down into a directory of the container's, and the image's of that name.
    fn enter(&mut self, pair: &Pair) {
        let is_dir = |node: &&Node| node.meta.kind == Kind::Directory;
        let mut list =
            |node: Option<&Node>| node.filter(is_dir).and_then(|node| plain::list(self.packer, pair.path, node));
        let (below, above) = (list(pair.base.as_ref()), list(pair.active.as_ref()));
        // What cannot be listed is noted, and must not pass for deleted.
        let below = below.filter(|_| above.is_some());
        let names = both(below.as_ref().map_or(&[], |b| &b.1), above.as_ref().map_or(&[], |a| &a.1));
        self.active.enter(pair.name, above.map(|(dir, _)| dir), names, ());
        self.base.enter(pair.name, below.map(|(dir, _)| dir), Vec::new(), ());
    }
}

fn both(below: &[Vec<u8>], above: &[Vec<u8>]) -> Vec<Vec<u8>> {
    below.iter().chain(above).cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

fn find(steps: &Steps<()>, name: &[u8]) -> io::Result<Option<Node>> {
    match steps.dir().map(|dir: &Dir| dir.child(name)).transpose() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found,
    }
}

/// Which names of files with several are to be written.
///
/// Names that a layer does not mention stay as the image has them, so names of one file can be passed over only together,
/// and only if in the image, too, they are one file, and no other file's.
struct Survey<'a> {
    root: &'a Meta,
    origin: Origin,
    /// By file of the container's.
    files: HashMap<FileId, Vec<Name>>,
    /// In the order in which they were met.
    order: Vec<FileId>,
}

struct Name {
    path: Vec<u8>,
    /// The file that the image has there, if it is the same in all that a layer could say.
    same: Option<FileId>,
}

impl Survey<'_> {
    /// Takes in a pair; true if it is a directory to be entered.
    fn look(&mut self, pair: &Pair) -> Result<bool> {
        let Some(active) = &pair.active else { return Ok(false) };
        if active.meta.kind == Kind::Directory {
            return Ok(active.meta.is_on_mount_of(self.root));
        }
        let base = pair.base.as_ref();
        if active.meta.links > 1 || base.is_some_and(|base| base.meta.links > 1) {
            let same = base.filter(|base| is_same(base, active, self.origin)).map(|base| base.meta.id);
            let names = self.files.entry(active.meta.id).or_default();
            if names.is_empty() {
                self.order.push(active.meta.id);
            }
            names.push(Name { path: pair.path.to_vec(), same });
        }
        Ok(false)
    }

    /// For every name met: whether it is written.
    fn judge(mut self) -> HashMap<Vec<u8>, bool> {
        let mut kept: BTreeSet<FileId> = BTreeSet::new();
        let mut all = HashMap::new();
        for names in self.order.iter().filter_map(|id| self.files.remove(id)) {
            let first = names.first().and_then(|name| name.same);
            let is_one = names.iter().all(|name| name.same.is_some() && name.same == first);
            // A second file that was one with the first in the image must be told apart from it.
            let is_kept = is_one && first.is_some_and(|file| kept.insert(file));
            all.extend(names.into_iter().map(|name| (name.path, !is_kept)));
        }
        all
    }
}

/// The second time through: what is different is written.
struct Diff<'a> {
    /// Of the container's tree.
    root: &'a Node,
    origin: Origin,
    links: HashMap<Vec<u8>, bool>,
    /// Directories on the way down that are written only if something below them is.
    pending: Vec<(Vec<u8>, Option<Node>)>,
    /// Directories that were to be written, and could not be found again.
    orphaned: Vec<Vec<u8>>,
}

impl Diff<'_> {
    /// Writes a pair, if it differs; true if it is a directory to be entered.
    fn write(&mut self, pair: &Pair, packer: &mut Packer) -> Result<bool> {
        self.pending.retain(|(dir, _)| is_below(pair.path, dir));
        let Some(active) = &pair.active else { return self.delete(pair, packer).map(|()| false) };
        let Some(base) = &pair.base else { return self.put(pair, active, packer) };
        if base.meta.kind != Kind::Directory && (base.meta.links > 1 || self.links.contains_key(pair.path)) {
            // Whether it is written depends, or did a moment ago, on what there is under other names.
            packer.odd(pair.path);
        }
        if active.meta.kind == Kind::Directory && base.meta.kind == Kind::Directory {
            if !active.meta.is_on_mount_of(&self.root.meta) {
                return self.put(pair, active, packer).map(|_| false);
            }
            if self.is_same_directory(base, active, packer) && refuse(pair.path).is_none() {
                let held = if self.pending.len() < MAX_HELD { active.again().ok() } else { None };
                self.pending.push((pair.path.to_vec(), held));
                return packer.pass(pair.path, active).map(|()| true);
            }
            return self.put(pair, active, packer);
        }
        packer.about_to_read();
        let is_written = self.links.get(pair.path).copied().unwrap_or_else(|| !is_same(base, active, self.origin));
        if is_written { self.put(pair, active, packer) } else { packer.pass(pair.path, active).map(|()| false) }
    }

    fn is_same_directory(&self, base: &Node, active: &Node, packer: &Packer) -> bool {
        let told = |meta: &Meta| {
            (meta.mode, meta.uid, meta.gid, if self.origin == Origin::Copied { Time::default() } else { meta.mtime })
        };
        told(&base.meta) == told(&packer.as_listed(&active.meta)) && has_same_xattrs(base, active)
    }

    fn put(&mut self, pair: &Pair, active: &Node, packer: &mut Packer) -> Result<bool> {
        let existed = pair.base.is_some();
        if let Some(why) = refuse(pair.path) {
            packer.keep_beside(pair.path, active, active, why)?;
            return Ok(false);
        }
        if packer.admits(pair.path, &active.meta, &self.root.meta) {
            // What is recorded of it is to be what it is now.
            let afresh = if self.parents(pair.path, packer)? { active.afresh().ok() } else { None };
            let active = afresh.as_ref().unwrap_or(active);
            if packer.entry_over(pair.path, active, active, || existed)? {
                return Ok(active.meta.kind == Kind::Directory && active.meta.is_on_mount_of(&self.root.meta));
            }
        }
        // What was left out must not come back as what the image has there.
        if existed {
            self.delete(pair, packer)?;
        }
        Ok(false)
    }

    fn delete(&mut self, pair: &Pair, packer: &mut Packer) -> Result<()> {
        if let Some(why) = refuse(pair.path) {
            packer.leave_out(pair.path, pair.base.as_ref().map(|base| &base.meta), why);
            return Ok(());
        }
        self.parents(pair.path, packer)?;
        let dir = &pair.path[..pair.path.len() - pair.name.len()];
        packer.delete(pair.path, &[dir, MARK, pair.name].concat(), None)
    }

    /// Writes the directories above `below` that were not; true if there was one.
    fn parents(&mut self, below: &[u8], packer: &mut Packer) -> Result<bool> {
        let pending = std::mem::take(&mut self.pending);
        let has_any = !pending.is_empty();
        for (path, held) in pending {
            match held.map_or_else(|| self.look_up(&path), Ok) {
                Ok(dir) => {
                    // It was passed, and is written after all: both, as long as there is something in it to be written.
                    packer.odd(&path);
                    packer.entry_over(&path, &dir, &dir, || true).map(drop)?;
                }
                Err(e) => {
                    packer.leave_out(&path, None, Why::Unreadable(e.to_string()));
                    self.orphaned.push(path);
                }
            }
        }
        // Its directory may be written the next time, and must come before it.
        if self.orphaned.iter().any(|dir| is_below(below, dir)) {
            packer.odd(below);
        }
        Ok(has_any)
    }

    fn look_up(&self, path: &[u8]) -> io::Result<Node> {
        path.split(|&b| b == b'/').try_fold(self.root.again()?, |dir, name| dir.child(name))
    }
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn has_same_xattrs(base: &Node, active: &Node) -> bool {
    let both = || Ok::<_, io::Error>(kept_xattrs(base)? == kept_xattrs(active)?);
    both().unwrap_or(false)
}

/// True if a layer could not tell the two apart, which are no directories. What cannot be read is different: then its own entry says so.
fn is_same(base: &Node, active: &Node, origin: Origin) -> bool {
    let told = |meta: &Meta| (meta.kind, meta.mode, meta.uid, meta.gid, meta.size, meta.mtime, meta.device);
    if base.meta.id == active.meta.id {
        return true;
    }
    told(&base.meta) == told(&active.meta)
        && (is_untouched(base, active, origin)
            || has_same_xattrs(base, active) && is_same_content(base, active).unwrap_or(false))
}

/// True of an inode of a clone that nothing has happened to: whatever is done to one moves the time of its last change,
/// which no call sets.
fn is_untouched(base: &Node, active: &Node, origin: Origin) -> bool {
    let told = |meta: &Meta| (meta.id.ino, meta.ctime);
    origin == Origin::Cloned && told(&base.meta) == told(&active.meta)
}

fn is_same_content(base: &Node, active: &Node) -> io::Result<bool> {
    match active.meta.kind {
        Kind::Symlink => Ok(base.target()? == active.target()?),
        Kind::File if active.meta.size > 0 => {
            let (base, active) = (base.data()?, active.data()?);
            let (mut ours, mut theirs, mut at) = (vec![0; PIECE], vec![0; PIECE], 0);
            loop {
                interrupt::check().map_err(io::Error::other)?;
                let len = base.read_at(&mut ours, at)?;
                if len == 0 {
                    return Ok(true);
                }
                let (ours, theirs) = (&ours[..len], &mut theirs[..len]);
                active.read_exact_at(theirs, at)?;
                if *ours != *theirs {
                    return Ok(false);
                }
                at += len as u64;
            }
        }
        _ => Ok(true),
    }
}
