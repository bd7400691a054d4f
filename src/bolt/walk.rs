//! Walking a tree that may be damaged: which pages it has, and where it is broken.
//!
//! ```text
//! bucket root ─► branch ─► leaf  leaf  ✗  leaf      leaves: those that can be read, in key order
//!                 a          a    f   m..t  t       wounds: what of the key range cannot, and why
//! ```
//! A page belongs to the first place that claims it, with the pages it runs on to. So a walk of the whole file takes
//! each page once, whatever the file says.

use super::{
    page::{LEAF, Meta, Page},
    source::Source,
};
use crate::corrupt::Corrupt;

/// A page holds at least two keys, so 64 levels would address 2^64 pages; deeper is a loop or an attack.
pub(super) const MAX_DEPTH: usize = 64;
/// containerd nests eight buckets; a nest so deep is an attack on the stack.
pub(super) const MAX_NEST: usize = 24;

/// A set of page numbers.
#[derive(Default, Clone)]
pub(super) struct Set(Vec<u64>);

impl Set {
    /// Adds `id`; false if it was there.
    pub fn insert(&mut self, id: usize) -> bool {
        if self.0.len() <= id / 64 {
            self.0.resize(id / 64 + 1, 0);
        }
        let (word, bit) = (&mut self.0[id / 64], 1 << (id % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Adds all of `other`; false if one of them was there. The two meta pages, which each walk claims, may be.
    pub fn join(&mut self, other: &Self) -> bool {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        let mut are_new = true;
        for (n, (own, word)) in self.0.iter_mut().zip(&other.0).enumerate() {
            let metas = if n == 0 { 0b11 } else { 0 };
            are_new &= *own & *word & !metas == 0;
            *own |= word;
        }
        are_new
    }

    pub fn has(&self, id: usize) -> bool {
        self.0.get(id / 64).is_some_and(|word| word & (1 << (id % 64)) != 0)
    }
}

/// A part of a bucket's keys that cannot be read: from `low` up to, not including, `high`.
#[derive(Debug, Clone)]
pub(super) struct Wound<'a> {
    pub low: Option<&'a [u8]>,
    pub high: Option<&'a [u8]>,
    pub why: Corrupt,
}

impl Wound<'_> {
    /// True if `key` may have stood there.
    pub fn may_hold(&self, key: &[u8]) -> bool {
        self.low.is_none_or(|low| low <= key) && self.high.is_none_or(|high| key < high)
    }
}

/// The pages of one bucket.
#[derive(Default)]
pub(super) struct Leaves<'a> {
    pub pages: Vec<Page<'a>>,
    pub wounds: Vec<Wound<'a>>,
}

/// The pages of a file, and who has claimed them.
pub(super) struct Pages<'a> {
    file: Source<'a>,
    pub page_size: usize,
    /// First page that was never allocated.
    pub high_water: u64,
    /// Pages that are part of the tree, those they run on to included.
    pub claimed: Set,
    /// Pages that two places of the tree refer to.
    pub contested: Vec<u64>,
    /// Pages that lie where another should (number → index).
    pub displaced: std::collections::HashMap<u64, u64>,
}

impl<'a> Pages<'a> {
    pub fn new(file: Source<'a>, meta: &Meta) -> Self {
        Self::beside(file, meta, Set::default())
    }

    /// The same where some pages are claimed already.
    pub fn beside(file: Source<'a>, meta: &Meta, mut claimed: Set) -> Self {
        for meta in 0..2 {
            claimed.insert(meta);
        }
        let (page_size, high_water) = (meta.page_size, meta.high_water);
        Self { file, page_size, high_water, claimed, contested: Vec::new(), displaced: Default::default() }
    }

    /// Page `id`, claimed by nobody or not.
    pub fn page(&self, id: u64) -> Result<Page<'a>, Corrupt> {
        if id < 2 || id >= self.high_water {
            return Err(Corrupt { at: 0, why: "a page number is outside the tree's pages" });
        }
        match self.displaced.get(&id).and_then(|index| usize::try_from(*index).ok()) {
            Some(index) => self.file.page_at(self.page_size, index.saturating_mul(self.page_size)),
            None => self.file.page(self.page_size, id),
        }
    }

    /// The indexes in the file of the pages that `page` takes.
    pub fn span(&self, page: &Page<'_>) -> std::ops::Range<usize> {
        let first = page.at / self.page_size;
        first..first + page.len() / self.page_size
    }

    fn claim(&mut self, id: u64) -> Result<Page<'a>, Corrupt> {
        let page = self.page(id)?;
        let span = self.span(&page);
        if span.clone().any(|index| self.claimed.has(index)) {
            self.contested.push(id);
            return Err(Corrupt { at: page.at, why: "a page hangs in the tree twice" });
        }
        for index in span {
            self.claimed.insert(index);
        }
        Ok(page)
    }

    /// The leaves of the bucket whose root page is `root`; all its pages are claimed.
    pub fn leaves(&mut self, root: u64) -> Leaves<'a> {
        let mut found = Leaves::default();
        self.descend(root, None, None, 0, &mut found);
        found
    }

    fn descend(
        &mut self,
        id: u64,
        low: Option<&'a [u8]>,
        high: Option<&'a [u8]>,
        depth: usize,
        found: &mut Leaves<'a>,
    ) {
        let deep = Corrupt { at: 0, why: "the tree is too deep" };
        let claimed = if depth < MAX_DEPTH { self.claim(id) } else { Err(deep) };
        let page = match claimed.and_then(|page| self.fits(page, low, high).map(|()| page)) {
            Ok(page) => page,
            Err(why) => return found.wounds.push(Wound { low, high, why }),
        };
        let defect = page.defect();
        if page.flags == LEAF {
            found.wounds.extend(defect.iter().flat_map(|why| gaps(&page, low, high, *why)));
            return found.pages.push(page);
        }
        let sound: Vec<usize> = (0..page.count).filter(|i| defect.is_none() || page.is_sound(*i)).collect();
        found.wounds.extend(defect.iter().flat_map(|why| gaps(&page, low, high, *why)));
        for (n, i) in sound.iter().enumerate() {
            let Ok((key, child)) = page.branch(*i) else { continue };
            let from = if *i == 0 { low } else { Some(key) };
            let to = sound.get(n + 1).map_or(high, |next| page.key(*next));
            self.descend(child, from, to, depth + 1, found);
        }
    }

    /// A page whose keys lie elsewhere is not the one that should be here.
    fn fits(&self, page: Page<'a>, low: Option<&[u8]>, high: Option<&[u8]>) -> Result<(), Corrupt> {
        let sound = |i: &usize| page.key(*i).filter(|key| !key.is_empty());
        let (first, last) = (sound(&0), page.count.checked_sub(1).and_then(|i| sound(&i)));
        let below = low.zip(first).is_some_and(|(low, first)| first < low);
        let above = high.zip(last).is_some_and(|(high, last)| last >= high);
        if (below || above) && page.defect().is_none() {
            return Err(Corrupt { at: page.at, why: "a page's keys lie outside the range of its branch" });
        }
        Ok(())
    }
}

/// The key ranges of a page's elements that cannot be believed.
fn gaps<'a>(page: &Page<'a>, low: Option<&'a [u8]>, high: Option<&'a [u8]>, why: Corrupt) -> Vec<Wound<'a>> {
    let mut wounds = Vec::new();
    let (mut from, mut is_open) = (low, false);
    for i in 0..page.count {
        match page.key(i).filter(|_| page.is_sound(i)) {
            Some(key) => {
                if is_open {
                    wounds.push(Wound { low: from, high: Some(key), why });
                }
                (from, is_open) = (Some(key), false);
            }
            None => is_open = true,
        }
    }
    // What stood behind the last element is unknown too, if the number of elements is in doubt.
    if is_open || wounds.is_empty() || !page.is_sound(0) {
        wounds.push(Wound { low: from, high, why });
    }
    wounds
}
