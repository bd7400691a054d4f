//! A walk down and up a tree that keeps a bounded number of directories open, however deep the tree is.

use std::{collections::VecDeque, io, vec};

use super::node::{Dir, FileId};

/// So many directories of the way down stay open; those above are opened again through `..` on the way up.
const OPEN_AT_ONCE: usize = 32;

/// Where a walk stands: the directories from the root down to the present one, and the names still to be visited in each.
///
/// Each level carries a value of the walker's. A level may have no directory of its own: a walk through several trees at
/// once passes places where this tree has nothing.
#[derive(Debug)]
pub struct Steps<T> {
    levels: Vec<Level<T>>,
    path: Vec<u8>,
    /// How much of `path` is above the root of the walk.
    above: usize,
}

#[derive(Debug)]
struct Level<T> {
    id: Option<FileId>,
    /// `None` while closed, or if there is none.
    dir: Option<Dir>,
    /// How long the path of this directory is.
    path_len: usize,
    names: vec::IntoIter<Vec<u8>>,
    value: T,
}

/// A directory could not be found again on the way up; the names still to be visited in it were given up.
#[derive(Debug)]
pub struct Lost {
    /// Its path.
    pub path: Vec<u8>,
    /// How many names were not visited.
    pub names: usize,
    /// What the system said.
    pub source: io::Error,
}

impl<T> Steps<T> {
    /// A walk that begins in `dir`, with these names to visit.
    pub fn begin(dir: Dir, names: Vec<Vec<u8>>, value: T) -> Self {
        Self::begin_under(b"", dir, names, value)
    }

    /// The same, for a directory whose own path is `path`.
    pub fn begin_under(path: &[u8], dir: Dir, names: Vec<Vec<u8>>, value: T) -> Self {
        let above = path.len();
        let root = Level { id: Some(dir.id), dir: Some(dir), path_len: above, names: names.into_iter(), value };
        Self { levels: vec![root], path: path.to_vec(), above }
    }

    /// Goes down into the present directory's entry `name`.
    pub fn enter(&mut self, name: &[u8], dir: Option<Dir>, names: Vec<Vec<u8>>, value: T) {
        self.path = self.path_to(name);
        let id = dir.as_ref().map(|dir| dir.id);
        self.levels.push(Level { id, dir, path_len: self.path.len(), names: names.into_iter(), value });
        // The root stays open: from there everything can be found again.
        if let Some(above @ 1..) = self.levels.len().checked_sub(OPEN_AT_ONCE + 1) {
            self.levels[above].dir = None;
        }
    }

    /// The next name to visit in the present directory.
    pub fn next_name(&mut self) -> Option<Vec<u8>> {
        self.levels.last_mut()?.names.next()
    }

    /// Goes up. False when the walk is over.
    pub fn leave(&mut self) -> Result<bool, Lost> {
        let Some(left) = self.levels.pop() else { return Ok(false) };
        let Some(level) = self.levels.last() else { return Ok(false) };
        self.path.truncate(level.path_len);
        let (None, Some(id)) = (&level.dir, level.id) else { return Ok(true) };
        let found = left.dir.map(|dir| dir.parent(id)).and_then(Result::ok);
        let found = found.map_or_else(|| self.find_again(id), Ok);
        let level = &mut self.levels.last_mut().expect("looked at above");
        match found {
            Ok(dir) => level.dir = Some(dir),
            Err(source) => {
                let names = std::mem::take(&mut level.names).len();
                return Err(Lost { path: self.path.clone(), names, source });
            }
        }
        Ok(true)
    }

    /// The present directory, by its names from the root.
    fn find_again(&self, id: FileId) -> io::Result<Dir> {
        let root = self.levels[0].dir.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let below = self.path.get(self.above..).unwrap_or_default();
        let mut names: VecDeque<&[u8]> = below.split(|&b| b == b'/').filter(|name| !name.is_empty()).collect();
        let mut node = root.child(names.pop_front().unwrap_or(b"."))?;
        for name in names {
            node = node.child(name)?;
        }
        if node.meta.id == id { node.dir() } else { Err(io::Error::other("the directory was moved meanwhile")) }
    }

    /// The present directory, if the tree has one here.
    pub fn dir(&self) -> Option<&Dir> {
        self.levels.last()?.dir.as_ref()
    }

    /// The walker's value for the present directory.
    pub fn value(&self) -> Option<&T> {
        Some(&self.levels.last()?.value)
    }

    /// The path of the present directory; empty at the root.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The path of the present directory's entry `name`.
    pub fn path_to(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::with_capacity(self.path.len() + name.len() + 1);
        path.extend(&self.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(name);
        path
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::tree::Node;

    /// Walks as any user of `Steps` would; the paths in the order they were met.
    fn paths(root: &Path, mut between: impl FnMut(&[u8])) -> (Vec<String>, Vec<Lost>) {
        let dir = Node::open(root).unwrap().dir().unwrap();
        let names = dir.names().unwrap();
        let (mut steps, mut found, mut lost) = (Steps::begin(dir, names, ()), Vec::new(), Vec::new());
        loop {
            let Some(name) = steps.next_name() else {
                match steps.leave() {
                    Ok(true) => continue,
                    Ok(false) => return (found, lost),
                    Err(e) => {
                        lost.push(e);
                        continue;
                    }
                }
            };
            let path = steps.path_to(&name);
            between(&path);
            found.push(String::from_utf8(path).unwrap());
            let node = steps.dir().unwrap().child(&name).unwrap();
            if node.meta.kind == crate::tree::Kind::Directory {
                let dir = node.dir().unwrap();
                let names = dir.names().unwrap();
                steps.enter(&name, Some(dir), names, ());
            }
        }
    }

    fn deep(root: &Path, depth: usize) {
        let mut at = root.to_owned();
        for level in 0..depth {
            fs::create_dir(&at).unwrap();
            fs::write(at.join("z"), b"").unwrap();
            at.push(format!("d{level}"));
        }
    }

    #[test]
    fn parents_come_first_and_names_in_order_at_any_depth() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("r");
        deep(&root, 3 * OPEN_AT_ONCE);
        let (found, lost) = paths(&root, |_| {});
        assert!(lost.is_empty());
        assert_eq!(found.len(), 2 * 3 * OPEN_AT_ONCE - 1);
        assert!(found.first().unwrap().ends_with("d0") && found.last().unwrap() == "z", "{found:?}");
    }

    /// Far below `d0/d1/d2` the walk is told to move things above it.
    fn walk_and_move(moves: &[(&str, &str)]) -> (Vec<String>, Vec<Lost>) {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("r");
        deep(&root, 3 * OPEN_AT_ONCE);
        let mut moves = moves.iter();
        paths(&root, |path| {
            if path.iter().filter(|&&b| b == b'/').count() == 2 * OPEN_AT_ONCE {
                moves.by_ref().for_each(|(from, to)| fs::rename(root.join(from), temp.path().join(to)).unwrap());
            }
        })
    }

    #[test]
    fn a_directory_moved_behind_us_is_found_by_its_children_and_its_parent_by_name() {
        let (found, lost) = walk_and_move(&[("d0/d1/d2", "elsewhere")]);
        assert!(lost.is_empty(), "{lost:?}");
        assert_eq!(found.len(), 2 * 3 * OPEN_AT_ONCE - 1);
    }

    #[test]
    fn a_directory_that_is_not_found_again_is_told_and_the_walk_goes_on_above_it() {
        let (found, lost) = walk_and_move(&[("d0/d1/d2", "elsewhere"), ("d0/d1", "gone")]);
        assert_eq!(lost.len(), 1, "{lost:?}");
        assert_eq!((lost[0].path.as_slice(), lost[0].names), (b"d0/d1".as_slice(), 1));
        assert_eq!(found.len(), 2 * 3 * OPEN_AT_ONCE - 2);
        assert_eq!(found.last().unwrap(), "z");
    }
}
