//! What can be seen of a tree, path for path and attribute for attribute, and how two trees differ.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, fs, io,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::FileTypeExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use dewar::{
    digest::Digest,
    tree::{Summary, Why},
};
use rustix::fs::{Mode, OFlags};

/// What can be seen of one entry, by name: `kind`, `mode`, `owner`, `mtime`, …, `xattr <name>`, and `names` for those of a file
/// that has several.
pub type Attributes = BTreeMap<String, String>;

/// All that can be seen of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    pub entries: BTreeMap<Vec<u8>, Attributes>,
    inodes: BTreeMap<Vec<u8>, (u64, u64)>,
}

impl View {
    /// Of a directory. Overlay's own attributes are not looked at.
    pub fn of(root: &Path) -> Self {
        let mut view = Self::default();
        view.add(root, b"").expect("the root of a tree can be looked at");
        view.join_names();
        view
    }

    fn add(&mut self, at: &Path, name: &[u8]) -> io::Result<()> {
        let meta = match fs::symlink_metadata(at) {
            // Overlay may list a name that it does not find; it is as good as not there.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !name.is_empty() => return Ok(()),
            meta => meta?,
        };
        self.entries.insert(name.to_vec(), attributes(at, &meta, name.is_empty())?);
        if !meta.is_dir() {
            self.inodes.insert(name.to_vec(), (meta.dev(), meta.ino()));
            return Ok(());
        }
        // Relative to a descriptor, so that no path is too long.
        let dir = rustix::fs::open(at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let here = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        for entry in fs::read_dir(&here)? {
            let entry = entry?.file_name();
            let slash: &[u8] = if name.is_empty() { b"" } else { b"/" };
            self.add(&here.join(&entry), &[name, slash, entry.as_bytes()].concat())?;
        }
        Ok(())
    }

    fn join_names(&mut self) {
        let mut groups: HashMap<(u64, u64), Vec<&[u8]>> = HashMap::new();
        for (name, inode) in &self.inodes {
            groups.entry(*inode).or_default().push(name);
        }
        for names in groups.into_values().filter(|names| names.len() > 1) {
            let text = names.iter().map(|name| name.escape_ascii().to_string()).collect::<Vec<_>>().join(" = ");
            for name in names {
                self.entries.get_mut(name).expect("it has an inode").insert("names".into(), text.clone());
            }
        }
    }

    /// Without what was reported as not written.
    pub fn without(mut self, summary: &Summary) -> Self {
        let mut gone = BTreeSet::new();
        for left in &summary.left_out {
            // The root stands in a layer as `.`.
            let path = if left.path == b"." { &b""[..] } else { &left.path };
            match &left.why {
                Why::XattrName(name) | Why::XattrSize(name) => {
                    let key = format!("xattr {}", name.escape_ascii());
                    // Told once for a file, whatever its names.
                    let inode = self.inodes.get(path).copied();
                    let is_same =
                        |other: &[u8]| other == path || inode.is_some() && self.inodes.get(other).copied() == inode;
                    let names = self.entries.iter_mut().filter(|(path, _)| is_same(path));
                    let removed = names.filter_map(|(_, entry)| entry.remove(&key)).count();
                    assert!(removed > 0, "{left}: it was not there");
                }
                Why::Socket | Why::WhiteoutName | Why::PathTooLong(_) => drop(gone.insert(path)),
                _ => panic!("{left}"),
            }
        }
        let is_gone = |path: &[u8]| {
            let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).chain([path.len()]);
            ends.into_iter().any(|end| gone.contains(&path[..end]))
        };
        self.entries.retain(|path, _| !is_gone(path));
        self.inodes.retain(|path, _| !is_gone(path));
        self.entries.values_mut().for_each(|entry| drop(entry.remove("names")));
        self.join_names();
        self
    }

    /// Every attribute in which `restored` is not as it should be.
    pub fn differences(&self, restored: &Self) -> Vec<Difference> {
        let mut all = Vec::new();
        let paths: BTreeSet<_> = self.entries.keys().chain(restored.entries.keys()).collect();
        for path in paths {
            let difference = |attribute: &str, expected: Option<&String>, restored: Option<&String>| Difference {
                path: path.clone(),
                attribute: attribute.to_owned(),
                expected: expected.cloned(),
                restored: restored.cloned(),
            };
            match (self.entries.get(path), restored.entries.get(path)) {
                (Some(ours), Some(theirs)) => {
                    let keys: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
                    let differing = keys.into_iter().filter(|key| ours.get(*key) != theirs.get(*key));
                    all.extend(differing.map(|key| difference(key, ours.get(key), theirs.get(key))));
                }
                (ours, theirs) => {
                    let kind = |entry: Option<&Attributes>| entry.and_then(|entry| entry.get("kind")).cloned();
                    all.push(difference("entry", kind(ours).as_ref(), kind(theirs).as_ref()));
                }
            }
        }
        all
    }

    pub fn get(&self, path: &[u8], attribute: &str) -> Option<&str> {
        self.entries.get(path)?.get(attribute).map(String::as_str)
    }
}

fn attributes(at: &Path, meta: &fs::Metadata, is_root: bool) -> io::Result<Attributes> {
    let kind = meta.file_type();
    let mut all = Attributes::new();
    let mut put = |name: &str, value: String| drop(all.insert(name.to_owned(), value));
    put("kind", kind_of(kind).to_owned());
    put("mode", format!("{:o}", meta.mode() & 0o7777));
    put("owner", format!("{}:{}", meta.uid(), meta.gid()));
    // What is in the root decides its time.
    if !is_root {
        put("mtime", format!("{}+{:09}", meta.mtime(), meta.mtime_nsec()));
    }
    if kind.is_file() {
        put("size", meta.size().to_string());
        put("content", Digest::of(&fs::read(at)?).to_string());
    } else if kind.is_symlink() {
        put("target", fs::read_link(at)?.as_os_str().as_bytes().escape_ascii().to_string());
    } else if kind.is_char_device() || kind.is_block_device() {
        put("device", format!("{}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())));
    }
    let kept = xattrs(at)?.into_iter().filter(|(name, _)| !is_overlays(name));
    kept.for_each(|(name, value)| put(&format!("xattr {}", name.escape_ascii()), value.escape_ascii().to_string()));
    Ok(all)
}

fn kind_of(kind: fs::FileType) -> &'static str {
    [
        (kind.is_file(), "file"),
        (kind.is_dir(), "directory"),
        (kind.is_symlink(), "link"),
        (kind.is_fifo(), "fifo"),
        (kind.is_socket(), "socket"),
        (kind.is_char_device(), "char"),
    ]
    .iter()
    .find(|(is_it, _)| *is_it)
    .map_or("block", |(_, name)| name)
}

fn is_overlays(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// All extended attributes, those of overlay too.
pub fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let list = {
        let mut list = vec![0; 1 << 16];
        let len = rustix::fs::llistxattr(path, &mut list)?;
        list.truncate(len);
        list
    };
    let value = |name: &[u8]| {
        let mut value = vec![0; 1 << 16];
        let len = rustix::fs::lgetxattr(path, name, &mut value)?;
        value.truncate(len);
        Ok((name.to_vec(), value))
    };
    list.split(|&b| b == 0).filter(|name| !name.is_empty()).map(value).collect()
}

/// One attribute of one path. A path that one side has and the other has not differs in its `entry`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub path: Vec<u8>,
    pub attribute: String,
    pub expected: Option<String>,
    pub restored: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<String>| value.as_deref().unwrap_or("nothing").to_owned();
        write!(
            f,
            "{}: {}: expected {}, restored {}",
            self.path.escape_ascii(),
            self.attribute,
            show(&self.expected),
            show(&self.restored)
        )
    }
}
