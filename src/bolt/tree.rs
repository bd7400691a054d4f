//! The tree: a database, its buckets, lookups and walks in key order.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet, btree_map},
};

use super::{
    page::{BRANCH, HEADER, Meta, Page, u64_at},
    salvage::{Entry, Found, Mended, Origin, Reading},
    source::Source,
    walk::MAX_DEPTH,
};
use crate::corrupt::Corrupt;

/// An open database.
pub struct Db<'a> {
    file: Source<'a>,
    meta: Meta,
    /// How a damaged file is read; without it each page is looked at when it is met.
    reading: Option<&'a Reading>,
    /// Which bucket's tree a page was seen in. One page in two trees is damage, and would let a small file
    /// make a walk of any length. Not needed for a file that was looked through as a whole.
    owners: RefCell<HashMap<u64, u64>>,
}

/// A bucket: keys in byte order, each with a value or a bucket below it.
#[derive(Clone, Copy)]
pub struct Bucket<'d> {
    db: &'d Db<'d>,
    root: Root<'d>,
    /// The counter behind `NextSequence`.
    pub sequence: u64,
    /// How sure it is that it stood so in the newest commit.
    pub origin: Origin,
}

#[derive(Clone, Copy)]
enum Root<'d> {
    Page(u64),
    Inline(Page<'d>),
    Mended(&'d Mended),
}

/// What stands under a key.
#[derive(Clone, Copy)]
pub enum Item<'d> {
    /// Plain bytes, perhaps none ("set" entries).
    Value(&'d [u8]),
    /// A bucket below this one.
    Bucket(Bucket<'d>),
}

impl<'d> Item<'d> {
    /// The bucket, if it is one.
    pub fn bucket(self) -> Option<Bucket<'d>> {
        if let Self::Bucket(bucket) = self { Some(bucket) } else { None }
    }

    /// The bytes, if it is no bucket.
    pub fn value(self) -> Option<&'d [u8]> {
        if let Self::Value(value) = self { Some(value) } else { None }
    }
}

type Element<'d> = (&'d [u8], Item<'d>);

impl<'a> Db<'a> {
    /// Opens a file's bytes: finds the page size and the newest valid meta (`db.go`, `getPageSize`, `meta`).
    pub fn open(file: &'a [u8]) -> Result<Self, Corrupt> {
        let (first, second) = metas(file);
        let meta = Meta::newest(first, second).ok_or(first.err().unwrap_or(Corrupt { at: 0, why: "no meta page" }))?;
        Ok(Self { file: Source::Whole(file), meta, reading: None, owners: RefCell::default() })
    }

    /// A file that was looked through before.
    pub(super) fn read_by(file: Source<'a>, meta: Meta, reading: &'a Reading) -> Self {
        Self { file, meta, reading: Some(reading), owners: RefCell::default() }
    }

    /// Which commit is read: transaction number and checksum of the meta page. Unchanged while the tree is.
    pub fn commit(&self) -> (u64, u64) {
        (self.meta.txid, self.meta.checksum)
    }

    /// Bytes in a page.
    pub fn page_size(&self) -> usize {
        self.meta.page_size
    }

    /// The bucket of buckets.
    pub fn root(&'a self) -> Bucket<'a> {
        let mended = self.reading.and_then(|reading| reading.mended.get(reading.root?));
        let root = mended.map_or(Root::Page(self.meta.root), Root::Mended);
        let origin = self.reading.map_or(Origin::Live, |reading| reading.origin);
        Bucket { db: self, root, sequence: 0, origin }
    }

    fn page(&self, id: u64, owner: u64) -> Result<Page<'_>, Corrupt> {
        if id < 2 || id >= self.meta.high_water {
            return Err(Corrupt { at: 0, why: "a page number is outside the tree's pages" });
        }
        if let Some(at) = self.lies_at(id) {
            return self.page_at(at);
        }
        let page = self.file.page(self.meta.page_size, id)?;
        if self.reading.is_some() {
            return Ok(page);
        }
        let seen = *self.owners.borrow_mut().entry(id).or_insert(owner);
        if seen == owner { Ok(page) } else { Err(Corrupt { at: 0, why: "a page belongs to two buckets" }) }
    }

    /// The bucket whose root is page `id`, wherever it hangs.
    pub fn page_as_bucket(&'a self, id: u64) -> Bucket<'a> {
        Bucket::at_page(self, id)
    }

    /// Where a page starts that does not lie in its own place.
    pub(super) fn lies_at(&self, id: u64) -> Option<usize> {
        let index = *self.reading?.displaced.get(&id)?;
        usize::try_from(index).ok()?.checked_mul(self.meta.page_size)
    }

    /// The page that starts there.
    pub(super) fn page_at(&self, at: usize) -> Result<Page<'a>, Corrupt> {
        self.file.page_at(self.meta.page_size, at)
    }
}

/// Both metas of a file, each valid or not.
pub(super) fn metas(file: &[u8]) -> (Result<Meta, Corrupt>, Result<Meta, Corrupt>) {
    let first = Meta::read(file, 0);
    let second = match &first {
        Ok(meta) => Meta::read(file, meta.page_size),
        Err(_) => second_meta(file),
    };
    (first, second)
}

/// The transaction numbers of a file's two meta pages, in their order; `None` for one that is not valid. The higher counts.
pub fn transactions(file: &[u8]) -> [Option<u64>; 2] {
    let (first, second) = metas(file);
    [first, second].map(|meta| meta.ok().map(|meta| meta.txid))
}

/// Looks for the second meta where a file of each page size would have it.
fn second_meta(file: &[u8]) -> Result<Meta, Corrupt> {
    let candidates = (0..15).map(|i| 1024 << i).filter_map(|at| Meta::read(file, at).ok().map(|meta| (at, meta)));
    let found = candidates.filter(|(at, meta)| *at == meta.page_size).map(|(_, meta)| meta).next();
    found.ok_or(Corrupt { at: 0, why: "neither meta page is valid" })
}

/// The worse of two: what hangs below an uncertain bucket is no surer than it.
fn worse(above: Origin, own: Origin) -> Origin {
    if own == Origin::Live { above } else { own }
}

impl<'d> Bucket<'d> {
    /// The bucket whose root is page `id`, under whatever name.
    pub(super) fn at_page(db: &'d Db<'d>, id: u64) -> Self {
        Self { db, root: Root::Page(id), sequence: 0, origin: Origin::Live }
    }

    /// The same bucket, known to be so and no other way.
    pub fn with_origin(self, origin: Origin) -> Self {
        Self { origin, ..self }
    }

    /// A bucket from its value in the parent's leaf; `at` is where the value starts in the file.
    fn open(&self, value: &'d [u8], at: usize, origin: Origin) -> Result<Self, Corrupt> {
        let place = |e: Corrupt| Corrupt { at: at + e.at, ..e };
        let (root, sequence) = (u64_at(value, 0).map_err(place)?, u64_at(value, 8).map_err(place)?);
        // Root page 0 means the bucket is inline: its page follows the header in this value (bucket.go, openBucket).
        let root = match root {
            0 => Root::Inline(Page::inline(value.get(HEADER..).unwrap_or_default(), at + HEADER)?),
            id => Root::Page(id),
        };
        Ok(Self { db: self.db, root, sequence, origin })
    }

    /// The page its tree begins with; none for one that stands in its parent's page, or is put together.
    pub(super) fn page(&self) -> Option<u64> {
        if let Root::Page(id) = self.root { Some(id) } else { None }
    }

    fn root_page(&self) -> Result<Option<Page<'d>>, Corrupt> {
        match self.root {
            Root::Page(id) => self.db.page(id, id).map(Some),
            Root::Inline(page) => Ok(Some(page)),
            Root::Mended(_) => Ok(None),
        }
    }

    fn child(&self, id: u64) -> Result<Page<'d>, Corrupt> {
        match self.root {
            Root::Page(owner) => self.db.page(id, owner),
            _ => Err(Corrupt { at: 0, why: "an inline bucket has a branch page" }),
        }
    }

    fn item(&self, page: Page<'d>, i: usize, origin: Origin) -> Result<Element<'d>, Corrupt> {
        let leaf = page.leaf(i)?;
        let item = match leaf.is_bucket {
            true => Item::Bucket(self.open(leaf.value, leaf.at, origin)?),
            false => Item::Value(leaf.value),
        };
        Ok((leaf.key, item))
    }

    /// An entry that was put in anew.
    fn entry(&self, entry: &Entry) -> Result<Item<'d>, Corrupt> {
        let origin = worse(self.origin, entry.origin);
        let bucket = |root| Item::Bucket(Bucket { db: self.db, root, sequence: 0, origin });
        Ok(match entry.place {
            Found::Element(at, i) => self.item(self.db.page_at(at)?, i, origin)?.1,
            Found::Page(id) => bucket(Root::Page(id)),
            Found::Mended(index) => {
                let missing = Corrupt { at: 0, why: "a bucket was not put together" };
                let mended = self.db.reading.and_then(|reading| reading.mended.get(index)).ok_or(missing)?;
                bucket(Root::Mended(mended))
            }
        })
    }

    /// What stands under `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Item<'d>>, Corrupt> {
        if let Root::Mended(mended) = self.root {
            return self.get_mended(mended, key);
        }
        let Some(mut page) = self.root_page()? else { return Ok(None) };
        for _ in 0..MAX_DEPTH {
            if page.flags != BRANCH {
                return self.get_in(&page, key);
            }
            // The last element that is not greater holds the key; below the first, the first (cursor.go, searchPage).
            let after = partition(page.count, |i| Ok(page.branch(i)?.0 <= key))?;
            page = self.child(page.branch(after.saturating_sub(1))?.1)?;
        }
        Err(Corrupt { at: 0, why: "the tree is too deep" })
    }

    fn get_in(&self, page: &Page<'d>, key: &[u8]) -> Result<Option<Item<'d>>, Corrupt> {
        // Of a page that is damaged in part, what can be believed.
        if self.db.reading.is_some_and(|reading| !reading.damage.is_empty()) && page.defect().is_some() {
            let found = (0..page.count).find(|i| page.is_sound(*i) && page.key(*i) == Some(key));
            return found.map(|i| self.item(*page, i, self.origin).map(|(_, item)| item)).transpose();
        }
        let at = partition(page.count, |i| Ok(page.leaf(i)?.key < key))?;
        match at < page.count && page.leaf(at)?.key == key {
            true => self.item(*page, at, self.origin).map(|(_, item)| Some(item)),
            false => Ok(None),
        }
    }

    fn get_mended(&self, mended: &'d Mended, key: &[u8]) -> Result<Option<Item<'d>>, Corrupt> {
        if let Some(entry) = mended.entries.get(key) {
            return self.entry(entry).map(Some);
        }
        // Leaves are in order of keys: the last that begins below the key has it.
        let first =
            |n: usize| Ok::<_, Corrupt>(self.db.page_at(mended.pages[n])?.key(0).is_some_and(|first| first <= key));
        let behind = partition(mended.pages.len(), first)?;
        for at in mended.pages[..behind].iter().rev().take(2) {
            if let Some(item) = self.get_in(&self.db.page_at(*at)?, key)? {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// What stands under each of `keys`, which are in order: of a leaf in a file that is whole, in one walk.
    pub fn each_of<const N: usize>(&self, keys: [&str; N]) -> Result<[Option<Item<'d>>; N], Corrupt> {
        let mut found = [None; N];
        let mut wanted = found.iter_mut().zip(keys).peekable();
        let is_whole = self.db.reading.is_some_and(|reading| reading.damage.is_empty());
        if let Some(page) = self.root_page()?.filter(|page| is_whole && page.flags != BRANCH && keys.is_sorted()) {
            for i in 0..page.count {
                let leaf = page.leaf(i)?;
                while wanted.next_if(|(_, key)| key.as_bytes() < leaf.key).is_some() {}
                if let Some((place, _)) = wanted.next_if(|(_, key)| key.as_bytes() == leaf.key) {
                    *place = Some(self.item(page, i, self.origin)?.1);
                }
            }
            return Ok(found);
        }
        for (place, key) in wanted {
            *place = self.get(key.as_bytes())?;
        }
        Ok(found)
    }

    /// The bucket under `key`, if there is one.
    pub fn bucket(&self, key: impl AsRef<[u8]>) -> Result<Option<Bucket<'d>>, Corrupt> {
        Ok(self.get(key.as_ref())?.and_then(Item::bucket))
    }

    /// The bytes under `key`, if they are no bucket.
    pub fn value(&self, key: impl AsRef<[u8]>) -> Result<Option<&'d [u8]>, Corrupt> {
        Ok(self.get(key.as_ref())?.and_then(Item::value))
    }

    /// All entries in key order. What cannot be read comes as an error, and the walk goes on behind it.
    pub fn iter(&self) -> Iter<'d> {
        let entries = match self.root {
            Root::Mended(mended) => Some((mended, mended.entries.iter().peekable())),
            _ => None,
        };
        let (stack, seen) = (Vec::new(), HashSet::new());
        Iter { bucket: *self, entries, stack, seen, started: false, last: None }
    }

    /// The buckets right below this one, with their keys; plain values are passed over.
    pub fn buckets(&self) -> impl Iterator<Item = Result<(&'d [u8], Bucket<'d>), Corrupt>> + use<'d> {
        self.iter().filter_map(|entry| match entry {
            Ok((key, Item::Bucket(bucket))) => Some(Ok((key, bucket))),
            Ok((_, Item::Value(_))) => None,
            Err(e) => Some(Err(e)),
        })
    }
}

/// The first index in `0..count` for which `before` is false (binary search that may fail).
fn partition(count: usize, before: impl Fn(usize) -> Result<bool, Corrupt>) -> Result<usize, Corrupt> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle)? { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

type Entries<'d> = std::iter::Peekable<btree_map::Iter<'d, Box<[u8]>, Entry>>;

/// A walk through one bucket. Each page is entered once, so it ends after at most every element of the file.
pub struct Iter<'d> {
    bucket: Bucket<'d>,
    /// What was put in anew, and the leaves that are left, of a mended bucket.
    entries: Option<(&'d Mended, Entries<'d>)>,
    /// Pages from the root down, each with its next element.
    stack: Vec<(Page<'d>, usize)>,
    seen: HashSet<u64>,
    started: bool,
    last: Option<&'d [u8]>,
}

impl<'d> Iter<'d> {
    fn step(&mut self) -> Result<Option<Element<'d>>, Corrupt> {
        if !self.started {
            self.started = true;
            match &self.entries {
                Some((mended, _)) => {
                    let pages = mended.pages.iter().rev().filter_map(|at| self.bucket.db.page_at(*at).ok());
                    self.stack.extend(pages.map(|page| (page, 0)));
                }
                None => self.stack.extend(self.bucket.root_page()?.map(|page| (page, 0))),
            }
        }
        if self.entries.is_some() { self.mended() } else { self.tree() }
    }

    fn tree(&mut self) -> Result<Option<Element<'d>>, Corrupt> {
        while let Some((page, next)) = self.stack.last_mut() {
            let (page, i) = (*page, *next);
            *next += 1;
            if i >= page.count {
                self.stack.pop();
            } else if page.flags == BRANCH {
                let child = self.descend(page.branch(i)?.1)?;
                self.stack.push((child, 0));
            } else {
                self.ascending(page.leaf(i)?.key)?;
                return self.bucket.item(page, i, self.bucket.origin).map(Some);
            }
        }
        Ok(None)
    }

    /// Two rows of keys in order, made one; what was put in anew replaces what it has the key of.
    fn mended(&mut self) -> Result<Option<Element<'d>>, Corrupt> {
        let Some((_, entries)) = &mut self.entries else { return Ok(None) };
        while let Some((page, next)) = self.stack.last_mut() {
            let (page, i) = (*page, *next);
            let Some(key) = page.key(i).filter(|_| i < page.count) else {
                *next += 1;
                if i >= page.count {
                    self.stack.pop();
                }
                continue;
            };
            if !(page.is_sound(i) || page.defect().is_none()) {
                *next += 1;
                continue;
            }
            match entries.peek().map(|(new, _)| new.as_ref().cmp(key)) {
                Some(std::cmp::Ordering::Less) => break,
                Some(std::cmp::Ordering::Equal) => {
                    *next += 1;
                    break;
                }
                _ => {
                    *next += 1;
                    return self.bucket.item(page, i, self.bucket.origin).map(Some);
                }
            }
        }
        let Some((key, entry)) = entries.next() else { return Ok(None) };
        self.bucket.entry(entry).map(|item| Some((&key[..], item)))
    }

    fn descend(&mut self, id: u64) -> Result<Page<'d>, Corrupt> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(Corrupt { at: 0, why: "the tree is too deep" });
        }
        if !self.seen.insert(id) {
            return Err(Corrupt { at: 0, why: "a page hangs in the tree twice" });
        }
        self.bucket.child(id)
    }

    fn ascending(&mut self, key: &'d [u8]) -> Result<(), Corrupt> {
        if self.last.is_some_and(|last| last >= key) {
            return Err(Corrupt { at: 0, why: "keys are out of order" });
        }
        self.last = Some(key);
        Ok(())
    }
}

impl<'d> Iterator for Iter<'d> {
    type Item = Result<Element<'d>, Corrupt>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FNV-1a over the meta's fields, written anew.
    fn meta(page_size: u32, txid: u64, root: u64, high_water: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(0xED0C_DAED_u32.to_le_bytes());
        bytes.extend(2_u32.to_le_bytes());
        bytes.extend(page_size.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        [root, 0, u64::MAX, high_water, txid].iter().for_each(|field| bytes.extend(field.to_le_bytes()));
        let mut sum = 0xcbf2_9ce4_8422_2325_u64;
        for byte in &bytes {
            sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    fn header(id: u64, flags: u16, count: u16) -> Vec<u8> {
        let mut bytes = id.to_le_bytes().to_vec();
        bytes.extend(flags.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes
    }

    /// A leaf page with these keys and values; `true`: the value is a bucket.
    fn leaf(id: u64, items: &[(&[u8], &[u8], bool)]) -> Vec<u8> {
        let mut bytes = header(id, 2, items.len() as u16);
        let mut data = Vec::new();
        for (i, (key, value, is_bucket)) in items.iter().enumerate() {
            let pos = (items.len() - i) * 16 + data.len();
            for word in [u32::from(*is_bucket), pos as u32, key.len() as u32, value.len() as u32] {
                bytes.extend(word.to_le_bytes());
            }
            data.extend([*key, *value].concat());
        }
        [bytes, data].concat()
    }

    fn file(page_size: usize, pages: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; page_size * pages.len()];
        for (i, page) in pages.iter().enumerate() {
            bytes[i * page_size..i * page_size + page.len()].copy_from_slice(page);
        }
        bytes
    }

    fn small(page_size: usize, txids: [u64; 2]) -> Vec<u8> {
        let head = |id, txid| [header(id, 4, 0), meta(page_size as u32, txid, 2, 4)].concat();
        file(
            page_size,
            &[head(0, txids[0]), head(1, txids[1]), leaf(2, &[(b"key", b"value", false), (b"set", b"", false)])],
        )
    }

    #[test]
    fn every_page_size_is_found_by_either_meta() {
        for page_size in [1024, 4096, 16384, 65536] {
            for lost in [None, Some(0), Some(page_size)] {
                let mut bytes = small(page_size, [6, 7]);
                if let Some(at) = lost {
                    bytes[at + 16..at + 40].fill(0);
                }
                let db = Db::open(&bytes).unwrap();
                assert_eq!(db.commit().0, if lost == Some(page_size) { 6 } else { 7 });
                assert_eq!(db.root().value("key").unwrap(), Some(&b"value"[..]));
                assert_eq!(db.root().value("set").unwrap(), Some(&b""[..]), "an empty value is a value");
                assert!(db.root().bucket("set").unwrap().is_none());
            }
        }
    }

    #[test]
    fn what_is_no_database_of_ours_says_so() {
        let why = |bytes: &[u8]| Db::open(bytes).err().unwrap().why;
        assert_eq!(why(b""), "ends too soon");
        let mut big_endian = small(4096, [1, 2]);
        for at in [16, 4096 + 16] {
            big_endian[at..at + 4].reverse();
        }
        assert!(why(&big_endian).contains("big-endian"));
        let mut newer = small(4096, [1, 2]);
        newer[20] = 3;
        newer[4096 + 20] = 3;
        assert!(why(&newer).contains("only 2 is known"));
    }

    #[test]
    fn a_bucket_may_be_inline_and_a_page_has_one_owner() {
        let inline = [&[0; 16][..], &leaf(0, &[(b"a", b"1", false), (b"b", b"2", false)])].concat();
        let page = [4_u64.to_le_bytes(), 9_u64.to_le_bytes()].concat();
        let root = leaf(2, &[(b"far", &page, true), (b"near", &inline, true), (b"same", &page, true)]);
        let head = |id, txid| [header(id, 4, 0), meta(4096, txid, 2, 5)].concat();
        let bytes = file(4096, &[head(0, 0), head(1, 1), root, vec![], leaf(4, &[(b"x", b"y", false)])]);
        let db = Db::open(&bytes).unwrap();
        let near = db.root().bucket("near").unwrap().unwrap();
        let keys: Vec<_> = near.iter().map(|e| e.unwrap().0).collect();
        assert_eq!(keys, [b"a", b"b"]);
        let far = db.root().bucket("far").unwrap().unwrap();
        assert_eq!((far.sequence, far.value("x").unwrap()), (9, Some(&b"y"[..])));
        // The root's own page, claimed by a bucket as well.
        let mut shared = bytes.clone();
        let at = 2 * 4096 + shared[2 * 4096..].windows(16).position(|w| w == page).unwrap();
        shared[at] = 3;
        let db = Db::open(&shared).unwrap();
        assert!(db.root().bucket("far").unwrap().unwrap().value("x").is_err(), "page 3 is no page");
    }

    #[test]
    fn keys_out_of_order_end_a_walk_with_an_error_each() {
        let head = |id, txid| [header(id, 4, 0), meta(4096, txid, 2, 3)].concat();
        let items: [(&[u8], &[u8], bool); 3] = [(b"b", b"", false), (b"a", b"", false), (b"c", b"", false)];
        let bytes = file(4096, &[head(0, 0), head(1, 1), leaf(2, &items)]);
        let db = Db::open(&bytes).unwrap();
        let found: Vec<_> = db.root().iter().map(|e| e.map(|(key, _)| key.to_vec()).map_err(|e| e.why)).collect();
        assert_eq!(found, [Ok(b"b".to_vec()), Err("keys are out of order"), Ok(b"c".to_vec())]);
    }
}
