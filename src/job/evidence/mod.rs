//! The acquisition record of a checkpoint, from what the run knows of itself; attached to the checkpoint index as an
//! artifact (OCI image spec 1.1, `subject`). What it looks like is [`crate::evidence`]'s.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use serde_json::{Value, json};

use super::{locate::Target, store::Store};
use crate::{
    binds,
    bundle::Parts,
    digest::{Digest, Hasher},
    error::{At, Error, Result},
    evidence::{self, AnyText, Case, Document, Output, Place, Protection, Record, Run, Skipped, Subject, sign::Key},
    host::{Host, ground, shield},
    layout::{Blob, Staging, read},
    name::AnyPath,
    oci::{
        image::{Descriptor, Index, Manifest},
        names,
    },
    snapshotter::RwLayer,
};

pub mod diary;
mod machine;
mod sealed;
mod sources;

pub use diary::Diary;
pub use sealed::attach as attach_beside;
use sources::Tree;

/// What the user asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// What the examiner says.
    pub case: Case,
    /// Who signs.
    pub key: Option<Arc<Key>>,
    /// The files of the rw layer, of mounts and of the log are listed one by one.
    pub files: bool,
}

/// How the tree of the rw layer is called in the list of sources.
pub const RW_LAYER: &str = "rw layer";

/// No more findings and notes than these are in a record, nor more of each; the account has those that are paths.
const MAX_TOLD: usize = 1000;
const MAX_TEXT: usize = 1000;

/// What the list of sources never has.
const NEVER_LISTED: &str = "files of image layers that were only compared with the container's (snapshotters without an overlay), \
                            or read to make a lost layer again; files that hold whole file systems (blockfile, erofs, \
                            devices): what was read of them is in the layer; and procfs, sysfs and cgroupfs";
/// What it lacks unless it was asked for.
const NOT_ASKED: &str = "the files of the rw layer, of mounts and of the log, one by one: their content is in the checkpoint's tars; \
                         --case, --examiner, --reason or --sign-key have them listed with their inodes and digests";

/// Begins to write down what is read of trees, if that is wanted.
pub fn begin(wanted: Option<&Wanted>, staging: &Staging) -> Result<()> {
    wanted.filter(|wanted| wanted.files).map_or(Ok(()), |_| sources::begin(staging))
}

/// Begins to find out what the record tells of this program: to hash its file takes as long as many a small checkpoint's files.
pub fn ahead(wanted: Option<&Wanted>, host: &Host) {
    if wanted.is_some() {
        let host = host.clone();
        // Without a thread it is found out when it is needed.
        let _ = thread::Builder::new().spawn(move || machine::tool(&host));
    }
}

/// All that a record is made of.
pub struct Scene<'a> {
    /// The store.
    pub store: &'a Store,
    /// What was asked for.
    pub wanted: &'a Wanted,
    /// What was done.
    pub diary: &'a Diary,
    /// The places of the container's files and log.
    pub places: &'a [PathBuf],
    /// What was brought home.
    pub parts: &'a Parts,
    /// What is as it must be.
    pub notes: &'a [String],
}

/// The places of a container's that lie outside the store's directories, or may: its files, its log, and, if they are taken
/// along, what is mounted into it.
pub fn places(host: &Host, target: &Target, with_mounts: bool) -> Vec<PathBuf> {
    fn trees(rw: &RwLayer) -> Vec<&crate::snapshotter::Root> {
        match rw {
            RwLayer::Overlay { upper, lowers, .. } => std::iter::once(upper).chain(lowers).collect(),
            RwLayer::Stacked { overlay, .. } => trees(overlay),
            RwLayer::Trees { base, active, .. } => vec![base, active],
            RwLayer::Tree { dir } => vec![dir],
        }
    }
    let roots = target.rw.iter().flat_map(trees).map(|root| root.name().to_owned());
    let mounts = target.spec.iter().filter(|_| with_mounts).flat_map(|spec| &spec.mounts);
    let sources = mounts.filter(|mount| mount.is_bind()).map(|mount| &mount.source);
    let paths = sources.chain(&target.log).filter_map(|path| host.inside(path.as_ref()).ok());
    roots.chain(paths.filter(|path| path.is_absolute())).collect()
}

impl Scene<'_> {
    /// Puts the record and what belongs to it into the staging; yields its entry for `index.json`. `entries` are the
    /// checkpoint's own, its index the last.
    pub fn attach(&self, staging: &Staging, entries: &[Descriptor]) -> Result<Descriptor> {
        let Some(subject) = entries.last() else { return Err(Error::malformed("index.json", "no entry")) };
        let outputs = outputs(staging, entries)?;
        // These read files, too, and so come before the list of all that was read.
        let host = &self.store.host;
        let (machine, suspect, clock) = (machine::machine(host), machine::suspect(host), machine::clocks(host));
        let sources = sources::write(staging, &self.trees(), self.limits())?;
        let listed = outputs.iter().cloned().chain([Output {
            digest: sources.list.digest,
            size: sources.list.size,
            media_type: names::EVIDENCE_SOURCES.into(),
            path: evidence::path_of(&sources.list.digest),
        }]);
        let sums = staging.blob_of(evidence::sums(&listed.collect::<Vec<_>>()).as_bytes())?;
        self.diary.step("the record is made");
        let (steps, changes) = self.diary.told();
        let record = Record {
            schema: evidence::VERSION,
            case: self.wanted.case.clone(),
            tool: machine::tool(host),
            run: run(),
            machine,
            suspect,
            clock,
            subject: Subject {
                container: self.parts.container.name.to_string(),
                reference: self.parts.reference.clone(),
                digest: subject.digest,
                size: subject.size,
            },
            order: self.order(),
            steps,
            changes,
            protection: self.protection(),
            sources,
            skipped: self.skipped(&outputs),
            outputs,
            sums: Document { digest: sums.digest, size: sums.size },
            signer: self.wanted.key.as_ref().map(|key| key.signer()),
            sealed: None,
        };
        artifact(staging, &record, subject, self.wanted.key.as_deref(), Staging::blob_of)
    }

    /// The trees that are listed, in the order in which they were read.
    fn trees(&self) -> Vec<Tree> {
        if !self.wanted.files {
            return Vec::new();
        }
        let layer = self.parts.layer.as_ref();
        let rw = layer.map(|layer| Tree { of: RW_LAYER.into(), tar: layer.blob.digest });
        let binds = self.parts.binds.iter().map(|bind| {
            let of = binds::name_of(bind.kind, &bind.destination);
            Tree { of, tar: bind.blob.digest }
        });
        let beside = layer.and_then(|layer| layer.beside);
        let beside = beside.map(|blob| Tree { of: "beside the rw layer".into(), tar: blob.digest });
        rw.into_iter().chain(binds).chain(beside).collect()
    }

    fn limits(&self) -> Vec<String> {
        let asked = (!self.wanted.files).then_some(NOT_ASKED);
        std::iter::once(NEVER_LISTED).chain(asked).map(str::to_owned).collect()
    }

    fn order(&self) -> Vec<String> {
        let parts = self.parts;
        let base = parts.base.as_ref().is_some_and(|base| base.carried);
        let mounts = parts.binds.iter().any(|bind| bind.kind != binds::log::LOG);
        let log = parts.binds.iter().any(|bind| bind.kind == binds::log::LOG);
        [
            (true, "records in the databases and state directories (before the container was held still)"),
            (base, "the base image (before, too: its blobs never change)"),
            (parts.volatile.is_some(), "sockets, routes, mounts and what else is volatile (beside the next)"),
            (parts.criu.is_some(), "memory, process state and open connections"),
            (parts.raw.is_some(), "memory and process state as they are (raw: not to be restored)"),
            (parts.layer.is_some(), "the files that the container changed"),
            (mounts, "what is mounted into the container"),
            (log, "the container's log"),
        ]
        .into_iter()
        .filter(|(is_there, _)| *is_there)
        .map(|(_, what)| what.to_owned())
        .collect()
    }

    fn protection(&self) -> Protection {
        let host = &self.store.host;
        let all: BTreeSet<PathBuf> = host.places().into_iter().chain(self.places.iter().cloned()).collect();
        let ground = |path: &PathBuf| ground::of(host, path).ok();
        let places: BTreeSet<_> = all.iter().filter_map(ground).collect();
        Protection {
            how: shield::told(),
            write_blocked: host.write_blocked,
            places: places.into_iter().map(place).collect(),
        }
    }

    fn skipped(&self, outputs: &[Output]) -> Skipped {
        let account = &self.parts.account;
        let short = |text: &String| text.chars().take(MAX_TEXT).collect::<String>();
        let some = |list: &[String]| list.iter().take(MAX_TOLD).map(short).collect::<Vec<_>>();
        let (findings, notes) = (some(&account.findings), some(self.notes));
        let more = account.findings.len() + self.notes.len() - findings.len() - notes.len();
        Skipped {
            account: outputs.iter().find(|output| output.media_type == names::ACCOUNT).map(|output| output.digest),
            paths: (account.left_out.len() + account.odd.len()) as u64 + account.unlisted,
            findings,
            notes,
            unlisted: more as u64,
        }
    }
}

fn place(ground: ground::Ground) -> Place {
    let text = |text: std::ffi::OsString| AnyText::from(text.into_encoded_bytes());
    Place {
        path: AnyPath::from(ground.path.into_os_string().into_encoded_bytes()),
        mounted_at: text(ground.mounted_at),
        device: text(ground.device),
        file_system: ground.file_system.to_string_lossy().into_owned(),
        read_only_mount: ground.is_read_only,
        read_only_device: ground.is_device_read_only,
    }
}

fn run() -> Run {
    let bytes = |text: std::ffi::OsString| AnyText::from(text.into_encoded_bytes());
    Run {
        argv: std::env::args_os().map(bytes).collect(),
        directory: std::env::current_dir().map(|dir| bytes(dir.into())).unwrap_or_default(),
        euid: nix::unistd::geteuid().as_raw(),
        pid: std::process::id(),
    }
}

/// All blobs that the entries lead to and that are in the bundle, by digest.
fn outputs(staging: &Staging, entries: &[Descriptor]) -> Result<Vec<Output>> {
    let (mut found, mut todo) = (BTreeMap::new(), entries.to_vec());
    while let Some(descriptor) = todo.pop() {
        // Of an image for several machines only this one's part is here.
        if found.contains_key(&descriptor.digest) || !staging.has(&descriptor.digest, descriptor.size) {
            continue;
        }
        if descriptor.is_index() || descriptor.is_manifest() {
            todo.extend(children(staging, &descriptor)?);
        }
        let Descriptor { digest, size, media_type, .. } = descriptor;
        found.insert(digest, Output { digest, size, media_type, path: evidence::path_of(&digest) });
    }
    Ok(found.into_values().collect())
}

fn children(staging: &Staging, of: &Descriptor) -> Result<Vec<Descriptor>> {
    let path = staging.blob_path(&of.digest);
    if of.size > read::MAX_DOCUMENT {
        return Err(Error::malformed(path, "is larger than any index, manifest or config may be (8 MiB)"));
    }
    let bytes = staging.read_blob(&of.digest)?;
    if of.is_index() {
        let index = serde_json::from_slice::<Index>(&bytes).map_err(|e| Error::malformed(path, e))?;
        return Ok(index.manifests);
    }
    let manifest = serde_json::from_slice::<Manifest>(&bytes).map_err(|e| Error::malformed(path, e))?;
    Ok(std::iter::once(manifest.config).chain(manifest.layers).chain(manifest.subject).collect())
}

/// The record, the sources, the sums and the signature as an artifact about `subject`.
fn artifact(
    staging: &Staging,
    record: &Record,
    subject: &Descriptor,
    key: Option<&Key>,
    store: fn(&Staging, &[u8]) -> Result<Blob>,
) -> Result<Descriptor> {
    let mut bytes = serde_json::to_vec_pretty(record).map_err(|e| Error::malformed("evidence", e))?;
    bytes.push(b'\n');
    if bytes.len() as u64 > read::MAX_DOCUMENT {
        let why = format!("would be larger than 8 MiB: the image has {} blobs", record.outputs.len());
        return Err(Error::malformed("the record", why));
    }
    let layer = |media_type: &str, document: Document| Descriptor::new(media_type, document.digest, document.size);
    let blob = store(staging, &bytes)?;
    let mut layers = vec![Descriptor::new(names::EVIDENCE, blob.digest, blob.size)];
    // Where they are sealed they are a layer of the sealed checkpoint.
    layers.extend(record.sealed.is_none().then(|| layer(names::EVIDENCE_SOURCES, record.sources.list)));
    layers.push(layer(names::EVIDENCE_SUMS, record.sums));
    if let (Some(key), Some(signer)) = (key, &record.signer) {
        let signature = store(staging, &key.sign(&bytes))?;
        let signature = Descriptor::new(names::EVIDENCE_SIGNATURE, signature.digest, signature.size);
        layers.push(signature.with(names::EVIDENCE_KEY, &signer.key_id));
    }
    let config = store(staging, b"{}")?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": names::MANIFEST,
        "artifactType": names::EVIDENCE,
        "config": Descriptor::new(names::EMPTY, config.digest, config.size),
        "layers": layers,
        "subject": Descriptor::new(&subject.media_type, subject.digest, subject.size),
    });
    let manifest = store(staging, manifest.to_string().as_bytes())?;
    // No name: what has one becomes an image where it is imported.
    let mut entry = Descriptor::new(names::MANIFEST, manifest.digest, manifest.size);
    entry.rest.insert("artifactType".into(), Value::from(names::EVIDENCE));
    Ok(entry.with(names::EVIDENCE_OF, subject.digest.to_string()).sealed())
}

/// The digest of a file's content, from where it stands.
fn digest_of(mut file: File, path: &Path) -> Result<Digest> {
    let (mut hasher, mut buffer) = (Hasher::default(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer).at("read", path)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}
