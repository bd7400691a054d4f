//! All places of one container.

use std::{collections::BTreeSet, fs, path::Path};

use serde::Serialize;
use walkdir::WalkDir;

use super::{
    Layer,
    atlas::{self, Atlas, Known},
    process,
};
use crate::{
    containerd::{
        content::Content,
        meta::Origin,
        shim::{self, Shim},
        task::{self, TaskRecord},
    },
    digest::Digest,
    error::Result,
    host::Host,
    job::locate::TaskState,
};

/// Where everything of a container is.
#[derive(Debug, Serialize)]
pub struct Places {
    /// `<namespace>/<id>`.
    pub container: String,
    /// `pod/container`, or the name nerdctl gave; may be empty.
    pub name: String,
    /// `running`, `stopped` or `none`.
    pub task: &'static str,
    /// Its record: the database and the way in it.
    pub at: String,
    /// How sure the record is.
    #[serde(flatten)]
    pub origin: Origin,
    /// Its image's name; may be empty.
    pub image: String,
    /// What that stands for.
    pub image_digest: Option<String>,
    /// The image's documents and layers in the content store: what, digest, and where if it is there.
    pub blobs: Vec<BlobPlace>,
    /// Its own snapshot, then those below, nearest first.
    pub snapshots: Vec<TreePlace>,
    /// The OCI runtime bundle.
    pub bundle: Option<String>,
    /// The low-level runtime's file about it.
    pub runtime_state: Option<String>,
    /// Its cgroup.
    pub cgroup: Option<String>,
    /// Its first process.
    pub pid: Option<i32>,
    /// All processes of its cgroup.
    pub pids: Vec<i32>,
    /// Its shim.
    pub shim: Option<ShimPlace>,
    /// The network namespace it joined, if that has a name.
    pub network: Option<String>,
    /// Its log.
    pub log: Option<String>,
}

/// A blob of its image.
#[derive(Debug, Serialize)]
pub struct BlobPlace {
    /// `manifest`, `config` or `layer`.
    pub what: &'static str,
    /// Its digest.
    pub digest: String,
    /// Where it lies; absent if it does not.
    pub path: Option<String>,
}

/// A snapshot it stands on.
#[derive(Debug, Serialize)]
pub struct TreePlace {
    /// `<snapshotter>/<number>`.
    pub snapshot: String,
    /// The key: a container's id, a chain id.
    pub key: String,
    /// Where its files are.
    pub directory: Option<String>,
    /// The layer it holds.
    pub layer: Option<Layer>,
}

/// What serves it.
#[derive(Debug, Serialize)]
pub struct ShimPlace {
    /// Its process, if it lives.
    pub pid: Option<i32>,
    /// Where it listens.
    pub socket: Option<String>,
}

/// Finds them.
pub fn places(atlas: &Atlas<'_>, known: &Known) -> Result<Places> {
    let (host, container) = (atlas.host(), &known.container);
    let record = task::read(host, &container.name).ok().flatten();
    let state = known.task(host);
    let live = state.live();
    let image = atlas.store.image(&container.name.namespace, &container.image).ok().flatten();
    let shown = |path: &Path| path.display().to_string();
    Ok(Places {
        container: container.name.to_string(),
        name: known.human.clone(),
        task: match state {
            TaskState::None => "none",
            TaskState::Ended => "stopped",
            TaskState::Live(_) => "running",
        },
        at: atlas.store.lack().map_or_else(|| atlas::record_of(host, container), |why| format!("none: {why}")),
        origin: container.origin.clone(),
        image: container.image.clone(),
        image_digest: image.as_ref().map(|image| image.digest.to_string()),
        blobs: image.map(|image| blobs(atlas, &image.digest)).transpose()?.unwrap_or_default(),
        snapshots: snapshots(atlas, known)?,
        runtime_state: record.as_ref().and_then(|record| runtime_state(host, known, record)),
        cgroup: live.map(|task| shown(&task.cgroup)),
        pid: live.map(|task| task.init.pid),
        pids: live.map(|task| pids(&task.cgroup)).unwrap_or_default(),
        shim: record.as_ref().map(|record| shim(host, known, record)).transpose()?.flatten(),
        network: network(known),
        log: known.log(atlas.store).map(str::to_owned),
        bundle: record.map(|record| shown(&record.runtime_bundle)),
    })
}

fn blobs(atlas: &Atlas<'_>, target: &Digest) -> Result<Vec<BlobPlace>> {
    let content = Content::of(atlas.host());
    let images = atlas.images()?;
    let names: BTreeSet<&String> = images.targets.get(target).into_iter().flatten().collect();
    let mut all = vec![("target", *target)];
    for (local, of) in &images.manifests {
        if of.iter().any(|name| names.contains(name)) {
            all.extend([("manifest", local.digest), ("config", local.config)]);
            all.extend(local.layers.iter().map(|layer| ("layer", *layer)));
        }
    }
    // A target that is a manifest is told as such.
    if all.iter().skip(1).any(|(_, digest)| digest == target) {
        all.remove(0);
    }
    let place = |(what, digest): (&'static str, Digest)| {
        let path = content.path(&digest);
        let is_there = fs::symlink_metadata(&path).is_ok();
        BlobPlace { what, digest: digest.to_string(), path: is_there.then(|| path.display().to_string()) }
    };
    Ok(all.into_iter().map(place).collect())
}

fn snapshots(atlas: &Atlas<'_>, known: &Known) -> Result<Vec<TreePlace>> {
    let Some((snapshotter, name)) = atlas.own_snapshot(known) else { return Ok(Vec::new()) };
    let Some((dir, entries)) = atlas.backends.get(snapshotter) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for name in entries.chain(name) {
        let Some(entry) = entries.by_name.get(name) else { continue };
        let key = name.splitn(3, '/').nth(2).unwrap_or(name);
        found.push(TreePlace {
            snapshot: format!("{snapshotter}/{}", entry.id),
            key: key.to_owned(),
            directory: atlas::place(snapshotter, dir, entry),
            layer: key.parse().ok().map(|chain| atlas.layer(&chain)).transpose()?.flatten(),
        });
    }
    Ok(found)
}

/// The file by which each runtime is known.
fn runtime_state(host: &Host, known: &Known, record: &TaskRecord) -> Option<String> {
    let root = record.runtime_root.as_ref().unwrap_or(&host.runc_root);
    let name = &known.container.name;
    let dir = root.join(name.namespace.as_str()).join(name.id.as_str());
    let found = ["state.json", "status"].map(|file| dir.join(file)).into_iter().find(|path| path.is_file());
    found.map(|path| path.display().to_string())
}

/// All processes of a cgroup and of those below it.
fn pids(cgroup: &Path) -> Vec<i32> {
    let dirs = WalkDir::new(cgroup).follow_links(false).into_iter().flatten().filter(|e| e.file_type().is_dir());
    let lists = dirs.filter_map(|dir| fs::read_to_string(dir.path().join("cgroup.procs")).ok());
    let all: BTreeSet<i32> =
        lists.flat_map(|list| list.lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>()).collect();
    all.into_iter().collect()
}

/// The first process' parent, if that is one; else the process that says that it serves this container.
fn shim(host: &Host, known: &Known, record: &TaskRecord) -> Result<Option<ShimPlace>> {
    let socket = shim::socket(&record.runtime_bundle).map(|path| path.display().to_string());
    let mut pid = None;
    if let Some(task) = known.task(host).live()
        && let Some(parent) = shim::parent(host, task.init.pid)?
    {
        pid = Shim::of(host, parent)?.map(|shim| shim.pid);
    }
    if pid.is_none() && host.sysroot.is_none() {
        pid = Shim::all(host)?.iter().find(|shim| process::serves(shim, known)).map(|shim| shim.pid);
    }
    Ok((pid.is_some() || socket.is_some()).then_some(ShimPlace { pid, socket }))
}

fn network(known: &Known) -> Option<String> {
    let network = known.spec().linux.namespaces.iter().find(|n| n.kind == "network" && !n.path.is_empty());
    network.map(|n| n.path.clone())
}
