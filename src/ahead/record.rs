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

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::FileExt,
};

use super::cut::Shape;
use crate::{
    pax::Time,
    tree::{FileId, Kind, Meta, Summary, sink::MAX_KEY},
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
        self.may_rest.then(|| Rest { stamp: Stamp::new(&self.meta), is_file: self.meta.kind == Kind::File })
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

/// Times tick coarsely, by milliseconds or, on old file systems, by seconds: a file may change again without its time.
const COARSE: i64 = 2;

impl Stamp {
    /// A file that is about to be read; `None` if its last change was not so long ago that any later one shows.
    pub fn of(meta: &Meta, now: Time) -> Option<Self> {
        let is_old = meta.ctime.secs.saturating_add(COARSE) < now.secs;
        is_old.then(|| Self::new(meta))
    }

    fn new(meta: &Meta) -> Self {
        Self { id: meta.id, size: meta.size, mtime: meta.mtime, ctime: meta.ctime }
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
    line: Vec<u8>,
    count: u64,
}

/// Before the path.
const HEAD: usize = 27;

const HAS_STAMP: u8 = 1;
const HAS_INODE: u8 = 2;
const STAMP_IS_OWN: u8 = 4;
const IS_WHITEOUT: u8 = 8;
const MAY_REST: u8 = 16;
const IS_ODD: u8 = 32;
const MAY_CUT: u8 = 64;
const IS_PASSED: u8 = 128;

impl Records {
    /// Into `file`, which is empty.
    pub fn begin(file: File) -> Self {
        Self { out: BufWriter::with_capacity(1 << 16, file), last: Vec::new(), line: Vec::new(), count: 0 }
    }

    /// One more.
    pub fn put(&mut self, record: &Record) -> io::Result<()> {
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
        self.out.write_all(&self.line)
    }

    /// Something else was told of `path`.
    pub fn put_odd(&mut self, path: &[u8]) -> io::Result<()> {
        self.head(path, 0, Shape { may_cut: false, head: 0, body: 0 }, IS_ODD)?;
        self.out.write_all(&self.line)
    }

    /// There is no entry of what lies at `path`.
    pub fn put_passed(&mut self, path: &[u8], seen: &Seen) -> io::Result<()> {
        let rests = if seen.may_rest { MAY_REST } else { 0 };
        self.head(path, 0, Shape { may_cut: false, head: 0, body: 0 }, IS_PASSED | HAS_INODE | rests)?;
        write_meta(&seen.meta, &mut self.line);
        self.out.write_all(&self.line)
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
        self.count += 1;
        Ok(())
    }

    /// The file, to be read from its beginning, and how many records it has.
    pub fn finish(self) -> io::Result<(File, u64)> {
        Ok((self.out.into_inner().map_err(io::IntoInnerError::into_error)?, self.count))
    }
}

impl Stamp {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.id.dev.0.to_le_bytes());
        out.extend(self.id.dev.1.to_le_bytes());
        out.extend(self.id.ino.to_le_bytes());
        out.extend(self.size.to_le_bytes());
        write_time(self.mtime, out);
        write_time(self.ctime, out);
    }

    fn read(fields: &mut Fields) -> Self {
        let id = FileId { dev: (fields.u32(), fields.u32()), ino: fields.u64() };
        Self { id, size: fields.u64(), mtime: fields.time(), ctime: fields.time() }
    }
}

const STAMP: usize = 48;

fn write_time(time: Time, out: &mut Vec<u8>) {
    out.extend(time.secs.to_le_bytes());
    out.extend(time.nanos.to_le_bytes());
}

/// In the order of [`Kind`]'s own numbers.
const KINDS: [Kind; 7] =
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

/// What is before a line's path.
struct Head {
    sum: u64,
    shape: Shape,
    flags: u8,
}

/// Several lines, of which no more is kept than is needed to look whether they rest.
#[derive(Default)]
pub struct Places {
    /// All paths, one after another.
    paths: Vec<u8>,
    /// Where each path ends, and what lay there; `None`: what is there never rests.
    ends: Vec<(usize, Option<Rest>)>,
}

impl Places {
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

/// What must be the same for an entry to be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    stamp: Stamp,
    /// It is a regular file: its content counts too.
    pub is_file: bool,
}

impl Rest {
    /// True if the inode says the same `now`.
    pub fn is_of(&self, now: &Meta) -> bool {
        self.stamp.is_of(now)
    }
}

/// Reads records.
pub struct Recorded {
    from: BufReader<Reading>,
    /// How many are left.
    left: u64,
    last: Vec<u8>,
}

impl Recorded {
    /// All `count` records of `file`, which others may read meanwhile.
    pub fn read(file: &File, count: u64) -> io::Result<Self> {
        let from = BufReader::with_capacity(1 << 18, Reading { file: file.try_clone()?, at: 0 });
        Ok(Self { from, left: count, last: Vec::new() })
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
        let seen = if flags & HAS_INODE == 0 { None } else { Some(self.seen(flags)?) };
        if flags & IS_PASSED != 0 {
            return Ok(Some(Line::Passed(path)));
        }
        let own = seen.as_ref().filter(|_| flags & STAMP_IS_OWN != 0).map(|seen| Stamp::new(&seen.meta));
        Ok(Some(Line::Entry(Record { path, sum, shape, stamp: stamp.or(own), seen })))
    }

    /// Puts the next `count` lines into `places`, in place of what is there; less at the end.
    pub fn places(&mut self, count: usize, places: &mut Places) -> io::Result<()> {
        places.paths.clear();
        places.ends.clear();
        while places.ends.len() < count {
            let Some(Head { flags, .. }) = self.head()? else { break };
            self.stamp(flags)?;
            let seen = if flags & HAS_INODE == 0 { None } else { Some(self.seen(flags)?) };
            let rest = seen.as_ref().and_then(Seen::rest);
            places.paths.extend(&self.last);
            places.ends.push((places.paths.len(), rest));
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

    fn seen(&mut self, flags: u8) -> io::Result<Seen> {
        let meta = read_meta(&self.array()?);
        Ok(Seen { meta, is_whiteout: flags & IS_WHITEOUT != 0, may_rest: flags & MAY_REST != 0 })
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

    fn time(&mut self) -> Time {
        Time { secs: self.u64().cast_signed(), nanos: self.u32() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (file, count) = out.finish().unwrap();
        let mut read = Recorded::read(&file, count).unwrap();
        let found: Vec<_> = std::iter::from_fn(|| read.next().unwrap()).collect();
        assert_eq!(found, all);
        let mut read = Recorded::read(&file, count).unwrap();
        let lines = std::iter::from_fn(|| read.line().unwrap());
        assert_eq!(lines.filter(|line| matches!(line, Line::Odd(path) if path == b"a/socket")).count(), all.len());
        let mut read = Recorded::read(&file, count).unwrap();
        let met: Vec<_> = std::iter::from_fn(|| read.met().unwrap()).collect();
        let is_right = |line: &&Line| matches!(line, Line::Passed(path) if path == b"a/same");
        assert_eq!((met.len(), met.iter().filter(is_right).count()), (2 * all.len(), all.len()));
        let (mut read, mut places) = (Recorded::read(&file, count).unwrap(), Places::default());
        let mut found = Vec::new();
        while {
            read.places(4, &mut places).unwrap();
            !places.is_empty()
        } {
            found.extend(places.iter().map(|(path, rest)| (path.to_vec(), rest.copied())));
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
        let now = Time { secs: 3, nanos: 0 };
        let rests =
            |meta: &Meta, whiteout, then| Seen::of(meta, whiteout, then).rest().is_some_and(|rest| rest.is_of(meta));
        assert!(rests(&alone, false, now) && rests(&directory, false, now) && rests(&file, true, now));
        assert!(!rests(&file, false, now) && !rests(&alone, false, Time::default()));
        let rest = Seen::of(&alone, false, now).rest().unwrap();
        assert!(!rest.is_of(&Meta { ctime: now, ..alone.clone() }));
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
