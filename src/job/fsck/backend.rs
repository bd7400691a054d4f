//! Snapshotters: their own databases, against meta.db and against their directories.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

use super::{
    super::locate::with_causes,
    finding::{
        BACKEND_CYCLE, BACKEND_INDEX_WRONG, BACKEND_NUMBER_TWICE, BACKEND_PARENT_MISSING, DATABASE_UNREADABLE,
        Findings, RECORD_UNREADABLE, SNAPSHOT_DIRECTORY_LEFT, SNAPSHOT_DIRECTORY_MISSING, SNAPSHOT_HALF_COMMITTED,
        SNAPSHOT_KIND_WRONG, SNAPSHOT_NOT_IN_BACKEND, SNAPSHOT_PARENT_DIFFERS, SNAPSHOT_UNREFERENCED,
    },
    records::circular,
    structure, way_in,
};
use crate::{
    containerd::survey::{Namespace, Records, SnapshotRecord},
    digest::Digest,
    error::{Error, Result},
    host::{Host, database},
    interrupt,
    snapshotter::{
        self,
        all::{self, Entries, Entry, Kind, Shape},
    },
};

/// One snapshotter.
pub struct Backend {
    dir: PathBuf,
    db: PathBuf,
    /// `None`: its database could not be read, which has been told.
    entries: Option<Entries>,
}

/// Reads the database of every snapshotter that is on record or has one.
pub fn read_all(host: &Host, records: &Records, findings: &mut Findings) -> Result<BTreeMap<String, Backend>> {
    let mut found = BTreeMap::new();
    for name in names(host, records) {
        interrupt::check()?;
        let dir = match snapshotter::directory_of(host, &name) {
            Ok(dir) => dir,
            Err(e) => {
                let place = host.root.display();
                findings.add(&DATABASE_UNREADABLE, format!("snapshotter {name}"), place, with_causes(&e));
                continue;
            }
        };
        let db = dir.join("metadata.db");
        let bytes = match database::read(host, &db) {
            Ok(bytes) => bytes,
            Err(e @ Error::DaemonRunning { .. }) => return Err(e),
            Err(e) => {
                findings.add(&DATABASE_UNREADABLE, format!("snapshotter {name}"), db.display(), with_causes(&e));
                found.insert(name, Backend { dir, db, entries: None });
                continue;
            }
        };
        structure(&db, &bytes, &format!("metadata.db of {name}"), findings);
        pools(host, &name, &dir, findings)?;
        let entries = Entries::read(&bytes);
        for (way, why) in &entries.damage {
            findings.add(&RECORD_UNREADABLE, format!("record {way} of {name}"), way_in(&db, way), why.why);
        }
        findings.count(&RECORD_UNREADABLE, entries.more_damage);
        found.insert(name, Backend { dir, db, entries: Some(entries) });
    }
    Ok(found)
}

/// Those on record, those configured, and those whose directories are there.
fn names(host: &Host, records: &Records) -> BTreeSet<String> {
    let on_record = records.namespaces.values().flat_map(|ns| &ns.snapshots).filter(|(_, all)| !all.is_empty());
    let mut names: BTreeSet<String> = on_record.map(|(name, _)| name.clone()).collect();
    let has_db = |name: &String| {
        snapshotter::directory_of(host, name).is_ok_and(|dir| fs::symlink_metadata(dir.join("metadata.db")).is_ok())
    };
    let entries = fs::read_dir(&host.root).into_iter().flatten().flatten();
    let below = entries.filter_map(|e| {
        e.file_name().to_str().and_then(|name| name.strip_prefix("io.containerd.snapshotter.v1.")).map(str::to_owned)
    });
    names.extend(below.chain(host.snapshotters.keys().cloned()).filter(has_db));
    // A name from the database becomes part of a path.
    names.retain(|name| !name.is_empty() && !name.contains('/') && !name.contains('\0'));
    names
}

/// devmapper's other databases: one a pool (`plugins/snapshots/devmapper/metadata.go`).
fn pools(host: &Host, name: &str, dir: &Path, findings: &mut Findings) -> Result<()> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().filter(|_| name == "devmapper");
    for path in entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "db")) {
        let is_file = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file());
        if !is_file || path.ends_with("metadata.db") {
            continue;
        }
        match database::read(host, &path) {
            Ok(bytes) => structure(&path, &bytes, "a pool's database", findings),
            Err(e @ Error::DaemonRunning { .. }) => return Err(e),
            Err(e) => findings.add(&DATABASE_UNREADABLE, "a pool", path.display(), with_causes(&e)),
        }
    }
    Ok(())
}

/// Checks each snapshotter's records, against meta.db's and against what lies in its directory.
pub fn check(meta: &Path, records: &Records, backends: &BTreeMap<String, Backend>, findings: &mut Findings) {
    for (name, backend) in backends {
        let Some(entries) = &backend.entries else { continue };
        check_entries(name, backend, entries, findings);
        let referenced = referenced(records, name);
        let halves = check_records(meta, records, name, entries, &referenced, findings);
        let shape = all::shape(name);
        if let Some(shape) = shape {
            check_directories(name, backend, entries, shape, findings);
        }
        let is_nobodys = |key: &str| !referenced.contains(key) && !halves.contains(key);
        for (key, entry) in entries.by_name.iter().filter(|(key, _)| is_nobodys(key)) {
            let thing = format!("snapshot {name}/{} {key}", entry.id);
            let place = way_in(&backend.db, format_args!("v1/snapshots/{key}"));
            match shape.and_then(|shape| shape.place(&backend.dir, entry)).and_then(|dir| whole(&backend.dir, &dir)) {
                Some(dir) => findings.add_sized(&SNAPSHOT_UNREFERENCED, thing, place, disk_usage(&dir)),
                None => findings.add(&SNAPSHOT_UNREFERENCED, thing, place, ""),
            }
        }
    }
}

/// A snapshotter's records against one another.
fn check_entries(name: &str, backend: &Backend, entries: &Entries, findings: &mut Findings) {
    let place = |key: &str| way_in(&backend.db, format_args!("v1/snapshots/{key}"));
    let thing = |key: &str, entry: &Entry| format!("snapshot {name}/{} {key}", entry.id);
    let mut numbers = BTreeMap::new();
    let mut expected = BTreeSet::new();
    for (key, entry) in &entries.by_name {
        if let Some(other) = numbers.insert(entry.id, key) {
            findings.add(&BACKEND_NUMBER_TWICE, thing(key, entry), place(key), format!("{other} has the same"));
        }
        match entries.by_name.get(&entry.parent) {
            _ if entry.parent.is_empty() => {}
            None => {
                let seen = format!("parent {}", entry.parent);
                findings.add(&BACKEND_PARENT_MISSING, thing(key, entry), place(key), seen);
            }
            Some(parent) => {
                expected.insert((parent.id.0, entry.id.0, key.clone()));
                if parent.kind != Kind::Committed {
                    let seen = format!("{} stands on it, but it is {:?}", entry.id, parent.kind).to_lowercase();
                    findings.add(&SNAPSHOT_KIND_WRONG, thing(&entry.parent, parent), place(&entry.parent), seen);
                }
            }
        }
    }
    let parent = |key| entries.by_name.get(key).map(|entry| entry.parent.as_str());
    for key in circular(entries.by_name.keys().map(String::as_str), parent) {
        findings.add(&BACKEND_CYCLE, format!("snapshot {name} {key}"), place(key), "");
    }
    for (parent, child, key) in expected.symmetric_difference(&entries.parents) {
        let is_listed = entries.parents.contains(&(*parent, *child, key.clone()));
        let seen = if is_listed { "is listed, but no record says so" } else { "is not listed" };
        let seen = format!("{child} on {parent} {seen}");
        let place = way_in(&backend.db, "v1/parents");
        findings.add(&BACKEND_INDEX_WRONG, format!("snapshot {name} {key}"), place, seen);
    }
}

/// The backend's names that some namespace's records have.
fn referenced<'r>(records: &'r Records, snapshotter: &str) -> BTreeSet<&'r str> {
    let all = records.namespaces.values().filter_map(|ns| ns.snapshots.get(snapshotter));
    all.flat_map(|all| all.values()).map(|record| record.name.as_str()).collect()
}

/// meta.db's records of one snapshotter against its own; what turns out to be the other half of a commit comes back.
fn check_records<'e>(
    meta: &Path,
    records: &Records,
    snapshotter: &str,
    entries: &'e Entries,
    referenced: &BTreeSet<&str>,
    findings: &mut Findings,
) -> BTreeSet<&'e str> {
    let strays: BTreeMap<&str, &str> = entries
        .by_name
        .iter()
        .filter(|(name, entry)| entry.kind == Kind::Committed && !referenced.contains(name.as_str()))
        .filter_map(|(name, _)| key_in(name).map(|key| (key, name.as_str())))
        .collect();
    let mut halves = BTreeSet::new();
    for (ns_name, ns) in &records.namespaces {
        let used: BTreeSet<&str> = active_keys(ns, snapshotter);
        for (key, record) in ns.snapshots.get(snapshotter).into_iter().flatten() {
            let thing = format!("snapshot {ns_name}/{snapshotter} {key}");
            let place = way_in(meta, format_args!("v1/{ns_name}/snapshots/{snapshotter}/{key}"));
            // Commit is one transaction in the snapshotter's database, within one in meta.db: a crash between leaves the first.
            // The key under which it was committed stands behind the temporary one's space (`UnpackKeyFormat`).
            let committed = key.rsplit(' ').next().and_then(|chain| strays.get(chain));
            match (entries.by_name.get(&record.name), committed) {
                (Some(entry), _) => {
                    check_record(&thing, &place, key, record, entry, used.contains(key.as_str()), findings)
                }
                (None, Some(name)) => {
                    findings.add(&SNAPSHOT_HALF_COMMITTED, thing, place, format!("committed as {name}"));
                    halves.insert(*name);
                }
                (None, None) => findings.add(&SNAPSHOT_NOT_IN_BACKEND, thing, place, format!("name {}", record.name)),
            }
        }
    }
    halves
}

/// The key in a backend's name, `<ns>/<n>/<key>`.
fn key_in(name: &str) -> Option<&str> {
    name.splitn(3, '/').nth(2)
}

/// The keys of the containers' own snapshots.
fn active_keys<'n>(ns: &'n Namespace, snapshotter: &str) -> BTreeSet<&'n str> {
    let ours = ns.containers.values().filter(|c| c.snapshotter == snapshotter);
    ours.map(|c| c.snapshot_key.as_str()).collect()
}

fn check_record(
    thing: &str,
    place: &str,
    key: &str,
    record: &SnapshotRecord,
    entry: &Entry,
    is_containers: bool,
    findings: &mut Findings,
) {
    if let Some(seen) = wrong_kind(key, entry, is_containers) {
        findings.add(&SNAPSHOT_KIND_WRONG, thing, place, seen);
    }
    // A snapshot may be shared with another namespace, so the keys are compared, not the names (`snapshot.go`,
    // `createSnapshot`). One that gets its parent only when it is committed has none on one side meanwhile.
    let below = key_in(&entry.parent).filter(|_| !record.parent.is_empty());
    if let Some(below) = below.filter(|below| *below != record.parent) {
        let seen = format!("on {}, says meta.db; on {below}, says the snapshotter", record.parent);
        findings.add(&SNAPSHOT_PARENT_DIFFERS, thing, place, seen);
    }
}

fn wrong_kind(key: &str, entry: &Entry, is_container: bool) -> Option<String> {
    if is_container && entry.kind == Kind::Committed {
        return Some("a container's own, but it is committed".into());
    }
    // Under a chain id lies a layer.
    let is_layer = key.parse::<Digest>().is_ok();
    (is_layer && entry.kind != Kind::Committed).then(|| format!("a layer, but it is {:?}", entry.kind).to_lowercase())
}

/// The records of a snapshotter against its directories.
fn check_directories(name: &str, backend: &Backend, entries: &Entries, shape: &Shape, findings: &mut Findings) {
    let mut expected = BTreeSet::new();
    for (key, entry) in &entries.by_name {
        let Some(place) = shape.place(&backend.dir, entry) else { continue };
        expected.extend(place.strip_prefix(&backend.dir).ok().and_then(first_two));
        if fs::symlink_metadata(&place).is_err() {
            let seen = format!("{:?}", entry.kind).to_lowercase();
            findings.add(
                &SNAPSHOT_DIRECTORY_MISSING,
                format!("snapshot {name}/{} {key}", entry.id),
                place.display(),
                seen,
            );
        }
    }
    for folder in shape.folders {
        for found in fs::read_dir(backend.dir.join(folder)).into_iter().flatten().flatten() {
            let below = Path::new(folder).join(found.file_name());
            if !expected.contains(&below) {
                let path = found.path();
                let thing = format!("{name} directory {}", below.display());
                findings.add_sized(&SNAPSHOT_DIRECTORY_LEFT, thing, path.display(), disk_usage(&path));
            }
        }
    }
}

/// All of a snapshot, whose files lie in `place`, below its snapshotter's directory.
fn whole(dir: &Path, place: &Path) -> Option<PathBuf> {
    place.strip_prefix(dir).ok().and_then(first_two).map(|below| dir.join(below))
}

/// `snapshots/7` of `snapshots/7/fs`.
fn first_two(path: &Path) -> Option<PathBuf> {
    let mut parts = path.components();
    Some(Path::new(parts.next()?.as_os_str()).join(parts.next()?))
}

/// Bytes of disk below `dir`, on its own file system; no link is followed, and what cannot be looked at counts for none.
fn disk_usage(dir: &Path) -> u64 {
    let entries = WalkDir::new(dir).follow_links(false).same_file_system(true).into_iter().flatten();
    // POSIX counts blocks of 512 bytes.
    entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks().saturating_mul(512)).sum()
}
