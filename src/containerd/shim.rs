//! Whether a task's shim lives, without a word to it: the address in its bundle against the sockets the kernel knows.
//!
//! ```text
//! <bundle>/bootstrap.json   {"version":3,"address":"unix:///run/containerd/s/<hash>","protocol":"ttrpc"}    2.x
//! <bundle>/address          unix:///run/containerd/s/<hash>                                                 before
//! /proc/net/unix            Num RefCount Protocol Flags Type St Inode Path        flag 0x10000: it listens
//! ```
//! Source: containerd `core/runtime/v2/shim.go`; proc_pid_net(5), Linux `net/unix/af_unix.c`, `unix_seq_show`.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::task;
use crate::{
    error::{At, Result},
    host::Host,
};

/// `__SO_ACCEPTCON`.
const LISTENS: u32 = 0x1_0000;

#[derive(Deserialize)]
struct Bootstrap {
    address: String,
}

/// The socket of the shim that serves a bundle; `None` if none is on record, or it is no socket with a path.
pub fn socket(bundle: &Path) -> Option<PathBuf> {
    let file = |name: &str| task::small_file(&bundle.join(name)).ok().flatten();
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
