//! Records without a whole tree: what a damaged file's pages still hold, put under the names it had.
//!
//! ```text
//! root ─► v1 ─► k8s.io ─► containers  ✗         the list's page is lost …
//!                                      list     … an older copy of it lies on a free page: names, and the pages
//!                                      web      … of the records, which are whole and hang nowhere
//! ```
//! 1. The tree is walked as far as it is whole; where it is not, a [`Wound`](super::walk::Wound) says which keys are missing.
//! 2. Every other page of the file that is whole is looked at: what it is ([`schema`](super::schema)), where it belongs
//!    (by its content, by the lists that refer to it, by what it shares with another copy), how new it is ([`orphans`]).
//! 3. What fits a wound is put there ([`mend`]), the newest copy first. A page that the tree uses is never taken, nor one
//!    whose content names another place. What a newer copy of a list no longer has was removed, and stays so.
//!
//! The result is a set of page numbers beside the file, by which the reader finds its way.

mod mend;
mod orphans;
mod survey;

use std::collections::{BTreeMap, HashMap};

use super::{
    check,
    page::{Meta, Page, is_page_size, u64_at},
    schema::{Kind, Place},
    source::Source,
    tree::{Db, metas},
};
use crate::corrupt::Corrupt;

/// How sure it is that a bucket stood so in the newest commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The tree leads to it.
    Live,
    /// The tree led to a newer copy of it, which is lost.
    Stale(Reason),
    /// The tree no longer leads to it.
    Salvaged(Reason),
    /// It was removed: the tree is whole, and leads elsewhere.
    Deleted(Reason),
}

/// Why, and on which page it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    /// The page.
    pub page: u64,
    /// What is known of it.
    pub why: &'static str,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "page {}: {}", self.page, self.why)
    }
}

/// How to read a file, whole or not.
pub struct Reading {
    meta: Meta,
    /// What is wrong with the part of the file that the newest commit needs.
    pub damage: Vec<Corrupt>,
    pub(super) origin: Origin,
    pub(super) root: Option<usize>,
    pub(super) mended: Vec<Mended>,
    pub(super) displaced: HashMap<u64, u64>,
}

/// A bucket that is put together anew.
#[derive(Default)]
pub(super) struct Mended {
    /// Where its leaves that are still in the tree start in the file, in order of keys.
    pub pages: Vec<usize>,
    /// What replaces or completes them.
    pub entries: BTreeMap<Box<[u8]>, Entry>,
}

/// An entry of a mended bucket.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub place: Found,
    pub origin: Origin,
}

/// Where an entry is found.
#[derive(Clone, Copy)]
pub(super) enum Found {
    /// The element of this number in the leaf that starts there.
    Element(usize, usize),
    /// A bucket with this root page.
    Page(u64),
    /// A mended bucket.
    Mended(usize),
}

impl Reading {
    /// Looks through `file` and finds how it can be read. An error if no page of it is of such a database.
    pub fn of(file: &[u8], schema: &'static Kind) -> Result<Self, Corrupt> {
        let (first, second) = metas(file);
        let torn = torn_newest(file, &first, &second);
        match Meta::newest(first, second) {
            Some(meta) => Ok(Self::with(file, schema, meta, torn.into_iter().collect(), Origin::Live)),
            None => Self::without_meta(file, schema, [first.err(), second.err()].into_iter().flatten().collect()),
        }
    }

    fn with(file: &[u8], schema: &'static Kind, meta: Meta, mut damage: Vec<Corrupt>, origin: Origin) -> Self {
        let torn = check::damage(file, &meta);
        let is_whole = torn.is_empty();
        damage.extend(torn);
        let plain = Self { damage, origin, ..Self::plain(meta) };
        if is_whole { plain } else { mend::mend(file, schema, plain) }
    }

    /// Neither meta is valid: their fields may still be right; else the root is sought among all pages.
    fn without_meta(file: &[u8], schema: &'static Kind, damage: Vec<Corrupt>) -> Result<Self, Corrupt> {
        let why = damage.first().copied().unwrap_or(Corrupt { at: 0, why: "no meta page" });
        if why.why.contains("big-endian") {
            return Err(why);
        }
        let sizes = || (9..=24).map(|bits| 1_usize << bits);
        let fields = [0].into_iter().chain(sizes()).filter_map(|at| {
            let meta = Meta::fields(file, at).ok()?;
            let is_there = at == 0 || at == meta.page_size;
            (is_there && leads_to_root(file, &meta, schema)).then_some(meta)
        });
        let origin = |why| Origin::Salvaged(Reason { page: 0, why });
        if let Some(meta) = fields.max_by_key(|meta| (check::damage(file, meta).is_empty(), meta.txid)) {
            let origin = origin("both meta pages are damaged; the tree they lead to is read all the same");
            return Ok(Self::with(file, schema, meta, damage, origin));
        }
        let numbered = |size: &usize| (2..file.len() / size).filter(|n| is_own_page(file, *size, *n)).count();
        let size = sizes().filter(|size| file.len() / size > 2).max_by_key(numbered).filter(|size| numbered(size) > 0);
        let Some(page_size) = size.filter(|size| is_page_size(*size)) else { return Err(why) };
        let high_water = (file.len() / page_size) as u64;
        let meta = Meta { page_size, root: 0, freelist: u64::MAX, high_water, txid: 0, checksum: 0 };
        let reading = Self::with(file, schema, meta, damage, origin("both meta pages are lost"));
        // Nothing was found: it is no database of ours.
        if reading.mended.iter().all(|bucket| bucket.entries.is_empty()) { Err(why) } else { Ok(reading) }
    }

    /// How to read a file that is whole.
    pub(super) fn plain(meta: Meta) -> Self {
        let (mended, displaced) = (Vec::new(), HashMap::new());
        Self { meta, damage: Vec::new(), origin: Origin::Live, root: None, mended, displaced }
    }

    /// A database read so.
    pub fn db<'a>(&'a self, file: &'a [u8]) -> Db<'a> {
        Db::read_by(Source::Whole(file), self.meta, self)
    }
}

fn is_own_page(file: &[u8], size: usize, n: usize) -> bool {
    u64_at(file, n * size).is_ok_and(|id| id == n as u64) && Page::at(file, size, n * size).is_ok()
}

fn leads_to_root(file: &[u8], meta: &Meta, schema: &'static Kind) -> bool {
    let root = Page::of_file(file, meta.page_size, meta.root);
    meta.root > 1
        && root.is_ok_and(|page| page.defect().is_none() && orphans::has_fields(&orphans::elements(&page), schema))
}

/// If one meta is no longer valid and may have been the newest: its commit is lost, and the one before is read.
fn torn_newest(file: &[u8], first: &Result<Meta, Corrupt>, second: &Result<Meta, Corrupt>) -> Option<Corrupt> {
    let (good, at, bad) = match (first, second) {
        (Ok(good), Err(bad)) => (good, good.page_size, bad),
        (Err(bad), Ok(good)) => (good, 0, bad),
        _ => return None,
    };
    let is_older = Meta::fields(file, at).is_ok_and(|meta| meta.txid.checked_add(1) == Some(good.txid));
    (!is_older).then_some(*bad)
}

/// Where removed records of `kind` still lie in a file that is read so: each with its place, the newest copy first.
pub fn removed<'a>(
    file: &'a [u8],
    schema: &'static Kind,
    kind: &'static Kind,
    reading: &'a Reading,
) -> Vec<(Place, u64)> {
    mend::removed(file, schema, kind, reading)
}
