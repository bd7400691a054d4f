//! Records of containers whose meta.db is gone, or has none of them any more: put together from everything else.
//!
//! ```text
//! <state>/io.containerd.runtime.v2.task/<ns>/<id>/    the spec, the runtime and its options      (task::remains)
//! what is mounted on its rootfs                       its files, and those of the image          (snapshotter::mounted)
//! <root>/io.containerd.snapshotter.v1.*/metadata.db   snapshot <ns>/<n>/<id>, and its parents    (snapshotter::census)
//!     a parent's key is the chain id of an image …
//! <root>/io.containerd.content.v1.content/            … that is found by its config's diff ids   (containerd::images)
//! ```
//! Each may be missing; at the worst a snapshot's folder is shown as `unknown/overlayfs-<n>`. What then is not known is said, and nothing is made up but a name for the image.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::locate;
use crate::{
    containerd::{
        images::Images,
        meta::{Container, Image, Origin, SnapshotRecord},
        task::{self, Remains},
    },
    digest::Digest,
    error::Error,
    host::Host,
    id::{ContainerRef, Namespace, SnapshotId, SnapshotKey},
    oci::runtime::Spec,
    proto::{self, RuncOptions},
    snapshotter::{
        RwLayer,
        census::{self, Entry},
        mounted::{self, Mounted},
    },
};

/// The shim that containerd starts when it is told nothing else.
const DEFAULT_RUNTIME: &str = "io.containerd.runc.v2";

/// What is left of containers without a record.
#[derive(Debug, Default)]
pub struct Ruins {
    found: BTreeMap<ContainerRef, Found>,
    snapshots: BTreeMap<String, Vec<Entry>>,
}

/// A container put together.
#[derive(Debug)]
pub struct Found {
    /// Its record, as far as it is known.
    pub container: Container,
    /// Its image.
    pub image: Option<Image>,
    /// Where its files are, if no record and no mount leads there.
    pub rw: Option<RwLayer>,
    /// What is not known, each with its consequence.
    pub unknown: Vec<String>,
}

/// The namespace of what nothing tells whose it was.
const NOBODYS: &str = "unknown";

/// How far a search goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// meta.db is gone or damaged: whatever has a state directory or a snapshot is shown.
    All,
    /// meta.db is whole: what it lacks was removed, unless it lives.
    Living,
}

impl Ruins {
    /// Searches `host` for containers that are not `known`; `why` they have no record.
    pub fn search(host: &Host, why: &str, reach: Reach, known: impl Fn(&ContainerRef) -> bool) -> Self {
        let is_ours = |who: &ContainerRef| !known(who) && !lies_elsewhere(host, who);
        let tasks: Vec<_> = task::all(host).into_iter().filter(is_ours).collect();
        if tasks.is_empty() && reach == Reach::Living {
            return Self::default();
        }
        let mut names: BTreeSet<_> = tasks.into_iter().collect();
        let search = Search::begin(host, why, names.clone());
        if reach == Reach::All {
            names.extend(search.snapshot_owners().into_iter().filter(|who| !known(who)));
        }
        let lives = |found: &Found| locate::task(host, &found.container).is_ok_and(|(task, _)| task.live().is_some());
        let found = names.into_iter().map(|who| (who.clone(), search.found(who)));
        let mut found: BTreeMap<_, _> = found.filter(|(_, found)| reach == Reach::All || lives(found)).collect();
        if reach == Reach::All && search.damage.contains_key(census::OVERLAYFS) {
            found.extend(search.folders());
        }
        Self { found, snapshots: search.snapshots }
    }

    /// True if nothing is left of anything.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Every container, in order of namespace and id.
    pub fn all(&self) -> impl Iterator<Item = &Found> {
        self.found.values()
    }

    /// What is left of one container.
    pub fn of(&self, who: &ContainerRef) -> Option<&Found> {
        self.found.get(who)
    }

    /// The image that a container of the namespace stands on under this name.
    pub fn image(&self, namespace: &Namespace, name: &str) -> Option<&Image> {
        let all = self.found.iter().filter(|(who, _)| who.namespace == *namespace);
        all.filter_map(|(_, found)| found.image.as_ref()).find(|image| image.name == name)
    }

    /// The record that a snapshot had.
    pub fn snapshot(&self, ns: &Namespace, snapshotter: &str, key: &SnapshotKey) -> Option<SnapshotRecord> {
        let all = self.snapshots.get(snapshotter)?;
        let entry = all.iter().find(|entry| entry.owner() == Some((ns.as_str(), &key.0)))?;
        Some(SnapshotRecord { name: entry.name.clone(), parent: entry.parent_key(), origin: Origin::Live })
    }
}

struct Search<'a> {
    host: &'a Host,
    why: &'a str,
    /// Those that have a state directory.
    tasks: BTreeSet<ContainerRef>,
    snapshots: BTreeMap<String, Vec<Entry>>,
    /// Snapshotters whose databases cannot be read, and why.
    damage: BTreeMap<String, String>,
    images: OnceLock<Images>,
}

impl<'a> Search<'a> {
    fn begin(host: &'a Host, why: &'a str, tasks: BTreeSet<ContainerRef>) -> Self {
        let (mut snapshots, mut damage) = (BTreeMap::new(), BTreeMap::new());
        for (name, entries) in census::all(host) {
            match entries {
                Ok(entries) => drop(snapshots.insert(name, entries)),
                Err(e) => drop(damage.insert(name, locate::with_causes(&e))),
            }
        }
        Self { host, why, tasks, snapshots, damage, images: OnceLock::new() }
    }

    /// Whose the active snapshots are: a layer that was being unpacked is nobody's, and its key is no identifier.
    fn snapshot_owners(&self) -> Vec<ContainerRef> {
        let active = self.snapshots.values().flatten().filter(|entry| entry.is_active);
        let owner = |entry: &Entry| {
            let (namespace, key) = entry.owner()?;
            let is_unpack = key.starts_with("extract-");
            Some(ContainerRef { namespace: namespace.parse().ok()?, id: key.parse().ok().filter(|_| !is_unpack)? })
        };
        active.filter_map(owner).collect()
    }

    fn found(&self, who: ContainerRef) -> Found {
        let (remains, errors) = task::remains(self.host, &who);
        let mut unknown: Vec<_> = errors.iter().map(locate::with_causes).collect();
        let Remains { spec, options, runtime } = remains;
        let view = spec.as_ref().and_then(|json| serde_json::from_slice::<Spec>(json).ok());
        // What cannot be understood would only make a restore fail.
        let spec = spec.filter(|_| view.is_some());
        let annotations = view.map(|view| view.annotations).unwrap_or_default();
        let place = self.place(&who, &mut unknown);
        let image = place.as_ref().and_then(|place| self.image(&who, place, &annotations, &mut unknown));
        let labels = labels(&annotations);
        let only = if self.tasks.contains(&who) { "" } else { "; only its snapshot is left" };
        let why = format!("{}{only}", self.why);
        if spec.is_none() {
            let spec =
                "its spec is not known (no config.json of its task that can be read): only its files can be restored";
            unknown.push(spec.into());
        }
        if runtime.is_none() {
            unknown.push(format!("its runtime is not known and taken to be {DEFAULT_RUNTIME}"));
        }
        unknown.push("its labels, its extensions and the time it was made are not known".into());
        let (snapshotter, snapshot_key) =
            place.map_or_else(Default::default, |place| (place.snapshotter, who.id.to_string()));
        let container = Container {
            name: who,
            image: image.as_ref().map(|image| image.name.clone()).unwrap_or_default(),
            snapshotter,
            snapshot_key: SnapshotKey(snapshot_key),
            runtime: runtime.unwrap_or_else(|| DEFAULT_RUNTIME.into()),
            runtime_options: options.and_then(|json| runtime_options(&json)).unwrap_or_default(),
            spec: spec.map(|json| proto::any(proto::SPEC, json).into()).unwrap_or_default(),
            labels,
            created_at: None,
            origin: Origin::Salvaged(why),
        };
        Found { container, image, rw: None, unknown }
    }

    /// The snapshots that nothing tells whose they are, by their folders' numbers: a container's, or a layer of an image.
    fn folders(&self) -> Vec<(ContainerRef, Found)> {
        let tasks = task::all(self.host);
        let used = tasks.iter().filter_map(|who| match mounted(self.host, who)?.rw {
            RwLayer::Overlay { upper, lowers, .. } => {
                Some(lowers.into_iter().chain([upper]).map(|dir| real(&dir)).collect::<Vec<_>>())
            }
            _ => None,
        });
        let used: BTreeSet<_> = used.flatten().collect();
        let folder = |id: SnapshotId| {
            let rw = census::folder(self.host, id).ok()??;
            let (RwLayer::Overlay { upper: dir, .. } | RwLayer::Tree { dir }) = &rw else { return None };
            if used.contains(&real(dir)) {
                return None;
            }
            // Both are identifiers: letters, digits, and one mark between them.
            let who = ContainerRef {
                namespace: NOBODYS.parse().ok()?,
                id: format!("{}-{id}", census::OVERLAYFS).parse().ok()?,
            };
            Some((who.clone(), self.nobodys(who, rw)))
        };
        census::folders(self.host).into_iter().filter_map(folder).collect()
    }

    fn nobodys(&self, who: ContainerRef, rw: RwLayer) -> Found {
        let mut unknown: Vec<_> = self.damage.get(census::OVERLAYFS).cloned().into_iter().collect();
        let whose = "whose it was is not known, nor that it was a container's and not a layer of an image, nor on which image it \
                     stands: only its own files are in the bundle, with every deletion that an older snapshot gives a meaning";
        unknown.push(whose.into());
        if is_mounted(self.host, &rw) {
            unknown.push("it is mounted: what is written to it meanwhile may be in the bundle or not".into());
        }
        let container = Container {
            name: who,
            image: String::new(),
            snapshotter: census::OVERLAYFS.into(),
            snapshot_key: SnapshotKey(String::new()),
            runtime: String::new(),
            runtime_options: Vec::new(),
            spec: Default::default(),
            labels: BTreeMap::new(),
            created_at: None,
            origin: Origin::Salvaged(format!("{}; only the folder of a snapshot is left", self.why)),
        };
        Found { container, image: None, rw: Some(rw), unknown }
    }

    /// Where its files are: by the snapshotter's database, else by what is mounted.
    fn place(&self, who: &ContainerRef, unknown: &mut Vec<String>) -> Option<Place> {
        let owner = (who.namespace.as_str(), who.id.as_str());
        let named = |entries: &&Entry| entries.is_active && entries.owner() == Some(owner);
        let of = |(name, all): (&String, &Vec<Entry>)| Some((name.clone(), all.iter().find(named)?.parent_key()));
        if let Some((snapshotter, parent)) = self.snapshots.iter().find_map(of) {
            let chain = parent.as_ref().and_then(|key| key.0.parse().ok());
            return Some(Place { snapshotter, chain, has_parent: parent.is_some() });
        }
        let Some(mounted) = mounted(self.host, who) else {
            unknown.extend(self.damage.values().cloned());
            return None;
        };
        unknown.extend(self.damage.get(&mounted.snapshotter).cloned());
        let has_parent = matches!(mounted.rw, RwLayer::Overlay { .. });
        Some(Place { snapshotter: mounted.snapshotter, chain: None, has_parent })
    }

    fn image(
        &self,
        who: &ContainerRef,
        place: &Place,
        annotations: &BTreeMap<String, String>,
        unknown: &mut Vec<String>,
    ) -> Option<Image> {
        if !place.has_parent {
            return None;
        }
        let stored =
            place.chain.and_then(|chain| self.images.get_or_init(|| Images::of(self.host)).with_chain(&chain).cloned());
        let mut image = stored.unwrap_or_else(|| Image {
            name: String::new(),
            digest: place.chain.unwrap_or_else(|| Digest::of(who.to_string().as_bytes())),
            media_type: String::new(),
            size: 0,
            origin: Origin::Live,
        });
        let told = annotations.get("io.kubernetes.cri.image-name").filter(|name| name.contains('/'));
        match (told, image.name.is_empty()) {
            (Some(name), _) => image.name = name.clone(),
            (None, true) => image.name = made_up(who, place.chain),
            (None, false) => return Some(image),
        }
        if told.is_none() {
            unknown.push(format!("the name of its image is not known: in the bundle it is {}", image.name));
        }
        Some(image)
    }
}

/// Where a container's files are, and on what they stand.
struct Place {
    snapshotter: String,
    chain: Option<Digest>,
    has_parent: bool,
}

/// What is mounted as the root file system of `who`.
pub fn mounted(host: &Host, who: &ContainerRef) -> Option<Mounted> {
    let record = task::read(host, who).ok()??;
    if host.sysroot.is_some() {
        return None;
    }
    mounted::find(host, &record.runtime_bundle.join("rootfs"), record.init_pid).ok()?
}

/// True if the task's files are another store's: a copy of a root is often looked at beside the state of the real one.
fn lies_elsewhere(host: &Host, who: &ContainerRef) -> bool {
    let Some(Mounted { rw: RwLayer::Overlay { upper: dir, .. } | RwLayer::Tree { dir }, .. }) = mounted(host, who)
    else {
        return false;
    };
    let mut roots = std::iter::once(&host.root).chain(host.snapshotters.values());
    let dir = real(&dir);
    !roots.any(|root| dir.starts_with(real(root)))
}

/// The path without links: roots are often named through some (`/var/lib/containerd` -> `/data/containerd`).
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// True if an overlay has this upperdir, as far as we see.
fn is_mounted(host: &Host, rw: &RwLayer) -> bool {
    let RwLayer::Overlay { upper, .. } = rw else { return false };
    mounted::uppers(host).iter().any(|mounted| real(mounted) == real(upper))
}

/// A name for an image that has none, the same for every container of it.
fn made_up(who: &ContainerRef, chain: Option<Digest>) -> String {
    let own = || format!("{}-{}", who.namespace, who.id).to_lowercase();
    let name = chain.map_or_else(own, |chain| chain.to_hex().chars().take(12).collect());
    format!("localhost/recovered/{name}:latest")
}

/// The shim's options, as the message that containerd had given it.
fn runtime_options(json: &[u8]) -> Option<Vec<u8>> {
    let options: RuncOptions = serde_json::from_slice(json).ok()?;
    Some(proto::any(proto::RUNC_OPTIONS, prost::Message::encode_to_vec(&options)))
}

/// The labels that the spec's annotations repeat: Kubernetes' names, and nerdctl's.
fn labels(annotations: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let cri = [
        ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
        ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
        ("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"),
        ("io.kubernetes.cri.container-name", "io.kubernetes.container.name"),
        ("io.kubernetes.cri.container-type", "io.cri-containerd.kind"),
    ];
    let same = annotations.iter().filter(|(key, _)| key.starts_with("nerdctl/"));
    let same = same.map(|(key, value)| (key.clone(), value.clone()));
    let translated = cri.iter().filter_map(|(from, to)| Some(((*to).to_owned(), annotations.get(*from)?.clone())));
    same.chain(translated).collect()
}

/// True if a meta.db that cannot be used may not be all: the directory is a containerd's, and something may be left.
pub fn may_be_left(host: &Host, error: &Error) -> bool {
    let is_gone =
        matches!(error, Error::NotFound { .. } | Error::Corrupt { .. } | Error::Malformed { .. } | Error::Io { .. });
    let mut entries = fs::read_dir(&host.root).into_iter().flatten().flatten();
    is_gone
        && !error.is_permission()
        && entries.any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"io.containerd."))
}
