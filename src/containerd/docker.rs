//! dockerd's own account of a container: containerd's record of it has neither its name nor, mostly, its files.
//!
//! ```text
//! <data-root>/containers/<id>/config.v2.json       {"Name":"/web","Driver":"overlayfs","LogPath":…,"Image":"sha256:…",
//!                                                   "Config":{"Image":"redis:7","Labels":{…}},"ImageManifest":{descriptor}}
//! ```
//! `Driver` is a snapshotter of containerd where Docker keeps images in its store (the default from 29), else one of Docker's
//! own graph drivers, whose files containerd knows nothing of. Source: moby `daemon/container/container.go`.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Deserialize;

use super::meta::Container;
use crate::{
    digest::Digest,
    error::{At, Error, Result},
    host::{Host, database},
};

/// The label that dockerd gives every container it makes in containerd.
const LABEL: &str = "com.docker/engine.bundle.path";

/// Hundreds of times what dockerd writes.
const MAX_BYTES: u64 = 16 << 20;

/// What dockerd knows of a container.
#[derive(Debug, Clone, Default)]
pub struct Docker {
    /// What it is called.
    pub name: String,
    /// The name of its image, in full (`docker.io/library/redis:7`); empty if it was made from an id.
    pub image: String,
    /// The image manifest it was made from, if Docker keeps images in containerd's store.
    pub manifest: Option<Manifest>,
    /// The snapshotter or graph driver that has its files.
    pub driver: String,
    /// Where its log is.
    pub log: Option<String>,
    /// What the user gave it, and the image.
    pub labels: BTreeMap<String, String>,
    /// When its task was last started.
    pub started_at: Option<Timestamp>,
    /// When its task last ended.
    pub finished_at: Option<Timestamp>,
    /// The directory of the dockerd that has it.
    pub data_root: PathBuf,
}

/// A descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The manifest's digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct File {
    name: String,
    driver: String,
    log_path: String,
    config: Option<Config>,
    state: Option<State>,
    image_manifest: Option<Descriptor>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    image: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct State {
    started_at: String,
    finished_at: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
}

/// True if dockerd made it.
pub fn is_dockers(container: &Container) -> bool {
    container.labels.contains_key(LABEL)
}

/// What dockerd knows of `container`; `None` if no dockerd made it, or none that is known here still has it.
pub fn read(host: &Host, container: &Container) -> Result<Option<Docker>> {
    for data_root in host.docker.iter().filter(|_| is_dockers(container)) {
        let path = data_root.join("containers").join(container.name.id.as_str()).join("config.v2.json");
        if let Some(bytes) = small_file(host, &path)? {
            let file = serde_json::from_slice(&bytes).map_err(|e| Error::malformed(path, e))?;
            return Ok(Some(docker(file, data_root)));
        }
    }
    Ok(None)
}

fn small_file(host: &Host, path: &Path) -> Result<Option<Vec<u8>>> {
    let path = &host.inside(path)?;
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() && meta.len() <= MAX_BYTES => {}
        Ok(_) => return Err(Error::malformed(path, "is no small regular file")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).at("look at", path),
    }
    database::bounded("document", path, MAX_BYTES).map(Some)
}

fn docker(file: File, data_root: &Path) -> Docker {
    let config = file.config.unwrap_or_default();
    let state = file.state.unwrap_or_default();
    let manifest = file.image_manifest.and_then(|descriptor| {
        let Descriptor { media_type, digest, size } = descriptor;
        Some(Manifest { digest: digest.parse().ok()?, media_type, size })
    });
    Docker {
        name: file.name.trim_start_matches('/').to_owned(),
        image: full_name(&config.image),
        manifest,
        driver: file.driver,
        log: Some(file.log_path).filter(|path| path.starts_with('/')),
        labels: config.labels.unwrap_or_default(),
        started_at: moment(&state.started_at),
        finished_at: moment(&state.finished_at),
        data_root: data_root.to_owned(),
    }
}

/// Go's year 1 stands for never.
fn moment(text: &str) -> Option<Timestamp> {
    text.parse().ok().filter(|at: &Timestamp| at.as_second() > 0)
}

/// An image's name as containerd's store has it, from what was typed at Docker (distribution `reference/normalize.go`).
fn full_name(familiar: &str) -> String {
    let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if familiar.is_empty() || is_hex(familiar.strip_prefix("sha256:").unwrap_or(familiar)) {
        return String::new();
    }
    let name = match familiar.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => familiar.to_owned(),
        Some(_) => format!("docker.io/{familiar}"),
        None => format!("docker.io/library/{familiar}"),
    };
    let tail = name.rsplit('/').next().unwrap_or_default();
    if tail.contains([':', '@']) { name } else { format!("{name}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of distribution's `reference` package, and ids.
    #[test]
    fn a_familiar_name_is_written_in_full() {
        let id = "0123456789abcdef".repeat(4);
        for (familiar, full) in [
            ("redis", "docker.io/library/redis:latest"),
            ("redis:7", "docker.io/library/redis:7"),
            ("dmcgowan/myapp", "docker.io/dmcgowan/myapp:latest"),
            ("localhost/busybox:lab", "localhost/busybox:lab"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest"),
            ("docker.io/library/redis@sha256:00", "docker.io/library/redis@sha256:00"),
            (&id, ""),
            (&format!("sha256:{id}"), ""),
            ("", ""),
        ] {
            assert_eq!(full_name(familiar), full, "{familiar}");
        }
    }
}
