//! From a path to what it names, below a root of our choice: links are followed, none leads out.
//!
//! Every step is one name below an open directory, so nobody can swap a link in between (and it needs no `openat2`, which
//! older kernels do not have).

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use crate::{
    error::{At, Result},
    tree::{Kind, Node},
};

/// As many symbolic links as the kernel follows in one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What a path names.
pub struct Place {
    /// Its true path from the root: absolute, without links, `.` and `..`.
    pub path: OsString,
    /// What is there; `None`: the root itself.
    pub node: Option<Node>,
}

/// What `dest` names for a process whose root directory is `root`, as it sees it.
///
/// `root` may be `/proc/<pid>/root`; then mounts are crossed as the process would, and what is found is what it has there
/// now.
pub fn open_in_root(root: &Path, dest: &str) -> Result<Node> {
    let place = root.join(dest.trim_start_matches('/'));
    // The directory itself, should the path be a link as `/proc/<pid>/root` is.
    let top = Node::open(&root.join(".")).at("open", root)?;
    walk(&top, dest.as_bytes()).map(|found| found.node.unwrap_or(top)).at("open", place)
}

/// Walks from `top` down to what `path` names.
pub fn walk(top: &Node, path: &[u8]) -> io::Result<Place> {
    let mut todo: VecDeque<Vec<u8>> = path.split(|&b| b == b'/').map(<[u8]>::to_vec).collect();
    let (mut way, mut links): (Vec<(Vec<u8>, Node)>, usize) = (Vec::new(), 0);
    while let Some(name) = todo.pop_front() {
        match name.as_slice() {
            b"" | b"." => continue,
            // Up is where we came from: `..` of a directory that was moved could lead outside.
            b".." => {
                way.pop();
                continue;
            }
            _ => {}
        }
        let node = way.last().map_or(top, |(_, node)| node).child(&name)?;
        if node.meta.kind != Kind::Symlink {
            way.push((name, node));
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(io::Error::other("too many symbolic links"));
        }
        let target = node.target()?;
        if target.starts_with(b"/") {
            way.clear();
        }
        target.split(|&b| b == b'/').rev().for_each(|part| todo.push_front(part.to_vec()));
    }
    let path = absolute(way.iter().map(|(name, _)| name.as_slice()));
    Ok(Place { path, node: way.pop().map(|(_, node)| node) })
}

/// The path as it is written, made absolute and freed of `.` and `..`, without a look at any directory.
pub fn clean(path: &str) -> OsString {
    let mut way: Vec<&[u8]> = Vec::new();
    for name in path.as_bytes().split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(way.pop()),
            name => way.push(name),
        }
    }
    absolute(way.into_iter())
}

fn absolute<'a>(names: impl Iterator<Item = &'a [u8]>) -> OsString {
    let mut path = Vec::new();
    for name in names {
        path.push(b'/');
        path.extend(name);
    }
    OsString::from_vec(if path.is_empty() { b"/".to_vec() } else { path })
}

/// What is left of `path` below `above`: empty if they are the same, `None` if it is not below.
pub fn below<'a>(path: &'a OsStr, above: &OsStr) -> Option<&'a [u8]> {
    let rest = path.as_bytes().strip_prefix(above.as_bytes().strip_suffix(b"/").unwrap_or(above.as_bytes()))?;
    match rest {
        [] => Some(rest),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

/// `path` and `more` below it.
pub fn join(path: &OsStr, more: &[u8]) -> OsString {
    let names = path.as_bytes().split(|&b| b == b'/').chain(more.split(|&b| b == b'/'));
    absolute(names.filter(|name| !name.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_cleaned_without_a_look() {
        for (path, right) in
            [("/data/", "/data"), ("data/./x", "/data/x"), ("/a/../../b", "/b"), ("", "/"), ("..", "/")]
        {
            assert_eq!(clean(path), right, "{path:?}");
        }
    }

    #[test]
    fn below_means_by_whole_names() {
        for (path, above, rest) in [
            ("/data/sub", "/data", Some("sub")),
            ("/data", "/data", Some("")),
            ("/database", "/data", None),
            ("/x", "/", Some("x")),
            ("/", "/", Some("")),
        ] {
            let found = below(OsStr::new(path), OsStr::new(above));
            assert_eq!(found, rest.map(str::as_bytes), "{path} {above}");
        }
        assert_eq!(join(OsStr::new("/"), b"a//b"), "/a/b");
        assert_eq!(join(OsStr::new("/a"), b""), "/a");
    }
}
