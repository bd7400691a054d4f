//! The machine whose stores are read: where its directories lie and which programs serve us.
//!
//! Every place the tool touches is a path in here, so a test points them at a directory of its own.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    error::{At, Result},
    id::TaskPid,
};

pub mod config;
pub mod database;
pub mod document;
mod glob;
pub mod ground;
mod inside;
mod memory;
pub mod mounts;
pub mod shield;
pub mod stores;

/// The places of one machine.
#[derive(Debug, Clone)]
pub struct Host {
    /// containerd's persistent directory (its option `root`).
    pub root: PathBuf,
    /// Where snapshotters keep their directories, by name, if not below `root` (their option `root_path`).
    pub snapshotters: BTreeMap<String, PathBuf>,
    /// containerd's volatile directory (its option `state`).
    pub state: PathBuf,
    /// How the containerd of this store sees `state`, if not at that path: rootless, it has mounts of its own.
    pub state_inside: Option<PathBuf>,
    /// Where the shim keeps runc's state unless told otherwise: a constant of containerd, not derived from `state`.
    pub runc_root: PathBuf,
    /// Where else runtimes keep their state, as the configuration or the product says.
    pub runtime_roots: Vec<PathBuf>,
    /// Where a dockerd that uses this containerd keeps what it knows of its containers (its option `data-root`).
    pub docker: Vec<PathBuf>,
    /// procfs, seen from the host's pid namespace.
    pub proc: PathBuf,
    /// Where the cgroup hierarchies are mounted.
    pub cgroup: PathBuf,
    /// Our own volatile directory: markers of containers that we hold frozen.
    pub run: PathBuf,
    /// The CRIU program, a path or a name to be found in `PATH`.
    pub criu: PathBuf,
    /// Our own program, started anew as the watchdog.
    pub dewar: PathBuf,
    /// The mounted file system of another machine whose stores these are: then no process here is of theirs.
    pub sysroot: Option<PathBuf>,
    /// Read the databases beside a running daemon.
    pub daemon_running: bool,
    /// Refuse whatever is not on what cannot be written.
    pub write_blocked: bool,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            root: "/var/lib/containerd".into(),
            snapshotters: BTreeMap::new(),
            state: "/run/containerd".into(),
            state_inside: None,
            runc_root: "/run/containerd/runc".into(),
            runtime_roots: Vec::new(),
            docker: Vec::new(),
            proc: "/proc".into(),
            cgroup: "/sys/fs/cgroup".into(),
            run: "/run/dewar".into(),
            criu: "criu".into(),
            dewar: "/proc/self/exe".into(),
            sysroot: None,
            daemon_running: false,
            write_blocked: false,
        }
    }
}

/// What procfs says of a process (`/proc/<pid>/stat`, proc(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcStat {
    /// Field 3: `R`, `S`, `D`, `Z`, …
    pub state: char,
    /// Field 22: clock ticks since boot.
    pub started: u64,
}

impl Host {
    /// Where `path` of this host lies here: itself, or, of a host whose file system is mounted at `sysroot`, its place below
    /// that, on a way without links. No link leads out.
    ///
    /// A path that is already below `sysroot` is taken for what it is there.
    pub fn inside(&self, path: &Path) -> Result<PathBuf> {
        let Some(sysroot) = &self.sysroot else { return Ok(path.to_owned()) };
        inside::resolve(sysroot, path.strip_prefix(sysroot).unwrap_or(path))
            .at("look up", sysroot.join(path.strip_prefix("/").unwrap_or(path)))
    }

    /// The directories where its stores are, as far as they are there.
    pub fn places(&self) -> Vec<PathBuf> {
        let snapshotters = self.snapshotters.values();
        let own = [&self.root, &self.state, &self.runc_root];
        let all = own.into_iter().chain(snapshotters).chain(&self.runtime_roots).chain(&self.docker);
        let mut places: Vec<_> = all.filter_map(|path| self.inside(path).ok()).chain(self.sysroot.clone()).collect();
        places.retain(|path| path.symlink_metadata().is_ok());
        places.sort();
        places.dedup();
        places
    }

    /// The directory of the snapshotter called `name`; `root_path` replaces it wholly (containerd `plugins/snapshots`).
    pub fn snapshotter_dir(&self, name: &str) -> Result<PathBuf> {
        let usual = || self.root.join(format!("io.containerd.snapshotter.v1.{name}"));
        self.inside(&self.snapshotters.get(name).cloned().unwrap_or_else(usual))
    }

    /// What procfs says of `pid`; `None` if there is no such process.
    pub fn proc_stat(&self, pid: i32) -> Result<Option<ProcStat>> {
        let path = self.proc.join(pid.to_string()).join("stat");
        match fs::read(&path) {
            Ok(bytes) => Ok(parse_stat(&bytes)),
            // ESRCH: the process ended between open and read.
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ESRCH) => Ok(None),
            Err(e) => Err(e).at("read", path),
        }
    }

    /// True while exactly that process lives: same start time, neither zombie nor dead.
    pub fn is_alive(&self, task: TaskPid) -> Result<bool> {
        let stat = if self.sysroot.is_none() { self.proc_stat(task.pid)? } else { None };
        Ok(stat.is_some_and(|s| s.started == task.started && !matches!(s.state, 'Z' | 'X' | 'x')))
    }

    /// `/proc/<pid>/<name>`.
    pub fn proc_of(&self, pid: i32, name: impl AsRef<Path>) -> PathBuf {
        self.proc.join(pid.to_string()).join(name)
    }
}

/// The command name stands in parentheses and may hold any byte, so fields count from the last `)`.
fn parse_stat(bytes: &[u8]) -> Option<ProcStat> {
    let end = bytes.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(bytes.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some(ProcStat { state, started })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_does_not_shift_the_fields() {
        let line = b"7 (a) Z 1 (b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 11 12\n";
        assert_eq!(parse_stat(line), Some(ProcStat { state: 'S', started: 987_654 }));
        assert_eq!(parse_stat(b"7 (cut"), None);
    }

    #[test]
    fn we_are_alive_and_a_later_process_with_our_pid_would_not_be_us() {
        let host = Host::default();
        let pid = i32::try_from(std::process::id()).unwrap();
        let started = host.proc_stat(pid).unwrap().unwrap().started;
        assert!(host.is_alive(TaskPid { pid, started }).unwrap());
        assert!(!host.is_alive(TaskPid { pid, started: started + 1 }).unwrap());
    }
}
