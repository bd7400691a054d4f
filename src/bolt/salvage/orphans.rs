//! Pages that hang nowhere: what each is, where it belongs, how new it is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::survey::Survey;
use crate::bolt::{
    Bucket, Db,
    page::{BRANCH, HEADER, Leaf, Page, u64_at},
    schema::{Field, Kind, Others, Place},
    walk::{MAX_DEPTH, MAX_NEST},
};

/// A time as Go writes it: seconds and nanoseconds, big-endian, so that bytes compare as times do.
pub(super) type Freshness = [u8; 12];

/// A record has fewer fields.
const MAX_RECORD: usize = 64;

/// How much a copy of a bucket is worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Worth {
    /// The newest time in it.
    pub fresh: Freshness,
    /// All that is below it can be read.
    pub is_whole: bool,
}

/// A key, and the page of what it names.
type Named = (Vec<u8>, u64);

/// The whole pages of a file that its tree does not lead to.
pub(super) struct Orphans<'a> {
    pub db: &'a Db<'a>,
    page_size: usize,
    survey: &'a Survey<'a>,
    kinds: Vec<(&'static Kind, Option<Place>)>,
    /// Where each starts in the file.
    pages: BTreeMap<u64, usize>,
    /// What each leaf is: an index into `kinds`.
    kind_of: HashMap<u64, Option<usize>>,
    /// Which leaves' elements lead to a page.
    referrers: HashMap<u64, Vec<(u64, usize)>>,
    /// Which branch page leads to a page.
    branches: HashMap<u64, u64>,
    /// Pages that lists have under different keys.
    contested: HashSet<u64>,
    /// How new a list is by what only it has.
    solid: HashMap<u64, Freshness>,
    worths: HashMap<u64, Worth>,
    places: HashMap<u64, Option<Place>>,
    /// Leaves by kind and place.
    index: HashMap<(usize, Place), Vec<u64>>,
    /// Their keys and pages, by kind and the place above.
    below: HashMap<(usize, Place), Vec<Named>>,
    /// Names right below a place of which something is found, however deep.
    names: HashMap<Place, BTreeSet<Vec<u8>>>,
    /// Leaves of a kind whose place is not known.
    homeless: HashMap<usize, Vec<u64>>,
}

/// A bucket's root page, if its element is no inline bucket.
pub(super) fn root_of(leaf: &Leaf<'_>) -> Option<u64> {
    let root = u64_at(leaf.value, 0).ok()?;
    (leaf.is_bucket && leaf.value.len() == HEADER && root != 0).then_some(root)
}

fn inline_of<'a>(leaf: &Leaf<'a>) -> Option<Page<'a>> {
    (leaf.is_bucket && u64_at(leaf.value, 0) == Ok(0))
        .then(|| Page::inline(leaf.value.get(HEADER..).unwrap_or_default(), leaf.at + HEADER).ok())
        .flatten()
        .filter(|page| page.defect().is_none())
}

/// The elements of a leaf.
pub(super) fn elements<'a>(page: &Page<'a>) -> Vec<Leaf<'a>> {
    (0..page.count).filter_map(|i| page.leaf(i).ok()).collect()
}

/// True if a bucket has what is never missing in `kind`, and nothing that cannot be there.
pub(super) fn has_fields(elements: &[Leaf<'_>], kind: &Kind) -> bool {
    let (mut known, mut required) = (0, 0);
    for leaf in elements {
        match (kind.field(leaf.key), kind.others) {
            (Some(field), _) if leaf.is_bucket != matches!(field, Field::Bucket(_)) => return false,
            (Some(_), _) => known += 1,
            (None, Others::Nothing) => return false,
            (None, Others::Unknown) => {}
            (None, Others::Values) if leaf.is_bucket => return false,
            (None, Others::Buckets(_)) if !leaf.is_bucket => return false,
            (None, _) => {}
        }
        required += usize::from(kind.required.iter().any(|key| key.as_bytes() == leaf.key));
    }
    let is_list = kind.fields.is_empty() || matches!(kind.others, Others::Buckets(_));
    required == kind.required.len() && (known > 0 || is_list)
}

impl<'a> Orphans<'a> {
    /// Finds them: `survey` knows the pages of the tree, with those they run on to.
    pub fn find(
        file: &'a [u8],
        db: &'a Db<'a>,
        schema: &'static Kind,
        survey: &'a Survey<'a>,
        page_size: usize,
    ) -> Self {
        let mut kinds: Vec<_> = schema.all().into_iter().filter(|(kind, _)| kind.is_telling()).collect();
        kinds.sort_by_key(|(kind, _)| std::cmp::Reverse(kind.required.len()));
        let mut orphans = Self {
            db,
            page_size,
            survey,
            kinds,
            pages: BTreeMap::new(),
            kind_of: HashMap::new(),
            referrers: HashMap::new(),
            branches: HashMap::new(),
            contested: HashSet::new(),
            solid: HashMap::new(),
            worths: HashMap::new(),
            places: HashMap::new(),
            index: HashMap::new(),
            below: HashMap::new(),
            names: HashMap::new(),
            homeless: HashMap::new(),
        };
        orphans.scan(file);
        orphans.refer();
        orphans.classify_all();
        orphans
    }

    fn scan(&mut self, file: &'a [u8]) {
        for index in 2..file.len() / self.page_size {
            if self.survey.used.has(index) {
                continue;
            }
            let at = index * self.page_size;
            let Ok(id) = u64_at(file, at) else { return };
            // A page at another's place has kept its number, but not the pages it ran on to.
            let is_home = id == index as u64;
            let Ok(page) = Page::at(file, self.page_size, at) else { continue };
            if page.defect().is_some() || !is_home && (self.db.lies_at(id) != Some(at) || page.len() > self.page_size) {
                continue;
            }
            self.pages.insert(id, at);
        }
        // What a page ran on to may be another's by now.
        let runs_on = |(id, at): (&u64, &usize)| {
            let page = Page::at(file, self.page_size, *at).ok()?;
            let first = at / self.page_size;
            let rest = first + 1..first + page.len() / self.page_size;
            let is_taken = rest.into_iter().any(|n| self.survey.used.has(n) || self.pages.contains_key(&(n as u64)));
            is_taken.then_some(*id)
        };
        let broken: Vec<u64> = self.pages.iter().filter_map(runs_on).collect();
        for id in broken {
            self.pages.remove(&id);
        }
    }

    /// The page `id`, if it is whole and hangs nowhere.
    pub fn page(&self, id: u64) -> Option<Page<'a>> {
        self.pages.get(&id).and_then(|at| self.db.page_at(*at).ok())
    }

    /// Where page `id` starts in the file.
    pub fn at(&self, id: u64) -> usize {
        self.pages.get(&id).copied().unwrap_or_default()
    }

    fn refer(&mut self) {
        let mut first: HashMap<u64, &[u8]> = HashMap::new();
        for (id, at) in &self.pages {
            let Ok(page) = self.db.page_at(*at) else { continue };
            for i in 0..page.count {
                if page.flags == BRANCH {
                    self.branches.extend(page.branch(i).ok().map(|(_, child)| (child, *id)));
                    continue;
                }
                let Some((leaf, root)) = page.leaf(i).ok().and_then(|leaf| Some((leaf, root_of(&leaf)?))) else {
                    continue;
                };
                self.referrers.entry(root).or_default().push((*id, i));
                if *first.entry(root).or_insert(leaf.key) != leaf.key {
                    self.contested.insert(root);
                }
            }
        }
    }

    fn classify_all(&mut self) {
        let leaves: Vec<u64> = self.pages.keys().copied().collect();
        for id in &leaves {
            self.kind(*id, 0);
        }
        for id in leaves {
            let is_branch = self.page(id).is_some_and(|page| page.flags == BRANCH);
            // Of a list its leaves are put in place; a record is one thing.
            if let Some(kind) = self.kind(id, 0).filter(|kind| !is_branch || self.kinds[*kind].0.is_record) {
                match self.place(id) {
                    Some(place) => {
                        self.imply(&place);
                        if let Some((key, way)) = place.split_last().filter(|(key, _)| !key.is_empty()) {
                            self.below.entry((kind, way.to_vec())).or_default().push((key.clone(), id));
                        }
                        self.index.entry((kind, place)).or_default().push(id);
                    }
                    None => self.homeless.entry(kind).or_default().push(id),
                }
            }
        }
    }

    /// What lies at a place says that all above it was there.
    fn imply(&mut self, place: &[Vec<u8>]) {
        if let Some((key, way)) = place.split_last()
            && (key.is_empty() || self.names.entry(way.to_vec()).or_default().insert(key.clone()))
        {
            self.imply(way);
        }
    }

    /// The names right below `place` of which something is found.
    pub fn names_below(&self, place: &Place) -> Vec<Vec<u8>> {
        self.names.get(place).into_iter().flatten().cloned().collect()
    }

    fn number(&self, kind: &'static Kind) -> Option<usize> {
        self.kinds.iter().position(|(known, _)| std::ptr::eq(*known, kind))
    }

    /// What the leaf `id` is.
    fn kind(&mut self, id: u64, depth: usize) -> Option<usize> {
        if let Some(known) = self.kind_of.get(&id) {
            return *known;
        }
        if depth > MAX_NEST {
            return None;
        }
        // Until it is known it is nothing, so that a loop of pages ends.
        self.kind_of.insert(id, None);
        let page = self.page(id)?;
        let kind =
            if page.flags == BRANCH { self.kind_of_branch(id, depth) } else { self.kind_of(&elements(&page), depth) };
        self.kind_of.insert(id, kind);
        kind
    }

    fn kind_of(&mut self, elements: &[Leaf<'a>], depth: usize) -> Option<usize> {
        (0..self.kinds.len()).find(|n| !elements.is_empty() && self.fits(elements, self.kinds[*n].0, depth))
    }

    /// The fields of a record may be spread over leaves; those of a list are alike.
    fn kind_of_branch(&mut self, id: u64, depth: usize) -> Option<usize> {
        let leaves = self.leaves(id, MAX_RECORD);
        let pages: Vec<_> = leaves.iter().filter_map(|leaf| self.page(*leaf)).collect();
        if leaves.len() < MAX_RECORD && pages.iter().map(|page| page.count).sum::<usize>() <= MAX_RECORD {
            let mut elements: Vec<_> = pages.iter().flat_map(elements).collect();
            elements.sort_unstable_by(|a, b| a.key.cmp(b.key));
            let kind = self.kind_of(&elements, depth);
            if kind.is_some() {
                return kind;
            }
        }
        let first = leaves.first().copied()?;
        self.kind(first, depth + 1).filter(|kind| !self.kinds[*kind].0.is_record)
    }

    fn known(&mut self, id: u64) -> Option<&'static Kind> {
        self.kind(id, 0).map(|number| self.kinds[number].0)
    }

    /// True if the leaf `list` is of a bucket that has buckets of `kind` under such a key.
    fn leads_to(&mut self, list: u64, key: &[u8], kind: &'static Kind) -> bool {
        self.known(list).and_then(|list| list.below(key)).is_some_and(|below| std::ptr::eq(below, kind))
    }

    fn fits(&mut self, elements_of: &[Leaf<'a>], kind: &'static Kind, depth: usize) -> bool {
        if !has_fields(elements_of, kind) {
            return false;
        }
        let (mut right, mut wrong) = (0, 0);
        for leaf in elements_of.iter().filter(|leaf| leaf.is_bucket) {
            let Some(below) = kind.below(leaf.key).filter(|below| below.is_telling()) else { continue };
            let is_right = match (inline_of(leaf), root_of(leaf)) {
                // An empty bucket is of any kind.
                (Some(inline), _) if inline.count == 0 => continue,
                (Some(inline), _) => depth <= MAX_NEST && self.fits(&elements(&inline), below, depth + 1),
                (None, Some(root)) => match self.kind(root, depth + 1) {
                    Some(found) => std::ptr::eq(self.kinds[found].0, below),
                    None => continue,
                },
                (None, None) => return false,
            };
            if is_right {
                right += 1
            } else {
                wrong += 1
            }
            if right + wrong > 16 {
                break;
            }
        }
        right > wrong || wrong == 0 && !kind.required.is_empty()
    }

    fn bucket(&self, id: u64) -> Bucket<'a> {
        Bucket::at_page(self.db, id)
    }

    /// The keys from the root to the bucket of which leaf `id` is a part.
    pub fn place(&mut self, id: u64) -> Option<Place> {
        if let Some(known) = self.places.get(&id) {
            return known.clone();
        }
        self.places.insert(id, None);
        let kind = self.kind(id, 0)?;
        let place = self.kinds[kind].1.clone();
        let place = place.or_else(|| self.place_by_content(id, 0)).or_else(|| self.place_by_lists(id));
        let place = place.or_else(|| self.place_by_relatives(id));
        self.places.insert(id, place.clone());
        place
    }

    fn place_by_content(&mut self, id: u64, depth: usize) -> Option<Place> {
        let kind = self.known(id)?;
        if let Some(place) = kind.place {
            return place(&self.bucket(id));
        }
        let page = self.page(id).filter(|page| depth < 6 && page.flags != BRANCH)?;
        let mut partial = None;
        for leaf in (0..page.count).filter_map(|i| page.leaf(i).ok()).take(32) {
            let below = kind.below(leaf.key).filter(|below| below.is_telling());
            let Some(root) = root_of(&leaf).filter(|_| below.is_some()) else { continue };
            let fits =
                root != id && self.known(root).zip(below).is_some_and(|(known, below)| std::ptr::eq(known, below));
            let Some(mut place) = (if fits { self.place_by_content(root, depth + 1) } else { None }) else { continue };
            if place.pop().is_none_or(|key| !key.is_empty() && key != leaf.key) {
                continue;
            }
            if place.iter().all(|key| !key.is_empty()) {
                return Some(place);
            }
            partial = Some(place);
        }
        partial.filter(|place| place.last().is_some_and(|key| !key.is_empty()))
    }

    fn place_by_lists(&mut self, id: u64) -> Option<Place> {
        let kind = self.known(id)?;
        // A list leads to the bucket's root, of which this leaf may be far below.
        let above = std::iter::successors(Some(id), |id| self.branches.get(id).copied()).take(MAX_DEPTH);
        let lists: Vec<_> =
            above.flat_map(|id| self.referrers.get(&id).into_iter().flatten().copied()).take(256).collect();
        for (list, i) in lists {
            let key = self.page(list).and_then(|page| page.leaf(i).ok()).map(|leaf| leaf.key);
            let Some(key) = key else { continue };
            if !self.leads_to(list, key, kind) || self.is_misnamed(id, kind, key) {
                continue;
            }
            if let Some(mut place) = self.place(list) {
                place.push(key.to_vec());
                return Some(place);
            }
        }
        None
    }

    /// Another copy of the same bucket refers to some of the same pages under the same keys.
    fn place_by_relatives(&mut self, id: u64) -> Option<Place> {
        let (kind, page) = (self.kind(id, 0)?, self.page(id)?);
        for leaf in (0..page.count).filter_map(|i| page.leaf(i).ok()).take(16) {
            let Some(root) = root_of(&leaf) else { continue };
            if let Some(place) = self.survey.list_with(root, leaf.key) {
                return Some(place.clone());
            }
            for (list, i) in self.referrers.get(&root).cloned().unwrap_or_default().into_iter().take(16) {
                let other = self.page(list).and_then(|page| page.leaf(i).ok());
                if list != id && self.kind(list, 0) == Some(kind) && other.is_some_and(|other| other.key == leaf.key) {
                    let place = self.place_by_content(list, 0).or_else(|| self.place_by_lists(list));
                    if place.is_some() {
                        return place;
                    }
                }
            }
        }
        None
    }

    fn is_misnamed(&self, id: u64, kind: &'static Kind, key: &[u8]) -> bool {
        kind.is_named.and_then(|is_named| is_named(key, &self.bucket(id))) == Some(false)
    }

    /// True if the bucket at page `id` may be the one of `kind` under `key`: it is whole, hangs nowhere else, has the fields,
    /// does not name another, and no newer list has it under another key.
    pub fn may_be(&mut self, id: u64, kind: Option<&'static Kind>, key: &[u8]) -> bool {
        self.fits_lightly(id, kind, key) && kind.is_none_or(|kind| !self.is_claimed_elsewhere(id, kind, key))
    }

    /// A page freed and used again stands in two lists: the newer is right.
    fn is_claimed_elsewhere(&mut self, id: u64, kind: &'static Kind, key: &[u8]) -> bool {
        if !self.contested.contains(&id) {
            return false;
        }
        let (mut own, mut other) = (None, None);
        for (list, i) in self.referrers.get(&id).cloned().unwrap_or_default().into_iter().take(256) {
            let Some(found) = self.page(list).and_then(|page| page.leaf(i).ok()).map(|leaf| leaf.key) else { continue };
            if self.leads_to(list, found, kind) {
                let fresh = self.solid(list);
                let side = if found == key { &mut own } else { &mut other };
                *side = (*side).max(Some(fresh));
            }
        }
        other.is_some() && other > own
    }

    /// How new a list is, by those of its pages that no other list has under another key.
    fn solid(&mut self, list: u64) -> Freshness {
        if let Some(known) = self.solid.get(&list) {
            return *known;
        }
        let mut fresh = Freshness::default();
        if let Some((page, kind)) = self.page(list).zip(self.kind(list, 0).map(|n| self.kinds[n].0)) {
            for leaf in (0..page.count).filter_map(|i| page.leaf(i).ok()) {
                let root = root_of(&leaf).filter(|root| !self.contested.contains(root));
                if let Some(worth) = root.and_then(|root| self.worth(root, kind.below(leaf.key), 0)) {
                    fresh = fresh.max(worth.fresh);
                }
            }
        }
        self.solid.insert(list, fresh);
        fresh
    }

    /// What the bucket at page `id` is worth; `None` if it is not of that kind.
    pub fn worth(&mut self, id: u64, kind: Option<&'static Kind>, depth: usize) -> Option<Worth> {
        if let Some(known) = self.worths.get(&id) {
            return Some(*known);
        }
        self.page(id)?;
        // A loop is not whole.
        self.worths.insert(id, Worth::default());
        let mut worth = Worth { is_whole: depth < MAX_DEPTH, ..Worth::default() };
        if depth < MAX_DEPTH {
            self.weigh(id, kind, depth, &mut worth);
        }
        self.worths.insert(id, worth);
        Some(worth)
    }

    fn weigh(&mut self, id: u64, kind: Option<&'static Kind>, depth: usize, worth: &mut Worth) {
        let Some(page) = self.page(id) else { return worth.is_whole = false };
        for i in 0..page.count {
            let below = match page.flags {
                BRANCH => page.branch(i).ok().and_then(|(_, child)| self.worth(child, kind, depth + 1)),
                _ => match page.leaf(i) {
                    Ok(leaf) => self.weigh_leaf(&leaf, kind, depth),
                    Err(_) => None,
                },
            };
            match below {
                Some(below) => {
                    worth.fresh = worth.fresh.max(below.fresh);
                    worth.is_whole &= below.is_whole;
                }
                None => worth.is_whole = false,
            }
        }
    }

    fn weigh_leaf(&mut self, leaf: &Leaf<'a>, kind: Option<&'static Kind>, depth: usize) -> Option<Worth> {
        let mut worth = Worth { is_whole: true, ..Worth::default() };
        if let Some(Field::Time) = kind.and_then(|kind| kind.field(leaf.key)) {
            worth.fresh = leaf.value.get(1..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
        }
        let below = kind.and_then(|kind| kind.below(leaf.key));
        match (inline_of(leaf), root_of(leaf)) {
            (Some(inline), _) if depth < MAX_DEPTH => {
                for leaf in (0..inline.count).filter_map(|i| inline.leaf(i).ok()) {
                    worth.fresh = worth.fresh.max(self.weigh_leaf(&leaf, below, MAX_DEPTH)?.fresh);
                }
                Some(worth)
            }
            (None, Some(root)) if depth < MAX_DEPTH => {
                if self.fits_lightly(root, below, leaf.key) {
                    self.worth(root, below, depth + 1)
                } else {
                    None
                }
            }
            _ if leaf.is_bucket && depth < MAX_DEPTH => None,
            _ => Some(worth),
        }
    }

    fn fits_lightly(&mut self, id: u64, kind: Option<&'static Kind>, key: &[u8]) -> bool {
        let (Some(kind), Some(page)) = (kind, self.page(id)) else { return kind.is_none() && self.page(id).is_some() };
        match self.number(kind) {
            Some(number) => self.kind(id, 0) == Some(number) && !self.is_misnamed(id, kind, key),
            None => page.flags == BRANCH || has_fields(&elements(&page), kind),
        }
    }

    /// The leaves of `kind` that belong to the bucket at `place`, the newest first. Those of unknown place belong to the only
    /// place that misses some, if `is_only` says so.
    pub fn copies(&mut self, kind: &'static Kind, place: &Place, is_only: bool) -> Vec<u64> {
        let Some(number) = self.number(kind) else { return Vec::new() };
        let mut found: Vec<u64> = Vec::new();
        for as_known in loosened(place) {
            found.extend(self.index.get(&(number, as_known)).into_iter().flatten());
        }
        if is_only {
            found.extend(self.homeless.get(&number).into_iter().flatten());
        }
        self.ranked(found, kind)
    }

    /// These leaves, the newest first.
    pub fn ranked(&mut self, mut found: Vec<u64>, kind: &'static Kind) -> Vec<u64> {
        found.sort_unstable();
        found.dedup();
        let mut ranked: Vec<_> =
            found.into_iter().map(|id| (self.worth(id, Some(kind), 0).unwrap_or_default(), id)).collect();
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        ranked.into_iter().map(|(_, id)| id).collect()
    }

    /// The leaves of the bucket whose root is page `root`, as far as they can be found.
    pub fn leaves(&self, root: u64, most: usize) -> Vec<u64> {
        let (mut found, mut seen, mut next) = (Vec::new(), HashSet::new(), vec![root]);
        while let Some(id) = next.pop().filter(|_| found.len() < most && seen.len() <= 2 * most.min(self.pages.len())) {
            let Some(page) = self.page(id).filter(|_| seen.insert(id)) else { continue };
            match page.flags {
                BRANCH => next.extend((0..page.count).filter_map(|i| page.branch(i).ok()).map(|(_, child)| child)),
                _ => found.push(id),
            }
        }
        found
    }

    /// Records of `kind` whose own content says that they belong right below `place`: their keys, with the newest page.
    pub fn children(&mut self, kind: &'static Kind, place: &Place) -> Vec<(Vec<u8>, u64)> {
        let Some(number) = self.number(kind) else { return Vec::new() };
        let ways = loosened(place).into_iter();
        let found: Vec<(Vec<u8>, u64)> =
            ways.flat_map(|way| self.below.get(&(number, way)).cloned().unwrap_or_default()).collect();
        let mut newest = BTreeMap::new();
        for (key, id) in found {
            let worth = self.worth(id, Some(kind), 0).unwrap_or_default();
            let best = newest.entry(key).or_insert((worth, id));
            *best = (*best).max((worth, id));
        }
        newest.into_iter().map(|(key, (_, id))| (key, id)).collect()
    }

    /// All places at which a record of `kind` lies, with its newest page.
    pub fn everywhere(&mut self, kind: &'static Kind) -> Vec<(Place, u64)> {
        let Some(number) = self.number(kind) else { return Vec::new() };
        let found: Vec<_> = self
            .index
            .iter()
            .filter(|((n, _), _)| *n == number)
            .map(|((_, at), ids)| (at.clone(), ids.clone()))
            .collect();
        let mut newest: Vec<_> = found
            .into_iter()
            .filter_map(|(place, ids)| {
                let best = ids.into_iter().map(|id| (self.worth(id, Some(kind), 0).unwrap_or_default(), id)).max();
                best.map(|(_, id)| (place, id))
            })
            .collect();
        newest.sort_unstable();
        newest
    }
}

/// A place as it may be known: with any one of its names missing.
fn loosened(place: &Place) -> Vec<Place> {
    let without = |n: usize| {
        let mut place = place.clone();
        place[n] = Vec::new();
        place
    };
    let mut ways = vec![place.clone()];
    ways.extend((0..place.len()).map(without));
    ways
}
