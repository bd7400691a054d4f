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
    check::{Walk, lists, within},
    page::Meta,
    salvage::Reading,
    source::{Kept, Own, PagedFile, ReadAt, Source},
    tree::{Bucket, Db, metas},
    walk::{Pages, Set},
};
use crate::{corrupt::Corrupt, shares};

const TWICE: Corrupt = Corrupt { at: 0, why: "a page hangs in the tree twice" };

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
        let (all, mut records) = {
            let source = Source::Paged { file: &file, kept: &kept, own: None };
            let (walk, records) = lists(Pages::new(source, &meta), meta.root);
            (walk.is_sound().then_some(walk.pages.claimed)?, records)
        };
        // What hangs in two places would be taken for looked at in both when it was in one.
        records.sort_unstable();
        if records.windows(2).any(|pair| pair[0] == pair[1]) {
            return None;
        }
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
        self.walk(look, |pages| {
            let mut walk = Walk::new(pages);
            walk.record(page);
            (walk, Vec::new())
        })?;
        // A page that was read has a number within the file.
        let is_new = usize::try_from(page).is_ok_and(|page| look.seen.records.insert(page));
        if is_new { Ok(()) } else { Err(TWICE) }
    }

    /// What `go` leaves for later of a walk in which nothing is wrong.
    fn walk(
        &self,
        look: &mut Look,
        go: impl for<'w> FnOnce(Pages<'w>) -> (Walk<'w>, Vec<u64>),
    ) -> Result<Vec<u64>, Corrupt> {
        let seen = std::mem::take(&mut look.seen.all);
        let (walk, later) = go(Pages::beside(self.source(Some(&look.pages)), &self.meta, seen));
        let (is_sound, wrong) = (walk.is_sound(), walk.findings.first().copied());
        look.seen.all = walk.pages.claimed;
        if is_sound { Ok(later) } else { Err(wrong.unwrap_or(TWICE)) }
    }

    /// Goes through what begins with these pages, shared among the cores; what is left for later of all of it.
    fn go_through(
        &self,
        roots: &[u64],
        go: impl for<'w> Fn(Pages<'w>, u64) -> (Walk<'w>, Vec<u64>) + Sync,
    ) -> Vec<u64> {
        let parts: Vec<&[u64]> = roots.chunks(roots.len().div_ceil(shares::cores()).max(1)).collect();
        let mut all = Vec::new();
        for (look, later) in shares::of(&parts, |roots| {
            let (mut look, mut all) = (Look::default(), Vec::new());
            for root in roots.iter().take_while(|_| !self.has_failed()) {
                match self.walk(&mut look, |pages| go(pages, *root)) {
                    Ok(later) => all.extend(later),
                    Err(_) => self.give_up(),
                }
                look.pages.as_mut().clear();
            }
            (look, all)
        }) {
            self.done(look);
            all.extend(later);
        }
        all
    }

    /// What was looked at counts for the whole.
    pub fn done(&self, look: Look) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.all.join(&look.seen.all) || !seen.records.join(&look.seen.records) {
            self.give_up();
        }
    }

    /// True if something is wrong already, so that nothing that is shown will count.
    pub fn has_failed(&self) -> bool {
        self.is_broken.load(Relaxed)
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
        let within = self.go_through(&left, within);
        self.go_through(&within, |pages, root| {
            let mut walk = Walk::new(pages);
            walk.within_record(root);
            (walk, Vec::new())
        });
        !self.has_failed() && newest(&self.file.read, self.file.page_size) == Some(self.meta)
    }
}

/// The newest of the file's meta pages, both of which must be valid.
fn newest(read: &ReadAt, page_size: usize) -> Option<Meta> {
    let mut head = vec![0; 2 * page_size];
    let (first, second) = read(0, &mut head).then(|| metas(&head))?;
    if first.is_ok() && second.is_ok() { Meta::newest(first, second) } else { None }
}
