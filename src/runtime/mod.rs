//! Low-level runtimes: what each leaves on disk about a container it started, as a [`Task`].

use std::path::PathBuf;

use crate::id::TaskPid;

pub mod runc;

/// Which cgroup interface holds the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
