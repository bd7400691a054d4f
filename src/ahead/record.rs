//! What is kept of each entry that was copied ahead, in the order of the tar, compressed, in a file of the staging: a layer of
//! a million files must not need memory for each.
//!
//! ```text
//! u32 length of the path, path; u64 sum of the header; u32 its length; u64 length of content and padding
//! u8 0: no content; 1: u32 u32 device, u64 inode, u64 size, i64 u32 mtime, i64 u32 ctime, i64 u32 when it was read
//! ```
//! Numbers are little-endian.

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
    /// Before the first byte was.
    read: Time,
}

/// Times tick coarsely, by milliseconds or, on old file systems, by seconds: a file may change again without its time.
const COARSE: i64 = 2;

impl Stamp {
    /// A file that is about to be read.
    pub fn of(meta: &Meta, read: Time) -> Self {
        Self { id: meta.id, size: meta.size, mtime: meta.mtime, ctime: meta.ctime, read }
    }

    /// True if nothing was written to the file since, as far as its inode tells.
    pub fn is_of(&self, now: &Meta) -> bool {
        let told = |meta: &Meta| (meta.id, meta.size, meta.mtime, meta.ctime);
        (self.id, self.size, self.mtime, self.ctime) == told(now) && self.is_old()
    }

    /// Its last change was so long before it was read that any later one shows.
    fn is_old(&self) -> bool {
        self.ctime.secs.saturating_add(COARSE) < self.read.secs
    }
}

/// Writes records.
pub struct Records(zstd::Encoder<'static, BufWriter<File>>);

impl Records {
    /// Into `file`, which is empty.
    pub fn begin(file: File) -> io::Result<Self> {
        Ok(Self(zstd::Encoder::new(BufWriter::with_capacity(1 << 16, file), 1)?))
    }

    /// One more.
    pub fn put(&mut self, path: &[u8], sum: u64, shape: Shape, stamp: Option<&Stamp>) -> io::Result<()> {
        let mut out = Vec::with_capacity(path.len() + 96);
        // Paths are shorter than that, and so are headers.
        out.extend(u32::try_from(path.len()).map_err(io::Error::other)?.to_le_bytes());
        out.extend(path);
        out.extend(sum.to_le_bytes());
        out.extend(u32::try_from(shape.head).map_err(io::Error::other)?.to_le_bytes());
        out.extend(shape.body.to_le_bytes());
        out.push(u8::from(stamp.is_some()));
        if let Some(Stamp { id, size, mtime, ctime, read }) = stamp {
            out.extend(id.dev.0.to_le_bytes());
            out.extend(id.dev.1.to_le_bytes());
            out.extend(id.ino.to_le_bytes());
            out.extend(size.to_le_bytes());
            for time in [mtime, ctime, read] {
                out.extend(time.secs.to_le_bytes());
                out.extend(time.nanos.to_le_bytes());
            }
        }
        self.0.write_all(&out)
    }

    /// The file, to be read from its beginning.
    pub fn finish(self) -> io::Result<File> {
        self.0.finish()?.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

/// Reads records.
pub struct Recorded {
    from: zstd::Decoder<'static, BufReader<File>>,
    /// How many are left.
    left: u64,
}

impl Recorded {
    /// `count` records of `file`, whose offset is its beginning.
    pub fn read(file: File, count: u64) -> io::Result<Self> {
        Ok(Self { from: zstd::Decoder::new(file)?, left: count })
    }

    /// The next one.
    pub fn next(&mut self) -> io::Result<Option<Record>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let len = self.u32()? as usize;
        if len > MAX_KEY {
            return Err(io::Error::other("the record of a path is damaged"));
        }
        let mut path = vec![0; len];
        self.from.read_exact(&mut path)?;
        let (sum, head, body) = (self.u64()?, self.u32()?, self.u64()?);
        let shape = Shape::of(&path, head.into(), body);
        let stamp = if self.array::<1>()? == [1] { Some(self.stamp()?) } else { None };
        Ok(Some(Record { path, sum, shape, stamp }))
    }

    fn stamp(&mut self) -> io::Result<Stamp> {
        let id = FileId { dev: (self.u32()?, self.u32()?), ino: self.u64()? };
        let size = self.u64()?;
        Ok(Stamp { id, size, mtime: self.time()?, ctime: self.time()?, read: self.time()? })
    }

    fn time(&mut self) -> io::Result<Time> {
        Ok(Time { secs: self.u64()?.cast_signed(), nanos: self.u32()? })
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
