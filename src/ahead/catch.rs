//! Catching up: the layer as it is while nobody writes, told as what it has in common with the draft, and what is new.
//!
//! ```text
//! s u64                        so many entries are as they were drafted
//! k u64                        so many entries of the draft are no more
//! e u8 u32 header u64          an entry: whether a segment may end before it, its header, the length of its content; then
//!   u32 path inode             what lies there, or a path of length 0
//!   c                          its content is that of the draft's next entry, of which nothing else is kept
//!   d u32 bytes   z u64        or these bytes, and so many zeros, by turns
//! ```
//! Numbers are little-endian. The draft's entries are in the order in which they are met again, so both are gone through
//! once, and what rests is leapt over (`record::index`).

use std::{
    cmp::Ordering,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
};

use super::{
    cut::{SEGMENT, Shape},
    doubt::Doubt,
    draft::Drafted,
    make::{Made, Maker},
    probe::Touched,
    record::{Line, META, Record, Recorded, is_beyond, read_meta, write_meta},
};
use crate::{
    error::{At, Error, Result},
    layout::Staging,
    pax::MAX_RECORDS,
    tree::{Entry, Meta, Sink, Summary, sink::MAX_KEY},
};

/// A header with all its records is no longer.
const MAX_HEAD: usize = 2 * MAX_RECORDS;

/// Takes the entries of a layer of which there is a draft.
pub struct Catcher<'d> {
    draft: &'d Drafted,
    doubt: &'d Doubt,
    touched: Touched,
    /// Where in the draft's records it is.
    recorded: Cursor,
    /// The same of one who walks through the tree beforehand.
    beforehand: Option<Cursor>,
    /// The content of the entry that comes is that of `next`.
    is_had: bool,
    /// How many of a kind there were in a row: of those that stayed, and of those that are no more.
    run: (u8, u64),
    out: BufWriter<File>,
}

/// A place in the draft's records.
struct Cursor {
    recorded: Recorded,
    /// What comes there.
    next: Option<Line>,
    /// So many entries were passed over.
    entries: u64,
    /// The account of them.
    account: Summary,
}

impl Cursor {
    fn begin(draft: &Drafted) -> Result<Self> {
        let (recorded, account) = (draft.records()?, Summary::default());
        let mut cursor = Self { recorded, next: None, entries: 0, account };
        cursor.step().map(|()| cursor)
    }

    fn step(&mut self) -> Result<()> {
        if let Some(Line::Entry(record)) = &self.next {
            self.entries += 1;
            record.count(&mut self.account);
        }
        self.next = self.recorded.met().at("read", "the records of a draft")?;
        Ok(())
    }

    /// Passes over what comes there, which is `key`'s, and all below it.
    fn pass(&mut self, key: &[u8], draft: &Drafted) -> Result<()> {
        if let Some(place) = draft.last_below(key, self.recorded.lines()) {
            self.recorded.leap(place).at("read", "the records of a draft")?;
            (self.next, self.entries, self.account) = (None, place.preceding.entries, place.preceding.account.clone());
            self.step()?;
        }
        while self.next.as_ref().is_some_and(|line| !is_beyond(line.path(), key)) {
            self.step()?;
        }
        Ok(())
    }

    /// How what comes there stands to `key`.
    fn order(&self, key: &[u8]) -> Option<Ordering> {
        self.next.as_ref().map(|line| order(line.path(), key))
    }

    /// The entry that comes there, if it is of this path.
    fn entry(&self, key: &[u8]) -> Option<&Record> {
        match &self.next {
            Some(Line::Entry(record)) if record.path == key => Some(record),
            _ => None,
        }
    }

    fn is_entry(&self) -> bool {
        matches!(self.next, Some(Line::Entry(_)))
    }
}

const SAME: u8 = b's';
const GONE: u8 = b'k';

impl<'d> Catcher<'d> {
    /// Begins to; what `doubt` tells of is read again, and what was `touched` is come by.
    pub fn begin(draft: &'d Drafted, doubt: &'d Doubt, touched: Touched, staging: &Staging) -> Result<Self> {
        let recorded = Cursor::begin(draft)?;
        let out = BufWriter::with_capacity(1 << 20, staging.scratch()?);
        Ok(Self { draft, doubt, touched, recorded, beforehand: None, is_had: false, run: (SAME, 0), out })
    }

    /// All entries are in.
    pub fn finish(mut self) -> Result<Caught> {
        self.flush().at("write", "what changed")?;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error).at("write", "what changed")?;
        Ok(Caught { file })
    }

    /// Passes over what the draft has before `key`.
    fn seek(&mut self, key: &[u8]) -> Result<()> {
        while self.recorded.order(key) == Some(Ordering::Less) {
            self.pass_over(GONE)?;
        }
        Ok(())
    }

    /// The same, but for a directory above it that has an entry in the draft and was not met yet: where two trees are compared it
    /// is met when something in it is to be written, if there is.
    fn approach(&mut self, key: &[u8]) -> Result<()> {
        while self.recorded.order(key) == Some(Ordering::Less) {
            if let Some(Line::Entry(record)) = &self.recorded.next
                && !is_beyond(key, &record.path)
            {
                return Ok(());
            }
            self.pass_over(GONE)?;
        }
        Ok(())
    }

    /// Passes over one line; an entry is counted among these.
    fn pass_over(&mut self, kind: u8) -> Result<()> {
        if self.recorded.is_entry() {
            self.count(kind, 1)?;
        }
        self.recorded.step()
    }

    fn count(&mut self, kind: u8, entries: u64) -> Result<()> {
        if entries == 0 {
            return Ok(());
        }
        if self.run.0 != kind {
            self.flush().at("write", "what changed")?;
            self.run.0 = kind;
        }
        self.run.1 += entries;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.run.1 > 0 {
            self.out.write_all(&[self.run.0])?;
            self.out.write_all(&self.run.1.to_le_bytes())?;
        }
        self.run.1 = 0;
        Ok(())
    }

    fn entry(&mut self, shape: Shape, entry: &Entry<'_>, is_had: bool) -> io::Result<()> {
        self.flush()?;
        let head = entry.head;
        self.out.write_all(&[b'e', u8::from(shape.may_cut)])?;
        self.out.write_all(&u32::try_from(head.len()).map_err(io::Error::other)?.to_le_bytes())?;
        self.out.write_all(head)?;
        self.out.write_all(&shape.body.to_le_bytes())?;
        let meta = entry.meta.filter(|_| !entry.is_whiteout);
        let path = if meta.is_some() { entry.key } else { &[] };
        let mut told = u32::try_from(path.len()).map_err(io::Error::other)?.to_le_bytes().to_vec();
        told.extend(path);
        meta.inspect(|meta| write_meta(meta, &mut told));
        self.out.write_all(&told)?;
        if is_had { self.out.write_all(b"c") } else { Ok(()) }
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(b"d")?;
        self.out.write_all(&u32::try_from(bytes.len()).map_err(io::Error::other)?.to_le_bytes())?;
        self.out.write_all(bytes)
    }

    fn hole(&mut self, len: u64) -> io::Result<()> {
        self.out.write_all(b"z")?;
        self.out.write_all(&len.to_le_bytes())
    }
}

/// The order in which a tree is walked: `/` before all that a name may hold.
fn order(one: &[u8], other: &[u8]) -> Ordering {
    // As a rule.
    if one == other {
        return Ordering::Equal;
    }
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    one.iter().map(rank).cmp(other.iter().map(rank))
}

impl Sink for Catcher<'_> {
    fn has(&mut self, key: &[u8], data: &Meta, body: u64) -> Result<bool> {
        self.seek(key)?;
        let record = self.recorded.entry(key).filter(|record| record.shape.body == body);
        let stamp = record.and_then(|record| record.stamp.as_ref());
        self.is_had = stamp.is_some_and(|stamp| stamp.is_of(data) && !self.doubt.is_about(data));
        Ok(self.is_had)
    }

    fn reads_all(&self) -> bool {
        false
    }

    fn rests(&mut self, key: &[u8]) -> Result<Option<Summary>> {
        self.approach(key)?;
        if self.touched.is_about(key) || self.recorded.order(key) != Some(Ordering::Equal) {
            return Ok(None);
        }
        let (entries, account) = (self.recorded.entries, self.recorded.account.clone());
        self.recorded.pass(key, self.draft)?;
        self.count(SAME, self.recorded.entries - entries)?;
        Ok(Some(self.recorded.account.since(&account)))
    }

    fn rests_beforehand(&mut self, key: &[u8]) -> Result<bool> {
        if self.touched.is_about(key) {
            return Ok(false);
        }
        let cursor = match &mut self.beforehand {
            Some(cursor) => cursor,
            none => none.insert(Cursor::begin(self.draft)?),
        };
        while cursor.order(key) == Some(Ordering::Less) {
            cursor.step()?;
        }
        let rests = cursor.order(key) == Some(Ordering::Equal);
        if rests {
            cursor.pass(key, self.draft)?;
        }
        Ok(rests)
    }

    fn about_to_read(&mut self) {}

    fn passes(&mut self, _: &[u8], _: &Meta) -> Result<()> {
        Ok(())
    }

    fn odd(&mut self, _: &[u8]) {}

    fn begin(&mut self, entry: Entry<'_>) -> Result<()> {
        let Entry { key, head, body, .. } = entry;
        let is_had = std::mem::take(&mut self.is_had);
        let shape = Shape::of(key, head.len() as u64, body);
        self.seek(key)?;
        let record = self.recorded.entry(key);
        let has_body = body == 0 || is_had;
        if has_body && record.is_some_and(|record| record.shape == shape && record.sum == self.draft.sum(head)) {
            return self.pass_over(SAME);
        }
        let is_replaced = record.is_some();
        self.entry(shape, &entry, is_had).at("write", "what changed")?;
        match (is_had, is_replaced) {
            (true, _) => self.recorded.step(),
            (false, true) => self.pass_over(GONE),
            (false, false) => Ok(()),
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.data(bytes).at("write", "what changed")
    }

    fn zeros(&mut self, len: u64) -> Result<()> {
        if len > 0 { self.hole(len).at("write", "what changed") } else { Ok(()) }
    }

    fn distrust(&mut self) {}
}

/// A layer of one moment, told by its draft.
pub struct Caught {
    file: File,
}

impl Caught {
    /// How much had to be noted.
    #[cfg(test)]
    pub fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.len())
    }

    /// Makes the layer of it, and tells `told` what lay at each path of it.
    pub fn make(self, draft: &mut Drafted, told: Told<'_>) -> Result<Made> {
        let mut changed = self.file;
        let mut recorded = draft.records()?;
        changed.rewind().at("read", "what changed")?;
        let mut reader = Reader { from: BufReader::with_capacity(1 << 18, changed), at: 0, told };
        let mut maker = Maker::from_draft(draft);
        while reader.step(&mut recorded, &mut maker)? {}
        maker.finish()
    }
}

/// Takes what lies at a path.
pub type Told<'t> = &'t mut dyn FnMut(&[u8], &Meta);

struct Reader<'t> {
    from: BufReader<File>,
    /// How much of the draft was passed.
    at: u64,
    told: Told<'t>,
}

impl Reader<'_> {
    /// False at the end.
    fn step(&mut self, recorded: &mut Recorded, maker: &mut Maker) -> Result<bool> {
        let mut tag = [0];
        if self.from.read(&mut tag).at("read", "what changed")? == 0 {
            return Ok(false);
        }
        match tag[0] {
            SAME => {
                for _ in 0..self.u64()? {
                    let Record { path, shape, seen, .. } = next(recorded)?;
                    seen.filter(|seen| !seen.is_whiteout).inspect(|seen| (self.told)(&path, &seen.meta));
                    maker.begin(shape)?;
                    maker.drafted(self.at, shape.len())?;
                    self.at += shape.len();
                }
            }
            GONE => {
                for _ in 0..self.u64()? {
                    self.at += next(recorded)?.shape.len();
                }
            }
            b'e' => self.entry(maker)?,
            b'c' => {
                let shape = next(recorded)?.shape;
                maker.drafted(self.at + shape.head, shape.body)?;
                self.at += shape.len();
            }
            b'd' => {
                let len = self.u32()?;
                maker.bytes(&self.take(len as usize, SEGMENT as usize)?)?;
            }
            b'z' => maker.zeros(self.u64()?)?,
            _ => return Err(Error::malformed("what changed", "is damaged")),
        }
        Ok(true)
    }

    fn entry(&mut self, maker: &mut Maker) -> Result<()> {
        let may_cut = self.take(1, 1)? == [1];
        let len = self.u32()?;
        let head = self.take(len as usize, MAX_HEAD)?;
        let body = self.u64()?;
        let len = self.u32()?;
        let path = self.take(len as usize, MAX_KEY)?;
        if !path.is_empty() {
            let mut inode = [0; META];
            self.from.read_exact(&mut inode).at("read", "what changed")?;
            (self.told)(&path, &read_meta(&inode));
        }
        maker.begin(Shape { may_cut, head: head.len() as u64, body })?;
        maker.bytes(&head)
    }

    fn take(&mut self, len: usize, most: usize) -> Result<Vec<u8>> {
        if len > most {
            return Err(Error::malformed("what changed", "is damaged"));
        }
        let mut bytes = vec![0; len];
        self.from.read_exact(&mut bytes).at("read", "what changed")?;
        Ok(bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.from.read_exact(&mut bytes).at("read", "what changed")?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn u32(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.from.read_exact(&mut bytes).at("read", "what changed")?;
        Ok(u32::from_le_bytes(bytes))
    }
}

fn next(recorded: &mut Recorded) -> Result<Record> {
    let record = recorded.next().at("read", "the records of a draft")?;
    record.ok_or_else(|| Error::malformed("the records of a draft", "end too soon"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_in_the_order_of_a_walk() {
        let mut paths = ["a.b", "a/x", "a", "a b", "a/x/y", "b", "a/b"];
        paths.sort_by(|a, b| order(a.as_bytes(), b.as_bytes()));
        assert_eq!(paths, ["a", "a/b", "a/x", "a/x/y", "a b", "a.b", "b"]);
    }
}
