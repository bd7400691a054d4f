//! A file system that is mounted already, for a container: its mount, without what is mounted on it.
//!
//! ```text
//! losetup --list           which loop device has which inode, and whether for reading only
//! /proc/<pid>/mountinfo    what is mounted of a device, in each mount namespace
//! ```
//!
//! The daemon mounts it in its own namespace, at the task's `rootfs`; the container's namespace has it as its root. Either
//! serves; a path that leads to something else, since that was mounted over it, does not.

use std::{
    collections::BTreeSet,
    fs::{self, File, Metadata},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sched::{self, CloneFlags};
use rustix::{
    fs::{AtFlags, Mode, OFlags, StatxFlags},
    mount::{OpenTreeFlags, open_tree},
};

use super::mount::in_a_thread;
use crate::{
    error::{At, Error, Result},
    host::{
        Host,
        mounts::{self, Mount},
    },
};

/// The mount of the file system in a regular file, if a loop device has the file for writing.
pub fn of_file(host: &Host, file: &Metadata) -> Result<Option<OwnedFd>> {
    let Some(device) = loop_device(file).filter(|_| host.sysroot.is_none()) else { return Ok(None) };
    let text = format!("{}:{}", device.0, device.1);
    let found = find(host, |mount| mount.dev == device && mount.root == "/")?;
    found.map(Some).ok_or_else(|| Error::Unsupported {
        what: format!(
            "the snapshot is attached for writing (block device {text}), but no mount of it can be seen: what is in \
             memory of it cannot be read, and the file alone would be of another moment"
        ),
        hint: "stop the container, or unmount what uses the device".into(),
    })
}

/// The mount of the file system on a block device (st_rdev), if it is mounted.
pub fn of_device(host: &Host, device: u64) -> Result<Option<OwnedFd>> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    find(host, |mount| mount.dev == (major, minor) && mount.root == "/")
}

/// The first mount that `is_it`, in our own mount namespace or in any other.
pub fn find(host: &Host, is_it: impl Fn(&Mount) -> bool + Sync) -> Result<Option<OwnedFd>> {
    if host.sysroot.is_some() {
        return Ok(None);
    }
    let own = host.proc.join("self");
    if let Some(found) = among(&mounts::read(&own.join("mountinfo"))?, &is_it) {
        return Ok(Some(found));
    }
    let mut seen: BTreeSet<PathBuf> = fs::read_link(own.join("ns/mnt")).into_iter().collect();
    for process in processes(host)? {
        // Processes end; those of others are not ours to see.
        let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else { continue };
        let Ok(all) = mounts::read(&process.join("mountinfo")) else { continue };
        if !seen.insert(namespace) || !all.iter().any(&is_it) {
            continue;
        }
        let Ok(theirs) = File::open(process.join("ns/mnt")) else { continue };
        let found = in_a_thread(|| {
            sched::unshare(CloneFlags::CLONE_FS)?;
            sched::setns(&theirs, CloneFlags::CLONE_NEWNS)?;
            Ok(among(&all, &is_it))
        });
        if let Ok(Some(found)) = found {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn processes(host: &Host) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(&host.proc).at("read", &host.proc)?;
    let is_pid = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<u32>().is_ok())
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_pid).collect())
}

/// A mount of these that a path of the present namespace leads to.
fn among(all: &[Mount], is_it: &impl Fn(&Mount) -> bool) -> Option<OwnedFd> {
    all.iter().filter(|mount| is_it(mount)).find_map(|mount| taken(mount).ok())
}

/// A clone of exactly this mount, without those on it.
fn taken(mount: &Mount) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = rustix::fs::open(Path::new(&mount.at), flags, Mode::empty())?;
    let stat = rustix::fs::statx(&place, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() != 0 && stat.stx_mnt_id != mount.id {
        return Err(io::Error::other("something else is mounted over it"));
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(&place, c"", flags)?)
}

/// The loop device that has `file` for writing, by losetup(8). sysfs tells the file's path only, which in another mount
/// namespace may mean another file.
fn loop_device(file: &Metadata) -> Option<(u32, u32)> {
    let columns = ["--list", "--noheadings", "--output", "MAJ:MIN,RO,BACK-MAJ:MIN,BACK-INO"];
    // Without the program nothing can be told, and mount(8) will refuse a file that is attached for writing.
    let run = Command::new("losetup").args(columns).env("LC_ALL", "C").stdin(Stdio::null()).output().ok()?;
    String::from_utf8_lossy(&run.stdout).lines().find_map(|line| attached(line, file.dev(), file.ino()))
}

fn attached(line: &str, dev: u64, ino: u64) -> Option<(u32, u32)> {
    let mut fields = line.split_ascii_whitespace();
    let (device, is_ro, on, inode) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let is_it =
        is_ro == "0" && pair(on)? == (rustix::fs::major(dev), rustix::fs::minor(dev)) && inode.parse() == Ok(ino);
    pair(device).filter(|_| is_it)
}

fn pair(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_device_is_the_file_s_only_by_its_inode_and_if_it_may_write() {
        let dev = rustix::fs::makedev(253, 1);
        for (line, found) in [
            ("7:3 0 253:1 77", Some((7, 3))),
            ("7:3 1 253:1 77", None),
            ("7:3 0 253:1 78", None),
            ("7:3 0 253:2 77", None),
            ("7:3 0", None),
            ("", None),
        ] {
            assert_eq!(attached(line, dev, 77), found, "{line}");
        }
    }
}
