//! meta.db: what containerd knows of containers, images and snapshots, by namespace.
//!
//! ```text
//! v1/version                                    3 (1.6, 1.7) or 4 (2.x)
//! v1/<ns>/images/<name>/target/{digest,mediatype,size}
//! v1/<ns>/containers/<id>/{image,snapshotter,snapshotKey,spec,createdat,labels/…,runtime/{name,options},extensions/…}
//! v1/<ns>/snapshots/<snapshotter>/<key>/{name,parent}
//! ```
//! Source: containerd `core/metadata/buckets.go`; the code's keys, where its comment differs.

use std::{collections::BTreeMap, path::PathBuf};

use bytes::Bytes;
use jiff::Timestamp;

use super::schema;
use crate::{
    bolt::{self, Bucket, Item, Look, Piecemeal, Reading},
    corrupt::Corrupt,
    digest::Digest,
    error::{Error, In, Result},
    host::{Host, database},
    id::{ContainerRef, Namespace, SnapshotKey, SnapshotName},
    record,
};

/// Schema versions we know (`core/metadata/db.go`, `dbVersion`).
const KNOWN_VERSIONS: std::ops::RangeInclusive<i64> = 1..=4;

/// A meta.db that is read.
pub struct MetaDb {
    path: PathBuf,
    body: Body,
}

enum Body {
    /// In memory, whole.
    Whole(Bytes, Box<Reading>),
    /// Left in its file, of which each record is read when it is its turn.
    Pieces(Box<Piecemeal>),
}

/// A container's record.
#[derive(Debug, Clone)]
pub struct Container {
    /// Namespace and id.
    pub name: ContainerRef,
    /// The *name* of its image; may be empty.
    pub image: String,
    /// Which snapshotter has its files; may be empty.
    pub snapshotter: String,
    /// Its snapshot there.
    pub snapshot_key: SnapshotKey,
    /// The shim: `io.containerd.runc.v2`, …
    pub runtime: String,
    /// A protobuf Any, verbatim; empty when absent.
    pub runtime_options: Vec<u8>,
    /// A protobuf Any that holds the runtime spec's JSON, verbatim; empty when absent. Not copied from a database in memory.
    pub spec: Bytes,
    /// The record's labels.
    pub labels: BTreeMap<String, String>,
    /// When the record was made.
    pub created_at: Option<Timestamp>,
    /// How sure the record is.
    pub origin: Origin,
}

/// How sure a record is; with the reason, in words.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase", tag = "record", content = "why")]
pub enum Origin {
    /// The database has it, and nothing stood in the way.
    #[default]
    Live,
    /// An older state of it: what came later could not be read.
    Stale(String),
    /// It was put together from what is left.
    Salvaged(String),
    /// It was removed; its pages are not yet used again.
    Deleted(String),
}

/// An image's record.
#[derive(Debug, Clone)]
pub struct Image {
    /// The name, exactly.
    pub name: String,
    /// The index or manifest it stands for.
    pub digest: Digest,
    /// The target's media type.
    pub media_type: String,
    /// The target's size in bytes.
    pub size: u64,
    /// How sure it is. One that was not read from the database is `Live`: what it rests on is told with its container.
    pub origin: Origin,
}

impl Image {
    /// False if nothing is left but the layers' snapshots: then `digest` stands for nothing that ever was.
    pub fn is_known(&self) -> bool {
        !self.media_type.is_empty()
    }
}

/// A snapshot's record.
#[derive(Debug, Clone)]
pub struct SnapshotRecord {
    /// Its name in the snapshotter's own database: stored, never rebuilt.
    pub name: SnapshotName,
    /// Its parent's key in this namespace.
    pub parent: Option<SnapshotKey>,
    /// How sure it is; as an [`Image`]'s.
    pub origin: Origin,
}

/// A share of all records: a row of them.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// The number of its first record.
    first: usize,
    /// That of the first of the next share; the last one has all there is.
    next: Option<usize>,
}

impl Share {
    /// All there is.
    pub const ALL: Self = Self { first: 0, next: None };

    /// So many shares of `records` records, in order, none of them much larger than another.
    pub fn of(records: usize, shares: usize) -> Vec<Self> {
        let length = records.div_ceil(shares.max(1)).max(1);
        let firsts = || (0..records).step_by(length);
        let nexts = firsts().skip(1).map(Some).chain([None]);
        if records == 0 {
            vec![Self::ALL]
        } else {
            firsts().zip(nexts).map(|(first, next)| Self { first, next }).collect()
        }
    }

    /// True if no other comes behind it.
    pub fn is_last(self) -> bool {
        self.next.is_none()
    }

    fn is_before(self, n: usize) -> bool {
        self.next.is_some_and(|next| next <= n)
    }
}

impl MetaDb {
    /// Where containerd keeps it.
    pub fn path(host: &Host) -> PathBuf {
        host.root.join("io.containerd.metadata.v1.bolt/meta.db")
    }

    /// Reads the host's meta.db into memory.
    pub fn read(host: &Host) -> Result<Self> {
        let path = Self::path(host);
        let bytes = database::read(host, &path).map_err(|e| explain(host, e))?;
        Self::of(path, bytes)
    }

    /// The database whose bytes were read from `path`.
    pub fn of(path: PathBuf, bytes: impl Into<Bytes>) -> Result<Self> {
        let bytes = bytes.into();
        let reading = Reading::of(&bytes, &schema::META).within(&path)?;
        let meta = Self { path, body: Body::Whole(bytes, Box::new(reading)) };
        meta.is_known()?;
        Ok(meta)
    }

    /// The host's meta.db, of which each record is read when it is its turn; `None` if it does not lie at hand or is not sound.
    /// What was read counts once [`is_sound`](Self::is_sound) says so.
    pub fn in_pieces(host: &Host) -> Result<Option<Self>> {
        let path = Self::path(host);
        let pieces = database::in_pieces(host, &path).map_err(|e| explain(host, e))?;
        pieces.map(|pieces| Self::of_pieces(path, pieces)).transpose()
    }

    /// The database at `path` that is read in pieces.
    pub fn of_pieces(path: PathBuf, pieces: Piecemeal) -> Result<Self> {
        let meta = Self { path, body: Body::Pieces(Box::new(pieces)) };
        meta.is_known()?;
        Ok(meta)
    }

    /// False if what was read in pieces does not count: then the database is to be read whole.
    pub fn is_sound(&self) -> bool {
        match &self.body {
            Body::Whole(..) => true,
            Body::Pieces(pieces) => pieces.is_sound(),
        }
    }

    fn is_known(&self) -> Result<()> {
        let version = self.with(|v1| v1.value("version")?.map_or(Ok(1), record::varint));
        let version = if self.damage().is_empty() { version? } else { version.unwrap_or(1) };
        if !KNOWN_VERSIONS.contains(&version) {
            return Err(Error::Unsupported {
                what: format!(
                    "{} has schema version {version}; known are 1 to 4 (containerd 1.0 to 2.x)",
                    self.path.display()
                ),
                hint: "it was written by a newer containerd than this dewar knows: look for a newer dewar".into(),
            });
        }
        Ok(())
    }

    /// Runs `read` on the bucket `v1`.
    pub(super) fn with<T>(&self, read: impl FnOnce(Bucket<'_>) -> Result<T, Corrupt>) -> Result<T> {
        let open = || {
            let db = match &self.body {
                Body::Whole(bytes, reading) => reading.db(bytes),
                Body::Pieces(pieces) => pieces.db(),
            };
            let v1 =
                db.root().bucket("v1")?.ok_or(Corrupt { at: 0, why: "no bucket v1: not a containerd database" })?;
            read(v1)
        };
        open().inspect_err(|_| self.give_up()).within(&self.path)
    }

    /// What is wrong with the part of the file that the newest commit needs: the first places, and how many more. What could
    /// be read of it, is.
    pub fn damage(&self) -> Vec<Error> {
        match &self.body {
            Body::Whole(_, reading) => database::damage(&self.path, &reading.damage),
            Body::Pieces(_) => Vec::new(),
        }
    }

    fn give_up(&self) {
        if let Body::Pieces(pieces) = &self.body {
            pieces.give_up();
        }
    }

    /// Calls `each` with every record of a removed container whose pages are not yet used again. Which of several states of
    /// it was the last cannot be told for sure; the newest by its own time is taken.
    pub fn for_each_deleted(&self, mut each: impl FnMut(Container)) -> Result<()> {
        let Body::Whole(bytes, reading) = &self.body else {
            return Err(Error::malformed(&self.path, "is read in pieces: what was removed is in none of them"));
        };
        let found = bolt::removed(bytes, &schema::META, &schema::CONTAINER, reading);
        let db = reading.db(bytes);
        for (place, page) in found {
            let [_, namespace, _, id] = place.as_slice() else { continue };
            let why = "it was removed; its pages are not used again yet";
            let bucket = db.page_as_bucket(page).with_origin(bolt::Origin::Deleted(bolt::Reason { page, why }));
            let Ok(record) = container(namespace, id, &bucket, |spec| bytes.slice_ref(spec)) else { continue };
            if self.container(&record.name).is_ok_and(|live| live.is_none()) {
                each(record);
            }
        }
        Ok(())
    }

    /// Calls `each` with every container record, in order of namespace and id; a record that cannot be read
    /// comes as an error and hides no other.
    pub fn for_each_container(&self, mut each: impl FnMut(Result<Container>)) -> Result<()> {
        self.for_each_container_of(Share::ALL, &mut each)
    }

    /// The same for one share of the records.
    pub fn for_each_container_of(&self, share: Share, mut each: impl FnMut(Result<Container>)) -> Result<()> {
        self.with(|v1| {
            let all = containers(v1).enumerate().skip(share.first).take_while(|(n, _)| !share.is_before(*n));
            let all = all.map(|(_, found)| found);
            match &self.body {
                Body::Whole(bytes, _) => {
                    // Counted by itself: the threads that have a share each do not wait for one another's count.
                    let file = Bytes::from_owner(bytes.clone());
                    all.for_each(|found| {
                        let slice = |spec: &[u8]| file.slice_ref(spec);
                        let record = found.and_then(|(namespace, id, record)| container(namespace, id, &record, slice));
                        each(record.within(&self.path));
                    });
                }
                Body::Pieces(pieces) => {
                    let mut look = Look::default();
                    all.take_while(|_| !pieces.has_failed()).for_each(|found| {
                        let record = found.and_then(|(namespace, id, record)| {
                            let show = |record: &Bucket<'_>| container(namespace, id, record, Bytes::copy_from_slice);
                            pieces.record(&record, &mut look, show)
                        });
                        each(record.inspect_err(|_| self.give_up()).within(&self.path));
                    });
                    pieces.done(look);
                }
            }
            Ok(())
        })
    }

    /// How many records there are to be shared out, those that cannot be read among them.
    pub fn count_containers(&self) -> Result<usize> {
        self.with(|v1| Ok(containers(v1).count()))
    }

    /// One container's record.
    pub fn container(&self, who: &ContainerRef) -> Result<Option<Container>> {
        let (namespace, id) = (who.namespace.as_str(), who.id.as_str());
        self.with(|v1| match path(v1, &[namespace, "containers", id])? {
            Some(record) => container(namespace.as_bytes(), id.as_bytes(), &record, |spec| self.slice(spec)).map(Some),
            None => Ok(None),
        })
    }

    /// Bytes of the database; not copied if it is in memory.
    fn slice(&self, part: &[u8]) -> Bytes {
        match &self.body {
            Body::Whole(bytes, _) => bytes.slice_ref(part),
            Body::Pieces(_) => Bytes::copy_from_slice(part),
        }
    }

    /// What a client has added to a container's record under `name`: a protobuf Any, verbatim.
    pub fn extension(&self, who: &ContainerRef, name: &str) -> Result<Option<Vec<u8>>> {
        let (namespace, id) = (who.namespace.as_str(), who.id.as_str());
        self.with(|v1| match path(v1, &[namespace, "containers", id, "extensions"])? {
            Some(extensions) => Ok(extensions.value(name)?.map(<[u8]>::to_vec)),
            None => Ok(None),
        })
    }

    /// The record of the image called exactly `name`.
    pub fn image(&self, namespace: &Namespace, name: &str) -> Result<Option<Image>> {
        self.with(|v1| match path(v1, &[namespace.as_str(), "images", name])? {
            Some(record) => image(name, &record).map(Some),
            None => Ok(None),
        })
    }

    /// The record of a snapshot.
    pub fn snapshot(&self, ns: &Namespace, snapshotter: &str, key: &SnapshotKey) -> Result<Option<SnapshotRecord>> {
        self.with(|v1| {
            let Some(record) = path(v1, &[ns.as_str(), "snapshots", snapshotter, &key.0])? else { return Ok(None) };
            let parent = Some(record::text(&record, "parent")?).filter(|p| !p.is_empty()).map(SnapshotKey);
            let (name, origin) = (SnapshotName(record::text(&record, "name")?), record.origin.into());
            Ok(Some(SnapshotRecord { name, parent, origin }))
        })
    }
}

/// A missing or unreadable database is the first thing a user meets: say where we looked and what to try.
pub(super) fn explain(host: &Host, error: Error) -> Error {
    if error.is_missing_file() {
        return Error::NotFound {
            what: format!("a containerd store in {} (no io.containerd.metadata.v1.bolt/meta.db)", host.root.display()),
            hint: "name its directory with --root, or the other host's mount point with --sysroot".into(),
        };
    }
    if error.is_permission() {
        return Error::Unsupported {
            what: format!("{} may not be read by this user", MetaDb::path(host).display()),
            hint: "containerd's stores belong to root: run as root (sudo dewar …)".into(),
        };
    }
    error
}

pub(super) fn path<'d>(bucket: Bucket<'d>, keys: &[&str]) -> Result<Option<Bucket<'d>>, Corrupt> {
    keys.iter().try_fold(Some(bucket), |at, key| at.map_or(Ok(None), |bucket| bucket.bucket(key)))
}

/// A container's namespace, its id, and the bucket of its record.
type Found<'d> = (&'d [u8], &'d [u8], Bucket<'d>);

/// The records of all namespaces, and what cannot be read where one may have been.
fn containers<'d>(v1: Bucket<'d>) -> impl Iterator<Item = Result<Found<'d>, Corrupt>> {
    v1.buckets().flat_map(|namespace| {
        let list = namespace.and_then(|(name, bucket)| Ok((name, bucket.bucket("containers")?)));
        let (error, list) = match list {
            Ok((name, list)) => (None, list.map(|list| (name, list))),
            Err(e) => (Some(Err(e)), None),
        };
        let found = list
            .into_iter()
            .flat_map(|(name, list)| list.buckets().map(move |entry| entry.map(|(id, record)| (name, id, record))));
        error.into_iter().chain(found)
    })
}

/// The record in a bucket; `slice` makes the spec's bytes its own.
fn container(
    namespace: &[u8],
    id: &[u8],
    record: &Bucket<'_>,
    slice: impl FnOnce(&[u8]) -> Bytes,
) -> Result<Container, Corrupt> {
    let [created_at, image, labels, runtime, snapshot_key, snapshotter, spec] =
        record.each_of(["createdat", "image", "labels", "runtime", "snapshotKey", "snapshotter", "spec"])?;
    let (runtime, created_at) = (runtime.and_then(Item::bucket), created_at.and_then(Item::value));
    // No container is without both: then nothing of it is left but its name.
    if runtime.is_none() && created_at.is_none() {
        return Err(Corrupt { at: 0, why: "nothing of a container's record can be read" });
    }
    let [name, options] = runtime.map_or(Ok([None; 2]), |runtime| runtime.each_of(["name", "options"]))?;
    Ok(Container {
        name: ContainerRef { namespace: identifier(namespace)?, id: identifier(id)? },
        image: record::as_text(image)?,
        snapshotter: record::as_text(snapshotter)?,
        snapshot_key: SnapshotKey(record::as_text(snapshot_key)?),
        runtime: record::as_text(name)?,
        runtime_options: options.and_then(Item::value).unwrap_or_default().to_vec(),
        spec: slice(spec.and_then(Item::value).unwrap_or_default()),
        labels: record::as_texts(labels)?,
        created_at: created_at.and_then(|bytes| record::time(bytes).ok()),
        origin: record.origin.into(),
    })
}

impl Origin {
    /// Why the record is not the newest the database had; `None` if it is.
    pub fn doubt(&self) -> Option<String> {
        match self {
            Self::Live => None,
            Self::Stale(why) => Some(format!("an older state ({why})")),
            Self::Salvaged(why) => Some(format!("salvaged ({why})")),
            Self::Deleted(why) => Some(format!("deleted ({why})")),
        }
    }
}

impl From<bolt::Origin> for Origin {
    fn from(origin: bolt::Origin) -> Self {
        match origin {
            bolt::Origin::Live => Self::Live,
            bolt::Origin::Stale(reason) => Self::Stale(reason.to_string()),
            bolt::Origin::Salvaged(reason) => Self::Salvaged(reason.to_string()),
            bolt::Origin::Deleted(reason) => Self::Deleted(reason.to_string()),
        }
    }
}

fn identifier<T: std::str::FromStr>(bytes: &[u8]) -> Result<T, Corrupt> {
    let text = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
    text.ok_or(Corrupt { at: 0, why: "a record's name is no identifier" })
}

fn image(name: &str, record: &Bucket<'_>) -> Result<Image, Corrupt> {
    let target = record.bucket("target")?.ok_or(Corrupt { at: 0, why: "an image record has no target" })?;
    let digest = record::text(&target, "digest")?.parse();
    let size = target.value("size")?.map_or(Ok(0), record::varint)?;
    Ok(Image {
        name: name.to_owned(),
        digest: digest.map_err(|_| Corrupt { at: 0, why: "an image's digest is not sha256:<64 hex>" })?,
        media_type: record::text(&target, "mediatype")?,
        size: u64::try_from(size).map_err(|_| Corrupt { at: 0, why: "an image's size is negative" })?,
        origin: record.origin.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_shares_of_all_records_have_each_of_them_once_and_in_order() {
        for (records, shares) in [(0, 2), (1, 2), (2, 2), (3, 2), (7, 3), (64, 64), (5, 8), (100, 1), (9, 0)] {
            let all = Share::of(records, shares);
            assert!(!all.is_empty() && all.len() <= shares.max(1), "{records} in {shares}");
            let has =
                |share: &Share| (0..records).filter(|n| *n >= share.first && !share.is_before(*n)).collect::<Vec<_>>();
            assert_eq!(all.iter().flat_map(has).collect::<Vec<_>>(), (0..records).collect::<Vec<_>>());
            assert!(all.iter().rev().skip(1).all(|share| !share.is_last()) && all[all.len() - 1].is_last());
        }
    }

    #[test]
    fn what_is_found_in_one_walk_is_what_is_found_key_by_key() {
        const KEYS: [&str; 9] = ["a", "b", "createdat", "image", "labels", "n", "o", "spec", "z"];
        let told = |item: Option<Item<'_>>| {
            item.map(|item| match item {
                Item::Value(value) => value.to_vec(),
                Item::Bucket(bucket) => bucket.iter().flat_map(|entry| entry.unwrap().0.to_vec()).collect(),
            })
        };
        for release in ["1.6", "1.7", "2.1"] {
            let path = format!("{}/fixtures/bolt/{release}.meta.db.gz", env!("CARGO_MANIFEST_DIR"));
            let mut bytes = Vec::new();
            flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap()).read_to_end(&mut bytes).unwrap();
            let meta = MetaDb::of(path.into(), bytes).unwrap();
            let mut records = 0;
            meta.with(|v1| {
                for (_, _, record) in containers(v1).map(Result::unwrap) {
                    let found = record.each_of(KEYS)?.map(told);
                    assert!(found[2].is_some() && found[7].is_some() && found[0].is_none() && found[8].is_none());
                    assert_eq!(found, KEYS.map(|key| told(record.get(key.as_bytes()).unwrap())), "{release}");
                    records += 1;
                }
                // Out of order.
                assert_eq!(
                    v1.each_of(["version", "k8s.io"])?.map(told)[0],
                    v1.get(b"version")?.and_then(|v| told(Some(v)))
                );
                Ok(())
            })
            .unwrap();
            assert!(records > 0, "{release}");
        }
    }
}
