//! A real overlay of the kernel, what it shows, and unpackers that are not ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Seek},
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

use dewar::{
    digest::Digest,
    rw,
    snapshotter::{Driver, Origin, RwLayer},
    sparse::SparseFile,
    tree::Summary,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags};

/// False, said aloud, where there is no root to mount overlays; with `DEWAR_LIVE=1` that is a failure.
pub fn can_mount() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || std::env::var_os("DEWAR_LIVE").is_none(), "DEWAR_LIVE is set, but overlays need root");
    if !is_root {
        eprintln!("skipped: mounting overlays needs root");
    }
    is_root
}

/// How overlay is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// As containerd does.
    Usual,
    /// Directories of the image can be renamed.
    Redirect,
    /// A change of owner, mode or attributes copies no data.
    Metacopy,
    /// As containerd does in a user namespace.
    User,
    /// Not the kernel's: the program fuse-overlayfs.
    Fuse,
}

impl Flavour {
    /// Directories of the image can be renamed without being copied.
    pub fn moves_directories(self) -> bool {
        matches!(self, Self::Redirect | Self::Metacopy)
    }

    fn options(self) -> &'static str {
        match self {
            Self::Usual => "index=off,redirect_dir=off,metacopy=off",
            Self::Redirect => "index=off,redirect_dir=on,metacopy=off",
            Self::Metacopy => "index=off,redirect_dir=on,metacopy=on",
            Self::User => "index=off,userxattr",
            Self::Fuse => "noacl",
        }
    }
}

/// Layers in a temporary directory, as containerd lays them out: `<n>/fs` and `<n>/work`, the lowest first.
pub struct Stack {
    pub temp: tempfile::TempDir,
    pub flavour: Flavour,
    layers: usize,
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
    }
}

impl Stack {
    pub fn new(flavour: Flavour) -> Self {
        let stack = Self { temp: tempfile::tempdir().unwrap(), flavour, layers: 0 };
        fs::create_dir(stack.temp.path().join("m")).unwrap();
        stack
    }

    fn dir(&self, layer: usize, part: &str) -> PathBuf {
        self.temp.path().join(layer.to_string()).join(part)
    }

    /// Changes the tree in a new layer above the others.
    pub fn layer(&mut self, change: impl FnOnce(&Path)) {
        let new = self.layers;
        for part in ["fs", "work"] {
            fs::create_dir_all(self.dir(new, part)).unwrap();
        }
        if self.flavour == Flavour::User {
            std::os::unix::fs::chown(self.temp.path().join(new.to_string()), Some(1000), None).unwrap();
        }
        self.layers += 1;
        if new == 0 {
            change(&self.dir(0, "fs"));
        } else {
            change(self.mount(&self.dir(new, "fs"), &self.dir(new, "work")).path());
        }
    }

    fn mount(&self, upper: &Path, work: &Path) -> Mounted {
        self.mount_at("m", upper, work)
    }

    fn mount_at(&self, name: &str, upper: &Path, work: &Path) -> Mounted {
        let at = self.temp.path().join(name);
        let lowers: Vec<String> = self.lowers().iter().map(|dir| dir.display().to_string()).collect();
        let (options, lowers) = (self.flavour.options(), lowers.join(":"));
        let options = format!("lowerdir={lowers},upperdir={},workdir={},{options}", upper.display(), work.display());
        if self.flavour == Flavour::Fuse {
            let run = Command::new("fuse-overlayfs").args(["-o", &options]).arg(&at).status();
            assert!(run.is_ok_and(|status| status.success()), "fuse-overlayfs mounts");
        } else {
            mount(Some("overlay"), &at, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
                .expect("mount an overlay");
        }
        Mounted(at)
    }

    /// All layers but the last, topmost first.
    pub fn lowers(&self) -> Vec<PathBuf> {
        (0..self.layers - 1).rev().map(|layer| self.dir(layer, "fs")).collect()
    }

    /// The last layer's upperdir.
    pub fn upper(&self) -> PathBuf {
        self.dir(self.layers - 1, "fs")
    }

    /// The last layer, as the snapshotter would describe it.
    pub fn rw(&self) -> RwLayer {
        RwLayer::Overlay {
            upper: self.upper().into(),
            lowers: self.lowers().into_iter().map(Into::into).collect(),
            ids: None,
            driver: if self.flavour == Flavour::Fuse { Driver::Fuse } else { Driver::Kernel },
        }
    }

    /// What the kernel shows of all layers, freshly mounted.
    pub fn view(&self) -> Tree {
        Tree::of(self.mount(&self.upper(), &self.dir(self.layers - 1, "work")).path())
    }

    /// The last layer, written twice: the same bytes each time.
    pub fn write(&self) -> (Vec<u8>, Summary) {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let summary = rw::write_layer(&self.rw(), &mut first).unwrap();
        assert_eq!(summary, rw::write_layer(&self.rw(), &mut second).unwrap());
        assert!(first == second, "two runs differ");
        let leak = b"SCHILY.xattr.trusted.overlay.";
        assert!(!first.windows(leak.len()).any(|part| part == leak), "a mark of overlay's leaked");
        assert_eq!(summary.written, first.len() as u64);
        (first, summary)
    }

    /// What the last layer cannot hold, as a tar.
    pub fn beside(&self) -> Vec<u8> {
        let path = self.temp.path().join("beside.tar");
        let mut beside = SparseFile::new(fs::File::create(&path).unwrap(), path.clone());
        rw::write_layer_beside(&self.rw(), &mut Vec::new(), &mut beside).unwrap();
        drop(beside.complete().unwrap());
        fs::read(path).unwrap()
    }

    /// Runs `look` on what the kernel shows of all layers but the last.
    fn with_base<T>(&self, look: impl FnOnce(&Path) -> T) -> T {
        let dirs = tempfile::tempdir_in(self.temp.path()).unwrap();
        let [at, empty, work] = ["below", "empty", "work"].map(|name| dirs.path().join(name));
        [&at, &empty, &work].into_iter().for_each(|dir| fs::create_dir(dir).unwrap());
        copy_metadata(&self.lowers()[0], &empty);
        let name = at.strip_prefix(self.temp.path()).unwrap().to_str().unwrap();
        look(self.mount_at(name, &empty, &work).path())
    }

    /// What the kernel shows of all layers but the last.
    pub fn base_view(&self) -> Tree {
        self.with_base(Tree::of)
    }

    /// The last layer, found by comparing what the kernel shows with and without it, as for snapshotters that keep trees.
    pub fn write_by_trees(&self) -> (Vec<u8>, Summary) {
        let active = self.mount(&self.upper(), &self.dir(self.layers - 1, "work"));
        self.with_base(|base| {
            let (base, active) = (base.to_owned(), active.path().to_owned());
            let mut layer = Vec::new();
            let trees = RwLayer::Trees { base: base.into(), active: active.into(), origin: Origin::Unknown };
            let summary = rw::write_layer(&trees, &mut layer).unwrap();
            (layer, summary)
        })
    }

    /// What the kernel shows when the last layer is replaced by `layer`, unpacked as containerd's overlay snapshotter does.
    pub fn view_with(&self, layer: &[u8]) -> Tree {
        let dirs = tempfile::tempdir_in(self.temp.path()).unwrap();
        let (upper, work) = (dirs.path().join("fs"), dirs.path().join("work"));
        fs::create_dir(&work).unwrap();
        fs::create_dir(&upper).unwrap();
        copy_metadata(&self.lowers()[0], &upper);
        for name in names_in(layer) {
            self.apply_mark(&upper, &name);
        }
        untar(layer, &upper, &["--exclude=.wh.*"]);
        Tree::of(self.mount(&upper, &work).path())
    }

    fn apply_mark(&self, upper: &Path, name: &Path) {
        let (Some(parent), Some(last)) = (name.parent(), name.file_name()) else { return };
        let Some(gone) = last.as_bytes().strip_prefix(b".wh.") else { return };
        let dir = upper.join(parent);
        fs::create_dir_all(&dir).unwrap();
        if gone == b".wh..opq" {
            let prefix = if self.flavour == Flavour::User { "user" } else { "trusted" };
            set_xattr(&dir, &format!("{prefix}.overlay.opaque"), b"y").unwrap();
        } else {
            let path = dir.join(std::ffi::OsStr::from_bytes(gone));
            rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        }
    }

    /// What a plain directory with all but the last layer becomes when `layer` is unpacked over it, as containerd's native
    /// snapshotter does.
    pub fn plain_with(&self, layer: &[u8]) -> Tree {
        let dirs = tempfile::tempdir_in(self.temp.path()).unwrap();
        let [root, empty, work] = ["root", "empty", "work"].map(|name| dirs.path().join(name));
        [&root, &empty, &work].into_iter().for_each(|dir| fs::create_dir(dir).unwrap());
        copy_metadata(&self.lowers()[0], &empty);
        let base = self.mount(&empty, &work);
        let copied = Command::new("cp").arg("-a").arg(base.path().join(".")).arg(&root).status().unwrap();
        assert!(copied.success());
        drop(base);
        names_in(layer).iter().for_each(|name| clear(&root, name));
        untar(layer, &root, &["--exclude=.wh.*"]);
        Tree::of(&root)
    }
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
        Some(gone) => remove(&dir.join(std::ffi::OsStr::from_bytes(gone))),
        // A directory is merged. Its attributes would stay, which no layer can prevent: here they go.
        None if name.as_os_str().as_bytes().ends_with(b"/")
            && fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) =>
        {
            xattrs(&path).keys().for_each(|name| rustix::fs::lremovexattr(&path, name.as_str()).unwrap());
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
    names.map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(&name))).collect()
}

/// Unpacks with GNU tar.
pub fn untar(tar: &[u8], into: &Path, more: &[&str]) {
    let mut file = tempfile::tempfile().unwrap();
    std::io::copy(&mut &tar[..], &mut file).unwrap();
    file.rewind().unwrap();
    let out = gnu_tar("-x", into).args(more).stdin(file).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

fn gnu_tar(mode: &str, dir: &Path) -> Command {
    let mut tar = Command::new("tar");
    tar.args([mode, "-f", "-", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-p", "--same-owner", "-C"]);
    tar.arg(dir).env("LC_ALL", "C");
    tar
}

fn copy_metadata(from: &Path, to: &Path) {
    let meta = fs::metadata(from).unwrap();
    std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid())).unwrap();
    fs::set_permissions(to, meta.permissions()).unwrap();
    for (name, value) in xattrs(from).into_iter().filter(|(name, _)| !name.contains(".overlay.")) {
        set_xattr(to, &name, &value).unwrap();
    }
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut list).unwrap_or(0);
    let names = list[..len].split(|&b| b == 0).filter(|name| !name.is_empty());
    let value = |name: &str| {
        let mut value = vec![0; 1 << 16];
        let len = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
        value[..len].to_vec()
    };
    names.map(|name| String::from_utf8(name.to_vec()).unwrap()).map(|name| (name.clone(), value(&name))).collect()
}

/// All that can be seen of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub device: u64,
    pub size: u64,
    /// The digest of a file's content, or a link's target.
    pub content: String,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Seen {
    pub fn is_directory(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::Directory
    }
}

/// All that can be seen of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    pub seen: BTreeMap<Vec<u8>, Seen>,
    /// Names that are one file.
    pub same: BTreeSet<BTreeSet<Vec<u8>>>,
}

impl Tree {
    pub fn of(root: &Path) -> Self {
        let mut tree = Self::default();
        let mut inodes: BTreeMap<(u64, u64), BTreeSet<Vec<u8>>> = BTreeMap::new();
        tree.add(root, b"", &mut inodes);
        tree.same = inodes.into_values().filter(|names| names.len() > 1).collect();
        tree
    }

    fn add(&mut self, at: &Path, name: &[u8], inodes: &mut BTreeMap<(u64, u64), BTreeSet<Vec<u8>>>) {
        let meta = fs::symlink_metadata(at).unwrap();
        let kind = meta.file_type();
        let content = if kind.is_file() {
            let mut bytes = Vec::new();
            fs::File::open(at).unwrap().read_to_end(&mut bytes).unwrap();
            Digest::of(&bytes).to_string()
        } else if kind.is_symlink() {
            fs::read_link(at).unwrap().as_os_str().as_bytes().escape_ascii().to_string()
        } else {
            String::new()
        };
        let seen = Seen {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            // What is in the root decides its time.
            mtime: if name.is_empty() { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) },
            device: meta.rdev(),
            size: if kind.is_dir() { 0 } else { meta.size() },
            content,
            xattrs: xattrs(at).into_iter().filter(|(name, _)| !name.contains(".overlay.")).collect(),
        };
        self.seen.insert(name.to_vec(), seen);
        if !kind.is_dir() {
            inodes.entry((meta.dev(), meta.ino())).or_default().insert(name.to_vec());
            return;
        }
        // Relative to a descriptor, so that no path is too long.
        let dir = rustix::fs::open(at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let here = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        for entry in fs::read_dir(&here).unwrap() {
            let entry = entry.unwrap().file_name();
            let slash: &[u8] = if name.is_empty() { b"" } else { b"/" };
            self.add(&here.join(&entry), &[name, slash, entry.as_bytes()].concat(), inodes);
        }
    }

    /// Forgets what is reported as not written.
    pub fn without(mut self, summary: &Summary) -> Self {
        use dewar::tree::Why;
        for left in &summary.left_out {
            match &left.why {
                Why::XattrName(name) | Why::XattrSize(name) => {
                    let name = String::from_utf8(name.clone()).unwrap();
                    let missing = self.seen.get_mut(&left.path).and_then(|seen| seen.xattrs.remove(&name));
                    assert!(missing.is_some(), "{left} was not there");
                }
                _ => {
                    let below = [&left.path[..], b"/"].concat();
                    self = self.only(|path, _| path != left.path && !path.starts_with(&below));
                }
            }
        }
        self
    }

    fn only(mut self, keep: impl Fn(&[u8], &Seen) -> bool) -> Self {
        self.seen.retain(|path, seen| keep(path, seen));
        let all = std::mem::take(&mut self.same).into_iter();
        let kept = all.map(|names| names.into_iter().filter(|name| self.seen.contains_key(name)).collect());
        self.same = kept.filter(|names: &BTreeSet<_>| names.len() > 1).collect();
        self
    }

    /// Panics with every difference.
    pub fn assert_same_as(&self, expected: &Self, what: &str) {
        let mut differences = Vec::new();
        let paths: BTreeSet<_> = self.seen.keys().chain(expected.seen.keys()).collect();
        for path in paths {
            let (ours, theirs) = (self.seen.get(path), expected.seen.get(path));
            if ours != theirs {
                let path = path.escape_ascii();
                differences.push(format!("{path}\n  expected {theirs:?}\n  restored {ours:?}"));
            }
        }
        if self.same != expected.same {
            let show = |tree: &Self| {
                let names =
                    |names: &BTreeSet<Vec<u8>>| names.iter().map(|n| n.escape_ascii().to_string()).collect::<Vec<_>>();
                format!("{:?}", tree.same.iter().map(names).collect::<Vec<_>>())
            };
            differences.push(format!("hard links\n  expected {}\n  restored {}", show(expected), show(self)));
        }
        assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
    }
}
