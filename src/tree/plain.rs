//! A whole tree into a tar: no layer below it, nothing to interpret.

use super::{
    node::{Dir, Kind, Meta, Node},
    pack::Packer,
    summary::Why,
    walk::Steps,
};
use crate::{error::Result, interrupt};

/// Writes all that is below `root`, in order, parents first; not `root` itself. What `refuse` gives a reason for stays out.
pub fn pack(root: &Node, packer: &mut Packer, refuse: fn(&[u8]) -> Option<Why>) -> Result<()> {
    let Some((dir, names)) = list(packer, b"", root) else { return Ok(()) };
    walk(Steps::begin(dir, names, ()), &root.meta, packer, refuse)
}

/// Writes `node`, with the content of `data`, under the name `path`, and all that is below it. False if it could not be.
pub fn pack_under(path: &[u8], node: &Node, data: &Node, packer: &mut Packer) -> Result<bool> {
    let is_written = packer.entry_from(path, node, data)?;
    if node.meta.kind == Kind::Directory
        && let Some((dir, names)) = list(packer, path, node)
    {
        walk(Steps::begin_under(path, dir, names, ()), &node.meta, packer, |_| None)?;
    }
    Ok(is_written)
}

fn walk(mut steps: Steps<()>, root: &Meta, packer: &mut Packer, refuse: fn(&[u8]) -> Option<Why>) -> Result<()> {
    loop {
        interrupt::check()?;
        match steps.next_name() {
            Some(name) => visit(&mut steps, packer, root, &name, refuse)?,
            None if !leave(&mut steps, packer) => return Ok(()),
            None => {}
        }
    }
}

fn visit(
    steps: &mut Steps<()>,
    packer: &mut Packer,
    root: &Meta,
    name: &[u8],
    refuse: fn(&[u8]) -> Option<Why>,
) -> Result<()> {
    let path = steps.path_to(name);
    if packer.rests(&path)? {
        return Ok(());
    }
    let Some(node) = steps.dir().and_then(|dir| find(packer, dir, &path, name)) else { return Ok(()) };
    if let Some(why) = refuse(&path) {
        return packer.keep_beside(&path, &node, &node, why);
    }
    if !packer.admits(&path, &node.meta, root) {
        return Ok(());
    }
    packer.entry(&path, &node)?;
    let is_ours = node.meta.kind == Kind::Directory && node.meta.is_on_mount_of(root);
    if is_ours && let Some((dir, names)) = list(packer, &path, &node) {
        steps.enter(name, Some(dir), names, ());
    }
    Ok(())
}

/// The entry `name` of `dir`; if it cannot be looked at, that is noted.
pub fn find(packer: &mut Packer, dir: &Dir, path: &[u8], name: &[u8]) -> Option<Node> {
    let found = dir.child(name);
    found.inspect_err(|e| packer.leave_out(path, None, Why::Unreadable(e.to_string()))).ok()
}

/// The directory `node`, open, and the names in it; if they cannot be read, that is noted.
pub fn list(packer: &mut Packer, path: &[u8], node: &Node) -> Option<(Dir, Vec<Vec<u8>>)> {
    let listed = node.dir().and_then(|dir| packer.names(node.meta.id, &dir).map(|names| (dir, names)));
    let note =
        |e: &std::io::Error| packer.leave_out(path, Some(&node.meta), Why::Unreadable(format!("all below it: {e}")));
    listed.inspect_err(note).ok()
}

/// Goes up; false when the walk is over. A directory that is not found again is noted.
pub fn leave<T>(steps: &mut Steps<T>, packer: &mut Packer) -> bool {
    steps.leave().unwrap_or_else(|lost| {
        let why = format!("{}; {} more names in it were not visited", lost.source, lost.names);
        packer.leave_out(&lost.path, None, Why::Unreadable(why));
        true
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::tree::Held;

    #[test]
    fn what_came_after_a_listing_is_not_seen() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["a", "b/in", "c"] {
            fs::create_dir_all(temp.path().join(name)).unwrap();
        }
        let root = Node::open(temp.path()).unwrap();
        let below = root.child(b"b").unwrap().meta;
        let mut found = Vec::new();
        let mut each = |told: crate::tree::Listed<'_>| {
            found.push(String::from_utf8_lossy(told.path).into_owned());
            Ok(())
        };
        let names = vec![b"a".to_vec(), b"b".to_vec()];
        let mut packer = Packer::listing(&mut each, |_| Held::Kept)
            .with_listed(root.meta.clone(), names)
            .with_listed(below.clone(), Vec::new());
        pack(&root, &mut packer, |_| None).unwrap();
        packer.finish().unwrap();
        assert_eq!(found, ["a", "b"]);
        // Nor when it came.
        let long_ago = |meta: &Meta| Meta { mtime: crate::pax::Time { secs: 77, nanos: 0 }, ..meta.clone() };
        let mut tar = Vec::new();
        let mut packer = Packer::new(&mut tar, |_| Held::Kept).with_listed(long_ago(&below), Vec::new());
        pack(&root, &mut packer, |_| None).unwrap();
        packer.finish().unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let times = archive.entries().unwrap().map(|entry| entry.unwrap().header().mtime().unwrap());
        assert_eq!(times.map(|time| time == 77).collect::<Vec<_>>(), [false, true, false]);
    }
}
