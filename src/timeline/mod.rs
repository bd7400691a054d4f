//! Timelines: what happened to a container's files and records, and when, in the formats that examiners' tools load.
//!
//! | format | one for each | loaded by |
//! |---|---|---|
//! | `bodyfile` | file or event | mactime (The Sleuth Kit), Plaso ([`bodyfile`]) |
//! | `jsonl` | time | Timesketch ([`jsonl`]) |
//! | `dfxml` | file | fiwalk's readers, `dfxml` for Python ([`dfxml`]) |
//!
//! Names are any bytes. Where a format has no room for them they stand as [`names`] writes them, which can be undone.

use crate::pax::Time;

pub mod bodyfile;
pub mod dfxml;
pub mod jsonl;
pub mod moment;
pub mod names;

/// What a name in the upperdir stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A deletion.
    Whiteout,
}

impl Kind {
    /// The Sleuth Kit's letter (`tsk/fs/fs_inode.c`, `tsk_fs_meta_type_str`).
    pub fn letter(self) -> char {
        match self {
            Self::File => 'r',
            Self::Directory => 'd',
            Self::Symlink => 'l',
            Self::Char => 'c',
            Self::Block => 'b',
            Self::Fifo => 'p',
            Self::Socket => 'h',
            Self::Whiteout => 'w',
        }
    }

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::Char => "character device",
            Self::Block => "block device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::Whiteout => "whiteout",
        }
    }
}

/// What the container did to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The image has nothing of this name.
    Added,
    /// The image has something of this name, which was changed.
    Changed,
    /// A directory that hides all that the image has in its own.
    Replaced,
    /// The image has something of this name, which is not seen any more.
    Deleted,
}

impl Fate {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Replaced => "replaced",
            Self::Deleted => "deleted",
        }
    }
}

/// The four times of an inode; of a deletion, those between which it took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Times {
    /// Of its content.
    pub modified: Option<Time>,
    /// Last read, as far as the mount keeps that.
    pub accessed: Option<Time>,
    /// Of the inode itself; of a deletion: it took place then at the latest.
    pub changed: Option<Time>,
    /// When the inode was made; of a deletion: it took place then at the earliest.
    pub born: Option<Time>,
}

/// A time that nobody keeps who only writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `mtime-before-birth`, `mtime-after-change`, `change-before-birth`.
    pub code: &'static str,
    /// What it means, with the times that show it.
    pub text: String,
}

/// A name in the container's own layer.
#[derive(Debug, Clone)]
pub struct Entry {
    /// From the container's root, without a slash before it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// What was done to it.
    pub fate: Fate,
    /// Where a symbolic link points.
    pub target: Option<Vec<u8>>,
    /// The inode's number.
    pub inode: u64,
    /// Permissions with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How many names the inode has.
    pub links: u32,
    /// Length of its content.
    pub size: u64,
    /// Its times.
    pub times: Times,
    /// MD5 of the content, in hex.
    pub md5: Option<String>,
    /// SHA-256 of the content, in hex.
    pub sha256: Option<String>,
    /// It was made before the container's record: by an unpacked checkpoint or the engine, not by a process of the container.
    pub is_unpacked: bool,
    /// What is odd about its times.
    pub findings: Vec<Finding>,
}

/// Something that is no file's time.
#[derive(Debug, Clone)]
pub struct Event {
    /// When.
    pub time: Time,
    /// What kind of time it is: `Creation Time`.
    pub what: &'static str,
    /// Where it was read: `containerd:container`, `process`.
    pub source: &'static str,
    /// In words.
    pub message: String,
    /// What else is known, by name.
    pub fields: Vec<(&'static str, String)>,
}

/// One thing of a timeline.
#[derive(Debug, Clone)]
pub enum Record {
    /// A name in the container's layer.
    Entry(Box<Entry>),
    /// Anything else.
    Event(Event),
}

/// Of which container a timeline is.
#[derive(Debug, Clone)]
pub struct Head {
    /// `namespace/id`.
    pub container: String,
    /// The version of this program.
    pub version: &'static str,
}

/// A format: what stands before, for each record, and behind.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// Its name.
    pub name: &'static str,
    /// What stands before all records.
    pub begin: fn(&Head) -> String,
    /// A record.
    pub record: fn(&Head, &Record) -> String,
    /// What stands behind.
    pub end: fn() -> String,
}

/// The formats.
pub const TABLE: &[Format] = &[bodyfile::FORMAT, jsonl::FORMAT, dfxml::FORMAT];

/// The format of that name.
pub fn format(name: &str) -> Option<&'static Format> {
    TABLE.iter().find(|format| format.name == name)
}
