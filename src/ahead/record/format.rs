//! What a line is made of.

use super::Stamp;
use crate::{
    pax::Time,
    tree::{FileId, Kind, Meta},
};

/// Before the path.
pub(super) const HEAD: usize = 27;

pub(super) const HAS_STAMP: u8 = 1;
pub(super) const HAS_INODE: u8 = 2;
pub(super) const STAMP_IS_OWN: u8 = 4;
pub(super) const IS_WHITEOUT: u8 = 8;
pub(super) const MAY_REST: u8 = 16;
pub(super) const IS_ODD: u8 = 32;
pub(super) const MAY_CUT: u8 = 64;
pub(super) const IS_PASSED: u8 = 128;

impl Stamp {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.id.dev.0.to_le_bytes());
        out.extend(self.id.dev.1.to_le_bytes());
        out.extend(self.id.ino.to_le_bytes());
        out.extend(self.size.to_le_bytes());
        write_time(self.mtime, out);
        write_time(self.ctime, out);
    }

    pub(super) fn read(fields: &mut Fields) -> Self {
        let id = FileId { dev: (fields.u32(), fields.u32()), ino: fields.u64() };
        Self { id, size: fields.u64(), mtime: fields.time(), ctime: fields.time() }
    }
}

pub(super) const STAMP: usize = 48;

fn write_time(time: Time, out: &mut Vec<u8>) {
    out.extend(time.secs.to_le_bytes());
    out.extend(time.nanos.to_le_bytes());
}

/// In the order of [`Kind`]'s own numbers.
pub(super) const KINDS: [Kind; 7] =
    [Kind::File, Kind::Directory, Kind::Symlink, Kind::Char, Kind::Block, Kind::Fifo, Kind::Socket];

/// How long an inode is, written down.
pub const META: usize = 1 + 12 + 8 + 3 * 12 + 13 + 8 + 4 + 16;

/// Appends what an inode says, but for the mount.
pub fn write_meta(meta: &Meta, out: &mut Vec<u8>) {
    // There are seven.
    out.push(meta.kind as u8);
    for number in [meta.mode, meta.uid, meta.gid] {
        out.extend(number.to_le_bytes());
    }
    out.extend(meta.size.to_le_bytes());
    for time in [meta.mtime, meta.ctime, meta.atime] {
        write_time(time, out);
    }
    out.push(u8::from(meta.btime.is_some()));
    write_time(meta.btime.unwrap_or_default(), out);
    for number in [meta.device.0, meta.device.1, meta.links, meta.id.dev.0, meta.id.dev.1] {
        out.extend(number.to_le_bytes());
    }
    out.extend(meta.id.ino.to_le_bytes());
}

/// What was written so.
pub fn read_meta(bytes: &[u8; META]) -> Meta {
    let mut fields = Fields(bytes);
    let kind = KINDS.get(usize::from(fields.u8())).copied().unwrap_or(Kind::Socket);
    let (mode, uid, gid, size) = (fields.u32(), fields.u32(), fields.u32(), fields.u64());
    let (mtime, ctime, atime) = (fields.time(), fields.time(), fields.time());
    let (has_birth, birth) = (fields.u8() == 1, fields.time());
    let (device, links) = ((fields.u32(), fields.u32()), fields.u32());
    let id = FileId { dev: (fields.u32(), fields.u32()), ino: fields.u64() };
    let btime = has_birth.then_some(birth);
    let (mount, is_mount_root) = (None, false);
    Meta { kind, mode, uid, gid, size, mtime, ctime, atime, btime, device, links, id, mount, is_mount_root }
}

/// Numbers one after another; zeros behind the last.
pub(super) struct Fields<'b>(pub(super) &'b [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((first, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *first
    }

    pub(super) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    pub(super) fn time(&mut self) -> Time {
        Time { secs: self.u64().cast_signed(), nanos: self.u32() }
    }
}
