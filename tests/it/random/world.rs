//! A real overlay with the changes of many seeds, each in a directory of its own, and what others make of its last layer.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::{self, Seek, Write},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use dewar::{
    rw,
    snapshotter::{Driver, Origin, RwLayer},
    tree::{Summary, Why},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags};

use super::{
    ops::{Op, is_whiteout_device},
    view::{View, xattrs},
};

/// How overlay is mounted, and what else is done to its layers.
#[derive(Debug, PartialEq, Eq)]
pub struct Flavour {
    pub name: &'static str,
    /// For the layers below.
    lower: &'static str,
    /// For the last.
    upper: &'static str,
    /// `trusted` or `user`.
    marks: &'static str,
    /// Some whiteouts become empty files with an attribute, as composefs writes them; no kernel does.
    attribute_whiteouts: Whiteouts,
}

/// Where whiteouts become attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whiteouts {
    Devices,
    /// In every layer, and their directory is marked for it, as the kernel's documentation asks.
    Marked,
    /// In the last layer, and their directory is not marked.
    Unmarked,
}

const fn flavour(name: &'static str, lower: &'static str, upper: &'static str) -> Flavour {
    Flavour { name, lower, upper, marks: "trusted", attribute_whiteouts: Whiteouts::Devices }
}

pub const FLAVOURS: [Flavour; 8] = [
    // As containerd mounts, here and in a user namespace.
    flavour("usual", "index=off", "index=off"),
    Flavour { marks: "user", ..flavour("userxattr", "index=off,userxattr", "index=off,userxattr") },
    // Directories of the image can be renamed.
    flavour("redirect_dir", "index=off,redirect_dir=on", "index=off,redirect_dir=on"),
    // A change of owner, mode or attributes copies no data.
    flavour("metacopy", "index=off,redirect_dir=on,metacopy=on", "index=off,redirect_dir=on,metacopy=on"),
    // Directories were renamed below, but cannot be any more.
    flavour("follow", "index=off,redirect_dir=on", "index=off,redirect_dir=follow"),
    flavour("xino, nofollow", "index=off,xino=on,redirect_dir=nofollow", "index=off,xino=on,redirect_dir=nofollow"),
    Flavour { attribute_whiteouts: Whiteouts::Marked, ..flavour("attribute whiteouts", "index=off", "index=off") },
    Flavour {
        attribute_whiteouts: Whiteouts::Marked,
        ..flavour(
            "attribute whiteouts, metacopy",
            "index=off,redirect_dir=on,metacopy=on",
            "index=off,redirect_dir=on,metacopy=on",
        )
    },
];

/// The kernel lists such a deletion, and finds nothing there.
pub const UNMARKED: Flavour = Flavour {
    attribute_whiteouts: Whiteouts::Unmarked,
    ..flavour("attribute whiteouts, unmarked", "index=off", "index=off")
};

/// What is to be done where: a directory of the seed's own (or the root itself), and its changes layer by layer.
pub type Plan = Vec<(String, Vec<Vec<Op>>)>;

/// Layers in a temporary directory as containerd lays them out: `<n>/fs` and `<n>/work`, the lowest first.
pub struct World {
    /// In memory where that can hold all there is: to unmount an overlay writes its file system to the disk.
    root: PathBuf,
    _memory: Option<Memory>,
    _temp: tempfile::TempDir,
    flavour: &'static Flavour,
    layers: usize,
    /// How many changes were tried, and how many the kernel let pass.
    pub tried: usize,
    pub done: usize,
}

/// A mounted overlay; unmounted when dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).expect("unmount");
        fs::remove_dir(&self.0).expect("nothing is mounted there any more");
    }
}

/// A file system in memory; unmounted when dropped.
struct Memory(PathBuf);

impl Memory {
    /// Only Linux 6.6 and newer keep `user.*` attributes there.
    fn mount(at: &Path) -> Option<Self> {
        let options = Some("size=4g,mode=755");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), options).expect("mount a tmpfs");
        let memory = Self(at.to_owned());
        let holds_all = set_xattr(at, "user.k", b"").and_then(|()| rustix::fs::removexattr(at, "user.k")).is_ok();
        holds_all.then_some(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).expect("unmount");
    }
}

/// Runs `work` where its mounts are seen by nobody else, and end with it, even if it is killed.
pub fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).expect("a mount namespace of its own");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("make mounts private");
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

impl World {
    pub fn new(flavour: &'static Flavour, plan: &Plan) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("w");
        fs::create_dir(&root).unwrap();
        let memory = Memory::mount(&root);
        let mut world = Self { root, _memory: memory, _temp: temp, flavour, layers: 0, tried: 0, done: 0 };
        let layers = plan.iter().map(|(_, ops)| ops.len()).max().unwrap_or(0);
        for layer in 0..layers {
            world.layer(plan, layer, layer + 1 == layers);
        }
        world
    }

    fn layer(&mut self, plan: &Plan, layer: usize, is_last: bool) {
        let [fs, work] = self.new_dirs(&layer.to_string());
        if layer > 0 {
            copy_owner(&self.lowers_of(layer)[0], &fs);
        }
        let options = if is_last { self.flavour.upper } else { self.flavour.lower };
        let mounted = (layer > 0).then(|| self.mount(&self.lowers_of(layer), &fs, &work, options));
        let root = mounted.as_ref().map_or(fs.as_path(), Mounted::path);
        for (top, ops) in plan {
            let dir = root.join(top);
            let _ = fs::create_dir(&dir);
            let ops = ops.get(layer).map_or(&[][..], Vec::as_slice);
            let Ok(dir) = open_dir(&dir) else { continue };
            self.tried += ops.len();
            // Only below an overlay are overlay's attributes a container's own.
            let may_be = |op: &&Op| layer > 0 || !op.sets_mark();
            self.done += ops.iter().filter(may_be).filter(|op| op.perform(&dir).is_ok()).count();
        }
        drop(mounted);
        let is_marked = self.flavour.attribute_whiteouts == Whiteouts::Marked;
        if is_marked || is_last && self.flavour.attribute_whiteouts == Whiteouts::Unmarked {
            self.with_attribute_whiteouts(&fs);
        }
        self.layers += 1;
    }

    fn new_dirs(&self, name: &str) -> [PathBuf; 2] {
        let dir = self.root.join(name);
        let dirs = ["fs", "work"].map(|part| dir.join(part));
        dirs.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        if self.flavour.marks == "user" {
            // As in a user namespace: by this `dewar` knows whose marks are meant.
            std::os::unix::fs::chown(&dir, Some(1000), None).unwrap();
        }
        dirs
    }

    /// Two of three whiteouts, always the same.
    fn with_attribute_whiteouts(&self, dir: &Path) {
        // What is too deep stays as it is.
        let Ok(entries) = fs::read_dir(dir) else { return };
        let mut is_marked = false;
        for name in entries.map(|entry| entry.unwrap().file_name()) {
            let path = dir.join(&name);
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let sum: usize = name.as_bytes().iter().map(|b| usize::from(*b)).sum();
            if meta.is_dir() {
                self.with_attribute_whiteouts(&path);
            } else if is_whiteout_device(&meta) && !sum.is_multiple_of(3) {
                fs::remove_file(&path).unwrap();
                fs::write(&path, "").unwrap();
                set_xattr(&path, &self.mark("whiteout"), b"y").unwrap();
                is_marked = true;
            }
        }
        let opaque = self.mark("opaque").into_bytes();
        if is_marked
            && self.flavour.attribute_whiteouts == Whiteouts::Marked
            && !xattrs(dir).unwrap().iter().any(|(name, _)| *name == opaque)
        {
            set_xattr(dir, &self.mark("opaque"), b"x").unwrap();
        }
    }

    fn mark(&self, name: &str) -> String {
        format!("{}.overlay.{name}", self.flavour.marks)
    }

    /// The topmost first, of what is below layer `layer`.
    fn lowers_of(&self, layer: usize) -> Vec<PathBuf> {
        (0..layer).rev().map(|n| self.root.join(n.to_string()).join("fs")).collect()
    }

    /// The layers below the last, the topmost first.
    pub fn lowers(&self) -> Vec<PathBuf> {
        self.lowers_of(self.layers - 1)
    }

    fn mount(&self, lowers: &[PathBuf], upper: &Path, work: &Path, options: &str) -> Mounted {
        let at = tempfile::tempdir_in(&self.root).unwrap().keep();
        let lowers: Vec<String> = lowers.iter().map(|dir| dir.display().to_string()).collect();
        let (lowers, upper, work) = (lowers.join(":"), upper.display(), work.display());
        let options = format!("lowerdir={lowers},upperdir={upper},workdir={work},{options}");
        mount(Some("overlay"), &at, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .expect("mount an overlay");
        Mounted(at)
    }

    /// The last layer, as its snapshotter would describe it.
    pub fn rw(&self) -> RwLayer {
        let last = self.root.join((self.layers - 1).to_string());
        RwLayer::Overlay {
            upper: last.join("fs").into(),
            lowers: self.lowers().into_iter().map(Into::into).collect(),
            ids: None,
            driver: Driver::Kernel,
        }
    }

    /// The last layer, written twice: the same bytes each time, and none of overlay's attributes.
    pub fn write(&self) -> (Vec<u8>, Summary) {
        self.write_twice(&self.rw())
    }

    /// The layers below the last two, if there are any; else below the last.
    fn image(&self) -> Vec<PathBuf> {
        let lowers = self.lowers();
        lowers[usize::from(lowers.len() > 1)..].to_vec()
    }

    /// The last two layers as one.
    pub fn write_two(&self) -> (Vec<u8>, Summary) {
        self.write_twice(&self.rw().stacked(self.lowers().len() - self.image().len()).unwrap())
    }

    fn write_twice(&self, rw: &RwLayer) -> (Vec<u8>, Summary) {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let summary = rw::write_layer(rw, &mut first).unwrap();
        assert_eq!(summary, rw::write_layer(rw, &mut second).unwrap());
        assert!(first == second, "two runs differ");
        for leak in [&b"SCHILY.xattr.trusted.overlay."[..], b"SCHILY.xattr.user.overlay."] {
            assert!(!first.windows(leak.len()).any(|part| part == leak), "a mark of overlay's leaked");
        }
        assert_eq!(summary.written, first.len() as u64);
        (first, summary)
    }

    /// The same change, found by comparing what the kernel shows with and without the last layer, as for snapshotters that keep
    /// trees: it names nothing that the upperdir does not have. Only where names of one file part, or where one moved along with
    /// its directory, others of them may be written, with the directories on the way: either choice keeps or parts the same.
    pub fn write_by_trees(&self) -> (Vec<u8>, Summary) {
        let (base, active) = (self.base(), self.mounted());
        let trees = RwLayer::Trees {
            base: base.path().to_owned().into(),
            active: active.path().to_owned().into(),
            origin: Origin::Unknown,
        };
        let mut layer = Vec::new();
        let mut summary = rw::write_layer(&trees, &mut layer).unwrap();
        // Overlay itself lists deletions that are attributes in an unmarked directory, and finds nothing there.
        let is_ghost = |path: &[u8]| {
            let gone = |root: &Path| fs::symlink_metadata(root.join(OsStr::from_bytes(path))).is_err();
            gone(base.path()) && gone(active.path())
        };
        summary.left_out.retain(|left| !matches!(left.why, Why::Unreadable(_)) || !is_ghost(&left.path));
        let names: BTreeSet<PathBuf> = names_in(&self.write().0).into_iter().collect();
        let mut more: Vec<PathBuf> = names_in(&layer).into_iter().filter(|name| !names.contains(name)).collect();
        let has_names = |name: &Path| {
            let looks = [base.path(), active.path()].map(|root| fs::symlink_metadata(root.join(name)));
            looks.into_iter().flatten().any(|meta| !meta.is_dir() && meta.nlink() > 1)
        };
        let linked: Vec<PathBuf> = more.iter().filter(|name| has_names(name)).cloned().collect();
        more.retain(|name| !linked.iter().any(|file| file.starts_with(name)));
        assert!(more.is_empty(), "two trees differ where the upperdir has nothing: {more:?}");
        (layer, summary)
    }

    /// What the kernel shows, mounted anew.
    pub fn mounted(&self) -> Mounted {
        let last = self.root.join((self.layers - 1).to_string());
        self.mount(&self.lowers(), &last.join("fs"), &last.join("work"), self.flavour.upper)
    }

    /// What the kernel shows without the last layer.
    pub fn base(&self) -> Mounted {
        self.base_on(&self.lowers())
    }

    fn base_on(&self, lowers: &[PathBuf]) -> Mounted {
        let name = tempfile::tempdir_in(&self.root).unwrap().keep();
        let [upper, work] = self.new_dirs(name.file_name().unwrap().to_str().unwrap());
        copy_owner(&lowers[0], &upper);
        self.mount(lowers, &upper, &work, self.flavour.upper)
    }

    /// Where it is: no two worlds are at one place.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A new directory that goes with this world.
    pub fn scratch(&self) -> PathBuf {
        tempfile::tempdir_in(&self.root).unwrap().keep()
    }

    /// What the kernel shows when the last layer is replaced by `layer`: marks are turned into overlay's by this test, all else
    /// is unpacked by GNU tar. So containerd's overlayfs snapshotter does.
    pub fn overlaid(&self, layer: &[u8]) -> View {
        self.overlaid_on(&self.lowers(), layer)
    }

    /// The same, where the layer below the last one is replaced too: as Docker's init layer is not of the image.
    pub fn overlaid_on_image(&self, layer: &[u8]) -> View {
        self.overlaid_on(&self.image(), layer)
    }

    fn overlaid_on(&self, lowers: &[PathBuf], layer: &[u8]) -> View {
        let name = tempfile::tempdir_in(&self.root).unwrap().keep();
        let [upper, work] = self.new_dirs(name.file_name().unwrap().to_str().unwrap());
        copy_owner(&lowers[0], &upper);
        for name in names_in(layer) {
            self.apply_mark(&upper, &name);
        }
        untar(&GNU_TAR, layer, &upper);
        View::of(self.mount(lowers, &upper, &work, self.flavour.upper).path())
    }

    fn apply_mark(&self, upper: &Path, name: &Path) {
        let (Some(parent), Some(last)) = (name.parent(), name.file_name()) else { return };
        let Some(gone) = last.as_bytes().strip_prefix(b".wh.") else { return };
        let dir = upper.join(parent);
        fs::create_dir_all(&dir).unwrap();
        if gone == b".wh..opq" {
            set_xattr(&dir, &self.mark("opaque"), b"y").unwrap();
        } else {
            let path = dir.join(OsStr::from_bytes(gone));
            rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        }
    }

    /// What a plain copy of the layers below becomes when `layer` is unpacked over it: marks are obeyed by this test, all else is
    /// unpacked by `tar`. So containerd's native snapshotter does, and every tool without overlay.
    pub fn unpacked(&self, tar: &Tar, layer: &[u8]) -> View {
        self.unpacked_on(&self.lowers(), tar, layer)
    }

    /// The same, where the layer below the last one is replaced too.
    pub fn unpacked_on_image(&self, tar: &Tar, layer: &[u8]) -> View {
        self.unpacked_on(&self.image(), tar, layer)
    }

    fn unpacked_on(&self, lowers: &[PathBuf], tar: &Tar, layer: &[u8]) -> View {
        let root = self.scratch();
        let base = self.base_on(lowers);
        let copied = Command::new("cp").arg("-a").arg(base.path().join(".")).arg(&root).status().unwrap();
        assert!(copied.success(), "cp");
        drop(base);
        names_in(layer).iter().for_each(|name| clear(&root, name));
        untar(tar, layer, &root);
        View::of(&root)
    }
}

fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Makes room for an entry of a layer.
fn clear(root: &Path, name: &Path) {
    // With its last slash a path would lead through a symbolic link.
    let path = root.join(name).components().collect::<PathBuf>();
    let (Some(dir), Some(last)) = (path.parent(), path.file_name()) else { return };
    match last.as_bytes().strip_prefix(b".wh.") {
        Some(b".wh..opq") => {
            fs::read_dir(dir).into_iter().flatten().for_each(|entry| remove(&entry.unwrap().path()));
        }
        Some(gone) => remove(&dir.join(OsStr::from_bytes(gone))),
        // A directory is merged. Its attributes would stay, which no layer can prevent: here they go.
        None if name.as_os_str().as_bytes().ends_with(b"/")
            && fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) =>
        {
            for (name, _) in xattrs(&path).unwrap() {
                rustix::fs::lremovexattr(&path, OsStr::from_bytes(&name)).unwrap();
            }
        }
        None => remove(&path),
    }
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// The names in a tar, as another reader sees them.
pub fn names_in(tar: &[u8]) -> Vec<PathBuf> {
    let mut archive = tar::Archive::new(tar);
    let names = archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned());
    names.map(|name| PathBuf::from(OsStr::from_bytes(&name))).collect()
}

/// A program that unpacks tars.
pub struct Tar {
    program: &'static str,
    args: &'static [&'static str],
}

pub const GNU_TAR: Tar = Tar {
    program: "tar",
    args: &[
        "-x",
        "-f",
        "-",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "-p",
        "--same-owner",
        "--exclude=.wh.*",
    ],
};

pub const BSD_TAR: Tar =
    Tar { program: "bsdtar", args: &["-x", "-f", "-", "-p", "--numeric-owner", "--same-owner", "--exclude", ".wh.*"] };

fn untar(tar: &Tar, layer: &[u8], into: &Path) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(layer).unwrap();
    file.rewind().unwrap();
    let mut command = Command::new(tar.program);
    command.args(tar.args).arg("-C").arg(into).env("LC_ALL", "C.UTF-8").stdin(file);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}: {}", tar.program, String::from_utf8_lossy(&out.stderr));
}

/// All of `dir` as a tar by GNU tar.
pub fn tar_of(dir: &Path, out: fs::File) -> io::Result<()> {
    let mut command = Command::new("tar");
    command.args(["-c", "-f", "-", "--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner"]);
    command.args(["--xattrs-exclude=trusted.overlay.*", "--pax-option=delete=atime,delete=ctime"]);
    command.arg("-C").arg(dir).arg(".").env("LC_ALL", "C").stdout(Stdio::from(out));
    let out = command.output()?;
    assert!(out.status.success(), "tar: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

/// All that containerd copies to the root of a new snapshot.
fn copy_owner(from: &Path, to: &Path) {
    let meta = fs::metadata(from).unwrap();
    std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid())).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
}
