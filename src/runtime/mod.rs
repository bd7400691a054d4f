//! Low-level runtimes: what each leaves on disk about a container it started, as a [`Task`].

use std::path::{Path, PathBuf};

use crate::{
    error::Result,
    host::Host,
    id::{ContainerRef, TaskPid},
};

pub mod cgroup;
pub mod crun;
pub mod process;
pub mod runc;
pub mod youki;

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
    /// Whose record told of it: a name in [`TABLE`]; empty: nobody's, see [`process`].
    pub runtime: &'static str,
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
    /// Why its memory cannot be dumped as a container's, although it can be held still; `None` for ordinary processes.
    pub undumpable: Option<String>,
}

#[cfg(test)]
impl Task {
    /// One of cgroup v1 of which nothing is known but its first process.
    pub fn stand_in(pid: i32, cgroup: &Path) -> Self {
        Self {
            runtime: "",
            init: TaskPid { pid, started: 0 },
            cgroup: cgroup.to_owned(),
            cgroup_version: CgroupVersion::V1,
            runtime_bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            external_descriptors: Vec::new(),
            undumpable: None,
        }
    }
}

/// Reads what one runtime left of a container below its state directory.
type Read = fn(&Host, &Path, &ContainerRef) -> Result<Option<Task>>;

/// The runtimes whose state we can read. Each is told by the file it writes, since the program that containerd
/// was told to start may be a wrapper of any name.
pub const TABLE: &[(&str, Read)] = &[("runc", runc::read), ("crun", crun::read), ("youki", youki::read)];

/// True of a runtime that cannot restore under containerd's shim, which calls `restore -no-subreaper` (go-runc): crun ends
/// with a usage error (1.28, seen), youki has no such command. What they ran, runc restores.
pub fn needs_runc_to_restore(runtime: &str) -> bool {
    matches!(runtime, "crun" | "youki")
}

/// What has taken the place of a shim that newer containerds lack, and that could not restore by `ctr` while it was there
/// (1.6: "invalid task checkpoint option for io.containerd.runtime.v1.linux").
pub fn successor(shim: &str) -> Option<&'static str> {
    (shim == "io.containerd.runtime.v1.linux").then_some("io.containerd.runc.v2")
}

/// The task that some runtime recorded below `root`; `None` when none did.
pub fn read(host: &Host, root: &Path, who: &ContainerRef) -> Result<Option<Task>> {
    for (runtime, read) in TABLE {
        if let Some(task) = read(host, root, who)? {
            return Ok(Some(Task { runtime, ..task }));
        }
    }
    Ok(None)
}
