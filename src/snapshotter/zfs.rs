//! zfs: each snapshot is a dataset, `<dataset of the directory>/<id>`, a committed one its `@snapshot` (containerd/zfs).
//!
//! Nothing of it lies in the directory: datasets are mounted where somebody mounts them (`mountpoint=legacy`). The daemon has
//! a running container's mounted; the committed one is said with the line that mounts it.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use super::{Found, Origin, Place, Root, RwLayer, live};
use crate::{
    error::{Error, Result},
    host::mounts,
};

/// A clone begins as its origin to the last bit.
pub fn resolve(place: &Place) -> Result<Found> {
    let dataset = dataset(place)?;
    let name = |id: u64, end: &str| format!("{dataset}/{id}{end}");
    let own = name(place.snapshot.id.0, if place.is_active { "" } else { "@snapshot" });
    let parent = place.snapshot.parents.first().map(|id| name(id.0, "@snapshot"));
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in [Some(own), parent].into_iter().flatten() {
        match mounted(place, &name)? {
            Some(root) => found.push(root),
            None => missing.push(name),
        }
    }
    if !missing.is_empty() {
        return Err(not_mounted(&missing));
    }
    let mut found = found.into_iter();
    Ok(Found::whole(match (found.next(), found.next()) {
        (Some(active), Some(base)) => RwLayer::Trees { base, active, origin: Origin::Cloned },
        (Some(dir), None) => RwLayer::Tree { dir },
        (None, _) => return Err(not_mounted(&[dataset])),
    }))
}

/// The dataset that is mounted at the snapshotter's directory.
fn dataset(place: &Place) -> Result<String> {
    let host = place.mounts.host();
    let dir = place.dir.canonicalize().unwrap_or_else(|_| place.dir.to_owned());
    let all = mounts::read(&host.proc.join("self/mountinfo"))?;
    let here = all.iter().rev().find(|mount| mount.fs == "zfs" && Path::new(&mount.at) == dir);
    let name = here.and_then(|mount| mount.source.to_str()).filter(|name| is_plain(name));
    name.map(str::to_owned).ok_or_else(|| Error::Unsupported {
        what: format!("no zfs dataset is mounted at {}, so its snapshots cannot be named", dir.display()),
        hint: "mount it there: zfs mount, or mount -t zfs -o ro DATASET DIRECTORY".into(),
    })
}

/// The name goes into a line for a shell (zfs(8): these characters and no others are allowed).
fn is_plain(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || "/-_.: ".contains(c))
}

fn mounted(place: &Place, name: &str) -> Result<Option<Root>> {
    let is_it = |mount: &mounts::Mount| mount.fs == "zfs" && mount.source == OsStr::from_bytes(name.as_bytes());
    Ok(live::find(place.mounts.host(), is_it)?.map(|mount| Root::of_clone(mount, Path::new(name))))
}

fn not_mounted(names: &[String]) -> Error {
    let line = |name: &String| format!("mount -t zfs -o ro '{name}' DIRECTORY");
    Error::Unsupported {
        what: format!("zfs: {} not mounted", names.join(" and ")),
        hint: format!(
            "{}, each in a directory of its own; then again",
            names.iter().map(line).collect::<Vec<_>>().join("; ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        host::Host,
        id::SnapshotId,
        snapshotter::{Mounts, Snapshot},
        tree::Node,
    };

    /// Directories stand in for datasets: to those who look for them both are lines of a table of mounts.
    #[test]
    fn datasets_are_read_where_they_are_mounted_and_named_where_they_are_not() {
        let temp = tempfile::tempdir().unwrap();
        let mount = Node::open(temp.path()).unwrap().meta.mount.unwrap();
        let at = |name: &str| temp.path().join(name);
        ["store", "active", "base", "self/ns"].iter().for_each(|dir| fs::create_dir_all(at(dir)).unwrap());
        let line = |name: &str, dir: &str| format!("{mount} 1 0:9 / {} rw - zfs {name} rw\n", at(dir).display());
        let look = |lines: &[String]| {
            fs::write(at("self/mountinfo"), lines.concat()).unwrap();
            let host = Host { proc: temp.path().to_owned(), ..Host::default() };
            let snapshot = Snapshot { id: SnapshotId(7), parents: vec![SnapshotId(5), SnapshotId(2)], ids: None };
            let mounts = Mounts::of(&host);
            let dir = at("store");
            resolve(&Place { mounts: &mounts, dir: &dir, snapshot: &snapshot, is_active: true }).map(|found| found.rw)
        };
        let (store, active, base) =
            (line("tank/c", "store"), line("tank/c/7", "active"), line("tank/c/5@snapshot", "base"));
        let said = look(&[]).unwrap_err().to_string();
        assert!(said.contains("no zfs dataset is mounted at"), "{said}");
        let said = look(std::slice::from_ref(&store)).unwrap_err().to_string();
        assert!(
            said.contains("mount -t zfs -o ro 'tank/c/7' DIRECTORY; mount -t zfs -o ro 'tank/c/5@snapshot'"),
            "{said}"
        );
        if !rustix::process::geteuid().is_root() {
            return; // to take a mount is root's
        }
        let said = look(&[store.clone(), active.clone()]).unwrap_err().to_string();
        assert!(!said.contains("tank/c/7"), "{said}");
        let RwLayer::Trees { base, active, origin: Origin::Cloned } = look(&[store, active, base]).unwrap() else {
            panic!()
        };
        let is = |root: &Root, dir: &str| Node::open(root).unwrap().meta.id == Node::open(&at(dir)).unwrap().meta.id;
        assert!(is(&base, "base") && is(&active, "active"));
    }
}
