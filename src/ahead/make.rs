//! A tar's entries become segments, and segments a blob.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::{
    bytes::Bytes,
    cut::{Cutter, SEGMENT, Shape},
    draft::Drafted,
    press::{Job, Plain, Press, Pressed},
};
use crate::error::Result;

/// A part of a segment.
enum Piece {
    Bytes(Bytes),
    /// A whole segment of zeros.
    Zeros,
    /// So many bytes from there on in the tar that was copied ahead.
    Drafted(u64, u64),
}

/// Cuts what it is given.
#[derive(Default)]
struct Segments {
    cutter: Cutter,
    pieces: Vec<Piece>,
}

impl Segments {
    /// The segment that ends before this entry.
    fn begin(&mut self, entry: Shape) -> Option<Vec<Piece>> {
        self.cutter.begin(entry).then(|| std::mem::take(&mut self.pieces))
    }

    /// Takes in the first of `len` bytes: how many, and the segment that ends after them.
    fn add(&mut self, len: u64, piece: impl FnOnce(u64, &mut Vec<Piece>)) -> (u64, Option<Vec<Piece>>) {
        let taken = self.cutter.room(len);
        piece(taken, &mut self.pieces);
        (taken, self.cutter.add(taken).then(|| std::mem::take(&mut self.pieces)))
    }
}

/// Turns entries into a blob; what was drafted serves again where it can.
pub struct Maker<'d> {
    segments: Segments,
    /// Always there, except while it changes.
    target: Option<Target<'d>>,
}

/// Where segments go.
enum Target<'d> {
    Press(Press),
    /// So many segments are those of the draft, one by one: nothing was written yet.
    Same(&'d mut Drafted, usize),
    Changed(&'d mut Drafted, Press),
}

/// What came of it.
pub enum Made {
    /// Another blob than the draft.
    Pressed(Box<Pressed>),
    /// The draft itself.
    Same,
}

impl<'d> Maker<'d> {
    /// Without a draft.
    pub fn new(press: Press) -> Self {
        Self { segments: Segments::default(), target: Some(Target::Press(press)) }
    }

    /// From a draft.
    pub fn from_draft(draft: &'d mut Drafted) -> Self {
        Self { segments: Segments::default(), target: Some(Target::Same(draft, 0)) }
    }

    /// An entry begins; all its bytes follow.
    pub fn begin(&mut self, entry: Shape) -> Result<()> {
        self.segments.begin(entry).map_or(Ok(()), |segment| self.put(segment))
    }

    /// Bytes.
    pub fn bytes(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let target = &mut self.target;
            let (taken, segment) = self.segments.add(bytes.len() as u64, |taken, pieces| {
                // No more than there are.
                append(pieces, target, |into| into.extend(&bytes[..taken as usize]));
            });
            bytes = &bytes[taken as usize..];
            segment.map_or(Ok(()), |segment| self.put(segment))?;
        }
        Ok(())
    }

    /// Up to `len` bytes of `file`, from `at` on, read to where they are needed: how many, or why there are none.
    pub fn read(&mut self, file: &File, at: u64, len: usize) -> Result<io::Result<usize>> {
        // No more than `len`.
        let room = self.segments.cutter.room(len as u64) as usize;
        let mut read = Ok(0);
        append(&mut self.segments.pieces, &mut self.target, |into| {
            read = file.read_at(into.room(room), at);
            into.take(*read.as_ref().unwrap_or(&0));
        });
        let (_, segment) = self.segments.add(*read.as_ref().unwrap_or(&0) as u64, |_, _| {});
        segment.map_or(Ok(()), |segment| self.put(segment))?;
        Ok(read)
    }

    /// Zeros.
    pub fn zeros(&mut self, mut len: u64) -> Result<()> {
        while len > 0 {
            let target = &mut self.target;
            let (taken, segment) = self.segments.add(len, |taken, pieces| match taken {
                SEGMENT => pieces.push(Piece::Zeros),
                // Less than a segment.
                _ => append(pieces, target, |into| into.zeros(taken as usize)),
            });
            len -= taken;
            segment.map_or(Ok(()), |segment| self.put(segment))?;
        }
        Ok(())
    }

    /// Bytes that were drafted.
    pub fn drafted(&mut self, mut at: u64, mut len: u64) -> Result<()> {
        while len > 0 {
            let (taken, segment) = self.segments.add(len, |taken, pieces| match pieces.last_mut() {
                Some(Piece::Drafted(from, len)) if *from + *len == at => *len += taken,
                _ => pieces.push(Piece::Drafted(at, taken)),
            });
            (at, len) = (at + taken, len - taken);
            segment.map_or(Ok(()), |segment| self.put(segment))?;
        }
        Ok(())
    }

    /// No entry follows.
    pub fn finish(mut self) -> Result<Made> {
        let rest = std::mem::take(&mut self.segments.pieces);
        if !rest.is_empty() {
            self.put(rest)?;
        }
        match self.target {
            Some(Target::Press(press) | Target::Changed(_, press)) => press.finish().map(pressed),
            Some(Target::Same(draft, count)) if draft.count() != count => draft.go_on(count)?.finish().map(pressed),
            Some(Target::Same(..)) | None => Ok(Made::Same),
        }
    }

    fn put(&mut self, segment: Vec<Piece>) -> Result<()> {
        let target = match self.target.take() {
            Some(Target::Same(draft, count)) => {
                if let [Piece::Drafted(at, len)] = segment.as_slice()
                    && draft.segment(*at, *len) == Some(count)
                {
                    self.target = Some(Target::Same(draft, count + 1));
                    return Ok(());
                }
                // From here on it is another blob.
                let press = draft.go_on(count)?;
                Some(Target::Changed(draft, press))
            }
            target => target,
        };
        self.target = target;
        match &mut self.target {
            Some(Target::Press(press)) => {
                let plain = plain(segment, press, None)?;
                press.put(Job::Press(plain))
            }
            Some(Target::Changed(draft, press)) => {
                let job = job(segment, press, draft)?;
                press.put(job)
            }
            Some(Target::Same(..)) | None => Ok(()),
        }
    }
}

fn pressed(pressed: Pressed) -> Made {
    Made::Pressed(Box::new(pressed))
}

fn job(segment: Vec<Piece>, press: &mut Press, draft: &mut Drafted) -> Result<Job> {
    if let [Piece::Drafted(at, len)] = segment.as_slice()
        && let Some(kept) = draft.segment(*at, *len)
    {
        let (stored, len) = draft.stored(kept)?;
        return Ok(Job::Kept(stored, len));
    }
    plain(segment, press, Some(draft)).map(Job::Press)
}

/// Fills the piece of bytes at the end, or a new one.
fn append(pieces: &mut Vec<Piece>, target: &mut Option<Target<'_>>, fill: impl FnOnce(&mut Bytes)) {
    match pieces.last_mut() {
        Some(Piece::Bytes(before)) => fill(before),
        _ => {
            let mut first = match target {
                Some(Target::Press(press) | Target::Changed(_, press)) if pieces.is_empty() => press.room(),
                _ => Bytes::default(),
            };
            fill(&mut first);
            pieces.push(Piece::Bytes(first));
        }
    }
}

/// The bytes of a segment.
fn plain(mut pieces: Vec<Piece>, press: &mut Press, mut draft: Option<&mut Drafted>) -> Result<Plain> {
    match pieces.as_mut_slice() {
        [Piece::Bytes(bytes)] => return Ok(Plain::Bytes(std::mem::take(bytes))),
        [Piece::Zeros] => return Ok(Plain::Zeros(SEGMENT as usize)),
        _ => {}
    }
    let mut all = press.room();
    for piece in pieces {
        match (piece, &mut draft) {
            (Piece::Bytes(bytes), _) => all.extend(bytes.as_slice()),
            (Piece::Zeros, _) => all.zeros(SEGMENT as usize),
            (Piece::Drafted(at, len), Some(draft)) => draft.plain(at, len, &mut all)?,
            (Piece::Drafted(..), None) => {}
        }
    }
    Ok(Plain::Bytes(all))
}
