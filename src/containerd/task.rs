//! The runtime v2 state directory: one folder a task, `<state>/io.containerd.runtime.v2.task/<ns>/<id>/`.
//!
//! It is there while the task is, and after the daemon died. It never says whether the process still lives.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs,
    io::{self, Read},
    path::PathBuf,
};

use serde::Deserialize;

use crate::{
    error::{At, Error, Result},
    host::{Host, database},
    id::{ContainerRef, Namespace},
};

/// What the state directory says of a task.
#[derive(Debug)]
pub struct TaskRecord {
    /// The directory: an OCI runtime bundle (`config.json`, `rootfs`).
    pub runtime_bundle: PathBuf,
    /// `init.pid`; proves nothing (a pid may be reused), but tells a task that was created from one that was not.
    pub init_pid: Option<i32>,
    /// The runtime's state directory when the shim was told of one (`options.json`, `root`).
    pub runtime_root: Option<PathBuf>,
    /// The runtime's program when the shim was told of one (`options.json`, `binary_name`).
    pub runtime_binary: Option<String>,
    /// Why a file in it could not be used. Other records say the same, so nothing is lost yet.
    pub damage: Option<Error>,
}

/// The shim's `options.json` (`runc/container.go`, `WriteOptions`).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Options {
    root: String,
    binary_name: String,
}

/// The task's record, or `None` when no task was made (or the state directory went with a reboot).
pub fn read(host: &Host, who: &ContainerRef) -> Result<Option<TaskRecord>> {
    let tasks = host.state.join("io.containerd.runtime.v2.task");
    let dir = host.inside(&tasks.join(who.namespace.as_str()).join(who.id.as_str()))?;
    match fs::symlink_metadata(&dir) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err(Error::malformed(dir, "is no directory")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).at("look at", dir),
    }
    let mut damage = None;
    let options = options(&dir.join("options.json")).unwrap_or_else(|e| {
        damage = Some(e);
        Options::default()
    });
    let init_pid = small_file(&dir.join("init.pid")).unwrap_or_else(|e| {
        damage.get_or_insert(e);
        None
    });
    let init_pid = init_pid.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.trim().parse().ok());
    let filled = |text: String| Some(text).filter(|t| !t.is_empty());
    Ok(Some(TaskRecord {
        runtime_bundle: dir,
        init_pid,
        runtime_root: filled(options.root).map(PathBuf::from),
        runtime_binary: filled(options.binary_name),
        damage,
    }))
}

/// The names of all tasks of a namespace; `None` if that cannot be told, so each must be asked for.
pub fn names(host: &Host, namespace: &Namespace) -> Option<HashSet<OsString>> {
    let dir = host.state.join("io.containerd.runtime.v2.task").join(namespace.as_str());
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.ok().map(|entry| entry.file_name())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Some(HashSet::new()),
        Err(_) => None,
    }
}

fn options(path: &PathBuf) -> Result<Options> {
    let Some(bytes) = small_file(path)? else { return Ok(Options::default()) };
    serde_json::from_slice(&bytes).map_err(|e| Error::malformed(path, e))
}

/// A regular file of the bundle; `log` in there is a FIFO, so nothing is opened unseen.
fn small_file(path: &PathBuf) -> Result<Option<Vec<u8>>> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() < 1 << 20 => {
            let mut bytes = Vec::new();
            database::open(path)?.read_to_end(&mut bytes).at("read", path)?;
            Ok(Some(bytes))
        }
        Ok(_) => Err(Error::malformed(path, "is no small regular file")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).at("look at", path),
    }
}
