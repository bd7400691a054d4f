//! Open files in CRIU's images: who has which descriptor, and what it is.
//!
//! ```text
//! core-<pid>.img, ids-<pid>.img   which table of files a process has
//! fdinfo-<table>.img              descriptor → kind and id
//! files.img                       kind and id → path, socket, pipe, …
//! remap-fpath.img                 ids of files that have no name any more
//! fs-<pid>.img                    ids of the working directory and of the root
//! ```
//! Source: CRIU `images/{fdinfo,regfile,sk-inet,sk-unix,pipe,fifo,memfd,fs,remap-file-path,core}.proto`. CRIU's strings are
//! whatever bytes the kernel had, so names are read as bytes.

use prost::Message;

/// `task_kobj_ids_entry`: what we read of it.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Ids {
    /// The table of files.
    #[prost(uint32, tag = "2")]
    pub files: u32,
}

/// `fs_entry`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Fs {
    /// The working directory, a file.
    #[prost(uint32, tag = "1")]
    pub cwd: u32,
    /// The root directory, a file.
    #[prost(uint32, tag = "2")]
    pub root: u32,
}

/// `remap_file_path_entry`: a file that is open under a name it does not have any more.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Remap {
    /// The file.
    #[prost(uint32, tag = "1")]
    pub file: u32,
    /// What stands for it.
    #[prost(uint32, tag = "2")]
    pub remap: u32,
    /// 0 linked elsewhere, 1 kept in the images, 2 of procfs.
    #[prost(uint32, optional, tag = "3")]
    pub kind: Option<u32>,
}

/// `fdinfo_entry`: one descriptor.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Descriptor {
    /// Which file.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// Of the descriptor itself: 1 close-on-exec.
    #[prost(uint32, tag = "2")]
    pub flags: u32,
    /// What kind of file.
    #[prost(uint32, tag = "3")]
    pub kind: u32,
    /// Its number.
    #[prost(uint32, tag = "4")]
    pub fd: u32,
}

/// The kinds of files, as `fd_types` numbers them.
const KINDS: [&str; 21] = [
    "unknown",
    "file",
    "pipe",
    "fifo",
    "socket",
    "socket",
    "eventfd",
    "eventpoll",
    "inotify",
    "signalfd",
    "packet socket",
    "tty",
    "fanotify",
    "netlink socket",
    "namespace",
    "tun",
    "external",
    "timerfd",
    "memfd",
    "bpf map",
    "pidfd",
];

/// The name of a kind of files.
pub fn kind_name(kind: u32) -> &'static str {
    usize::try_from(kind).ok().and_then(|kind| KINDS.get(kind)).copied().unwrap_or("unknown")
}

/// `file_entry`: what we read of it.
#[derive(Clone, PartialEq, Message)]
pub struct File {
    /// What kind: see [`kind_name`].
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    /// By which descriptors name it.
    #[prost(uint32, tag = "2")]
    pub id: u32,
    /// A file with a path.
    #[prost(message, optional, tag = "3")]
    pub regular: Option<Regular>,
    /// A socket of IPv4 or IPv6.
    #[prost(message, optional, tag = "4")]
    pub inet: Option<Inet>,
    /// A unix socket.
    #[prost(message, optional, tag = "16")]
    pub unix: Option<Unix>,
    /// A pipe.
    #[prost(message, optional, tag = "18")]
    pub pipe: Option<Pipe>,
}

/// `reg_file_entry`: what we read of it.
#[derive(Clone, PartialEq, Message)]
pub struct Regular {
    /// As open(2) has them.
    #[prost(uint32, tag = "2")]
    pub flags: u32,
    /// Where it is read or written next.
    #[prost(uint64, tag = "3")]
    pub position: u64,
    /// Its path, in the container's mounts.
    #[prost(bytes = "vec", tag = "6")]
    pub name: Vec<u8>,
    /// Its length.
    #[prost(uint64, optional, tag = "8")]
    pub size: Option<u64>,
    /// Its mode.
    #[prost(uint32, optional, tag = "10")]
    pub mode: Option<u32>,
}

/// `inet_sk_entry`: what we read of it.
#[derive(Clone, PartialEq, Message)]
pub struct Inet {
    /// 2 IPv4, 10 IPv6.
    #[prost(uint32, tag = "3")]
    pub family: u32,
    /// 1 stream, 2 datagram, 3 raw.
    #[prost(uint32, tag = "4")]
    pub kind: u32,
    /// 6 TCP, 17 UDP.
    #[prost(uint32, tag = "5")]
    pub protocol: u32,
    /// As TCP numbers them.
    #[prost(uint32, tag = "6")]
    pub state: u32,
    /// Its own port.
    #[prost(uint32, tag = "7")]
    pub source_port: u32,
    /// The other end's.
    #[prost(uint32, tag = "8")]
    pub peer_port: u32,
    /// Its own address, in words as they lie in memory.
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    pub source: Vec<u32>,
    /// The other end's.
    #[prost(uint32, repeated, packed = "false", tag = "12")]
    pub peer: Vec<u32>,
}

/// `unix_sk_entry`: what we read of it.
#[derive(Clone, PartialEq, Message)]
pub struct Unix {
    /// 1 stream, 2 datagram, 5 packets in sequence.
    #[prost(uint32, tag = "3")]
    pub kind: u32,
    /// As TCP numbers them.
    #[prost(uint32, tag = "4")]
    pub state: u32,
    /// A path, or a name that begins with a zero; may be empty.
    #[prost(bytes = "vec", tag = "11")]
    pub name: Vec<u8>,
    /// Where a path without a slash before it begins.
    #[prost(bytes = "vec", optional, tag = "14")]
    pub directory: Option<Vec<u8>>,
    /// The path is not its any more.
    #[prost(bool, optional, tag = "15")]
    pub deleted: Option<bool>,
}

/// `pipe_entry`: what we read of it.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Pipe {
    /// Both ends have the same.
    #[prost(uint32, tag = "2")]
    pub pipe: u32,
}

/// The name of a socket's type.
pub fn type_name(kind: u32) -> &'static str {
    match kind {
        1 => "stream",
        2 => "datagram",
        3 => "raw",
        5 => "seqpacket",
        _ => "",
    }
}

impl Inet {
    /// `tcp`, `udp6`, …
    pub fn protocol_name(&self) -> String {
        let name = match self.protocol {
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            136 => "udplite".to_owned(),
            other => format!("ip-{other}"),
        };
        if self.family == 10 { name + "6" } else { name }
    }

    /// `127.0.0.1:80`, its own.
    pub fn local(&self) -> String {
        address(&self.source, self.source_port)
    }

    /// `127.0.0.1:80`, the other end's; empty if there is none.
    pub fn remote(&self) -> String {
        let has_none = self.peer_port == 0 && self.peer.iter().all(|word| *word == 0);
        if has_none { String::new() } else { address(&self.peer, self.peer_port) }
    }
}

/// Words lie in memory as the address does on the wire (CRIU `criu/sk-inet.c`, `memcpy`).
fn address(words: &[u32], port: u32) -> String {
    let bytes: Vec<u8> = words.iter().take(4).flat_map(|word| word.to_le_bytes()).collect();
    if let Ok(bytes) = <[u8; 16]>::try_from(bytes.as_slice()) {
        return format!("[{}]:{port}", std::net::Ipv6Addr::from(bytes));
    }
    let address = bytes.first_chunk::<4>().map(|bytes| std::net::Ipv4Addr::from(*bytes).to_string());
    format!("{}:{port}", address.unwrap_or_else(|| "?".to_owned()))
}

impl Unix {
    /// Its path, or `@` and its name; empty if it has none.
    pub fn local(&self) -> Vec<u8> {
        match self.name.split_first() {
            None => Vec::new(),
            Some((0, name)) => [b"@", name].concat(),
            Some(_) => {
                // Paths are kept with the zero that ends them.
                let path = self.name.split(|&b| b == 0).next().unwrap_or_default();
                match &self.directory {
                    Some(dir) if !path.starts_with(b"/") => [dir.as_slice(), b"/", path].concat(),
                    _ => path.to_vec(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_as_ss_shows_them() {
        let inet = |words: &[u32], port| address(words, port);
        assert_eq!(inet(&[0x0100_007f], 80), "127.0.0.1:80");
        assert_eq!(inet(&[0, 0, 0, 0x0100_0000], 6379), "[::1]:6379");
        assert_eq!(inet(&[], 1), "?:1");
        let unix = |name: &[u8]| Unix { name: name.to_vec(), ..Unix::default() }.local();
        assert_eq!(unix(b"/run/r.sock\0"), b"/run/r.sock");
        assert_eq!(unix(b"\0abstract\0name"), b"@abstract\0name");
        assert_eq!(unix(b""), b"");
    }
}
