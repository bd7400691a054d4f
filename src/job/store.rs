//! One containerd's store, opened: what is on record of its containers, images and snapshots.
//!
//! The records are meta.db's. Where there is none that can be read, and for containers that live and are missing in it, they
//! are put together from what else is left ([`ruins`](super::ruins)).

use std::sync::OnceLock;

use super::{
    locate::with_causes,
    ruins::{Reach, Ruins, may_be_left},
};
use crate::{
    containerd::{
        docker::{self, Docker},
        images::Images,
        meta::{Container, Image, MetaDb, Origin, Share, SnapshotRecord},
        times::{Lease, Times},
    },
    digest::Digest,
    error::{Error, Result},
    host::Host,
    id::{ContainerRef, Namespace, SnapshotKey},
    snapshotter::{self, Databases, RwLayer},
};

/// A host's directories and the records in them.
pub struct Store {
    /// Where the directories are.
    pub host: Host,
    /// What its snapshotters have on record.
    pub databases: Databases,
    /// The database, or why there is none.
    meta: Result<MetaDb, String>,
    ruins: OnceLock<Ruins>,
}

impl Store {
    /// Reads the records of `host`; an error if there are none, and nothing is left to put any together from.
    pub fn open(host: Host) -> Result<Self> {
        let (meta, ruins) = match MetaDb::read(&host) {
            Ok(meta) => (Ok(meta), OnceLock::new()),
            Err(e) if may_be_left(&host, &e) => {
                let why = match &e {
                    Error::NotFound { .. } => format!("there is no {}", MetaDb::path(&host).display()),
                    e => with_causes(e),
                };
                let reason = format!("put together from what is left: {why}");
                let ruins = Ruins::search(&host, &reason, Reach::All, |_| false);
                if ruins.is_empty() {
                    return Err(e);
                }
                (Err(why), ruins.into())
            }
            Err(e) => return Err(e),
        };
        Ok(Self { host, databases: Databases::default(), meta, ruins })
    }

    /// The records of `host`, each read when it is its turn, where that can be; else as by [`open`](Self::open). What was read
    /// counts once [`is_sound`](Self::is_sound) says so.
    pub fn open_in_pieces(host: Host) -> Result<Self> {
        match MetaDb::in_pieces(&host) {
            Ok(Some(meta)) => {
                Ok(Self { host, databases: Databases::default(), meta: Ok(meta), ruins: OnceLock::new() })
            }
            Err(e @ Error::DaemonRunning { .. }) => Err(e),
            _ => Self::open(host),
        }
    }

    /// False if what was read does not count, so that the store is to be opened anew.
    pub fn is_sound(&self) -> bool {
        self.meta.as_ref().is_ok_and(MetaDb::is_sound) || self.meta.is_err()
    }

    /// What is left of containers that meta.db lacks.
    fn ruins(&self) -> &Ruins {
        let known = |who: &ContainerRef| matches!(&self.meta, Ok(meta) if matches!(meta.container(who), Ok(Some(_))));
        // A whole database knows what was removed; a damaged one may have lost what is still there.
        let (reach, why) = match self.damage().is_empty() {
            true => (Reach::Living, "it lives, and meta.db has no record of it that can be read"),
            false => (Reach::All, "meta.db is damaged, and has no record of it that can be read"),
        };
        self.ruins.get_or_init(|| Ruins::search(&self.host, why, reach, known))
    }

    /// What is wrong with the records' database; what could be read of it, is used.
    pub fn damage(&self) -> Vec<Error> {
        self.meta.as_ref().map(MetaDb::damage).unwrap_or_default()
    }

    /// Why there is no database, so that all records are put together from what is left.
    pub fn lack(&self) -> Option<&str> {
        self.meta.as_ref().err().map(String::as_str)
    }

    /// Calls `each` with every removed container whose record is still found.
    pub fn for_each_deleted(&self, each: impl FnMut(Container)) -> Result<()> {
        self.meta.as_ref().map_or(Ok(()), |meta| meta.for_each_deleted(each))
    }

    /// Calls `each` with every container record, in order of namespace and id; a record that cannot be read
    /// comes as an error and hides no other. Records that were put together come last.
    pub fn for_each_container(&self, mut each: impl FnMut(Result<Container>)) -> Result<()> {
        self.for_each_container_of(Share::ALL, &mut each)
    }

    /// The same for one share of the records.
    pub fn for_each_container_of(&self, share: Share, mut each: impl FnMut(Result<Container>)) -> Result<()> {
        let mut whole = |record: Result<Container>| match record {
            Ok(record) if docker::is_dockers(&record) => {
                let (record, error) = self.completed(record);
                each(Ok(record));
                error.into_iter().for_each(|e| each(Err(e)));
            }
            record => each(record),
        };
        let read = match &self.meta {
            Ok(meta) => meta.for_each_container_of(share, &mut whole),
            Err(why) => Err(Error::Unsupported {
                what: format!("the records are put together from what is left: {why}"),
                hint: String::new(),
            }),
        };
        // All shares meet the same error; one tells it.
        match read {
            Err(e) if self.ruins().is_empty() => return Err(e),
            Err(e) if share.is_last() => whole(Err(e)),
            _ => {}
        }
        if share.is_last() {
            self.ruins().all().for_each(|found| whole(Ok(found.container.clone())));
        }
        Ok(())
    }

    /// All records, in so many shares or fewer.
    pub fn shares(&self, shares: usize) -> Vec<Share> {
        let records = self.meta.as_ref().ok().and_then(|meta| meta.count_containers().ok());
        Share::of(records.unwrap_or(0), shares)
    }

    /// One container's record.
    pub fn container(&self, who: &ContainerRef) -> Result<Option<Container>> {
        let found = self.meta.as_ref().map_or(Ok(None), |meta| meta.container(who));
        if let Ok(Some(container)) = found {
            return Ok(Some(self.completed(container).0));
        }
        self.ruins().of(who).map_or(found, |found| Ok(Some(self.completed(found.container.clone()).0)))
    }

    /// What is not known of a container, each with its consequence; nothing for one that meta.db has.
    pub fn unknown(&self, container: &Container) -> Vec<String> {
        let found = matches!(container.origin, Origin::Salvaged(_)).then(|| self.ruins().of(&container.name)).flatten();
        found.map(|found| found.unknown.clone()).unwrap_or_default()
    }

    /// Where a container's files are, if no record and no mount leads there.
    pub fn remaining_files(&self, who: &ContainerRef) -> Option<RwLayer> {
        self.ruins().of(who)?.rw.clone()
    }

    /// What dockerd knows of a container that it made.
    pub fn docker(&self, container: &Container) -> Result<Option<Docker>> {
        docker::read(&self.host, container)
    }

    /// What Docker's records lack is told by dockerd itself, and by whose snapshot has the container's id.
    fn completed(&self, mut record: Container) -> (Container, Option<Error>) {
        if !docker::is_dockers(&record) {
            return (record, None);
        }
        let (docker, error) = self.docker(&record).map_or_else(|e| (None, Some(e)), |docker| (docker, None));
        if record.image.is_empty() {
            record.image = docker.as_ref().map(|docker| docker.image.clone()).unwrap_or_default();
        }
        if record.snapshotter.is_empty() && record.snapshot_key.0.is_empty() {
            let key = SnapshotKey(record.name.id.to_string());
            let has_it = |sn: &&str| matches!(self.snapshot(&record.name.namespace, sn, &key), Ok(Some(_)));
            let told = docker.as_ref().map(|docker| docker.driver.as_str());
            let found = told.into_iter().chain(snapshotter::names()).find(has_it).map(str::to_owned);
            match found {
                Some(sn) => (record.snapshotter, record.snapshot_key) = (sn, key),
                // A graph driver: its name says where the files are, and no snapshot is named.
                None => record.snapshotter = docker.map(|docker| docker.driver).unwrap_or_default(),
            }
        }
        (record, error)
    }

    /// What a client has added to a container's record under `name`: a protobuf Any, verbatim.
    pub fn extension(&self, who: &ContainerRef, name: &str) -> Result<Option<Vec<u8>>> {
        self.meta.as_ref().map_or(Ok(None), |meta| meta.extension(who, name))
    }

    /// When the record at `way` of meta.db was made and changed; `None` if there is none.
    pub fn times(&self, way: &[&str]) -> Result<Option<Times>> {
        self.meta.as_ref().map_or(Ok(None), |meta| meta.times(way))
    }

    /// The leases that keep a snapshot, and when they were made.
    pub fn leases_of(&self, ns: &Namespace, snapshotter: &str, key: &SnapshotKey) -> Result<Vec<Lease>> {
        self.meta.as_ref().map_or(Ok(Vec::new()), |meta| meta.leases_of(ns, snapshotter, key))
    }

    /// The record of the image called exactly `name`.
    pub fn image(&self, namespace: &Namespace, name: &str) -> Result<Option<Image>> {
        let found = self.meta.as_ref().map_or(Ok(None), |meta| meta.image(namespace, name));
        if let Ok(Some(image)) = found {
            return Ok(Some(image));
        }
        self.ruins().image(namespace, name).map_or(found, |image| Ok(Some(image.clone())))
    }

    /// The image whose layers have this chain id, by what the content store has of it; its name is empty where nothing there
    /// tells it. Where nothing is there, it is one of unknown type, to be made again from its snapshots.
    pub fn image_of_chain(&self, chain: &Digest) -> Image {
        let stored = Images::of(&self.host).with_chain(chain).cloned();
        let unknown =
            || Image { name: String::new(), digest: *chain, media_type: String::new(), size: 0, origin: Origin::Live };
        stored.unwrap_or_else(unknown)
    }

    /// The record of a snapshot.
    pub fn snapshot(&self, ns: &Namespace, snapshotter: &str, key: &SnapshotKey) -> Result<Option<SnapshotRecord>> {
        let found = self.meta.as_ref().map_or(Ok(None), |meta| meta.snapshot(ns, snapshotter, key));
        if let Ok(Some(record)) = found {
            return Ok(Some(record));
        }
        self.ruins().snapshot(ns, snapshotter, key).map_or(found, |record| Ok(Some(record)))
    }
}
