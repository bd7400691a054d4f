//! Shims, without a word to them: the address in a bundle against the sockets the kernel knows, and their command lines.
//!
//! ```text
//! <bundle>/bootstrap.json   {"version":3,"address":"unix:///run/containerd/s/<hash>","protocol":"ttrpc"}    2.x
//! <bundle>/address          unix:///run/containerd/s/<hash>                                                 before
//! /proc/net/unix            Num RefCount Protocol Flags Type St Inode Path        flag 0x10000: it listens
//! /proc/<pid>/cmdline       containerd-shim-runc-v2 -namespace <ns> -id <id> -address <containerd's socket>
//! ```
//! Source: containerd `core/runtime/v2/{shim,binary}.go`, `pkg/shim/util.go`; proc_pid_net(5), Linux `net/unix/af_unix.c`, `unix_seq_show`.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    error::{At, Result},
    host::{Host, document},
};

/// `__SO_ACCEPTCON`.
const LISTENS: u32 = 0x1_0000;

#[derive(Deserialize)]
struct Bootstrap {
    address: String,
}

/// The socket of the shim that serves a bundle; `None` if none is on record, or it is no socket with a path.
pub fn socket(bundle: &Path) -> Option<PathBuf> {
    let file = |name: &str| document::read(bundle, &[name]).ok().flatten();
    let bootstrap = file("bootstrap.json").and_then(|bytes| serde_json::from_slice::<Bootstrap>(&bytes).ok());
    let address = bootstrap.map(|b| b.address).or_else(|| String::from_utf8(file("address")?).ok())?;
    let path = address.trim().strip_prefix("unix://")?;
    path.starts_with('/').then(|| path.into())
}

/// The sockets that somebody listens on, in our network namespace.
pub fn listening(host: &Host) -> Result<HashSet<PathBuf>> {
    let path = host.proc.join("net/unix");
    let bytes = fs::read(&path).at("read", &path)?;
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

/// A shim's process, as its command line has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shim {
    /// Its pid.
    pub pid: i32,
    /// The namespace it serves.
    pub namespace: String,
    /// The container it was started for; of a pod, the sandbox.
    pub id: String,
    /// The socket of its containerd.
    pub address: PathBuf,
}

impl Shim {
    /// The shim that runs under `pid`; `None` if that is none.
    pub fn of(host: &Host, pid: i32) -> Result<Option<Self>> {
        let words = command(host, pid)?;
        let program = words.first().and_then(|program| program.rsplit('/').next()).unwrap_or_default();
        let after = |flag: &str| words.iter().position(|w| w == flag).and_then(|at| words.get(at + 1)).cloned();
        let fields = (after("-namespace"), after("-id"), after("-address").unwrap_or_default());
        Ok(match fields {
            (Some(namespace), Some(id), address) if program.starts_with("containerd-shim") => {
                Some(Self { pid, namespace, id, address: address.into() })
            }
            _ => None,
        })
    }

    /// Every shim that runs.
    pub fn all(host: &Host) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&host.proc).at("read", &host.proc)? {
            let entry = entry.at("read", &host.proc)?;
            if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                found.extend(Self::of(host, pid)?);
            }
        }
        found.sort_unstable_by_key(|shim| shim.pid);
        Ok(found)
    }
}

/// The command line of a process, or its name in brackets where it has none; empty if there is no such process.
pub fn command(host: &Host, pid: i32) -> Result<Vec<String>> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let line = of_process(host, pid, "cmdline")?;
    if line.is_empty() {
        let name = of_process(host, pid, "comm")?;
        return Ok(if name.is_empty() { Vec::new() } else { vec![format!("[{}]", text(&name).trim())] });
    }
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    Ok(line.split(|&b| b == 0).map(text).collect())
}

/// The parent of a process: field 4 of `/proc/<pid>/stat`, counted from behind the name.
pub fn parent(host: &Host, pid: i32) -> Result<Option<i32>> {
    let stat = of_process(host, pid, "stat")?;
    let Some(end) = stat.iter().rposition(|&b| b == b')') else { return Ok(None) };
    let rest = String::from_utf8_lossy(&stat[end + 1..]);
    Ok(rest.split_ascii_whitespace().nth(1).and_then(|pid| pid.parse().ok()))
}

/// A file of a process, empty if the process has gone or we may not look.
pub fn of_process(host: &Host, pid: i32, name: &str) -> Result<Vec<u8>> {
    let path = host.proc_of(pid, name);
    match fs::read(&path) {
        Ok(bytes) => Ok(bytes),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => Ok(Vec::new()),
        // The process ended between open and read.
        Err(e) if e.raw_os_error() == Some(nix::libc::ESRCH) => Ok(Vec::new()),
        Err(e) => Err(e).at("read", path),
    }
}

fn parse(table: &str) -> HashSet<PathBuf> {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        let path = fields.nth(3)?;
        (flags & LISTENS != 0 && path.starts_with('/')).then(|| path.into())
    };
    table.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_listens_counts() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 4711 /run/containerd/s/aa
0000000000000000: 00000003 00000000 00000000 0001 03 4712 /run/containerd/s/bb
0000000000000000: 00000002 00000000 00010000 0001 01 4713 @/abstract
0000000000000000: 00000002 00000000 00010000 0001 01 4714
";
        assert_eq!(parse(table), HashSet::from(["/run/containerd/s/aa".into()]));
    }

    #[test]
    fn either_file_tells_the_address() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(socket(temp.path()), None);
        fs::write(temp.path().join("address"), "unix:///run/containerd/s/aa\n").unwrap();
        assert_eq!(socket(temp.path()), Some("/run/containerd/s/aa".into()));
        fs::write(temp.path().join("bootstrap.json"), r#"{"version":3,"address":"unix:///run/containerd/s/bb"}"#)
            .unwrap();
        assert_eq!(socket(temp.path()), Some("/run/containerd/s/bb".into()));
        fs::write(temp.path().join("bootstrap.json"), r#"{"address":"vsock://3:1"}"#).unwrap();
        assert_eq!(socket(temp.path()), None);
    }
}
