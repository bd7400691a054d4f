//! Records are read again, in their order.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

use super::{
    Line, Record, Rest, Seen, Stamp,
    format::{
        Fields, HAS_INODE, HAS_STAMP, HEAD, IS_ODD, IS_PASSED, IS_WHITEOUT, MAY_CUT, MAY_REST, STAMP, STAMP_IS_OWN,
        read_meta,
    },
    index::Place,
};
use crate::{ahead::cut::Shape, tree::sink::MAX_KEY};

/// What is before a line's path.
struct Head {
    sum: u64,
    shape: Shape,
    flags: u8,
}

/// Several lines, of which no more is kept than is needed to look whether they rest.
#[derive(Default)]
pub struct Looks {
    /// All paths, one after another.
    paths: Vec<u8>,
    /// Where each path ends, and what lay there; `None`: nothing is known there that could rest.
    ends: Vec<(usize, Option<Rest>)>,
}

impl Looks {
    /// Each path, and what lay there.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&Rest>)> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(end, _)| *end));
        let path = |(start, end): (usize, usize)| self.paths.get(start..end).unwrap_or_default();
        starts.zip(&self.ends).map(move |(start, (end, rest))| (path((start, *end)), rest.as_ref()))
    }

    /// True at the end.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// Reads records.
pub struct Recorded {
    from: BufReader<Reading>,
    /// How many there are.
    count: u64,
    /// How many are left.
    left: u64,
    last: Vec<u8>,
}

impl Recorded {
    /// All `count` records of `file`, from the first on.
    pub(super) fn begin(file: &File, count: u64) -> io::Result<Self> {
        let from = BufReader::with_capacity(1 << 18, Reading { file: file.try_clone()?, at: 0 });
        Ok(Self { from, count, left: count, last: Vec::new() })
    }

    /// How many lines were read.
    pub fn lines(&self) -> u64 {
        self.count - self.left
    }

    /// Goes on with the line at `place`.
    pub fn leap(&mut self, place: &Place) -> io::Result<()> {
        self.from.seek(SeekFrom::Start(place.at))?;
        self.left = self.count.saturating_sub(place.preceding.lines);
        // It begins with what the line before has in common with it.
        self.last.clone_from(&place.path);
        Ok(())
    }

    /// The next entry.
    pub fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            match self.line()? {
                Some(Line::Entry(record)) => return Ok(Some(record)),
                Some(Line::Passed(..) | Line::Odd(_)) => {}
                None => return Ok(None),
            }
        }
    }

    /// The next line of something that lies in the tree or is deleted.
    pub fn met(&mut self) -> io::Result<Option<Line>> {
        loop {
            match self.line()? {
                Some(Line::Odd(_)) => {}
                met => return Ok(met),
            }
        }
    }

    /// The next line.
    pub fn line(&mut self) -> io::Result<Option<Line>> {
        let Some(Head { sum, shape, flags }) = self.head()? else { return Ok(None) };
        let path = self.last.clone();
        if flags & IS_ODD != 0 {
            return Ok(Some(Line::Odd(path)));
        }
        let stamp = self.stamp(flags)?;
        let seen = self.seen(flags)?;
        if flags & IS_PASSED != 0 {
            return Ok(Some(Line::Passed(path)));
        }
        let own = seen.as_ref().filter(|_| flags & STAMP_IS_OWN != 0).map(|seen| Stamp::new(&seen.meta));
        Ok(Some(Line::Entry(Record { path, sum, shape, stamp: stamp.or(own), seen })))
    }

    /// Puts the next `count` lines into `looks`, in place of what is there; less at the end.
    pub fn looks(&mut self, count: usize, looks: &mut Looks) -> io::Result<()> {
        looks.paths.clear();
        looks.ends.clear();
        while looks.ends.len() < count {
            let Some(Head { flags, .. }) = self.head()? else { break };
            self.stamp(flags)?;
            let seen = self.seen(flags)?;
            let rest = seen.as_ref().and_then(Seen::rest);
            looks.paths.extend(&self.last);
            looks.ends.push((looks.paths.len(), rest));
        }
        Ok(())
    }

    /// What every line begins with; its path becomes the last.
    fn head(&mut self) -> io::Result<Option<Head>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let head: [u8; HEAD] = self.array()?;
        let mut fields = Fields(&head);
        let (shared, rest) = (usize::from(fields.u16()), fields.u32() as usize);
        let (sum, head, body, flags) = (fields.u64(), fields.u32(), fields.u64(), fields.u8());
        if rest > MAX_KEY || shared > self.last.len() {
            return Err(io::Error::other("the record of a path is damaged"));
        }
        self.last.truncate(shared);
        self.last.resize(shared + rest, 0);
        self.from.read_exact(&mut self.last[shared..])?;
        Ok(Some(Head { sum, shape: Shape { may_cut: flags & MAY_CUT != 0, head: head.into(), body }, flags }))
    }

    fn stamp(&mut self, flags: u8) -> io::Result<Option<Stamp>> {
        Ok(if flags & HAS_STAMP == 0 { None } else { Some(Stamp::read(&mut Fields(&self.array::<STAMP>()?))) })
    }

    fn seen(&mut self, flags: u8) -> io::Result<Option<Seen>> {
        if flags & HAS_INODE == 0 {
            return Ok(None);
        }
        let meta = read_meta(&self.array()?);
        Ok(Some(Seen { meta, is_whiteout: flags & IS_WHITEOUT != 0, may_rest: flags & MAY_REST != 0 }))
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// A file with an offset of its own.
struct Reading {
    file: File,
    at: u64,
}

impl Read for Reading {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read_at(buf, self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Reading {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Start(at) = to else { return Err(io::ErrorKind::Unsupported.into()) };
        self.at = at;
        Ok(at)
    }
}
