//! Everything that is wrong with a file's structure: all findings, not the first.
//!
//! ```text
//! meta 0, meta 1      magic, version, checksum, page size
//! every bucket        page numbers, flags, elements, order of keys, separators, pages that hang in two places
//! the whole file      its length against the high-water mark; the page of free pages against those in use
//! ```
//! Facts: bbolt `db.go`, `tx_check.go`, `internal/freelist`.

use super::{
    page::{FREELIST, HEADER, Meta, Page, u16_at, u32_at, u64_at},
    source::Source,
    tree::metas,
    walk::{MAX_NEST, Pages, Set},
};
use crate::{corrupt::Corrupt, shares};

/// More findings than this say nothing new, and a hostile file could have one for each of its bytes.
const MAX_FINDINGS: usize = 10_000;

/// All that is wrong with the structure of a bolt file; empty if nothing is. Offsets are in bytes of the file.
pub fn check(file: &[u8]) -> Vec<Corrupt> {
    let (first, second) = metas(file);
    let mut findings: Vec<Corrupt> = [&first, &second].into_iter().filter_map(|meta| meta.err()).collect();
    let Some(meta) = Meta::newest(first, second) else { return findings };
    let mut walk = Walk::new(Pages::new(Source::Whole(file), &meta));
    walk.bucket(meta.root, 0);
    findings.append(&mut walk.findings);
    findings.extend(length(file, &meta));
    findings.extend(free_pages(file, &meta, &walk.pages.claimed));
    findings.truncate(MAX_FINDINGS);
    findings
}

/// What keeps the tree of the newest commit from being read whole: the first findings only, since one is enough.
pub(super) fn damage(file: &[u8], meta: &Meta) -> Vec<Corrupt> {
    let pages = || Pages::new(Source::Whole(file), meta);
    if is_whole(pages, meta.root) {
        return Vec::new();
    }
    let mut walk = Walk::new(pages());
    walk.bucket(meta.root, 0);
    walk.findings
}

/// From this nest on buckets are many, and each is small: containerd's records (`v1/<namespace>/<kind>/<record>`).
const MANY: usize = 4;

/// The same walk shared among the cores, for a file without any finding; false means that it must be done in order.
fn is_whole<'a>(pages: impl Fn() -> Pages<'a> + Sync, root: u64) -> bool {
    let (walk, later) = lists(pages(), root);
    let parts: Vec<&[u64]> = later.chunks(later.len().div_ceil(shares::cores()).max(1)).collect();
    let shares = shares::of(&parts, |roots| {
        let mut walk = Walk::new(pages());
        roots.iter().for_each(|root| walk.record(*root));
        walk.is_sound().then_some(walk.pages.claimed)
    });
    let mut claimed = walk.pages.claimed.clone();
    walk.is_sound() && shares.into_iter().all(|share| share.is_some_and(|share| claimed.join(&share)))
}

/// A walk through all but the records, and the pages that these begin with.
pub(super) fn lists(pages: Pages<'_>, root: u64) -> (Walk<'_>, Vec<u64>) {
    down_to(pages, root, 0, MANY)
}

/// A walk through a record but for the buckets in it, and the pages that these begin with: what stands where records do may be
/// a list itself, of a snapshotter's snapshots or of all content.
pub(super) fn within(pages: Pages<'_>, root: u64) -> (Walk<'_>, Vec<u64>) {
    down_to(pages, root, MANY, MANY + 1)
}

fn down_to(pages: Pages<'_>, root: u64, from: usize, nest: usize) -> (Walk<'_>, Vec<u64>) {
    let mut walk = Walk { later: Some((nest, Vec::new())), ..Walk::new(pages) };
    walk.bucket(root, from);
    let later = walk.later.take().map(|(_, roots)| roots).unwrap_or_default();
    (walk, later)
}

/// A look at every element of what it is led through.
pub(super) struct Walk<'a> {
    pub pages: Pages<'a>,
    pub findings: Vec<Corrupt>,
    /// If there is one: a nest, and the buckets in it, to be looked at by another walk.
    later: Option<(usize, Vec<u64>)>,
}

impl<'a> Walk<'a> {
    pub fn new(pages: Pages<'a>) -> Self {
        Self { pages, findings: Vec::new(), later: None }
    }

    /// Goes through the record whose bucket begins with page `root`.
    pub fn record(&mut self, root: u64) {
        self.bucket(root, MANY);
    }

    /// Goes through the bucket within a record that begins with page `root`.
    pub fn within_record(&mut self, root: u64) {
        self.bucket(root, MANY + 1);
    }

    /// True if nothing is wrong with what it went through.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty() && self.pages.contested.is_empty()
    }

    fn say(&mut self, finding: Corrupt) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }

    fn bucket(&mut self, root: u64, nest: usize) {
        if nest > MAX_NEST {
            return self.say(Corrupt { at: 0, why: "buckets are nested too deeply" });
        }
        if let Some((_, later)) = self.later.as_mut().filter(|(later, _)| nest == *later) {
            return later.push(root);
        }
        let leaves = self.pages.leaves(root);
        leaves.wounds.iter().for_each(|wound| self.say(wound.why));
        for page in leaves.pages {
            let whole = leaves.wounds.is_empty() || page.defect().is_none();
            (0..page.count).filter(|i| whole || page.is_sound(*i)).for_each(|i| self.element(&page, i, nest));
        }
    }

    fn element(&mut self, page: &Page<'a>, i: usize, nest: usize) {
        let Ok(leaf) = page.leaf(i) else { return };
        if !leaf.is_bucket {
            return;
        }
        match u64_at(leaf.value, 0) {
            Ok(0) => self.inline(leaf.value, leaf.at, nest + 1),
            Ok(root) if leaf.value.len() == HEADER => self.bucket(root, nest + 1),
            _ => self.say(Corrupt { at: leaf.at, why: "a bucket's header has a wrong length" }),
        }
    }

    fn inline(&mut self, value: &'a [u8], at: usize, nest: usize) {
        if nest > MAX_NEST {
            return self.say(Corrupt { at, why: "buckets are nested too deeply" });
        }
        let page = Page::inline(value.get(HEADER..).unwrap_or_default(), at + HEADER);
        match page.and_then(|page| page.defect().map_or(Ok(page), Err)) {
            Ok(page) => (0..page.count).for_each(|i| self.element(&page, i, nest)),
            Err(e) => self.say(e),
        }
    }
}

fn length(file: &[u8], meta: &Meta) -> Option<Corrupt> {
    let needed = meta.high_water.saturating_mul(meta.page_size as u64);
    let short = Corrupt { at: file.len(), why: "the file ends before the last page that was ever used" };
    ((file.len() as u64) < needed).then_some(short)
}

/// Without a list of free pages (`NoFreelistSync`, containerd 1.7 and later for meta.db) there is nothing to compare.
fn free_pages(file: &[u8], meta: &Meta, used: &Set) -> Vec<Corrupt> {
    if meta.freelist == u64::MAX {
        return Vec::new();
    }
    let place = usize::try_from(meta.freelist).ok().and_then(|id| id.checked_mul(meta.page_size)).unwrap_or(usize::MAX);
    let (free, span) = match freelist(file, meta, place) {
        Ok(list) => list,
        Err(e) => return vec![e],
    };
    let mut findings = Vec::new();
    let last = usize::try_from(meta.high_water).unwrap_or(usize::MAX).min(file.len() / meta.page_size);
    let mut listed = Set::default();
    for id in free {
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        let at = index.saturating_mul(meta.page_size);
        if index < 2 || id >= meta.high_water {
            findings.push(Corrupt { at: place, why: "a free page is outside the file's pages" });
        } else if used.has(index) {
            findings.push(Corrupt { at, why: "a page is in use and listed as free" });
        } else if !listed.insert(index) {
            findings.push(Corrupt { at, why: "a page is listed as free twice" });
        }
        if findings.len() >= MAX_FINDINGS {
            return findings;
        }
    }
    let lost = (2..last).filter(|id| !used.has(*id) && !listed.has(*id) && !span.contains(id));
    findings.extend(
        lost.take(MAX_FINDINGS)
            .map(|id| Corrupt { at: id * meta.page_size, why: "a page is neither in use nor listed as free" }),
    );
    findings
}

/// The ids of free pages, and the pages that the list itself takes.
fn freelist(file: &[u8], meta: &Meta, at: usize) -> Result<(Vec<u64>, std::ops::Range<usize>), Corrupt> {
    let bad = |why| Corrupt { at, why };
    if u64_at(file, at) != Ok(meta.freelist) || u16_at(file, at + 8) != Ok(FREELIST) {
        return Err(bad("the page of free pages is none"));
    }
    let (count, overflow) = (u16_at(file, at + 10)?, u32_at(file, at + 12)?);
    let pages = usize::try_from(overflow).ok().and_then(|n| n.checked_add(1)).ok_or(bad("ends too soon"))?;
    let end = pages.checked_mul(meta.page_size).and_then(|len| at.checked_add(len));
    let bytes =
        end.and_then(|end| file.get(at + HEADER..end)).ok_or(bad("the page of free pages runs past the file"))?;
    // More than a u16 can count: then the first entry is the number of those that follow (freelist `Read`).
    let (skip, count) = match count {
        u16::MAX => (1, usize::try_from(u64_at(bytes, 0)?).unwrap_or(usize::MAX)),
        count => (0, usize::from(count)),
    };
    let ids = bytes.get(skip * 8..).and_then(|rest| rest.get(..count.checked_mul(8)?));
    let ids = ids.ok_or(bad("the list of free pages is longer than its page"))?;
    let first = at / meta.page_size;
    Ok((ids.chunks_exact(8).filter_map(|id| u64_at(id, 0).ok()).collect(), first..first + pages))
}
