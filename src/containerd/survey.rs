//! All that one meta.db has on record, walked once: for those who judge the whole, not one container.
//!
//! ```text
//! v1/<ns>/images/<name>/target/{digest,mediatype,size}
//! v1/<ns>/containers/<id>/{image,snapshotter,snapshotKey,sandboxid,labels/…}
//! v1/<ns>/snapshots/<snapshotter>/<key>/{name,parent,children/<key>}
//! v1/<ns>/content/blob/<digest>/{size,labels/…}        v1/<ns>/content/ingests/<ref>/ref
//! v1/<ns>/leases/<id>/{snapshots/<snapshotter>/<key>,content/<digest>,ingests/<ref>,images/<name>}
//! v1/<ns>/sandboxes/<id>                               1.7: <ns>/sandboxes/<id>, beside v1
//! ```
//! Source: containerd `core/metadata/{buckets,containers,content,leases,sandbox,snapshot}.go`. What cannot be read is named
//! with its place and hides nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    meta::{self, MetaDb, Origin},
    schema,
};
use crate::{
    bolt::{Bucket, Reading},
    corrupt::Corrupt,
    error::Result,
    host::{Host, database},
    record,
};

/// More places than this that cannot be read are only counted: a hostile file has as many as it has bytes.
const MAX_DAMAGE: usize = 10_000;

/// A copy of meta.db in memory.
pub struct Survey {
    path: PathBuf,
    bytes: Bytes,
}

/// Everything on record, by namespace.
#[derive(Debug, Default)]
pub struct Records {
    /// The namespaces.
    pub namespaces: BTreeMap<String, Namespace>,
    /// What could not be read.
    pub damage: Damage,
}

/// What could not be read in a database.
#[derive(Debug, Default)]
pub struct Damage {
    /// The way to it (`v1/default/images/x`), and why; so many at most.
    pub places: Vec<(String, Corrupt)>,
    /// How many more there are.
    pub more: usize,
}

/// One namespace's records.
#[derive(Debug, Default)]
pub struct Namespace {
    /// By name.
    pub images: BTreeMap<String, ImageRecord>,
    /// By id.
    pub containers: BTreeMap<String, ContainerRecord>,
    /// By snapshotter, then by key.
    pub snapshots: BTreeMap<String, BTreeMap<String, SnapshotRecord>>,
    /// By digest, as text.
    pub blobs: BTreeMap<String, BlobRecord>,
    /// By the client's name for it: the content store's name for it, `<ns>/<n>/<ref>`.
    pub ingests: BTreeMap<String, String>,
    /// By id.
    pub leases: BTreeMap<String, Lease>,
    /// Their ids.
    pub sandboxes: BTreeSet<String>,
    /// The ways to records that are there and cannot be read: `containers/web`.
    pub unreadable: BTreeSet<String>,
    /// The ways to records that were put together from what is left of a damaged file, and why.
    pub doubtful: BTreeMap<String, String>,
}

/// An image's record.
#[derive(Debug)]
pub struct ImageRecord {
    /// The index or manifest it stands for, as text.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes; negative only in a damaged record.
    pub size: i64,
}

/// What a container's record points to.
#[derive(Debug)]
pub struct ContainerRecord {
    /// Its image's name; may be empty.
    pub image: String,
    /// Its snapshotter; may be empty.
    pub snapshotter: String,
    /// Its snapshot's key; may be empty.
    pub snapshot_key: String,
    /// Its sandbox's id; may be empty, and is so before 1.7.
    pub sandbox: String,
}

/// A snapshot's record.
#[derive(Debug)]
pub struct SnapshotRecord {
    /// Its name in the snapshotter's own database.
    pub name: String,
    /// Its parent's key; may be empty.
    pub parent: String,
    /// The keys of those that stand on it.
    pub children: BTreeSet<String>,
}

/// A blob's record.
#[derive(Debug)]
pub struct BlobRecord {
    /// Its size in bytes; negative only in a damaged record.
    pub size: i64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// What a lease keeps.
#[derive(Debug, Default)]
pub struct Lease {
    /// Snapshotter and key.
    pub snapshots: Vec<(String, String)>,
    /// Digests, as text.
    pub content: Vec<String>,
    /// Refs.
    pub ingests: Vec<String>,
    /// Names.
    pub images: Vec<String>,
}

impl Damage {
    /// Notes one place.
    pub fn add(&mut self, place: impl Into<String>, why: Corrupt) {
        match self.places.len() {
            MAX_DAMAGE.. => self.more += 1,
            _ => self.places.push((place.into(), why)),
        }
    }
}

impl Survey {
    /// Reads the host's meta.db into memory.
    pub fn read(host: &Host) -> Result<Self> {
        let path = MetaDb::path(host);
        let bytes = database::read(host, &path).map_err(|e| meta::explain(host, e))?;
        Ok(Self { path, bytes })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Walks it.
    pub fn records(&self) -> Records {
        let mut all = Records::default();
        let mut walk = Walk { damage: &mut all.damage };
        // Of a damaged file, all that can be put together.
        let reading = match Reading::of(&self.bytes, &schema::META) {
            Ok(reading) => reading,
            Err(e) => {
                walk.damage.add("", e);
                return all;
            }
        };
        let db = reading.db(&self.bytes);
        for (name, bucket) in walk.buckets(&db.root(), "") {
            if name == "v1" {
                for (name, bucket) in walk.buckets(&bucket, "v1") {
                    let place = format!("v1/{name}");
                    walk.namespace(&bucket, &place, all.namespaces.entry(name).or_default());
                }
            } else {
                // Before 2.0 a namespace's sandboxes stand in a bucket of their own (`core/metadata/migrations.go`).
                let ids = walk.names(&bucket, &name, "sandboxes");
                all.namespaces.entry(name).or_default().sandboxes.extend(ids);
            }
        }
        all
    }
}

/// A walk that notes what it cannot read, and goes on.
pub(crate) struct Walk<'a> {
    /// Where it is noted.
    pub damage: &'a mut Damage,
}

impl Walk<'_> {
    /// The buckets right below one, with their names.
    pub fn buckets<'d>(&mut self, parent: &Bucket<'d>, place: &str) -> Vec<(String, Bucket<'d>)> {
        let mut found = Vec::new();
        for entry in parent.buckets() {
            match entry {
                Ok((name, bucket)) => found.push((lossy(name), bucket)),
                Err(e) => self.damage.add(place, e),
            }
        }
        found
    }

    /// The buckets below the bucket `key` of one, each with its place.
    pub fn below<'d>(&mut self, parent: &Bucket<'d>, place: &str, key: &str) -> Vec<(String, Bucket<'d>)> {
        let place = format!("{place}/{key}");
        let found = self.value(&place, parent.bucket(key)).flatten();
        found.map(|bucket| self.buckets(&bucket, &place)).unwrap_or_default()
    }

    /// The keys of the bucket `key` of one, whatever stands under them.
    pub fn names(&mut self, parent: &Bucket<'_>, place: &str, key: &str) -> Vec<String> {
        let place = format!("{place}/{key}");
        let mut found = Vec::new();
        for entry in self.value(&place, parent.bucket(key)).flatten().iter().flat_map(Bucket::iter) {
            match entry {
                Ok((name, _)) => found.push(lossy(name)),
                Err(e) => self.damage.add(place.as_str(), e),
            }
        }
        found
    }

    /// A value, or `None` and a note.
    pub fn value<T>(&mut self, place: &str, value: Result<T, Corrupt>) -> Option<T> {
        value.map_err(|e| self.damage.add(place, e)).ok()
    }

    /// A record; if it cannot be read, that is noted, and that it is there.
    fn record<T>(
        &mut self,
        place: &str,
        way: String,
        record: &Bucket<'_>,
        read: impl FnOnce(&Bucket<'_>) -> Result<T, Corrupt>,
        into: &mut Namespace,
    ) -> Option<T> {
        let found = self.value(&format!("{place}/{way}"), read(record));
        match (&found, Origin::from(record.origin).doubt()) {
            (None, _) => drop(into.unreadable.insert(way)),
            (Some(_), Some(doubt)) => drop(into.doubtful.insert(way, doubt)),
            (Some(_), None) => {}
        }
        found
    }

    fn namespace(&mut self, bucket: &Bucket<'_>, place: &str, into: &mut Namespace) {
        for (name, record) in self.below(bucket, place, "images") {
            let found = self.record(place, format!("images/{name}"), &record, image, into);
            into.images.extend(found.map(|record| (name, record)));
        }
        for (id, record) in self.below(bucket, place, "containers") {
            let found = self.record(place, format!("containers/{id}"), &record, container, into);
            into.containers.extend(found.map(|record| (id, record)));
        }
        for (snapshotter, bucket) in self.below(bucket, place, "snapshots") {
            let mut all = BTreeMap::new();
            for (key, record) in self.buckets(&bucket, &format!("{place}/snapshots/{snapshotter}")) {
                let way = format!("snapshots/{snapshotter}/{key}");
                let children = self.names(&record, &format!("{place}/{way}"), "children").into_iter().collect();
                let found = self.record(place, way, &record, |record| snapshot(record, children), into);
                all.extend(found.map(|record| (key, record)));
            }
            into.snapshots.insert(snapshotter, all);
        }
        if let Some(content) = self.value(&format!("{place}/content"), bucket.bucket("content")).flatten() {
            self.content(&content, &format!("{place}/content"), into);
        }
        for (id, record) in self.below(bucket, place, "leases") {
            let lease = self.lease(&record, &format!("{place}/leases/{id}"));
            into.leases.insert(id, lease);
        }
        into.sandboxes.extend(self.names(bucket, place, "sandboxes"));
    }

    fn content(&mut self, bucket: &Bucket<'_>, place: &str, into: &mut Namespace) {
        for (digest, record) in self.below(bucket, place, "blob") {
            let found = blob(&record);
            into.blobs.extend(self.value(&format!("{place}/blob/{digest}"), found).map(|r| (digest, r)));
        }
        for (name, record) in self.below(bucket, place, "ingests") {
            let found = record::text(&record, "ref");
            into.ingests.extend(self.value(&format!("{place}/ingests/{name}"), found).map(|r| (name, r)));
        }
    }

    fn lease(&mut self, record: &Bucket<'_>, place: &str) -> Lease {
        let mut snapshots = Vec::new();
        for (snapshotter, keys) in self.below(record, place, "snapshots") {
            for entry in keys.iter() {
                match entry {
                    Ok((key, _)) => snapshots.push((snapshotter.clone(), lossy(key))),
                    Err(e) => self.damage.add(place, e),
                }
            }
        }
        let mut names = |key| self.names(record, place, key);
        Lease { snapshots, content: names("content"), ingests: names("ingests"), images: names("images") }
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn image(record: &Bucket<'_>) -> Result<ImageRecord, Corrupt> {
    let target = record.bucket("target")?.ok_or(Corrupt { at: 0, why: "an image record has no target" })?;
    Ok(ImageRecord {
        digest: record::text(&target, "digest")?,
        media_type: record::text(&target, "mediatype")?,
        size: target.value("size")?.map_or(Ok(0), record::varint)?,
    })
}

fn container(record: &Bucket<'_>) -> Result<ContainerRecord, Corrupt> {
    Ok(ContainerRecord {
        image: record::text(record, "image")?,
        snapshotter: record::text(record, "snapshotter")?,
        snapshot_key: record::text(record, "snapshotKey")?,
        sandbox: record::text(record, "sandboxid")?,
    })
}

fn snapshot(record: &Bucket<'_>, children: BTreeSet<String>) -> Result<SnapshotRecord, Corrupt> {
    Ok(SnapshotRecord { name: record::text(record, "name")?, parent: record::text(record, "parent")?, children })
}

fn blob(record: &Bucket<'_>) -> Result<BlobRecord, Corrupt> {
    let size = record.value("size")?.map_or(Ok(0), record::varint)?;
    Ok(BlobRecord { size, labels: record::texts(record, "labels")? })
}
