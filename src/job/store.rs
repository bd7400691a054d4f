//! One containerd's store, opened: what is on record of its containers, images and snapshots.

use crate::{
    containerd::{
        docker::{self, Docker},
        meta::{Container, Image, MetaDb, SnapshotRecord},
    },
    error::{Error, Result},
    host::Host,
    id::{ContainerRef, Namespace, SnapshotKey},
    snapshotter,
};

/// A host's directories and the records in them.
pub struct Store {
    /// Where the directories are.
    pub host: Host,
    meta: MetaDb,
}

impl Store {
    /// Reads the records of `host`.
    pub fn open(host: Host) -> Result<Self> {
        let meta = MetaDb::read(&host)?;
        Ok(Self { host, meta })
    }

    /// What is wrong with the records' database; what could be read of it, is used.
    pub fn damage(&self) -> Vec<Error> {
        self.meta.damage()
    }

    /// Calls `each` with every removed container whose record is still found.
    pub fn for_each_deleted(&self, each: impl FnMut(Container)) -> Result<()> {
        self.meta.for_each_deleted(each)
    }

    /// Calls `each` with every container record, in order of namespace and id; a record that cannot be read
    /// comes as an error and hides no other.
    pub fn for_each_container(&self, mut each: impl FnMut(Result<Container>)) -> Result<()> {
        self.meta.for_each_container(|record| match record {
            Ok(record) if docker::is_dockers(&record) => {
                let (record, error) = self.completed(record);
                each(Ok(record));
                error.into_iter().for_each(|e| each(Err(e)));
            }
            record => each(record),
        })
    }

    /// One container's record.
    pub fn container(&self, who: &ContainerRef) -> Result<Option<Container>> {
        Ok(self.meta.container(who)?.map(|record| self.completed(record).0))
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
        self.meta.extension(who, name)
    }

    /// The record of the image called exactly `name`.
    pub fn image(&self, namespace: &Namespace, name: &str) -> Result<Option<Image>> {
        self.meta.image(namespace, name)
    }

    /// The record of a snapshot.
    pub fn snapshot(&self, ns: &Namespace, snapshotter: &str, key: &SnapshotKey) -> Result<Option<SnapshotRecord>> {
        self.meta.snapshot(ns, snapshotter, key)
    }
}
