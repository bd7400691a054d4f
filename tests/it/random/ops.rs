//! What a process in a container may do to its files, as data: made from a seed, performed on any tree, cut down at will.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt, fs::FileTypeExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, XattrFlags,
};

/// Random numbers, the same for the same seed (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    /// Below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.roll(all.len())]
    }
}

/// Content that tells its file: `len` bytes that only this `tag` has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes {
    tag: u8,
    len: usize,
}

impl Bytes {
    fn make(self) -> Vec<u8> {
        (0..self.len).map(|i| self.tag.wrapping_add((i / 251) as u8).wrapping_mul(31) ^ i as u8).collect()
    }
}

/// One change. Paths are relative, and lead through no symbolic link. Many fail, as they should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Mkdir(PathBuf),
    /// With all directories above it.
    MkdirAll(PathBuf),
    /// The directories above are made, too.
    Create(PathBuf, Bytes),
    Append(PathBuf, Bytes),
    /// The bytes that are there are written again.
    Rewrite(PathBuf),
    WriteAt(PathBuf, u64, Bytes),
    /// Through a mapping of the file.
    Mapped(PathBuf),
    Truncate(PathBuf, u64),
    PunchHole(PathBuf, u64, u64),
    CopyRange(PathBuf, PathBuf),
    /// Written without a name, which it gets last.
    Nameless(PathBuf, Bytes),
    Chmod(PathBuf, u32),
    Chown(PathBuf, u32, u32),
    Time(PathBuf, i64, i64),
    SetXattr(PathBuf, &'static str, Vec<u8>),
    RemoveXattr(PathBuf, &'static str),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, Vec<u8>),
    Node(PathBuf, Special, u32, u32),
    Unlink(PathBuf),
    Rmdir(PathBuf),
    RemoveAll(PathBuf),
    /// Removed with all in it, and made again with some of the same names.
    Recreate(PathBuf, Bytes),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    /// Overlay itself refuses it to those above.
    RenameWhiteout(PathBuf, PathBuf),
    /// A chain of directories, each with a name of 200 bytes, and a file at its end.
    Deep(PathBuf, usize),
}

/// What mknod(2) makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    Char,
    Block,
    Fifo,
    Socket,
}

/// A capability set of version 2 (linux/capability.h): cap_net_raw, permitted and effective.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// An access control list (linux/posix_acl_xattr.h): owner rw-, user 1000 `perm`, group r--, mask rw-, others ---.
fn acl(perm: u8) -> Vec<u8> {
    let mut list = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\
        \x10\0\x06\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff"
        .to_vec();
    list[14] = perm;
    list
}

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const CAPS: &str = "security.capability";

/// Few names, so that changes meet: the first are mostly directories, the last mostly not.
const USUAL: [&[u8]; 6] = [b"a", b"b", b"c", b"x", b"y", b"z"];
const ODD: [&[u8]; 18] = [
    &[b'l'; 255],
    &[b'm'; 120],
    b"\xff\xfe",
    "ö".as_bytes(),
    b"new\nline",
    b" ",
    b"a.b",
    b"a!",
    b"-x",
    b"*",
    b"x=y",
    b"100%",
    b"..a",
    b"b\\n",
    b".wh",
    b"\x01",
    b"a\"b'c",
    b"#0",
];
/// What a layer cannot hold.
const MARKS: [&[u8]; 3] = [b".wh.a", b".wh..wh..opq", b".wh.b"];

impl Dice {
    fn name(&mut self, usual: &[&'static [u8]]) -> &'static OsStr {
        OsStr::from_bytes(match self.roll(200) {
            0 => self.one_of(&MARKS),
            1..=20 => self.one_of(&ODD),
            _ => self.one_of(usual),
        })
    }

    fn path(&mut self) -> PathBuf {
        let usual = if self.roll(3) == 0 { &USUAL[..3] } else { &USUAL[..] };
        let depth = self.one_of(&[0, 0, 1, 1, 1, 2, 2, 3]);
        let mut path: PathBuf = (0..depth).map(|_| self.name(&USUAL[..3])).collect();
        path.push(self.name(usual));
        path
    }

    fn dir(&mut self) -> PathBuf {
        let depth = self.one_of(&[1, 2, 2, 3]);
        (0..depth).map(|_| self.name(&USUAL[..3])).collect()
    }

    /// A path, or the top itself.
    fn path_or_top(&mut self) -> PathBuf {
        if self.roll(25) == 0 { PathBuf::new() } else { self.path() }
    }

    fn bytes(&mut self) -> Bytes {
        let len = match self.roll(10) {
            0 => 0,
            1 => self.roll(50_000),
            2 => 4096,
            _ => self.roll(700),
        };
        Bytes { tag: self.roll(256) as u8, len }
    }

    fn time(&mut self) -> (i64, i64) {
        let secs = [-2_100_000_000, -1, 0, 1, 1_600_000_000, 4_294_967_296, 8_589_934_592, 10_413_792_000];
        let secs =
            if self.roll(2) == 0 { self.one_of(&secs) } else { self.roll(12_000_000_000) as i64 - 2_000_000_000 };
        (secs, if self.roll(2) == 0 { self.one_of(&[0, 1, 100, 999_999_999]) } else { self.roll(1_000_000_000) as i64 })
    }

    fn id(&mut self) -> u32 {
        self.one_of(&[0, 1, 1000, 2_097_151, 2_097_152, 4_000_000_000, u32::MAX - 1])
    }

    fn xattr(&mut self) -> (&'static str, Vec<u8>) {
        let text = vec![self.roll(256) as u8; self.one_of(&[0, 1, 3, 40, 900])];
        match self.roll(16) {
            0 | 1 => (CAPS, CAPABILITY.to_vec()),
            2 => (ACCESS, acl(self.roll(8) as u8)),
            3 => (DEFAULT, acl(self.roll(8) as u8)),
            4 | 5 => ("trusted.k", text),
            6 => ("user.bin", b"\0\n\xff=".to_vec()),
            7 => ("user.empty", Vec::new()),
            8 => ("user.a=b", text),
            // What a process in the container sets so is its own, whatever it looks like.
            9 => (self.one_of(&["user.overlay.opaque", "user.overlay.whiteout"]), b"y".to_vec()),
            10 => (self.one_of(&["trusted.overlay.opaque", "trusted.overlay.redirect"]), b"y".to_vec()),
            _ => (self.one_of(&["user.k", "user.l"]), text),
        }
    }

    fn target(&mut self) -> Vec<u8> {
        match self.roll(8) {
            0 => b"x/".repeat(self.one_of(&[60, 1000, 2047])),
            1 => b"/etc/passwd".to_vec(),
            2 => b"\xff\n".to_vec(),
            3 => b".".to_vec(),
            _ => self.path().into_os_string().into_encoded_bytes(),
        }
    }

    /// One change, whatever is there.
    pub fn op(&mut self) -> Op {
        let path = self.path();
        match self.roll(100) {
            0..=4 => Op::Mkdir(path),
            5..=14 => Op::MkdirAll(self.dir()),
            15..=27 => Op::Create(path, self.bytes()),
            28..=30 => Op::Append(path, self.bytes()),
            31 => Op::Rewrite(path),
            32 | 33 => Op::WriteAt(path, self.roll(9000) as u64, self.bytes()),
            34 | 35 => Op::Truncate(path, self.one_of(&[0, 1, 100, 5000, 100_000])),
            36 => Op::PunchHole(path, self.roll(3) as u64 * 4096, 4096),
            37 => Op::CopyRange(path, self.path()),
            38 => Op::Nameless(path, self.bytes()),
            39..=42 => Op::Chmod(self.path_or_top(), self.roll(0o10000) as u32),
            43..=45 => Op::Chown(self.path_or_top(), self.id(), self.id()),
            46..=49 => {
                let (secs, nanos) = self.time();
                Op::Time(path, secs, nanos)
            }
            50..=57 => {
                let (name, value) = self.xattr();
                Op::SetXattr(self.path_or_top(), name, value)
            }
            58..=60 => {
                Op::RemoveXattr(self.path_or_top(), self.one_of(&["user.k", "trusted.k", CAPS, ACCESS, DEFAULT]))
            }
            61..=66 => Op::Link(path, self.path()),
            67 => Op::Symlink(path, self.target()),
            68 | 69 => self.node(path),
            70..=74 => Op::Unlink(path),
            75 | 76 => Op::Rmdir(path),
            77..=80 => Op::RemoveAll(path),
            81..=83 => Op::Recreate(self.dir(), self.bytes()),
            84..=89 => Op::Rename(path, self.path()),
            90..=94 => Op::Rename(self.dir(), self.dir()),
            95 | 96 => Op::Exchange(path, self.path()),
            97 => Op::RenameWhiteout(path, self.path()),
            98 if self.roll(20) == 0 => Op::Mapped(path),
            98 if self.roll(8) == 0 => Op::Deep(path, 1 + self.roll(30)),
            _ => Op::Unlink(path),
        }
    }

    fn node(&mut self, path: PathBuf) -> Op {
        let kind = self.one_of(&[Special::Char, Special::Char, Special::Block, Special::Fifo, Special::Socket]);
        // 0/0 is overlay's whiteout: it lets nobody above make one.
        let (major, minor) = self.one_of(&[(1, 3), (0, 0), (4095, 1_048_575), (256, 256), (8, 70_000)]);
        Op::Node(path, kind, major, minor)
    }
}

impl Op {
    /// False for what a plain tar of the result would not bring back, whoever makes or unpacks it.
    pub fn is_plain(&self) -> bool {
        let text = format!("{self:?}");
        let words = ["Socket", "trusted.", "user.a=b", ".overlay."];
        !self.is_beyond_layers() && !words.iter().any(|word| text.contains(word))
    }

    /// True for what no image has: its layers could not hold it.
    pub fn is_beyond_layers(&self) -> bool {
        matches!(self, Self::Deep(..)) || format!("{self:?}").contains(".wh.")
    }

    /// True for what would be a mark of overlay's if it were not done through overlay.
    pub fn sets_mark(&self) -> bool {
        match self {
            Self::SetXattr(_, name, _) => name.contains(".overlay."),
            Self::Node(_, kind, major, minor) => (*kind, *major, *minor) == (Special::Char, 0, 0),
            Self::RenameWhiteout(..) => true,
            _ => false,
        }
    }

    /// Does it below `top`.
    pub fn perform(&self, top: &OwnedFd) -> io::Result<()> {
        let at = |path: &Path| Place::find(top, path);
        match self {
            Self::Mkdir(path) => fs::create_dir(at(path)?.path),
            Self::MkdirAll(path) => make_all(top, path),
            Self::Create(path, bytes) => {
                make_all(top, path.parent().unwrap_or(path))?;
                fs::write(at(path)?.file_or_new()?, bytes.make())
            }
            Self::Append(path, bytes) => {
                io::Write::write_all(&mut fs::File::options().append(true).open(at(path)?.file()?)?, &bytes.make())
            }
            Self::Rewrite(path) => {
                let place = at(path)?;
                let bytes = fs::read(place.file()?)?;
                place.writable()?.write_all_at(&bytes, 0)
            }
            Self::WriteAt(path, offset, bytes) => at(path)?.writable()?.write_all_at(&bytes.make(), *offset),
            Self::Mapped(path) => mapped(at(path)?.file()?),
            Self::Truncate(path, len) => at(path)?.writable()?.set_len(*len),
            Self::PunchHole(path, offset, len) => {
                let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(at(path)?.writable()?, how, *offset, *len)?)
            }
            Self::CopyRange(from, to) => {
                let from = fs::File::open(at(from)?.file()?)?;
                let len = from.metadata()?.len() as usize;
                rustix::fs::copy_file_range(from, None, at(to)?.writable()?, None, len).map(drop).map_err(Into::into)
            }
            Self::Nameless(path, bytes) => nameless(&at(path)?, *bytes),
            Self::Link(from, to) => link(&at(from)?, &at(to)?),
            Self::Symlink(path, target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), at(path)?.path),
            Self::Unlink(path) => fs::remove_file(at(path)?.path),
            Self::Rmdir(path) => fs::remove_dir(at(path)?.path),
            Self::RemoveAll(path) => fs::remove_dir_all(at(path)?.path),
            Self::Recreate(path, bytes) => recreate(&at(path)?, *bytes),
            Self::Rename(from, to) => fs::rename(at(from)?.path, at(to)?.path),
            Self::Exchange(from, to) => rename(&at(from)?, &at(to)?, RenameFlags::EXCHANGE),
            Self::RenameWhiteout(from, to) => rename(&at(from)?, &at(to)?, RenameFlags::WHITEOUT),
            Self::Deep(path, levels) => deep(&at(path)?, *levels),
            _ => self.perform_on_inode(&at(self.path())?),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Chmod(path, _)
            | Self::Chown(path, ..)
            | Self::Time(path, ..)
            | Self::SetXattr(path, ..)
            | Self::RemoveXattr(path, _)
            | Self::Node(path, ..) => path,
            _ => Path::new(""),
        }
    }

    fn perform_on_inode(&self, place: &Place) -> io::Result<()> {
        let path = &place.path;
        match self {
            // chmod(2) would follow a link.
            Self::Chmod(_, mode) if place.kind.is_some_and(|kind| !kind.is_symlink()) => {
                fs::set_permissions(path, fs::Permissions::from_mode(*mode))
            }
            Self::Chown(_, uid, gid) => std::os::unix::fs::lchown(path, Some(*uid), Some(*gid)),
            Self::Time(_, secs, nanos) => {
                let time = Timespec { tv_sec: *secs, tv_nsec: *nanos };
                let times = Timestamps { last_access: time, last_modification: time };
                Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
            }
            Self::SetXattr(_, name, value) => Ok(rustix::fs::lsetxattr(path, *name, value, XattrFlags::empty())?),
            Self::RemoveXattr(_, name) => Ok(rustix::fs::lremovexattr(path, *name)?),
            Self::Node(_, kind, major, minor) => {
                let (kind, device) = match kind {
                    Special::Char => (FileType::CharacterDevice, rustix::fs::makedev(*major, *minor)),
                    Special::Block => (FileType::BlockDevice, rustix::fs::makedev(*major, *minor)),
                    Special::Fifo => (FileType::Fifo, 0),
                    Special::Socket => (FileType::Socket, 0),
                };
                Ok(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device)?)
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// A name in an open directory: nothing that it or its parents may be leads out of the tree.
struct Place {
    dir: OwnedFd,
    path: PathBuf,
    kind: Option<fs::FileType>,
}

impl Place {
    fn find(top: &OwnedFd, path: &Path) -> io::Result<Self> {
        let above = path.parent().unwrap_or(path);
        let dir = open_below(top, above)?;
        let name = path.file_name().unwrap_or(OsStr::new("."));
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
        let path = if name == "." { path.join(".") } else { path };
        let kind = fs::symlink_metadata(&path).ok().map(|meta| meta.file_type());
        Ok(Self { dir, path, kind })
    }

    /// Never a pipe or a device.
    fn file(&self) -> io::Result<&Path> {
        if self.kind.is_some_and(|kind| kind.is_file()) { Ok(&self.path) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn file_or_new(&self) -> io::Result<&Path> {
        if self.kind.is_none() { Ok(&self.path) } else { self.file() }
    }

    fn writable(&self) -> io::Result<fs::File> {
        fs::File::options().write(true).open(self.file()?)
    }
}

fn open_below(top: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(top, path, flags, Mode::empty(), how)?)
}

fn make_all(top: &OwnedFd, path: &Path) -> io::Result<()> {
    let mut above = PathBuf::new();
    for part in path {
        above.push(part);
        let place = Place::find(top, &above)?;
        if place.kind.is_none() {
            fs::create_dir(&place.path)?;
        }
    }
    Ok(())
}

/// The standard library has no safe mapping; Python has.
fn mapped(path: &Path) -> io::Result<()> {
    let program =
        "import mmap, os, sys\nf = os.open(sys.argv[1], os.O_RDWR)\nm = mmap.mmap(f, 0)\nm[0:1] = b'M'\nm.flush()";
    let path = fs::canonicalize(path)?;
    let done = Command::new("python3").args(["-c", program]).arg(path).output()?.status.success();
    if done { Ok(()) } else { Err(io::Error::other("no mapping")) }
}

fn nameless(place: &Place, bytes: Bytes) -> io::Result<()> {
    let dir = rustix::fs::openat(&place.dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let file =
        rustix::fs::openat(&dir, ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o604))?;
    let file = fs::File::from(file);
    file.write_all_at(&bytes.make(), 0)?;
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, from, CWD, &place.path, AtFlags::SYMLINK_FOLLOW)?)
}

fn link(from: &Place, to: &Place) -> io::Result<()> {
    Ok(rustix::fs::linkat(CWD, &from.path, CWD, &to.path, AtFlags::empty())?)
}

fn rename(from: &Place, to: &Place, flags: RenameFlags) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, &from.path, CWD, &to.path, flags)?)
}

fn recreate(place: &Place, bytes: Bytes) -> io::Result<()> {
    let names: Vec<_> =
        fs::read_dir(&place.path)?.map(|entry| entry.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    fs::remove_dir_all(&place.path)?;
    fs::create_dir(&place.path)?;
    for name in names.iter().filter(|name| (name.len() + usize::from(bytes.tag)) % 2 == 0) {
        fs::write(place.path.join(name), bytes.make())?;
    }
    Ok(())
}

fn deep(place: &Place, levels: usize) -> io::Result<()> {
    let mut dir = place.dir.as_fd().try_clone_to_owned()?;
    let mut name = place.path.file_name().unwrap_or_default().to_owned();
    for _ in 0..levels {
        let _ = rustix::fs::mkdirat(&dir, &name, Mode::from_raw_mode(0o750));
        dir = rustix::fs::openat(&dir, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        name = OsStr::from_bytes(&[b'd'; 200]).to_owned();
    }
    fs::write(format!("/proc/self/fd/{}/end", dir.as_raw_fd()), b"end")
}

/// A seed's changes, layer by layer: those of the last are what is written.
pub fn of_seed(seed: u64, layers: usize) -> Vec<Vec<Op>> {
    let mut dice = Dice(seed);
    let mut all = Vec::new();
    for layer in 0..layers {
        let count = 10 + dice.roll(50);
        let begin = if layer == 0 { 12 } else { 0 };
        let begin: Vec<Op> = (0..begin).map(|_| Op::Create(dice.path(), dice.bytes())).collect();
        all.push(begin.into_iter().chain((0..count).map(|_| dice.op())).collect());
    }
    all
}

/// True for what overlay takes as a whiteout.
pub fn is_whiteout_device(meta: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    meta.file_type().is_char_device() && meta.rdev() == 0
}
