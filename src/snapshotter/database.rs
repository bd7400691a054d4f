//! A snapshotter's own database: from a snapshot's name to its number, its parents' numbers and its kind.
//!
//! ```text
//! <root>/io.containerd.snapshotter.v1.<name>/metadata.db
//!     v1/snapshots/<snapshot name>/{id=uvarint, kind=1 byte, parent=<snapshot name>, labels/…}
//! ```
//! Source: containerd `core/snapshots/storage/bolt.go`; all of its own snapshotters share it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use super::Snapshot;
use crate::{
    bolt::{
        Bucket, Db, Origin, Reading,
        schema::{Field, Kind, Others, VALUES},
    },
    corrupt::Corrupt,
    error::{Error, In, Result},
    host::{Host, database},
    id::{SnapshotId, SnapshotName},
    idmap::{IdMap, Ranges},
    record,
};

/// No image has so many layers (the kernel mounts at most 500); a longer chain is a loop or an attack.
const MAX_PARENTS: usize = 4096;

/// The whole database, for one that is damaged.
pub(super) static METADATA: Kind = Kind { required: &["v1"], ..Kind::parts("root", &[("v1", Field::Bucket(&V1))]) };
static V1: Kind = Kind {
    others: Others::Unknown,
    ..Kind::parts("v1", &[("snapshots", Field::Bucket(&SNAPSHOTS)), ("parents", Field::Bucket(&VALUES))])
};
static SNAPSHOTS: Kind = Kind::map("snapshots", &SNAPSHOT);
static SNAPSHOT: Kind = Kind::record(
    "snapshot",
    &[
        ("id", Field::Value),
        ("kind", Field::Value),
        ("parent", Field::Value),
        ("inodes", Field::Value),
        ("size", Field::Value),
        ("createdat", Field::Time),
        ("updatedat", Field::Time),
        ("labels", Field::Bucket(&VALUES)),
    ],
    &["createdat", "id", "kind", "updatedat"],
);

/// The databases of one host's snapshotters, each read when it is first asked for, and once: that of a node with ten thousand
/// containers is not read for each of them.
#[derive(Default)]
pub struct Databases(Mutex<BTreeMap<PathBuf, Arc<Opened>>>);

/// One of them.
pub(super) struct Opened {
    path: PathBuf,
    bytes: Bytes,
    reading: Reading,
}

impl Databases {
    /// The database of the snapshotter whose directory is `dir`.
    pub(super) fn open(&self, host: &Host, dir: &Path) -> Result<Arc<Opened>> {
        let path = dir.join("metadata.db");
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = known.get(&path) {
            return Ok(opened.clone());
        }
        let bytes = database::read(host, &path)?;
        let reading = Reading::of(&bytes, &METADATA).within(&path)?;
        let opened = Arc::new(Opened { path: path.clone(), bytes, reading });
        known.insert(path, opened.clone());
        Ok(opened)
    }
}

impl Opened {
    /// The snapshot `name`, and its kind.
    pub fn find(&self, name: &SnapshotName) -> Result<(Snapshot, Vec<u8>)> {
        look_up(&self.reading.db(&self.bytes), name).within(&self.path)?.ok_or_else(|| Error::NotFound {
            what: format!("snapshot {name} in {}", self.path.display()),
            hint: "the two databases disagree: the container's files cannot be located".into(),
        })
    }

    /// What makes the snapshot `name` uncertain: the database is damaged.
    pub fn doubts(&self, name: &SnapshotName) -> Vec<String> {
        let damage = database::damage(&self.path, &self.reading.damage);
        let used = |e: &Error| {
            let cause = std::error::Error::source(e).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{e}{cause}: what could be read of it is used")
        };
        let db = self.reading.db(&self.bytes);
        let record = db.root().bucket("v1").ok().flatten().and_then(|v1| v1.bucket("snapshots").ok()?);
        let origin = record.and_then(|all| all.bucket(&name.0).ok()?).map(|record| record.origin);
        let own = match origin {
            Some(Origin::Stale(why) | Origin::Salvaged(why)) => Some(format!("the record of snapshot {name}: {why}")),
            _ => None,
        };
        damage.iter().map(used).chain(own).collect()
    }
}

fn look_up(db: &Db<'_>, name: &SnapshotName) -> Result<Option<(Snapshot, Vec<u8>)>, Corrupt> {
    let Some(v1) = db.root().bucket("v1")? else { return Ok(None) };
    let Some(all) = v1.bucket("snapshots")? else { return Ok(None) };
    let Some(record) = all.bucket(&name.0)? else { return Ok(None) };
    let kind = record.value("kind")?.unwrap_or_default().to_vec();
    let mut parents = Vec::new();
    let mut parent = record::text(&record, "parent")?;
    while !parent.is_empty() {
        let missing = Corrupt { at: 0, why: "a snapshot's parent is missing" };
        let above = all.bucket(&parent)?.ok_or(missing)?;
        parents.push(id(&above)?);
        if let [nearest] = parents[..] {
            confirm(&v1, &record, name.0.as_bytes(), id(&record)?, nearest)?;
        }
        parent = record::text(&above, "parent")?;
        if parents.len() > MAX_PARENTS {
            return Err(Corrupt { at: 0, why: "a snapshot has too many parents" });
        }
    }
    Ok(Some((Snapshot { id: id(&record)?, parents, ids: ids(&record)? }, kind)))
}

/// A record that no list leads to any more may have another's name. The index of parents has the names of all that have a
/// parent, by number: `v1/parents`, `uvarint(parent) 00 uvarint(child)` → name.
fn confirm(
    v1: &Bucket<'_>,
    record: &Bucket<'_>,
    name: &[u8],
    own: SnapshotId,
    parent: SnapshotId,
) -> Result<(), Corrupt> {
    if record.origin == Origin::Live {
        return Ok(());
    }
    let Some(index) = v1.bucket("parents")? else { return Ok(()) };
    let key = [uvarint(parent.0), vec![0], uvarint(own.0)].concat();
    match index.value(&key) {
        Ok(Some(known)) if known != name => Err(Corrupt { at: 0, why: "a salvaged snapshot has another one's number" }),
        _ => Ok(()),
    }
}

/// Go's `binary.PutUvarint`.
fn uvarint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// The labels of all snapshots, by number.
pub(super) fn labels(host: &Host, dir: &Path) -> Result<BTreeMap<SnapshotId, BTreeMap<String, String>>> {
    let db = dir.join("metadata.db");
    let bytes = database::read(host, &db)?;
    all_labels(&bytes).within(&db)
}

fn all_labels(bytes: &[u8]) -> Result<BTreeMap<SnapshotId, BTreeMap<String, String>>, Corrupt> {
    let reading = Reading::of(bytes, &METADATA)?;
    let db = reading.db(bytes);
    let Some(v1) = db.root().bucket("v1")? else { return Ok(BTreeMap::new()) };
    let Some(all) = v1.bucket("snapshots")? else { return Ok(BTreeMap::new()) };
    let of = |record: Bucket<'_>| Ok((id(&record)?, record::texts(&record, "labels")?));
    all.buckets().map(|record| record.and_then(|(_, record)| of(record))).collect()
}

/// The mapping of an idmapped snapshot stands in two labels (`core/snapshots/snapshotter.go`, `LabelSnapshotUIDMapping`).
fn ids(record: &Bucket<'_>) -> Result<Option<Arc<IdMap>>, Corrupt> {
    let labels = record::texts(record, "labels")?;
    let ranges = |key: &str| match labels.get(key) {
        Some(text) => text.parse::<Ranges>().map_err(|_| Corrupt { at: 0, why: "a snapshot's id mapping is none" }),
        None => Ok(Ranges::default()),
    };
    let map = IdMap {
        uids: ranges("containerd.io/snapshot/uidmapping")?,
        gids: ranges("containerd.io/snapshot/gidmapping")?,
    };
    Ok((map != IdMap::default()).then(|| Arc::new(map)))
}

fn id(record: &Bucket<'_>) -> Result<SnapshotId, Corrupt> {
    let bytes = record.value("id")?.ok_or(Corrupt { at: 0, why: "a snapshot has no id" })?;
    record::uvarint(bytes).map(SnapshotId)
}

/// Name, kind and parent's name of every snapshot; one whose record cannot be read is left out.
pub(super) fn all(host: &Host, dir: &Path) -> Result<Vec<(String, Vec<u8>, String)>> {
    let db = dir.join("metadata.db");
    let bytes = database::read(host, &db)?;
    names(&bytes).within(&db)
}

fn names(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>, String)>, Corrupt> {
    let reading = Reading::of(bytes, &METADATA)?;
    let db = reading.db(bytes);
    let Some(v1) = db.root().bucket("v1")? else { return Ok(Vec::new()) };
    let Some(all) = v1.bucket("snapshots")? else { return Ok(Vec::new()) };
    let entry = |(name, record): (&[u8], Bucket<'_>)| {
        let kind = record.value("kind").ok()?.unwrap_or_default().to_vec();
        Some((std::str::from_utf8(name).ok()?.to_owned(), kind, record::text(&record, "parent").ok()?))
    };
    Ok(all.buckets().filter_map(|found| entry(found.ok()?)).collect())
}
