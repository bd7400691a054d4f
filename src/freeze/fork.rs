//! Processes that wait for a child of theirs to begin a program: vfork(2), posix_spawn(3).
//!
//! ```text
//! parent  ── vfork ──┐ waits: woken by nothing but the child and SIGKILL        ┌─ goes on
//! child              └── runs in the parent's memory … execve(2) ── a program ──┘
//! ```
//! A freezer holds both (kernel: `kernel/fork.c`, `wait_for_vfork_done`). But no stop reaches the parent then, and its child,
//! held as well, never lets it go: CRIU waits until its time is over, and whoever reads registers in vain. It is over in a
//! fraction of a millisecond, if the child may run.

use std::{collections::BTreeSet, fs};

use crate::{host::Host, procfs::process::Stat};

/// Forked, and no program begun since (`include/linux/sched.h`, `PF_FORKNOEXEC`).
const NO_PROGRAM: u64 = 0x40;

/// A thread that waits so in one of these processes, which are frozen; `pids` are in order. Nothing is found where the kernel
/// does not tell.
pub(super) fn waiting(host: &Host, pids: &[i32]) -> Option<i32> {
    // Few processes are the child of another without a program of their own; only those have their parents looked at.
    let stat = |pid: &i32| Stat::parse(&fs::read(host.proc_of(*pid, "stat")).ok()?);
    let children = pids.iter().filter_map(stat).filter(|stat| stat.flags & NO_PROGRAM != 0);
    let parents: BTreeSet<i32> = children.map(|stat| stat.ppid).filter(|pid| pids.binary_search(pid).is_ok()).collect();
    let threads = parents.into_iter().flat_map(|pid| {
        let tasks = fs::read_dir(host.proc_of(pid, "task")).into_iter().flatten().flatten();
        tasks.filter_map(|task| task.file_name().to_str()?.parse::<i32>().ok())
    });
    threads.into_iter().find(|tid| is_where(fs::read_to_string(host.proc_of(*tid, "wchan")).unwrap_or_default().trim()))
}

/// The functions that have waited there, release by release, as the compiler left them: `wchan` names the innermost one that
/// is not the scheduler's.
fn is_where(function: &str) -> bool {
    let name = function.split('.').next();
    matches!(name, Some("wait_for_vfork_done" | "kernel_clone" | "_do_fork" | "do_fork"))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::CommandExt,
        process::{Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    /// Python's `os.posix_spawn` opens a pipe that nobody writes to, before it begins the program.
    #[test]
    fn who_waits_for_its_child_to_begin_a_program_is_found() {
        let temp = tempfile::tempdir().unwrap();
        let pipe = temp.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = "import os, sys
os.posix_spawn('/bin/true', ['true'], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 3, sys.argv[1], os.O_RDONLY, 0)])
sys.stdin.read()";
        let mut parent = Command::new("python3");
        parent.args(["-c", script]).arg(&pipe).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let mut parent = parent.spawn().unwrap();
        let (host, pid) = (Host::default(), parent.id().cast_signed());
        let family = || {
            let children = fs::read_to_string(host.proc_of(pid, format!("task/{pid}/children"))).unwrap();
            let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
            let mut family: Vec<i32> = [pid].into_iter().chain(children).collect();
            family.sort_unstable();
            family
        };
        let until = |is: &dyn Fn() -> bool| {
            let since = Instant::now();
            while !is() {
                assert!(since.elapsed() < Duration::from_secs(20));
                thread::sleep(Duration::from_millis(5));
            }
        };
        until(&|| waiting(&host, &family()).is_some());
        assert_eq!(waiting(&host, &family()), Some(pid));
        assert_eq!(waiting(&host, &[pid]), None, "its child is none of these");
        drop(fs::OpenOptions::new().write(true).open(&pipe).unwrap());
        until(&|| waiting(&host, &family()).is_none());
        drop(parent.stdin.take());
        parent.wait().unwrap();
    }
}
