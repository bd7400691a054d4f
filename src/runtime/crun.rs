//! crun: `<root>/<ns>/<id>/status`, JSON (crun `src/libcrun/status.c`, `libcrun_write_container_status`).
//!
//! ```text
//! {"pid": 157, "process-start-time": 1513068, "cgroup-path": "/default/redis", "scope": "", "rootfs": "rootfs",
//!  "bundle": "/run/containerd/io.containerd.runtime.v2.task/default/redis", "external_descriptors": "[\"pipe:[1]\", …]", …}
//! ```
//! Below the same root as runc's, since the shim names it. Before 0.14 there were neither start time nor descriptors.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{CgroupVersion, Task, cgroup};
use crate::{
    error::{Error, Result},
    host::{Host, document},
    id::{ContainerRef, TaskPid},
};

/// The parts of `status` we read.
#[derive(Deserialize)]
struct Status {
    pid: i32,
    #[serde(rename = "process-start-time", default)]
    started: u64,
    #[serde(rename = "cgroup-path", default)]
    cgroup_path: String,
    /// As the bundle's `config.json` has it: mostly relative to the bundle.
    rootfs: PathBuf,
    bundle: PathBuf,
    /// A JSON document in a string.
    #[serde(default)]
    external_descriptors: Option<String>,
}

/// The task that crun recorded in its state directory `root`; `None` when it recorded none.
pub fn read(host: &Host, root: &Path, who: &ContainerRef) -> Result<Option<Task>> {
    let names = [who.namespace.as_str(), who.id.as_str(), "status"];
    let Some(bytes) = document::read(root, &names)? else { return Ok(None) };
    let path = || names.iter().fold(root.to_owned(), |path, name| path.join(name));
    let status: Status = serde_json::from_slice(&bytes).map_err(|e| Error::malformed(path(), e))?;
    task(host, status).map_err(|why| Error::malformed(path(), why)).map(Some)
}

fn task(host: &Host, status: Status) -> Result<Task, &'static str> {
    let Status { pid, started, cgroup_path, rootfs, bundle, external_descriptors } = status;
    if pid <= 0 || !bundle.is_absolute() {
        return Err("names no process, or no bundle");
    }
    // A record without a start time is an old crun's: then what runs under the pid now is taken at its word.
    let now = || host.proc_stat(pid).ok().flatten().map_or(0, |stat| stat.started);
    let init = TaskPid { pid, started: if started == 0 { now() } else { started } };
    let is_alive = host.is_alive(init).unwrap_or(true);
    let recorded = Some(cgroup_path).filter(|path| !path.is_empty());
    let place = recorded.and_then(|path| cgroup::called(host, path.as_ref()));
    let place = place.or_else(|| cgroup::of(host, pid).ok().flatten().filter(|_| is_alive));
    let (cgroup, cgroup_version) = match place {
        Some(place) if place.is_root() => {
            return Err("names the root of all cgroups, which holds more than a container");
        }
        Some(place) => (place.dir, place.version),
        None if is_alive => return Err("names no cgroup with a freezer"),
        // It went with its last process, and nobody will ask for it.
        None => (PathBuf::new(), CgroupVersion::V2),
    };
    Ok(Task {
        runtime: "",
        init,
        cgroup,
        cgroup_version,
        rootfs: bundle.join(rootfs),
        runtime_bundle: bundle,
        external_descriptors: external_descriptors.and_then(|s| serde_json::from_str(&s).ok()).unwrap_or_default(),
        undumpable: None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What crun 1.28 wrote under containerd's shim.
    const STATUS: &str = r#"{"pid": 157, "process-start-time": 1513068, "cgroup-path": "\/default\/redis", "scope": "",
        "rootfs": "rootfs", "systemd-cgroup": false, "bundle": "\/run\/b\/default\/redis", "created": "2026-11-25T14:21:57.057347Z",
        "owner": "root", "detached": true, "external_descriptors": "[\n  \"pipe:[1]\",\n  \"\/dev\/null\"\n]"}"#;

    fn host(dir: &Path) -> Host {
        Host { proc: dir.join("proc"), cgroup: dir.join("cgroup"), ..Host::default() }
    }

    #[test]
    fn what_crun_recorded_is_a_task_on_either_cgroup_version() {
        let who = ContainerRef { namespace: "default".parse().unwrap(), id: "redis".parse().unwrap() };
        for (version, control) in [(CgroupVersion::V1, "freezer"), (CgroupVersion::V2, "")] {
            let temp = tempfile::tempdir().unwrap();
            let host = host(temp.path());
            let cgroup = host.cgroup.join(control).join("default/redis");
            fs::create_dir_all(&cgroup).unwrap();
            fs::write(cgroup.join("cgroup.procs"), "").unwrap();
            fs::write(host.cgroup.join("cgroup.controllers"), "").unwrap();
            let state = temp.path().join("runc/default/redis");
            fs::create_dir_all(&state).unwrap();
            assert!(read(&host, &temp.path().join("runc"), &who).unwrap().is_none());
            fs::write(state.join("status"), STATUS).unwrap();
            let task = read(&host, &temp.path().join("runc"), &who).unwrap().unwrap();
            assert_eq!(task.init, TaskPid { pid: 157, started: 1_513_068 });
            assert_eq!((task.cgroup, task.cgroup_version), (cgroup, version));
            assert_eq!(task.rootfs, Path::new("/run/b/default/redis/rootfs"));
            assert_eq!(task.external_descriptors, ["pipe:[1]", "/dev/null"]);
        }
    }

    #[test]
    fn a_record_that_would_freeze_the_whole_machine_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let host = host(temp.path());
        fs::create_dir_all(&host.cgroup).unwrap();
        fs::write(host.cgroup.join("cgroup.procs"), "").unwrap();
        fs::write(host.cgroup.join("cgroup.controllers"), "").unwrap();
        for (path, refused) in [("/", true), ("///", true), ("/../..", false)] {
            let mut status: Status = serde_json::from_str(STATUS).unwrap();
            status.cgroup_path = path.into();
            match task(&host, status) {
                Err(_) => assert!(refused, "{path}"),
                Ok(task) => assert!(!refused && task.cgroup.as_os_str().is_empty(), "{path}"),
            }
        }
    }
}
