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
        Arc, Mutex, OnceLock, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread::{self, JoinHandle},
};

use super::{
    bytes::Bytes,
    codec::{Codec, Compression},
    cut::SEGMENT,
};
use crate::{
    digest::Hasher,
    error::{At, Error, Result},
    interrupt,
    layout::BlobWriter,
    sparse::is_zero,
    tally,
};

/// More threads would wait for the one that hashes.
const MAX_WORKERS: usize = 8;

/// The plain digest's state is kept every so many segments: who goes on from a changed one hashes no more again.
const MARK_EVERY: usize = 64;

static ZEROS: [u8; SEGMENT as usize] = [0; SEGMENT as usize];

/// The bytes of a segment.
pub enum Plain {
    /// These.
    Bytes(Bytes),
    /// So many zeros, which nobody has read.
    Zeros(usize),
}

impl Plain {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes.as_slice(),
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

/// Where the bytes of a segment are while it is under way. It serves for another one afterwards.
#[derive(Default)]
struct Room {
    plain: Bytes,
    stored: Bytes,
}

/// Lets one more segment in, with room for it, and is given back when that is done with.
struct Ticket {
    room: Room,
    back: Sender<Room>,
}

impl Ticket {
    /// Keeps the memory of plain bytes.
    fn keep(&mut self, plain: Bytes) {
        self.room.plain = plain;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Nobody waits for it any more: then all is over.
        let _ = self.back.send(std::mem::take(&mut self.room));
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
    /// What is in the ticket's room.
    Pressed,
    /// It was stored before.
    Kept(Vec<u8>),
    /// What the constant segment of zeros became.
    Zeros(Arc<OnceLock<Bytes>>),
    /// As it is.
    Plain,
}

impl Done {
    fn stored(&self) -> Option<&[u8]> {
        match &self.stored {
            Stored::Pressed => Some(self.ticket.room.stored.as_slice()),
            Stored::Kept(bytes) => Some(bytes),
            Stored::Zeros(bytes) => bytes.get().map(Bytes::as_slice),
            Stored::Plain => self.plain.as_ref().map(Plain::bytes),
        }
    }
}

type Numbered<T> = (usize, T);

/// A blob, and where the segments in it end.
type Written = io::Result<(BlobWriter, Vec<End>)>;

/// The threads at work.
pub struct Press {
    jobs: Option<SyncSender<Numbered<(Job, Ticket)>>>,
    tickets: Receiver<Room>,
    give_back: Sender<Room>,
    /// For the next segment's bytes.
    spare: Bytes,
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
            let _ = give_back.send(Room::default());
        }
        let (done, finished) = channel();
        let (pass, passed) = channel();
        let (taken, zeros) = (Arc::new(Mutex::new(taken)), Arc::new(OnceLock::new()));
        let worker = |_| {
            let worker = Worker { codec: Codec::new(how)?, zeros: zeros.clone() };
            let (taken, done) = (taken.clone(), done.clone());
            thread::Builder::new().spawn(move || worker.run(&taken, &done))
        };
        let workers = (0..count).map(worker).collect::<io::Result<_>>()?;
        let writer = Some(thread::Builder::new().spawn(move || store(blob, &finished, &pass))?);
        let hasher = Some(thread::Builder::new().spawn(move || hash(plain, &passed))?);
        let spare = Bytes::default();
        Ok(Self { jobs: Some(jobs), tickets, give_back, spare, next: 0, workers, writer, hasher })
    }

    /// Room for the next segment's bytes.
    pub fn room(&mut self) -> Bytes {
        let mut spare = std::mem::take(&mut self.spare);
        spare.clear();
        spare
    }

    /// The next segment.
    pub fn put(&mut self, job: Job) -> Result<()> {
        interrupt::check()?;
        let is_in = self.tickets.recv().is_ok_and(|mut room| {
            if matches!(job, Job::Press(_)) {
                self.spare = std::mem::take(&mut room.plain);
            }
            let ticket = Ticket { room, back: self.give_back.clone() };
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

type Passed = (Option<Plain>, Ticket);

fn store(mut blob: BlobWriter, finished: &Receiver<Numbered<io::Result<Done>>>, pass: &Sender<Passed>) -> Written {
    let (mut early, mut ends, mut at) = (BTreeMap::new(), Vec::new(), End { plain: 0, stored: 0 });
    for (number, done) in finished {
        early.insert(number, done?);
        while let Some(done) = early.remove(&ends.len()) {
            let bytes = done.stored().ok_or_else(|| io::Error::other("a segment has no bytes"))?;
            blob.write_all(bytes)?;
            at = End { plain: at.plain + done.len as u64, stored: at.stored + bytes.len() as u64 };
            ends.push(at);
            // The hasher ends only after us.
            let _ = pass.send((done.plain, done.ticket));
        }
    }
    Ok((blob, ends))
}

fn hash(mut state: Hasher, passed: &Receiver<Passed>) -> (Hasher, Vec<Hasher>) {
    let mut marks = Vec::new();
    for (number, (plain, mut ticket)) in passed.iter().enumerate() {
        if number % MARK_EVERY == 0 {
            marks.push(state.clone());
        }
        let Some(plain) = plain else { continue };
        state.update(plain.bytes());
        tally::bytes(plain.bytes().len());
        if let Plain::Bytes(bytes) = plain {
            ticket.keep(bytes);
        }
    }
    (state, marks)
}

/// One of several that compress.
struct Worker {
    codec: Codec,
    zeros: Arc<OnceLock<Bytes>>,
}

impl Worker {
    fn run(mut self, taken: &Taken, done: &Sender<Numbered<io::Result<Done>>>) {
        loop {
            let next = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((number, (job, ticket))) = next else { return };
            // If nobody listens, the one who writes says why.
            if done.send((number, self.work(job, ticket))).is_err() {
                return;
            }
        }
    }

    fn work(&mut self, job: Job, mut ticket: Ticket) -> io::Result<Done> {
        Ok(match job {
            Job::Press(plain) => {
                let (stored, len) = (self.press(&plain, &mut ticket)?, plain.bytes().len());
                Done { plain: Some(plain), stored, len, ticket }
            }
            Job::Kept(stored, len) => {
                let mut plain = std::mem::take(&mut ticket.room.plain);
                self.codec.plain(&stored, len, &mut plain)?;
                Done { plain: Some(Plain::Bytes(plain)), stored: Stored::Kept(stored), len, ticket }
            }
            Job::Hashed(stored, len) => Done { plain: None, stored: Stored::Kept(stored), len, ticket },
        })
    }

    fn press(&mut self, plain: &Plain, ticket: &mut Ticket) -> io::Result<Stored> {
        let bytes = plain.bytes();
        if self.codec.is_none() {
            return Ok(Stored::Plain);
        }
        if bytes.len() == ZEROS.len() && (matches!(plain, Plain::Zeros(_)) || is_zero(bytes)) {
            return self.zeros();
        }
        self.codec.press(bytes, &mut ticket.room.stored)?;
        Ok(Stored::Pressed)
    }

    /// A whole segment of zeros, once for all: as small as can be, a thousandth.
    fn zeros(&mut self) -> io::Result<Stored> {
        if self.zeros.get().is_none() {
            let mut stored = Bytes::default();
            self.codec.press_small(&ZEROS, &mut stored)?;
            // Another worker may have been faster, with the same.
            let _ = self.zeros.set(stored);
        }
        Ok(Stored::Zeros(self.zeros.clone()))
    }
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
        for &how in Compression::ALL {
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
                    Compression::Zstd => found = zstd::decode_all(&bytes[..]).unwrap(),
                    Compression::None => found.clone_from(&bytes),
                    _ => {
                        flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut found).unwrap();
                    }
                }
                assert!(found == plain, "{how:?}");
                assert!(how == Compression::None || bytes.len() < 64 << 10, "{how:?}: {} bytes", bytes.len());
            }
        }
    }
}
