//! Descriptors: a directory that can be listed, and anything else, held without being opened unless its content is asked for.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::{Arc, OnceLock},
};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, StatxAttributes, StatxFlags};

use crate::{
    idmap::IdMap,
    ledger,
    pax::{Time, Xattr},
};

/// Which inode, of which filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// The filesystem's device number.
    pub dev: (u32, u32),
    /// The inode number.
    pub ino: u64,
}

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Kind {
    /// As `st_mode` has it (inode(7)).
    pub fn bits(self) -> u32 {
        match self {
            Self::File => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Symlink => 0o120_000,
            Self::Char => 0o020_000,
            Self::Block => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::Char => "character device",
            Self::Block => "block device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        }
    }
}

/// What the inode says (statx(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Permissions with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of its content.
    pub size: u64,
    /// Last modification.
    pub mtime: Time,
    /// Last change of the inode itself.
    pub ctime: Time,
    /// Last read, as far as the mount keeps that.
    pub atime: Time,
    /// When the inode was made; `None` where the file system does not keep it.
    pub btime: Option<Time>,
    /// A device's major and minor number.
    pub device: (u32, u32),
    /// How many names it has.
    pub links: u32,
    /// Which inode.
    pub id: FileId,
    /// The mount it was reached through; not known before Linux 5.8.
    pub mount: Option<u64>,
    /// It is the root of a mount.
    pub is_mount_root: bool,
}

impl Meta {
    fn of(fd: &OwnedFd, ids: Option<&IdMap>) -> io::Result<Self> {
        Self::at(fd, b"", AtFlags::EMPTY_PATH, ids)
    }

    fn at(dir: &OwnedFd, name: &[u8], flags: AtFlags, ids: Option<&IdMap>) -> io::Result<Self> {
        let flags = flags | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
        let stat = fs::statx(dir, name, flags, wanted)?;
        let time = |t: fs::StatxTimestamp| Time { secs: t.tv_sec, nanos: t.tv_nsec };
        Ok(Self {
            kind: kind_of(stat.stx_mode)?,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: ids.map_or(stat.stx_uid, |ids| ids.uids.to_container(stat.stx_uid)),
            gid: ids.map_or(stat.stx_gid, |ids| ids.gids.to_container(stat.stx_gid)),
            size: stat.stx_size,
            mtime: time(stat.stx_mtime),
            ctime: time(stat.stx_ctime),
            atime: time(stat.stx_atime),
            btime: (stat.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| time(stat.stx_btime)),
            device: (stat.stx_rdev_major, stat.stx_rdev_minor),
            links: stat.stx_nlink,
            id: FileId { dev: (stat.stx_dev_major, stat.stx_dev_minor), ino: stat.stx_ino },
            mount: (stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id),
            is_mount_root: stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        })
    }

    /// The same, for the list of all that was read.
    pub fn told(&self) -> ledger::Stat {
        let time = |time: Time| ledger::decimal(time.secs, time.nanos);
        ledger::Stat {
            mode: format!("{:06o}", self.kind.bits() | self.mode),
            size: self.size,
            uid: self.uid,
            gid: self.gid,
            device: format!("{}:{}", self.id.dev.0, self.id.dev.1),
            inode: self.id.ino,
            mtime: time(self.mtime),
            ctime: time(self.ctime),
            atime: time(self.atime),
            btime: self.btime.map(time),
        }
    }

    /// True if both were reached through one mount. Device numbers decide only where the kernel does not tell the mount:
    /// overlay and btrfs show several of them inside one.
    pub fn is_on_mount_of(&self, other: &Self) -> bool {
        match (self.mount, other.mount) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => self.id.dev == other.id.dev,
        }
    }
}

fn kind_of(mode: u16) -> io::Result<Kind> {
    Ok(match FileType::from_raw_mode(mode.into()) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::Unknown => return Err(io::Error::other("neither file, directory, link, device, pipe nor socket")),
    })
}

/// Something in a tree, held by an `O_PATH` descriptor: its metadata can be read, and nothing was opened as long as nobody asked
/// for its content.
#[derive(Debug)]
pub struct Node {
    fd: OwnedFd,
    /// How owners are told, for it and all that is found from it.
    ids: Option<Arc<IdMap>>,
    /// What it was when it was found.
    pub meta: Meta,
    /// Which extended attributes it has, once that was asked: of most files there are none, and several are asked for.
    xattr_names: OnceLock<Box<[Vec<u8>]>>,
    /// Its content, once that was asked for.
    opened: OnceLock<File>,
}

impl Node {
    /// What `path` names; its last component may be a symbolic link and is then held itself.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_mapped(path, None)
    }

    /// The same; owners in it, and in all that is found from it, are told by `ids`.
    pub fn open_mapped(path: &Path, ids: Option<Arc<IdMap>>) -> io::Result<Self> {
        Self::hold(fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?, ids)
    }

    fn hold(fd: OwnedFd, ids: Option<Arc<IdMap>>) -> io::Result<Self> {
        let meta = Meta::of(&fd, ids.as_deref())?;
        Ok(Self { fd, ids, meta, xattr_names: OnceLock::new(), opened: OnceLock::new() })
    }

    /// The entry `name` of this directory, itself and not what it may point to.
    pub fn child(&self, name: &[u8]) -> io::Result<Self> {
        hold_child(&self.fd, name, self.ids.clone())
    }

    /// The same once more, by a descriptor of its own.
    pub fn again(&self) -> io::Result<Self> {
        let (fd, xattr_names, opened) = (self.fd.try_clone()?, OnceLock::new(), OnceLock::new());
        Ok(Self { fd, ids: self.ids.clone(), meta: self.meta.clone(), xattr_names, opened })
    }

    /// The same, looked at anew.
    pub fn afresh(&self) -> io::Result<Self> {
        Self::hold(self.fd.try_clone()?, self.ids.clone())
    }

    /// This directory, to be listed. `O_NOATIME`, so that looking leaves no trace.
    pub fn dir(&self) -> io::Result<Dir> {
        let fd = quietly(OFlags::RDONLY | OFlags::DIRECTORY, |flags| {
            fs::openat(&self.fd, c".", flags | OFlags::NOFOLLOW, Mode::empty())
        })?;
        Ok(Dir { fd, ids: self.ids.clone(), id: self.meta.id })
    }

    /// This regular file, to be read: the very inode that was looked at, whatever its name points to now.
    pub fn data(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(quietly(flags, |flags| fs::open(self.proc_path(), flags, Mode::empty()))?.into())
    }

    /// The same; it stays open, and tells the names of its attributes in a seventh of the time.
    pub fn opened(&self) -> io::Result<&File> {
        match self.opened.get() {
            Some(file) => Ok(file),
            None => self.data().map(|file| self.opened.get_or_init(|| file)),
        }
    }

    /// Where this symbolic link points.
    pub fn target(&self) -> io::Result<Vec<u8>> {
        Ok(fs::readlinkat(&self.fd, c"", Vec::new())?.into_bytes())
    }

    /// The value of one extended attribute, if it has it.
    pub fn xattr(&self, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        // Where there is no list, it may be there all the same.
        if self.xattr_list().is_ok_and(|list| list.iter().all(|listed| listed != name)) {
            return Ok(None);
        }
        let name = CString::new(name)?;
        let path = self.proc_path();
        match grown(|buf| fs::getxattr(path.as_str(), name.as_c_str(), buf)) {
            Ok(value) => Ok(Some(match &self.ids {
                Some(ids) => ids.xattr(name.as_bytes(), value),
                None => value,
            })),
            Err(e) if e == rustix::io::Errno::NODATA || e == rustix::io::Errno::OPNOTSUPP => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// All extended attributes, sorted by name. One that vanishes in between was not there.
    pub fn xattrs(&self) -> io::Result<Vec<Xattr>> {
        let pair = |name: Vec<u8>| self.xattr(&name).map(|value| value.map(|value| (name, value))).transpose();
        self.xattr_list()?.iter().cloned().filter_map(pair).collect()
    }

    /// The names of all extended attributes, sorted: 64 KiB of them at most, while their values may be 64 KiB each (xattr(7)).
    pub fn xattr_names(&self) -> io::Result<Vec<Vec<u8>>> {
        self.xattr_list().map(<[_]>::to_vec)
    }

    fn xattr_list(&self) -> io::Result<&[Vec<u8>]> {
        if let Some(names) = self.xattr_names.get() {
            return Ok(names);
        }
        let listed = match self.opened.get() {
            Some(file) => grown(|buf| fs::flistxattr(file, buf)),
            None => {
                let path = self.proc_path();
                grown(|buf| fs::listxattr(path.as_str(), buf))
            }
        };
        let list = match listed {
            Ok(list) => list,
            Err(rustix::io::Errno::OPNOTSUPP) => Vec::new(),
            Err(e) => return Err(e.into()),
        };
        let mut names: Vec<_> = list.split(|&b| b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
        names.sort_unstable();
        Ok(self.xattr_names.get_or_init(|| names.into_boxed_slice()))
    }

    /// How long the value of an extended attribute is; 0 if it is not there (any more).
    pub fn xattr_len(&self, name: &[u8]) -> usize {
        let path = self.proc_path();
        CString::new(name).ok().and_then(|name| fs::getxattr_query(path.as_str(), name.as_c_str()).ok()).unwrap_or(0)
    }

    /// Which file system it is on, by its magic number (statfs(2), `f_type`).
    pub fn file_system(&self) -> io::Result<i64> {
        Ok(fs::fstatfs(&self.fd)?.f_type)
    }

    /// What the inode says now.
    pub fn meta_now(&self) -> io::Result<Meta> {
        Meta::of(&self.fd, self.ids.as_deref())
    }

    /// An `O_PATH` descriptor has neither content nor attributes for the system calls that take descriptors, but its entry
    /// in procfs leads to exactly this inode, a symbolic link included.
    fn proc_path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }
}

/// A directory in which names can be looked up, and nothing else: the cheapest descriptor there is.
#[derive(Debug)]
pub struct Foothold(OwnedFd, Option<Arc<IdMap>>);

impl Foothold {
    /// The directory that `node` is.
    pub fn of(node: &Node) -> io::Result<Self> {
        Ok(Self(node.fd.try_clone()?, node.ids.clone()))
    }

    /// Its entry `name`, which is a directory itself.
    pub fn below(&self, name: &[u8]) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(fs::openat(&self.0, name, flags, Mode::empty())?, self.1.clone()))
    }

    /// What the inode of its entry `name` says, itself and not what it may point to.
    pub fn look_at(&self, name: &[u8]) -> io::Result<Meta> {
        Meta::at(&self.0, name, AtFlags::empty(), self.1.as_deref())
    }
}

/// A directory open for listing.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    ids: Option<Arc<IdMap>>,
    /// Which directory.
    pub id: FileId,
}

impl Dir {
    /// Its entry `name`, itself and not what it may point to.
    pub fn child(&self, name: &[u8]) -> io::Result<Node> {
        hold_child(&self.fd, name, self.ids.clone())
    }

    /// The names in it, sorted bytewise, without `.` and `..`.
    pub fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            // A damaged filesystem may hold a name that is none.
            if !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// The directory above, but only if it is still `expected`.
    pub fn parent(&self, expected: FileId) -> io::Result<Self> {
        let above = hold_child(&self.fd, b"..", self.ids.clone())?;
        if above.meta.id == expected { above.dir() } else { Err(io::Error::other("the directory was moved meanwhile")) }
    }
}

fn hold_child(dir: &OwnedFd, name: &[u8], ids: Option<Arc<IdMap>>) -> io::Result<Node> {
    Node::hold(fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?, ids)
}

/// Opens with `O_NOATIME`, and without where we do not own the file (open(2): EPERM).
fn quietly(flags: OFlags, open: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    match open(flags | OFlags::NOATIME) {
        Err(rustix::io::Errno::PERM) => open(flags),
        other => other,
    }
}

/// Calls with a larger buffer until the answer fits. The kernel's own limit is 64 KiB for a list and for a value (xattr(7)).
fn grown(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buf = vec![0; 256];
    loop {
        match call(&mut buf) {
            Ok(len) => {
                buf.truncate(len);
                return Ok(buf);
            }
            Err(rustix::io::Errno::RANGE) if buf.len() < 1 << 20 => buf.resize(buf.len() * 8, 0),
            Err(e) => return Err(e),
        }
    }
}
