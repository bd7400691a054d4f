//! The root of a tree: a directory of the store, or of a file system that we mounted for ourselves to read it.

use std::{
    fmt,
    ops::Deref,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where a tree lies, and what must stay open for it to be there.
#[derive(Clone)]
pub struct Root {
    path: PathBuf,
    /// A mount without a place in any namespace: with its last descriptor it is gone.
    mount: Option<Arc<OwnedFd>>,
    /// The mount is of a file system that others have mounted: what they write is there at once.
    is_shared: bool,
    /// What people know it by.
    name: PathBuf,
    /// Why it cannot be read.
    absent: Option<String>,
}

impl Root {
    /// The root of a mount that nothing but `mount` holds, made of what `name` says.
    pub fn of_mount(mount: OwnedFd, name: &Path) -> Self {
        // The dot makes the link of procfs be followed, also by those who follow no link at the end of a path.
        let path = format!("/proc/self/fd/{}/.", mount.as_raw_fd()).into();
        Self { path, mount: Some(Arc::new(mount)), is_shared: false, name: name.to_owned(), absent: None }
    }

    /// The same of a clone of a mount that is in use.
    pub fn of_clone(mount: OwnedFd, name: &Path) -> Self {
        Self { is_shared: true, ..Self::of_mount(mount, name) }
    }

    /// A tree that is known to exist and cannot be read, for the reason given.
    pub fn absent(name: &Path, why: String) -> Self {
        Self { path: name.to_owned(), mount: None, is_shared: false, name: name.to_owned(), absent: Some(why) }
    }

    /// The directory `below` of it; names without links or `..`.
    pub fn join(&self, below: &str) -> Self {
        Self { path: self.path.join(below), name: self.name.join(below), ..self.clone() }
    }

    /// What it is called in messages: a path of the store.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Why it cannot be read, if so.
    pub fn why_absent(&self) -> Option<&str> {
        self.absent.as_deref()
    }

    /// True if it is a file system that we have mounted for ourselves: should others write to its device, we may see it late, or
    /// never.
    pub fn is_apart(&self) -> bool {
        self.mount.is_some() && !self.is_shared
    }
}

impl From<PathBuf> for Root {
    fn from(path: PathBuf) -> Self {
        Self { name: path.clone(), path, mount: None, is_shared: false, absent: None }
    }
}

impl Deref for Root {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for Root {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl PartialEq for Root {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for Root {}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)
    }
}
