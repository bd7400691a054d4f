//! The layer as it is while the container runs: compressed already, with a record of each entry.

use std::{
    fs::File,
    hash::{BuildHasher, RandomState},
    io,
    os::unix::fs::FileExt,
    time::Duration,
};

use super::{
    bytes::Bytes,
    clock,
    codec::{Codec, Compression},
    cut::Shape,
    doubt::{Doubt, Watcher},
    make::{Made, Maker},
    press::{End, Job, Press, Pressed},
    record::{Kept, Place, Record, Recorded, Records, Seen, Stamp},
};
use crate::{
    digest::Hasher,
    error::{At, Error, Result},
    layout::{BlobWriter, Staging},
    pax::Time,
    sparse,
    tree::{Entry, Kind, Meta, Sink, Summary},
};

/// A write to a small file is over by then; before it is, its inode has told of it long since. Of a large one whoever writes is
/// waited for in any case, when its holes are looked for.
const LONG: Duration = Duration::from_secs(2);

/// Takes the entries of a layer, and makes a draft of them.
pub struct Drafter<'w> {
    maker: Maker<'static>,
    /// `None`: nobody will catch up with it, nor ask what was read.
    records: Option<Records>,
    /// The first record that could not be written.
    failed: Option<io::Error>,
    sums: RandomState,
    /// Looks at those who may write meanwhile; `None`: nobody does.
    watcher: Option<Watcher<'w>>,
    /// The entry at hand: it is recorded when its content is in.
    entry: Option<Record>,
    /// Somebody may still be in the middle of writing to its file.
    is_recent: bool,
    /// What the tree gives us next was looked at after this.
    then: Time,
}

impl<'w> Drafter<'w> {
    /// Begins one; the `watcher` looks on while files are read. Without `records` nobody can catch up with it.
    pub fn begin(how: Compression, staging: &Staging, records: bool, watcher: Option<Watcher<'w>>) -> Result<Self> {
        let press =
            Press::begin(how, staging.draft()?, Hasher::default()).at("compress into", staging.path("blobs"))?;
        let records = records.then(|| staging.scratch().map(Records::begin)).transpose()?;
        let (maker, sums, then) = (Maker::new(press), RandomState::new(), clock::now());
        Ok(Self { maker, records, failed: None, sums, watcher, entry: None, is_recent: false, then })
    }

    /// All entries are in: the draft, and what is in doubt.
    pub fn finish(mut self, how: Compression) -> Result<(Drafted, Doubt)> {
        self.record()?;
        let Made::Pressed(mut pressed) = self.maker.finish()? else {
            return Err(Error::malformed("the draft", "is nothing of its own"));
        };
        let file = pressed.blob.so_far()?;
        let records = self.records.map(Records::finish).transpose().at("write", "the records of a draft")?;
        let codec = Codec::new(how).at("compress", "a layer")?;
        let drafted = Drafted { how, pressed, file, records, sums: self.sums, codec, at_hand: None, next: None };
        Ok((drafted, self.watcher.map(|watcher| watcher.doubt).unwrap_or_default()))
    }

    /// A file that changed before this, and is read from now on, can be believed.
    fn sure(&self) -> Time {
        self.watcher.as_ref().map_or(self.then, |watcher| watcher.sure_before(clock::now()))
    }

    /// The same of what an inode says, which was looked at after `then`; of a file its content counts too.
    fn over_before(&self, kind: Kind, sure: Time) -> Time {
        if kind == Kind::File { sure.min(self.then) } else { self.then }
    }

    fn record(&mut self) -> Result<()> {
        let (Some(records), Some(entry)) = (&mut self.records, self.entry.take()) else { return Ok(()) };
        self.failed.take().map_or_else(|| records.put(&entry), Err).at("write", "the records of a draft")
    }
}

impl Sink for Drafter<'_> {
    fn has(&mut self, _: &[u8], data: &Meta, _: u64) -> Result<bool> {
        if let Some(watcher) = &mut self.watcher {
            watcher.keep_up_for(data.ctime);
        }
        Ok(false)
    }

    fn reads_all(&self) -> bool {
        true
    }

    fn rests(&mut self, _: &[u8]) -> Result<Option<Summary>> {
        Ok(None)
    }

    fn rests_beforehand(&mut self, _: &[u8]) -> Result<bool> {
        Ok(false)
    }

    fn about_to_read(&mut self) {
        if let Some(watcher) = &mut self.watcher {
            watcher.keep_up();
        }
    }

    fn passes(&mut self, path: &[u8], meta: &Meta) -> Result<()> {
        self.record()?;
        let seen = Seen::of(meta, false, self.over_before(meta.kind, self.sure()));
        if let Some(records) = &mut self.records {
            records.put_passed(path, &seen).at("write", "the records of a draft")?;
        }
        self.then = clock::now();
        Ok(())
    }

    fn odd(&mut self, path: &[u8]) {
        if let Some(records) = &mut self.records
            && let Err(e) = records.put_odd(path)
        {
            self.failed.get_or_insert(e);
        }
    }

    fn begin(&mut self, Entry { key, head, body, data, meta, is_whiteout }: Entry<'_>) -> Result<()> {
        self.record()?;
        let shape = Shape::of(key, head.len() as u64, body);
        if self.records.is_some() {
            // Content is read from now on; what else an inode tells was looked at, perhaps, as soon as `then`.
            let sure = self.sure();
            let stamp = data.and_then(|meta| Stamp::of(meta, sure));
            let seen = meta.map(|meta| Seen::of(meta, is_whiteout, self.over_before(meta.kind, sure)));
            let is_recent = |data: &Meta| !clock::is_past(data.ctime, clock::before(sure, LONG));
            self.is_recent = self.watcher.is_some() && stamp.is_some() && data.is_some_and(is_recent);
            self.entry = Some(Record { path: key.to_vec(), sum: self.sums.hash_one(head), shape, stamp, seen });
        }
        self.maker.begin(shape)?;
        self.maker.bytes(head)?;
        self.then = clock::now();
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.maker.bytes(bytes)?;
        self.then = clock::now();
        Ok(())
    }

    fn read(&mut self, file: &File, at: u64, room: &mut [u8]) -> Result<io::Result<usize>> {
        if std::mem::take(&mut self.is_recent) {
            // Waits for whoever is in the middle of writing to it through the page cache. ext4, btrfs and F2FS: `llseek` takes
            // the inode's lock; of XFS a read does; of `ext2.ko` neither, but there changes are whole seconds old.
            sparse::next_data(file, at);
        }
        let read = self.maker.read(file, at, room.len())?;
        self.then = clock::now();
        Ok(read)
    }

    fn zeros(&mut self, len: u64) -> Result<()> {
        self.maker.zeros(len)
    }

    fn distrust(&mut self) {
        if let Some(entry) = &mut self.entry {
            entry.stamp = None;
            entry.seen.iter_mut().for_each(|seen| seen.may_rest = false);
        }
    }
}

/// A draft that is done.
pub struct Drafted {
    how: Compression,
    pressed: Box<Pressed>,
    /// The blob's file, to be read.
    file: File,
    records: Option<Kept>,
    /// Sums of headers are keyed by chance: nobody can make two headers of one sum.
    sums: RandomState,
    codec: Codec,
    /// The segment that was unpacked last.
    at_hand: Option<(usize, Bytes)>,
    /// A new blob, from the time when it is needed.
    next: Option<BlobWriter>,
}

impl Drafted {
    /// Its entries.
    pub fn records(&self) -> Result<Recorded> {
        let none = || Error::malformed("the draft", "has no records");
        self.records.as_ref().ok_or_else(none)?.read().at("read", "the records of a draft")
    }

    /// The last place among its lines that is `key`'s or below it, of one who has read so many of them, the last of them `key`'s.
    pub fn last_below(&self, key: &[u8], read: u64) -> Option<&Place> {
        self.records.as_ref().and_then(|records| records.index.last_below(key, read))
    }

    /// Its entries, if it keeps records.
    pub fn records_if_any(&self) -> Result<Option<Recorded>> {
        self.records.as_ref().map(|_| self.records()).transpose()
    }

    /// The keyed sum of a header.
    pub fn sum(&self, head: &[u8]) -> u64 {
        self.sums.hash_one(head)
    }

    /// How many segments it has.
    pub fn count(&self) -> usize {
        self.pressed.ends.len()
    }

    /// Gives it a new blob for what will be different.
    pub fn with(&mut self, next: BlobWriter) {
        self.next = Some(next);
    }

    /// It is as it must be: its blob, and the tar's digest.
    pub fn whole(self) -> (BlobWriter, Hasher) {
        (self.pressed.blob, self.pressed.plain)
    }

    /// The segment that lies at `at` in the tar and is of this length, if there is one.
    pub fn segment(&self, at: u64, len: u64) -> Option<usize> {
        let found = self.pressed.ends.partition_point(|end| end.plain <= at);
        let (start, end) = self.span(found)?;
        (start.plain == at && end.plain - start.plain == len).then_some(found)
    }

    fn span(&self, segment: usize) -> Option<(End, End)> {
        let before = segment.checked_sub(1).map_or(Some(End { plain: 0, stored: 0 }), |n| self.end_of(n))?;
        Some((before, self.end_of(segment)?))
    }

    fn end_of(&self, segment: usize) -> Option<End> {
        self.pressed.ends.get(segment).copied()
    }

    /// A segment as it is stored, and how long it is plain.
    pub fn stored(&self, segment: usize) -> Result<(Vec<u8>, usize)> {
        let no_such = || Error::malformed("the draft", "has no such segment");
        let (start, end) = self.span(segment).ok_or_else(no_such)?;
        let len = usize::try_from(end.stored - start.stored).map_err(|_| no_such())?;
        let plain = usize::try_from(end.plain - start.plain).map_err(|_| no_such())?;
        let mut stored = vec![0; len];
        self.file.read_exact_at(&mut stored, start.stored).at("read", "the draft")?;
        Ok((stored, plain))
    }

    /// Appends so many bytes of the tar, from `at` on, to `out`.
    pub fn plain(&mut self, mut at: u64, mut len: u64, out: &mut Bytes) -> Result<()> {
        while len > 0 {
            let segment = self.pressed.ends.partition_point(|end| end.plain <= at);
            let start = self.span(segment).map_or(at, |(start, _)| start.plain);
            if self.at_hand.as_ref().is_none_or(|(held, _)| *held != segment) {
                let (stored, plain) = self.stored(segment)?;
                let mut bytes = self.at_hand.take().map(|(_, bytes)| bytes).unwrap_or_default();
                self.codec.plain(&stored, plain, &mut bytes).at("read", "the draft")?;
                self.at_hand = Some((segment, bytes));
            }
            let held = self.at_hand.as_ref().map_or(&[][..], |(_, bytes)| bytes.as_slice());
            let from = usize::try_from(at - start).ok().and_then(|from| held.get(from..)).unwrap_or_default();
            let some = from.get(..usize::try_from(len).unwrap_or(usize::MAX).min(from.len())).unwrap_or_default();
            if some.is_empty() {
                return Err(Error::malformed("the draft", "ends too soon"));
            }
            out.extend(some);
            (at, len) = (at + some.len() as u64, len - some.len() as u64);
        }
        Ok(())
    }

    /// A new blob that begins with the first `count` segments of this one.
    pub fn go_on(&mut self, count: usize) -> Result<Press> {
        let missing = || Err(io::Error::other("there is no blob to write to"));
        let blob = self.next.take().map_or_else(missing, Ok).at("compress", "a layer")?;
        let (hashed, state) = self.pressed.mark_before(count);
        let mut press = Press::begin(self.how, blob, state).at("compress", "a layer")?;
        for segment in 0..count {
            let (stored, len) = self.stored(segment)?;
            press.put(if segment < hashed { Job::Hashed(stored, len) } else { Job::Kept(stored, len) })?;
        }
        Ok(press)
    }
}
