//! What is kept of each entry that was copied ahead, in the order of the tar, in a file of the staging: a layer of a million
//! files must not need memory for each.
//!
//! ```text
//!  0 2 length of what the path has in common with the one before   2 4 length of the rest
//!  6 8 sum of the header   14 4 its length   18 8 length of content and padding   26 1 whether a stamp follows
//! 27   the rest of the path
//!      4 4 device  8 inode  8 size  8 4 mtime  8 4 ctime
//! ```
//! Numbers are little-endian. It is read while a container stands still, so it is not compressed.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
};

use super::cut::Shape;
use crate::{
    pax::Time,
    tree::{FileId, Meta, pack::MAX_KEY},
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
}

/// A file as it was when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    id: FileId,
    size: u64,
    mtime: Time,
    ctime: Time,
}

/// Times tick coarsely, by milliseconds or, on old file systems, by seconds: a file may change again without its time.
const COARSE: i64 = 2;

impl Stamp {
    /// A file that is about to be read; `None` if its last change was not so long ago that any later one shows.
    pub fn of(meta: &Meta, now: Time) -> Option<Self> {
        let is_old = meta.ctime.secs.saturating_add(COARSE) < now.secs;
        is_old.then_some(Self { id: meta.id, size: meta.size, mtime: meta.mtime, ctime: meta.ctime })
    }

    /// True if nothing was written to the file since, as far as its inode tells.
    pub fn is_of(&self, now: &Meta) -> bool {
        (self.id, self.size, self.mtime, self.ctime) == (now.id, now.size, now.mtime, now.ctime)
    }
}

/// Writes records.
pub struct Records {
    out: BufWriter<File>,
    last: Vec<u8>,
}

/// Before the path, and after it.
const HEAD: usize = 27;
const STAMP: usize = 48;

impl Records {
    /// Into `file`, which is empty.
    pub fn begin(file: File) -> Self {
        Self { out: BufWriter::with_capacity(1 << 16, file), last: Vec::new() }
    }

    /// One more.
    pub fn put(&mut self, path: &[u8], sum: u64, shape: Shape, stamp: Option<&Stamp>) -> io::Result<()> {
        let shared = self.last.iter().zip(path).take(usize::from(u16::MAX)).take_while(|(a, b)| a == b).count();
        let rest = path.get(shared..).unwrap_or_default();
        let number = |len: usize| u32::try_from(len).map_err(io::Error::other);
        self.out.write_all(&u16::try_from(shared).map_err(io::Error::other)?.to_le_bytes())?;
        self.out.write_all(&number(rest.len())?.to_le_bytes())?;
        self.out.write_all(&sum.to_le_bytes())?;
        self.out.write_all(&u32::try_from(shape.head).map_err(io::Error::other)?.to_le_bytes())?;
        self.out.write_all(&shape.body.to_le_bytes())?;
        self.out.write_all(&[u8::from(stamp.is_some())])?;
        self.out.write_all(rest)?;
        self.last.clear();
        self.last.extend(path);
        stamp.map_or(Ok(()), |stamp| self.stamp(stamp))
    }

    fn stamp(&mut self, Stamp { id, size, mtime, ctime }: &Stamp) -> io::Result<()> {
        self.out.write_all(&id.dev.0.to_le_bytes())?;
        self.out.write_all(&id.dev.1.to_le_bytes())?;
        self.out.write_all(&id.ino.to_le_bytes())?;
        self.out.write_all(&size.to_le_bytes())?;
        for time in [mtime, ctime] {
            self.out.write_all(&time.secs.to_le_bytes())?;
            self.out.write_all(&time.nanos.to_le_bytes())?;
        }
        Ok(())
    }

    /// The file, to be read from its beginning.
    pub fn finish(self) -> io::Result<File> {
        self.out.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

/// Reads records.
pub struct Recorded {
    from: BufReader<File>,
    /// How many are left.
    left: u64,
    last: Vec<u8>,
}

impl Recorded {
    /// `count` records of `file`, whose offset is its beginning.
    pub fn read(file: File, count: u64) -> Self {
        Self { from: BufReader::with_capacity(1 << 18, file), left: count, last: Vec::new() }
    }

    /// The next one.
    pub fn next(&mut self) -> io::Result<Option<Record>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let head: [u8; HEAD] = self.array()?;
        let mut fields = Fields(&head);
        let (shared, rest) = (usize::from(fields.u16()), fields.u32() as usize);
        let (sum, head, body, has_stamp) = (fields.u64(), fields.u32(), fields.u64(), fields.u8() == 1);
        if rest > MAX_KEY || shared > self.last.len() {
            return Err(io::Error::other("the record of a path is damaged"));
        }
        self.last.truncate(shared);
        self.last.resize(shared + rest, 0);
        self.from.read_exact(&mut self.last[shared..])?;
        let path = self.last.clone();
        let shape = Shape::of(&path, head.into(), body);
        let stamp = if has_stamp { Some(self.stamp()?) } else { None };
        Ok(Some(Record { path, sum, shape, stamp }))
    }

    fn stamp(&mut self) -> io::Result<Stamp> {
        let bytes: [u8; STAMP] = self.array()?;
        let mut fields = Fields(&bytes);
        let id = FileId { dev: (fields.u32(), fields.u32()), ino: fields.u64() };
        let size = fields.u64();
        let mut time = || Time { secs: fields.u64().cast_signed(), nanos: fields.u32() };
        Ok(Stamp { id, size, mtime: time(), ctime: time() })
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Numbers one after another; zeros behind the last.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((first, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *first
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    #[test]
    fn records_come_back_as_they_were_written() {
        let stamp = Stamp {
            id: FileId { dev: (8, 1), ino: u64::MAX },
            size: 7,
            mtime: Time { secs: -5, nanos: 9 },
            ctime: Time { secs: i64::MAX, nanos: 999_999_999 },
        };
        let paths: [&[u8]; 6] = [b".", b"a", b"a/long name", b"a/long", b"b", &[0xff; 256]];
        let record = |(n, path): (usize, &&[u8])| {
            let shape = Shape::of(path, 512, n as u64 * 512);
            Record { path: path.to_vec(), sum: n as u64 + 1, shape, stamp: (n % 2 == 0).then_some(stamp) }
        };
        let all: Vec<_> = paths.iter().enumerate().map(record).collect();
        let mut out = Records::begin(tempfile::tempfile().unwrap());
        all.iter().for_each(|r| out.put(&r.path, r.sum, r.shape, r.stamp.as_ref()).unwrap());
        let mut file = out.finish().unwrap();
        file.rewind().unwrap();
        let mut read = Recorded::read(file, all.len() as u64);
        let found: Vec<_> = std::iter::from_fn(|| read.next().unwrap()).collect();
        assert_eq!(found, all);
    }

    #[test]
    fn only_a_change_that_is_old_enough_lets_a_later_one_be_seen() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let meta = crate::tree::Node::open(temp.path()).unwrap().meta;
        let after = |secs| Time { secs: meta.ctime.secs + secs, nanos: 0 };
        for (now, is_old) in [(0, false), (2, false), (3, true), (-100, false)] {
            assert_eq!(Stamp::of(&meta, after(now)).is_some(), is_old, "{now} s later");
        }
    }
}
