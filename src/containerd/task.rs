//! The runtime's state directory: one folder a task.
//!
//! ```text
//! <state>/io.containerd.runtime.v2.task/<ns>/<id>/     config.json rootfs/ init.pid options.json shim-binary-path …
//! <state>/io.containerd.runtime.v1.linux/<ns>/<id>/    config.json rootfs/ init.pid shim.pid …         1.6 and before
//! ```
//! It is there while the task is, and after the daemon died. It never says whether the process still lives.
//! Source: containerd `core/runtime/v2/bundle.go`, `runtime/v1/linux/bundle.go`, `cmd/containerd-shim-runc-v2/runc`.

use std::{fs, io, path::PathBuf};

use serde::Deserialize;

use crate::{
    error::{At, Error, Result},
    host::{Host, document},
    id::{ContainerRef, Namespace},
};

/// The plugins that keep tasks, each in a directory of its name below `state`.
pub const PLUGINS: [&str; 2] = ["io.containerd.runtime.v2.task", "io.containerd.runtime.v1.linux"];

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
    let Some(dir) = directory(host, who)? else { return Ok(None) };
    let mut damage = None;
    let options = options(&dir).unwrap_or_else(|e| {
        damage = Some(e);
        Options::default()
    });
    let init_pid = document::read(&dir, &["init.pid"]).unwrap_or_else(|e| {
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

/// The directories with one folder for each task of `namespace`; `None` if a link leads out of the host's own.
pub fn directories(host: &Host, namespace: &Namespace) -> Option<Vec<PathBuf>> {
    let dir = |plugin: &str| host.inside(&host.state.join(plugin).join(namespace.as_str())).ok();
    PLUGINS.into_iter().map(dir).collect()
}

/// The folder that is there, whichever plugin made it.
fn directory(host: &Host, who: &ContainerRef) -> Result<Option<PathBuf>> {
    for plugin in PLUGINS {
        let dir = host.state.join(plugin).join(who.namespace.as_str()).join(who.id.as_str());
        let dir = host.inside(&dir)?;
        match fs::symlink_metadata(&dir) {
            Ok(meta) if meta.is_dir() => return Ok(Some(dir)),
            Ok(_) => return Err(Error::malformed(dir, "is no directory")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).at("look at", dir),
        }
    }
    Ok(None)
}

fn options(dir: &std::path::Path) -> Result<Options> {
    let Some(bytes) = document::read(dir, &["options.json"])? else { return Ok(Options::default()) };
    serde_json::from_slice(&bytes).map_err(|e| Error::malformed(dir.join("options.json"), e))
}

/// What a state directory keeps of what containerd was told, as far as it can be read.
#[derive(Debug, Default)]
pub struct Remains {
    /// The runtime spec's JSON, as the task was created with (`config.json`).
    pub spec: Option<Vec<u8>>,
    /// The runtime options, as the shim had them (`options.json`).
    pub options: Option<Vec<u8>>,
    /// The name that containerd calls the shim by.
    pub runtime: Option<String>,
}

/// Every container that has a state directory, in order. Half-deleted ones, whose names begin with a dot, have none.
pub fn all(host: &Host) -> Vec<ContainerRef> {
    let names = |dir: PathBuf| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|e| e.file_name().into_string().ok())
    };
    let mut all = Vec::new();
    for plugin in PLUGINS {
        let Ok(dir) = host.inside(&host.state.join(plugin)) else { continue };
        for namespace in names(dir.clone()).filter_map(|name| name.parse::<Namespace>().ok()) {
            let ids = names(dir.join(namespace.as_str())).filter_map(|name| name.parse().ok());
            all.extend(ids.map(|id| ContainerRef { namespace: namespace.clone(), id }));
        }
    }
    all.sort();
    all.dedup();
    all
}

/// What the state directory of `who` keeps; each part that cannot be read is left out, with the reason.
pub fn remains(host: &Host, who: &ContainerRef) -> (Remains, Vec<Error>) {
    let mut errors = Vec::new();
    let dir = directory(host, who).unwrap_or_else(|e| {
        errors.push(e);
        None
    });
    let Some(dir) = dir else { return (Remains::default(), errors) };
    let mut read = |name: &str| {
        document::read(&dir, &[name]).unwrap_or_else(|e| {
            errors.push(e);
            None
        })
    };
    let (spec, options, shim) = (read("config.json"), read("options.json"), read("shim-binary-path"));
    let is_old = dir.components().any(|part| part.as_os_str() == PLUGINS[1]);
    let runtime = if is_old { Some(PLUGINS[1].to_owned()) } else { shim.and_then(|path| runtime_of(&path)) };
    (Remains { spec, options, runtime }, errors)
}

/// `/usr/bin/containerd-shim-runc-v2` is `io.containerd.runc.v2` (containerd `pkg/shim/util.go`, `BinaryName`); a shim of
/// another name is called by its path.
fn runtime_of(path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?.trim();
    let name = std::path::Path::new(path).file_name()?.to_str()?;
    let parts = name.strip_prefix("containerd-shim-").and_then(|rest| rest.rsplit_once('-'));
    Some(parts.map_or_else(|| path.to_owned(), |(name, version)| format!("io.containerd.{name}.{version}")))
}
