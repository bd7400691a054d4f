//! The processes in a raw capture: a tar of media type [`MEDIA_TYPE`] in which `raw/processes.json` tells of all of them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::process::{Mapped, OpenFile, Process, Processes, Socket};
use crate::{
    error::{Error, Result},
    layout::{Layout, untar},
    name::AnyText,
    oci::image::Descriptor as Member,
};

/// The media type of a raw capture.
pub const MEDIA_TYPE: &str = "application/vnd.dewar.memory.raw.v1.tar";

const DOCUMENT: &[u8] = b"raw/processes.json";

/// The document is no longer.
const MAX_DOCUMENT: u64 = 64 << 20;

/// What is read of the document; members that are not known are passed over.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    processes: Vec<One>,
    notes: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct One {
    pid: u32,
    ppid: u32,
    comm: AnyText,
    cmdline: Vec<AnyText>,
    environment: Option<Vec<AnyText>>,
    exe: Option<AnyText>,
    cwd: Option<AnyText>,
    uids: Vec<u32>,
    gids: Vec<u32>,
    state: String,
    threads: Vec<Thread>,
    files: Vec<Descriptor>,
    files_unlisted: u64,
    memory: BTreeMap<String, u64>,
    notes: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Thread {
    tid: u32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Descriptor {
    fd: u32,
    target: AnyText,
    position: Option<u64>,
    deleted: bool,
    socket: Option<Connection>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Connection {
    protocol: String,
    kind: String,
    local: AnyText,
    remote: String,
    state: String,
}

/// Reads the processes of the capture `member`; environments only if they are asked for.
pub fn processes(layout: &Layout, member: &Member, environment: bool) -> Result<Processes> {
    let path = layout.blob_path(&member.digest);
    let mut bytes = None;
    untar::members(&path, |entry, _| {
        if entry.name == DOCUMENT && entry.size <= MAX_DOCUMENT {
            let found: &mut Vec<u8> = bytes.insert(Vec::new());
            entry.content.read_to_end(found)?;
        }
        Ok(())
    })?;
    let Some(bytes) = bytes else {
        return Err(Error::malformed(path, "a raw capture without its raw/processes.json"));
    };
    let document: Document = serde_json::from_slice(&bytes).map_err(|e| Error::malformed(path, e))?;
    let processes = document.processes.into_iter().map(|one| process(one, environment)).collect();
    Ok(Processes { source: "raw", processes, notes: document.notes })
}

fn process(one: One, environment: bool) -> Process {
    let stored = one.memory.get("stored").copied().unwrap_or_default();
    let sum = |key: &str| one.memory.get(key).copied().unwrap_or_default();
    Process {
        pid: one.pid,
        ppid: one.ppid,
        state: one.state,
        command: one.comm,
        args: Some(one.cmdline),
        environment: one.environment.filter(|_| environment),
        exe: one.exe,
        cwd: one.cwd,
        // Real, effective, saved, of the file system.
        uid: one.uids.get(1).copied(),
        gid: one.gids.get(1).copied(),
        threads: one.threads.into_iter().map(|thread| thread.tid).collect(),
        files: one.files.into_iter().map(open_file).collect(),
        files_unlisted: one.files_unlisted,
        memory: vec![Mapped { kind: "all".into(), mappings: sum("mappings"), size: sum("size") }],
        stored,
        notes: one.notes,
        ..Process::default()
    }
}

fn open_file(one: Descriptor) -> OpenFile {
    let is = |prefix: &str| one.target.text.starts_with(prefix);
    let kind = match () {
        () if one.socket.is_some() || is("socket:[") => "socket",
        () if is("pipe:[") => "pipe",
        () if is("/") => "file",
        () => one.target.text.strip_prefix("anon_inode:").map_or("unknown", |name| name.trim_matches(['[', ']'])),
    };
    let kind = kind.to_owned();
    let socket = one.socket.map(|Connection { protocol, kind, local, remote, state }| Socket {
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
