//! The raw capture of a task: a plain tar of media type [`super::names::RAW_TAR`], which nothing can restore.
//!
//! ```text
//! raw/README                         that it cannot be restored, and what is in it
//! raw/<pid>/core                     an ELF core: registers of each thread, memory
//! raw/<pid>/maps smaps status …      texts of procfs, under their own names; `links`: where its links point
//! raw/<pid>/fdinfo/<fd>  task/<tid>/…
//! raw/deleted/<pid>-fd<n>            files that have no name any more, `<pid>-exe` a program
//! raw/net/<inode>/tcp udp unix …     the tables of each network namespace, once
//! raw/processes.json                 [`Processes`], last
//! ```
//! pids are the host's. In `links` control characters, spaces and backslashes stand as `\ooo`, in octal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{name::AnyText, procfs::net::Socket};

/// The name of the document in the tar.
pub const PROCESSES: &str = "raw/processes.json";

/// The document is no longer; what does not fit is counted.
pub const MAX_PROCESSES: u64 = 64 << 20;

/// `raw/processes.json`: all processes of the container's cgroup, by pid.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// False, always: see the module.
    pub restorable: bool,
    /// The machine, as in OCI images: `amd64`, `arm64`.
    pub architecture: String,
    /// Clock ticks a second, in which `started_ticks` counts.
    pub ticks_per_second: u64,
    /// When the machine booted, in seconds since 1970; 0: not known.
    pub boot_time: u64,
    /// The pid of the container's first process.
    pub init: i32,
    /// The processes.
    pub processes: Vec<Process>,
    /// What concerns all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Members of later versions.
    #[serde(flatten)]
    pub rest: BTreeMap<String, serde_json::Value>,
}

/// One process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid, on the host.
    pub pid: i32,
    /// Its parent's, on the host; 0: in none of our pid namespaces.
    pub ppid: i32,
    /// Its pid in each pid namespace from the host's inwards.
    pub pids: Vec<i32>,
    /// False of what was started into the container from outside (`ctr task exec`) and so is no descendant of its init.
    pub in_tree: bool,
    /// The command's name.
    pub comm: AnyText,
    /// Its command line, word by word, as it has it now.
    pub cmdline: Vec<AnyText>,
    /// Its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<AnyText>,
    /// Its program has no name any more.
    #[serde(default)]
    pub exe_deleted: bool,
    /// The member of the tar that holds that program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe_saved: Option<String>,
    /// Its working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<AnyText>,
    /// Its root directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<AnyText>,
    /// Real, effective, saved and file system user.
    pub uids: Vec<u32>,
    /// The same of groups.
    pub gids: Vec<u32>,
    /// One letter, as ps(1) has it.
    pub state: String,
    /// Its start, in clock ticks since boot.
    pub started_ticks: u64,
    /// The pid of who traces it; 0: nobody.
    #[serde(default)]
    pub tracer: i32,
    /// Its namespaces by kind, each by its inode.
    pub namespaces: BTreeMap<String, u64>,
    /// Its threads.
    pub threads: Vec<Thread>,
    /// Its open files.
    pub files: Vec<OpenFile>,
    /// How many more open files there are than are listed.
    #[serde(default)]
    pub files_unlisted: u64,
    /// Its mappings, summed up.
    pub memory: Memory,
    /// The member of the tar that is its core; none: its memory could not be read, see `notes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<String>,
    /// What could not be had of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Its id, on the host.
    pub tid: i32,
    /// Its name.
    pub comm: AnyText,
    /// One letter.
    pub state: String,
    /// `all`; `pointers`: stack pointer and program counter only, the others stand in the core as zeros; `none`.
    pub registers: String,
    /// Why not all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// One descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// Its number.
    pub fd: u32,
    /// Where its link points: a path, `socket:[123]`, `anon_inode:[eventpoll]`.
    pub target: AnyText,
    /// As open(2) has them, in octal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Its position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// It is a file that has no name any more.
    #[serde(default)]
    pub deleted: bool,
    /// The member of the tar that holds its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<String>,
    /// What the socket is, if it is one and is in a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<Socket>,
}

/// Mappings, summed up; in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// How many there are.
    pub mappings: u64,
    /// All of them.
    pub size: u64,
    /// What of it was in memory.
    pub resident: u64,
    /// What of it was swapped out.
    pub swapped: u64,
    /// What of it the core has.
    pub stored: u64,
}
