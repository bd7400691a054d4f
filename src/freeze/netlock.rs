//! CRIU's network lock, removed when CRIU could not remove it itself.
//!
//! While it dumps, CRIU drops the packets of the container's network namespace (`criu/net.c`, `criu/netfilter.c`):
//! by iptables, a chain `CRIU` that `INPUT` and `OUTPUT` jump to, for IPv4 and IPv6; by nftables, a table
//! `inet CRIU-<run id>` (older: `CRIU-<pid>`). A CRIU that is killed between lock and unlock leaves them behind.

use std::{
    ffi::OsString,
    fs::{self, File},
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use nix::sched::{CloneFlags, setns};

use crate::{
    error::{At, Result},
    host::Host,
    shares,
};

/// A network namespace that is not ours: the only kind that CRIU locks.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

/// How often a jump to the chain is taken out: one per lock, and more only if several CRIUs were killed.
const MAX_JUMPS: usize = 16;

/// True if `pid` lives in a network namespace of its own, not the host's, which nobody may lock.
pub fn is_private(host: &Host, pid: i32) -> bool {
    let inode = |path: PathBuf| fs::read_link(path).ok();
    // We may run in a network namespace of our own, so the host's is that of its first process too.
    let hosts = [inode(host.proc.join("self/ns/net")), inode(host.proc_of(1, "ns/net"))];
    let theirs = inode(host.proc_of(pid, "ns/net"));
    theirs.is_some() && !hosts.contains(&theirs)
}

/// The network namespace of `pid`; `None` if it is the host's, or the process has gone.
pub fn of(host: &Host, pid: i32) -> Option<Netns> {
    let path = host.proc_of(pid, "ns/net");
    let file = is_private(host, pid).then(|| File::open(&path).ok())??;
    Some(Netns { file, path })
}

impl Netns {
    /// Removes what a killed CRIU left in it. Without the tools there is nothing that we could have left there.
    pub fn unlock(&self) -> Result<()> {
        // setns is of the calling thread only, and so is the namespace that its children get.
        let entered = shares::apart(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            remove_rules();
            Ok(())
        });
        entered.flatten().at("enter", &self.path)
    }
}

fn remove_rules() {
    for tool in ["iptables", "ip6tables"] {
        if says(tool, &["-w", "-n", "-L", "CRIU"]).is_none() {
            continue;
        }
        for chain in ["INPUT", "OUTPUT"] {
            for _ in 0..MAX_JUMPS {
                if says(tool, &["-w", "-D", chain, "-j", "CRIU"]).is_none() {
                    break;
                }
            }
        }
        says(tool, &["-w", "-F", "CRIU"]);
        says(tool, &["-w", "-X", "CRIU"]);
    }
    for table in says("nft", &["list", "tables", "inet"]).iter().flat_map(|text| tables(text)) {
        says("nft", &["delete", "table", "inet", table]);
    }
}

/// The names of CRIU's tables in what `nft list tables` says: lines of `table inet <name>`.
fn tables(text: &str) -> Vec<&str> {
    text.lines().filter_map(|l| l.strip_prefix("table inet ")).filter(|name| name.starts_with("CRIU-")).collect()
}

/// What a tool says, if it is there and succeeds.
fn says(tool: &str, args: &[&str]) -> Option<String> {
    let Output { status, stdout, .. } =
        Command::new(tool).args(args).env("PATH", search_path()).stdin(Stdio::null()).output().ok()?;
    status.success().then(|| String::from_utf8_lossy(&stdout).into_owned())
}

/// `PATH` with the places of system programs at its end, which cron, sudo and users' shells may lack; CRIU runs
/// `iptables-restore` and `tar` by name, too.
pub fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push("/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin");
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_of_criu_are_taken_out() {
        let text = "table inet CRIU-4711\ntable inet filter\ntable inet CRIU-0a1b-2c\ntable ip CRIU-1\n";
        assert_eq!(tables(text), ["CRIU-4711", "CRIU-0a1b-2c"]);
    }

    #[test]
    fn our_own_network_namespace_is_never_taken_for_a_containers() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(of(&Host::default(), pid).is_none());
    }
}
