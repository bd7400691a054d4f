//! The processes in a raw capture ([`crate::oci::raw`]): `raw/processes.json` tells of all of them.

use std::{collections::BTreeMap, io::Read as _};

use super::{
    Memory, Task,
    memory::COMM,
    process::{Mapped, OpenFile, Process, Processes, Socket, words},
};
use crate::{
    error::{Error, Result},
    layout::{Layout, untar},
    oci::{
        image::Descriptor as Member,
        raw::{self, MAX_PROCESSES, PROCESSES},
    },
    procfs::net,
};

/// Longer environments are cut: the kernel itself takes up to a quarter of the stack's limit, which is 8 MiB as a rule.
const MAX_ENVIRONMENT: u64 = 2 << 20;

/// All environments together; those beyond it are not told.
const MAX_ENVIRONMENTS: usize = 64 << 20;

/// What is read of a capture.
struct Read {
    document: raw::Processes,
    /// By pid, if they were asked for.
    environments: BTreeMap<u32, Vec<u8>>,
}

fn read(layout: &Layout, member: &Member, environment: bool) -> Result<Read> {
    let path = layout.blob_path(&member.digest);
    let (mut bytes, mut environments, mut room) = (None, BTreeMap::new(), MAX_ENVIRONMENTS);
    untar::members(&path, |entry, _| {
        if entry.name == PROCESSES.as_bytes() && entry.size <= MAX_PROCESSES {
            let found: &mut Vec<u8> = bytes.insert(Vec::new());
            entry.content.read_to_end(found)?;
        }
        if let Some(pid) = of_environment(&entry.name).filter(|_| environment && room > 0) {
            let mut found = Vec::new();
            entry.content.take(MAX_ENVIRONMENT).read_to_end(&mut found)?;
            room = room.saturating_sub(found.len());
            environments.insert(pid, found);
        }
        Ok(())
    })?;
    let bytes = bytes.ok_or_else(|| Error::malformed(&path, format!("has no {PROCESSES}")))?;
    let document = serde_json::from_slice(&bytes).map_err(|e| Error::malformed(&path, e))?;
    Ok(Read { document, environments })
}

/// Whose environment the member `name` is.
fn of_environment(name: &[u8]) -> Option<u32> {
    std::str::from_utf8(name).ok()?.strip_prefix("raw/")?.strip_suffix("/environ")?.parse().ok()
}

/// What the capture says of itself, in short.
pub fn memory(layout: &Layout, member: &Member) -> Result<Memory> {
    let raw::Processes { processes, .. } = read(layout, member, false)?.document;
    let task = |p: &raw::Process| Task {
        pid: id(p.pid),
        ppid: id(p.ppid),
        threads: p.threads.len(),
        command: p.comm.text.chars().take(COMM).collect(),
    };
    let pages = processes.iter().fold(0, |sum: u64, p| sum.saturating_add(p.memory.stored));
    let (size, processes) = (member.size, processes.iter().map(task).collect());
    Ok(Memory { restorable: false, processes, pages, size, stats: None })
}

/// The processes of the capture; environments only if they are asked for.
pub fn processes(layout: &Layout, member: &Member, environment: bool) -> Result<Processes> {
    let Read { document: raw::Processes { processes, notes, .. }, mut environments } =
        read(layout, member, environment)?;
    let whole = |one| {
        let process = process(one);
        let environment = environments.remove(&process.pid).map(|bytes| words(&bytes));
        Process { environment, ..process }
    };
    Ok(Processes { source: "raw", processes: processes.into_iter().map(whole).collect(), notes })
}

/// A pid that is none stands as 0.
fn id(pid: i32) -> u32 {
    u32::try_from(pid).unwrap_or(0)
}

fn process(one: raw::Process) -> Process {
    Process {
        pid: id(one.pid),
        ppid: id(one.ppid),
        state: one.state,
        command: one.comm,
        args: Some(one.cmdline),
        exe: one.exe,
        cwd: one.cwd,
        // Real, effective, saved, of the file system.
        uid: one.uids.get(1).copied(),
        gid: one.gids.get(1).copied(),
        threads: one.threads.into_iter().map(|thread| id(thread.tid)).collect(),
        files: one.files.into_iter().map(open_file).collect(),
        files_unlisted: one.files_unlisted,
        memory: vec![Mapped { kind: "all".into(), mappings: one.memory.mappings, size: one.memory.size }],
        stored: one.memory.stored,
        notes: one.notes,
        ..Process::default()
    }
}

fn open_file(one: raw::OpenFile) -> OpenFile {
    let is = |prefix: &str| one.target.text.starts_with(prefix);
    let kind = match () {
        () if one.socket.is_some() || is("socket:[") => "socket",
        () if is("pipe:[") => "pipe",
        () if is("/") => "file",
        () => one.target.text.strip_prefix("anon_inode:").map_or("unknown", |name| name.trim_matches(['[', ']'])),
    };
    let kind = kind.to_owned();
    let socket = one.socket.map(|net::Socket { protocol, kind, local, remote, state, .. }| Socket {
        protocol,
        kind,
        local,
        remote,
        state,
    });
    let target = socket.as_ref().map(|socket| socket.local.clone()).filter(|local| !local.is_empty());
    OpenFile {
        fd: one.fd,
        kind,
        target: target.unwrap_or(one.target),
        position: one.position,
        size: None,
        deleted: one.deleted,
        socket,
    }
}
