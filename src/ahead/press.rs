//! Segments compressed on all cores, stored and hashed in order.
//!
//! ```text
//!            ┌▶ worker ┐            ┌▶ blob, hashed as stored
//! segments ──┼▶ worker ┼▶ in order ─┤
//!            └▶ worker ┘            └▶ hashed plain, on a thread of its own
//! ```
//! Each segment becomes a gzip member (RFC 1952) or a zstd frame (RFC 8878): readers of both take several, one after another.
//! So a segment's bytes depend on nothing but the segment.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread::{self, JoinHandle},
};

use libdeflater::{CompressionLvl, Compressor, Decompressor};

use super::cut::SEGMENT;
use crate::{
    digest::Hasher,
    error::{At, Error, Result},
    interrupt,
    layout::BlobWriter,
    oci::names,
    sparse::is_zero,
    tally,
};

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// The only one `ctr containers restore --rw` takes.
    #[default]
    Gzip,
    /// Smaller and faster; for other tools.
    Zstd,
    /// As it is.
    None,
}

impl Compression {
    /// The media type of a layer stored so.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => names::LAYER_GZIP,
            Self::Zstd => names::LAYER_ZSTD,
            Self::None => names::LAYER_TAR,
        }
    }
}

/// libdeflate's fastest: a node in trouble has no time, and layers are read once.
const GZIP_LEVEL: i32 = 1;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// More threads would wait for the one that hashes.
const MAX_WORKERS: usize = 8;

/// The plain digest's state is kept every so many segments: who goes on from a changed one hashes no more again.
const MARK_EVERY: usize = 64;

static ZEROS: [u8; SEGMENT as usize] = [0; SEGMENT as usize];

/// The bytes of a segment.
pub enum Plain {
    /// These.
    Bytes(Vec<u8>),
    /// So many zeros, which nobody has read.
    Zeros(usize),
}

impl Plain {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            // No segment is longer.
            Self::Zeros(len) => &ZEROS[..(*len).min(ZEROS.len())],
        }
    }
}

/// What becomes of a segment.
pub enum Job {
    /// It is compressed.
    Press(Plain),
    /// It was compressed before, of a plain segment of this length.
    Kept(Vec<u8>, usize),
    /// The same; its plain bytes are hashed already.
    Hashed(Vec<u8>, usize),
}

/// Where a segment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// In the tar.
    pub plain: u64,
    /// In the blob.
    pub stored: u64,
}

/// What all segments became.
pub struct Pressed {
    /// The blob, to be completed.
    pub blob: BlobWriter,
    /// The tar's digest.
    pub plain: Hasher,
    /// Where each segment ends.
    pub ends: Vec<End>,
    /// The plain digest's state before every [`MARK_EVERY`]th segment.
    pub marks: Vec<Hasher>,
}

impl Pressed {
    /// The last marked segment at or before `segment`, and the digest's state there.
    pub fn mark_before(&self, segment: usize) -> (usize, Hasher) {
        let at = (segment / MARK_EVERY).min(self.marks.len().saturating_sub(1));
        self.marks.get(at).map_or_else(Default::default, |state| (at * MARK_EVERY, state.clone()))
    }
}

/// Lets one more segment in, and is given back when that is done with.
struct Ticket(Sender<()>);

impl Drop for Ticket {
    fn drop(&mut self) {
        // Nobody waits for it any more: then all is over.
        let _ = self.0.send(());
    }
}

/// A segment that was worked on.
struct Done {
    /// `None`: it is hashed already.
    plain: Option<Plain>,
    stored: Stored,
    len: usize,
    ticket: Ticket,
}

enum Stored {
    Bytes(Vec<u8>),
    /// What the constant segment of zeros became.
    Shared(Arc<Vec<u8>>),
    /// As it is.
    Plain,
}

type Numbered<T> = (usize, T);

/// A blob, and where the segments in it end.
type Written = io::Result<(BlobWriter, Vec<End>)>;

/// The threads at work.
pub struct Press {
    jobs: Option<SyncSender<Numbered<(Job, Ticket)>>>,
    tickets: Receiver<()>,
    give_back: Sender<()>,
    next: usize,
    workers: Vec<JoinHandle<()>>,
    /// In order: stores, then passes on to be hashed.
    writer: Option<JoinHandle<Written>>,
    hasher: Option<JoinHandle<(Hasher, Vec<Hasher>)>>,
}

impl Press {
    /// Begins to fill `blob`; the plain digest goes on from `plain`.
    pub fn begin(how: Compression, blob: BlobWriter, plain: Hasher) -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        let (jobs, taken) = sync_channel(count);
        let (give_back, tickets) = channel();
        for _ in 0..3 * count + 4 {
            // We hold its other end.
            let _ = give_back.send(());
        }
        let (done, finished) = channel();
        let (pass, passed) = channel();
        let (taken, zeros) = (Arc::new(Mutex::new(taken)), Arc::new(Codec::new(how)?.zeros()?));
        let worker = |_| {
            let (taken, done, zeros, codec) = (taken.clone(), done.clone(), zeros.clone(), Codec::new(how)?);
            Ok(thread::spawn(move || work(codec, &zeros, &taken, &done)))
        };
        let workers = (0..count).map(worker).collect::<io::Result<_>>()?;
        let writer = Some(thread::spawn(move || store(blob, &finished, &pass)));
        let hasher = Some(thread::spawn(move || hash(plain, &passed)));
        Ok(Self { jobs: Some(jobs), tickets, give_back, next: 0, workers, writer, hasher })
    }

    /// The next segment.
    pub fn put(&mut self, job: Job) -> Result<()> {
        interrupt::check()?;
        let is_in = self.tickets.recv().is_ok_and(|()| {
            let ticket = Ticket(self.give_back.clone());
            self.jobs.as_ref().is_some_and(|jobs| jobs.send((self.next, (job, ticket))).is_ok())
        });
        if !is_in {
            return Err(self.end().err().unwrap_or_else(|| ended(io::Error::other("its threads have ended"))));
        }
        self.next += 1;
        Ok(())
    }

    /// No segment follows.
    pub fn finish(mut self) -> Result<Pressed> {
        self.end()
    }

    /// The first thing that went wrong is told: what follows from it is not.
    fn end(&mut self) -> Result<Pressed> {
        drop(self.jobs.take());
        let panicked = std::mem::take(&mut self.workers).into_iter().filter_map(|worker| worker.join().err()).count();
        let written = self.writer.take().map(joined);
        let hashed = self.hasher.take().and_then(|thread| thread.join().ok());
        interrupt::check()?;
        let written = written.unwrap_or_else(|| Err(io::Error::other("it has ended"))).map_err(ended)?;
        if panicked > 0 {
            return Err(ended(io::Error::other("a thread of dewar panicked")));
        }
        let (plain, marks) = hashed.ok_or_else(|| ended(io::Error::other("the thread that hashes panicked")))?;
        Ok(Pressed { blob: written.0, plain, ends: written.1, marks })
    }
}

fn ended(e: io::Error) -> Error {
    Err::<(), _>(e).at("compress", "a layer").expect_err("it is an error")
}

fn joined<T>(thread: JoinHandle<io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of dewar panicked")))
}

type Taken = Mutex<Receiver<Numbered<(Job, Ticket)>>>;

fn work(mut codec: Codec, zeros: &Arc<Vec<u8>>, taken: &Taken, done: &Sender<Numbered<io::Result<Done>>>) {
    loop {
        let next = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, (job, ticket))) = next else { return };
        // If nobody listens, the one who writes says why.
        if done.send((number, codec.work(job, zeros, ticket))).is_err() {
            return;
        }
    }
}

type Passed = (Option<Plain>, Ticket);

fn store(mut blob: BlobWriter, finished: &Receiver<Numbered<io::Result<Done>>>, pass: &Sender<Passed>) -> Written {
    let (mut early, mut ends, mut at) = (BTreeMap::new(), Vec::new(), End { plain: 0, stored: 0 });
    for (number, done) in finished {
        early.insert(number, done?);
        while let Some(Done { plain, stored, len, ticket }) = early.remove(&ends.len()) {
            let bytes = match (&stored, &plain) {
                (Stored::Bytes(bytes), _) => bytes,
                (Stored::Shared(bytes), _) => bytes.as_slice(),
                (Stored::Plain, Some(plain)) => plain.bytes(),
                (Stored::Plain, None) => return Err(io::Error::other("a segment has no bytes")),
            };
            blob.write_all(bytes)?;
            at = End { plain: at.plain + len as u64, stored: at.stored + bytes.len() as u64 };
            ends.push(at);
            // The hasher ends only after us.
            let _ = pass.send((plain, ticket));
        }
    }
    Ok((blob, ends))
}

fn hash(mut state: Hasher, passed: &Receiver<Passed>) -> (Hasher, Vec<Hasher>) {
    let mut marks = Vec::new();
    for (number, (plain, _ticket)) in passed.iter().enumerate() {
        if number % MARK_EVERY == 0 {
            marks.push(state.clone());
        }
        if let Some(plain) = plain {
            state.update(plain.bytes());
            tally::bytes(plain.bytes().len());
        }
    }
    (state, marks)
}

/// One worker's means.
pub enum Codec {
    /// Of gzip.
    Gzip(Box<Compressor>, Box<Decompressor>),
    /// Of zstd.
    Zstd(Box<zstd::bulk::Compressor<'static>>),
    /// Of nothing.
    None,
}

impl Codec {
    /// What is needed for this way to store.
    pub fn new(how: Compression) -> io::Result<Self> {
        Ok(match how {
            Compression::Gzip => Self::Gzip(Box::new(gzip(GZIP_LEVEL)?), Box::new(Decompressor::new())),
            Compression::Zstd => Self::Zstd(Box::new(zstd::bulk::Compressor::new(ZSTD_LEVEL)?)),
            Compression::None => Self::None,
        })
    }

    /// A whole segment of zeros, once for all: as small as can be, a thousandth.
    fn zeros(&mut self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(..) => pressed(&mut gzip(12)?, &ZEROS),
            Self::Zstd(zstd) => zstd.compress(&ZEROS),
            Self::None => Ok(Vec::new()),
        }
    }

    fn work(&mut self, job: Job, zeros: &Arc<Vec<u8>>, ticket: Ticket) -> io::Result<Done> {
        Ok(match job {
            Job::Press(plain) => {
                let (stored, len) = (self.press(&plain, zeros)?, plain.bytes().len());
                Done { plain: Some(plain), stored, len, ticket }
            }
            Job::Kept(stored, len) => {
                let plain = Some(Plain::Bytes(self.plain(&stored, len)?));
                Done { plain, stored: Stored::Bytes(stored), len, ticket }
            }
            Job::Hashed(stored, len) => Done { plain: None, stored: Stored::Bytes(stored), len, ticket },
        })
    }

    fn press(&mut self, plain: &Plain, zeros: &Arc<Vec<u8>>) -> io::Result<Stored> {
        let bytes = plain.bytes();
        let is_all_zeros = bytes.len() == ZEROS.len() && (matches!(plain, Plain::Zeros(_)) || is_zero(bytes));
        Ok(match self {
            Self::None => Stored::Plain,
            _ if is_all_zeros => Stored::Shared(zeros.clone()),
            Self::Gzip(gzip, _) => Stored::Bytes(pressed(gzip, bytes)?),
            Self::Zstd(zstd) => Stored::Bytes(zstd.compress(bytes)?),
        })
    }

    /// The plain bytes of a segment that was stored, which are `len`.
    pub fn plain(&mut self, stored: &[u8], len: usize) -> io::Result<Vec<u8>> {
        let mut plain = vec![0; len];
        let found = match self {
            Self::Gzip(_, gunzip) => gunzip.gzip_decompress(stored, &mut plain).map_err(io::Error::other)?,
            Self::Zstd(_) => zstd::bulk::decompress_to_buffer(stored, &mut plain)?,
            Self::None => {
                plain.copy_from_slice(stored.get(..len).ok_or(io::ErrorKind::UnexpectedEof)?);
                len
            }
        };
        if found == len { Ok(plain) } else { Err(io::Error::other("a stored segment is not as long as it was")) }
    }
}

fn gzip(level: i32) -> io::Result<Compressor> {
    let level = CompressionLvl::new(level).map_err(|_| io::Error::other("libdeflate has no such level"))?;
    Ok(Compressor::new(level))
}

fn pressed(gzip: &mut Compressor, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = vec![0; gzip.gzip_compress_bound(bytes.len())];
    let len = gzip.gzip_compress(bytes, &mut out).map_err(io::Error::other)?;
    out.truncate(len);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::{
        ahead::{cut::Shape, make::Maker},
        layout::Layout,
    };

    const BLOCK: usize = 1 << 20;

    #[test]
    fn zeros_cost_next_to_nothing_and_every_reader_gives_them_back() {
        let temp = tempfile::tempdir().unwrap();
        let staging = Layout::open_or_create(&temp.path().join("l")).unwrap().stage().unwrap();
        let mut plain = vec![0; 40 * BLOCK + 5];
        plain[..6].copy_from_slice(b"before");
        plain[20 * BLOCK + 7] = 1;
        *plain.last_mut().unwrap() = 2;
        for how in [Compression::Gzip, Compression::Zstd, Compression::None] {
            for plain in [&plain[..], b"x"] {
                let press = Press::begin(how, staging.blob().unwrap(), Hasher::default()).unwrap();
                let mut maker = Maker::new(press);
                maker.begin(Shape { may_cut: false, head: 0, body: plain.len() as u64 }).unwrap();
                for block in plain.chunks(BLOCK / 3) {
                    if is_zero(block) { maker.zeros(block.len() as u64) } else { maker.bytes(block) }.unwrap();
                }
                let crate::ahead::make::Made::Pressed(pressed) = maker.finish().unwrap() else { panic!() };
                assert_eq!(pressed.plain.finish(), crate::digest::Digest::of(plain));
                let blob = pressed.blob.complete().unwrap();
                let bytes = staging.read_blob(&blob.digest).unwrap();
                let mut found = Vec::new();
                match how {
                    Compression::Gzip => {
                        flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut found).unwrap();
                    }
                    Compression::Zstd => found = zstd::decode_all(&bytes[..]).unwrap(),
                    Compression::None => found.clone_from(&bytes),
                }
                assert!(found == plain, "{how:?}");
                assert!(how == Compression::None || bytes.len() < 64 << 10, "{how:?}: {} bytes", bytes.len());
            }
        }
    }
}
