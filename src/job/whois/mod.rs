//! `dewar whois`: from anything seen on a node to the container, pod, image and layer it belongs to; and from a container to
//! all its places.
//!
//! ```text
//! pid, /proc/<pid>, cgroup ─► container          path below a snapshot, its number, key ─► layer, images, containers
//! digest, diff id, chain id ─► blob, images, containers          bundle, log, netns, mount point ─► container
//! ```

use serde::Serialize;

use super::store::Store;
use crate::{error::Result, id::Namespace, snapshotter::all::Kind};

mod atlas;
mod content;
mod path;
mod places;
mod process;

pub use places::{Places, ShimPlace, TreePlace};

use atlas::Atlas;

/// What was found about one thing.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// As it was asked for.
    pub thing: String,
    /// Everything it may be; empty if nothing is known of it.
    pub found: Vec<Found>,
}

/// One thing it is.
#[derive(Debug, Serialize)]
pub struct Found {
    /// The containerd that it belongs to: its persistent directory.
    pub store: String,
    /// What it is.
    #[serde(flatten)]
    pub what: What,
}

/// What a thing is.
#[derive(Debug, Serialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum What {
    /// A process of a container, or one that serves it.
    Process(Process),
    /// A snapshot.
    Snapshot(Snapshot),
    /// A blob, or a layer whose blob may be gone.
    Blob(Blob),
    /// An image.
    Image(ImageInfo),
    /// A container.
    Container(Box<Places>),
    /// A download.
    Ingest(Ingest),
    /// A place of a container.
    Place(Place),
}

/// A process.
#[derive(Debug, Serialize)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Its command line, as far as it is text.
    pub command: String,
    /// The container.
    pub container: Who,
}

/// A container, and how it comes to be named.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Who {
    /// `<namespace>/<id>`.
    pub container: String,
    /// `pod/container`, or the name nerdctl gave; may be empty.
    pub name: String,
    /// Its image's name; may be empty.
    pub image: String,
    /// `its first process`, `its own snapshot`, `layer 2 of 3`.
    pub how: String,
}

/// A snapshot.
#[derive(Debug, Default, Serialize)]
pub struct Snapshot {
    /// The snapshotter.
    pub snapshotter: String,
    /// Its number.
    pub number: u64,
    /// What it is for; absent if no record is left.
    pub kind: Option<Kind>,
    /// Its name in the snapshotter's database.
    pub name: String,
    /// `<namespace> <key>` of each of containerd's records of it.
    pub records: Vec<String>,
    /// Where its files are.
    pub directory: Option<String>,
    /// The rest of the path that was asked for: what it is called in the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The layer of an image that it holds.
    pub layer: Option<Layer>,
    /// The containers that stand on it.
    pub containers: Vec<Who>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// The digest of it and all below.
    pub chain_id: String,
    /// The digest of its tar.
    pub diff_id: String,
    /// The digest of its blob.
    pub digest: String,
    /// `2 of 3`.
    pub position: String,
    /// The images that have it there, `<namespace>/<name>`.
    pub images: Vec<String>,
}

/// A blob.
#[derive(Debug, Serialize)]
pub struct Blob {
    /// Its digest.
    pub digest: String,
    /// Where it lies.
    pub path: Option<String>,
    /// Its length in bytes.
    pub size: Option<u64>,
    /// `layer 2 of 3 of default/localhost/shop:1`, `config of …`.
    pub roles: Vec<String>,
    /// The namespaces that have it on record.
    pub namespaces: Vec<String>,
    /// The containers of these images.
    pub containers: Vec<Who>,
}

/// An image.
#[derive(Debug, Serialize)]
pub struct ImageInfo {
    /// `<namespace>/<name>`.
    pub name: String,
    /// What it stands for.
    pub digest: String,
    /// Its layers, bottom first.
    pub layers: Vec<Layer>,
    /// The containers made of it.
    pub containers: Vec<Who>,
}

/// A download.
#[derive(Debug, Serialize)]
pub struct Ingest {
    /// Its directory.
    pub path: String,
    /// `<namespace>/<n>/<ref>`, if it can be read.
    pub name: Option<String>,
    /// Bytes that are there.
    pub size: u64,
}

/// A place of a container.
#[derive(Debug, Serialize)]
pub struct Place {
    /// What it is of the container: `bundle`, `log`, `network namespace`, …
    pub place: String,
    /// Where.
    pub path: String,
    /// The containers.
    pub containers: Vec<Who>,
}

/// Looks each thing up in each store; containers of one namespace only, if asked.
pub fn whois(stores: &[Store], namespace: Option<&Namespace>, things: &[String]) -> Result<Vec<Answer>> {
    let mut answers: Vec<Answer> =
        things.iter().map(|thing| Answer { thing: thing.clone(), found: Vec::new() }).collect();
    for store in stores {
        let atlas = Atlas::of(store, namespace)?;
        for answer in &mut answers {
            let root = store.host.root.display().to_string();
            let found = ask(&atlas, &answer.thing)?;
            answer.found.extend(found.into_iter().map(|what| Found { store: root.clone(), what }));
        }
    }
    Ok(answers)
}

/// Everything a thing may be.
fn ask(atlas: &Atlas<'_>, thing: &str) -> Result<Vec<What>> {
    let mut found = Vec::new();
    if thing.starts_with('/') || thing.contains("/fs/") || thing.starts_with("snapshots/") {
        found.extend(path::ask(atlas, thing)?);
    }
    if let Ok(pid) = thing.parse() {
        found.extend(process::ask(atlas, pid)?);
    }
    let containers = atlas.containers_called(thing);
    // A container's own snapshot is called as it is, and is among its places.
    if containers.is_empty() {
        found.extend(atlas.snapshots_called(thing)?.into_iter().map(What::Snapshot));
    }
    found.extend(content::ask(atlas, thing)?);
    for known in containers {
        found.push(What::Container(Box::new(places::places(atlas, known)?)));
    }
    Ok(found)
}
