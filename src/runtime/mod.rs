//! Low-level runtimes: what each leaves on disk about a container it started, as a [`Task`].

use std::path::{Path, PathBuf};

use crate::{
    error::Result,
    id::{ContainerRef, TaskPid},
};

pub mod runc;

/// Which cgroup interface holds the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupVersion {
    /// Version 1: the freezer is a hierarchy of its own (`freezer.state`).
    V1,
    /// Version 2: `cgroup.freeze`.
    V2,
}

/// A container's process tree as the runtime recorded it. It may have ended since: see [`crate::host::Host::is_alive`].
#[derive(Debug, Clone)]
pub struct Task {
    /// The container's first process.
    pub init: TaskPid,
    /// The directory whose freezer holds the whole container (v1: in the freezer hierarchy).
    pub cgroup: PathBuf,
    /// Which interface that directory has.
    pub cgroup_version: CgroupVersion,
    /// The OCI runtime bundle (`config.json`, `rootfs`).
    pub runtime_bundle: PathBuf,
    /// The root file system as the host sees it; CRIU's option `root`.
    pub rootfs: PathBuf,
    /// What descriptors 0, 1, 2 pointed to at the start (`pipe:[123]`); becomes `descriptors.json`.
    pub external_descriptors: Vec<String>,
}

/// Reads what one runtime left of a container below its state directory.
type Read = fn(&Path, &ContainerRef) -> Result<Option<Task>>;

/// The runtimes whose state we can read. Each is told by the file it writes, since the program that containerd
/// was told to start may be a wrapper of any name.
pub const TABLE: &[(&str, Read)] = &[("runc", runc::read)];

/// The task that some runtime recorded below `root`; `None` when none did.
pub fn read(root: &Path, who: &ContainerRef) -> Result<Option<Task>> {
    for (_, read) in TABLE {
        if let Some(task) = read(root, who)? {
            return Ok(Some(task));
        }
    }
    Ok(None)
}
