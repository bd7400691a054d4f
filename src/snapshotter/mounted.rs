//! Where a container's files are, by what is mounted: the kernel knows it without any database.
//!
//! ```text
//! … /run/containerd/io.containerd.runtime.v2.task/default/redis/rootfs … - overlay overlay rw,lowerdir=A:B,upperdir=C,workdir=D
//! ```
//! The mount outlives the daemon, and the container's end; a reboot takes it away. Long lists of lowerdirs are relative to
//! the directory they have in common, since containerd mounts them from there (`core/mount/mount_linux.go`,
//! `compactLowerdirOption`), and newer kernels write each as a `lowerdir+=`.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use super::{Driver, Root, RwLayer};
use crate::{
    error::Result,
    host::{
        Host,
        mounts::{self, Mount},
    },
};

/// What is mounted as a container's root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// The snapshotter, by the directory's name.
    pub snapshotter: String,
    /// Where the files are.
    pub rw: RwLayer,
}

/// The file system that is mounted on `rootfs` for us, or on `/` for the process `pid`; `None` if neither tells.
pub fn find(host: &Host, rootfs: &Path, pid: Option<i32>) -> Result<Option<Mounted>> {
    let real = rootfs.canonicalize();
    let is_ours = |m: &&Mount| Path::new(&m.at) == rootfs || real.as_ref().is_ok_and(|real| Path::new(&m.at) == *real);
    let here = mounts::read(&host.proc.join("self/mountinfo")).unwrap_or_default();
    if let Some(found) = here.iter().rev().find(is_ours).and_then(|mount| of(host, mount)) {
        return Ok(Some(found));
    }
    let Some(pid) = pid else { return Ok(None) };
    let theirs = mounts::read(&host.proc_of(pid, "mountinfo"))?;
    Ok(theirs.iter().rev().find(|m| m.at == "/").and_then(|mount| of(host, mount)))
}

/// The upperdirs of all overlays that are mounted for us.
pub fn uppers(host: &Host) -> Vec<PathBuf> {
    let all = mounts::read(&host.proc.join("self/mountinfo")).unwrap_or_default();
    let overlays = all.iter().filter(|mount| mount.fs == "overlay");
    overlays.filter_map(|mount| overlay(mount.options.as_bytes()).map(|(upper, _)| upper)).collect()
}

fn of(host: &Host, mount: &Mount) -> Option<Mounted> {
    if mount.fs == "overlay" {
        let (upper, lowers) = overlay(mount.options.as_bytes())?;
        let is_there = |dir: &PathBuf| fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir());
        let snapshotter = named(&upper).unwrap_or("overlayfs").to_owned();
        let found = is_there(&upper) && !lowers.is_empty() && lowers.iter().all(is_there);
        let lowers = lowers.into_iter().map(Root::from).collect();
        let rw = RwLayer::Overlay { upper: upper.into(), lowers, ids: None, driver: Driver::Kernel };
        return found.then_some(Mounted { snapshotter, rw });
    }
    // A bind mount of the snapshot's own directory: an overlay's without parents, or a native one.
    let (snapshotter, rest) = split(Path::new(&mount.root))?;
    let dir = host.snapshotter_dir(snapshotter).ok()?.join(rest);
    let plain = rest.components().all(|c| matches!(c, Component::Normal(_)));
    let found = plain && fs::symlink_metadata(&dir).is_ok_and(|meta| meta.is_dir());
    found.then(|| Mounted { snapshotter: snapshotter.to_owned(), rw: RwLayer::Tree { dir: dir.into() } })
}

/// The snapshotter's name in `…/io.containerd.snapshotter.v1.<name>/snapshots/<n>…`.
fn named(path: &Path) -> Option<&str> {
    split(path).map(|(name, _)| name)
}

fn split(path: &Path) -> Option<(&str, &Path)> {
    let mut parts = path.components();
    while let Some(part) = parts.next() {
        let name = part.as_os_str().to_str().and_then(|part| part.strip_prefix("io.containerd.snapshotter.v1."));
        if let Some(name) = name {
            return Some((name, parts.as_path()));
        }
    }
    None
}

/// The upperdir and the lowerdirs, nearest first, of an overlay's options.
fn overlay(options: &[u8]) -> Option<(PathBuf, Vec<PathBuf>)> {
    let (mut upper, mut lowers) = (None, Vec::new());
    for option in split_at(options, b',') {
        if let Some(path) = option.strip_prefix(b"upperdir=") {
            upper = Some(path_of(path));
        } else if let Some(path) = option.strip_prefix(b"lowerdir+=") {
            lowers.push(path_of(path));
        } else if let Some(paths) = option.strip_prefix(b"lowerdir=") {
            lowers.extend(split_at(paths, b':').into_iter().filter(|path| !path.is_empty()).map(path_of));
        }
    }
    let upper = upper.filter(|upper: &PathBuf| upper.is_absolute())?;
    // `<common>/3/fs` next to `2/fs`: what they have in common is where the snapshots are.
    let common = upper.parent()?.parent()?.to_owned();
    let lowers = lowers.into_iter().map(|lower| common.join(lower)).collect();
    Some((upper, lowers))
}

/// The parts between separators that no backslash escapes (kernel `fs/overlayfs/params.c`).
fn split_at(bytes: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut parts, mut start, mut is_escaped) = (Vec::new(), 0, false);
    for (at, &byte) in bytes.iter().enumerate() {
        if byte == separator && !is_escaped {
            parts.push(&bytes[start..at]);
            start = at + 1;
        }
        is_escaped = byte == b'\\' && !is_escaped;
    }
    parts.push(&bytes[start..]);
    parts
}

fn path_of(bytes: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter();
    while let Some(&byte) = rest.next() {
        plain.push(if byte == b'\\' { rest.next().copied().unwrap_or(byte) } else { byte });
    }
    PathBuf::from(OsStr::from_bytes(&plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlays_options_tell_its_directories() {
        let sn = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
        let right = (format!("{sn}/3/fs").into(), vec![format!("{sn}/2/fs").into(), format!("{sn}/1/fs").into()]);
        for options in [
            format!("rw,lowerdir={sn}/2/fs:{sn}/1/fs,upperdir={sn}/3/fs,workdir={sn}/3/work,uuid=on"),
            format!("rw,lowerdir=2/fs:1/fs,upperdir={sn}/3/fs,workdir={sn}/3/work"),
            format!("rw,lowerdir+={sn}/2/fs,lowerdir+={sn}/1/fs,upperdir={sn}/3/fs"),
        ] {
            assert_eq!(overlay(options.as_bytes()), Some(right.clone()), "{options}");
        }
        let odd = overlay(br"rw,lowerdir=/a\:b/1/fs:/c,upperdir=/a\,b/3/fs").unwrap();
        assert_eq!(odd, ("/a,b/3/fs".into(), vec!["/a:b/1/fs".into(), "/c".into()]));
        assert_eq!(overlay(b"rw,lowerdir=/a"), None, "a view");
        assert_eq!(named(Path::new(sn)), Some("overlayfs"));
    }
}
