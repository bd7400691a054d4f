//! Records are written down, one after another.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
};

use super::{
    Record, Recorded, Seen, Stamp,
    format::{HAS_INODE, HAS_STAMP, IS_ODD, IS_PASSED, IS_WHITEOUT, MAY_CUT, MAY_REST, STAMP_IS_OWN, write_meta},
    index::{Index, Preceding},
};
use crate::ahead::cut::Shape;

/// Writes records.
pub struct Records {
    out: BufWriter<File>,
    last: Vec<u8>,
    line: Vec<u8>,
    /// How long all lines are.
    len: u64,
    written: Preceding,
    index: Index,
}

impl Records {
    /// Into `file`, which is empty.
    pub fn begin(file: File) -> Self {
        let out = BufWriter::with_capacity(1 << 16, file);
        let (written, index) = (Preceding::default(), Index::default());
        Self { out, last: Vec::new(), line: Vec::new(), len: 0, written, index }
    }

    /// One more.
    pub fn put(&mut self, record: &Record) -> io::Result<()> {
        self.index.note(&record.path, self.len, &self.written);
        let own = record.seen.as_ref().map(|seen| Stamp::new(&seen.meta));
        let stamp = match record.stamp {
            Some(_) if record.stamp == own => STAMP_IS_OWN,
            Some(_) => HAS_STAMP,
            None => 0,
        };
        let inode = record.seen.as_ref().map_or(0, |seen| {
            HAS_INODE | if seen.is_whiteout { IS_WHITEOUT } else { 0 } | if seen.may_rest { MAY_REST } else { 0 }
        });
        let cut = if record.shape.may_cut { MAY_CUT } else { 0 };
        self.head(&record.path, record.sum, record.shape, stamp | inode | cut)?;
        if let Some(stamp) = record.stamp.as_ref().filter(|_| stamp == HAS_STAMP) {
            stamp.write(&mut self.line);
        }
        if let Some(seen) = &record.seen {
            write_meta(&seen.meta, &mut self.line);
        }
        self.written.entries += 1;
        record.count(&mut self.written.account);
        self.write()
    }

    /// Something else was told of `path`.
    pub fn put_odd(&mut self, path: &[u8]) -> io::Result<()> {
        self.head(path, 0, Shape { may_cut: false, head: 0, body: 0 }, IS_ODD)?;
        self.write()
    }

    /// There is no entry of what lies at `path`.
    pub fn put_passed(&mut self, path: &[u8], seen: &Seen) -> io::Result<()> {
        self.index.note(path, self.len, &self.written);
        let rests = if seen.may_rest { MAY_REST } else { 0 };
        self.head(path, 0, Shape { may_cut: false, head: 0, body: 0 }, IS_PASSED | HAS_INODE | rests)?;
        write_meta(&seen.meta, &mut self.line);
        self.write()
    }

    fn head(&mut self, path: &[u8], sum: u64, shape: Shape, flags: u8) -> io::Result<()> {
        let shared = self.last.iter().zip(path).take(usize::from(u16::MAX)).take_while(|(a, b)| a == b).count();
        let rest = path.get(shared..).unwrap_or_default();
        let number = |len: usize| u32::try_from(len).map_err(io::Error::other);
        self.line.clear();
        self.line.extend(u16::try_from(shared).map_err(io::Error::other)?.to_le_bytes());
        self.line.extend(number(rest.len())?.to_le_bytes());
        self.line.extend(sum.to_le_bytes());
        self.line.extend(u32::try_from(shape.head).map_err(io::Error::other)?.to_le_bytes());
        self.line.extend(shape.body.to_le_bytes());
        self.line.push(flags);
        self.line.extend(rest);
        self.last.truncate(shared);
        self.last.extend(rest);
        self.written.lines += 1;
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        self.len += self.line.len() as u64;
        self.out.write_all(&self.line)
    }

    /// All are in.
    pub fn finish(self) -> io::Result<Kept> {
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Kept { file, count: self.written.lines, index: self.index })
    }
}

/// Records that were written.
pub struct Kept {
    file: File,
    count: u64,
    /// Where they begin.
    pub index: Index,
}

impl Kept {
    /// All of them, from the first on; others may read meanwhile.
    pub fn read(&self) -> io::Result<Recorded> {
        Recorded::begin(&self.file, self.count)
    }
}
