//! Putting what is found where something is missing.

use std::collections::BTreeMap;

use super::{
    Entry, Found, Mended, Origin, Reading, Reason,
    orphans::{Orphans, Worth, root_of},
    survey::Survey,
};
use crate::bolt::{
    Bucket,
    page::{Page, u64_at},
    schema::{IsNamed, Kind, Place},
    source::Source,
    walk::{MAX_NEST, Pages, Wound},
};

const LOST_LIST: &str = "the list that had it is lost; its name stands in an older copy of the list";
const OWN_NAME: &str = "no list that had it is left; its name is from what it holds itself";
const OLDER_COPY: &str = "its newest page is lost; this is an older copy";
const IN_PART: &str = "a part of its page is damaged; what could be read is there";
const LOST_PARENT: &str = "what led to it is lost; it was found by what it holds";

/// Completes `reading` with what the file's other pages hold.
pub(super) fn mend(file: &[u8], schema: &'static Kind, mut reading: Reading) -> Reading {
    reading.displaced = displaced(file, &reading);
    let mut pages = Pages::new(Source::Whole(file), &reading.meta);
    pages.displaced.clone_from(&reading.displaced);
    let survey = Survey::of(pages, reading.meta.root, schema);
    let outer = reading;
    let db = outer.db(file);
    let orphans = Orphans::find(file, &db, schema, &survey, outer.meta.page_size);
    let mut pages = Pages::new(Source::Whole(file), &outer.meta);
    pages.displaced.clone_from(&outer.displaced);
    let mut mender = Mender { pages, survey: &survey, orphans, mended: Vec::new(), schema };
    let root = mender.live(outer.meta.root, Some(schema), &mut Vec::new());
    let mended = mender.mended;
    drop(db);
    Reading { root, mended, ..outer }
}

/// Records that the tree does not have.
pub(super) fn removed(file: &[u8], schema: &'static Kind, kind: &'static Kind, reading: &Reading) -> Vec<(Place, u64)> {
    let mut pages = Pages::new(Source::Whole(file), &reading.meta);
    pages.displaced.clone_from(&reading.displaced);
    let survey = Survey::of(pages, reading.meta.root, schema);
    let db = reading.db(file);
    let mut orphans = Orphans::find(file, &db, schema, &survey, reading.meta.page_size);
    let everywhere = orphans.everywhere(kind);
    let named = |orphans: &mut Orphans<'_>, place: &Place, page: u64| {
        place.last().is_some_and(|key| orphans.may_be(page, Some(kind), key))
    };
    everywhere.into_iter().filter(|(place, page)| named(&mut orphans, place, *page)).collect()
}

/// Pages of one size that lie where another page should, which is nowhere else (number → index).
fn displaced(file: &[u8], reading: &Reading) -> std::collections::HashMap<u64, u64> {
    let size = reading.meta.page_size;
    let number_at = |index: usize| u64_at(file, index * size).unwrap_or_default();
    let mut found = std::collections::HashMap::new();
    let mut twice = Vec::new();
    for index in 2..file.len() / size {
        let id = number_at(index);
        if id == index as u64 || id < 2 || id >= reading.meta.high_water || id > (file.len() / size) as u64 {
            continue;
        }
        let home = usize::try_from(id).unwrap_or(usize::MAX);
        let is_home_taken = number_at(home) == id;
        let page = Page::at(file, size, index * size);
        let is_whole = page.is_ok_and(|page| page.len() == size && page.defect().is_none() && page.count > 0);
        if !is_home_taken && is_whole && found.insert(id, index as u64).is_some() {
            twice.push(id);
        }
    }
    for id in twice {
        found.remove(&id);
    }
    found
}

struct Mender<'a> {
    pages: Pages<'a>,
    survey: &'a Survey<'a>,
    orphans: Orphans<'a>,
    mended: Vec<Mended>,
    schema: &'static Kind,
}

type Entries = BTreeMap<Box<[u8]>, Entry>;

/// What a bucket of the tree still has, and what it misses.
struct Gap<'a, 'w> {
    wounds: &'w [Wound<'a>],
    pages: &'w [Page<'a>],
}

impl Gap<'_, '_> {
    /// True if `key` may be one of those that are lost.
    fn misses(&self, key: &[u8]) -> bool {
        let behind = self.wounds.partition_point(|wound| wound.low.is_none_or(|low| low <= key));
        let may = self.wounds[..behind].iter().rev().take(2).any(|wound| wound.may_hold(key));
        may && !self.has(key)
    }

    fn has(&self, key: &[u8]) -> bool {
        let at = self.pages.partition_point(|page| first_key(page).is_some_and(|first| first <= key));
        let pages = self.pages[..at].iter().rev().take(2);
        pages.into_iter().any(|page| sound(page).any(|i| page.key(i) == Some(key)))
    }
}

fn first_key<'a>(page: &Page<'a>) -> Option<&'a [u8]> {
    sound(page).next().and_then(|i| page.key(i))
}

/// The elements of a page that can be believed.
fn sound<'p>(page: &'p Page<'_>) -> impl Iterator<Item = usize> + 'p {
    let is_whole = page.defect().is_none();
    (0..page.count).filter(move |i| is_whole || page.is_sound(*i))
}

/// Wounds in order of keys, those that overlap made one.
fn merged<'a>(mut wounds: Vec<Wound<'a>>) -> Vec<Wound<'a>> {
    wounds.sort_by(|a, b| a.low.cmp(&b.low));
    let mut merged: Vec<Wound<'a>> = Vec::new();
    for wound in wounds {
        match merged.last_mut() {
            Some(last) if last.high.is_none() => {}
            Some(last) if wound.low.is_none() || last.high > wound.low => {
                last.high = if wound.high.is_none() { None } else { last.high.max(wound.high) };
            }
            _ => merged.push(wound),
        }
    }
    merged
}

impl<'a> Mender<'a> {
    /// Mends the bucket of the tree whose root is page `root`; `None` if it is whole.
    fn live(&mut self, root: u64, kind: Option<&'static Kind>, place: &mut Place) -> Option<usize> {
        if place.len() > MAX_NEST {
            return None;
        }
        let leaves = self.pages.leaves(root);
        let wounds = merged(leaves.wounds);
        let mut entries = Entries::new();
        for page in &leaves.pages {
            for i in sound(page) {
                let Ok(leaf) = page.leaf(i) else { continue };
                let Some(child) = root_of(&leaf) else { continue };
                let below = kind.and_then(|kind| kind.below(leaf.key));
                place.push(leaf.key.to_vec());
                if let Some(entry) = self.live_child(child, below, place) {
                    entries.insert(leaf.key.into(), entry);
                }
                place.pop();
            }
        }
        if wounds.is_empty() && entries.is_empty() {
            return None;
        }
        // The fields of a record are of one moment: those of another copy are not mixed in.
        if let Some(kind) = kind.filter(|kind| !wounds.is_empty() && !kind.is_record) {
            self.complete(kind, place, &Gap { wounds: &wounds, pages: &leaves.pages }, &mut entries);
        }
        // A bucket of which nothing is left is an error to its reader, which says where.
        if leaves.pages.is_empty() && entries.is_empty() {
            return None;
        }
        let pages = leaves.pages.iter().map(|page| page.at).collect();
        Some(self.keep(Mended { pages, entries }))
    }

    fn keep(&mut self, bucket: Mended) -> usize {
        self.mended.push(bucket);
        self.mended.len() - 1
    }

    /// A bucket below one of the tree: `None` if it can be read as it stands.
    fn live_child(&mut self, root: u64, kind: Option<&'static Kind>, place: &mut Place) -> Option<Entry> {
        let is_anothers = kind.is_some_and(|kind| {
            let key = place.last().map(Vec::as_slice).unwrap_or_default();
            let names = |is_named: IsNamed| is_named(key, &Bucket::at_page(self.orphans.db, root));
            self.survey.contested.contains(&root) && kind.is_named.and_then(names) == Some(false)
        });
        let is_lost = is_anothers || self.pages.page(root).is_err();
        if let Some(kind) = kind.filter(|kind| is_lost && kind.is_record) {
            return self.older(kind, place);
        }
        let index = self.live(root, kind, place)?;
        let found = Found::Mended(index);
        let Some(kind) = kind.filter(|kind| kind.is_record) else {
            return Some(Entry { place: found, origin: Origin::Live });
        };
        // The newest copy, if all that makes such a record is still in it; else one that is whole, if there is any.
        let in_part = Entry { place: found, origin: Origin::Salvaged(Reason { page: root, why: IN_PART }) };
        let older = if self.has_required(index, kind) { None } else { self.older(kind, place) };
        Some(older.unwrap_or(in_part))
    }

    fn has_required(&self, index: usize, kind: &'static Kind) -> bool {
        let Some(Mended { pages, entries }) = self.mended.get(index) else { return false };
        let pages: Vec<_> = pages.iter().filter_map(|at| self.orphans.db.page_at(*at).ok()).collect();
        let has = |key: &[u8]| pages.iter().any(|page| sound(page).any(|i| page.key(i) == Some(key)));
        kind.required.iter().all(|key| entries.contains_key(key.as_bytes()) || has(key.as_bytes()))
    }

    /// The newest copy of a record whose page is lost.
    fn older(&mut self, kind: &'static Kind, place: &Place) -> Option<Entry> {
        let is_named = place.iter().all(|key| !key.is_empty());
        let copies = self.orphans.copies(kind, place, is_named && self.is_only(kind));
        let key = place.last()?;
        let page = copies.into_iter().find(|page| self.orphans.may_be(*page, Some(kind), key))?;
        self.found(page, kind, place, Origin::Stale(Reason { page, why: OLDER_COPY }))
    }

    /// True if there can be only one bucket of this kind.
    fn is_only(&self, kind: &'static Kind) -> bool {
        let has_way = |(known, way): &(&Kind, Option<Place>)| std::ptr::eq(*known, kind) && way.is_some();
        self.schema.all().iter().any(has_way) || self.survey.is_only(kind)
    }

    /// A page of an orphan as an entry: itself if all below it is whole, else mended.
    fn found(&mut self, page: u64, kind: &'static Kind, place: &Place, origin: Origin) -> Option<Entry> {
        if self.orphans.worth(page, Some(kind), 0)?.is_whole {
            return Some(Entry { place: Found::Page(page), origin });
        }
        let mut entries = Entries::new();
        let leaves = self.orphans.leaves(page, usize::MAX);
        self.take(&leaves, kind, place, &|_| true, &mut entries);
        let index = self.keep(Mended { pages: Vec::new(), entries });
        Some(Entry { place: Found::Mended(index), origin })
    }

    /// Adds to `entries` what the bucket at `place` misses.
    fn complete(&mut self, kind: &'static Kind, place: &Place, gap: &Gap<'a, '_>, entries: &mut Entries) {
        if place.len() > MAX_NEST {
            return;
        }
        let copies = self.orphans.copies(kind, place, self.is_only(kind));
        self.take(&copies, kind, place, &|key| gap.misses(key), entries);
    }

    /// Takes the entries of `copies`, the newest first, and the records that no list has.
    fn take(
        &mut self,
        copies: &[u64],
        kind: &'static Kind,
        place: &Place,
        misses: &dyn Fn(&[u8]) -> bool,
        entries: &mut Entries,
    ) {
        let mut newer: Vec<(&'a [u8], &'a [u8], Worth)> = Vec::new();
        for id in copies {
            let Some(page) = self.orphans.page(*id) else { continue };
            let at = self.orphans.at(*id);
            for i in 0..page.count {
                let Ok(leaf) = page.leaf(i) else { continue };
                if entries.contains_key(leaf.key) || !misses(leaf.key) {
                    continue;
                }
                // What a newer copy of the same part of the list does not have was removed.
                if newer.iter().any(|(first, last, _)| *first <= leaf.key && leaf.key <= *last) && !kind.is_record {
                    continue;
                }
                let origin = Origin::Salvaged(Reason { page: *id, why: LOST_LIST });
                let entry = match root_of(&leaf) {
                    None => Some(Entry { place: Found::Element(at, i), origin }),
                    Some(root) => {
                        let place = [place.as_slice(), &[leaf.key.to_vec()]].concat();
                        self.below(root, kind.below(leaf.key), &place, origin)
                    }
                };
                entries.extend(entry.map(|entry| (Box::from(leaf.key), entry)));
            }
            if let Some((first, last)) = page.key(0).zip(page.count.checked_sub(1).and_then(|i| page.key(i))) {
                newer.push((first, last, self.orphans.worth(*id, Some(kind), 0).unwrap_or_default()));
            }
        }
        self.take_unlisted(kind, place, misses, &newer, entries);
    }

    /// Records and lists that belong right below `place` by what they hold.
    fn take_unlisted(
        &mut self,
        kind: &'static Kind,
        place: &Place,
        misses: &dyn Fn(&[u8]) -> bool,
        lists: &[(&'a [u8], &'a [u8], Worth)],
        entries: &mut Entries,
    ) {
        self.take_implied(kind, place, misses, entries);
        let mut kinds: Vec<&'static Kind> =
            kind.fields.iter().filter_map(|(key, _)| kind.below(key.as_bytes())).collect();
        kinds.extend(kind.below(b"\0"));
        for below in kinds.into_iter().filter(|kind| kind.is_telling()) {
            for (key, page) in self.orphans.children(below, place) {
                let is_right = kind.below(&key).is_some_and(|kind| std::ptr::eq(kind, below));
                if !is_right || entries.contains_key(key.as_slice()) || !misses(&key) {
                    continue;
                }
                let fresh = self.orphans.worth(page, Some(below), 0).unwrap_or_default().fresh;
                let was_removed = |(first, last, worth): &(&[u8], &[u8], Worth)| {
                    *first <= key.as_slice() && key.as_slice() <= *last && fresh <= worth.fresh
                };
                if below.is_record && lists.iter().any(was_removed) {
                    continue;
                }
                let why = if below.is_record { OWN_NAME } else { LOST_PARENT };
                let way = [place.as_slice(), std::slice::from_ref(&key)].concat();
                let entry = self.below(page, Some(below), &way, Origin::Salvaged(Reason { page, why }));
                entries.extend(entry.map(|entry| (key.into(), entry)));
            }
        }
    }

    /// Lists of which no page is left, but something of what was in them.
    fn take_implied(
        &mut self,
        kind: &'static Kind,
        place: &Place,
        misses: &dyn Fn(&[u8]) -> bool,
        entries: &mut Entries,
    ) {
        for key in self.orphans.names_below(place) {
            let below = kind.below(&key).filter(|below| !below.is_record && place.len() < MAX_NEST);
            let Some(below) = below.filter(|_| !entries.contains_key(key.as_slice()) && misses(&key)) else { continue };
            let way = [place.as_slice(), std::slice::from_ref(&key)].concat();
            let copies = self.orphans.copies(below, &way, self.is_only(below));
            let page = copies.first().copied().unwrap_or_default();
            let origin = Origin::Salvaged(Reason { page, why: LOST_PARENT });
            let entry = self.merged_list(copies, below, &way, origin);
            entries.extend(entry.map(|entry| (key.into(), entry)));
        }
    }

    /// The bucket at `place`, to which a copy of its list leads: the newest of all copies of it.
    fn below(&mut self, root: u64, kind: Option<&'static Kind>, place: &Place, origin: Origin) -> Option<Entry> {
        let key = place.last()?;
        let is_it = self.orphans.may_be(root, kind, key);
        let Some(kind) = kind.filter(|kind| kind.is_telling() && place.len() <= MAX_NEST) else {
            let is_whole = is_it && self.orphans.worth(root, kind, 0)?.is_whole;
            return is_whole.then_some(Entry { place: Found::Page(root), origin });
        };
        let own = if is_it { self.orphans.worth(root, Some(kind), 0) } else { None };
        let copies = self.orphans.copies(kind, place, self.is_only(kind));
        let copies: Vec<u64> = copies.into_iter().filter(|page| self.orphans.may_be(*page, Some(kind), key)).collect();
        let best = copies.first().and_then(|page| Some((self.orphans.worth(*page, Some(kind), 0)?, *page)));
        if !kind.is_record {
            // The leaves below a branch are copies too, if their place is known; the bucket itself is one in any case.
            let own = if own.is_some() && !copies.contains(&root) {
                self.orphans.leaves(root, usize::MAX)
            } else {
                Vec::new()
            };
            let copies = self.orphans.ranked([own, copies].concat(), kind);
            return self.merged_list(copies, kind, place, origin);
        }
        match (own, best) {
            (Some(own), best) if best.is_none_or(|(best, _)| own >= best) => self.found(root, kind, place, origin),
            (_, Some((_, page))) => self.found(page, kind, place, origin),
            _ => None,
        }
    }

    fn merged_list(&mut self, copies: Vec<u64>, kind: &'static Kind, place: &Place, origin: Origin) -> Option<Entry> {
        let mut entries = Entries::new();
        self.take(&copies, kind, place, &|_| true, &mut entries);
        if entries.is_empty() {
            return None;
        }
        let index = self.keep(Mended { pages: Vec::new(), entries });
        Some(Entry { place: Found::Mended(index), origin })
    }
}
