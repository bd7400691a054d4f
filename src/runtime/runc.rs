//! runc: `<root>/<ns>/<id>/state.json` (`libcontainer/container_linux.go`, `State`).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{CgroupVersion, Task};
use crate::{
    error::{Error, Result},
    host::{Host, document},
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

/// What runc's never has, and youki's file of the same name always does.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Foreign {
    #[serde(rename = "ociVersion")]
    _oci_version: String,
    #[serde(rename = "bundle")]
    _bundle: PathBuf,
}

/// The task that runc recorded in its state directory `root`; `None` when it recorded none.
pub fn read(_: &Host, root: &Path, who: &ContainerRef) -> Result<Option<Task>> {
    let names = [who.namespace.as_str(), who.id.as_str(), "state.json"];
    let Some(bytes) = document::read(root, &names)? else { return Ok(None) };
    let path = || names.iter().fold(root.to_owned(), |path, name| path.join(name));
    let state: State = match serde_json::from_slice(&bytes) {
        Ok(state) => state,
        Err(_) if serde_json::from_slice::<Foreign>(&bytes).is_ok() => return Ok(None),
        Err(e) => return Err(Error::malformed(path(), e)),
    };
    task(state).map_err(|why| Error::malformed(path(), why)).map(Some)
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
        runtime: "",
        init: TaskPid { pid: state.init_process_pid, started: state.init_process_start },
        cgroup: cgroup.clone(),
        cgroup_version,
        runtime_bundle: bundle.ok_or("names no bundle")?,
        rootfs: state.config.rootfs,
        external_descriptors: state.external_descriptors.unwrap_or_default(),
        undumpable: None,
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
