//! `inspect`: what a bundle holds, read from the layout alone.

use std::collections::BTreeMap;

use serde::Serialize;
use tar::EntryType;

pub mod layer;
mod memory;
pub mod process;
mod raw;

use crate::{
    criu::image::{self as criu, Core, DumpStats, Kind, Process, Stats},
    error::{Error, Result},
    layout::{Layout, untar},
    oci::{
        account::Account,
        image::{Descriptor, Index},
        names,
        runtime::Spec,
    },
    proto::{self, Any},
};

/// One checkpoint of a layout. Sizes in bytes, as stored.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Checkpoint {
    /// Its name.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The digest of its index.
    pub digest: String,
    /// When it was made (RFC 3339).
    pub created: String,
    /// `namespace/id`.
    pub container: String,
    /// The base image's name.
    pub image: String,
    /// The base image's blobs are in the layout.
    pub image_carried: bool,
    /// The shim.
    pub runtime: String,
    /// The snapshotter.
    pub snapshotter: String,
    /// The first process's command line.
    pub args: Vec<String>,
    /// All annotations of its entry.
    pub annotations: BTreeMap<String, String>,
    /// Its members, in order.
    pub members: Vec<Member>,
    /// The rw layer.
    pub files: Option<Files>,
    /// The memory image.
    pub memory: Option<Memory>,
    /// What the memory image, or a raw capture, holds of each process, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<process::Processes>,
    /// What it could not hold; `None` in a checkpoint of another program's.
    pub account: Option<Account>,
}

/// One member of a checkpoint index.
#[derive(Debug, Clone, Serialize)]
pub struct Member {
    /// Media type.
    pub media_type: String,
    /// Digest.
    pub digest: String,
    /// Size in bytes.
    pub size: u64,
    /// For a mount: where it was mounted; for the log: where it was on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// `bind`, `tmpfs` or `log`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
}

/// What the rw layer changes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Files {
    /// Entries that add or change something.
    pub entries: u64,
    /// Regular files among them.
    pub regular: u64,
    /// Deletions.
    pub whiteouts: u64,
    /// Directories whose lower content is hidden.
    pub opaque: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// As stored.
    pub size: u64,
}

/// What the memory image holds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Memory {
    /// False of a raw capture: it can be looked at, and not brought back.
    pub restorable: bool,
    /// The processes, as in the container's pid namespace; of a raw capture, as on the host.
    pub processes: Vec<Task>,
    /// Bytes of pages.
    pub pages: u64,
    /// As stored.
    pub size: u64,
    /// CRIU's own figures, when they are in the tar.
    pub stats: Option<DumpStats>,
}

/// One process of a memory image.
#[derive(Debug, Clone, Serialize)]
pub struct Task {
    /// Its pid.
    pub pid: u32,
    /// Its parent's.
    pub ppid: u32,
    /// How many threads.
    pub threads: usize,
    /// Its command's name.
    pub command: String,
}

/// The checkpoints of a layout, or the one called `wanted` (its name or its digest).
pub fn inspect(layout: &Layout, wanted: Option<&str>, depth: Depth) -> Result<Vec<Checkpoint>> {
    let index = layout.index()?;
    let chosen = chosen(layout, &index, wanted)?;
    chosen.into_iter().map(|(entry, document)| checkpoint(layout, entry, &document, &index, depth)).collect()
}

/// How much is told of the processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Depth {
    /// Their tree.
    #[default]
    Short,
    /// Command lines, open files, sockets, mappings.
    Processes,
    /// Environments too, which may hold secrets.
    Environments,
}

/// Tells `each` every entry of the rw layers of the checkpoints of a layout, or of the one called `wanted`, with the name of
/// the checkpoint.
pub fn files_of(
    layout: &Layout,
    wanted: Option<&str>,
    each: &mut dyn FnMut(&str, layer::LayerEntry) -> Result<()>,
) -> Result<()> {
    let index = layout.index()?;
    for (entry, document) in chosen(layout, &index, wanted)? {
        let name = entry.name().unwrap_or_default();
        for member in document.manifests.iter().filter(|member| is_layer(&member.media_type)) {
            layer::entries(layout, member, &mut |entry| each(name, entry))?;
        }
    }
    Ok(())
}

fn is_layer(media_type: &str) -> bool {
    matches!(media_type, names::LAYER_GZIP | names::LAYER_ZSTD | names::LAYER_TAR)
}

/// The checkpoints of a layout, or the one called `wanted`, which must be there.
fn chosen<'i>(layout: &Layout, index: &'i Index, wanted: Option<&str>) -> Result<Vec<(&'i Descriptor, Index)>> {
    let mut all = Vec::new();
    for entry in index.manifests.iter().filter(|entry| entry.is_index()) {
        all.extend(checkpoint_index(layout, entry)?.map(|document| (entry, document)));
    }
    let Some(wanted) = wanted else { return Ok(all) };
    let names: Vec<_> = all.iter().map(|(entry, _)| entry.name().unwrap_or_default()).collect();
    let known = if names.is_empty() { "none".into() } else { names.join(", ") };
    all.retain(|(entry, _)| entry.name() == Some(wanted) || entry.digest.to_string() == wanted);
    if all.is_empty() {
        return Err(Error::NotFound {
            what: format!("checkpoint {wanted:?} in {}", layout.dir().display()),
            hint: format!("it has: {known}"),
        });
    }
    Ok(all)
}

/// The entry's document if it is a checkpoint and no image.
fn checkpoint_index(layout: &Layout, entry: &Descriptor) -> Result<Option<Index>> {
    let bytes = layout.document(&entry.digest)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|e| Error::malformed(layout.blob_path(&entry.digest), e))?;
    Ok(index.annotations.contains_key(names::CHECKPOINT_RUNTIME).then_some(index))
}

fn checkpoint(
    layout: &Layout,
    entry: &Descriptor,
    document: &Index,
    whole: &Index,
    depth: Depth,
) -> Result<Checkpoint> {
    let of = |map: &BTreeMap<String, String>, key: &str| map.get(key).cloned().unwrap_or_default();
    let image = of(&document.annotations, names::REF_NAME);
    let mut checkpoint = Checkpoint {
        reference: entry.name().unwrap_or_default().to_owned(),
        digest: entry.digest.to_string(),
        created: of(&entry.annotations, names::CREATED),
        container: container(&entry.annotations),
        image_carried: whole.manifests.iter().any(|other| other.name() == Some(image.as_str())),
        image,
        runtime: of(&document.annotations, names::CHECKPOINT_RUNTIME),
        snapshotter: of(&document.annotations, names::CHECKPOINT_SNAPSHOTTER),
        annotations: entry.annotations.clone(),
        ..Checkpoint::default()
    };
    for member in &document.manifests {
        checkpoint.take(layout, member, depth)?;
    }
    Ok(checkpoint)
}

/// `namespace/id`, as far as it is known: containerd's own checkpoints say neither.
fn container(annotations: &BTreeMap<String, String>) -> String {
    let parts = [names::NAMESPACE, names::CONTAINER_NAME].map(|key| annotations.get(key).map(String::as_str));
    parts.into_iter().flatten().collect::<Vec<_>>().join("/")
}

impl Checkpoint {
    fn take(&mut self, layout: &Layout, member: &Descriptor, depth: Depth) -> Result<()> {
        self.members.push(Member {
            media_type: member.media_type.clone(),
            digest: member.digest.to_string(),
            size: member.size,
            destination: member.annotations.get(names::MOUNT_DESTINATION).cloned(),
            mount: member.annotations.get(names::MOUNT_TYPE).cloned(),
        });
        match member.media_type.as_str() {
            names::CRIU_TAR => self.memory = Some(memory(layout, member)?),
            names::RAW_TAR => self.memory = Some(raw::memory(layout, member)?),
            names::ACCOUNT => self.account = Some(account(layout, member)?),
            names::CHECKPOINT_CONFIG => self.args = args(layout, member)?,
            media_type if is_layer(media_type) => self.files = Some(files(layout, member)?),
            _ => {}
        }
        let environment = depth == Depth::Environments;
        match member.media_type.as_str() {
            names::CRIU_TAR if depth > Depth::Short => {
                self.processes = Some(memory::processes(layout, member, environment)?);
            }
            names::RAW_TAR if depth > Depth::Short => {
                self.processes = Some(raw::processes(layout, member, environment)?);
            }
            _ => {}
        }
        Ok(())
    }
}

fn account(layout: &Layout, member: &Descriptor) -> Result<Account> {
    let path = layout.blob_path(&member.digest);
    serde_json::from_slice(&layout.document(&member.digest)?).map_err(|e| Error::malformed(path, e))
}

fn args(layout: &Layout, member: &Descriptor) -> Result<Vec<String>> {
    let path = layout.blob_path(&member.digest);
    let any: Any = proto::decode(&layout.document(&member.digest)?).map_err(|e| Error::malformed(&path, e))?;
    let spec: Spec = serde_json::from_slice(&any.value).map_err(|e| Error::malformed(&path, e))?;
    Ok(spec.process.unwrap_or_default().args)
}

fn files(layout: &Layout, member: &Descriptor) -> Result<Files> {
    let mut files = Files { size: member.size, ..Files::default() };
    untar::walk(&layout.blob_path(&member.digest), |entry| {
        let name = entry.name.rsplit(|&b| b == b'/').next().unwrap_or_default();
        match (name, entry.kind) {
            (b".wh..wh..opq", _) => files.opaque += 1,
            (_, EntryType::Regular) if name.starts_with(b".wh.") => files.whiteouts += 1,
            (_, kind) => {
                files.entries += 1;
                files.regular += u64::from(kind == EntryType::Regular);
                files.bytes = files.bytes.saturating_add(entry.size);
            }
        }
        Ok(())
    })?;
    Ok(files)
}

/// An image of metadata larger than this is not CRIU's.
const MAX_IMAGE: u64 = 64 << 20;

fn memory(layout: &Layout, member: &Descriptor) -> Result<Memory> {
    let path = layout.blob_path(&member.digest);
    let mut memory = Memory { size: member.size, restorable: true, ..Memory::default() };
    let (mut pstree, mut commands) = (Vec::new(), BTreeMap::new());
    untar::walk(&path, |entry| {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        if name.starts_with("pages-") {
            memory.pages = memory.pages.saturating_add(entry.size);
        }
        let core = name.strip_prefix("core-").and_then(|rest| rest.strip_suffix(".img")?.parse::<u32>().ok());
        let wanted = core.is_some() || name == "pstree.img" || name == "stats-dump";
        if !wanted || entry.size > MAX_IMAGE {
            return Ok(());
        }
        let mut bytes = Vec::new();
        entry.content.read_to_end(&mut bytes)?;
        match core {
            Some(pid) => commands.extend(command(&bytes).map(|command| (pid, command))),
            None if name == "pstree.img" => pstree = bytes,
            None => memory.stats = stats(&bytes),
        }
        Ok(())
    })?;
    let processes: Vec<Process> = criu::messages(Kind::Pstree, &pstree).map_err(|e| Error::malformed(path, e))?;
    memory.processes = processes.into_iter().map(|process| task(process, &mut commands)).collect();
    Ok(memory)
}

fn task(process: Process, commands: &mut BTreeMap<u32, String>) -> Task {
    let command = commands.remove(&process.pid).unwrap_or_default();
    Task { pid: process.pid, ppid: process.ppid, threads: process.threads.len(), command }
}

fn command(core: &[u8]) -> Option<String> {
    let cores: Vec<Core> = criu::messages(Kind::Core, core).ok()?;
    let comm = cores.into_iter().next()?.task?.comm;
    Some(String::from_utf8_lossy(comm.get(..memory::COMM).unwrap_or(&comm)).into_owned())
}

fn stats(bytes: &[u8]) -> Option<DumpStats> {
    criu::messages::<Stats>(Kind::Stats, bytes).ok()?.into_iter().next()?.dump
}
