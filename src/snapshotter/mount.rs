//! A file system in a file or on a device of the store, mounted to be read: where nobody sees it, and so that nothing is left.
//!
//! mount(8) runs in a mount namespace of its own, whose mounts reach no other. From there the mount is taken out as a
//! descriptor (open_tree(2)); the namespace ends with the thread that made it. So no table of mounts ever has it, and with
//! our last descriptor, also that of a process that is killed, both mount and loop device are gone (the loop device is
//! made to clear itself). The loop device is read-only and sits on a read-only mount without access times: the file
//! stays as it is to the last bit.
//!
//! Where the container runs, the daemon has its file system mounted, and what is in the file is older than what is in
//! memory. Then that very mount is taken, without what may be mounted on it: see [`super::live`].

use std::{
    cell::RefCell,
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sched::{self, CloneFlags};
use rustix::{
    fs::CWD,
    mount::{self as sys, MountFlags, MountPropagationFlags, OpenTreeFlags},
};

use super::{
    Root, live,
    superblock::{HEAD, Superblock, identify},
};
use crate::{
    error::{At, Error, Result},
    host::Host,
    shares,
};

/// A mounted file system, and what is not as it should be with it.
pub struct Mounted {
    /// Its root.
    pub root: Root,
    /// Each with its consequence.
    pub findings: Vec<String>,
}

/// Whether somebody else may have it mounted for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// A container may run on it.
    Possible,
    /// It is a committed snapshot.
    None,
}

/// The file systems mounted so far: an image's layers stand on one another, and each is mounted once.
pub struct Mounts<'a> {
    host: &'a Host,
    held: RefCell<HashMap<PathBuf, Root>>,
}

impl<'a> Mounts<'a> {
    /// None yet.
    pub fn of(host: &'a Host) -> Self {
        Self { host, held: RefCell::default() }
    }

    /// Whose they are.
    pub fn host(&self) -> &'a Host {
        self.host
    }

    /// The file system in the regular file `path`.
    pub fn file(&self, path: &Path, writers: Writers) -> Result<Mounted> {
        self.held(path, || {
            let (mut file, meta) = open(path)?;
            if !meta.is_file() {
                return Err(Error::malformed(path, "the snapshot is no regular file"));
            }
            let known = superblock(&mut file, path)?;
            let live = if writers == Writers::Possible { live::of_file(self.host, &meta)? } else { None };
            live.map_or_else(|| mounted(path, known, "loop,"), |mount| Ok(taken(path, mount)))
        })
    }

    /// The file system on the block device `path`.
    pub fn device(&self, path: &Path, writers: Writers) -> Result<Mounted> {
        // Device mapper's names are links to the nodes.
        let path = &path.canonicalize().at("open", path)?;
        self.held(path, || {
            let (mut file, meta) = open(path)?;
            if !meta.file_type().is_block_device() {
                return Err(Error::malformed(path, "this is no block device"));
            }
            let known = superblock(&mut file, path)?;
            let live = if writers == Writers::Possible { live::of_device(self.host, meta.rdev())? } else { None };
            live.map_or_else(|| mounted(path, known, ""), |mount| Ok(taken(path, mount)))
        })
    }

    fn held(&self, path: &Path, mount: impl FnOnce() -> Result<Mounted>) -> Result<Mounted> {
        if let Some(root) = self.held.borrow().get(path) {
            return Ok(Mounted { root: root.clone(), findings: Vec::new() });
        }
        let mounted = mount()?;
        self.held.borrow_mut().insert(path.to_owned(), mounted.root.clone());
        Ok(mounted)
    }
}

/// A mount of others.
fn taken(path: &Path, mount: OwnedFd) -> Mounted {
    Mounted { root: Root::of_clone(mount, path), findings: Vec::new() }
}

/// Opened without waiting for anybody, without following a link, without a new access time.
fn open(path: &Path) -> Result<(File, std::fs::Metadata)> {
    // A FIFO or a device in the place of a file must not even be opened; in the moment after, `O_NONBLOCK` does no harm.
    let kind = path.symlink_metadata().at("open", path)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::malformed(path, "neither file nor block device"));
    }
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
    let with = |more| OpenOptions::new().read(true).custom_flags(flags | more).open(path);
    let file = match with(nix::libc::O_NOATIME) {
        Err(e) if e.raw_os_error() == Some(nix::libc::EPERM) => with(0),
        opened => opened,
    };
    let file = file.at("open", path)?;
    let meta = file.metadata().at("look at", path)?;
    Ok((file, meta))
}

fn superblock(file: &mut File, path: &Path) -> Result<Superblock> {
    let mut head = Vec::with_capacity(HEAD);
    file.take(HEAD as u64).read_to_end(&mut head).at("read", path)?;
    identify(&head).ok_or_else(|| Error::Unsupported {
        what: format!("{} holds no file system that can be read (ext4, xfs, erofs, btrfs)", path.display()),
        hint: String::new(),
    })
}

fn mounted(path: &Path, known: Superblock, how: &str) -> Result<Mounted> {
    let mount = in_a_thread(|| detached(path, known, how)).map_err(|e| refused(path, known, &e))?;
    let findings = known.is_dirty.then(|| {
        format!(
            "the {} in {} was not unmounted, and its journal is not replayed, since that would change it: what was \
             written last may be missing (a copy that was mounted once has it)",
            known.fs,
            path.display()
        )
    });
    Ok(Mounted { root: Root::of_mount(mount, path), findings: findings.into_iter().collect() })
}

fn refused(path: &Path, known: Superblock, e: &io::Error) -> Error {
    let hint = match e.raw_os_error() {
        Some(nix::libc::EPERM) => "only root can mount it",
        _ => "mounting it needs root, mount(8), a free loop device and a kernel that knows the file system",
    };
    Error::Unsupported {
        what: format!("the {} in {} cannot be mounted to be read: {e}", known.fs, path.display()),
        hint: hint.into(),
    }
}

/// A thread may leave the namespace, and the root directory, that the others stay in.
pub(super) fn in_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    shares::apart(work)?
}

/// What is mounted on `dir` from now on appears in no other namespace.
fn keep_to_ourselves(dir: &Path) -> io::Result<()> {
    use MountPropagationFlags as Flags;
    match sys::mount_change("/", Flags::PRIVATE | Flags::REC) {
        // Within a chroot the root is no mount; then the one that has the directory must do.
        Err(rustix::io::Errno::INVAL) => {
            let mut above = dir.ancestors();
            let is_mount = |dir: &Path| sys::mount_change(dir, Flags::PRIVATE).is_ok();
            let why = "in a chroot the store must be on a mount of its own";
            above.find(|dir| is_mount(dir)).map(drop).ok_or_else(|| io::Error::other(why))
        }
        done => Ok(done?),
    }
}

/// Runs in a thread of its own.
fn detached(path: &Path, known: Superblock, how: &str) -> io::Result<OwnedFd> {
    // Within the new namespace the directory serves as the place of both mounts; nobody else sees them.
    let dir = &path.parent().unwrap_or(path).canonicalize()?;
    sched::unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    keep_to_ourselves(dir)?;
    sys::mount_bind(dir, dir)?;
    let quiet = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOATIME;
    sys::mount_remount(dir, if how.is_empty() { MountFlags::BIND | MountFlags::NOATIME } else { quiet }, c"")?;
    let options = [how, "ro,nosuid,nodev,noexec", if known.options.is_empty() { "" } else { "," }, known.options];
    // -n: no note of it in a file; -i: no helper program; the kernel's word is in C.
    let run = Command::new("mount")
        .args(["-n", "-i", "-t", known.fs, "-o", &options.concat()])
        .args([path, dir.as_path()])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("mount(8): {e}")))?;
    if !run.status.success() {
        let said = String::from_utf8_lossy(&run.stderr);
        return Err(io::Error::other(said.lines().next().unwrap_or("mount(8) failed").to_owned()));
    }
    Ok(sys::open_tree(CWD, dir, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}
