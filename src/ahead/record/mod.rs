//! What is kept of each entry that was copied ahead, in the order of the tar, in a file of the staging: a layer of a million
//! files must not need memory for each.
//!
//! ```text
//!  0 2 length of what the path has in common with the one before   2 4 length of the rest
//!  6 8 sum of the header   14 4 its length   18 8 length of content and padding   26 1 flags
//! 27   the rest of the path
//!      flag 1, a stamp:   4 4 device  8 inode  8 size  8 4 mtime  8 4 ctime
//!      flag 2, an inode:  1 kind  4 mode  4 uid  4 gid  8 size  8 4 mtime  8 4 ctime  8 4 atime  1 8 4 birth
//!                         4 4 device number  4 links  4 4 device  8 inode
//! ```
//! Flags: 4, the stamp is the inode's own and not repeated; 8, it deletes what the image has there; 16, it may rest; 32, no
//! entry, but a path of which something else was told; 64, a segment may end before it; 128, no entry, but an inode of which
//! there is none. Numbers are little-endian. It is read while a container stands still, so it is not compressed, and nothing is
//! worked out anew.

mod format;
mod index;
mod read;
mod write;

pub use format::{META, read_meta, write_meta};
pub use index::Place;
pub use read::{Looks, Recorded};
pub use write::{Kept, Records};

use super::{clock, cut::Shape};
use crate::{
    pax::Time,
    tree::{FileId, Kind, Meta, Summary},
};

/// An entry as it was copied ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its path, which stands for it.
    pub path: Vec<u8>,
    /// A keyed sum of its header.
    pub sum: u64,
    /// Lengths.
    pub shape: Shape,
    /// What its content was read from.
    pub stamp: Option<Stamp>,
    /// What lay there; `None`: it stands for nothing of that path in the tree.
    pub seen: Option<Seen>,
}

/// True unless `path` is `of` or lies below it.
pub fn is_beyond(path: &[u8], of: &[u8]) -> bool {
    path.strip_prefix(of).is_none_or(|rest| rest.first().is_some_and(|&byte| byte != b'/'))
}

impl Line {
    /// Its path.
    pub fn path(&self) -> &[u8] {
        let (Self::Entry(Record { path, .. }) | Self::Passed(path) | Self::Odd(path)) = self;
        path
    }
}

impl Record {
    /// Adds it to the account.
    pub fn count(&self, into: &mut Summary) {
        into.written += self.shape.len();
        let Some(Seen { meta, is_whiteout, .. }) = &self.seen else { return };
        match meta.kind {
            _ if *is_whiteout => into.whiteouts += 1,
            Kind::File => {
                into.files += 1;
                into.bytes += meta.size;
            }
            Kind::Directory => into.directories += 1,
            Kind::Symlink => into.symlinks += 1,
            Kind::Char | Kind::Block | Kind::Fifo | Kind::Socket => into.devices += 1,
        }
    }
}

/// What lay at the path of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its inode, but for the mount that it was reached through.
    pub meta: Meta,
    /// It deletes what the image has there.
    pub is_whiteout: bool,
    /// As long as the inode says the same, the entry is the same.
    pub may_rest: bool,
}

impl Seen {
    /// Of what was looked at after `then`. The header of a file with several names tells of another one, which may get a new
    /// path without this inode: such an entry never rests.
    pub fn of(meta: &Meta, is_whiteout: bool, then: Time) -> Self {
        let is_alone = is_whiteout || meta.kind == Kind::Directory || meta.links == 1;
        let meta = Meta { mount: None, is_mount_root: false, ..meta.clone() };
        Self { may_rest: is_alone && Stamp::of(&meta, then).is_some(), meta, is_whiteout }
    }

    /// What must be the same for the entry to be the same; `None`: it never rests.
    fn rest(&self) -> Option<Rest> {
        self.may_rest.then(|| Rest {
            stamp: Stamp::new(&self.meta),
            rights: (!self.is_whiteout).then(|| rights(&self.meta)),
            is_file: self.meta.kind == Kind::File,
        })
    }
}

/// What was written down.
#[allow(clippy::large_enum_variant, reason = "few are held at a time, and nearly all are entries")]
pub enum Line {
    /// An entry.
    Entry(Record),
    /// What lies there has no entry: it is as the image has it.
    Passed(Vec<u8>),
    /// Something else was told of this path: whoever comes by must tell it again.
    Odd(Vec<u8>),
}

/// A file as it was when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    id: FileId,
    size: u64,
    mtime: Time,
    ctime: Time,
}

impl Stamp {
    /// A file that is read after `then`; `None` if its last change was not before that: then another may not show.
    pub fn of(meta: &Meta, then: Time) -> Option<Self> {
        clock::is_past(meta.ctime, then).then(|| Self::new(meta))
    }

    fn new(meta: &Meta) -> Self {
        Self { id: meta.id, size: meta.size, mtime: meta.mtime, ctime: meta.ctime }
    }

    /// True if nothing was written to the file since, as far as its inode tells.
    pub fn is_of(&self, now: &Meta) -> bool {
        (self.id, self.size, self.mtime, self.ctime) == (now.id, now.size, now.mtime, now.ctime)
    }
}

/// What must be the same for an entry to be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    stamp: Stamp,
    /// Mode, owner, group, number of names. chmod(2), chown(2) and link(2) may take the time and then wait for a journal before
    /// they change anything (kernel before 6.13: `notify_change`). One whiteout serves for many names.
    rights: Option<Rights>,
    /// It is a regular file: its content counts too.
    pub is_file: bool,
}

impl Rest {
    /// True if the inode says the same `now`.
    pub fn is_of(&self, now: &Meta) -> bool {
        self.stamp.is_of(now) && self.rights.is_none_or(|rights_then| rights_then == rights(now))
    }
}

type Rights = (u32, u32, u32, u32);

fn rights(meta: &Meta) -> Rights {
    (meta.mode, meta.uid, meta.gid, meta.links)
}

#[cfg(test)]
mod tests {
    use super::{format::KINDS, *};

    fn meta(n: u64) -> Meta {
        Meta {
            kind: KINDS[n as usize % 7],
            mode: 0o7777,
            uid: u32::MAX,
            gid: 3,
            size: 7 * n,
            mtime: Time { secs: -5, nanos: 9 },
            ctime: Time { secs: i64::MAX, nanos: 999_999_999 },
            atime: Time { secs: 1, nanos: 2 },
            btime: n.is_multiple_of(2).then_some(Time { secs: 3, nanos: 4 }),
            device: (5, 6),
            links: 8,
            id: FileId { dev: (8, 1), ino: u64::MAX - n },
            mount: None,
            is_mount_root: false,
        }
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let paths: [&[u8]; 6] = [b".", b"a", b"a/long name", b"a/long", b"b", &[0xff; 256]];
        let record = |(n, path): (usize, &&[u8])| {
            let n = n as u64;
            let seen = (n != 3).then(|| Seen { meta: meta(n), is_whiteout: n == 1, may_rest: n == 2 });
            // Its own, none, that of another inode.
            let stamp = [Some(n), None, Some(n + 70)][n as usize % 3].map(|n| Stamp::new(&meta(n)));
            Record { path: path.to_vec(), sum: n + 1, shape: Shape::of(path, 512, n * 512), stamp, seen }
        };
        let all: Vec<_> = paths.iter().enumerate().map(record).collect();
        let passed = Seen { meta: meta(7), is_whiteout: false, may_rest: true };
        let mut out = Records::begin(tempfile::tempfile().unwrap());
        for record in &all {
            out.put_odd(b"a/socket").unwrap();
            out.put_passed(b"a/same", &passed).unwrap();
            out.put(record).unwrap();
        }
        let kept = out.finish().unwrap();
        let mut read = kept.read().unwrap();
        let found: Vec<_> = std::iter::from_fn(|| read.next().unwrap()).collect();
        assert_eq!(found, all);
        let mut read = kept.read().unwrap();
        let lines = std::iter::from_fn(|| read.line().unwrap());
        assert_eq!(lines.filter(|line| matches!(line, Line::Odd(path) if path == b"a/socket")).count(), all.len());
        let mut read = kept.read().unwrap();
        let met: Vec<_> = std::iter::from_fn(|| read.met().unwrap()).collect();
        let is_right = |line: &&Line| matches!(line, Line::Passed(path) if path == b"a/same");
        assert_eq!((met.len(), met.iter().filter(is_right).count()), (2 * all.len(), all.len()));
        let (mut read, mut looks) = (kept.read().unwrap(), Looks::default());
        let mut found = Vec::new();
        while {
            read.looks(4, &mut looks).unwrap();
            !looks.is_empty()
        } {
            found.extend(looks.iter().map(|(path, rest)| (path.to_vec(), rest.copied())));
        }
        let three = |record: &Record| {
            let rest = record.seen.as_ref().and_then(Seen::rest);
            [(b"a/socket".to_vec(), None), (b"a/same".to_vec(), passed.rest()), (record.path.clone(), rest)]
        };
        assert_eq!(found, all.iter().flat_map(three).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_below_a_path_is_known_by_its_name() {
        for (path, is_so) in [("a", false), ("a/b", false), ("a/b/c", false), ("a.b", true), ("b", true), ("", true)] {
            assert_eq!(is_beyond(path.as_bytes(), b"a"), is_so, "{path}");
        }
    }

    #[test]
    fn who_has_other_names_never_rests() {
        let long_ago = |meta: Meta| Meta { ctime: Time::default(), ..meta };
        let (file, directory) = (long_ago(meta(0)), long_ago(meta(1)));
        let alone = Meta { links: 1, ..file.clone() };
        let now = Time { secs: 2, nanos: 0 };
        let rests =
            |meta: &Meta, whiteout, then| Seen::of(meta, whiteout, then).rest().is_some_and(|rest| rest.is_of(meta));
        assert!(rests(&alone, false, now) && rests(&directory, false, now) && rests(&file, true, now));
        assert!(!rests(&file, false, now) && !rests(&alone, false, Time::default()));
        let rest = Seen::of(&alone, false, now).rest().unwrap();
        assert!(!rest.is_of(&Meta { ctime: now, ..alone.clone() }));
        // Who has waited between the time and the change.
        for late in [
            Meta { mode: 0, ..alone.clone() },
            Meta { uid: 0, ..alone.clone() },
            Meta { gid: 0, ..alone.clone() },
            Meta { links: 2, ..alone.clone() },
        ] {
            assert!(!rest.is_of(&late), "{late:?}");
        }
        let whiteout = Seen::of(&alone, true, now).rest().unwrap();
        assert!(whiteout.is_of(&Meta { links: 7, ..alone.clone() }));
    }

    #[test]
    fn only_a_change_that_is_old_enough_lets_a_later_one_be_seen() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let meta = crate::tree::Node::open(temp.path()).unwrap().meta;
        let after = |secs| Time { secs: meta.ctime.secs + secs, ..meta.ctime };
        for (now, is_old) in [(0, false), (2, true), (-100, false)] {
            assert_eq!(Stamp::of(&meta, after(now)).is_some(), is_old, "{now} s later");
        }
    }
}
