//! meta.db against itself: records that name others which are not there.

use std::{collections::BTreeSet, path::Path};

use super::{
    finding::{
        CONTAINER_IMAGE_MISSING, CONTAINER_SANDBOX_MISSING, CONTAINER_SNAPSHOT_MISSING, Findings, LEASE_DANGLING,
        SNAPSHOT_CHILDREN_WRONG, SNAPSHOT_CYCLE, SNAPSHOT_PARENT_MISSING, SNAPSHOT_UNPACK_LEFT,
    },
    way_in,
};
use crate::containerd::survey::{ContainerRecord, Lease, Namespace, Records, SnapshotRecord};

type Snapshots = std::collections::BTreeMap<String, SnapshotRecord>;

/// Checks every namespace.
pub fn check(path: &Path, records: &Records, findings: &mut Findings) {
    for (name, ns) in &records.namespaces {
        let place = |way: String| way_in(path, format_args!("v1/{name}/{way}"));
        for (id, container) in &ns.containers {
            check_container(ns, &format!("{name}/{id}"), container, &place(format!("containers/{id}")), findings);
        }
        for (snapshotter, all) in &ns.snapshots {
            let place = |key: &str| place(format!("snapshots/{snapshotter}/{key}"));
            check_snapshots(&format!("{name}/{snapshotter}"), all, &place, findings);
        }
        for (id, lease) in &ns.leases {
            check_lease(ns, &format!("lease {name}/{id}"), lease, &place(format!("leases/{id}")), findings);
        }
    }
}

fn check_container(ns: &Namespace, name: &str, container: &ContainerRecord, place: &str, findings: &mut Findings) {
    let ContainerRecord { image, snapshotter, snapshot_key, sandbox } = container;
    let thing = format!("container {name}");
    if !image.is_empty() && !ns.images.contains_key(image) && !ns.unreadable.contains(&format!("images/{image}")) {
        findings.add(&CONTAINER_IMAGE_MISSING, &thing, place, format!("image {image}"));
    }
    // Docker names neither: it keeps that in records of its own.
    let is_there = ns.snapshots.get(snapshotter).is_some_and(|all| all.contains_key(snapshot_key))
        || ns.unreadable.contains(&format!("snapshots/{snapshotter}/{snapshot_key}"));
    if !snapshotter.is_empty() && !snapshot_key.is_empty() && !is_there {
        findings.add(&CONTAINER_SNAPSHOT_MISSING, &thing, place, format!("{snapshotter} snapshot {snapshot_key}"));
    }
    if !sandbox.is_empty() && !ns.sandboxes.contains(sandbox) && !ns.containers.contains_key(sandbox) {
        findings.add(&CONTAINER_SANDBOX_MISSING, thing, place, format!("sandbox {sandbox}"));
    }
}

fn check_snapshots(within: &str, all: &Snapshots, place: &dyn Fn(&str) -> String, findings: &mut Findings) {
    let thing = |key: &str| format!("snapshot {within} {key}");
    for (key, record) in all {
        let parent = record.parent.as_str();
        match all.get(parent) {
            _ if parent.is_empty() => {}
            None => findings.add(&SNAPSHOT_PARENT_MISSING, thing(key), place(key), format!("parent {parent}")),
            Some(above) if !above.children.contains(key) => {
                let seen = format!("{parent} does not list it among its children");
                findings.add(&SNAPSHOT_CHILDREN_WRONG, thing(key), place(key), seen);
            }
            Some(_) => {}
        }
        for child in record.children.iter().filter(|child| all.get(*child).is_none_or(|c| c.parent != *key)) {
            let seen = format!("it lists {child} among its children");
            findings.add(&SNAPSHOT_CHILDREN_WRONG, thing(key), place(key), seen);
        }
        // `core/snapshots/snapshotter.go`, `UnpackKeyFormat`.
        if key.starts_with("extract-") && key.contains(' ') {
            findings.add(&SNAPSHOT_UNPACK_LEFT, thing(key), place(key), "");
        }
    }
    for key in circular(all.keys().map(String::as_str), |key| all.get(key).map(|record| record.parent.as_str())) {
        findings.add(&SNAPSHOT_CYCLE, thing(key), place(key), "");
    }
}

/// Those that are their own ancestors. Each is visited once, however long the ways are.
pub fn circular<'k>(keys: impl Iterator<Item = &'k str>, parent: impl Fn(&'k str) -> Option<&'k str>) -> Vec<&'k str> {
    let (mut done, mut found) = (BTreeSet::new(), Vec::new());
    for start in keys {
        let (mut way, mut on_way) = (Vec::new(), BTreeSet::new());
        let mut at = Some(start);
        while let Some(key) = at.filter(|key| !key.is_empty() && !done.contains(key)) {
            if !on_way.insert(key) {
                let begin = way.iter().position(|k| *k == key).unwrap_or(0);
                found.extend(&way[begin..]);
                break;
            }
            way.push(key);
            at = parent(key);
        }
        done.extend(way);
    }
    found
}

fn check_lease(ns: &Namespace, thing: &str, lease: &Lease, place: &str, findings: &mut Findings) {
    let mut dangling = |kind: &str, name: &str| findings.add(&LEASE_DANGLING, thing, place, format!("{kind} {name}"));
    for (snapshotter, key) in &lease.snapshots {
        if !ns.snapshots.get(snapshotter).is_some_and(|all| all.contains_key(key)) {
            dangling("snapshot", &format!("{snapshotter} {key}"));
        }
    }
    lease.content.iter().filter(|d| !ns.blobs.contains_key(*d)).for_each(|d| dangling("blob", d));
    lease.ingests.iter().filter(|r| !ns.ingests.contains_key(*r)).for_each(|r| dangling("ingest", r));
    lease.images.iter().filter(|i| !ns.images.contains_key(*i)).for_each(|i| dangling("image", i));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_on_itself_is_found_and_what_stands_on_that_is_not() {
        let parent = |key: &str| match key {
            "a" => Some("b"),
            "b" => Some("c"),
            "c" => Some("b"),
            "d" => Some("d"),
            "e" => Some(""),
            _ => None,
        };
        assert_eq!(circular(["a", "b", "c", "d", "e"].into_iter(), parent), ["b", "c", "d"]);
    }
}
