//! Paths below another root: what a path means on a machine whose file system is mounted somewhere here.
//!
//! ```text
//! --sysroot /mnt/image      /var/lib/containerd -> /data/containerd   (a link inside the image)
//! /mnt/image + /var/lib/containerd/x   is   /mnt/image/data/containerd/x, never /data/containerd/x of ours
//! ```
//! As for a process that did chroot(2): absolute links begin at that root, and `..` ends there. Every step is one name below
//! an open directory; the kernel follows nothing (so it needs no `openat2`, which older ones do not have).

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, fstat, open, openat, readlinkat},
    io::Errno,
};

/// As many symbolic links as the kernel follows in one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Longer than any path that could be opened; what links add up to beyond that is an attack.
const MAX_NAMES: usize = 4096;

/// Where `path` of the machine below `root` lies here: `root` and names that are no links, as of now.
///
/// From the first name that is not there, the rest is taken as it is written; so what is said to be missing is said by the
/// place where it would be.
pub fn resolve(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut way = Way { root: open(root, flags, Mode::empty())?, dirs: Vec::new(), names: Vec::new() };
    let (mut todo, mut links) = (VecDeque::new(), 0);
    push_front(&mut todo, path);
    while let Some(name) = todo.pop_front() {
        if todo.len() + way.names.len() > MAX_NAMES {
            return Err(Errno::NAMETOOLONG.into());
        }
        if name == ".." {
            way.up();
            continue;
        }
        match way.step(&name)? {
            Step::Taken => {}
            Step::Missing => {
                way.names.push(name);
                return way.with_missing(root, todo);
            }
            Step::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                if target.is_absolute() {
                    way.back_to_root();
                }
                push_front(&mut todo, &target);
            }
        }
    }
    Ok(way.path(root))
}

/// The names of a path, before those that are still to be walked.
fn push_front(todo: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => todo.push_front(name.to_owned()),
            Component::ParentDir => todo.push_front("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

/// From the root to where the walk stands.
struct Way {
    root: OwnedFd,
    dirs: Vec<OwnedFd>,
    names: Vec<OsString>,
}

/// What came of one name.
enum Step {
    Taken,
    Missing,
    Link(PathBuf),
}

impl Way {
    fn step(&mut self, name: &OsStr) -> io::Result<Step> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = match openat(self.dirs.last().unwrap_or(&self.root), name, flags, Mode::empty()) {
            Ok(node) => node,
            Err(Errno::NOENT) => return Ok(Step::Missing),
            Err(e) => return Err(e.into()),
        };
        if FileType::from_raw_mode(fstat(&node)?.st_mode) == FileType::Symlink {
            let target = readlinkat(&node, "", Vec::new())?;
            return Ok(Step::Link(OsStr::from_bytes(target.as_bytes()).into()));
        }
        self.dirs.push(node);
        self.names.push(name.to_owned());
        Ok(Step::Taken)
    }

    /// Up is where we came from: `..` of a directory that was moved could lead outside.
    fn up(&mut self) {
        self.dirs.pop();
        self.names.pop();
    }

    fn back_to_root(&mut self) {
        self.dirs.clear();
        self.names.clear();
    }

    /// Nothing lies below what is missing, so `..` behind it means nothing, as for the kernel.
    fn with_missing(mut self, root: &Path, rest: VecDeque<OsString>) -> io::Result<PathBuf> {
        if rest.iter().any(|name| name == "..") {
            return Err(Errno::NOENT.into());
        }
        self.names.extend(rest);
        Ok(self.path(root))
    }

    fn path(&self, root: &Path) -> PathBuf {
        root.iter().map(OsString::from).chain(self.names.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// What the kernel would say, where it can be asked: a file system of another machine, with links of every kind.
    #[test]
    fn links_end_below_the_root_however_they_are_written() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("image");
        fs::create_dir_all(root.join("data/containerd")).unwrap();
        fs::create_dir_all(root.join("var/lib")).unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/shadow"), "the image's").unwrap();
        fs::write(temp.path().join("secret"), "ours").unwrap();
        for (target, link) in [
            ("/data/containerd", "var/lib/absolute"),
            ("../../data/containerd", "var/lib/relative"),
            ("../../../../../../etc", "var/lib/far-up"),
            ("/../../secret", "var/lib/above"),
            ("absolute/../x", "var/lib/through"),
            ("/var/lib/loop", "var/lib/loop"),
            ("/gone/away", "var/lib/dangling"),
            ("/proc/self/root", "var/lib/magic"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        for (path, right) in [
            ("/var/lib/absolute/meta", Some("data/containerd/meta")),
            ("/var/lib/relative", Some("data/containerd")),
            ("/var/lib/far-up/shadow", Some("etc/shadow")),
            ("/var/lib/above", Some("secret")),
            ("/var/lib/through", Some("data/x")),
            ("/var/lib/dangling/x", Some("gone/away/x")),
            ("/var/lib/magic/etc", Some("proc/self/root/etc")),
            ("var/lib/./absolute//x", Some("data/containerd/x")),
            ("/../../etc/shadow", Some("etc/shadow")),
            ("/", Some("")),
            ("/var/lib/loop", None),
            ("/etc/shadow/x", None),
            ("/gone/../etc", None),
        ] {
            let found = resolve(&root, Path::new(path));
            assert_eq!(found.as_ref().ok(), right.map(|r| root.join(r)).as_ref(), "{path}: {found:?}");
        }
        assert!(resolve(&root.join("gone"), Path::new("/")).is_err());
    }

    #[test]
    fn a_chain_of_links_as_long_as_the_kernel_follows_is_followed_and_no_longer() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("0"), "").unwrap();
        (1..=41).for_each(|n| symlink(format!("{}", n - 1), temp.path().join(n.to_string())).unwrap());
        assert_eq!(resolve(temp.path(), Path::new("40")).unwrap(), temp.path().join("0"));
        assert_eq!(resolve(temp.path(), Path::new("41")).unwrap_err().raw_os_error(), Some(nix::libc::ELOOP));
        // Each link doubles the way: the names are bounded too.
        symlink("e/e", temp.path().join("e")).unwrap();
        assert!(resolve(temp.path(), Path::new("e")).is_err());
    }
}
