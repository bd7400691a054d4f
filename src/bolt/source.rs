//! Where pages come from: from a whole file in memory, or one by one from a file, when they are asked for.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use elsa::{FrozenBTreeMap, sync::FrozenMap};

use super::page::{Page, index, u32_at};
use crate::corrupt::Corrupt;

/// Fills the bytes from this place of a file on; false if that cannot be done.
pub type ReadAt = Box<dyn Fn(u64, &mut [u8]) -> bool + Send + Sync>;

/// A long page is read in steps of so many bytes.
const STEP: u64 = 1 << 20;

/// Pages that were read, by number, each with those it runs on to.
pub(super) type Kept = FrozenMap<u64, Box<[u8]>>;

/// The same for one thread, and a few.
pub(super) type Own = FrozenBTreeMap<u64, Box<[u8]>>;

/// A file of which pages are read.
pub(super) struct PagedFile {
    pub read: ReadAt,
    pub page_size: usize,
    /// Bytes in it.
    len: u64,
    /// How many bytes may still be read. Pages that say they run on to the file's end would be read for ever.
    left: AtomicU64,
}

impl PagedFile {
    pub fn new(read: ReadAt, page_size: usize, len: u64) -> Self {
        // Each page once, and as much again for what is asked for twice.
        Self { read, page_size, len, left: len.saturating_mul(2).into() }
    }

    /// Adds so many bytes from `at` on. A page may say that it runs on for longer than there is memory, and be a hole: there is
    /// no room made for more than was read.
    fn extend(&self, bytes: &mut Vec<u8>, mut at: u64, wanted: u64) -> Result<(), Corrupt> {
        let place = index(at, 0)?;
        if at.checked_add(wanted).is_none_or(|end| end > self.len) {
            return Err(Corrupt { at: place, why: "the page runs past the file" });
        }
        let has_left = self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(wanted)).is_ok();
        let unable = Corrupt { at: place, why: "cannot be read" };
        let end = at + wanted;
        while has_left && at < end {
            let from = bytes.len();
            let step = (end - at).min(STEP);
            bytes.resize(from + index(step, place)?, 0);
            if !(self.read)(at, &mut bytes[from..]) {
                return Err(unable);
            }
            at += step;
        }
        if has_left { Ok(()) } else { Err(unable) }
    }

    /// Page `id` with those it runs on to.
    fn run(&self, id: u64) -> Result<Box<[u8]>, Corrupt> {
        let beyond = Corrupt { at: 0, why: "page number beyond the file" };
        let at = id.checked_mul(self.page_size as u64).ok_or(beyond)?;
        let page_size = self.page_size as u64;
        let mut bytes = Vec::with_capacity(self.page_size);
        self.extend(&mut bytes, at, page_size)?;
        let more = u64::from(u32_at(&bytes, 12)?) * page_size;
        self.extend(&mut bytes, at + page_size, more)?;
        Ok(bytes.into_boxed_slice())
    }
}

/// Where the pages of a database are.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// In memory, all of them.
    Whole(&'a [u8]),
    /// In a file. What was read of it is in `own` or in `kept`; what is read now, comes to be in `own`, if there is one.
    Paged { file: &'a PagedFile, kept: &'a Kept, own: Option<&'a Own> },
}

impl<'a> Source<'a> {
    /// Page `id`, which must carry its own number.
    pub fn page(self, page_size: usize, id: u64) -> Result<Page<'a>, Corrupt> {
        match self {
            Self::Whole(bytes) => Page::of_file(bytes, page_size, id),
            Self::Paged { file, kept, own } => {
                let bytes = match (own.and_then(|own| own.get(&id)).or_else(|| kept.get(&id)), own) {
                    (Some(bytes), _) => bytes,
                    (None, Some(own)) => own.insert(id, file.run(id)?),
                    (None, None) => kept.insert(id, file.run(id)?),
                };
                Page::of_run(bytes, page_size, id)
            }
        }
    }

    /// The page that starts at byte `at`, whatever number it carries: such are found only by who has the whole file.
    pub fn page_at(self, page_size: usize, at: usize) -> Result<Page<'a>, Corrupt> {
        match self {
            Self::Whole(bytes) => Page::at(bytes, page_size, at),
            Self::Paged { .. } => Err(Corrupt { at, why: "the page is not in its own place" }),
        }
    }
}
