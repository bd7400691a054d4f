//! A database that is read piece by piece: its lists once, and each record when it is its turn.
//!
//! ```text
//! root ─► v1 ─► <namespace> ─► <list> ─┬► record     lists     read first, looked through, and kept
//!                                      ├► record     a record  read, looked through, shown, and forgotten
//!                                      └► record
//! ```
//! What is shown is in the file, but the file as a whole is known to be sound only at the end
//! ([`is_sound`](Piecemeal::is_sound)): then each page of the newest commit was looked at, as by
//! [`Reading::of`](super::Reading::of), and the commit is still the newest. If it is not, all that was shown is worth
//! nothing, and the file is to be read as a whole.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use super::{
    check::{Walk, lists},
    page::Meta,
    salvage::Reading,
    source::{Kept, Own, PagedFile, ReadAt, Source},
    tree::{Bucket, Db, metas},
    walk::{Pages, Set},
};
use crate::{corrupt::Corrupt, shares};

/// A database that is read piece by piece.
pub struct Piecemeal {
    file: PagedFile,
    meta: Meta,
    reading: Reading,
    /// The pages of lists, and those of records that were asked for by name.
    kept: Kept,
    /// The pages that records begin with.
    records: Vec<u64>,
    /// What was looked at.
    seen: Mutex<Seen>,
    /// Something is wrong.
    is_broken: AtomicBool,
}

/// Room for one record after another.
#[derive(Default)]
pub struct Look {
    pages: Own,
    seen: Seen,
}

/// Pages that were looked at.
#[derive(Default, Clone)]
struct Seen {
    all: Set,
    /// Those among them that records begin with.
    records: Set,
}

impl Piecemeal {
    /// Reads the lists of a file of `len` bytes. None if it is not plain to read: a meta page is not valid, something is wrong
    /// with a list, or bytes are not to be had.
    pub fn open(read: ReadAt, len: u64) -> Option<Self> {
        let mut head = vec![0; 4096];
        let meta = read(0, &mut head).then(|| Meta::read(&head, 0).ok()).flatten()?;
        let meta = newest(&read, meta.page_size)?;
        let file = PagedFile::new(read, meta.page_size, len);
        let kept = Kept::default();
        let (all, records) = {
            let source = Source::Paged { file: &file, kept: &kept, own: None };
            let (walk, records) = lists(Pages::new(source, &meta), meta.root);
            (walk.is_sound().then_some(walk.pages.claimed)?, records)
        };
        let (seen, reading) = (Mutex::new(Seen { all, records: Set::default() }), Reading::plain(meta));
        Some(Self { file, meta, reading, kept, records, seen, is_broken: AtomicBool::new(false) })
    }

    fn source<'a>(&'a self, own: Option<&'a Own>) -> Source<'a> {
        Source::Paged { file: &self.file, kept: &self.kept, own }
    }

    /// The database; what is asked for in it stays in memory.
    pub fn db(&self) -> Db<'_> {
        Db::read_by(self.source(None), self.meta, &self.reading)
    }

    /// Shows the record in a bucket of [`db`](Self::db) once it was looked through, and forgets it.
    pub fn record<T>(
        &self,
        bucket: &Bucket<'_>,
        look: &mut Look,
        show: impl FnOnce(&Bucket<'_>) -> Result<T, Corrupt>,
    ) -> Result<T, Corrupt> {
        // A bucket without a page of its own was looked through with the list it stands in.
        let shown = match bucket.page() {
            None => show(bucket),
            Some(page) => self.look_at(page, look).and_then(|()| {
                let db = Db::read_by(self.source(Some(&look.pages)), self.meta, &self.reading);
                show(&db.page_as_bucket(page))
            }),
        };
        look.pages.as_mut().clear();
        shown.inspect_err(|_| self.give_up())
    }

    fn look_at(&self, page: u64, look: &mut Look) -> Result<(), Corrupt> {
        let seen = std::mem::take(&mut look.seen.all);
        let mut walk = Walk::new(Pages::beside(self.source(Some(&look.pages)), &self.meta, seen));
        walk.record(page);
        let (is_sound, wrong) = (walk.is_sound(), walk.findings.first().copied());
        look.seen.all = walk.pages.claimed;
        let twice = Corrupt { at: 0, why: "a page hangs in the tree twice" };
        if !is_sound {
            return Err(wrong.unwrap_or(twice));
        }
        // A page that was read has a number within the file.
        let is_new = usize::try_from(page).is_ok_and(|page| look.seen.records.insert(page));
        if is_new { Ok(()) } else { Err(twice) }
    }

    /// What was looked at counts for the whole.
    pub fn done(&self, look: Look) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.all.join(&look.seen.all) || !seen.records.join(&look.seen.records) {
            self.give_up();
        }
    }

    /// Something else about it is wrong: it is to be read as a whole.
    pub fn give_up(&self) {
        self.is_broken.store(true, Relaxed);
    }

    /// True if every page was looked at, those of records that were not shown now, nothing is wrong with any, and the commit
    /// that was read is the newest still: then no page of it was written to (bbolt `tx.go`, `Commit`).
    pub fn is_sound(&self) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).records.clone();
        let is_new = |page: &u64| usize::try_from(*page).is_ok_and(|page| !seen.has(page));
        let left: Vec<u64> = self.records.iter().copied().filter(is_new).collect();
        let parts: Vec<&[u64]> = left.chunks(left.len().div_ceil(shares::cores()).max(1)).collect();
        for look in shares::of(&parts, |pages| {
            let mut look = Look::default();
            for page in *pages {
                if self.look_at(*page, &mut look).is_err() {
                    self.give_up();
                    break;
                }
                look.pages.as_mut().clear();
            }
            look
        }) {
            self.done(look);
        }
        !self.is_broken.load(Relaxed) && newest(&self.file.read, self.file.page_size) == Some(self.meta)
    }
}

/// The newest of the file's meta pages, both of which must be valid.
fn newest(read: &ReadAt, page_size: usize) -> Option<Meta> {
    let mut head = vec![0; 2 * page_size];
    let (first, second) = read(0, &mut head).then(|| metas(&head))?;
    if first.is_ok() && second.is_ok() { Meta::newest(first, second) } else { None }
}
