//! What of a task is gone with it, besides its memory and its files: the document of media type
//! [`super::names::VOLATILE`], JSON. In the order in which it vanishes (RFC 3227, 2.1).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    name::AnyText,
    procfs::net::{Address, Interface, Neighbour, Route, Socket},
};

/// Texts of the kernel's go along up to this length; what is cut is said.
pub const MAX_TEXT: usize = 1 << 20;

/// How many rows of one kind are listed.
pub const MAX_ROWS: usize = 4096;

/// The document. What was not asked for is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volatile {
    /// The network namespaces of the container's processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
    /// The processes of its cgroup, by pid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Vec<Process>>,
    /// The mount tables, one for each mount namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounts: Option<Vec<Text>>,
    /// Limits and use: the files of its cgroup, one hierarchy after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroups: Option<Vec<Cgroup>>,
    /// What could not be read, and what was cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Members of later versions.
    #[serde(flatten)]
    pub rest: BTreeMap<String, serde_json::Value>,
}

/// One network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its inode.
    pub namespace: u64,
    /// The process by whose `/proc/<pid>/net` it was read.
    pub pid: i32,
    /// It is the host's own: then its sockets are everybody's, and those are listed that a process of the container holds.
    #[serde(default)]
    pub host: bool,
    /// Its sockets, each with those who hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<Vec<Held>>,
    /// Its routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<Route>>,
    /// Its neighbours, of IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<Vec<Neighbour>>,
    /// Its interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interfaces: Option<Vec<Interface>>,
    /// Their addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<Address>>,
    /// The texts all this was read from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<Text>,
}

/// A socket, and who holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The socket.
    #[serde(flatten)]
    pub socket: Socket,
    /// Processes and their descriptors; empty: the kernel alone, or somebody outside the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<Holder>,
}

/// A descriptor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process, on the host.
    pub pid: i32,
    /// Its descriptor.
    pub fd: u32,
}

/// One process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid, on the host.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// Its pid in each pid namespace from the host's inwards.
    pub pids: Vec<i32>,
    /// False of what was started into the container from outside (`ctr task exec`): no dump by CRIU holds it.
    pub in_tree: bool,
    /// The command's name.
    pub comm: AnyText,
    /// The command line.
    pub cmdline: Vec<AnyText>,
    /// Its user.
    pub uid: u32,
    /// One letter, as ps(1) has it.
    pub state: String,
    /// Its start, in clock ticks since boot.
    pub started_ticks: u64,
    /// Its namespaces by kind, each by its inode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<BTreeMap<String, u64>>,
}

/// A text of the kernel's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// Its file, below `/proc/<pid>` or a cgroup.
    pub name: String,
    /// What was in it.
    #[serde(flatten)]
    pub text: AnyText,
}

/// One cgroup of the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Its controllers, as `/proc/<pid>/cgroup` names them; empty on version 2.
    pub controllers: String,
    /// Its path in its hierarchy.
    pub path: AnyText,
    /// Its small files.
    pub files: Vec<Text>,
}
