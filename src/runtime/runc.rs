//! runc: `<root>/<ns>/<id>/state.json` (`libcontainer/container_linux.go`, `State`).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{CgroupVersion, Task};
use crate::{
    error::{At, Error, Result},
    id::{ContainerRef, TaskPid},
};

/// The parts of `state.json` we read.
#[derive(Deserialize)]
struct State {
    init_process_pid: i32,
    init_process_start: u64,
    config: Config,
    #[serde(default)]
    cgroup_paths: BTreeMap<String, PathBuf>,
    #[serde(default)]
    external_descriptors: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: PathBuf,
    #[serde(default)]
    labels: Option<Vec<String>>,
}

/// The task that runc recorded in its state directory `root`; `None` when it recorded none.
pub fn read(root: &Path, who: &ContainerRef) -> Result<Option<Task>> {
    let path = root.join(who.namespace.as_str()).join(who.id.as_str()).join("state.json");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).at("read", path),
    };
    let state: State = serde_json::from_slice(&bytes).map_err(|e| Error::malformed(&path, e))?;
    task(state).map_err(|why| Error::malformed(path, why)).map(Some)
}

fn task(state: State) -> Result<Task, &'static str> {
    // Version 2 has one path under the empty name, version 1 one for each controller.
    let (cgroup, cgroup_version) = match (state.cgroup_paths.get("freezer"), state.cgroup_paths.get("")) {
        (Some(freezer), _) => (freezer, CgroupVersion::V1),
        (None, Some(unified)) => (unified, CgroupVersion::V2),
        (None, None) => return Err("names no cgroup with a freezer"),
    };
    let label = |l: &String| l.strip_prefix("bundle=").map(PathBuf::from);
    let labelled = state.config.labels.iter().flatten().find_map(label);
    let bundle = labelled.or_else(|| state.config.rootfs.parent().map(Path::to_owned));
    Ok(Task {
        init: TaskPid { pid: state.init_process_pid, started: state.init_process_start },
        cgroup: cgroup.clone(),
        cgroup_version,
        runtime_bundle: bundle.ok_or("names no bundle")?,
        rootfs: state.config.rootfs,
        external_descriptors: state.external_descriptors.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Task, &'static str> {
        task(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn the_freezer_decides_the_cgroup_version() {
        let head =
            r#"{"init_process_pid":9,"init_process_start":8,"config":{"rootfs":"/b/rootfs","labels":["bundle=/b"]}"#;
        let v1 = parse(&format!(r#"{head},"cgroup_paths":{{"cpu":"/c/cpu/x","freezer":"/c/freezer/x"}}}}"#)).unwrap();
        assert_eq!((v1.cgroup, v1.cgroup_version), ("/c/freezer/x".into(), CgroupVersion::V1));
        let v2 = parse(&format!(r#"{head},"cgroup_paths":{{"":"/c/x"}}}}"#)).unwrap();
        assert_eq!((v2.cgroup, v2.cgroup_version), ("/c/x".into(), CgroupVersion::V2));
        assert_eq!(v2.runtime_bundle, PathBuf::from("/b"));
        assert!(parse(&format!("{head}}}")).is_err());
    }
}
