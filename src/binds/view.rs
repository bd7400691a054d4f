//! What a container has mounted, and which of it is the mount that its spec asked for.
//!
//! A path leads to the topmost mount at its place. That need not be the spec's: the container may have mounted something
//! over it since, or over a directory above it, or have unmounted it; the host may have done so too, where mounts
//! propagate. `mountinfo` lists all mounts, those that no path leads to as well. What is covered is read through a mount
//! of the host's that has the same directory of the same file system.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
};

use nix::sched::{self, CloneFlags};
use rustix::fs::{Mode, OFlags};

use super::path::{self, Place};
use crate::{
    error::{At, Result},
    host::{
        Host,
        mounts::{self, Mount},
    },
    oci::runtime::{self, Spec},
    runtime::Task,
    shares,
    tree::{Kind, Node},
};

/// A container's file system as it sees it: the root of its mount namespace, and all that is mounted there.
pub struct View {
    root: Node,
    mounts: Vec<Mount>,
    /// Where each mount of the spec lies.
    places: Vec<OsString>,
    host: HostView,
}

/// The file system of the host, or of the one it was told to read.
pub struct HostView {
    root: Node,
    mounts: Vec<Mount>,
}

/// A mount that was found.
pub struct Found {
    /// What is mounted.
    pub node: Node,
    /// Why it is not read where the spec says, if so.
    pub caveat: Option<String>,
}

impl View {
    /// The view of a task that is held still.
    pub fn of(host: &Host, task: &Task, spec: &Spec) -> Result<Self> {
        let (root, mounts) = match namespace(host, task.init.pid) {
            Ok(seen) => seen,
            // Its first process sees the same unless it has changed its root directory.
            Err(_) => {
                let root = host.proc_of(task.init.pid, "root");
                let mounts = mounts::read(&host.proc_of(task.init.pid, "mountinfo"))?;
                (Node::open(&root.join(".")).at("open", root)?, mounts)
            }
        };
        let place = |m: &runtime::Mount| {
            let found = path::walk(&root, m.destination.as_bytes());
            found.map_or_else(|_| path::clean(&m.destination), |place| place.path)
        };
        let places = spec.mounts.iter().map(place).collect();
        Ok(Self { root, mounts, places, host: HostView::of(host)? })
    }

    /// Where each mount of the spec lies.
    pub fn places(&self) -> &[OsString] {
        &self.places
    }

    /// The type of the file system that is mounted at `place`.
    pub fn fs_at(&self, place: &OsStr) -> Option<&OsStr> {
        self.mounts.iter().rev().find(|m| m.at == place).map(|m| m.fs.as_os_str())
    }

    /// What the spec's mount `i` is, wherever it can still be had; else why not.
    pub fn find(&self, spec: &Spec, i: usize) -> Result<Found, String> {
        let (mount, place) = (&spec.mounts[i], &self.places[i]);
        let Some(chosen) = self.choose(spec, i)? else { return self.unmounted(mount) };
        match self.seen(place) {
            Some(node) if self.is(&node, chosen) => Ok(Found { node, caveat: None }),
            _ => {
                let over = self.over(chosen, place);
                let node = self.host.reach(chosen).ok_or_else(|| {
                    format!("{over} lies over it in the container, and no path of the host leads below")
                })?;
                Ok(Found {
                    node,
                    caveat: Some(format!("{over} lies over it in the container; stored is what is below")),
                })
            }
        }
    }

    /// The mount that is the spec's mount `i`, covered or not; `None` if there is none any more.
    fn choose(&self, spec: &Spec, i: usize) -> Result<Option<&Mount>, String> {
        let (mount, place) = (&spec.mounts[i], &self.places[i]);
        let stack: Vec<&Mount> = self.mounts.iter().filter(|m| m.at == *place).collect();
        let Some(top) = stack.last() else { return Ok(None) };
        // The spec's own come first, in its order, and this is the last of them (`capture` takes no other).
        let ours = self.places.iter().filter(|other| *other == place).count();
        let is_ours =
            |m: &&&Mount| if mount.is_bind() { self.host.is_source(&mount.source, m) } else { m.fs == "tmpfs" };
        let chosen: &Mount = if stack.len() == ours || stack.len() > ours && stack.iter().all(|m| is_same(m, top)) {
            top
        } else if let Some(known) = stack.iter().find(is_ours) {
            known
        } else if stack.len() < ours || self.may_be_brought(spec, i) {
            let how = if mount.is_bind() { "; copy its source by hand" } else { "" };
            return Err(format!("several mounts lie there, and none is known to be the one of the spec{how}"));
        } else {
            stack[ours - 1]
        };
        Ok(Some(chosen).filter(|m| mount.is_bind() || m.fs == "tmpfs"))
    }

    /// True if a recursive bind mount of the spec, made before this one, may have brought a mount to its place.
    fn may_be_brought(&self, spec: &Spec, i: usize) -> bool {
        let above = |place: &OsStr| path::below(&self.places[i], place).is_some_and(|rest| !rest.is_empty());
        let earlier = spec.mounts.iter().zip(&self.places).take(i);
        earlier.filter(|(mount, place)| mount.is_bind() && above(place)).any(|(mount, _)| mount.is_recursive())
    }

    /// What a path leads to.
    fn seen(&self, place: &OsStr) -> Option<Node> {
        path::walk(&self.root, place.as_encoded_bytes()).ok().filter(|found| found.path == *place)?.node
    }

    /// What hides a mount: made after it, at its place or above.
    fn over(&self, hidden: &Mount, place: &OsStr) -> String {
        let later = self.mounts.iter().skip_while(|m| m.id != hidden.id).skip(1);
        let over = later.filter(|m| path::below(place, &m.at).is_some()).last();
        over.map_or("another mount".into(), |m| format!("another mount ({} at {})", m.fs.display(), m.at.display()))
    }

    fn mount_of(&self, node: &Node) -> Option<&Mount> {
        self.mounts.iter().find(|m| Some(m.id) == node.meta.mount)
    }

    /// True if `node` is what `mount` has mounted. Where the kernel does not tell a file's mount (before 5.8), what can
    /// be seen at the place is taken for it.
    fn is(&self, node: &Node, mount: &Mount) -> bool {
        match self.mount_of(node) {
            Some(found) => found.id == mount.id || node.meta.is_mount_root && is_same(found, mount),
            None => node.meta.mount.is_none(),
        }
    }

    fn unmounted(&self, mount: &runtime::Mount) -> Result<Found, String> {
        let gone = "it is not mounted at its place in the container any more";
        if !mount.is_bind() {
            return Err(gone.into());
        }
        let node = self.host.open(&mount.source).map_err(|e| format!("{gone}, and {e}"))?;
        let caveat = format!("{gone}; stored is its source {} as it is now", mount.source);
        Ok(Found { node, caveat: Some(caveat) })
    }
}

/// The same directory, or file, of the same file system.
fn is_same(one: &Mount, other: &Mount) -> bool {
    one.dev == other.dev && one.root == other.root
}

impl HostView {
    /// The machine at hand, or the one whose file system is mounted at `sysroot`.
    pub fn of(host: &Host) -> Result<Self> {
        let root = host.sysroot.as_deref().unwrap_or("/".as_ref());
        let mounts = mounts::read(&host.proc.join("self/mountinfo"))?;
        Ok(Self { root: Node::open(&root.join(".")).at("open", root)?, mounts })
    }

    /// The source of a bind mount.
    pub fn open(&self, source: &str) -> Result<Node, String> {
        let place = self.place(source)?;
        place.node.map_or_else(|| self.root.child(b"."), Ok).map_err(|e| format!("cannot open {source}: {e}"))
    }

    fn place(&self, source: &str) -> Result<Place, String> {
        if !source.starts_with('/') {
            return Err(format!("its source {source:?} is no absolute path"));
        }
        path::walk(&self.root, source.as_bytes()).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => format!("its source {source} is gone; if it was moved, copy it by hand"),
            _ => format!("cannot open {source}: {e}"),
        })
    }

    /// The type of the file system of which `meta` says the mount.
    pub fn fs_of(&self, mount: Option<u64>) -> Option<&OsStr> {
        self.mounts.iter().find(|m| Some(m.id) == mount).map(|m| m.fs.as_os_str())
    }

    /// True if `mount` has mounted what `source` names now.
    fn is_source(&self, source: &str, mount: &Mount) -> bool {
        let found = self.place(source).ok().and_then(|place| {
            let id = place.node.as_ref().unwrap_or(&self.root).meta.mount?;
            let on = self.mounts.iter().find(|m| m.id == id)?;
            Some((on.dev, path::join(&on.root, path::below(&place.path, &on.at)?)))
        });
        found.is_some_and(|(dev, root)| dev == mount.dev && root == mount.root)
    }

    /// What `mount` has mounted, by another mount of the same file system that a path of the host leads to.
    fn reach(&self, mount: &Mount) -> Option<Node> {
        let ways = self.mounts.iter().filter(|m| m.dev == mount.dev);
        ways.filter_map(|m| Some((m, path::below(&mount.root, &m.root)?))).find_map(|(m, rest)| {
            let top = path::walk(&self.root, m.at.as_encoded_bytes()).ok()?.node;
            let top = top.map_or_else(|| self.root.child(b"."), Ok).ok()?;
            if top.meta.mount != Some(m.id) {
                return None;
            }
            let names = rest.split(|&b| b == b'/').filter(|name| !name.is_empty());
            // The kernel says the true path: a link or another mount on it is something else.
            let is_way = |next: &Node| next.meta.mount == Some(m.id) && next.meta.kind != Kind::Symlink;
            names.into_iter().try_fold(top, |node, name| node.child(name).ok().filter(is_way))
        })
    }
}

/// The root of a process's mount namespace, and all that is mounted there. Not its root directory: that is what it may
/// have changed (chroot(2)).
///
/// Only a thread that shares its root directory with no other can look (setns(2)); so one is made, and ends.
fn namespace(host: &Host, pid: i32) -> io::Result<(Node, Vec<Mount>)> {
    let theirs = File::open(host.proc_of(pid, "ns/mnt"))?;
    let look = || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let us = rustix::fs::open(host.proc.join("thread-self"), flags, Mode::empty())?;
        sched::unshare(CloneFlags::CLONE_FS)?;
        sched::setns(&theirs, CloneFlags::CLONE_NEWNS)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut info = File::from(rustix::fs::openat(us, "mountinfo", flags, Mode::empty())?);
        let mut bytes = Vec::new();
        info.read_to_end(&mut bytes)?;
        Ok((Node::open("/".as_ref())?, mounts::parse(&bytes)))
    };
    shares::apart(look)?
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A view of these mounts, with the host's own; the places are as the spec writes them.
    fn view(root: &std::path::Path, inside: &str, host: &str, spec: &Spec) -> View {
        let open = || Node::open(root).unwrap();
        let places = spec.mounts.iter().map(|m| path::clean(&m.destination)).collect();
        let host = HostView { root: open(), mounts: mounts::parse(host.as_bytes()) };
        View { root: open(), mounts: mounts::parse(inside.as_bytes()), places, host }
    }

    #[test]
    fn of_several_mounts_at_one_place_the_spec_s_own_is_chosen_or_none() {
        let temp = tempfile::tempdir().unwrap();
        for dir in ["srv/data", "srv/all"] {
            fs::create_dir_all(temp.path().join(dir)).unwrap();
        }
        let bind =
            |from: &str, to: &str| format!(r#"{{"source":"/srv/{from}","destination":"{to}","options":["rbind"]}}"#);
        let tmpfs = |to: &str| format!(r#"{{"type":"tmpfs","source":"tmpfs","destination":"{to}"}}"#);
        let line =
            |id: u64, dev: &str, root: &str, at: &str, fs: &str| format!("{id} 1 {dev} {root} {at} rw - {fs} x rw\n");
        let ext4 = |id, root: &str, at: &str| line(id, "8:1", root, at, "ext4");
        let memory = |id, at: &str| line(id, &format!("0:{id}"), "/", at, "tmpfs");
        // The host's mount of file system 8:1 is the one our own temporary directory is on.
        let own = Node::open(temp.path()).unwrap().meta.mount.unwrap_or_default();
        let host = ext4(own, "/", "/");
        let (data, all) = (bind("data", "/data"), bind("all", "/"));
        for (mounts, inside, last, chosen) in [
            // Alone, whatever its root is called by now.
            (vec![data.clone()], vec![ext4(2, "/moved", "/data")], 0, Ok(Some(2))),
            (vec![data.clone()], vec![], 0, Ok(None)),
            // Bound on itself, as a read-only path is: the same content.
            (vec![data.clone()], vec![ext4(2, "/moved", "/data"), ext4(3, "/moved", "/data")], 0, Ok(Some(3))),
            // Covered by the container.
            (vec![data.clone()], vec![ext4(2, "/moved", "/data"), memory(3, "/data")], 0, Ok(Some(2))),
            // Twice in the spec.
            (vec![data.clone(), data.clone()], vec![ext4(2, "/a", "/data"), ext4(3, "/b", "/data")], 1, Ok(Some(3))),
            (vec![data.clone(), data.clone()], vec![ext4(2, "/a", "/data")], 1, Err(())),
            // A recursive bind mount above may have brought the first one.
            (vec![all.clone(), data.clone()], vec![memory(2, "/data"), ext4(3, "/moved", "/data")], 1, Err(())),
            (vec![all, data], vec![memory(2, "/data"), ext4(3, "/srv/data", "/data")], 1, Ok(Some(3))),
            // A tmpfs is one.
            (vec![tmpfs("/x")], vec![memory(2, "/x")], 0, Ok(Some(2))),
            (vec![tmpfs("/x")], vec![memory(2, "/x"), ext4(3, "/y", "/x")], 0, Ok(Some(2))),
            (vec![tmpfs("/x")], vec![ext4(3, "/y", "/x")], 0, Ok(None)),
        ] {
            let spec: Spec = serde_json::from_str(&format!(r#"{{"mounts":[{}]}}"#, mounts.join(","))).unwrap();
            let view = view(temp.path(), &inside.concat(), &host, &spec);
            let found = view.choose(&spec, last).map(|m| m.map(|m| m.id)).map_err(|_| ());
            assert_eq!(found, chosen, "{mounts:?} {inside:?}");
        }
    }
}
