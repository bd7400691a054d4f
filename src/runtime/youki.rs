//! youki: `<root>/<ns>/<id>/state.json`, of another form than runc's, and `youki_config.json` beside it (youki
//! `crates/libcontainer/src/{container/state.rs,config.rs}`).
//!
//! ```text
//! state.json          {"ociVersion": "v1.0.2", "id": "web", "status": "running", "pid": 9, "bundle": "/…/default/web", "useSystemd": false, …}
//! youki_config.json   {"hooks": null, "cgroup_path": "/default/web"}
//! ```
//! It records neither when the process started nor what its descriptors were, so procfs is asked; for the cgroup, too.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Task, process};
use crate::{
    error::{Error, Result},
    host::{Host, document},
    id::ContainerRef,
};

/// The parts of `state.json` we read.
#[derive(Deserialize)]
struct State {
    #[serde(rename = "ociVersion")]
    _oci_version: String,
    #[serde(default)]
    pid: Option<i32>,
    bundle: PathBuf,
}

/// The task that youki recorded in its state directory `root`; `None` when it recorded none, or it has ended.
pub fn read(host: &Host, root: &Path, who: &ContainerRef) -> Result<Option<Task>> {
    let names = [who.namespace.as_str(), who.id.as_str(), "state.json"];
    let Some(bytes) = document::read(root, &names)? else { return Ok(None) };
    let path = || names.iter().fold(root.to_owned(), |path, name| path.join(name));
    let state: State = serde_json::from_slice(&bytes).map_err(|e| Error::malformed(path(), e))?;
    let Some(pid) = state.pid.filter(|&pid| pid > 0) else { return Ok(None) };
    process::read(host, who, pid, &state.bundle)
}
