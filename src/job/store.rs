//! One containerd's store, opened: what is on record of its containers, images and snapshots.

use crate::{
    containerd::meta::{Container, Image, MetaDb, SnapshotRecord},
    error::{Error, Result},
    host::Host,
    id::{ContainerRef, Namespace, SnapshotKey},
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
    pub fn for_each_container(&self, each: impl FnMut(Result<Container>)) -> Result<()> {
        self.meta.for_each_container(each)
    }

    /// One container's record.
    pub fn container(&self, who: &ContainerRef) -> Result<Option<Container>> {
        self.meta.container(who)
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
