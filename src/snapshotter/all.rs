//! Every record of a snapshotter's own database, and where each has its files: for those who judge the whole.
//!
//! ```text
//! metadata.db   v1/snapshots/<name>/{id=uvarint, kind=1 byte, parent=<name>}
//!               v1/parents/<uvarint of the parent's id> 00 <uvarint of the child's> = <child's name>
//! ```
//! Source: containerd `core/snapshots/storage/bolt.go`; the directories: `plugins/snapshots/*/*.go`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::database::METADATA;
use crate::{
    bolt::{Bucket, Item, Reading},
    corrupt::Corrupt,
    id::SnapshotId,
    record,
};

/// More records than this that cannot be read are only counted.
const MAX_DAMAGE: usize = 10_000;

/// What a snapshot is for (`core/snapshots/snapshotter.go`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only, on a committed one.
    View,
    /// Written to.
    Active,
    /// A layer: others stand on it.
    Committed,
}

/// One record.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The number that is its folder.
    pub id: SnapshotId,
    /// What it is for.
    pub kind: Kind,
    /// Its parent's name; may be empty.
    pub parent: String,
}

/// All of one database.
#[derive(Debug, Default)]
pub struct Entries {
    /// By name.
    pub by_name: BTreeMap<String, Entry>,
    /// The index of parents: parent's number, child's number, child's name.
    pub parents: BTreeSet<(u64, u64, String)>,
    /// What could not be read: the way to it, and why.
    pub damage: Vec<(String, Corrupt)>,
    /// How many more there are.
    pub more_damage: usize,
}

impl Entries {
    /// Walks the bytes of a metadata.db.
    pub fn read(bytes: &[u8]) -> Self {
        let mut all = Self::default();
        if let Err(e) = all.walk(bytes) {
            all.note("v1", e);
        }
        all
    }

    fn walk(&mut self, bytes: &[u8]) -> Result<(), Corrupt> {
        let reading = Reading::of(bytes, &METADATA)?;
        let db = reading.db(bytes);
        // A snapshotter that was never used has a database without buckets.
        let Some(v1) = db.root().bucket("v1")? else { return Ok(()) };
        for found in v1.bucket("snapshots")?.iter().flat_map(Bucket::buckets) {
            match found {
                Ok((name, record)) => self.snapshot(&String::from_utf8_lossy(name), &record),
                Err(e) => self.note("v1/snapshots", e),
            }
        }
        for found in v1.bucket("parents")?.iter().flat_map(Bucket::iter) {
            match found.and_then(|(key, item)| index(key, item)) {
                Ok(entry) => drop(self.parents.insert(entry)),
                Err(e) => self.note("v1/parents", e),
            }
        }
        Ok(())
    }

    fn snapshot(&mut self, name: &str, record: &Bucket<'_>) {
        match entry(record) {
            Ok(entry) => drop(self.by_name.insert(name.to_owned(), entry)),
            Err(e) => self.note(&format!("v1/snapshots/{name}"), e),
        }
    }

    fn note(&mut self, place: &str, why: Corrupt) {
        match self.damage.len() {
            MAX_DAMAGE.. => self.more_damage += 1,
            _ => self.damage.push((place.to_owned(), why)),
        }
    }

    /// The names of those below `name`, nearest first; ends at one that is missing, or that was met before.
    pub fn chain<'e>(&'e self, name: &str) -> Vec<&'e str> {
        let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
        let mut at = self.by_name.get_key_value(name);
        while let Some((name, entry)) = at.filter(|(name, _)| seen.insert(name.as_str())) {
            found.push(name.as_str());
            at = self.by_name.get_key_value(&entry.parent);
        }
        found
    }
}

fn entry(record: &Bucket<'_>) -> Result<Entry, Corrupt> {
    let kind = match record.value("kind")? {
        Some([1]) => Kind::View,
        Some([2]) => Kind::Active,
        Some([3]) => Kind::Committed,
        _ => return Err(Corrupt { at: 0, why: "a snapshot is neither view nor active nor committed" }),
    };
    let id = record.value("id")?.ok_or(Corrupt { at: 0, why: "a snapshot has no id" })?;
    Ok(Entry { id: SnapshotId(record::uvarint(id)?), kind, parent: record::text(record, "parent")? })
}

fn index(key: &[u8], item: Item<'_>) -> Result<(u64, u64, String), Corrupt> {
    let bad = Corrupt { at: 0, why: "an entry of the index of parents is none" };
    // The numbers hold no zero byte after their first: only the byte between them can be one, if the parent is not 0.
    let end = key.iter().position(|byte| byte & 0x80 == 0).ok_or(bad)? + 1;
    let (parent, rest) = key.split_at_checked(end).ok_or(bad)?;
    let [0, child @ ..] = rest else { return Err(bad) };
    let Item::Value(name) = item else { return Err(bad) };
    Ok((record::uvarint(parent)?, record::uvarint(child)?, String::from_utf8_lossy(name).into_owned()))
}

/// How a snapshotter lays out its directory.
pub struct Shape {
    /// The folders that hold snapshots by number.
    pub folders: &'static [&'static str],
    /// Where the files of a snapshot lie, below its directory; `None` where it has none of its own.
    place: fn(&Entry) -> Option<String>,
}

/// Snapshotters with a directory for each snapshot. The others keep them in devices or data sets.
const SHAPES: &[(&[&str], Shape)] = &[
    (
        &["overlayfs", "fuse-overlayfs", "stargz", "nydus", "overlaybd", "soci"],
        Shape { folders: &["snapshots"], place: |e| Some(format!("snapshots/{}/fs", e.id)) },
    ),
    (&["native", "blockfile"], Shape { folders: &["snapshots"], place: |e| own(e).then(|| folder("snapshots", e)) }),
    (&["erofs"], Shape { folders: &["snapshots"], place: |e| Some(folder("snapshots", e)) }),
    (
        &["btrfs"],
        Shape {
            folders: &["active", "view", "snapshots"],
            place: |e| {
                Some(match e.kind {
                    Kind::Active => folder("active", e),
                    Kind::View => folder("view", e),
                    Kind::Committed => folder("snapshots", e),
                })
            },
        },
    ),
];

fn folder(within: &str, entry: &Entry) -> String {
    format!("{within}/{}", entry.id)
}

/// A view of a parent shows the parent's own tree (`native.go`, `blockfile.go`, `createSnapshot`).
fn own(entry: &Entry) -> bool {
    entry.kind != Kind::View || entry.parent.is_empty()
}

/// How the snapshotter called `name` lays out its directory, if snapshots have directories there.
pub fn shape(name: &str) -> Option<&'static Shape> {
    SHAPES.iter().find(|(names, _)| names.contains(&name)).map(|(_, shape)| shape)
}

impl Shape {
    /// Where the files of a snapshot lie, below the snapshotter's directory `root`.
    pub fn place(&self, root: &Path, entry: &Entry) -> Option<PathBuf> {
        (self.place)(entry).map(|place| root.join(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_parents_is_two_numbers_with_a_zero_between() {
        let name = |bytes: &'static [u8]| Item::Value(bytes);
        assert_eq!(index(&[1, 0, 2], name(b"a/1/b")).unwrap(), (1, 2, "a/1/b".into()));
        assert_eq!(index(&[0xac, 0x02, 0, 0x80, 0x01], name(b"x")).unwrap(), (300, 128, "x".into()));
        for bad in [&[][..], &[1], &[1, 0], &[1, 2, 3], &[0x80], &[0x80, 0x80, 0]] {
            assert!(index(bad, name(b"x")).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_view_has_files_of_its_own_where_its_snapshotter_makes_them() {
        let view = Entry { id: SnapshotId(7), kind: Kind::View, parent: "p".into() };
        let at = |name: &str| shape(name).unwrap().place(Path::new("/r"), &view);
        assert_eq!(at("overlayfs"), Some("/r/snapshots/7/fs".into()));
        assert_eq!((at("native"), at("btrfs")), (None, Some("/r/view/7".into())));
        assert!(shape("devmapper").is_none() && shape("zfs").is_none());
    }

    #[test]
    fn a_chain_that_bites_its_tail_ends() {
        let entry = |parent: &str| Entry { id: SnapshotId(1), kind: Kind::Committed, parent: parent.into() };
        let mut all = Entries::default();
        all.by_name.extend([("a".to_owned(), entry("b")), ("b".into(), entry("c")), ("c".into(), entry("b"))]);
        assert_eq!(all.chain("a"), ["a", "b", "c"]);
    }
}
