//! `inspect`: what a bundle holds, read from the layout alone.

use std::collections::BTreeMap;

use serde::Serialize;
use tar::EntryType;

use crate::{
    criu::image::{self as criu, Core, DumpStats, Kind, Process, Stats},
    error::{Error, Result},
    layout::{Layout, untar},
    oci::{
        account::Account,
        image::{Descriptor, Index},
        names,
        raw::{MAX_PROCESSES, PROCESSES, Process as RawProcess, Processes},
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
pub fn inspect(layout: &Layout, wanted: Option<&str>) -> Result<Vec<Checkpoint>> {
    let index = layout.index()?;
    let mut found = Vec::new();
    for entry in index.manifests.iter().filter(|entry| entry.is_index()) {
        let asked = wanted.is_none_or(|w| entry.name() == Some(w) || entry.digest.to_string() == w);
        if let (true, Some(document)) = (asked, checkpoint_index(layout, entry)?) {
            found.push(checkpoint(layout, entry, &document, &index)?);
        }
    }
    match wanted {
        Some(wanted) if found.is_empty() => {
            let names: Vec<_> = inspect(layout, None)?.into_iter().map(|c| c.reference).collect();
            Err(Error::NotFound {
                what: format!("checkpoint {wanted:?} in {}", layout.dir().display()),
                hint: format!("it has: {}", if names.is_empty() { "none".into() } else { names.join(", ") }),
            })
        }
        _ => Ok(found),
    }
}

/// The entry's document if it is a checkpoint and no image.
fn checkpoint_index(layout: &Layout, entry: &Descriptor) -> Result<Option<Index>> {
    let bytes = layout.document(&entry.digest)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|e| Error::malformed(layout.blob_path(&entry.digest), e))?;
    Ok(index.annotations.contains_key(names::CHECKPOINT_RUNTIME).then_some(index))
}

fn checkpoint(layout: &Layout, entry: &Descriptor, document: &Index, whole: &Index) -> Result<Checkpoint> {
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
        checkpoint.take(layout, member)?;
    }
    Ok(checkpoint)
}

/// `namespace/id`, as far as it is known: containerd's own checkpoints say neither.
fn container(annotations: &BTreeMap<String, String>) -> String {
    let parts = [names::NAMESPACE, names::CONTAINER_NAME].map(|key| annotations.get(key).map(String::as_str));
    parts.into_iter().flatten().collect::<Vec<_>>().join("/")
}

impl Checkpoint {
    fn take(&mut self, layout: &Layout, member: &Descriptor) -> Result<()> {
        self.members.push(Member {
            media_type: member.media_type.clone(),
            digest: member.digest.to_string(),
            size: member.size,
            destination: member.annotations.get(names::MOUNT_DESTINATION).cloned(),
            mount: member.annotations.get(names::MOUNT_TYPE).cloned(),
        });
        match member.media_type.as_str() {
            names::CRIU_TAR => self.memory = Some(memory(layout, member)?),
            names::RAW_TAR => self.memory = Some(raw(layout, member)?),
            names::ACCOUNT => self.account = Some(account(layout, member)?),
            names::CHECKPOINT_CONFIG => self.args = args(layout, member)?,
            names::LAYER_GZIP | names::LAYER_ZSTD | names::LAYER_TAR => self.files = Some(files(layout, member)?),
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

/// What a raw capture says of itself.
fn raw(layout: &Layout, member: &Descriptor) -> Result<Memory> {
    let path = layout.blob_path(&member.digest);
    let mut document = None;
    untar::walk(&path, |entry| {
        if entry.name == PROCESSES.as_bytes() && entry.size <= MAX_PROCESSES {
            let mut bytes = Vec::new();
            entry.content.read_to_end(&mut bytes)?;
            document = Some(bytes);
        }
        Ok(())
    })?;
    let document = document.ok_or_else(|| Error::malformed(&path, format!("has no {PROCESSES}")))?;
    let Processes { processes, .. } = serde_json::from_slice(&document).map_err(|e| Error::malformed(&path, e))?;
    let pid = |pid: i32| u32::try_from(pid).unwrap_or(0);
    let task = |p: &RawProcess| Task {
        pid: pid(p.pid),
        ppid: pid(p.ppid),
        threads: p.threads.len(),
        command: p.comm.text.chars().take(COMM).collect(),
    };
    let pages = processes.iter().fold(0, |sum: u64, p| sum.saturating_add(p.memory.stored));
    let (size, processes) = (member.size, processes.iter().map(task).collect());
    Ok(Memory { restorable: false, processes, pages, size, stats: None })
}

fn task(process: Process, commands: &mut BTreeMap<u32, String>) -> Task {
    let command = commands.remove(&process.pid).unwrap_or_default();
    Task { pid: process.pid, ppid: process.ppid, threads: process.threads.len(), command }
}

/// A command's name has at most 15 bytes (Linux, `TASK_COMM_LEN`).
const COMM: usize = 15;

fn command(core: &[u8]) -> Option<String> {
    let cores: Vec<Core> = criu::messages(Kind::Core, core).ok()?;
    cores.into_iter().next()?.task.map(|task| task.comm.chars().take(COMM).collect())
}

fn stats(bytes: &[u8]) -> Option<DumpStats> {
    criu::messages::<Stats>(Kind::Stats, bytes).ok()?.into_iter().next()?.dump
}
