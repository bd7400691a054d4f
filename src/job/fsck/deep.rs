//! Committed snapshots against the blobs of their layers, file by file: who has changed one has changed all containers of
//! the image, and neither size nor times need show it.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    super::locate::with_causes,
    content::Checked,
    finding::{
        Code, Findings, LAYER_FILE_ADDED, LAYER_FILE_CHANGED, LAYER_FILE_EMPTY, LAYER_FILE_MISSING,
        LAYER_FILE_UNREADABLE, LAYER_NOT_COMPARED, LAYER_UNLIKE,
    },
    images::Images,
};
use crate::{
    containerd::{
        content::Content,
        survey::{Records, SnapshotRecord},
    },
    digest::Digest,
    error::{Error, Result},
    host::Host,
    id::SnapshotName,
    image::unpacked::{Difference, Form, Model, compare},
    layout::untar,
    snapshotter::{self, Databases, RwLayer},
    timeline::moment,
    tree::{Meta, Node},
};

/// No image has more layers; a longer chain of records is a loop.
const MAX_LAYERS: usize = 4096;

/// The snapshotters whose directories are as containerd itself unpacks, and whether they hold each layer alone.
const FORMS: &[(&str, Form)] = &[
    ("blockfile", Form::Cloned),
    ("btrfs", Form::Cloned),
    ("devmapper", Form::Cloned),
    ("native", Form::Copied),
    ("overlayfs", Form::Overlay { is_lowest: true }),
    ("zfs", Form::Cloned),
];

/// Chain ids from the bottom up.
type Chain = Vec<Digest>;

/// Compares every snapshot of every image's layer; how many there were comes back.
pub fn check(
    host: &Host,
    records: &Records,
    images: &Images,
    content: &Checked,
    findings: &mut Findings,
) -> Result<usize> {
    let mut deep = Deep {
        host,
        images,
        content,
        store: Content::of(host),
        databases: Databases::default(),
        findings,
        compared: 0,
    };
    let mut all: BTreeMap<&str, BTreeMap<Chain, Vec<&str>>> = BTreeMap::new();
    for snapshots in records.namespaces.values().flat_map(|ns| &ns.snapshots) {
        let (snapshotter, of_it) = snapshots;
        for (key, record) in of_it.iter().filter(|(key, _)| key.parse::<Digest>().is_ok()) {
            match chain(of_it, key) {
                Some(chain) => all.entry(snapshotter).or_default().entry(chain).or_default().push(&record.name),
                None => deep.not_compared(snapshotter, key, "its layers below are not all on record"),
            }
        }
    }
    for (snapshotter, chains) in all {
        match FORMS.iter().find(|(name, _)| *name == snapshotter) {
            Some((_, form)) => deep.snapshotter(snapshotter, *form, &chains)?,
            None => {
                for chain in chains.keys().filter_map(|chain| chain.last()) {
                    deep.not_compared(snapshotter, chain, "how this snapshotter unpacks layers is not known");
                }
            }
        }
    }
    Ok(deep.compared)
}

/// The chain ids of the snapshot `key` and all below it.
fn chain(snapshots: &BTreeMap<String, SnapshotRecord>, key: &str) -> Option<Chain> {
    let (mut chain, mut at) = (Vec::new(), key);
    while !at.is_empty() {
        chain.push(at.parse().ok().filter(|_| chain.len() < MAX_LAYERS)?);
        at = &snapshots.get(at)?.parent;
    }
    chain.reverse();
    Some(chain)
}

struct Deep<'a> {
    host: &'a Host,
    images: &'a Images,
    content: &'a Checked,
    store: Content,
    databases: Databases,
    findings: &'a mut Findings,
    compared: usize,
}

impl Deep<'_> {
    fn not_compared(&mut self, snapshotter: &str, chain: impl std::fmt::Display, why: impl Into<String>) {
        let place = snapshotter::directory_of(self.host, snapshotter).unwrap_or_default();
        self.findings.add(&LAYER_NOT_COMPARED, format!("snapshot {snapshotter} {chain}"), place.display(), why);
    }

    /// All snapshots of one snapshotter. In the order of their chains each layer comes right after those below it.
    fn snapshotter(&mut self, name: &str, form: Form, chains: &BTreeMap<Chain, Vec<&str>>) -> Result<()> {
        let mut stack = Stack { form, done: Vec::new(), models: Vec::new() };
        for (chain, snapshots) in chains {
            let Some(top) = chain.last() else { continue };
            if let Err(why) = stack.climb(self, chain)? {
                self.not_compared(name, top, why);
                continue;
            }
            for snapshot in snapshots {
                let snapshot = SnapshotName((*snapshot).to_owned());
                match snapshotter::committed(self.host, &self.databases, name, &snapshot) {
                    Ok(tree) => self.compare(name, top, &tree, &stack)?,
                    Err(Error::Interrupted) => return Err(Error::Interrupted),
                    Err(e) => self.not_compared(name, top, with_causes(&e)),
                }
            }
        }
        Ok(())
    }

    fn compare(&mut self, snapshotter: &str, chain: &Digest, tree: &RwLayer, stack: &Stack) -> Result<()> {
        let root = tree.root();
        if let Some(why) = root.why_absent() {
            self.not_compared(snapshotter, chain, why);
            return Ok(());
        }
        let Some(Some(model)) = stack.models.first() else { return Ok(()) };
        let whose = self.whose(chain);
        let place = root.name().to_owned();
        let findings = &mut *self.findings;
        let mut each = |path: &[u8], difference: Difference<'_>| tell(findings, &whose, &place, path, difference);
        let compared = Node::open(root).and_then(|root| compare(model, &root, &mut each));
        crate::interrupt::check()?;
        match compared {
            Ok(()) => self.compared += 1,
            Err(e) => self.not_compared(snapshotter, chain, e.to_string()),
        }
        Ok(())
    }

    /// `layer of default/localhost/shop:1 and 2 more`.
    fn whose(&self, chain: &Digest) -> String {
        let uses = self.images.layers.get(chain).and_then(|layer| self.images.uses.get(layer.blobs.first()?));
        match uses {
            None => format!("layer {chain}"),
            Some(uses) if uses.more == 0 => uses.first.clone(),
            Some(uses) => format!("{} and {} more", uses.first, uses.more),
        }
    }

    /// Reads the layer that `chain` ends with into `model`; why it cannot be, otherwise.
    fn read(&mut self, chain: &Digest, model: &mut Model, below: &[Option<Model>]) -> Result<Result<(), String>> {
        let Some(layer) = self.images.layers.get(chain) else {
            return Ok(Err("no image that is on record has such layers".into()));
        };
        let lacks = |blob: &&Digest| self.content.lacks(blob).is_none();
        let Some(blob) = layer.blobs.iter().find(lacks) else {
            let lacking = layer
                .blobs
                .iter()
                .map(|blob| format!("its layer's blob {blob} {}", self.content.lacks(blob).unwrap_or("is missing")));
            return Ok(Err(lacking.collect::<Vec<_>>().join(", ")));
        };
        model.begin();
        let path = self.host.inside(&self.store.path(blob))?;
        let refused = RefCell::new(None);
        let read = untar::inodes(&path, |mut entry, told| {
            let name = entry.name.clone();
            model.apply(&mut entry, &told, below).inspect_err(|_| drop(refused.replace(Some(name))))
        });
        model.end();
        match read {
            Ok(diff_id) if diff_id == layer.diff_id => Ok(Ok(())),
            Ok(diff_id) => {
                let thing = format!("blob {blob}, {}", self.whose(chain));
                let seen = format!("its diff id is {diff_id}, the config names {}", layer.diff_id);
                self.findings.add(&LAYER_UNLIKE, thing, path.display(), seen);
                Ok(Err(format!("its layer's blob {blob} is another layer")))
            }
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(e) => {
                let at = refused.into_inner().map(|name| format!(", at {}", name.escape_ascii())).unwrap_or_default();
                Ok(Err(format!("its layer's blob cannot be unpacked{at}: {}", with_causes(&e))))
            }
        }
    }
}

/// The layers up to where the work stands.
struct Stack {
    form: Form,
    /// Those that have been applied.
    done: Chain,
    /// Topmost first: what each layer holds, or one tree of all; `None` for what is not known.
    models: Vec<Option<Model>>,
}

impl Stack {
    /// Applies layers until `chain` is what stands here; why the last of them is not known, otherwise.
    fn climb(&mut self, deep: &mut Deep<'_>, chain: &Chain) -> Result<Result<(), String>> {
        let same = self.done.iter().zip(chain).take_while(|(ours, theirs)| ours == theirs).count();
        let is_alone = matches!(self.form, Form::Overlay { .. });
        if is_alone {
            self.models.drain(..self.done.len() - same);
            self.done.truncate(same);
        } else if same < self.done.len() || self.models.is_empty() {
            self.models = vec![Some(Model::new(self.form))];
            self.done.clear();
        }
        let mut last = Ok(());
        for layer in &chain[self.done.len()..] {
            let read = if is_alone { self.push(deep, layer)? } else { self.add(deep, layer)? };
            last = read;
            self.done.push(*layer);
        }
        Ok(last)
    }

    /// A layer by itself.
    fn push(&mut self, deep: &mut Deep<'_>, layer: &Digest) -> Result<Result<(), String>> {
        let mut model = Model::new(Form::Overlay { is_lowest: self.models.is_empty() });
        let read = deep.read(layer, &mut model, &self.models)?;
        self.models.insert(0, read.is_ok().then_some(model));
        Ok(read)
    }

    /// A layer onto all below.
    fn add(&mut self, deep: &mut Deep<'_>, layer: &Digest) -> Result<Result<(), String>> {
        let Some(Some(model)) = self.models.first_mut() else {
            return Ok(Err("a layer below it is not known".into()));
        };
        let read = deep.read(layer, model, &[])?;
        if read.is_err() {
            self.models = vec![None];
        }
        Ok(read)
    }
}

/// One difference as a finding.
fn tell(findings: &mut Findings, whose: &str, place: &Path, path: &[u8], difference: Difference<'_>) {
    let mut add = |code: &Code, seen: String| {
        // A name that is a text is told exactly; JSON and the terminal escape it in their own ways.
        let name = std::str::from_utf8(path).map_or_else(|_| path.escape_ascii().to_string(), str::to_owned);
        let place: PathBuf = if name.is_empty() { place.to_owned() } else { place.join(&name) };
        findings.add(code, format!("/{name}, {whose}"), place.display(), seen);
    };
    match difference {
        Difference::Changed(what, meta) => add(&LAYER_FILE_CHANGED, format!("{}; {}", what.join(", "), since(meta))),
        Difference::Emptied(size, meta) => {
            add(&LAYER_FILE_EMPTY, format!("no content, had {size} bytes; {}", since(meta)))
        }
        Difference::Added(what, meta) => add(&LAYER_FILE_ADDED, format!("a {}; {}", what, since(meta))),
        Difference::Missing(what) => add(&LAYER_FILE_MISSING, format!("was a {what}")),
        Difference::Unreadable(why) => add(&LAYER_FILE_UNREADABLE, why),
    }
}

/// When something last happened to an inode: no call sets this time.
fn since(meta: &Meta) -> String {
    format!("its inode last changed at {}", moment::iso(meta.ctime, 0).0)
}
