//! `Tree`: all that can be seen of a directory tree, and the differences between two, attribute by attribute.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use dewar::digest::Digest;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};

/// What one entry shows, attribute by attribute; times in whole seconds and nanoseconds apart.
type Seen = BTreeMap<String, Vec<u8>>;

/// Every entry below a directory, by its path, and the directory itself.
#[derive(Clone, Default)]
pub struct Tree {
    seen: BTreeMap<Vec<u8>, Seen>,
}

/// The number of the mount that `at` is on. Device numbers do not tell: overlay over several file systems shows several.
fn mount_of(at: &Path) -> u64 {
    let stat = rustix::fs::statx(CWD, at, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID).expect("it was listed");
    stat.stx_mnt_id
}

impl Tree {
    /// The tree at `root`, without what is mounted in it. The root's own time is no content: every mount point touches it.
    pub fn of(root: &Path) -> Self {
        let mut tree = Self::default();
        let mut inodes = BTreeMap::new();
        tree.add(root, b"", mount_of(root), &mut inodes);
        let names: Vec<BTreeSet<Vec<u8>>> =
            inodes.into_values().filter(|names: &BTreeSet<_>| names.len() > 1).collect();
        for all in &names {
            let list = all.iter().map(|name| show(name)).collect::<Vec<_>>().join(" ");
            for name in all {
                tree.seen.get_mut(name).expect("it was added").insert("hard links".into(), list.clone().into());
            }
        }
        tree.seen.get_mut(&b""[..]).expect("the root was added").retain(|key, _| !key.starts_with("mtime"));
        tree
    }

    fn add(&mut self, at: &Path, name: &[u8], mount: u64, inodes: &mut BTreeMap<(u64, u64), BTreeSet<Vec<u8>>>) {
        let meta = fs::symlink_metadata(at).expect("it was listed");
        if mount_of(at) != mount {
            return;
        }
        self.seen.insert(name.to_vec(), seen(at, &meta));
        if !meta.is_dir() {
            inodes.entry((meta.dev(), meta.ino())).or_default().insert(name.to_vec());
            return;
        }
        // Through a descriptor, so that no path is too long.
        let dir = rustix::fs::openat(CWD, at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .expect("it opens");
        let here = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        for entry in fs::read_dir(&here).expect("it lists") {
            let entry = entry.expect("it lists").file_name();
            let slash: &[u8] = if name.is_empty() { b"" } else { b"/" };
            self.add(&here.join(&entry), &[name, slash, entry.as_bytes()].concat(), mount, inodes);
        }
    }

    /// What is different here from `original`, a line each: `path: what`. Empty if nothing is.
    pub fn differences(&self, original: &Self) -> String {
        let mut all = Vec::new();
        for path in self.seen.keys().chain(original.seen.keys()).collect::<BTreeSet<_>>() {
            let what = match (original.seen.get(path), self.seen.get(path)) {
                (Some(was), Some(is)) => changes(was, is),
                (Some(_), None) => "missing".into(),
                (None, _) => "extra".into(),
            };
            if !what.is_empty() {
                all.push(format!("{}: {what}", show(path)));
            }
        }
        all.join("\n")
    }

    pub fn len(&self) -> usize {
        self.seen.len()
    }
}

fn changes(was: &Seen, is: &Seen) -> String {
    let keys: BTreeSet<_> = was.keys().chain(is.keys()).collect();
    let what = keys.into_iter().filter_map(|key| match (was.get(key), is.get(key)) {
        (Some(was), Some(is)) if was == is => None,
        (Some(was), Some(is)) if key == "mode" => Some(format!("mode {} was {}", show(is), show(was))),
        (Some(_), Some(_)) => Some(format!("other {key}")),
        (Some(_), None) => Some(format!("no {key}")),
        (None, _) => Some(format!("new {key}")),
    });
    what.collect::<Vec<_>>().join(", ")
}

fn seen(at: &Path, meta: &fs::Metadata) -> Seen {
    let kind = FileType::from_raw_mode(meta.mode());
    let text = |text: String| text.into_bytes();
    let mut seen = Seen::from([
        ("mode".into(), text(format!("{kind:?} {:o}", meta.mode() & 0o7777))),
        ("owner".into(), text(format!("{}:{}", meta.uid(), meta.gid()))),
        ("mtime".into(), text(meta.mtime().to_string())),
        ("mtime nanoseconds".into(), text(meta.mtime_nsec().to_string())),
    ]);
    match kind {
        FileType::RegularFile => {
            let content = fs::read(at).expect("it is readable");
            seen.insert("content".into(), text(Digest::of(&content).to_string()));
        }
        FileType::Symlink => {
            let target = fs::read_link(at).expect("it is a link").into_os_string();
            seen.insert("target".into(), target.as_bytes().to_vec());
        }
        FileType::CharacterDevice | FileType::BlockDevice => {
            seen.insert("device".into(), text(meta.rdev().to_string()));
        }
        _ => {}
    }
    seen.extend(xattrs(at).map(|(name, value)| (format!("xattr {name}"), value)));
    seen
}

fn xattrs(at: &Path) -> impl Iterator<Item = (String, Vec<u8>)> {
    let mut list = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(at, &mut list).unwrap_or(0);
    list.truncate(len);
    let names: Vec<String> = list.split(|&b| b == 0).filter(|name| !name.is_empty()).map(show).collect();
    names.into_iter().filter(|name| !name.contains(".overlay.")).map(move |name| {
        let mut value = vec![0; 1 << 16];
        let len = rustix::fs::lgetxattr(at, name.as_str(), &mut value).expect("it was listed");
        (name, value[..len].to_vec())
    })
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
