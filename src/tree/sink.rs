//! What takes a tree's entries one by one, and may know some of them already.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::{
    node::Meta,
    summary::{MAX_PATH, Summary},
};
use crate::error::Result;

/// What stands for an entry among its neighbours is no longer than this: a path and a mark.
pub const MAX_KEY: usize = MAX_PATH + 1024;

/// Stands for the end of the archive: after all that a name can be.
pub const END_KEY: &[u8] = &[0xff; 256];

/// An entry before its content.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'e> {
    /// What stands for it: its path, or that of what it deletes.
    pub key: &'e [u8],
    /// Its header.
    pub head: &'e [u8],
    /// Length of the content that follows, with the padding.
    pub body: u64,
    /// The file that the content is read from.
    pub data: Option<&'e Meta>,
    /// What lies at its path; `None`: it stands for nothing that does.
    pub meta: Option<&'e Meta>,
    /// It deletes what was there before.
    pub is_whiteout: bool,
}

/// Takes entries and not a mere stream, and may have their content already.
pub trait Sink {
    /// True if the content of the file `data`, for the entry `key` that comes next, need not be read; with the padding its
    /// length is `body`.
    fn has(&mut self, key: &[u8], data: &Meta, body: u64) -> Result<bool>;
    /// True if the content of every file has to be read.
    fn reads_all(&self) -> bool;
    /// If what lies at `key` and all below it are as they were drafted: the account of them, and they are taken. Else nothing has
    /// happened.
    fn rests(&mut self, key: &[u8]) -> Result<Option<Summary>>;
    /// The same, of one who walks through the tree beforehand, in the same order, and takes nothing: true if it rests.
    fn rests_beforehand(&mut self, key: &[u8]) -> Result<bool>;
    /// Content of the tree will be read, and perhaps not be taken.
    fn about_to_read(&mut self);
    /// There is no entry of what lies at `path`: as long as that stays as `meta` says, there is none.
    fn passes(&mut self, path: &[u8], meta: &Meta) -> Result<()>;
    /// Something of this path was left out, or is not as it should be: it must be come by again.
    fn odd(&mut self, path: &[u8]);
    /// An entry begins. Its content follows, unless it is had.
    fn begin(&mut self, entry: Entry<'_>) -> Result<()>;
    /// Content.
    fn bytes(&mut self, bytes: &[u8]) -> Result<()>;
    /// Content of `file` from `at` on, no more than there is `room` for, which may be used: how much, or why it cannot be
    /// read.
    fn read(&mut self, file: &File, at: u64, room: &mut [u8]) -> Result<io::Result<usize>> {
        match file.read_at(room, at) {
            // No more than there is room for.
            Ok(len) => self.bytes(&room[..len]).map(|()| Ok(len)),
            Err(e) => Ok(Err(e)),
        }
    }
    /// Content that is zeros, which need not have been read.
    fn zeros(&mut self, len: u64) -> Result<()>;
    /// The entry at hand is not all that its file is, or may be of two moments.
    fn distrust(&mut self);
}
