//! Everything on record in one store, ready to be looked up.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{Layer, Snapshot, Who};
use crate::{
    containerd::{
        log,
        meta::{Container, MetaDb},
        survey::{Records, Survey},
    },
    digest::Digest,
    error::{Error, Result},
    host::{Host, database},
    id::{Namespace, SnapshotId},
    job::{
        documents::{Documents, Local},
        locate::{self, TaskState},
        store::Store,
        who,
    },
    oci::{image::Descriptor, runtime::Spec},
    proto::{self, Any},
    snapshotter::{
        self,
        all::{self, Entries},
    },
};

/// One store.
pub struct Atlas<'a> {
    /// The store.
    pub store: &'a Store,
    /// All of meta.db.
    pub records: Records,
    /// The snapshotters, each with its directory and its records.
    pub backends: BTreeMap<String, (PathBuf, Entries)>,
    /// The containers, each with what is found out about it only when asked for.
    pub containers: Vec<Known>,
    images: OnceCell<Images>,
}

/// A container.
pub struct Known {
    /// Its record.
    pub container: Container,
    /// Its most usual name; may be empty.
    pub human: String,
    spec: OnceCell<Spec>,
    task: OnceCell<TaskState>,
    log: OnceCell<Option<String>>,
}

/// What images are made of.
#[derive(Default)]
pub struct Images {
    /// Each manifest with the names of the images that have it, `<namespace>/<name>`.
    pub manifests: Vec<(Rc<Local>, Vec<String>)>,
    /// The images by what their records point to.
    pub targets: HashMap<Digest, Vec<String>>,
    /// By chain id: manifests and the layer's place.
    pub chains: HashMap<Digest, Vec<(usize, usize)>>,
    /// By the digest of a layer's blob, or its diff id.
    pub layers: HashMap<Digest, BTreeSet<(usize, usize)>>,
    /// By manifest's or config's digest.
    pub documents: HashMap<Digest, Vec<(usize, &'static str)>>,
}

impl<'a> Atlas<'a> {
    /// Reads the databases of a store.
    pub fn of(store: &'a Store, namespace: Option<&Namespace>) -> Result<Self> {
        // Without a database what else is left of the containers is known all the same ([`Store::lack`]).
        let records = match store.lack() {
            Some(_) => Records::default(),
            None => Survey::read(&store.host)?.records(),
        };
        let mut containers = Vec::new();
        store.for_each_container(|record| {
            let in_scope = |c: &Container| namespace.is_none_or(|ns| *ns == c.name.namespace);
            containers.extend(record.ok().filter(in_scope).map(|container| Known::of(store, container)));
        })?;
        let backends = backends(&store.host, &records)?;
        Ok(Self { store, records, backends, containers, images: OnceCell::new() })
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.store.host
    }

    /// What images are made of; read when first asked for.
    pub fn images(&self) -> Result<&Images> {
        if let Some(images) = self.images.get() {
            return Ok(images);
        }
        let images = Images::read(self.host(), &self.records)?;
        Ok(self.images.get_or_init(|| images))
    }

    /// The containers that `thing` means: by id, name, or the beginning of an id.
    pub fn containers_called(&self, thing: &str) -> Vec<&Known> {
        let exact = |k: &&Known| {
            let name = &k.container.name;
            name.id.as_str() == thing || name.to_string() == thing || (!k.human.is_empty() && k.human == thing)
        };
        let found: Vec<&Known> = self.containers.iter().filter(exact).collect();
        // Shorter beginnings mean too many things.
        if !found.is_empty() || thing.len() < 6 {
            return found;
        }
        self.containers.iter().filter(|k| k.container.name.id.as_str().starts_with(thing)).collect()
    }

    /// The containers whose own snapshot is `name` of a snapshotter, or that stand on it.
    pub fn containers_on(&self, snapshotter: &str, name: &str) -> Vec<Who> {
        let Some((_, entries)) = self.backends.get(snapshotter) else { return Vec::new() };
        let on = |known: &Known| {
            let own = self.own_snapshot(known).filter(|(sn, _)| *sn == snapshotter)?;
            let chain = entries.chain(own.1);
            let at = chain.iter().position(|link| *link == name)?;
            let how = match at {
                0 => "its own snapshot".to_owned(),
                _ => format!("layer {} of {} below it", chain.len() - at, chain.len() - 1),
            };
            Some(known.who(how))
        };
        self.containers.iter().filter_map(on).collect()
    }

    /// A container's own snapshot: the snapshotter, and the name there.
    pub fn own_snapshot(&self, known: &Known) -> Option<(&str, &str)> {
        let Container { name, snapshotter, snapshot_key, .. } = &known.container;
        let snapshots = &self.records.namespaces.get(name.namespace.as_str())?.snapshots;
        let (snapshotter, all) = snapshots.get_key_value(snapshotter)?;
        Some((snapshotter, &all.get(&snapshot_key.0)?.name))
    }

    /// The snapshots that `thing` means: `overlayfs/12`, `12`, a key, or a name of a snapshotter's own.
    pub fn snapshots_called(&self, thing: &str) -> Result<Vec<Snapshot>> {
        let mut found = Vec::new();
        let (wanted, number) = match thing.rsplit_once('/') {
            Some((snapshotter, number)) if self.backends.contains_key(snapshotter) => (Some(snapshotter), number),
            _ => (None, thing),
        };
        let number = number.parse().ok().map(SnapshotId);
        for (snapshotter, (_, entries)) in &self.backends {
            let keys = self.names_of_key(snapshotter, thing);
            for (name, entry) in &entries.by_name {
                let is_number = number == Some(entry.id) && wanted.is_none_or(|wanted| wanted == snapshotter);
                if is_number || name == thing || keys.contains(name.as_str()) {
                    found.push(self.snapshot(snapshotter, name, None)?);
                }
            }
        }
        Ok(found)
    }

    /// The names that a snapshotter has for a key, in any namespace.
    pub fn names_of_key(&self, snapshotter: &str, key: &str) -> BTreeSet<&str> {
        let all = self.records.namespaces.values().filter_map(|ns| ns.snapshots.get(snapshotter)?.get(key));
        all.map(|record| record.name.as_str()).collect()
    }

    /// The name of the snapshot with this number.
    pub fn name_of(&self, snapshotter: &str, number: u64) -> Option<&str> {
        let (_, entries) = self.backends.get(snapshotter)?;
        let found = entries.by_name.iter().find(|(_, entry)| entry.id.0 == number);
        found.map(|(name, _)| name.as_str())
    }

    /// All about the snapshot `name` of a snapshotter; `file` is what was asked for within it.
    pub fn snapshot(&self, snapshotter: &str, name: &str, file: Option<String>) -> Result<Snapshot> {
        let (dir, entry) = match self.backends.get(snapshotter) {
            Some((dir, entries)) => (Some(dir), entries.by_name.get(name)),
            None => (None, None),
        };
        let mut records = Vec::new();
        let mut layer = None;
        for (ns_name, ns) in &self.records.namespaces {
            for (key, _) in ns.snapshots.get(snapshotter).into_iter().flatten().filter(|(_, r)| r.name == name) {
                records.push(format!("{ns_name} {key}"));
                layer = layer.or(key.parse().ok().map(|chain| self.layer(&chain)).transpose()?.flatten());
            }
        }
        Ok(Snapshot {
            snapshotter: snapshotter.to_owned(),
            number: entry.map_or(0, |entry| entry.id.0),
            kind: entry.map(|entry| entry.kind),
            name: name.to_owned(),
            records,
            directory: dir.zip(entry).and_then(|(dir, entry)| place(snapshotter, dir, entry)),
            file,
            layer,
            containers: self.containers_on(snapshotter, name),
        })
    }

    /// The layer with this chain id.
    pub fn layer(&self, chain: &Digest) -> Result<Option<Layer>> {
        let images = self.images()?;
        let Some(places) = images.chains.get(chain) else { return Ok(None) };
        let names: BTreeSet<&String> = places.iter().flat_map(|(at, _)| &images.manifests[*at].1).collect();
        let layer = places.first().map(|(at, place)| {
            let local = &images.manifests[*at].0;
            Layer {
                chain_id: chain.to_string(),
                diff_id: local.diff_ids[*place].to_string(),
                digest: local.layers.get(*place).map(Digest::to_string).unwrap_or_default(),
                position: format!("{} of {}", place + 1, local.diff_ids.len()),
                images: names.into_iter().cloned().collect(),
            }
        });
        Ok(layer)
    }
}

/// Where the files of a snapshot are.
pub fn place(snapshotter: &str, dir: &Path, entry: &all::Entry) -> Option<String> {
    all::shape(snapshotter)?.place(dir, entry).map(|path| path.display().to_string())
}

/// The snapshotters on record whose databases can be read.
fn backends(host: &Host, records: &Records) -> Result<BTreeMap<String, (PathBuf, Entries)>> {
    let mut found = BTreeMap::new();
    let names: BTreeSet<&String> = records.namespaces.values().flat_map(|ns| ns.snapshots.keys()).collect();
    for name in names.into_iter().filter(|name| !name.contains('/') && !name.contains('\0')) {
        let Ok(dir) = snapshotter::directory_of(host, name) else { continue };
        match database::read(host, &dir.join("metadata.db")) {
            Ok(bytes) => drop(found.insert(name.clone(), (dir, Entries::read(&bytes)))),
            Err(e @ Error::DaemonRunning { .. }) => return Err(e),
            // What cannot be read is for fsck to tell.
            Err(_) => {}
        }
    }
    Ok(found)
}

impl Known {
    fn of(store: &Store, container: Container) -> Self {
        let human = who::is(store, &container).unwrap_or_default().names.into_iter().next().unwrap_or_default();
        Self { container, human, spec: OnceCell::new(), task: OnceCell::new(), log: OnceCell::new() }
    }

    /// It, and how it comes to be named.
    pub fn who(&self, how: impl Into<String>) -> Who {
        Who {
            container: self.container.name.to_string(),
            name: self.human.clone(),
            image: self.container.image.clone(),
            how: how.into(),
        }
    }

    /// Its spec; an empty one if that cannot be read.
    pub fn spec(&self) -> &Spec {
        self.spec.get_or_init(|| {
            let any: Option<Any> = proto::decode(&self.container.spec).ok();
            any.and_then(|any| serde_json::from_slice(&any.value).ok()).unwrap_or_default()
        })
    }

    /// How its task is; one that cannot be told counts for none.
    pub fn task(&self, host: &Host) -> &TaskState {
        self.task.get_or_init(|| locate::task(host, &self.container).map_or(TaskState::None, |(state, _)| state))
    }

    /// Where its log is.
    pub fn log(&self, store: &Store) -> Option<&str> {
        let find = || {
            let cri = store.extension(&self.container.name, log::CRI_METADATA).ok().flatten();
            log::path(&self.container, cri.as_deref())
        };
        self.log.get_or_init(find).as_deref()
    }
}

impl Images {
    /// Reads the documents of every image on record; what is damaged is left out.
    fn read(host: &Host, records: &Records) -> Result<Self> {
        let (mut images, mut documents) = (Self::default(), Documents::of(host));
        let mut media_types = HashMap::new();
        for (ns_name, ns) in &records.namespaces {
            for (name, image) in &ns.images {
                let Ok(digest) = image.digest.parse::<Digest>() else { continue };
                images.targets.entry(digest).or_default().push(format!("{ns_name}/{name}"));
                media_types.entry(digest).or_insert(image.media_type.as_str());
            }
        }
        let mut places = HashMap::new();
        for (digest, names) in &images.targets {
            let target = Descriptor::new(media_types[digest], *digest, 0);
            for local in documents.manifests(&target)? {
                let at = *places.entry(local.digest).or_insert_with(|| {
                    images.manifests.push((local.clone(), Vec::new()));
                    images.manifests.len() - 1
                });
                images.manifests[at].1.extend(names.iter().cloned());
            }
        }
        images.index();
        Ok(images)
    }

    fn index(&mut self) {
        for (at, (local, names)) in self.manifests.iter_mut().enumerate() {
            names.sort_unstable();
            names.dedup();
            self.documents.entry(local.digest).or_default().push((at, "manifest"));
            self.documents.entry(local.config).or_default().push((at, "config"));
            for (place, chain) in local.chains().into_iter().enumerate() {
                self.chains.entry(chain).or_default().push((at, place));
            }
            for digests in [&local.layers, &local.diff_ids] {
                for (place, digest) in digests.iter().enumerate() {
                    self.layers.entry(*digest).or_default().insert((at, place));
                }
            }
        }
    }
}

/// Where meta.db has a container's record.
pub fn record_of(host: &Host, container: &Container) -> String {
    let name = &container.name;
    format!("{}: v1/{}/containers/{}", MetaDb::path(host).display(), name.namespace, name.id)
}
