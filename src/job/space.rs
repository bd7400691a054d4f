//! Is there room for a container's memory? Asked while it runs: a full disk is better known before a freeze than after.
//!
//! Files need no such question: they are copied while the container runs, and an error then stops nobody.

use std::{fs, path::Path};

use nix::sys::statvfs::statvfs;

use crate::{
    error::{At, Error, Result},
    freeze::cgroup::Freezer,
    host::Host,
    procfs::process::Status,
    runtime::Task,
};

/// An error if what CRIU will write of the task's memory cannot fit where `dir` is; a note if it only just does.
pub fn check(host: &Host, task: &Task, dir: &Path) -> Result<Option<String>> {
    let need = memory(host, &Freezer::of(task).pids()?);
    let disk = statvfs(dir).at("measure the room of", dir)?;
    // What is kept for root is there for us if we are; the types differ by platform.
    #[allow(clippy::useless_conversion, reason = "32 bits on other platforms")]
    let have = u64::from(disk.blocks_free()).saturating_mul(disk.fragment_size());
    judge(need, have, dir)
}

fn judge(need: u64, have: u64, dir: &Path) -> Result<Option<String>> {
    let what = format!("its memory needs {}, and where {} is, {} are free", size(need), dir.display(), size(have));
    match need {
        _ if need > have => {
            let hint = "write to another disk (-o; for a stream, TMPDIR), or leave memory out (--task never)".into();
            Err(Error::Unsupported { what, hint })
        }
        _ if need > have / 10 * 9 => Ok(Some(format!("the disk is nearly full: {what}"))),
        _ => Ok(None),
    }
}

/// What CRIU writes at least: of each process what is its own, swapped out or not; and once what they share.
fn memory(host: &Host, pids: &[i32]) -> u64 {
    let status = |pid: &i32| Status::parse(&fs::read(host.proc_of(*pid, "status")).unwrap_or_default());
    let all: Vec<_> = pids.iter().map(status).collect();
    let shared = all.iter().map(|status| status.shared).max().unwrap_or(0);
    all.iter().map(|status| status.own).sum::<u64>() + shared
}

fn size(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn what_cannot_fit_is_refused_with_both_numbers_and_what_only_just_does_is_said() {
        let dir = Path::new("/mnt/usb");
        let error = judge(3 << 30, 2 << 30, dir).unwrap_err().to_string();
        assert!(error.contains("3072 MiB") && error.contains("2048 MiB") && error.contains("/mnt/usb"), "{error}");
        assert!(judge(95 << 20, 100 << 20, dir).unwrap().is_some());
        assert!(judge(9 << 20, 100 << 20, dir).unwrap().is_none());
    }

    #[test]
    fn the_memory_of_a_process_is_counted() {
        // It holds a block of 64 MiB, filled before the first byte is written, and waits: nobody reads the rest.
        let args = ["if=/dev/zero", "bs=64M", "count=1", "iflag=fullblock"];
        let mut holder = Command::new("dd").args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let read = holder.stdout.as_mut().unwrap().read_exact(&mut [0]);
        let pid = i32::try_from(holder.id()).unwrap();
        let found = memory(&Host::default(), &[pid]);
        holder.kill().unwrap();
        holder.wait().unwrap();
        read.unwrap();
        assert!((64 << 20..72 << 20).contains(&found), "{found}");
        assert_eq!(memory(&Host::default(), &[i32::MAX]), 0);
    }
}
